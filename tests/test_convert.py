"""Conversion: byte-equal round trips, transformers as the reader of what is written, refusals of bad input."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from t0jax import config as cfg
from t0jax import convert, models, sharding
from t0jax.convert import files, t5_names
from t0jax.data.vocabulary import Pieces, train_sentencepiece

V11 = cfg.Model(
    vocab_size=200, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=4
)
V10 = dataclasses.replace(V11, feed_forward_proj="relu", tie_word_embeddings=True)
BOTH = pytest.mark.parametrize("config", [V10, V11], ids=["v1.0", "v1.1"])


def make_params(config):
    return models.build(config).init(jax.random.key(0))


def all_tensors(folder):
    return {
        k: v for f in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(f).items()
    }


def assert_same_bytes(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert actual[name].tobytes() == value.tobytes(), name


def assert_same_params(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def rewrite(folder, change):
    """Applies `change` to the tensors of an unsharded export."""
    tensors = all_tensors(folder)
    change(tensors)
    save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **changes):
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def export(tmp_path):
    return convert.save_params(make_params(V11), V11, tmp_path / "hf")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(80)]
    words += ["the", "cat", "sat", "seven", "dogs", "ran", "on", "a", "mat", "."]
    texts = [" ".join(rng.choice(words, 9)) for _ in range(300)]
    return train_sentencepiece(texts, tmp_path_factory.mktemp("spm") / "spiece.model", 60)


@pytest.fixture(scope="module")
def torch_reader():
    """transformers' `from_pretrained` of a folder, in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    load = transformers.AutoModelForSeq2SeqLM.from_pretrained
    return lambda folder: load(folder, dtype=torch.float32).eval()


# Round trips


