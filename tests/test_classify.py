"""Using a multitask encoder, beside transformers' pipelines on the exported models."""

import json
import shutil

import multitask_models as tiny_models
import numpy as np
import pytest

from scripts import classify as script
from t0jax import checkpoint, classify, convert, sharding
from t0jax import config as cfg
from t0jax.classify import inference, outputs

TEXTS = ["the film is good", "a dull dog was not in New York " * 3, "Anna sleeps"]
LABELS = ["cat", "good film", "where"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tiny_models.vocabulary(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def weights(vocabulary):
    return tiny_models.tiny(vocabulary)


@pytest.fixture(scope="module")
def run(tmp_path_factory, vocabulary, weights):
    """A checkpoint with all heads."""
    model, params = weights
    folder = tmp_path_factory.mktemp("native") / "run"
    checkpoint.save_model(folder, params, model, vocabulary)
    return folder


@pytest.fixture(scope="module")
def native(run):
    return classify.Multitask.load(run, mesh=one_device(), max_length=64)


def one_device():
    import jax

    return sharding.make_mesh(cfg.Mesh(), jax.devices()[:1])


@pytest.fixture(scope="module")
def exported(tmp_path_factory, vocabulary, weights):
    """Directories of single tasks, written once each."""
    folder, model, params = tmp_path_factory.mktemp("tasks"), weights[0], weights[1]

    def export(task):
        out = folder / task.replace("/", "_")
        if not out.exists():
            convert.save_task(params, model, task, out, tokenizer_path=vocabulary)
        return out

    return export


@pytest.fixture(scope="module")
def pipeline(exported):
    """transformers' pipelines on those directories."""
    transformers = pytest.importorskip("transformers")

    def make(kind, task, **options):
        return transformers.pipeline(kind, model=str(exported(task)), device="cpu", **options)

    return make


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("labels", [LABELS, "cat, good film", ["cat"]])
def test_zero_shot_is_the_pipelines(native, pipeline, exported, multi_label, labels):
    theirs = pipeline("zero-shot-classification", "tiny/mnli")
    template = "It is about {}."
    options = {"hypothesis_template": template, "multi_label": multi_label}
    wanted = theirs(TEXTS, labels, **options)
    folded = classify.zero_shot(exported("tiny/mnli"), mesh=one_device(), max_length=64)
    for ours in (native.zero_shot("tiny/mnli"), folded):
        found = ours(TEXTS, labels, **options)
        assert [f["sequence"] for f in found] == TEXTS
        for one, other in zip(found, wanted, strict=True):
            assert one["labels"] == other["labels"]
            np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)


def test_zero_shot_default_template_and_one_text(native, pipeline):
    theirs = pipeline("zero-shot-classification", "tiny/mnli")(TEXTS[0], LABELS)
    ours = native.zero_shot("tiny/mnli")(TEXTS[0], LABELS)
    assert ours["labels"] == theirs["labels"]
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-4)
    # A task that is not named lends its head, not its embedding.
    assert native.zero_shot().head.task == "tiny/mnli"
    assert not np.allclose(
        native.zero_shot()(TEXTS[0], LABELS)["scores"], ours["scores"], atol=1e-5
    )


def test_a_long_text_loses_its_end_and_never_the_hypothesis(exported, pipeline):
    long = " ".join(tiny_models.sentences(20, seed=3))
    theirs = pipeline("zero-shot-classification", "tiny/mnli")
    theirs.tokenizer.model_max_length = 24
    ours = classify.zero_shot(exported("tiny/mnli"), mesh=one_device(), max_length=24)
    one, other = ours(long, LABELS), theirs(long, LABELS)
    assert one["labels"] == other["labels"]
    np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)


def test_text_classification_is_the_pipelines(native, pipeline):
    theirs = pipeline("text-classification", "tiny/sst2", top_k=None)(TEXTS)
    ours = native.classifier("tiny/sst2")(TEXTS)
    assert [[a["label"] for a in one] for one in ours] == [[a["label"] for a in o] for o in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            [a["score"] for a in one], [a["score"] for a in other], atol=1e-4
        )
    assert native.classifier("tiny/sst2")(TEXTS[0], top_k=1) == [
        pytest.approx(ours[0][0], abs=1e-5)
    ]


