"""A trained multitask encoder with other heads: what its tasks taught goes to the tasks that are like them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t0jax.config import ConfigError, Head
from t0jax.models import Network, Params
from t0jax.models.heads import Layout, layout

HEADS = ("heads", "pooler", "task_embedding")
"""The parts of a tree of parameters that belong to tasks; the rest is the encoder's."""


def transfer(
    source: Network,
    params: Params,
    target: Network,
    key: jax.Array,
    shardings: Params,
    like: str = "",
) -> Params:
    """The parameters of `source` as those of `target`, which differs in its heads alone.

    A task that both have takes its head and its embedding along. Other heads start from one of `source` that shares
    their group, which is `like`'s where that is of the group, and else at random; their biases, and their embeddings,
    from `like`'s or else from zero. The pooler goes along where there is one.

    Args:
        source, params: the trained model.
        target: the architecture to come.
        key: of what starts at random.
        shardings: of the parameters to come.
        like: a task of `source`, or "".

    Raises:
        ConfigError: the encoders differ, or `source` has no task `like`.
    """
    names = [head.task for head in source.config.heads]
    if like and like not in names:
        raise ConfigError(
            f"train.init_task {like!r} is no task of the model it starts from, which has "
            f"{', '.join(names[:20]) or 'none'}{' ...' if len(names) > 20 else ''}"
        )
    if source.config.heads == target.config.heads and source.shapes == target.shapes:
        return params
    _check_encoders(source, target)
    plan = _plan(source.config.heads, target.config.heads, like)
    own = {name: params[name] for name in HEADS if name in params}

    def make(own: Params, key: jax.Array) -> Params:
        fresh = {name: part for name, part in target.init(key).items() if name in HEADS}
        if "task_embedding" in own and "task_embedding" in fresh:
            rows = plan["task_embedding"]
            fresh["task_embedding"] = _taken(
                own["task_embedding"].T, fresh["task_embedding"].T, rows
            ).T
        for name, leaf in fresh.get("heads", {}).items():
            if name in own.get("heads", {}):
                fresh["heads"][name] = _taken(own["heads"][name], leaf, plan[name])
        return fresh | ({"pooler": own["pooler"]} if "pooler" in own and "pooler" in fresh else {})

    where = {name: shardings[name] for name in HEADS if name in shardings}
    made = jax.jit(make, out_shardings=where)(own, key)
    return {name: made[name] if name in HEADS else params[name] for name in target.shapes}


def _taken(source: jax.Array, fresh: jax.Array, places: np.ndarray) -> jax.Array:
    """`fresh` [..., N] with column n replaced by column `places[n]` of `source`, where that is not negative."""
    return jnp.where(places >= 0, source[..., np.maximum(places, 0)], fresh)


def _plan(have: Sequence[Head], want: Sequence[Head], like: str) -> dict[str, np.ndarray]:
    """Of each part of the heads, by name, the place in the source that each place of the target takes, or -1."""
    source, target = layout(have), layout(want)
    plan = {
        "task_embedding": np.full(len(want), -1),
        "sequence": np.full(target.sequence[0], -1),
        "sequence_bias": np.full(target.sequence[1], -1),
        "tokens": np.full(target.tokens[0], -1),
        "tokens_bias": np.full(target.tokens[1], -1),
    }
    numbers = {head.task: number for number, head in enumerate(have)}
    same = [_same_task(have, head) for head in want]
    # Tasks that go on as they were come first: the weights of a group are theirs.
    for number in sorted(range(len(want)), key=lambda n: same[n] is None):
        plan["task_embedding"][number] = numbers.get(want[number].task, numbers.get(like, -1))
        donor = same[number]
        if donor is None:
            donor = _of_group(have, want[number], numbers.get(like))
        if donor is not None:
            keeps_bias = same[number] is not None or have[donor].task == like
            _fill(plan, source, target, donor, number, keeps_bias)
    return plan


def _same_task(have: Sequence[Head], head: Head) -> int | None:
    """The number of the head of the same task with the same outputs."""
    for number, other in enumerate(have):
        if (other.task, other.kind, other.labels) == (head.task, head.kind, head.labels):
            return number
    return None


def _of_group(have: Sequence[Head], head: Head, like: int | None) -> int | None:
    """The number of a head of the same group: `like`'s, or else the first."""
    found = [
        number
        for number, other in enumerate(have)
        if head.group and (other.group, other.columns) == (head.group, head.columns)
    ]
    return like if like in found else next(iter(found), None)


def _fill(
    plan: dict[str, np.ndarray], source: Layout, target: Layout, donor: int, task: int, bias: bool
) -> None:
    """Notes that `task` takes the columns of `donor`, unless another task of its group has given some already."""
    bank, outputs = ("tokens" if target.token[task] else "sequence"), np.arange(target.sizes[task])
    columns = plan[bank][target.columns[task] + outputs]
    taken = np.where(columns < 0, source.columns[donor] + outputs, columns)
    plan[bank][target.columns[task] + outputs] = taken
    if bias:
        plan[f"{bank}_bias"][target.biases[task] + outputs] = source.biases[donor] + outputs


def _check_encoders(source: Network, target: Network) -> None:
    """Raises ConfigError where more than the heads differs."""
    for name in sorted({*source.shapes, *target.shapes} - {*HEADS}):
        if source.shapes.get(name) != target.shapes.get(name):
            raise ConfigError(
                f"the model to start from has another encoder: its {name!r} does not have the shapes asked for"
            )
