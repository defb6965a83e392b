"""`python -m scripts.generate` from text to text, and texts that spell sentinels."""

import io
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from scripts import generate as script
from t0jax import config as cfg
from t0jax import convert, models
from t0jax.data.encoding import PairEncoder
from t0jax.data.vocabulary import Pieces, VocabularyError, split_spelled, train_sentencepiece
from t0jax.generate import Generator, Settings
from t0jax.sharding import make_mesh

REPOSITORY = Path(__file__).parents[1]
SENTENCE = "this is the best cast iron skillet you will ever buy , seven dogs ran on a mat ."
WORDS = f"{SENTENCE} film was good bad Title: Review: input: output: Positive Yes No ? cat".split()
TEXTS = ["the film was good .", "this is the best cat", "seven dogs ran , ran , ran"]
MODEL = cfg.Model(vocab_size=176, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=9)) for _ in range(400)]
    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    return Pieces(train_sentencepiece(texts, path, 66))


@pytest.fixture(scope="module")
def folder(pieces, tmp_path_factory):
    """A random model with a vocabulary, as transformers reads it."""
    params = models.build(MODEL).init(jax.random.key(0))
    path = tmp_path_factory.mktemp("model") / "hf"
    return convert.save_params(params, MODEL, path, tokenizer_path=pieces.path)


def written(capsys, folder, *arguments):
    """The lines that the script prints."""
    assert script.main(["--model", str(folder), "--max_new_tokens", "6", *arguments]) == 0
    return capsys.readouterr().out.removesuffix("\n").split("\n")


def expected(pieces, folder, inputs, **settings):
    network = models.build(MODEL)
    generator = Generator(network, make_mesh(cfg.Mesh()), Settings(max_new_tokens=6, **settings))
    found = generator(convert.load_params(folder, network), inputs)
    return [pieces.decode_spelled(one.tokens) for one in found]


# ------------------------------------------------------------------------------------------- spelled


def spelled_texts():
    draw = random.Random(1)
    parts = [*WORDS, "<extra_id_0>", "<extra_id_12>", "<extra_id_99>", "<extra_id_100>", "\n", "  "]
    yield "input: the film <extra_id_0>was good<extra_id_1>\n output: Yes"
    yield from ["", "<extra_id_0>", " <extra_id_1><extra_id_0> ", "<extra_id_01>", "<extra_id_"]
    for _ in range(200):
        yield "".join(draw.choice(parts) + draw.choice(["", " "]) for _ in range(8))


def test_spelled_sentinels_are_hugging_faces(pieces, folder):
    transformers = pytest.importorskip("transformers")
    oracle = transformers.T5Tokenizer.from_pretrained(folder)
    for text in spelled_texts():
        ids = pieces.encode_spelled(text)
        assert [*ids, 1] == oracle(text).input_ids, text
        if 2 not in ids:  # unknown letters are shown otherwise
            assert pieces.decode_spelled(ids) == oracle.decode(ids), text
            assert pieces.encode_spelled(pieces.decode_spelled(ids)) == ids


def test_decoding_stops_at_the_end_and_passes_over_what_is_no_word(pieces):
    ids = pieces.encode_spelled("<extra_id_0> the film<extra_id_7>")
    padded = [0, *ids, pieces.size + 20, 1, 5, 6]
    assert pieces.decode_spelled(padded) == "<extra_id_0> the film<extra_id_7>"
    assert pieces.decode_spelled([]) == ""


def test_texts_are_cut_at_the_sentinels_there_are():
    assert split_spelled("a<extra_id_3> b<extra_id_100>") == ["a", 3, " b<extra_id_100>"]
    assert split_spelled("<extra_id_0><extra_id_1>") == [0, 1]
    assert split_spelled("<extra_id_0><extra_id_>", extra_ids=0) == ["<extra_id_0><extra_id_>"]
    assert split_spelled("") == []


# -------------------------------------------------------------------------------------------- direct


@pytest.mark.parametrize("beams", [1, 4])
def test_text_to_text_is_transformers(folder, pieces, capsys, beams):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids = model.generate(**batch, max_new_tokens=6, num_beams=beams, do_sample=False)
    theirs = [pieces.decode_spelled(row[1:]) for row in ids.tolist()]
    inputs = [word for text in TEXTS for word in ("--input", text)]
    options = ["--num_beams", str(beams), "--input_eos", "true"]
    assert written(capsys, folder, *inputs, *options) == theirs
    assert len(set(theirs)) == 3