def test_pairs_are_the_pipelines(native, pipeline):
    theirs = pipeline("text-classification", "tiny/mnli", top_k=None)
    wanted = theirs([{"text": TEXTS[0], "text_pair": TEXTS[2]}])[0]
    ours = native.nli("tiny/mnli")
    for given in ((TEXTS[0], TEXTS[2]), {"text": TEXTS[0], "text_pair": TEXTS[2]}):
        found = ours(given)
        assert [a["label"] for a in found] == [a["label"] for a in wanted]
        np.testing.assert_allclose(
            [a["score"] for a in found], [a["score"] for a in wanted], atol=1e-4
        )


def test_other_kinds_are_the_exported_models(native, exported):
    """Regression, multi-label, multiple choice and tokens beside torch on the same ids."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def logits(kind, task, rows):
        model = getattr(transformers, f"DebertaV2For{kind}").from_pretrained(exported(task))
        ids = [torch.tensor([row]) for row in rows]
        with torch.no_grad():
            return [model.eval()(i if kind != "MultipleChoice" else i[None]).logits for i in ids]

    pieces = native.pieces
    row = pieces.pair(pieces.encode(TEXTS[0]), None, 64)
    (value,) = logits("SequenceClassification", "tiny/stsb", [row])
    assert native.classifier("tiny/stsb")(TEXTS[0])[0]["score"] == pytest.approx(
        float(value), abs=1e-4
    )
    (several,) = logits("SequenceClassification", "tiny/emotions", [row])
    found = {a["label"]: a["score"] for a in native.classifier("tiny/emotions")(TEXTS[0])}
    wanted = torch.sigmoid(several)[0].tolist()
    assert [found[name] for name in ("joy", "fear", "anger")] == pytest.approx(wanted, abs=1e-4)
    options = ["a cat", "bad", "who runs"]
    rows = [pieces.pair(pieces.encode(TEXTS[0]), pieces.encode(o), 64) for o in options]
    scores = torch.cat(logits("MultipleChoice", "tiny/dream", rows)).flatten()
    found = native.classifier("tiny/dream")((TEXTS[0], options))
    assert [a["score"] for a in found] == sorted((a["score"] for a in found), reverse=True)
    by_option = [next(a["score"] for a in found if a["index"] == k) for k in range(3)]
    assert by_option == pytest.approx(torch.softmax(scores, 0).tolist(), abs=1e-4)
    words = ["Anna", "sleeps", "in", "New", "York"]
    ids, first, *_ = pieces.words(words, 64)
    (tags,) = logits("TokenClassification", "tiny/names", [ids])
    found = native.classifier("tiny/names")(" ".join(words))
    assert [a["word"] for a in found] == words
    best = [tiny_models.TAGS[int(k)] for k in tags[0].argmax(-1)[first]]
    assert [a["label"] for a in found] == best


@pytest.fixture(scope="module")
def published(tmp_path_factory, vocabulary, weights):
    """The published layout: the main task's model, and all heads in a folder of their own."""
    folder, (model, params) = tmp_path_factory.mktemp("published"), weights
    main, adapters = folder / "nli", folder / "nli-adapters"
    convert.save_task(params, model, "tiny/mnli", main, tokenizer_path=vocabulary, fold=False)
    convert.save_adapters(params, model, adapters)
    return main, adapters


def test_the_published_layout_answers_as_the_checkpoint(native, published):
    main, adapters = published
    loaded = classify.Multitask.load(main, adapters=adapters, mesh=one_device(), max_length=64)
    assert loaded.tasks == native.tasks
    for task in ("tiny/sst2", "tiny/emotions", "tiny/names"):
        ours, wanted = (model.classifier(task)(TEXTS[0]) for model in (loaded, native))
        assert [a["label"] for a in ours] == [a["label"] for a in wanted]
        found = [a["score"] for a in ours]
        np.testing.assert_allclose(found, [a["score"] for a in wanted], atol=1e-5)


