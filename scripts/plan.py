"""Memory, time and cost before a chip is rented: `python -m scripts.plan --config R.yaml --topology v5p:4x4x4`.

TPU topologies are compiled for, by the real compiler and without a TPU (`pip install -e '.[plan]'`); GPUs (`h100:8`)
are planned by arithmetic alone; `cpu:8` compiles for this machine. All keys of the configuration can be set too,
e.g. `--mesh.fsdp 64 --train.grad_accumulation 2`; `--search` finds those that fit and are fastest.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from t0jax import config
from t0jax.config import ConfigError

OPTIONS: dict[str, dict[str, Any]] = {
    "topology": {"type": str, "default": "", "help": "v5p:4x4x4, v4:8x8x8, v5e:4x4, h100:8, cpu:8"},
    "job": {"choices": ["train", "evaluate"], "default": "train", "help": "a step, or scoring"},
    "price": {"type": float, "default": None, "help": "of one chip for an hour"},
    "search": {"action": "store_true", "help": "rank meshes x remat x grad_accumulation that fit"},
    "wanted": {"type": int, "default": 3, "help": "how many that fit --search looks for"},
    "limit": {"type": int, "default": 6, "help": "how many settings --search may compile"},
}

NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""What libtpu would ask a TPU machine's metadata server, and complain of on other machines."""


def main(argv: Sequence[str]) -> int:
    """Prints the plan, or with `--search` the fastest ones; 1 where it (or the first of them) does not fit."""
    settings, options = config.parse(argv, __doc__ or "", **OPTIONS)
    _check(options)
    # Before JAX starts: a plan computes nothing, so it leaves a GPU or TPU of this machine alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    for variable, value in NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    kind, _, count = options.topology.partition(":")
    if kind == "cpu" and count.isdigit():
        os.environ["JAX_NUM_CPU_DEVICES"] = count
    from t0jax import plan
    from t0jax.metrics import note

    common = {"job": options.job, "price": options.price, "say": note}
    if not options.search:
        made = plan.make_plan(settings, options.topology, **common)
        print(plan.table(made))
        return 0 if made.fits else 1
    found = plan.find_settings(
        settings, options.topology, wanted=options.wanted, limit=options.limit, **common
    )
    print(f"{plan.ranking(found)}\n\n1.\n{plan.table(found[0])}")
    return 0 if found[0].fits else 1


def _check(options: argparse.Namespace) -> None:
    if not options.topology:
        raise ConfigError("no topology: give --topology NAME, e.g. v5p:4x4x4, v5e:4x4 or h100:8")
    for name, least in (("wanted", 1), ("limit", 1), ("price", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value} is too small; give {least} or more")


if __name__ == "__main__":
    config.run_script(main)
