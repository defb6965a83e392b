"""Ids against seqio's vocabulary and Hugging Face's tokenizer for one model file; training is repeatable."""

import itertools
import pickle
import random
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest

from t0jax.data.vocabulary import (
    EOS_ID,
    Pieces,
    VocabularyError,
    t5_vocabulary,
    train_sentencepiece,
    vocabulary_path,
)

AWKWARD = [
    "",
    " ",
    "  two  blanks ",
    "tabs\tand\n\nnewlines ",
    "naïve ﬁne \uff12 émigré\u3000wide",
    "日本 🙂 unknown letters",
    "Answer: World politics, isn't it?",
    "a" * 300,
]


def words(seed: int, count: int) -> list[str]:
    """Sentences of made-up words that repeat, so that there are pieces to learn."""
    draw = random.Random(seed)
    made = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 8))) for _ in range(300)]
    return [" ".join(draw.choices(made, k=12)).capitalize() + "." for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    texts = [*words(0, 800), *AWKWARD[2:5] * 20]
    return train_sentencepiece(texts, tmp_path_factory.mktemp("vocabulary") / "spiece.model", 400)


def test_ids_equal_seqio(model, monkeypatch):
    import seqio

    oracle = seqio.SentencePieceVocabulary(str(model), extra_ids=100)
    pieces = Pieces(model)
    assert (pieces.size, pieces.eos_id, pieces.unk_id) == (
        oracle.vocab_size,
        oracle.eos_id,
        oracle.unk_id,
    )
    assert pieces.size == 500
    texts = [*words(1, 50), *AWKWARD, "<extra_id_0> first <extra_id_99> last"]
    expected = [list(oracle.encode(text)) for text in texts]
    assert [pieces.encode(text) for text in texts] == expected
    assert pieces.encode_batch(texts) == expected
    assert [oracle.encode_tf(text).numpy().tolist() for text in texts] == expected
    assert pieces.encode("<extra_id_0>") == [499]

    monkeypatch.setenv("T0JAX_VOCABULARY", str(model))
    late = pickle.loads(pickle.dumps(t5_vocabulary()))  # a copy that no other test has used
    assert [list(late.encode(text)) for text in texts] == expected


def test_ids_equal_hugging_face(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    shutil.copy(model, tmp_path / "spiece.model")
    oracle = transformers.T5Tokenizer.from_pretrained(tmp_path)
    pieces = Pieces(model)
    assert len(oracle) == pieces.size
    for text in [*words(2, 50), *AWKWARD]:
        assert oracle(text)["input_ids"] == [*pieces.encode(text), EOS_ID], text


def test_decode_stops_at_the_end_of_sequence(model):
    pieces = Pieces(model)
    text = words(3, 1)[0]
    assert pieces.decode([*pieces.encode(text), 1, 7, 7, 0, 0]) == text
    assert pieces.decode([0, *pieces.encode(text), 0]) == text


def test_pieces_pickle_by_their_path(model):
    pieces = Pieces(model)
    pieces.encode("loaded")
    sent = pickle.dumps(pieces)
    assert len(sent) < 400
    assert pickle.loads(sent).encode("a word") == pieces.encode("a word")


def test_no_tensorflow_is_needed(model):
    code = (
        "import sys; from t0jax.data.vocabulary import Pieces; print(Pieces(sys.argv[1]).size);"
        "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    )
    root = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", code, model], cwd=root, capture_output=True, text=True
    )
    assert run.stdout.strip() == "500", run.stderr


def test_seqio_tasks_may_be_declared_before_the_file_is_chosen(model, monkeypatch):
    monkeypatch.delenv("T0JAX_VOCABULARY", raising=False)
    late = pickle.loads(pickle.dumps(t5_vocabulary()))
    assert late == t5_vocabulary()
    with pytest.raises(VocabularyError, match=r"data\.vocabulary or T0JAX_VOCABULARY"):
        late.encode("x")
    monkeypatch.setenv("T0JAX_VOCABULARY", str(model))
    assert list(late.encode("x y")) == Pieces(model).encode("x y")
    assert vocabulary_path() == model


def test_training_is_repeatable_and_needs_no_end_of_text(model, tmp_path, monkeypatch):
    monkeypatch.setattr("t0jax.data.vocabulary.MAX_TRAINING_CHARACTERS", 30_000)
    texts = words(4, 500)
    files = [
        train_sentencepiece(itertools.cycle(texts), tmp_path / f"{k}.model", 200).read_bytes()
        for k in range(2)
    ]
    assert files[0] == files[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.model", "1.model"]


def test_long_texts_are_not_passed_over(tmp_path):
    long = " ".join(words(5, 400))
    assert len(long) > 20_000
    path = train_sentencepiece([long], tmp_path / "long.model", 200)
    assert len(Pieces(path).encode(words(5, 1)[0])) < 60


def test_little_text_makes_fewer_pieces(tmp_path, caplog):
    import seqio

    path = train_sentencepiece(["good film", "bad film"] * 20, tmp_path / "v.model", 300)
    pieces = Pieces(path)
    few = pieces.size - 100
    assert few < 300
    assert f"340 characters of text give {few} pieces, not the 300" in caplog.text
    oracle = seqio.SentencePieceVocabulary(str(path), extra_ids=100)
    assert oracle.vocab_size == pieces.size
    assert pieces.sentinel_id(0) == pieces.encode("<extra_id_0>")[-1] == few + 99
    assert pieces.encode("good bad") == list(oracle.encode("good bad"))
    assert pieces.decode(pieces.encode("good film")) == "good film"


@pytest.mark.parametrize(("texts", "size"), [([], 100), (words(6, 400), 10)])
def test_text_that_cannot_fill_the_vocabulary(texts, size, tmp_path):
    with pytest.raises(VocabularyError, match=f"cannot train {size} pieces on [\\d,]+ characters"):
        train_sentencepiece(texts, tmp_path / "v.model", size)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_that_cannot_be_written_names_its_path(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VocabularyError, match=r"cannot write the vocabulary .*v\.model") as caught:
        train_sentencepiece(words(8, 200), tmp_path / "file" / "v.model", 100)
    assert "T0JAX_CACHE_DIR" not in str(caught.value)


def test_files_that_are_no_t5_vocabulary(tmp_path):
    with pytest.raises(VocabularyError, match="does not exist"):
        Pieces(tmp_path / "none.model").encode("x")
    (tmp_path / "broken.model").write_bytes(b"\xff\x00 not a model")
    with pytest.raises(VocabularyError, match="not a SentencePiece model"):
        Pieces(tmp_path / "broken.model").encode("x")
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words(7, 200)),
        model_prefix=str(tmp_path / "bert"),
        vocab_size=100,
        minloglevel=2,
    )
    with pytest.raises(VocabularyError, match=r"ids of \(pad, eos, unk\) are \(-1, 2, 0\)"):
        Pieces(tmp_path / "bert.model").encode("x")