@BOTH
def test_transformers_directory_round_trip(config, tmp_path):
    """What transformers itself saved comes back byte for byte."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    fields = {k: v for k, v in convert.hf_config(config, "float32").items() if k != "architectures"}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**fields))
    if not config.tie_word_embeddings:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.shared.weight))
    model.save_pretrained(tmp_path / "theirs")
    read = convert.read_config(tmp_path / "theirs")
    assert read == config
    params = convert.load_params(tmp_path / "theirs", models.build(read))
    convert.save_params(params, read, tmp_path / "ours")
    assert_same_bytes(all_tensors(tmp_path / "ours"), all_tensors(tmp_path / "theirs"))


@BOTH
def test_bfloat16_round_trip(config, tmp_path):
    first = convert.save_params(make_params(config), config, tmp_path / "a", "bfloat16")
    assert convert.stored_dtype(first) == "bfloat16"
    params = convert.load_params(first, models.build(config))
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    second = convert.save_params(params, config, tmp_path / "b", "bfloat16")
    assert_same_bytes(all_tensors(second), all_tensors(first))


def test_shards_and_index(tmp_path):
    params = make_params(V11)
    folder = convert.save_params(params, V11, tmp_path / "hf", shard_bytes=6000)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(names) > 3
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == names
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in all_tensors(folder).values())
    largest = max(v.nbytes for v in all_tensors(folder).values())
    for file in names:
        assert sum(v.nbytes for v in load_file(folder / file).values()) <= max(6000, largest)
    assert_same_params(convert.load_params(folder, models.build(V11)), params)
    (folder / names[1]).unlink()
    with pytest.raises(convert.ConvertError, match=f"{names[1]} is named by"):
        convert.load_params(folder, models.build(V11))


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
def test_loading_into_shards(shape, export):
    network = models.build(V11)
    mesh = sharding.make_mesh(cfg.Mesh(*shape))
    where = sharding.param_shardings(network.axes, network.shapes, mesh)
    params = convert.load_params(export, network, where)
    assert_same_params(jax.tree.map(lambda x: x.sharding, params), where)
    assert_same_params(jax.device_get(params), make_params(V11))


# transformers as the reader


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_computes_the_same_logits(config, dtype, tmp_path, torch_reader):
    import torch

    folder = convert.save_params(make_params(config), config, tmp_path / "hf", dtype)
    model = torch_reader(folder)
    tied = model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr()
    assert tied == config.tie_word_embeddings
    rng = np.random.default_rng(0)
    inputs, targets = (rng.integers(2, 200, (2, n), dtype=np.int32) for n in (11, 5))
    with torch.no_grad():
        theirs = model(
            input_ids=torch.tensor(inputs), decoder_input_ids=torch.tensor(targets)
        ).logits
    network = models.build(config)
    ours = network.bind(convert.load_params(folder, network))(
        {
            "encoder_input_tokens": inputs,
            "encoder_segment_ids": np.ones_like(inputs),
            "decoder_input_tokens": targets,
            "decoder_segment_ids": np.ones_like(targets),
        }
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-4)


def test_transformers_generates(tmp_path, torch_reader):
    import torch

    # transformers 5.23's cache breaks on decoders deeper than the encoder.
    config = dataclasses.replace(V11, num_decoder_layers=None)
    model = torch_reader(convert.save_params(make_params(config), config, tmp_path / "hf"))
    out = model.generate(torch.tensor([[5, 6, 7, 1]]), max_new_tokens=4, do_sample=False)
    assert out[0, 0] == V11.decoder_start_token_id


def test_auto_tokenizer_gives_our_ids(vocabulary, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = convert.save_params(make_params(V11), V11, tmp_path / "hf", tokenizer_path=vocabulary)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pieces = Pieces(vocabulary)
    assert len(tokenizer) == pieces.size == 160
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    for text in ("the cat sat.", "  seven   dogs ran\non a mat ", "Zürich ﬁne", ""):
        assert tokenizer(text).input_ids == [*pieces.encode(text), pieces.eos_id], text
    assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [159, 60]


# Reading what others wrote


def test_older_files_repeat_the_embedding(tmp_path):
    folder = convert.save_params(make_params(V10), V10, tmp_path / "hf")
    bias = "layer.1.EncDecAttention.relative_attention_bias.weight"
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")

    def repeat(tensors):
        tensors |= {name: tensors["shared.weight"].copy() for name in copies}
        tensors[f"decoder.block.0.{bias}"] = np.zeros((32, 4), np.float32)

    rewrite(folder, repeat)
    assert_same_params(convert.load_params(folder, models.build(V10)), make_params(V10))
    rewrite(folder, lambda tensors: tensors["lm_head.weight"].__imul__(2))
    with pytest.raises(
        convert.ConvertError, match=r"ties the head .* lm_head.weight is not shared"
    ):
        convert.load_params(folder, models.build(V10))


def test_pickles_need_permission(tmp_path, export):
    torch = pytest.importorskip("torch")
    state = {k: torch.tensor(v) for k, v in all_tensors(export).items()}
    (export / "model.safetensors").unlink()
    torch.save(state, export / "pytorch_model.bin")
    network = models.build(V11)
    with pytest.raises(convert.ConvertError, match="--allow_pickle"):
        convert.load_params(export, network)
    read = convert.load_params(export, network, allow_pickle=True)
    assert_same_params(read, make_params(V11))


def test_pickled_code_does_not_run(tmp_path, export):
    torch = pytest.importorskip("torch")

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    (export / "model.safetensors").unlink()
    torch.save({"shared.weight": Hostile()}, export / "pytorch_model.bin")
    with pytest.raises(convert.ConvertError, match="cannot be read as plain weights"):
        convert.load_params(export, models.build(V11), allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "umt5"}, "relative position bias in every layer"),
        ({"model_type": "bert"}, "model_type 'bert' cannot be converted"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'gated-silu'"),
    ],
)
def test_other_models_are_refused(changes, message, export):
    edit_config(export, **changes)
    with pytest.raises(convert.ConvertError, match=message):
        convert.read_config(export)


def test_mt5_is_v11(export):
    edit_config(export, model_type="mt5", tie_word_embeddings=True)
    assert convert.read_config(export) == V11


def test_absent_keys_are_transformers_defaults(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    ours, theirs = convert.read_config(tmp_path), transformers.T5Config()
    own = {"architecture", *t5_names.DEBERTA_FIELDS, *cfg.COMPUTE_FIELDS}
    for field in dataclasses.fields(cfg.Model):
        if field.name not in own | {"decoder_start_token_id", "num_decoder_layers"}:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    assert ours.decoder_layers == theirs.num_decoder_layers


# Bad input


def test_truncated_file(export):
    file = export / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(convert.ConvertError, match=r"model.safetensors is truncated or damaged"):
        convert.load_params(export, models.build(V11))


def test_missing_and_unexpected_tensors(export):
    def swap(tensors):
        tensors["encoder.block.9.layer.0.layer_norm.weight"] = np.ones(16, np.float32)
        del tensors["lm_head.weight"]

    rewrite(export, swap)
    with pytest.raises(
        convert.ConvertError, match=r"1 missing \(lm_head.weight\); 1 unexpected \(enc"
    ):
        convert.load_params(export, models.build(V11))


def test_shape_mismatch(export):
    edit_config(export, d_ff=32)
    network = models.build(convert.read_config(export))
    name, has, says = (
        r"decoder.block.0.layer.2.DenseReluDense.wi_0.weight",
        r"\(24, 16\)",
        r"\(32, 16\)",
    )
    with pytest.raises(
        convert.ConvertError, match=f"{name} has shape {has}, config.json says {says}"
    ):
        convert.load_params(export, network)


def test_no_weights_or_no_config(tmp_path):
    with pytest.raises(convert.ConvertError, match=r"config.json does not exist"):
        convert.read_config(tmp_path)
    with pytest.raises(convert.ConvertError, match=r"neither model.safetensors nor"):
        convert.open_tensors(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"')
    with pytest.raises(convert.ConvertError, match="is not JSON"):
        convert.read_config(tmp_path)


def test_vocabulary_larger_than_the_embedding(vocabulary, tmp_path):
    small = dataclasses.replace(V11, vocab_size=159)
    with pytest.raises(convert.ConvertError, match=r"160 token ids.*159 rows"):
        convert.save_params(make_params(small), small, tmp_path / "hf", tokenizer_path=vocabulary)
    assert list(tmp_path.iterdir()) == []


def test_only_an_export_is_replaced(tmp_path, export):
    convert.save_params(make_params(V10), V10, export)
    assert convert.read_config(export) == V10
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(convert.ConvertError, match="no export of t0jax; choose another folder"):
        convert.save_params(make_params(V10), V10, foreign)
    assert (foreign / "thesis.txt").read_text() == "years of work"


def test_a_failed_export_leaves_the_old_one(tmp_path, export, monkeypatch):
    before = all_tensors(export)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.SafetensorsFile, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert.save_params(make_params(V10), V10, export)
    assert_same_bytes(all_tensors(export), before)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_export_notices_what_was_written_wrong(tmp_path, monkeypatch):
    append = files.SafetensorsFile._append

    def flip(file, data):
        changed = bytearray(data)
        changed[-1] ^= file.path.stat().st_size > 10_000
        append(file, changed)

    monkeypatch.setattr(files.SafetensorsFile, "_append", flip)
    with pytest.raises(convert.ConvertError, match="reads back otherwise"):
        convert.save_params(make_params(V11), V11, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == []


# The command


def test_commands(tmp_path, export, vocabulary, capsys):
    from scripts import convert as script

    shutil.copy(vocabulary, export / "spiece.model")
    run, out, half = (str(tmp_path / name) for name in ("run", "out", "half"))
    assert script.main(["from-hf", str(export), run]) == 0
    assert script.main(["to-hf", run, out]) == 0
    assert_same_bytes(all_tensors(out), all_tensors(export))
    assert (Path(out) / "spiece.model").read_bytes() == Path(vocabulary).read_bytes()
    assert script.main(["check", run, out]) == 0
    assert script.main(["to-hf", run, half, "--dtype", "bfloat16"]) == 0
    assert script.main(["check", run, half]) == 0
    rewrite(half, lambda tensors: tensors["lm_head.weight"].__iadd__(1))
    assert script.main(["check", run, half]) == 1
    assert "NOT EQUAL" in capsys.readouterr().out