def test_zero_shot_on_a_published_model_is_the_pipelines(native, published):
    """Which knows of no task embedding: neither does zero-shot here when no task is named."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.pipeline("zero-shot-classification", str(published[0]), device="cpu")
    wanted = theirs(TEXTS[1], LABELS, multi_label=True)
    for ours in (classify.zero_shot(published[0], mesh=one_device()), native.zero_shot()):
        found = ours(TEXTS[1], LABELS, multi_label=True)
        assert found["labels"] == wanted["labels"]
        np.testing.assert_allclose(found["scores"], wanted["scores"], atol=1e-4)


def test_a_main_classifier_of_no_task_answers_zero_shot(published, vocabulary, tmp_path):
    """Tuned further than the task it came from: the pipeline's, beside the adapters and in a checkpoint."""
    numpy = pytest.importorskip("safetensors.numpy")
    transformers = pytest.importorskip("transformers")
    main = shutil.copytree(published[0], tmp_path / "main")
    tensors = numpy.load_file(main / "model.safetensors")
    tensors["classifier.bias"] += np.array([1, 0, -2], np.float32)
    numpy.save_file(tensors, main / "model.safetensors", {"format": "pt"})
    theirs = transformers.pipeline("zero-shot-classification", str(main), device="cpu")
    wanted = theirs(TEXTS[1], LABELS, multi_label=True)
    loaded = classify.Multitask.load(main, adapters=published[1], mesh=one_device(), max_length=64)
    checkpoint.save_model(tmp_path / "run", loaded.params, loaded.network.config, vocabulary)
    again = classify.Multitask.load(tmp_path / "run", mesh=one_device(), max_length=64)
    for model in (loaded, again):
        assert model.zero_shot().head.task == "default"
        found = model.zero_shot()(TEXTS[1], LABELS, multi_label=True)
        assert found["labels"] == wanted["labels"]
        np.testing.assert_allclose(found["scores"], wanted["scores"], atol=1e-4)


def test_batches_do_not_change_answers(native):
    texts = tiny_models.sentences(40, seed=5, longest=40)
    together = native.classifier("tiny/sst2")(texts)
    for text, found in zip(texts[:3], together, strict=False):
        alone = native.classifier("tiny/sst2")(text)
        assert alone[0]["label"] == found[0]["label"]
        assert alone[0]["score"] == pytest.approx(found[0]["score"], abs=1e-6)


def test_entities_of_words():
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-PER"]
    words = [
        {"word": str(k), "label": tag, "score": 0.5 + k / 10, "index": k}
        for k, tag in enumerate(tags)
    ]
    found = [(g["label"], g["word"], g["start"], g["end"]) for g in outputs.grouped(words)]
    assert found == [
        ("PER", "0 1", 0, 2),
        ("LOC", "3", 3, 4),
        ("LOC", "4", 4, 5),
        ("PER", "5", 5, 6),
    ]
    assert outputs.grouped(words)[0]["score"] == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (("entailment", "neutral", "contradiction"), (0, 2)),
        (("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), (2, 0)),
        (("not_entailment", "entailment"), (1, 0)),
        (("yes", "no"), (1, 0)),
    ],
)
def test_which_outputs_mean_entailment(labels, wanted):
    assert inference.entailment_ids(labels) == wanted


def test_errors_name_the_task_and_the_way_out(native):
    with pytest.raises(classify.ClassifyError, match=r"'tiny/sst3'; did you mean 'tiny/sst2'"):
        native.classifier("tiny/sst3")
    with pytest.raises(classify.ClassifyError, match=r"'tiny/dream' \(multiple_choice\) takes"):
        native.classifier("tiny/dream")("no options")
    with pytest.raises(classify.ClassifyError, match=r"'tiny/sst2' \(classification\) takes"):
        native.classifier("tiny/sst2")(3)
    with pytest.raises(classify.ClassifyError, match=r"no \{\} for the label"):
        native.zero_shot()("text", ["a"], "no place")
    for template in ("This is {label}.", "{", "{1}", "{.x}"):
        with pytest.raises(classify.ClassifyError, match=r"cannot be filled .* it has \{\} where"):
            native.zero_shot()("text", ["a"], template)
    with pytest.raises(classify.ClassifyError, match="text and a candidate label"):
        native.zero_shot()("text", [])
    for labels, told in (
        (["a", ""], "label 1 of .* is empty"),
        ("a,,b", "label 1 of .* is empty"),
        ("a,a", "'a' is given twice"),
    ):
        with pytest.raises(classify.ClassifyError, match=told):
            native.zero_shot()("text", labels)
    with pytest.raises(classify.ClassifyError, match="is regression; inference needs"):
        native.nli("tiny/stsb")


