"""What a network computes, as pure functions of a plain tree of parameters."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t0jax import config as cfg
from t0jax.models.deberta import MultitaskEncoder
from t0jax.models.t5 import T5

ARCHITECTURES: dict[str, type[T5] | type[MultitaskEncoder]] = {
    "t5": T5,
    "deberta": MultitaskEncoder,
}
"""`model.architecture` -> the module."""

Params = dict[str, Any]
"""Nested dict of float32 arrays, named as the modules are; stacks have a leading axis, the layers."""


@dataclass(frozen=True, eq=False)
class Network:
    """One architecture: the shapes of its parameters, how they start, and the module that reads them.

    Hashed by identity, so that it can be a static argument of `jax.jit`; `build` returns the same object for
    the same configuration.
    """

    config: cfg.Model
    axes: Params = field(repr=False)
    """As the parameters; leaves are tuples of logical axis names, e.g. ('layers', 'embed', 'heads')."""
    shapes: Params = field(repr=False)
    """As the parameters; leaves are float32 `jax.ShapeDtypeStruct`."""
    _graphdef: nnx.GraphDef = field(repr=False)
    _treedef: jax.tree_util.PyTreeDef = field(repr=False)

    def init(self, key: jax.Array) -> Params:
        """Random parameters; pure, so that it can be jitted with sharded outputs."""
        return _plain(nnx.state(_construct(self.config, key), nnx.Param), lambda p: p[...])

    def bind(self, params: Params) -> Any:
        """The module of `config.architecture` over `params` (arrays, or tracers under `jit` and `grad`). Cheap.

        Raises:
            ValueError: when `params` is not a tree of this architecture.
        """
        if jax.tree.structure(params) != jax.tree.structure(self.shapes):
            raise ValueError(
                f"these parameters belong to another architecture: {_difference(params, self.shapes)}"
            )
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, jax.tree.leaves(params)))


@lru_cache(maxsize=32)
def build(config: cfg.Model) -> Network:
    """The network of `config`; nothing is computed or allocated."""
    abstract = nnx.eval_shape(lambda: _construct(config, jax.random.key(0)))
    graphdef, state = nnx.split(abstract, nnx.Param)
    axes = _plain(state, lambda p: p.get_metadata("logical_axes"))
    shapes = _plain(state, lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype))
    return Network(config, axes, shapes, graphdef, jax.tree.structure(state))


def fingerprint(params: Params) -> str:
    """16 hexadecimal digits that tell parameters apart by their bits, wherever their shards are."""
    leaves = jax.tree.leaves_with_path(params)
    sums = jax.device_get(_bit_sums([leaf for _, leaf in leaves]))
    names = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in leaves]
    return hashlib.sha256(repr([*names, *map(int, sums)]).encode()).hexdigest()[:16]


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    """Of each array the sum, modulo 2 ** 32, of its elements' bits well mixed with their places.

    The mixing is MurmurHash3's finaliser (A. Appleby): a plain weighted sum of bits would not see factors of 2.
    """

    def bit_sum(x: jax.Array) -> jax.Array:
        unsigned = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * size + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        mixed = bits ^ (place * jnp.uint32(0x9E3779B9))
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
        return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)

    return [bit_sum(x) for x in leaves]


def _construct(config: cfg.Model, key: jax.Array) -> T5 | MultitaskEncoder:
    module = ARCHITECTURES.get(config.architecture)
    if module is None:
        known = ", ".join(ARCHITECTURES)
        raise cfg.ConfigError(
            f"unknown model.architecture {config.architecture!r}; it is one of {known}"
        )
    return module(config, nnx.Rngs(params=key))


def _plain(state: nnx.State, read: Callable[[nnx.Param], Any]) -> Params:
    tree: Params = {}
    for path, param in nnx.to_flat_state(state):
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = read(param)
    return tree


def _difference(params: Params, shapes: Params) -> str:
    have, want = (
        {jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves}
        for leaves in map(jax.tree.leaves_with_path, (params, shapes))
    )
    return f"missing {sorted(want - have)}, unexpected {sorted(have - want)}"
