"""The layout in which tasknet publishes its multitask models: every task's embedding and classifier beside one model.

`Z.weight` [tasks, width] (or `Z`), `classifiers.N.weight` [outputs, width] and `classifiers.N.bias` [outputs], beside a
stock model's tensors or in a folder of their own, the adapters. `config.json` names the tasks; what it says of sizes
was written in several ways and is not read: tensors have shapes. Kinds and groups of heads are said by files written
here alone. Elsewhere a kind is that which the caller knows of the task, else it is guessed from the number of outputs,
and heads share weights where these are equal byte for byte. The stock model's classifier, which need be no task's,
stays what the model is without a task: where it is not the head that `main_task` takes, it is one more, named `MAIN`.
"""

import dataclasses
import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t0jax import config as cfg
from t0jax import models
from t0jax.config.heads import head_group
from t0jax.convert.entries import Entry
from t0jax.convert.files import ConvertError, Source, Tensor, open_tensors, read_json
from t0jax.convert.main_head import MAIN, main_task
from t0jax.models import heads as head_banks

log = logging.getLogger("t0jax")

HEAD_TENSOR = re.compile(r"Z|Z\.weight|classifiers\.(\d+)\.(?:weight|bias)")
TASK_EMBEDDING = "Z.weight"
FOLDED = "folded_task_embedding"
"""Key of `config.json`: the task whose embedding is part of [CLS]'s."""
CLASSIFIER = ("classifier.weight", "classifier.bias")
"""The main task's head, as a stock model has it."""


@dataclasses.dataclass(frozen=True)
class Bank:
    """The heads that files hold."""

    heads: tuple[cfg.Head, ...]
    task_embedding: bool


def head_table(network: models.Network) -> list[Entry]:
    """Where the task embedding and every head live."""
    shapes, heads = network.shapes, network.config.heads
    table = []
    if "task_embedding" in shapes:
        shape = shapes["task_embedding"].shape
        table.append(Entry(("task_embedding",), shape, (TASK_EMBEDDING,)))
    places = head_banks.layout(heads)
    for bank, members in (("sequence", ~places.token), ("tokens", places.token)):
        tasks = [int(task) for task in np.flatnonzero(members)]
        for key, part, firsts in (
            (bank, "weight", places.columns),
            (f"{bank}_bias", "bias", places.biases),
        ):
            if tasks:
                shape = shapes["heads"][key].shape
                names = tuple(f"classifiers.{task}.{part}" for task in tasks)
                spans = tuple((int(firsts[t]), int(firsts[t] + places.sizes[t])) for t in tasks)
                kernel = part == "weight"
                entry = Entry(("heads", key), shape, names, transposed=kernel, spans=spans)
                table.append(entry)
    return table


def describe(heads: Sequence[cfg.Head]) -> dict[str, Any]:
    """What `config.json` says of all heads."""
    return {
        "tasks": [head.task for head in heads],
        "classifiers_size": [head.columns for head in heads],
        "labels_list": [list(head.labels) or None for head in heads],
        "kinds": [head.kind for head in heads],
        "groups": [head.group for head in heads],
    }


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def find_tensors(source: Source) -> dict[str, Tensor]:
    """The tensors of all heads, from the directory or the adapters; none of another layout.

    Raises:
        ConvertError: the adapters hold none or something else, or the directory cannot be their backbone.
    """
    own = {n: t for n, t in source.tensors.items() if HEAD_TENSOR.fullmatch(n)}
    if source.adapters is not None:
        if own:
            raise ConvertError(
                f"{source.path} has heads of its own ({min(own)}); give it without adapters"
            )
        if FOLDED in source.config:
            raise ConvertError(
                f"{source.path} is task {source.config[FOLDED]!r} alone, whose embedding is part of [CLS]'s there; "
                "adapters need the model that was exported with them"
            )
        own = open_tensors(source.adapters, source.allow_pickle)
        strange = sorted(name for name in own if not HEAD_TENSOR.fullmatch(name))
        if strange or not own:
            raise ConvertError(
                f"{source.adapters} holds {strange[0] if strange else 'nothing'}; adapters are Z.weight and "
                "classifiers.N.weight and .bias alone"
            )
    return {TASK_EMBEDDING if name == "Z" else name: tensor for name, tensor in own.items()}


