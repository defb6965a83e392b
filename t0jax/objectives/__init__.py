"""What is being learned: losses on logits, and the objectives made of them.

An objective is a module with two functions, which the training step calls whatever the architecture:

- `objective(config, network, step)`: the loss of this configuration, as it is at this step (from 0, may be traced);
- `report(sums)`: what a step tells, made of the sums over its micro-batches; has `accuracy` and `examples`.
"""

from collections.abc import Callable, Mapping
from types import ModuleType

import jax

from t0jax.models import Network, Params

Sums = dict[str, jax.Array]
"""float32 scalars that add up over micro-batches; `normalizer` is what loss and gradients are divided by."""

Objective = Callable[[Params, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, Sums]]
"""(params, micro-batch, dropout key) -> (summed loss, sums)."""


def of(network: Network) -> ModuleType:
    """The objective that an architecture learns."""
    from t0jax.objectives import multitask, text_to_text  # which import this module

    return {"t5": text_to_text, "deberta": multitask}[network.config.architecture]
