"""The published layout of a multitask model, synthetic: 30 tasks, shared and private heads, questions with options.

The oracle is torch: transformers' encoder with the task's row of Z added to the first word embedding, its pooler, and
`torch.nn.Linear` made of the task's own classifier tensors.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t0jax import checkpoint, convert, models, sharding
from t0jax import config as cfg

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

WIDTH, LENGTH = 16, 21
NLI = ("entailment", "neutral", "contradiction")
SENTIMENT = ("negative", "positive")
# name -> outputs, and the task whose weights it has (tasknet: one weight, a bias each)
TASKS: dict[str, tuple[int, str]] = {
    "glue/mnli": (3, ""),
    "anli/a1": (3, "glue/mnli"),
    "glue/sst2": (2, ""),
    "rotten_tomatoes": (2, "glue/sst2"),
    "glue/stsb": (1, ""),
    "hh-rlhf": (1, ""),
    **dict.fromkeys(("cosmos_qa", "dream", "swag", "quail", "piqa"), (1, "hh-rlhf")),
    "conll": (9, ""),
    **{f"private/{n}": (n % 7 + 2, "") for n in range(12)},
    **{f"binary/{n}": (2, "private/0") for n in range(5)},
    "dialog_act": (41, ""),
}
NAMES = list(TASKS)
KNOWN = {
    "glue/sst2": cfg.Head("glue/sst2", "classification", SENTIMENT),
    "rotten_tomatoes": cfg.Head("rotten_tomatoes", "classification", SENTIMENT),
    "glue/stsb": cfg.Head("glue/stsb", "regression"),
    "conll": cfg.Head("conll", "token_classification", tuple(f"tag{n}" for n in range(9))),
    "dialog_act": cfg.Head("dialog_act", "classification", ("too", "few")),
    "elsewhere": cfg.Head("elsewhere", "classification", ("a", "b")),
}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    settings = transformers.DebertaV2Config(
        vocab_size=70, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, relative_attention=True, position_buckets=8,
        max_position_embeddings=32, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type="p2c|c2p", position_biased_input=False, initializer_range=0.3,
        id2label=dict(enumerate(NLI)),
    )  # fmt: skip
    return transformers.DebertaV2ForSequenceClassification(settings).eval()


@pytest.fixture(scope="module")
def heads():
    """Tensors of Z and of all classifiers."""
    rng = np.random.default_rng(1)
    tensors = {"Z.weight": rng.standard_normal((len(TASKS), WIDTH), np.float32)}
    for number, (outputs, shared) in enumerate(TASKS.values()):
        own = rng.standard_normal((outputs, WIDTH), np.float32)
        if shared:
            own = tensors[f"classifiers.{NAMES.index(shared)}.weight"].copy()
        tensors[f"classifiers.{number}.weight"] = own
        tensors[f"classifiers.{number}.bias"] = rng.standard_normal(outputs, np.float32)
    return tensors


@pytest.fixture(scope="module")
def one_directory(encoder, heads, tmp_path_factory):
    """Everything in one file; the main classifier is that of glue/mnli, and sizes are of the oldest wrong form."""
    folder = tmp_path_factory.mktemp("published") / "hf"
    encoder.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors") | heads
    tensors["deberta.embeddings.position_ids"] = np.arange(32)[
        None
    ]  # as transformers once saved it
    save_file(tensors, folder / "model.safetensors")
    own_classifier(folder, heads, 0)
    edit(folder, tasks=NAMES, classifiers_size=[[768, 2]] * len(TASKS))
    return folder


@pytest.fixture(scope="module")
def apart(encoder, heads, tmp_path_factory):
    """The later form: a stock model, and the adapters in a folder of their own, with `Z` for `Z.weight`."""
    model, adapters = (tmp_path_factory.mktemp("apart") / name for name in ("hf", "adapters"))
    encoder.save_pretrained(model)
    own_classifier(model, heads, 0)
    edit(model, tasks=NAMES, classifiers_size=[n for n, _ in TASKS.values()])
    adapters.mkdir()
    save_file(
        {"Z" if name == "Z.weight" else name: value for name, value in heads.items()},
        adapters / "model.safetensors",
    )
    labels = [list(NLI), list(NLI), *[None] * (len(TASKS) - 2)]
    edit(adapters, model_type="deberta-v2", tasks=NAMES, labels_list=labels)
    return model, adapters


def own_classifier(folder, heads, task, add=0.0):
    """Makes the main classifier that of a task, its bias trained further."""
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"] = heads[f"classifiers.{task}.weight"].copy()
    tensors["classifier.bias"] = heads[f"classifiers.{task}.bias"] + np.float32(add)
    save_file(tensors, folder / "model.safetensors")


def edit(folder, **changes):
    path = Path(folder) / "config.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found = {key: value for key, value in (found | changes).items() if value is not None}
    path.write_text(json.dumps(found))


def load(folder, **options):
    config = convert.read_config(folder, **options)
    network = models.build(config)
    return network, convert.load_params(folder, network, adapters=options.get("adapters"))


@pytest.fixture(scope="module")
def imported(one_directory):
    return load(one_directory, known=KNOWN)


def test_thirty_tasks():
    assert len(TASKS) == 30


def test_what_is_found_of_the_tasks(imported):
    heads = {head.task: head for head in imported[0].config.heads}
    assert list(heads) == NAMES
    assert [head.columns for head in heads.values()] == [n for n, _ in TASKS.values()]
    # id2label is the main classifier's, and so of all tasks with its weights
    assert heads["glue/mnli"].labels == heads["anli/a1"].labels == NLI
    assert heads["glue/mnli"].group == heads["anli/a1"].group == "|".join(NLI)
    assert heads["glue/sst2"].labels == SENTIMENT
    assert heads["glue/sst2"].group == heads["rotten_tomatoes"].group == "negative|positive"
    assert (heads["glue/stsb"].kind, heads["conll"].kind) == ("regression", "token_classification")
    options = {n: head for n, head in heads.items() if head.kind == "multiple_choice"}
    assert set(options) == {"hh-rlhf", "cosmos_qa", "dream", "swag", "quail", "piqa"}
    assert {(head.labels, head.group) for head in options.values()} == {((), "multiple_choice")}
    assert heads["dialog_act"].labels == tuple(f"LABEL_{n}" for n in range(41))
    assert heads["private/3"].labels == tuple(f"LABEL_{n}" for n in range(5))
    assert heads["private/3"].group == ""
    assert {heads[f"binary/{n}"].group for n in range(5)} == {heads["private/0"].group} != {""}


def test_weights_are_shared_and_biases_are_not(imported, heads):
    params = imported[1]
    distinct = {name: n for name, (n, shared) in TASKS.items() if not shared and name != "conll"}
    assert params["heads"]["sequence"].shape == (WIDTH, sum(distinct.values()))
    biases = sum(n for name, (n, _) in TASKS.items() if name != "conll")
    assert params["heads"]["sequence_bias"].shape == (biases,)
    assert params["heads"]["tokens"].shape == (WIDTH, 9)
    np.testing.assert_array_equal(params["task_embedding"], heads["Z.weight"])


def classify(encoder, heads, task, tokens, segments):
    """Of torch: [rows, outputs], or [rows, length, outputs] of the token task."""
    words = encoder.deberta.embeddings.word_embeddings
    embeddings = words(torch.tensor(tokens).long()).detach()
    embeddings[:, 0] += torch.tensor(heads["Z.weight"][task])
    linear = torch.nn.Linear(WIDTH, TASKS[NAMES[task]][0])
    linear.load_state_dict(
        {part: torch.tensor(heads[f"classifiers.{task}.{part}"]) for part in ("weight", "bias")}
    )
    with torch.no_grad():
        mask = torch.tensor(segments).long()
        states = encoder.deberta(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        return linear(states if NAMES[task] == "conll" else encoder.pooler(states)).numpy()


def test_every_classifier_is_torchs(imported, encoder, heads):
    """All tasks in one batch, two rows each, padding in every other one."""
    network, params = imported
    tasks = np.repeat(np.arange(len(TASKS), dtype=np.int32), 2)
    tokens = np.random.default_rng(2).integers(1, 70, (len(tasks), LENGTH), dtype=np.int32)
    segments = np.ones_like(tokens)
    segments[1::2, 13:] = 0

    @jax.jit
    def outputs(params):
        model = network.bind(params)
        states = model.encode(tokens, segments, tasks)
        return model.sequence_logits(model.pool(states), tasks), model.token_logits(states, tasks)

    rows, states = outputs(params)
    for task, (name, (size, _)) in enumerate(TASKS.items()):
        two = slice(2 * task, 2 * task + 2)
        theirs = classify(encoder, heads, task, tokens[two], segments[two])
        ours = (states if name == "conll" else rows)[two, ..., :size]
        if name == "conll":
            ours, theirs = (x * segments[two][..., None] for x in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4, err_msg=name)


def test_adapters_apart_give_the_same(apart, imported):
    model, adapters = apart
    network, params = load(model, adapters=adapters, known=KNOWN)
    jax.tree.map(np.testing.assert_array_equal, params, imported[1])
    assert network.config.heads == imported[0].config.heads
    alone = convert.read_config(model)
    assert [(h.kind, h.labels) for h in alone.heads] == [("classification", NLI)]
    assert not alone.task_embedding


def test_without_knowledge_of_the_tasks(one_directory, caplog):
    heads = {head.task: head for head in convert.read_config(one_directory).heads}
    assert heads["glue/stsb"].kind == "regression"  # shares its weights with no other
    assert heads["dream"].kind == "multiple_choice"
    assert "regression: glue/stsb;" in caplog.text
    assert "multiple_choice: hh-rlhf, cosmos_qa, dream" in caplog.text
    assert heads["conll"].kind == "classification"
    assert heads["glue/sst2"].labels == ("LABEL_0", "LABEL_1")
    assert heads["glue/sst2"].group == heads["rotten_tomatoes"].group == "shared with glue/sst2"
    assert heads["anli/a1"].labels == NLI


def test_an_export_is_the_same_files(one_directory, imported, tmp_path):
    """And needs no knowledge of the tasks."""
    network, params = imported
    again = convert.save_params(params, network.config, tmp_path / "hf")
    assert convert.read_config(again) == network.config
    jax.tree.map(np.testing.assert_array_equal, load(again)[1], params)
    theirs, ours = (load_file(f / "model.safetensors") for f in (one_directory, again))
    del theirs["deberta.embeddings.position_ids"]
    assert theirs.keys() == ours.keys()
    assert all(theirs[name].tobytes() == ours[name].tobytes() for name in theirs)


@pytest.mark.parametrize(
    ("task", "add"), [("anli/a1", 0.0), ("anli/a1", 0.5), ("glue/sst2", 0.0), ("conll", 0.5)]
)
def test_the_models_own_classifier_stays(task, add, one_directory, heads, tmp_path):
    """Whichever task's it is, or none's: of the encoder's answers, of exports and of checkpoints."""
    number = NAMES.index(task)
    folder = shutil.copytree(one_directory, tmp_path / "hf")
    own_classifier(folder, heads, number, add)
    token = task == "conll"
    names = SENTIMENT if task == "glue/sst2" else KNOWN["conll"].labels if token else NLI
    kind = "Token" if token else "Sequence"
    edit(
        folder, architectures=[f"DebertaV2For{kind}Classification"], id2label=dict(enumerate(names))
    )
    network, params = load(folder, known=KNOWN)
    head = network.config.heads[-1]
    assert [h.task for h in network.config.heads] == [*NAMES, "default"]
    assert (head.kind, head.labels) == (
        "token_classification" if token else "classification",
        names,
    )
    assert head.group == network.config.heads[number].group != ""
    assert convert.main_task(network.config) == "default"
    nli = convert.inference_head(network.config.heads)
    assert nli == (len(NAMES) if names == NLI else None)
    np.testing.assert_array_equal(params["task_embedding"][-1], np.zeros(WIDTH))
    again = convert.save_params(params, network.config, tmp_path / "again")
    theirs, ours = (load_file(f / "model.safetensors") for f in (folder, again))
    del theirs["deberta.embeddings.position_ids"]
    assert all(theirs[n].tobytes() == ours[n].tobytes() for n in theirs if n != "Z.weight")
    assert convert.read_config(again) == network.config
    adapters = convert.save_adapters(params, network.config, tmp_path / "adapters")
    main = convert.save_task(params, network.config, "default", tmp_path / "main", fold=False)
    assert convert.read_config(main, adapters=adapters) == network.config