def read_heads(source: Source) -> Bank | None:
    """The heads that files in the published layout hold, by the numbers of their tasks; None of another layout.

    Raises:
        ConvertError: tasks without a name or a tensor, shapes that do not fit together, unknown kinds, groups whose
            weights differ.
    """
    tensors, where = find_tensors(source), source.adapters or source.path
    if not tensors:
        return None
    about = source.config
    if source.adapters is not None:
        about = {**about, **read_json(source.adapters / "config.json")}
    tasks = _names(about, tensors, where)
    sizes = [_outputs(tensors, task, where) for task in range(len(tasks))]
    if TASK_EMBEDDING in tensors and tensors[TASK_EMBEDDING].shape[:1] != (len(tasks),):
        raise ConvertError(
            f"{where}: Z has shape {tensors[TASK_EMBEDDING].shape}, but there are {len(tasks)} classifiers"
        )
    digests = [_digest(tensors[f"classifiers.{task}.weight"]) for task in range(len(tasks))]
    kinds = _said_kinds(about, tasks, sizes, where) or _guess_kinds(
        tasks, sizes, digests, source.known, where
    )
    marks = [
        ("token:" if kind == "token_classification" else "") + digest
        for kind, digest in zip(kinds, digests, strict=True)
    ]
    labels = _labels(about, tasks, kinds, sizes, source.known)
    _name_main(labels, marks, source)
    groups = _said_groups(about, tasks, marks, where) or _found_groups(tasks, kinds, labels, marks)
    heads = [
        cfg.Head(task, kind, _full(kind, names, size), group)
        for task, kind, names, size, group in zip(tasks, kinds, labels, sizes, groups, strict=True)
    ]
    return Bank(tuple(heads), TASK_EMBEDDING in tensors)


def with_main(
    source: Source, heads: tuple[cfg.Head, ...], stock: Callable[[], Sequence[cfg.Head]]
) -> tuple[cfg.Head, ...]:
    """`heads`, and one more named `MAIN` where the directory's own classifier is not that of their main task.

    Args:
        source: the directory.
        heads: those of the published layout.
        stock: gives the head that its `config.json` describes, if any.
    """
    own = own_classifier(source)
    if not own:
        return heads
    wanted, found = [_digest(tensor) for tensor in own], find_tensors(source)

    def same(task: int, part: int) -> bool:
        return _digest(found[f"classifiers.{task}.{('weight', 'bias')[part]}"]) == wanted[part]

    first = main_task(heads)
    if same(first, 0) and same(first, 1):
        return heads
    described = stock()
    if not described:
        log.warning("%s: its own classifier is of no known kind and left out", source.path)
        return heads
    head = _of_size(described[0], own[0].shape[0])
    bank = _is_token(head)
    alike = [k for k, other in enumerate(heads) if _is_token(other) == bank and same(k, 0)]
    return _joined(heads, head, alike)


def _is_token(head: cfg.Head) -> bool:
    return head.kind == "token_classification"


def own_classifier(source: Source) -> tuple[Tensor, ...]:
    """Weight and bias of the directory's own classifier; nothing where it has none."""
    if not all(name in source.tensors for name in CLASSIFIER):
        return ()
    weight, bias = (source.tensors[name] for name in CLASSIFIER)
    return (weight, bias) if len(weight.shape) == 2 and bias.shape == weight.shape[:1] else ()


def add_classifier(
    heads: Mapping[str, Tensor], classifier: Sequence[Tensor], number: int
) -> dict[str, Tensor]:
    """The tensors of all heads with those of one more task, whose embedding is zero."""
    added = dict(heads)
    for part, tensor in zip(("weight", "bias"), classifier, strict=True):
        added[f"classifiers.{number}.{part}"] = tensor
    if TASK_EMBEDDING in heads:
        added[TASK_EMBEDDING] = _with_zeros(heads[TASK_EMBEDDING])
    return added


def _with_zeros(tensor: Tensor) -> Tensor:
    """One row more."""
    count, *others = tensor.shape

    def read(rows: slice) -> np.ndarray:
        found = tensor.read(slice(min(rows.start, count), min(rows.stop, count)))
        zeros = np.zeros((rows.stop - rows.start - len(found), *others), found.dtype)
        return np.concatenate([found, zeros])

    return Tensor((count + 1, *others), tensor.itemsize, read)


def _of_size(head: cfg.Head, outputs: int) -> cfg.Head:
    """What `config.json` says of a classifier as far as its tensors are so."""
    if head.columns == outputs:
        return head
    kind = head.kind if head.labels else "classification"
    return dataclasses.replace(head, kind=kind, labels=unnamed(outputs))


