"""Using a multitask encoder, beside transformers' pipelines on the exported models."""

import numpy as np
import pytest

from t0jax import checkpoint, classify, convert, sharding
from t0jax import config as cfg
from t0jax.classify import inference, outputs
from tests import multitask_models as tiny_models

TEXTS = ["the film is good", "a dull dog was not in New York " * 3, "Anna sleeps"]
LABELS = ["cat", "good film", "where"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return tiny_models.vocabulary(tmp_path_factory.mktemp("pieces"))


@pytest.fixture(scope="module")
def weights(vocabulary):
    return tiny_models.tiny(vocabulary)


@pytest.fixture(scope="module")
def native(tmp_path_factory, vocabulary, weights):
    """A checkpoint with all heads."""
    model, params = weights
    folder = tmp_path_factory.mktemp("native") / "run"
    checkpoint.save_model(folder, params, model, vocabulary)
    return classify.Multitask.load(folder, mesh=one_device(), max_length=64)


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
    theirs = pipeline("zero-shot-classification", "glue/mnli")
    template = "It is about {}."
    options = {"hypothesis_template": template, "multi_label": multi_label}
    wanted = theirs(TEXTS, labels, **options)
    folded = classify.zero_shot(exported("glue/mnli"), mesh=one_device(), max_length=64)
    for ours in (native.zero_shot("glue/mnli"), folded):
        found = ours(TEXTS, labels, **options)
        assert [f["sequence"] for f in found] == TEXTS
        for one, other in zip(found, wanted, strict=True):
            assert one["labels"] == other["labels"]
            np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)


def test_zero_shot_default_template_and_one_text(native, pipeline):
    theirs = pipeline("zero-shot-classification", "glue/mnli")(TEXTS[0], LABELS)
    ours = native.zero_shot("glue/mnli")(TEXTS[0], LABELS)
    assert ours["labels"] == theirs["labels"]
    np.testing.assert_allclose(ours["scores"], theirs["scores"], atol=1e-4)
    # A task that is not named lends its head, not its embedding.
    assert native.zero_shot().head.task == "glue/mnli"
    assert not np.allclose(
        native.zero_shot()(TEXTS[0], LABELS)["scores"], ours["scores"], atol=1e-5
    )


def test_a_long_text_loses_its_end_and_never_the_hypothesis(exported, pipeline):
    long = " ".join(tiny_models.sentences(20, seed=3))
    theirs = pipeline("zero-shot-classification", "glue/mnli")
    theirs.tokenizer.model_max_length = 24
    ours = classify.zero_shot(exported("glue/mnli"), mesh=one_device(), max_length=24)
    one, other = ours(long, LABELS), theirs(long, LABELS)
    assert one["labels"] == other["labels"]
    np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-4)


def test_text_classification_is_the_pipelines(native, pipeline):
    theirs = pipeline("text-classification", "glue/sst2", top_k=None)(TEXTS)
    ours = native.classifier("glue/sst2")(TEXTS)
    assert [[a["label"] for a in one] for one in ours] == [[a["label"] for a in o] for o in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            [a["score"] for a in one], [a["score"] for a in other], atol=1e-4
        )
    assert native.classifier("glue/sst2")(TEXTS[0], top_k=1) == [
        pytest.approx(ours[0][0], abs=1e-5)
    ]


def test_pairs_are_the_pipelines(native, pipeline):
    theirs = pipeline("text-classification", "glue/mnli", top_k=None)
    wanted = theirs([{"text": TEXTS[0], "text_pair": TEXTS[2]}])[0]
    ours = native.nli("glue/mnli")
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
    (value,) = logits("SequenceClassification", "glue/stsb", [row])
    assert native.classifier("glue/stsb")(TEXTS[0])[0]["score"] == pytest.approx(
        float(value), abs=1e-4
    )
    (several,) = logits("SequenceClassification", "emotions", [row])
    found = {a["label"]: a["score"] for a in native.classifier("emotions")(TEXTS[0])}
    wanted = torch.sigmoid(several)[0].tolist()
    assert [found[name] for name in ("joy", "fear", "anger")] == pytest.approx(wanted, abs=1e-4)
    options = ["a cat", "bad", "who runs"]
    rows = [pieces.pair(pieces.encode(TEXTS[0]), pieces.encode(o), 64) for o in options]
    scores = torch.cat(logits("MultipleChoice", "dream", rows)).flatten()
    found = native.classifier("dream")((TEXTS[0], options))
    assert [a["score"] for a in found] == sorted((a["score"] for a in found), reverse=True)
    by_option = [next(a["score"] for a in found if a["index"] == k) for k in range(3)]
    assert by_option == pytest.approx(torch.softmax(scores, 0).tolist(), abs=1e-4)
    words = ["Anna", "sleeps", "in", "New", "York"]
    ids, first, _ = pieces.words(words, 64)
    (tags,) = logits("TokenClassification", "names", [ids])
    found = native.classifier("names")(" ".join(words))
    assert [a["word"] for a in found] == words
    best = [tiny_models.TAGS[int(k)] for k in tags[0].argmax(-1)[first]]
    assert [a["label"] for a in found] == best


@pytest.fixture(scope="module")
def published(tmp_path_factory, vocabulary, weights):
    """The published layout: the main task's model, and all heads in a folder of their own."""
    folder, (model, params) = tmp_path_factory.mktemp("published"), weights
    main, adapters = folder / "nli", folder / "nli-adapters"
    convert.save_task(params, model, "glue/mnli", main, tokenizer_path=vocabulary, fold=False)
    convert.save_adapters(params, model, adapters)
    return main, adapters


def test_the_published_layout_answers_as_the_checkpoint(native, published):
    main, adapters = published
    loaded = classify.Multitask.load(main, adapters=adapters, mesh=one_device(), max_length=64)
    assert loaded.tasks == native.tasks
    for task in ("glue/sst2", "emotions", "names"):
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


def test_batches_do_not_change_answers(native):
    texts = tiny_models.sentences(40, seed=5, longest=40)
    together = native.classifier("glue/sst2")(texts)
    for text, found in zip(texts[:3], together, strict=False):
        alone = native.classifier("glue/sst2")(text)
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
    with pytest.raises(classify.ClassifyError, match=r"'glue/sst3'; did you mean 'glue/sst2'"):
        native.classifier("glue/sst3")
    with pytest.raises(classify.ClassifyError, match=r"'dream' \(multiple_choice\) takes"):
        native.classifier("dream")("no options")
    with pytest.raises(classify.ClassifyError, match=r"'glue/sst2' \(classification\) takes"):
        native.classifier("glue/sst2")(3)
    with pytest.raises(classify.ClassifyError, match=r"no \{\} for the label"):
        native.zero_shot()("text", ["a"], "no place")
    with pytest.raises(classify.ClassifyError, match="text and a candidate label"):
        native.zero_shot()("text", [])
    with pytest.raises(classify.ClassifyError, match="is regression; inference needs"):
        native.nli("glue/stsb")