def test_a_checkpoint_with_names_from_declared_tasks(one_directory, heads, tmp_path, monkeypatch):
    """Native, offline, with all heads."""
    from scripts import convert as script

    (tmp_path / "mine.py").write_text(
        "from t0jax.data.structured.records import Classification\n"
        "from t0jax.data.structured.source import add_task\n"
        "labels = ('bad', 'good')\n"
        "record = Classification(dataset='mine', name='private/0', sentence1='sentence', labels=labels)\n"
        "add_task(record, 'mine')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    assert script.main(["from-hf", str(one_directory), str(run), "--modules", "mine"]) == 0
    pytest.importorskip("seqio").TaskRegistry.remove("mine")
    model = checkpoint.load_model(run, sharding.make_mesh(cfg.Mesh()))
    found = {head.task: head for head in model.network.config.heads}
    assert list(found) == NAMES
    assert found["private/0"].labels == ("bad", "good")
    np.testing.assert_array_equal(model.params["task_embedding"], heads["Z.weight"])


# Files of strangers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifiers.7.bias"), r"no tensor classifiers.7.bias"),
        (
            lambda t: t.update({"classifiers.3.bias": np.zeros(5, np.float32)}),
            r"classifiers.3.weight has shape \(2, 16\), its bias \(5,\)",
        ),
        (
            lambda t: t.update({"classifiers.3.weight": np.zeros(2, np.float32)}),
            r"classifiers.3.weight has shape \(2,\)",
        ),
        (
            lambda t: t.update({"classifiers.99.weight": np.zeros((2, 16), np.float32)}),
            "names 30 tasks for 31 classifiers",
        ),
        (
            lambda t: t.update({"Z.weight": t["Z.weight"][:4]}),
            r"Z has shape \(4, 16\), but there are 30 classifiers",
        ),
        (
            lambda t: t.update({"Z.weight": np.zeros((30, 8), np.float32)}),
            r"tensor Z.weight has shape \(30, 8\), config.json says \(30, 16\)",
        ),
        (
            lambda t: t.update({"classifiers.3.weight": np.zeros((2, 8), np.float32)}),
            r"tensor classifiers.3.weight has shape \(2, 8\), config.json says \(2, 16\)",
        ),
    ],
)
def test_shapes_that_do_not_fit(change, message, one_directory, tmp_path):
    folder = shutil.copytree(one_directory, tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(convert.ConvertError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "glue/mnli"}, "names no tasks"),
        ({"tasks": None}, "names no tasks"),
        ({"tasks": NAMES[:-1]}, "names 29 tasks for 30 classifiers"),
        ({"kinds": ["regression"] * 30}, r"task 'glue/mnli' is 'regression', which a head of 3"),
        ({"kinds": ["sorting"] * 30}, r"task 'glue/mnli' is 'sorting'"),
        ({"kinds": ["classification"]}, "no list of 30"),
        (
            {"groups": ["one"] * 30},
            r"tasks 'glue/mnli' and 'glue/sst2' share weights \(group 'one'",
        ),
        ({"groups": [None] * 30}, "no list of 30 names"),
    ],
)
def test_configurations_that_do_not_fit(changes, message, one_directory, tmp_path):
    folder = shutil.copytree(one_directory, tmp_path / "hf")
    edit(folder, **changes)
    with pytest.raises(convert.ConvertError, match=message):
        convert.read_config(folder)