def _joined(
    heads: tuple[cfg.Head, ...], head: cfg.Head, alike: Sequence[int]
) -> tuple[cfg.Head, ...]:
    """`heads` and `head` as `MAIN`, which shares the weights of `alike`."""
    several, group = list(heads), ""
    if alike:
        group = heads[alike[0]].group or f"shared with {heads[alike[0]].task}"
        several[alike[0]] = dataclasses.replace(heads[alike[0]], group=group)
    names = {head.task for head in heads}
    for number, other in enumerate(several):  # an earlier import's, whose file was trained further
        if other.task == MAIN:
            several[number] = dataclasses.replace(other, task=_free(MAIN, names))
    return (*several, dataclasses.replace(head, task=MAIN, group=group))


def unnamed(count: int) -> tuple[str, ...]:
    """transformers' names of labels that have none."""
    return tuple(f"LABEL_{number}" for number in range(count))


def group_of(kind: cfg.HeadKind, labels: tuple[str, ...]) -> str:
    """`config.heads.head_group` of labels that may have no names."""
    return head_group(kind, () if labels == unnamed(len(labels)) else labels)


def names_by_number(id2label: Any) -> tuple[str, ...]:
    """The labels of a `config.json` in the order of their numbers; none when they are not numbered from 0."""
    if not isinstance(id2label, Mapping):
        return ()
    by_number = {str(number): str(name) for number, name in id2label.items()}
    numbers = [str(number) for number in range(len(by_number))]
    return tuple(by_number[n] for n in numbers) if set(numbers) == set(by_number) else ()


def _names(about: Mapping[str, Any], tensors: Mapping[str, Tensor], where: Path) -> list[str]:
    """The tasks' names; one that was named before gets a number."""
    found = filter(None, map(HEAD_TENSOR.fullmatch, tensors))
    count = len({match[1] for match in found if match[1] is not None})
    tasks = about.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
        raise ConvertError(
            f"{where}: config.json names no tasks; heads are known by its list `tasks`"
        )
    if len(tasks) != count:
        raise ConvertError(f"{where}: config.json names {len(tasks)} tasks for {count} classifiers")
    names: list[str] = []
    for task in tasks:
        names.append(_free(task, {*names, *tasks}) if task in names else task)
    return names


def _free(task: str, taken: Collection[str]) -> str:
    """A name for one more task of this name."""
    return next(name for n in itertools.count(2) if (name := f"{task}#{n}") not in taken)


def _outputs(tensors: Mapping[str, Tensor], task: int, where: Path) -> int:
    """Of a task's classifier, by its tensors."""
    for part in ("weight", "bias"):
        if f"classifiers.{task}.{part}" not in tensors:
            raise ConvertError(f"{where}: there is no tensor classifiers.{task}.{part}")
    weight, bias = (tensors[f"classifiers.{task}.{part}"].shape for part in ("weight", "bias"))
    if len(weight) != 2 or not weight[0] or bias != weight[:1]:
        raise ConvertError(
            f"{where}: classifiers.{task}.weight has shape {weight}, its bias {bias}; they are [outputs, width] and "
            "[outputs]"
        )
    return weight[0]


def _said_kinds(
    about: Mapping[str, Any], tasks: Sequence[str], sizes: Sequence[int], where: Path
) -> list[cfg.HeadKind] | None:
    said = about.get("kinds")
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != len(tasks):
        raise ConvertError(f"{where}: config.json's `kinds` is no list of {len(tasks)}, one a task")
    for task, kind, size in zip(tasks, said, sizes, strict=True):
        if kind not in head_banks.KINDS or not _fits(kind, size):
            raise ConvertError(
                f"{where}: config.json says task {task!r} is {kind!r}, which a head of {size} outputs is not; kinds "
                f"are {', '.join(head_banks.KINDS)}"
            )
    return said


def _fits(kind: cfg.HeadKind, outputs: int) -> bool:
    return outputs == 1 or kind not in ("regression", "multiple_choice")


