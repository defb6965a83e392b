"""From what a device has to do to how long that takes: a step, and a recipe of many."""

from dataclasses import dataclass

from t0jax.plan.analytic import Work
from t0jax.plan.topology import Topology


@dataclass(frozen=True)
class Times:
    """Seconds of one step."""

    compute: float
    """Hardware FLOPs at the peak."""
    memory: float
    """Bytes read and written at the memory's bandwidth."""
    links: float
    """Bytes sent at the bandwidth of all links."""
    compiler: float = 0.0
    """The compiler's estimates of its own instructions, without collectives; 0 where it has none."""

    @property
    def roofline(self) -> float:
        """If all three went on at once and at their best."""
        return max(self.compute, self.memory, self.links)

    @property
    def predicted(self) -> float:
        """The compiler's estimate, or the roofline where that is more (collectives all hidden).

        Without an estimate the sum, as if nothing overlapped, which is nearer to what XLA reaches than the roofline:
        T5 xl on 144 A100, 512 + 114 tokens, has a published MFU of 36% (Rosetta T5X); the sum says 43%, the roofline
        99%.
        """
        return (
            max(self.roofline, self.compiler)
            if self.compiler
            else self.compute + self.memory + self.links
        )

    @property
    def bound(self) -> str:
        if not self.compiler:
            return "as if nothing overlapped"
        if self.compiler > self.roofline:
            return "by the compiler's estimate"
        return "bound by " + max(
            ("compute", "memory", "links"), key=lambda name: getattr(self, name)
        )


def times(
    topology: Topology, work: Work, memory_bytes: float, sent: float, cycles: float = 0.0
) -> Times | None:
    """Of one step; None for a device whose speed nobody states (a CPU)."""
    chip, count = topology.chip, topology.count
    if not chip.flops:
        return None
    return Times(
        work.hardware_flops / count / chip.flops,
        memory_bytes / chip.bandwidth,
        sent / chip.links,
        cycles / chip.clock if chip.clock else 0.0,
    )


def mfu(topology: Topology, work: Work, seconds: float) -> float:
    """Model FLOPs over what all devices could do in that time; recomputation does not count."""
    assert topology.chip.flops
    return work.model_flops / seconds / topology.chip.flops / topology.count


@dataclass(frozen=True)
class Recipe:
    """A whole run: its steps alone, without compiling, evaluating and saving."""

    hours: float
    chip_hours: float
    cost: float | None
    """In the currency of the price; None without one."""


def recipe(topology: Topology, steps: float, seconds: float, price: float | None) -> Recipe:
    """`steps` of `seconds` each; `price` is of a chip for an hour."""
    hours = steps * seconds / 3600
    chip_hours = hours * topology.count
    return Recipe(hours, chip_hours, None if price is None else chip_hours * price)
