"""What a compiled program does, read from its HLO text: collectives, memory traffic, estimated cycles.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it runs: loops'
trip counts come from XLA where it says them (`known_trip_count`) and else from the loop's counter.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

_BYTES = {"pred": 1.0, "s4": 0.5, "u4": 0.5, "token": 0.0, "opaque": 0.0, "c64": 8.0, "c128": 16.0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"),
    *("after-all", "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done"),
}  # fmt: skip
"""Instructions that move no bytes of their own."""


@dataclass(frozen=True)
class Instruction:
    """One line: `%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    argument: str
    """What stands between the opcode's brackets."""
    attributes: str


@dataclass
class Computation:
    name: str
    root: str = ""
    instructions: dict[str, Instruction] = field(default_factory=dict)


@dataclass(frozen=True)
class Collective:
    """One collective instruction of a program."""

    kind: str
    bytes: float
    """That one device sends each time, by the ring algorithm."""
    group: int
    """Devices that take part."""
    times: float
    """How often a step runs it."""


@dataclass
class Traffic:
    """Of one device and one run of a program."""

    collectives: list[Collective] = field(default_factory=list)
    memory_bytes: float = 0.0
    """Read from and written to the main memory by instructions that are not fused into others."""
    cycles: float = 0.0
    """The compiler's own estimate, without collectives; 0 where it writes none."""
    unknown_loops: int = 0
    """Loops whose trip count could not be read; counted once."""

    def sent(self) -> dict[str, float]:
        """Bytes that one device sends in a step, by kind."""
        total: dict[str, float] = defaultdict(float)
        for one in self.collectives:
            total[one.kind] += one.bytes * one.times
        return dict(total)


def array_bytes(shape: str) -> float:
    """Bytes of a shape in main memory; of a tuple's arrays together. Arrays in a TPU's VMEM, `S(1)`, have none."""
    return sum(_elements_bytes(*found) for found in _ARRAY.findall(shape))


def _elements_bytes(dtype: str, sizes: str, layout: str) -> float:
    if re.search(r"S\([1-9]", layout):
        return 0.0
    return _count(sizes) * item_bytes(dtype)


def _count(sizes: str) -> float:
    count = 1.0
    for size in filter(None, sizes.replace("<=", "").split(",")):
        count *= int(size)
    return count


def item_bytes(dtype: str) -> float:
    """Bytes of one number: `bf16` 2, `f8e4m3fn` 1, `pred` 1."""
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 0.0


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """(computations by name, the entry's name) of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[2], Computation(header[2]))
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _LINE.match(line)):
            instruction = _read(found[2], found[3])
            current.instructions[found[2]] = instruction
            if found[1]:
                current.root = found[2]
    return computations, entry


def _read(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    argument = rest[start + 1 : stop]
    operands = tuple(re.findall(r"%([\w.\-]+)", argument))
    return Instruction(name, shape, rest[:start], operands, argument, rest[stop + 1 :])


def _closing(text: str, start: int) -> int:
    """The bracket that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")


def traffic(text: str) -> Traffic:
    """Walks a program from its entry, each computation as often as it runs."""
    computations, entry = parse(text)
    devices = re.search(r"num_partitions=(\d+)", text)
    return _Walk(computations, int(devices[1]) if devices else 1).run(entry)


class _Walk:
    def __init__(self, computations: dict[str, Computation], partitions: int):
        self.computations, self.partitions = computations, partitions
        self.found = Traffic()
        self.fused: dict[tuple[str, str], Collective] = {}

    def run(self, entry: str) -> Traffic:
        self.visit(entry, 1.0, "")
        self.found.collectives += self.fused.values()
        return self.found

    def visit(self, name: str, times: float, fusion: str) -> None:
        """`fusion` is the fused computation that this one is or is called by."""
        computation = self.computations[name]
        for one in computation.instructions.values():
            kind = one.opcode.removesuffix("-start")
            if kind in KINDS:
                self.collect(computation, one, kind, times, fusion)
            if not fusion:
                self.count(computation, one, times)
            self.descend(computation, one, times, fusion)

    def descend(
        self, computation: Computation, one: Instruction, times: float, fusion: str
    ) -> None:
        if one.opcode == "while":
            body = _named(one, "body")
            trips = self.trips(computation, one)
            self.visit(body, times * trips, fusion)
        elif one.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
            names = re.findall(r"%([\w.\-]+)", branches[1]) if branches else []
            for name in names or [
                _named(one, "true_computation"),
                _named(one, "false_computation"),
            ]:
                self.visit(name, times, fusion)
        elif one.opcode == "call":
            self.visit(_named(one, "to_apply"), times, fusion)
        elif one.opcode in ("fusion", "async-start") and (called := _named(one, "calls")):
            self.visit(called, times, fusion or (called if one.opcode == "fusion" else ""))

    def trips(self, computation: Computation, loop: Instruction) -> float:
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return float(known[1])
        counted = _count_trips(
            self.computations[_named(loop, "condition")],
            self.computations[_named(loop, "body")],
            computation,
            loop,
        )
        if counted is None:
            self.found.unknown_loops += 1
        return 1.0 if counted is None else counted

    def collect(
        self, computation: Computation, one: Instruction, kind: str, times: float, fusion: str
    ) -> None:
        # A TPU's reduce-scatter is written as a fusion of an all-reduce and the slice that is kept.
        kind = "reduce-scatter" if "all-reduce-scatter" in fusion else kind
        group = _group_size(one.attributes, self.partitions)
        size = sum(_sent_shape(computation, name) for name in one.operands)
        found = Collective(kind, size * _ring(kind, group), group, times)
        channel = re.search(r"channel_id=(\d+)", one.attributes)
        if fusion and channel:
            # An asynchronous one is there in each fusion that it runs beside, loops within its own among them: it
            # starts as often as the one that runs least.
            known = self.fused.get((channel[1], kind))
            if known is None or known.times > times:
                self.fused[channel[1], kind] = found
        else:
            self.found.collectives.append(found)

    def count(self, computation: Computation, one: Instruction, times: float) -> None:
        cycles = re.search(r'estimated_cycles":"(\d+)"', one.attributes)
        self.found.cycles += times * int(cycles[1]) if cycles else 0.0
        if one.opcode not in _FREE and not one.opcode.endswith("-done"):
            self.found.memory_bytes += times * self.moved(computation, one)

    def moved(self, computation: Computation, one: Instruction) -> float:
        """Bytes that an instruction reads and writes; of an array it only slices, the slice."""
        fused = self.computations.get(_named(one, "calls")) if one.opcode == "fusion" else None
        shapes = [
            computation.instructions[name].shape
            for name in one.operands
            if name in computation.instructions
        ]
        if fused is not None:
            return _fusion_bytes(fused, one, shapes)
        return _plain_bytes(one, shapes)


def _plain_bytes(one: Instruction, shapes: list[str]) -> float:
    written = array_bytes(one.shape)
    if one.opcode in ("copy-start", "slice-start"):
        first = _ARRAY.search(one.shape)
        written = array_bytes(first[0]) if first else 0.0
        return written + (array_bytes(shapes[0]) if one.opcode == "copy-start" else written)
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if one.opcode == "dynamic-update-slice":
        return 2 * array_bytes(shapes[1])
    return written + sum(map(array_bytes, shapes))


def _fusion_bytes(fused: Computation, one: Instruction, shapes: list[str]) -> float:
    users: dict[str, list[Instruction]] = defaultdict(list)
    for inner in fused.instructions.values():
        for name in inner.operands:
            users[name].append(inner)
    total = 0.0
    for inner in fused.instructions.values():
        if inner.opcode == "parameter" and int(inner.argument) < len(shapes):
            total += _read_bytes(users[inner.name], inner.name, shapes[int(inner.argument)])
    root = fused.instructions.get(fused.root)
    if root is not None and root.opcode == "dynamic-update-slice":
        update = fused.instructions.get(root.operands[1])
        return total + (array_bytes(update.shape) if update else 0.0)
    return total + array_bytes(one.shape)


def _read_bytes(users: list[Instruction], name: str, shape: str) -> float:
    whole = array_bytes(shape)
    if not whole:
        return 0.0
    read = 0.0
    for user in users:
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            read += array_bytes(user.shape)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            return whole
    return min(read, whole)


def _named(one: Instruction, attribute: str) -> str:
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", one.attributes)
    return found[1] if found else ""


def _sent_shape(computation: Computation, name: str) -> float:
    """Bytes of an operand, wherever it lies."""
    if name not in computation.instructions:
        return 0.0
    shape = computation.instructions[name].shape
    return sum(_count(sizes) * item_bytes(dtype) for dtype, sizes, _ in _ARRAY.findall(shape))


def _ring(kind: str, group: int) -> float:
    """Bytes that a device sends, over those of its operand."""
    others = group - 1
    return {
        "all-gather": others,
        "all-reduce": 2 * others / group,
        "reduce-scatter": others / group,
        "all-to-all": others / group,
        "collective-permute": 1.0,
    }[kind]


def _group_size(attributes: str, partitions: int) -> int:
    """Devices that take part together, by any of the three ways that HLO writes groups."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=", attributes):
        return int(counted[1].split(",")[-1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        group = 1
        for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2]):
            group *= int(part or sizes[axis])
        return group
    return partitions


def _count_trips(
    condition: Computation, body: Computation, outside: Computation, loop: Instruction
) -> float | None:
    """Of a loop that counts up to a constant: (limit - start) / step, rounded up; None for another loop."""
    compare = condition.instructions.get(condition.root)
    if compare is None or compare.opcode != "compare":
        return None
    sides = [condition.instructions[name] for name in compare.operands]
    element = next((x for x in sides if x.opcode == "get-tuple-element"), None)
    limit = next((value for x in sides if (value := _constant(x)) is not None), None)
    direction = re.search(r"direction=(\w+)", compare.attributes)
    if element is None or limit is None or not direction or direction[1] not in ("LT", "GT", "NE"):
        return None
    index = int(_attribute(element, "index"))
    return -(-(limit - _start(outside, loop, index)) // _stride(body, index))


def _attribute(one: Instruction, name: str) -> str:
    found = re.search(rf"\b{name}=(-?\d+)", one.attributes)
    return found[1] if found else "0"


def _constant(one: Instruction) -> int | None:
    return (
        int(one.argument)
        if one.opcode == "constant" and re.fullmatch(r"-?\d+", one.argument)
        else None
    )


def _start(outside: Computation, loop: Instruction, index: int) -> int:
    """What the counter is before the loop; 0 where it comes from further away."""
    state = outside.instructions.get(loop.operands[0])
    name = state.operands[index] if state is not None and state.opcode == "tuple" else ""
    one = outside.instructions.get(name)
    while one is not None and one.opcode in ("copy", "bitcast", "convert"):
        one = outside.instructions.get(one.operands[0])
    return (_constant(one) or 0) if one is not None else 0


def _stride(body: Computation, index: int) -> int:
    """What each turn adds to the counter; 1 where that is not written as a sum with a constant."""
    root = body.instructions[body.root]
    if root.opcode != "tuple":
        return 1
    one = body.instructions.get(root.operands[index])
    while one is not None and one.opcode in ("copy", "bitcast"):
        one = body.instructions.get(one.operands[0])
    if one is None or one.opcode != "add":
        return 1
    steps = [
        _constant(body.instructions[name]) for name in one.operands if name in body.instructions
    ]
    return max(1, next((step for step in steps if step), 1))
