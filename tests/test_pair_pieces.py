"""DeBERTa-v3's pieces: equal to transformers' tokenizer of the same file, for texts, pairs and words."""

import pickle
import random

import numpy as np
import pytest

from t0jax.config import Head
from t0jax.data import vocabulary
from t0jax.data.structured.encoding import encode, encode_items, rows_to_batch
from t0jax.data.structured.pieces import PairPieces, kept_lengths, train_pair_pieces
from t0jax.data.structured.records import Example
from t0jax.data.vocabulary import VocabularyError
from tasks.toy_rows import make_rows

ODD = [
    "",
    " ",
    "  two  blanks,\ttabs\nand lines ",
    'Zürich, 12.5% (déjà vu), "quoted"',
    "unknown: ☃ 漢字",
    "x" * 300,
]


@pytest.fixture(scope="module")
def texts():
    """Sentences of the toy data."""
    rows = make_rows()["toy_reviews"]["train"][:200]
    return [str(value) for row in rows for value in row.values() if isinstance(value, str)]


@pytest.fixture(scope="module")
def pieces(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("pieces") / "spm.model"
    return PairPieces(train_pair_pieces([*texts, *ODD[3:4]], path, 100))


@pytest.fixture(scope="module")
def theirs(pieces):
    """transformers' tokenizer of the same file."""
    tokenizers = pytest.importorskip("transformers")
    return tokenizers.DebertaV2Tokenizer.from_pretrained(str(pieces.path.parent))


def test_texts_and_pairs_have_the_ids_of_transformers(pieces, theirs, texts):
    ordinary = [*texts[:150], *ODD[:3], ODD[5]]
    assert pieces.encode_batch(ordinary) == [
        theirs(text, add_special_tokens=False)["input_ids"] for text in ordinary
    ]
    for first, second in zip(ordinary, reversed(ordinary), strict=True):
        ids = pieces.pair(pieces.encode(first), pieces.encode(second), 10**6)
        assert ids == theirs([first], [second])["input_ids"][0]  # alone, it passes over ""
    assert (pieces.size, pieces.mask_id) == (len(theirs), theirs.mask_token_id)


def test_too_long_texts_lose_what_transformers_takes_from_them(pieces, theirs, texts):
    draw = random.Random(0)
    for _ in range(150):
        first, second = (" ".join(draw.choices(texts, k=draw.randrange(3))) for _ in range(2))
        length = draw.randrange(4, 40)
        one, other = pieces.encode(first), pieces.encode(second)
        settings = {"max_length": length, "truncation": True}
        assert pieces.pair(one, None, length) == theirs(first, **settings)["input_ids"]
        assert (
            pieces.pair(one, other, length) == theirs([first], [second], **settings)["input_ids"][0]
        )
        if len(other) + 4 <= length:
            settings["truncation"] = "only_first"
            expected = theirs([first], [second], **settings)["input_ids"][0]
            assert pieces.pair(one, other, length, "first") == expected


def test_a_pair_never_outgrows_its_room():
    for first in range(12):
        for second in range(12):
            for room in range(16):
                for truncate in ("longest", "first"):
                    kept = kept_lengths(first, second, room, truncate)
                    assert sum(kept) == min(room, first + second)
                    assert kept[0] <= first
                    assert kept[1] <= second
                    if truncate == "first" and second <= room:
                        assert kept[1] == second


def test_words_are_aligned_as_transformers_aligns_them(pieces, theirs):
    words = ["Zürich", "isn't", "", "12.5%", "unbelievably", " ", "big", "."]
    for length in (64, 20, 9, 4, 2):
        ids, first, word_of_token, lost = pieces.words(words, length)
        expected = theirs(words, is_split_into_words=True, max_length=length, truncation=True)
        assert ids == expected["input_ids"]
        assert len(ids) + lost == len(theirs(words, is_split_into_words=True)["input_ids"])
        assert word_of_token == [-1 if word is None else word for word in expected.word_ids()]
        for word, place in enumerate(first):
            found = [i for i, of in enumerate(word_of_token) if of == word]
            assert place == (found[0] if found else -1)


def test_an_unfit_or_missing_file_is_told(tmp_path, texts, pieces):
    t5 = vocabulary.train_sentencepiece(texts[:100], tmp_path / "t5.model", 60)
    with pytest.raises(VocabularyError, match=r"pieces 0 to 3 are <pad>, .*T5's begins with"):
        PairPieces(t5).encode("a")
    with pytest.raises(VocabularyError, match="does not exist"):
        _ = PairPieces(tmp_path / "none").size
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(VocabularyError, match="is not a SentencePiece model"):
        _ = PairPieces(tmp_path / "noise").size
    copy = pickle.loads(pickle.dumps(pieces))
    assert copy.encode(texts[0]) == pieces.encode(texts[0])
    assert copy.decode(copy.pair(copy.encode(texts[0]), None, 99)) == " ".join(texts[0].split())


# ------------------------------------------------------------------------------------------- batches

HEADS = (
    Head("a", "classification", ("no", "yes")),
    Head("b", "multiple_choice"),
    Head("c", "token_classification", ("N", "V")),
    Head("d", "multilabel", ("x", "y", "z")),
    Head("e", "regression"),
)


def test_a_batch_holds_each_kind_of_label_where_its_head_reads_it(pieces):
    examples = [
        Example((("good film", None),), 1),
        Example((("why", "so"), ("why", "because of it")), 1),
        Example((), (1, -1, 0), ("goes", "unbelievably", "Rome")),
        Example((("one", "two"),), (0, 2)),
        Example((("near", "far"),), 2.5),
        Example((("not told", None),), None),
    ]
    items = encode_items(examples, pieces, 16)
    rows = [(0,), (1, 3), (2,), (4,), (5,), (6,)]
    batch = rows_to_batch(zip([0, 1, 2, 3, 4, 0], items, rows, strict=True), HEADS, 8, 16)
    assert batch["task_ids"].tolist() == [0, 1, 2, 1, 3, 4, 0, 0]
    assert batch["item_ids"].tolist() == [0, 1, 2, 1, 4, 5, 6, 7]
    assert batch["label_ids"].tolist() == [1, 0, 0, 1, 0, 0, 0, 0]
    assert batch["loss_weights"].tolist() == [1, 0, 1, 1, 1, 1, 0, 0]
    assert batch["label_values"][4].tolist() == [1, 0, 1]
    assert batch["label_values"][5].tolist() == [2.5, 0, 0]
    for example, row in ((examples[0], 0), (examples[4], 5)):
        ids = encode(example, pieces, 16)[0]
        assert np.array_equal(batch["encoder_input_tokens"][row], np.pad(ids, (0, 16 - len(ids))))
        assert batch["encoder_segment_ids"][row].sum() == len(ids)
    of, found = items[2].word_of_token, batch["token_labels"]
    expected = [{-1: -1, 0: 1, 1: -1, 2: 0}[word] for word in of]
    assert found[2].tolist() == expected + [-1] * (16 - len(of))
    assert (np.delete(found, 2, axis=0) == -1).all()
    assert "token_labels" not in rows_to_batch([], HEADS[:2], 2, 4)


def test_what_was_cut_is_known(pieces):
    long = Example((("film " * 40, "so"),), 0)
    fits, cut = encode_items([long], pieces, 500)[0], encode_items([long], pieces, 20)[0]
    assert (fits.cut, cut.cut, cut.length) == (False, True, 20)
    words = Example((), (0,) * 30, ("film",) * 30)
    assert [encode_items([words], pieces, n)[0].cut for n in (500, 10)] == [False, True]
    for last in ("unbelievably", " "):  # it may lose its end alone; a blank one has nothing to lose
        ending = Example((), (0, 0), ("film", last))
        whole = encode_items([ending], pieces, 500)[0].length
        found = [encode_items([ending], pieces, whole + more)[0].cut for more in (-1, 0, 1)]
        assert found == [True, False, False]
    unlabelled = Example((), (-1, -1, 1), ("unbelievably", "unbelievably", "Rome"))
    item = encode_items([unlabelled], pieces, 4)
    assert rows_to_batch([(2, item[0], (0,))], HEADS, 1, 4)["loss_weights"].tolist() == [0]
