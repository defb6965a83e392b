"""SentencePiece in T5's conventions: padding 0, end of sequence 1, unknown 2, then 100 extra ids at the end.

`Pieces` gives the ids of `seqio.SentencePieceVocabulary(path, extra_ids=100)` and of Hugging Face's T5 tokenizer for
the same model file, without TensorFlow. `t5_vocabulary()` is that seqio vocabulary for the file that
`T0JAX_VOCABULARY` names when a text is first encoded.
"""

import functools
import itertools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t0jax.config import UserError
from t0jax.data.arrow import write_atomically

if TYPE_CHECKING:
    import sentencepiece
    import seqio

log = logging.getLogger("t0jax")

EXTRA_IDS = 100
PAD_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2
T5_IDS = {"pad_id": PAD_ID, "eos_id": EOS_ID, "unk_id": UNKNOWN_ID, "bos_id": -1}

MAX_TRAINING_CHARACTERS = 10_000_000
"""How much of the text given a SentencePiece model is trained on."""
_MAX_SENTENCE = 2000
_FEW = 16  # a batch starts a thread, which costs more than encoding a few texts one by one
_TRAINING_THREADS = 2  # fixed: float sums, and so the pieces, depend on the number


class VocabularyError(UserError, ValueError):
    """A vocabulary file that is missing or unfit, or cannot be trained."""


def vocabulary_path() -> Path:
    """The SentencePiece model file named by `T0JAX_VOCABULARY`.

    Raises:
      VocabularyError: the variable is not set or names no file.
    """
    name = os.environ.get("T0JAX_VOCABULARY", "")
    way_out = (
        "set data.vocabulary or T0JAX_VOCABULARY to a SentencePiece model (spiece.model of a T5)"
    )
    if not name:
        raise VocabularyError(f"no vocabulary was chosen; {way_out}")
    path = Path(name).expanduser()
    if not path.is_file():
        raise VocabularyError(f"the vocabulary {path} does not exist; {way_out}")
    return path