def _guess_kinds(
    tasks: Sequence[str],
    sizes: Sequence[int],
    digests: Sequence[str],
    known: Mapping[str, cfg.Head],
    where: Path,
) -> list[cfg.HeadKind]:
    """What the caller knows, else by outputs; of those with one multiple choices share weights, regressions do not."""
    kinds: list[cfg.HeadKind] = []
    guessed: dict[str, list[str]] = {}
    for task, size, digest in zip(tasks, sizes, digests, strict=True):
        if task in known and _fits(known[task].kind, size):
            kinds.append(known[task].kind)
            continue
        one = "multiple_choice" if digests.count(digest) > 1 else "regression"
        kinds.append(one if size == 1 else "classification")
        guessed.setdefault(kinds[-1], []).append(task)
    if guessed:
        log.warning(
            "%s does not say the kinds of its tasks; guessed from their outputs: %s. Name the modules that declare "
            "the tasks, tasks.tasksource say: scripts.convert --modules, scripts.classify and .evaluate --module",
            where,
            "; ".join(f"{kind}: {', '.join(names)}" for kind, names in guessed.items()),
        )
    return kinds


def _digest(tensor: Tensor) -> str:
    found = hashlib.sha256(repr(tensor.shape).encode())
    for _, rows in tensor.blocks(0, tensor.shape[0]):
        found.update(np.ascontiguousarray(rows, np.float32).data)
    return found.hexdigest()


def _labels(
    about: Mapping[str, Any],
    tasks: Sequence[str],
    kinds: Sequence[cfg.HeadKind],
    sizes: Sequence[int],
    known: Mapping[str, cfg.Head],
) -> list[tuple[str, ...]]:
    """Of each task its label names: the file's, else those the caller knows; none where nobody says."""
    listed = about.get("labels_list")
    if not isinstance(listed, list) or len(listed) != len(tasks):
        listed = [None] * len(tasks)
    labels = []
    for task, kind, size, names in zip(tasks, kinds, sizes, listed, strict=True):
        told = tuple(map(str, names)) if isinstance(names, list) else ()
        if not told and task in known:
            told = known[task].labels
        if kind in ("regression", "multiple_choice"):
            told = ()
        elif told and len(told) != size:
            log.warning("task %s has %d outputs, not the %d labels told", task, size, len(told))
            told = ()
        labels.append(told)
    return labels


def _name_main(labels: list[tuple[str, ...]], marks: Sequence[str], source: Source) -> None:
    """Gives `id2label`, the main classifier's, to the tasks without names that share its weights."""
    names = names_by_number(source.config.get("id2label"))
    main = source.tensors.get("classifier.weight")
    if main is None or len(names) < 2 or names == unnamed(len(names)):
        return
    if main.shape[:1] == (len(names),):
        mark = _digest(main)
        for task, own in enumerate(marks):
            labels[task] = names if own == mark and not labels[task] else labels[task]


def _said_groups(
    about: Mapping[str, Any], tasks: Sequence[str], marks: Sequence[str], where: Path
) -> list[str] | None:
    said = about.get("groups")
    if said is None:
        return None
    texts = isinstance(said, list) and all(isinstance(group, str) for group in said)
    if not texts or len(said) != len(tasks):
        raise ConvertError(
            f"{where}: config.json's `groups` is no list of {len(tasks)} names, one a task"
        )
    firsts: dict[str, int] = {}
    for task, group in enumerate(said):
        first = firsts.setdefault(group, task) if group else task
        if marks[first] != marks[task]:
            raise ConvertError(
                f"{where}: config.json says tasks {tasks[first]!r} and {tasks[task]!r} share weights (group "
                f"{group!r}), but theirs differ"
            )
    return said


def _found_groups(
    tasks: Sequence[str],
    kinds: Sequence[cfg.HeadKind],
    labels: Sequence[tuple[str, ...]],
    marks: Sequence[str],
) -> list[str]:
    """Groups of the heads with equal weights, named as new heads of such labels are where that is free."""
    members: dict[str, list[int]] = {}
    for task, mark in enumerate(marks):
        members.setdefault(mark, []).append(task)
    groups, taken = [""] * len(tasks), set()
    for alike in members.values():
        if len(alike) == 1:
            continue
        names = {group_of(kinds[task], labels[task]) for task in alike}
        name = names.pop() if len(names) == 1 else ""
        if not name or name in taken:
            name = f"shared with {tasks[alike[0]]}"
        taken.add(name)
        for task in alike:
            groups[task] = name
    return groups


def _full(kind: cfg.HeadKind, labels: tuple[str, ...], size: int) -> tuple[str, ...]:
    return labels if labels or kind in ("regression", "multiple_choice") else unnamed(size)
