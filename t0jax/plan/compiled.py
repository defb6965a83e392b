"""A program compiled ahead of time: what it takes of a device's memory and what it does there."""

import re
import time
from dataclasses import dataclass
from typing import Any

import jax

from t0jax.plan import hlo
from t0jax.plan.topology import PlanError


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    arguments: float
    """Parameters, optimizer state and batch (or parameters and batch)."""
    outputs: float
    """New state and report; of the state it takes the place of the old one."""
    shared: float
    """Of the outputs, what lies where arguments were."""
    temporary: float
    """Activations, gradients and gathered weights at their highest."""
    code: float = 0.0
    known: bool = True
    """False where the compiler refused and said no more than the sum."""
    needed: float = 0.0
    """That sum."""
    live: float = 0.0
    """The compiler's own peak of what is alive at once; 0 where it says none."""

    @property
    def total(self) -> float:
        """Sum of the parts; not all of them are alive at once, so that a device can do with less."""
        return self.arguments + self.outputs - self.shared + self.temporary + self.code

    @property
    def peak(self) -> float:
        """What a device needs: by the compiler's word where there is one, else the sum."""
        return (self.live or self.total) if self.known else self.needed


@dataclass(frozen=True)
class Compiled:
    """What a compiler said of one program."""

    seconds: float
    """Of compiling, by the clock."""
    cpu_seconds: float
    """The same, of all cores together."""
    memory: Memory
    traffic: hlo.Traffic | None
    """None where it did not fit."""


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_AMOUNT = r"([\d.]+)([KMGT]?)"


def compile_program(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles; a program that its compiler finds too large for the device gives the memory it would need.

    Raises:
        PlanError: the compiler refuses for another reason.
    """
    began, cpu = time.monotonic(), time.process_time()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_memory(str(error))
        if needed is None:
            raise PlanError(f"the compiler refuses: {str(error).splitlines()[0]}") from error
        memory, traffic = Memory(0, 0, 0, 0, 0, False, needed), None
    else:
        memory, traffic = _memory(compiled), hlo.traffic(compiled.as_text() or "")
    return Compiled(time.monotonic() - began, time.process_time() - cpu, memory, traffic)


def _memory(compiled: jax.stages.Compiled) -> Memory:
    stats: Any = compiled.memory_analysis()  # XLA's own; None on backends that count none
    return Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
        live=stats.peak_memory_in_bytes,
    )


def needed_memory(message: str) -> float | None:
    """Bytes that a program would need, from XLA's refusal; None of another error."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    used = re.search(rf"Used {_AMOUNT} of {_AMOUNT} hbm", message)
    total = re.search(rf"Total hbm usage >= {_AMOUNT}", message)
    plain = re.search(rf"required for [\w ]+ \({_AMOUNT}\)", message)
    sizes = [float(x[1]) * _UNITS[x[2]] for x in (used, total, plain) if x]
    return max(sizes) if sizes else None
