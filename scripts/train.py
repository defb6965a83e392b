"""Train a model: `python -m scripts.train --config configs/toy.yaml [--train.steps 100 ...]`.

`--profile 10:15` traces steps 10 to 14.
"""

import dataclasses
from collections.abc import Sequence

from t0jax import config

OPTIONS = {
    "profile": {"type": str, "default": "", "metavar": "FIRST:END", "help": "[train.profile]"},
}


def main(argv: Sequence[str]) -> int:
    """Returns 0 after a finished run and after a preempted one that was saved."""
    settings, options = config.parse(argv, __doc__ or "", **OPTIONS)
    # After parsing: a mistyped key is answered at once, and readers stay light.
    from t0jax import memory, train

    memory.keep_pages()
    profile = options.profile or settings.train.profile
    settings = dataclasses.replace(
        settings, train=dataclasses.replace(settings.train, profile=profile)
    )
    train.run(settings)
    return 0


if __name__ == "__main__":
    config.run_script(main)
