"""DeBERTa-v3 to and from Hugging Face directories: byte-equal round trips, transformers as the reader, refusals."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from clusters import finish, start
from safetensors.numpy import load_file, save_file

from t0jax import checkpoint, convert, models, sharding
from t0jax import config as cfg
from t0jax.config.heads import head_group
from t0jax.convert import deberta_names
from t0jax.data.structured.pieces import PairPieces, train_pair_pieces

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

KINDS = {
    "sequence": transformers.DebertaV2ForSequenceClassification,
    "choice": transformers.DebertaV2ForMultipleChoice,
    "tokens": transformers.DebertaV2ForTokenClassification,
    "encoder": transformers.DebertaV2Model,
}
STOCK = {
    "vocab_size": 90,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "relative_attention": True,
    "position_buckets": 16,
    "max_position_embeddings": 64,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "initializer_range": 0.3,
}


def head(task, kind, labels=()):
    return cfg.Head(task, kind, tuple(labels), head_group(kind, labels))


HEADS = (
    head("yelp", "classification", ("neg", "pos")),
    head("mnli", "classification", ("entailment", "neutral", "contradiction")),
    head("dream", "multiple_choice"),
    head("stsb", "regression"),
    head("tags", "token_classification", ("O", "B-X", "I-X", "B-Y")),
    head("toxic", "multilabel", ("rude", "threat")),
    head("sst2", "classification", ("negative", "positive")),
    head("cosmos", "multiple_choice"),
)
MODEL = cfg.Model(
    architecture="deberta",
    vocab_size=90,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_layers=2,
    num_heads=2,
    layer_norm_epsilon=1e-7,
    position_buckets=16,
    max_relative_positions=64,
    heads=HEADS,
)


def tensors_of(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_same_bytes(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].tobytes() == value.tobytes(), name


def assert_same_params(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def stock_model(kind, **changes):
    torch.manual_seed(0)
    model = KINDS[kind](transformers.DebertaV2Config(**STOCK | changes)).eval()
    for parameter in model.parameters():  # biases too
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return model


@pytest.fixture(scope="module")
def multitask():
    """Parameters with every kind of head; nothing is zero."""
    rng, shapes = np.random.default_rng(0), models.build(MODEL).shapes
    return jax.tree.map(
        lambda x: jax.numpy.asarray(0.3 * rng.standard_normal(x.shape, np.float32)), shapes
    )


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(2, 9))) for _ in range(60)]
    texts = [" ".join(rng.choice(words, 9)) + "." for _ in range(200)]
    return train_pair_pieces(texts, tmp_path_factory.mktemp("spm") / "spm.model", 60)


@pytest.fixture
def backbone(tmp_path):
    stock_model("encoder").save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def edit_config(folder, **changes):
    path = Path(folder) / "config.json"
    found = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


# Round trips


@pytest.mark.parametrize("kind", KINDS)
def test_stock_directories_come_back_byte_for_byte(kind, tmp_path):
    labels = {"id2label": {0: "no", 1: "perhaps", 2: "yes"}} if kind != "encoder" else {}
    stock_model(kind, **labels).save_pretrained(tmp_path / "theirs")
    read = convert.read_config(tmp_path / "theirs")
    params = convert.load_params(tmp_path / "theirs", models.build(read))
    ours = convert.save_params(params, read, tmp_path / "ours")
    theirs = tensors_of(tmp_path / "theirs")
    if kind == "encoder":
        theirs = {f"deberta.{name}": value for name, value in theirs.items()}
    assert_same_bytes(tensors_of(ours), theirs)
    assert all(value.dtype == np.float32 for value in theirs.values())
    assert [h.labels for h in read.heads] == {
        "sequence": [("no", "perhaps", "yes")],
        "tokens": [("no", "perhaps", "yes")],
        "choice": [()],
        "encoder": [],
    }[kind]
    # and transformers reads ours as what it wrote
    KINDS[kind].from_pretrained(ours).load_state_dict(stock_model(kind, **labels).state_dict())


def test_sizes_are_those_of_the_tensors():
    """xsmall, small, base and large hold as many parameters as published (backbones; millions)."""
    sizes = {(384, 12, 6, 1536): 70.7, (768, 6, 12, 3072): 141.3, (1024, 24, 16, 4096): 434.0}
    for (width, layers, heads, hidden), millions in sizes.items():
        config = dataclasses.replace(
            MODEL, vocab_size=128100, d_model=width, d_kv=64, d_ff=hidden, num_layers=layers,
            num_heads=heads, position_buckets=256, max_relative_positions=512, heads=(),
        )  # fmt: skip
        table = convert.name_table(models.build(config))
        count = sum(np.prod(e.tensor_shape(i)) for e in table for i in range(len(e.tensors)))
        assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_pretraining_files_hold_more(tmp_path, backbone):
    """fp16, `deberta.` before the names, and heads of the pre-training that nothing reads."""
    network = models.build(convert.read_config(backbone))
    plain = convert.load_params(backbone, network)
    extra = {
        "lm_predictions.lm_head.bias": np.zeros(90, np.float16),
        "mask_predictions.dense.weight": np.zeros((16, 16), np.float16),
        "deberta.embeddings.position_embeddings.weight": np.zeros((64, 16), np.float16),
    }
    half = {f"deberta.{k}": v.astype(np.float16) for k, v in tensors_of(backbone).items()}
    save_file(half | extra, backbone / "model.safetensors")
    edit_config(backbone, architectures=...)
    config = convert.read_config(backbone)
    assert config.heads == ()
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), plain)
    assert_same_params(convert.load_params(backbone, models.build(config)), rounded)


def test_a_multitask_model_comes_back_whole(multitask, tmp_path):
    """All heads in one directory, into shards; transformers reads its main task, which is inference, alone."""
    folder = convert.save_params(multitask, MODEL, tmp_path / "hf")
    read = convert.read_config(folder)
    assert read == MODEL
    network = models.build(read)
    mesh = sharding.make_mesh(cfg.Mesh(data=1, fsdp=4, model=2))
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    placed = convert.load_params(folder, network, where)
    assert_same_params(jax.device_get(placed), multitask)
    again = convert.save_params(placed, MODEL, tmp_path / "again")
    assert_same_bytes(tensors_of(again), tensors_of(folder))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert tuple(model.config.id2label.values()) == HEADS[1].labels


def test_adapters_and_backbone_are_the_whole_model(multitask, tmp_path):
    backbone = convert.save_task(multitask, MODEL, "mnli", tmp_path / "hf", fold=False)
    adapters = convert.save_adapters(multitask, MODEL, tmp_path / "adapters")
    assert set(tensors_of(adapters)) == {"Z.weight"} | {
        f"classifiers.{n}.{part}" for n in range(len(HEADS)) for part in ("weight", "bias")
    }
    read = convert.read_config(backbone, adapters=adapters)
    assert read == MODEL
    params = convert.load_params(backbone, models.build(read), adapters=adapters)
    assert_same_params(params, multitask)
    with pytest.raises(convert.ConvertError, match="holds adapters alone"):
        convert.read_config(adapters)
    folded = convert.save_task(multitask, MODEL, "yelp", tmp_path / "yelp")
    with pytest.raises(convert.ConvertError, match="is task 'yelp' alone"):
        convert.read_config(folded, adapters=adapters)
    with pytest.raises(convert.ConvertError, match="has heads of its own"):
        convert.read_config(
            convert.save_params(multitask, MODEL, tmp_path / "w"), adapters=adapters
        )


# One task as a stock model

PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}


TOKENS = np.random.default_rng(0).integers(4, 90, (4, 40), dtype=np.int32)
TOKENS[:, 0] = deberta_names.CLS_ID
SEGMENTS = (np.arange(40) < np.array([40, 31, 17, 5])[:, None]).astype(np.int32)


@pytest.fixture(scope="module")
def our_logits(multitask):
    """Of every task on the four rows, from one program."""
    network, count = models.build(MODEL), len(HEADS)
    tasks = np.repeat(np.arange(count, dtype=np.int32), 4)

    @jax.jit
    def run(params):
        model = network.bind(params)
        states = model.encode(np.tile(TOKENS, (count, 1)), np.tile(SEGMENTS, (count, 1)), tasks)
        return model.sequence_logits(model.pool(states), tasks), model.token_logits(states, tasks)

    rows, tokens = run(multitask)
    found = (tokens if head.kind == "token_classification" else rows for head in HEADS)
    return [
        np.asarray(logits[4 * i : 4 * i + 4, ..., : HEADS[i].columns])
        for i, logits in enumerate(found)
    ]


@pytest.mark.parametrize("task", [1, 2, 3, 4, 5, 6], ids=lambda i: HEADS[i].kind)
def test_an_exported_task_in_torch_computes_ours(task, multitask, our_logits, tmp_path):
    own = HEADS[task]
    folder = convert.save_task(multitask, MODEL, own.task, tmp_path / "hf")
    about = json.loads((folder / "config.json").read_text())
    auto = {
        "multiple_choice": transformers.AutoModelForMultipleChoice,
        "token_classification": transformers.AutoModelForTokenClassification,
    }.get(own.kind, transformers.AutoModelForSequenceClassification)
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert about["architectures"] == [type(model).__name__]
    assert about.get("problem_type") == PROBLEMS.get(own.kind)
    if own.labels:
        assert tuple(model.config.id2label.values()) == own.labels
        assert model.config.label2id == {label: i for i, label in enumerate(own.labels)}

    ours, segments = our_logits[task], SEGMENTS
    ids, mask = torch.tensor(TOKENS).long(), torch.tensor(segments).long()
    if own.kind == "multiple_choice":  # two questions of two options
        ids, mask, ours = ids.view(2, 2, 40), mask.view(2, 2, 40), ours.reshape(2, 2)
    with torch.no_grad():
        theirs = model.eval()(input_ids=ids, attention_mask=mask).logits.numpy()
    if own.kind == "token_classification":
        ours, theirs = (x * segments[..., None] for x in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    read = convert.read_config(folder)
    assert read == dataclasses.replace(MODEL, heads=(own,), task_embedding=False)


def test_one_task_of_the_published_layout(tmp_path):
    """A single head, with and without its embedding, and labels without names."""
    own = cfg.Head("sst2", "classification", ("LABEL_0", "LABEL_1"), "shared with another")
    for embedding in (True, False):
        config = dataclasses.replace(MODEL, heads=(own,), task_embedding=embedding)
        params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), models.build(config).shapes)
        name = f"{embedding}"
        folder = convert.save_params(params, config, tmp_path / name)
        assert ("Z.weight" in tensors_of(folder)) == embedding
        assert len(convert.read_config(folder).heads) == 1
        stock = convert.save_task(params, config, "sst2", tmp_path / f"{name}-stock")
        assert "Z.weight" not in tensors_of(stock)
        assert tensors_of(stock)["deberta.embeddings.word_embeddings.weight"][1, 0] == 1 + embedding
        adapters = convert.save_adapters(params, config, tmp_path / f"{name}-adapters")
        backbone = convert.save_task(params, config, "sst2", tmp_path / f"{name}-back", fold=False)
        read = convert.read_config(backbone, adapters=adapters)
        assert (read.heads, read.task_embedding) == ((own,), embedding)
        loaded = convert.load_params(backbone, models.build(read), adapters=adapters)
        assert_same_params(loaded, params)


def test_one_task_in_memory_is_the_exported_one(multitask, tmp_path):
    for name in ("sst2", "tags"):
        params, config = convert.one_task(multitask, MODEL, name)
        folder = convert.save_task(multitask, MODEL, name, tmp_path / name)
        assert convert.read_config(folder) == config
        assert_same_params(convert.load_params(folder, models.build(config)), params)


def test_unknown_tasks_are_refused(multitask, tmp_path):
    with pytest.raises(convert.ConvertError, match=r"has no task 'sst'; near it: sst2"):
        convert.save_task(multitask, MODEL, "sst", tmp_path / "hf")
    t5 = cfg.Model(num_layers=1, d_model=8, d_ff=8, vocab_size=8)
    with pytest.raises(convert.ConvertError, match="it has none"):
        convert.save_task({}, t5, "sst2", tmp_path / "hf")
    with pytest.raises(convert.ConvertError, match="has no heads"):
        convert.save_adapters({}, t5, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


def test_auto_tokenizer_gives_our_ids(multitask, vocabulary, tmp_path):
    folder = convert.save_task(multitask, MODEL, "mnli", tmp_path / "hf", tokenizer_path=vocabulary)
    tokenizer, pieces = transformers.AutoTokenizer.from_pretrained(folder), PairPieces(vocabulary)
    assert type(tokenizer).__name__.startswith("DebertaV2Tokenizer")
    assert (len(tokenizer), tokenizer.mask_token_id) == (pieces.size, pieces.mask_id)
    special = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert [*special, tokenizer.unk_token_id] == [0, 1, 2, 3]
    for one, other in (("abc def.", None), ("ah  bee\ncage ", "fa de"), ("xyz Zürich", "ad")):
        encoded = None if other is None else pieces.encode(other)
        ours = pieces.pair(pieces.encode(one), encoded, 99)
        assert tokenizer(one, other).input_ids == ours, (one, other)
    assert checkpoint.vocabulary_of(folder) == folder / "spm.model"
    small = dataclasses.replace(MODEL, vocab_size=60)
    with pytest.raises(convert.ConvertError, match=r"61 token ids.*60 rows"):
        convert.save_params(multitask, small, tmp_path / "no", tokenizer_path=vocabulary)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative_attention": ...}, "relative_attention is False"),
        ({"position_biased_input": True}, "position_biased_input is True: absolute positions"),
        ({"type_vocab_size": 2}, "type_vocab_size is 2: embeddings of token types"),
        ({"conv_kernel_size": 3}, "conv_kernel_size is 3: a convolution"),
        ({"share_att_key": False}, "share_att_key is False"),
        ({"norm_rel_ebd": ...}, "norm_rel_ebd is 'none'"),
        ({"pos_att_type": "c2p"}, "pos_att_type 'c2p' is not"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"embedding_size": 8}, "embedding_size 8 is not 16"),
        ({"position_buckets": -1}, "position_buckets -1 is not a number above 0"),
        ({"hidden_size": 17, "pooler_hidden_size": 17}, "hidden_size 17 is no multiple of 2 heads"),
        ({"layer_norm_eps": "1e-7"}, "layer_norm_eps '1e-7' is not a number"),
        ({"architectures": ["DebertaV2ForQuestionAnswering"]}, "QuestionAnswering'. cannot be"),
        ({"model_type": "deberta"}, "it is DeBERTa v1"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_other_forms_are_refused(changes, message, backbone):
    edit_config(backbone, **changes)
    with pytest.raises(convert.ConvertError, match=message):
        convert.read_config(backbone)


def test_tensors_of_another_form_are_refused(backbone):
    network = models.build(convert.read_config(backbone))
    tensors = tensors_of(backbone)
    save_file(tensors | {"encoder.conv.bias": np.ones(3)}, backbone / "model.safetensors")
    with pytest.raises(convert.ConvertError, match=r"1 unexpected \(deberta.encoder.conv.bias\)"):
        convert.load_params(backbone, network)
    name = "encoder.rel_embeddings.weight"
    save_file(tensors | {name: np.ones((8, 16))}, backbone / "model.safetensors")
    with pytest.raises(convert.ConvertError, match=r"rel_embeddings.weight has shape \(8, 16\)"):
        convert.load_params(backbone, network)


# The commands


def test_commands(multitask, vocabulary, tmp_path):
    from scripts import convert as script

    folders = ("run", "task", "back", "adapters", "run2")
    run, task, back, adapters, run2 = (tmp_path / name for name in folders)
    checkpoint.save_model(run, multitask, MODEL, vocabulary)
    assert checkpoint.read_run_config(run).model.heads == HEADS
    assert script.main(["to-hf", str(run), str(task), "--task", "stsb"]) == 0
    both = ["--adapters", str(adapters)]
    assert script.main(["to-hf", str(run), str(back), *both]) == 0
    assert script.main(["from-hf", str(back), str(run2), *both]) == 0
    mesh = sharding.make_mesh(cfg.Mesh())
    model = checkpoint.load_model(run2, mesh)
    assert model.network.config == MODEL
    assert model.vocabulary.read_bytes() == vocabulary.read_bytes()
    assert_same_params(jax.device_get(model.params), multitask)
    assert script.main(["check", str(run), str(task)]) == 0
    with pytest.raises(cfg.ConfigError, match="no Hugging Face directory"):
        checkpoint.load_model(run, mesh, adapters=adapters)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for out, heads, message in (
        ("both", "both", "would replace each other"),
        ("both", "both/adapters", "would replace each other"),
        ("both/model", "both", "would replace each other"),
        ("both", "other", "no export of t0jax"),
        ("other", "both", "no export of t0jax"),
    ):
        with pytest.raises(convert.ConvertError, match=message):
            script.main(
                ["to-hf", f"{run}", f"{tmp_path / out}", "--adapters", f"{tmp_path / heads}"]
            )
        assert not (tmp_path / "both").exists()


TWO_PROCESSES = """
import sys
from t0jax import config, convert, models, processes, sharding

with processes.cluster(patience=100):
    folder, adapters, out, heads = sys.argv[1:]
    found = convert.read_config(folder, adapters=adapters)
    network = models.build(found)
    mesh = sharding.make_mesh(config.Mesh(data=1, fsdp=-1))
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    params = convert.load_params(folder, network, where, adapters=adapters)
    convert.save_task(params, found, "tags", out)
    convert.save_adapters(params, found, heads)
"""


@pytest.mark.slow
def test_two_processes_write_what_one_does(multitask, tmp_path):
    backbone = convert.save_task(multitask, MODEL, "mnli", tmp_path / "back", fold=False)
    adapters = convert.save_adapters(multitask, MODEL, tmp_path / "adapters")
    folded = convert.save_task(multitask, MODEL, "tags", tmp_path / "tags")
    theirs = [tmp_path / "tags2", tmp_path / "adapters2"]
    finish(start(["-c", TWO_PROCESSES, *map(str, (backbone, adapters, *theirs))], 2, 2))
    for one, two in zip((folded, adapters), theirs, strict=True):
        for file in one.iterdir():
            assert (two / file.name).read_bytes() == file.read_bytes()
