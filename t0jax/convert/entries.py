"""Where parameters live in a Hugging Face file."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from t0jax import models

Bounds = tuple[tuple[int, int], ...]
"""Of a part of an array: (first, after the last) along each axis."""


@dataclass(frozen=True)
class Entry:
    """Where one parameter lives in a Hugging Face file."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    tensors: tuple[str, ...]
    """One name, or one a layer, or one a span."""
    stacked: bool = False
    transposed: bool = False
    """Torch's linear layers are [outputs, inputs]; kernels here are [inputs, outputs]."""
    spans: tuple[tuple[int, int], ...] = ()
    """Of each tensor the part of the parameter's last axis that is its first one, where tensors lie side by side."""
    copy: bool = False
    """Written and never read: another entry reads the same values."""

    def tensor_shape(self, number: int) -> tuple[int, ...]:
        """Of one of `tensors` in the file."""
        shape = self.shape[1:] if self.stacked else self.shape
        if self.spans:
            first, last = self.spans[number]
            shape = (*shape[:-1], last - first)
        return shape[::-1] if self.transposed else shape

    def leaf(self, tree: models.Params) -> Any:
        """What a tree of the parameters' structure holds for it."""
        for key in self.path:
            tree = tree[key]
        return tree

    def part(
        self, number: int, bounds: Bounds, shard: np.ndarray
    ) -> tuple[Bounds, np.ndarray] | None:
        """What a shard holds of one of `tensors`: bounds within it, and where in the shard its values go."""
        inner = list(bounds)
        if self.stacked:
            first, last = inner.pop(0)
            if not first <= number < last:
                return None
            shard = shard[number - first]
        if self.spans:
            (first, last), (begin, end) = inner.pop(), self.spans[number]
            low, high = max(first, begin), min(last, end)
            if low >= high:
                return None
            inner.append((low - begin, high - begin))
            shard = shard[..., low - first : high - first]
        return (tuple(inner[::-1]), shard.T) if self.transposed else (tuple(inner), shard)


def table_of(
    network: models.Network, patterns: Mapping[str, str], as_they_are: Collection[str]
) -> list[Entry]:
    """An entry for each parameter that `patterns` names.

    Args:
        network: whose parameters.
        patterns: parameter -> tensor; `{layer}` stands for each index of a stacked parameter's first axis.
        as_they_are: last names of matrices that are no kernels, and so not transposed.
    """
    table = []
    for keys, leaf in jax.tree.leaves_with_path(network.shapes):
        path = tuple(key.key for key in keys)
        pattern = patterns.get(".".join(path))
        if pattern is None:
            continue
        stacked = "layers" in path
        layers = range(leaf.shape[0]) if stacked else range(1)
        tensors = tuple(pattern.replace("{layer}", str(i)) for i in layers)
        transposed = len(leaf.shape) - stacked == 2 and path[-1] not in as_they_are
        table.append(Entry(path, leaf.shape, tensors, stacked, transposed))
    return table
