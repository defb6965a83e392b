"""SentencePiece in DeBERTa-v3's conventions: [PAD] 0, [CLS] 1, [SEP] 2, [UNK] 3, and [MASK] after the last piece.

`PairPieces` gives the ids of transformers' `DebertaV2Tokenizer` for the same `spm.model`, but for control pieces that a
text spells (`[SEP]`), which are text here.
"""

import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from t0jax.data.vocabulary import VocabularyError, tell_no_one, train_model

if TYPE_CHECKING:
    import sentencepiece

CONTROL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
"""The pieces 0 to 3."""
PAD_ID, CLS_ID, SEP_ID, UNKNOWN_ID = range(4)

Truncate = Literal["longest", "first"]
"""What a pair that is too long loses: tokens of the longer text (transformers' `longest_first`), or of the first alone,
as zero-shot classification has it (`only_first`)."""


class PairPieces:
    """A SentencePiece model that encodes texts, pairs of them, and words. Pickles by its path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"PairPieces({str(self.path)!r})"

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path}

    @property
    def size(self) -> int:
        """Number of ids, [MASK] included (128,001 of DeBERTa-v3)."""
        return self._processor.get_piece_size() + 1

    @property
    def mask_id(self) -> int:
        """Id of [MASK], the last one."""
        return self.size - 1

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without control pieces."""
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self._processor.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text without control pieces."""
        size = self._processor.get_piece_size()
        return self._processor.decode([int(i) for i in ids if UNKNOWN_ID <= i < size])

    def pair(
        self,
        first: Sequence[int],
        second: Sequence[int] | None,
        max_length: int,
        truncate: Truncate = "longest",
    ) -> list[int]:
        """[CLS] first [SEP], or [CLS] first [SEP] second [SEP], of at most `max_length` ids.

        Texts lose their right end. What `first` cannot lose is taken from the second text.
        """
        if second is None:
            return [CLS_ID, *first[: max(0, max_length - 2)], SEP_ID]
        sizes = kept_lengths(len(first), len(second), max(0, max_length - 3), truncate)
        return [CLS_ID, *first[: sizes[0]], SEP_ID, *second[: sizes[1]], SEP_ID]

    def words(
        self, words: Sequence[str], max_length: int
    ) -> tuple[list[int], list[int], list[int], int]:
        """[CLS] words [SEP] of at most `max_length` ids, each word encoded by itself.

        Returns:
          ids; the position of every word's first token, -1 of a word without one (cut off, or blank); the number of
          every token's word, -1 of control pieces; how many of the words' tokens were cut off.
        """
        tokens = self.encode_batch(list(words))
        numbers = [[i] * len(ids) for i, ids in enumerate(tokens)]
        room = max(0, max_length - 2)
        whole = list(itertools.chain.from_iterable(tokens))
        body = whole[:room]
        word_of_token = [-1, *list(itertools.chain.from_iterable(numbers))[:room], -1]
        first = [-1] * len(words)
        for place in range(len(body), 0, -1):
            first[word_of_token[place]] = place
        return [CLS_ID, *body, SEP_ID], first, word_of_token, len(whole) - len(body)

    @functools.cached_property
    def _processor(self) -> "sentencepiece.SentencePieceProcessor":
        with _load_lock:  # SentencePiece's loading is not thread-safe
            return _load(str(self.path))


def kept_lengths(first: int, second: int, room: int, truncate: Truncate) -> tuple[int, int]:
    """Tokens that stay of each of two texts so that both fit; as tokenizers' `longest_first` and `only_first`."""
    if first + second <= room:
        return first, second
    if truncate == "first":
        second = min(second, room)
        return room - second, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (long, short) if first > second else (short, long)


_load_lock = threading.Lock()


@functools.lru_cache(maxsize=8)
def _load(path: str) -> "sentencepiece.SentencePieceProcessor":
    import sentencepiece

    if not Path(path).is_file():
        raise VocabularyError(f"the vocabulary {path} does not exist")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=path)
    except (RuntimeError, OSError) as error:
        raise VocabularyError(f"{path} is not a SentencePiece model: {error}") from error
    found = tuple(processor.id_to_piece(i) for i in range(min(4, processor.get_piece_size())))
    if found != CONTROL:
        raise VocabularyError(
            f"{path} is not a vocabulary of DeBERTa-v3: its pieces 0 to 3 are {', '.join(found)}, not "
            f"{', '.join(CONTROL)} (T5's begins with <pad>); give the spm.model of a DeBERTa-v3, or set "
            "data.vocabulary to a new file and data.vocabulary_train_size to train one"
        )
    return processor


def train_pair_pieces(
    texts: Iterable[str], path: Path, size: int, tell: Callable[[str], None] = tell_no_one
) -> Path:
    """Trains a unigram model of `size` pieces, the four control pieces among them, [MASK] not.

    As `vocabulary.train_sentencepiece` otherwise.

    Raises:
      VocabularyError: as there.
    """
    names = dict(zip(("pad", "bos", "eos", "unk"), CONTROL, strict=True))
    special = {f"{name}_piece": piece for name, piece in names.items()}
    special |= {f"{name}_id": number for number, name in enumerate(names)}
    return train_model(texts, Path(path), size, special, tell)