@pytest.mark.parametrize(
    ("task", "given", "told"),
    [
        ("tiny/dream", {"text": "x", "options": ["a", "b"]}, "'options'.* reads text, choices"),
        ("tiny/dream", ("x", ["wet", ""]), "choice 1 of .* is empty"),
        ("tiny/sst2", {"text": "x", "choices": ["a", "b"]}, "'choices'.* reads text, text_pair"),
        ("tiny/names", {"text": "x", "tags": []}, "'tags'.* reads words, text"),
    ],
)
def test_keys_that_are_not_read_and_empty_options_are_refused(native, task, given, told):
    with pytest.raises(classify.ClassifyError, match=told):
        native.classifier(task)(given)


def test_entities_and_inference_are_asked_of_tasks_that_have_them(native, exported):
    with pytest.raises(classify.ClassifyError, match="'tiny/sst2' is classification: leave"):
        native.classifier("tiny/sst2")("x", group=True)
    with pytest.raises(classify.ClassifyError, match=r"no label .*'negative', 'positive'.* name"):
        classify.nli(exported("tiny/sst2"), mesh=one_device())


# The script


@pytest.fixture
def ask(run, capsys):
    """What `scripts.classify` prints: a JSON value a line."""

    def answers(*argv):
        assert script.main(["--model", str(run), "--max_length", "64", *map(str, argv)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return answers


def test_the_script_answers_as_the_library(native, ask, tmp_path):
    assert ask("--task", "tiny/sst2", *TEXTS[:2]) == native.classifier("tiny/sst2")(TEXTS[:2])
    pair = ask("--task=tiny/mnli", "--pair", "a cat", "a dog", "--top_k", 1)
    assert pair == [native.classifier("tiny/mnli")(("a cat", "a dog"), top_k=1)]
    zero_shot = ask("--labels", "cat, film", "--multi_label", "--", "--dull")
    assert zero_shot == [native.zero_shot()("--dull", "cat, film", multi_label=True)]
    file = tmp_path / "asked.jsonl"
    file.write_text('{"text": "who", "choices": ["a", "b"]}\n\n["who", ["cat", "dog"]]\n')
    wanted = native.classifier("tiny/dream")([("who", ["a", "b"]), ("who", ["cat", "dog"])])
    assert ask("--task", "tiny/dream", "--file", file) == wanted
    file.write_text("Anna sleeps\n")
    found = ask("--task", "tiny/names", "--file", file, "--group")
    assert found == [native.classifier("tiny/names")("Anna sleeps", group=True)]


def test_the_script_lists_tasks(run, capsys):
    assert script.main(["--model", str(run), "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny/sst2\tclassification\tnegative, positive"
    assert len(lines) == len(tiny_models.HEADS)


PLAIN = ['"Great," he said.', '"Great."', "[1] See below.", "[1]", "[", "{dull}", "null", "3"]


def test_a_line_that_is_no_json_is_a_text_as_it_stands(capsys):
    assert list(script.parsed([f"{line}\n" for line in PLAIN], "here")) == PLAIN
    assert not capsys.readouterr().err
    given = ['["a", "b"]', '{"text": "a\\nb"}', '{"text": "cut', '["who", ["x", "y"]]']
    wanted = [("a", "b"), {"text": "a\nb"}, '{"text": "cut', ("who", ["x", "y"])]
    assert list(script.parsed(given, "here")) == wanted
    assert capsys.readouterr().err == "here, line 3 is no JSON: it is read as a text\n"


def test_the_script_says_what_is_wrong(run, tmp_path):
    with pytest.raises(cfg.ConfigError, match="nothing is asked"):
        script.main(["--model", str(run), "a text"])
    file = tmp_path / "asked.jsonl"
    file.write_text('{"sentence": "fine"}\n')
    asked = ["--model", str(run), "--task", "tiny/sst2", "--file", str(file)]
    with pytest.raises(
        script.InputError, match=r"line 1: unknown key 'sentence'.* text, text_pair"
    ):
        script.main(asked)
    file.write_text("\n")
    with pytest.raises(script.InputError, match=r"nothing is asked: .* has no text"):
        script.main(asked)
    with pytest.raises(classify.ClassifyError, match="entities are of token classification"):
        script.main([*asked, "--group"])
    labels = ["--model", str(run), "--labels", "a,b", "--file", str(file)]
    file.write_text('{"text": "fine"}\n["a", "b"]\n')
    with pytest.raises(script.InputError, match=r"line 2: --labels are asked of a text"):
        script.main(labels)
    with pytest.raises(script.InputError, match="both given"):
        script.main(["--model", str(run), "--task", "tiny/sst2", "--file", str(file), "text"])