def test_prompts_come_from_a_file_or_standard_input(folder, pieces, capsys, tmp_path, monkeypatch):
    """A line of output for each line, empty ones too."""
    lines = [TEXTS[0], "", *TEXTS[1:]]
    ours = expected(pieces, folder, [pieces.encode(line) for line in lines])
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert written(capsys, folder, "--file", str(tmp_path / "lines.txt")) == ours
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert written(capsys, folder) == ours


def test_nothing_but_texts_goes_to_standard_output(folder, pieces):
    command = [sys.executable, "-m", "scripts.generate", "--model", str(folder)]
    run = subprocess.run(
        [*command, "--max_new_tokens", "6"],
        input="\n".join(TEXTS), cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    inputs = [pieces.encode(text) for text in TEXTS]
    assert run.stdout.splitlines() == expected(pieces, folder, inputs)
    assert f"model: reading {folder}" in run.stderr


def test_samples_differ_by_their_seed(folder, capsys):
    options = ["--input", TEXTS[0], "--temperature", "1.5"]
    first, again, other = (
        written(capsys, folder, *options, "--seed", seed) for seed in ("1", "1", "2")
    )
    assert first == again != other


# ------------------------------------------------------------------------------------------- flipped


def test_the_instruction_is_shown_and_filled_in(folder, pieces, capsys):
    text = "this is the best cast iron skillet you will ever buy"
    spelled = f"input: <extra_id_0> {text}<extra_id_1>\n output: Positive"
    inputs = [[*pieces.encode_spelled(spelled), 1], pieces.encode_spelled(spelled)]
    for ids, end in zip(inputs, ([], ["--input_eos", "false"]), strict=True):
        options = ["--view", "flipped", "--input", text, "--output", "Positive", *end]
        (generated,) = expected(pieces, folder, [ids])
        assert written(capsys, folder, *options) == [generated, script.fill(text, generated)]


def test_a_file_of_the_flipped_view_holds_text_and_label(folder, capsys, tmp_path):
    (tmp_path / "pairs.tsv").write_text("the film\tYes\n<extra_id_0>seven\tdogs<extra_id_1>\tNo\n")
    found = written(capsys, folder, "--view", "flipped", "--file", str(tmp_path / "pairs.tsv"))
    given = ["--input", "the film", "--output", "Yes"]
    given += ["--input", "<extra_id_0>seven\tdogs<extra_id_1>", "--output", "No"]
    assert found == written(capsys, folder, "--view", "flipped", *given)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("text", "generated", "filled"),
    [
        ("a  good\nbuy", "<extra_id_0> Title:<extra_id_1> Review:", "Title: a good buy Review:"),
        ("<extra_id_2>x<extra_id_0>y", "<extra_id_0> and<extra_id_2> Both", "Both x and y"),
        ("<extra_id_0>x", "<extra_id_0> first<extra_id_0> second<extra_id_5> no", "first x"),
        ("x", "no sentinel at all", "x"),
        ("x", "<extra_id_0><extra_id_1> end", "x end"),
    ],
)
def test_filling_in(text, generated, filled):
    assert script.fill(text, generated) == filled


def test_a_long_text_keeps_its_label_and_its_end(pieces):
    encoder = PairEncoder(pieces, 20, 6, input_eos=True)
    whole = PairEncoder(pieces, 1000, 6, input_eos=True)
    prompt = script.Prompt("cat " * 50, "Yes")
    label = pieces.encode("output: Yes")
    ids = script.encode(prompt, pieces, encoder).tolist()
    all_ids = script.encode(prompt, pieces, whole).tolist()
    assert len(ids) == 20 < len(all_ids)
    ending = [pieces.sentinel_id(1), *label, pieces.eos_id]
    assert ids[-len(ending) :] == all_ids[-len(ending) :] == ending
    assert ids[: 20 - len(ending)] == all_ids[: 20 - len(ending)]
    assert script.encode(script.Prompt("cat " * 50), pieces, encoder)[-1] == pieces.eos_id


def test_inputs_end_as_asked_or_as_the_model_was_trained():
    def ends(*asked, trained):
        model = SimpleNamespace(config=cfg.Config(data=cfg.Data(input_eos=trained)))
        return script.ends_inputs(model, *asked)

    assert ends(None, None, trained=True) is True
    assert ends(None, False, trained=True) is False
    assert ends(True, False, trained=None) is True
    assert ends(None, None, trained=None) is None
    assert script.ends_inputs(SimpleNamespace(config=None), None) is None