def test_names_may_repeat(one_directory, tmp_path):
    folder = shutil.copytree(one_directory, tmp_path / "hf")
    edit(folder, tasks=["a", "b", "a", *NAMES[3:]])
    assert [head.task for head in convert.read_config(folder).heads[:3]] == ["a", "b", "a#2"]
    edit(folder, tasks=["a#2", "a", "a", *NAMES[3:]])
    assert [head.task for head in convert.read_config(folder).heads[:3]] == ["a#2", "a", "a#3"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no map of tensors to files"),
        ({"weight_map": ["a"]}, "no map of tensors to files"),
        ({"weight_map": {"a": 3}}, "names 3, which"),
        ({"weight_map": {"a": "../model.safetensors"}}, "no file of its folder"),
        ({"weight_map": {"a": "/model.safetensors"}}, "no file of its folder"),
        (["a"], "holds a list"),
    ],
)
def test_indices_that_name_no_files(content, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(convert.ConvertError, match=message):
        convert.open_tensors(tmp_path)


def test_adapters_hold_heads_alone(apart, tmp_path):
    model, adapters = apart
    folder = shutil.copytree(adapters, tmp_path / "adapters")
    tensors = load_file(folder / "model.safetensors")
    words = {"deberta.embeddings.word_embeddings.weight": np.zeros((70, 16), np.float32)}
    save_file(tensors | words, folder / "model.safetensors")
    with pytest.raises(convert.ConvertError, match=r"adapters holds deberta\.embeddings"):
        convert.read_config(model, adapters=folder)
    save_file({}, folder / "model.safetensors")
    with pytest.raises(convert.ConvertError, match="adapters holds nothing"):
        convert.read_config(model, adapters=folder)


def test_pickled_adapters_need_permission(apart, imported, tmp_path):
    model, adapters = apart
    folder = shutil.copytree(adapters, tmp_path / "adapters")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({k: torch.tensor(v) for k, v in tensors.items()}, folder / "pytorch_model.bin")
    with pytest.raises(convert.ConvertError, match="--allow_pickle"):
        convert.read_config(model, adapters=folder)
    read = convert.read_config(model, adapters=folder, known=KNOWN, allow_pickle=True)
    assert read == imported[0].config