class Pieces:
    """A SentencePiece model with `extra_ids` more pieces `<extra_id_0>` ..., the first of them with the highest id.

    Pickles by its path. Ids are without end of sequence; callers append `eos_id`.
    """

    pad_id = PAD_ID
    eos_id = EOS_ID
    unk_id = UNKNOWN_ID

    def __init__(self, path: str | os.PathLike[str], extra_ids: int = EXTRA_IDS) -> None:
        self.path = Path(path)
        self.extra_ids = extra_ids

    def __repr__(self) -> str:
        return f"Pieces({str(self.path)!r}, extra_ids={self.extra_ids})"

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "extra_ids": self.extra_ids}

    @property
    def size(self) -> int:
        """Number of ids, the extra ones included (32,100 for T5's)."""
        return self._processor.get_piece_size()

    def sentinel_id(self, number: int) -> int:
        """Id of `<extra_id_NUMBER>`."""
        return self.size - 1 - number

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        if len(texts) <= _FEW:
            return [self._processor.encode(text) for text in texts]
        return self._processor.encode(list(texts), num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first end of sequence; padding is left out."""
        kept = [int(i) for i in ids]
        kept = kept[: kept.index(self.eos_id)] if self.eos_id in kept else kept
        return self._processor.decode([i for i in kept if i != self.pad_id])

    def encode_spelled(self, text: str) -> list[int]:
        """Ids of a text in which sentinels are spelled out: `<extra_id_0>` is one id, blanks beside it or not.

        What stands between sentinels is encoded piece by piece, as Hugging Face's T5 tokenizer does.
        """
        parts = split_spelled(text, self.extra_ids)
        ids = (
            [self.sentinel_id(part)] if isinstance(part, int) else self.encode(part)
            for part in parts
        )
        return list(itertools.chain.from_iterable(ids))

    def decode_spelled(self, ids: Sequence[int]) -> str:
        """Text up to the first end of sequence with sentinels spelled out: `<extra_id_0> some text<extra_id_1> more`.

        Padding is left out, and so are ids beyond the vocabulary (T5's embedding has 28 rows more).
        """
        kept = list(itertools.takewhile(lambda i: i != self.eos_id, map(int, ids)))
        first = self.size - self.extra_ids
        text = ""
        for spelled, run in itertools.groupby(kept, lambda i: first <= i < self.size):
            if spelled:
                text += "".join(f"<extra_id_{self.size - 1 - i}>" for i in run)
            else:
                words = self._processor.decode([i for i in run if i != self.pad_id and i < first])
                text += f" {words}" if text and words else words
        return text

    @functools.cached_property
    def _processor(self) -> "sentencepiece.SentencePieceProcessor":
        return _load(str(self.path), self.extra_ids)


def split_spelled(text: str, extra_ids: int = EXTRA_IDS) -> list[str | int]:
    """A text cut at the sentinels it spells, these as their numbers; no empty texts.

    `"a<extra_id_3> b"` -> `["a", 3, " b"]`. `<extra_id_100>` and `<extra_id_01>` are text like any other.
    """
    parts = _sentinels(extra_ids).split(text)  # texts and, between any two of them, a number
    found = (int(part) if i % 2 else part for i, part in enumerate(parts))
    return [part for part in found if part != ""]


@functools.cache
def _sentinels(extra_ids: int) -> re.Pattern[str]:
    return re.compile(f"<extra_id_({'|'.join(map(str, range(extra_ids))) or '(?!)'})>")


_load_lock = threading.Lock()


def _load(path: str, extra_ids: int) -> "sentencepiece.SentencePieceProcessor":
    with _load_lock:  # SentencePiece's loading is not thread-safe
        return _load_once(path, extra_ids)


@functools.lru_cache(maxsize=8)
def _load_once(path: str, extra_ids: int) -> "sentencepiece.SentencePieceProcessor":
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # made when it is imported, unknown to type checkers

    try:
        model = messages.ModelProto.FromString(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise VocabularyError(f"the vocabulary {path} does not exist") from error
    except Exception as error:  # protobuf's DecodeError, whose module moves between versions
        raise VocabularyError(f"{path} is not a SentencePiece model: {error}") from error
    user_defined = messages.ModelProto.SentencePiece.USER_DEFINED
    for i in reversed(range(extra_ids)):
        model.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=user_defined)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    found = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if found != (PAD_ID, EOS_ID, UNKNOWN_ID):
        expected = (PAD_ID, EOS_ID, UNKNOWN_ID)
        raise VocabularyError(f"{path}: ids of (pad, eos, unk) are {found}; T5 needs {expected}")
    return processor


# ------------------------------------------------------------------------------------------ for seqio


class LateModelFile(os.PathLike):
    """A path that is looked up in `T0JAX_VOCABULARY` when it is opened, so that tasks can be declared before."""

    def __fspath__(self) -> str:
        return str(vocabulary_path())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LateModelFile)

    def __hash__(self) -> int:
        # seqio keeps loaded models in a dictionary by this path: with one hash for all files it would go on with the
        # first one after the variable has changed.
        return hash(os.environ.get("T0JAX_VOCABULARY", ""))

    def __repr__(self) -> str:
        return "$T0JAX_VOCABULARY"


@functools.cache
def t5_vocabulary() -> "seqio.SentencePieceVocabulary":
    """seqio's vocabulary for `T0JAX_VOCABULARY`, with 100 extra ids; the file is read on first use."""
    import seqio

    file: Any = LateModelFile()  # a text as soon as seqio reads it
    return seqio.SentencePieceVocabulary(file, extra_ids=EXTRA_IDS)


# ------------------------------------------------------------------------------------------- training


def tell_no_one(line: str) -> None:
    """Progress that is not shown."""


def train_sentencepiece(
    texts: Iterable[str], path: Path, size: int, tell: Callable[[str], None] = tell_no_one
) -> Path:
    """Trains a unigram SentencePiece model of `size` pieces (extra ids not counted) as T5's was.

    The same texts in the same order give the same file: unigram, NFKC normalisation (`nmt_nfkc`), no byte fallback,
    ids 0, 1, 2 for padding, end of sequence and unknown, no beginning of sequence. Little text makes fewer pieces, with
    a warning.

    Args:
      texts: texts in random order (as a mixture is read), endless if need be: MAX_TRAINING_CHARACTERS are taken.
      path: file to write; it appears only when complete.
      size: number of pieces.
      tell: is called with a line once the texts are read and the training itself begins.

    Raises:
      VocabularyError: there is no text, or there are too few pieces for its letters, or the file cannot be written.
    """
    return train_model(texts, path, size, T5_IDS, tell)


def train_model(
    texts: Iterable[str],
    path: Path,
    size: int,
    special: Mapping[str, Any],
    tell: Callable[[str], None] = tell_no_one,
) -> Path:
    """Trains a unigram model as `train_sentencepiece` does, with other ids and names of the control pieces.

    Raises:
      VocabularyError: as there.
    """
    sentences = _sample(texts)
    characters = f"{sum(map(len, sentences)):,} characters of text"
    tell(f"training {size:,} pieces on {len(sentences):,} lines, {characters}")
    try:
        model = _train(sentences, size, special)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VocabularyError(
            f"cannot train {size} pieces on {characters} (data.vocabulary_train_size): {reason}"
        ) from error
    try:
        write_atomically(Path(path), lambda part: part.write_bytes(model))
    except OSError as error:
        raise VocabularyError(f"cannot write the vocabulary {path}: {error}") from error
    made = _piece_count(model)
    if made < size:
        log.warning("%s give %d pieces, not the %d that were asked for", characters, made, size)
    return Path(path)


def _piece_count(model: bytes) -> int:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()


def _train(sentences: list[str], size: int, special: Mapping[str, Any]) -> bytes:
    """A model of `size` pieces, or of as many as the sentences give. Raises what SentencePiece does."""
    import sentencepiece

    def train(**limit: Any) -> bytes:
        model = BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=size, model_type="unigram",
            normalization_rule_name="nmt_nfkc", byte_fallback=False, num_threads=_TRAINING_THREADS,
            shuffle_input_sentence=False, minloglevel=2, max_sentence_length=4 * _MAX_SENTENCE, **special, **limit,
        )  # fmt: skip
        return model.getvalue()

    try:
        return train()
    except RuntimeError as error:
        if "size too high" not in str(error):
            raise
    return train(hard_vocab_limit=False)  # not at once: the file would say so, and be another


def _sample(texts: Iterable[str]) -> list[str]:
    """Sentences of the first texts, about MAX_TRAINING_CHARACTERS in all; the rest, perhaps endless, is not read."""
    kept, size = [], 0
    for sentence in _sentences(texts):
        kept.append(sentence)
        size += len(sentence)
        if size >= MAX_TRAINING_CHARACTERS:
            break
    return kept


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Pieces of text short enough for SentencePiece, which passes over longer ones without a word."""
    for text in texts:
        for line in text.splitlines():
            yield from filter(
                None, map(str.strip, re.findall(rf".{{1,{_MAX_SENTENCE}}}(?:\s|$)|\S+", line))
            )