# -------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write about: standard input is empty"),
        (["--file", "FILE"], "view flipped needs text, a tab and a label"),
        (["--input", "x", "--output", "y"], "--output is the label of --view flipped"),
        (["--output", "y"], "--output has no --input"),
        (["--input", "x", "--file", "FILE"], "choose one"),
        (["--view", "flipped", "--input", "x"], "1 --input and 0 --output; give one --output"),
        (["--view", "channel", "--input", "x"], "cannot write in the view 'channel'"),
        (["--input", "caf\udce9"], "prompt 1 is not UTF-8 text"),
        (["--input", "x", "--num_beams", "0"], "num_beams is 0; it must be at least 1"),
        (["--input", "x", "--num_beem", "2"], "did you mean 'num_beams'"),
        (["--input", "x", "--early_stopping", "soon"], "early_stopping"),
    ],
    ids=str,
)
def test_what_cannot_be_written(arguments, message, folder, tmp_path, monkeypatch):
    """Before any weights are read."""
    monkeypatch.setattr("t0jax.checkpoint.load_model", lambda *_: pytest.fail("read the weights"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    (tmp_path / "lines").write_text("a text\tYes\nno tab\n")
    arguments = [str(tmp_path / "lines") if word == "FILE" else word for word in arguments]
    needs_view = arguments in (["--output", "y"], ["--file", str(tmp_path / "lines")])
    view = ["--view", "flipped"] if needs_view else []
    with pytest.raises(cfg.UserError, match=message):
        script.main(["--model", str(folder), *view, *arguments])


def test_missing_files_models_and_vocabularies(folder, tmp_path, monkeypatch):
    none = str(tmp_path / "none")
    with pytest.raises(OSError, match="none"):
        script.main(["--model", str(folder), "--file", none])
    with pytest.raises(cfg.UserError, match="there is no"):
        script.main(["--model", none, "--input", "x"])
    with pytest.raises(VocabularyError, match="none does not exist"):
        script.main(["--model", str(folder), "--input", "x", "--data.vocabulary", none])
    monkeypatch.delenv("T0JAX_VOCABULARY", raising=False)
    bare = convert.save_params(models.build(MODEL).init(jax.random.key(0)), MODEL, tmp_path / "hf")
    with pytest.raises(VocabularyError, match="no vocabulary was chosen"):
        script.main(["--model", str(bare), "--input", "x"])


def test_a_vocabulary_larger_than_the_model(pieces):
    with pytest.raises(cfg.ConfigError, match="has 166 ids, the model's embedding 100 rows"):
        script.check_vocabulary(pieces, cfg.Model(vocab_size=100))


def test_an_encoder_writes_nothing():
    with pytest.raises(cfg.ConfigError, match=r"runs/m is a deberta, an encoder .* --list"):
        script.check_architecture(Path("runs/m"), cfg.Model(architecture="deberta"))


@pytest.mark.parametrize("argv", [["--model", "m"], ["--model=m"]])
def test_the_model_is_told_from_the_configurations_keys(argv):
    path, rest = cfg.take_model(["--model.dtype", "bfloat16", *argv, "--input", "x"])
    assert path == Path("m")
    assert rest == ["--model.dtype", "bfloat16", "--input", "x"]
    with pytest.raises(cfg.ConfigError, match="no model: give --model DIR"):
        cfg.take_model(["--model.dtype", "bfloat16"])
    with pytest.raises(cfg.ConfigError, match="needs a folder"):
        cfg.take_model(["--model"])


@pytest.mark.slow
def test_two_processes_print_what_one_does(folder, pieces, tmp_path):
    texts = [*TEXTS, "a cat", "Yes"]
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "scripts.generate", "--model", str(folder)]
    command += ["--max_new_tokens", "6", "--file", str(tmp_path / "lines.txt")]
    cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    workers = [
        subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **cluster, "JAX_PROCESS_ID": str(index), "JAX_NUM_CPU_DEVICES": "1"},
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    first, second = (
        [line for line in out.splitlines() if "[Gloo]" not in line] for out, _ in outputs
    )
    assert first == expected(pieces, folder, [pieces.encode(text) for text in texts])
    assert second == []
