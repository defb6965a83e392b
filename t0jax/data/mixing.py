"""The order of a mixture, as a pure function: which task and which of its rows stand at a place of an endless stream.

seqio repeats every task for ever and draws from the tasks in proportion to their rates. Here the stream is made of
blocks. Block b takes from task t its draws number `C_t(b)` to `C_t(b + 1) - 1`, where `C_t(b)` is
`floor(rate_t / total * b * BLOCK + phase_t)`: each task's share of every block is within one draw of its rate. Draw d
of a task with n rows is row `shuffle(d mod n)` of epoch `d div n`, shuffled anew each epoch. A block's draws are
put in random order; `in_turn`, only the tasks are, and each task's own draws stand in their order, so that none of its
rows comes again before all have come. Nothing is remembered between places, so a stream starts anywhere at once,
whatever the number of tasks, and shards of one stream (every V-th draw of each block) read the same epochs side by
side.

All randomness is integer hashing written out below, so an order never depends on a library's version.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 4096
"""Draws of a block, about: neighbours in the stream come from anywhere in it."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Some draws of a stream in order: `task [n]`, `row [n]` and `epoch [n]` of the task, int64."""

    task: np.ndarray
    row: np.ndarray
    epoch: np.ndarray

    def __getitem__(self, chosen: slice) -> "Draws":
        return Draws(self.task[chosen], self.row[chosen], self.epoch[chosen])

    def __len__(self) -> int:
        return len(self.task)


class MixtureOrder:
    """The endless order of one mixture; see the module's text."""

    def __init__(
        self,
        names: Sequence[str],
        lengths: Sequence[int],
        rates: Sequence[float],
        seed: int,
        *,
        in_turn: bool = False,
    ):
        """A task's own order depends on its name, length and the seed, not on the other tasks.

        `in_turn` reads every epoch of a task to its end before the next; else epochs mix within a block.

        Raises:
          ValueError: no task, an empty task, or a rate that is not positive.
        """
        _check(names, lengths, rates)
        self._lengths = np.array(lengths, np.uint64)
        self._share = np.array(rates, np.float64) / math.fsum(rates)
        self._keys = np.array([_key(name, seed) for name in names], np.uint64)
        self._phase = (_hash(self._keys) >> np.uint64(11)).astype(np.float64) / 2.0**53
        self._seed = np.uint64(_key("", seed))
        self._in_turn = in_turn
        self._cached: tuple[int, Draws] = (-1, Draws(*np.zeros((3, 0), np.int64)))

    def block(self, number: int) -> Draws:
        """All draws of one block (about `BLOCK`, at most `BLOCK` + the number of tasks); costs some milliseconds."""
        if self._cached[0] != number:
            self._cached = (number, self._block(number))
        return self._cached[1]

    def shard(self, number: int, shard: int, shards: int) -> Draws:
        """Every `shards`-th draw of a block, from draw `shard` on: the shards of a block are its partition."""
        return self.block(number)[shard::shards]

    def _block(self, number: int) -> Draws:
        first, last = self._drawn_before(number), self._drawn_before(number + 1)
        counts = last - first
        task = np.repeat(np.arange(len(counts)), counts)
        draw = np.arange(len(task)) - np.repeat(counts.cumsum() - counts, counts) + first[task]
        order = np.argsort(
            _hash(
                np.arange(len(task), dtype=np.uint64)
                ^ _hash(np.asarray(self._seed ^ np.uint64(number)))
            )
        )
        if self._in_turn:
            order = np.argsort(np.argsort(task[order], kind="stable"))
        task, draw = task[order], draw[order].astype(np.uint64)
        length = self._lengths[task]
        epoch = draw // length
        row = shuffled(draw % length, length, _hash(self._keys[task] + epoch))
        return Draws(task, row.astype(np.int64), epoch.astype(np.int64))

    def _drawn_before(self, number: int) -> np.ndarray:
        return np.floor(self._share * (float(number) * BLOCK) + self._phase).astype(np.int64)


def shuffled(index: np.ndarray, length: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The images of `index [n]` under pseudo-random permutations of 0..length-1, one a key; all uint64 [n].

    A four-round Feistel network over the next even power of two, walked until it lands inside the length
    (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = np.maximum((_bits(length) + 1) // 2, 1).astype(np.uint64)
    result = index.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        result[todo] = _feistel(result[todo], half[todo], key[todo])
        todo = todo[result[todo] >= length[todo]]
    return result


def _feistel(value: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for round_number in range(4):
        left, right = right, left ^ (_hash(right + _hash(key + np.uint64(round_number))) & mask)
    return (left << half) | right


def _bits(length: np.ndarray) -> np.ndarray:
    """Bits of the largest index of each length."""
    return np.frexp(np.maximum(length.astype(np.float64) - 1, 0))[1]


def _hash(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014)."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _key(name: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _check(names: Sequence[str], lengths: Sequence[int], rates: Sequence[float]) -> None:
    if not names:
        raise ValueError("a mixture needs at least one task")
    for name, length, rate in zip(names, lengths, rates, strict=True):
        if length <= 0:
            raise ValueError(f"task '{name}' has no rows")
        if not rate > 0:
            raise ValueError(f"task '{name}' has rate {rate}; rates must be positive")
