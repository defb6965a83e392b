"""Train a model: `python -m scripts.train --config configs/toy.yaml [--train.steps 100 ...]`."""

from collections.abc import Sequence

from t0jax import config


def main(argv: Sequence[str]) -> int:
    """Returns 0 after a finished run and after a preempted one that was saved."""
    settings, _ = config.parse(argv, __doc__ or "")
    # After parsing: a mistyped key is answered at once, and readers stay light.
    from t0jax import memory, train

    memory.keep_pages()
    train.run(settings)
    return 0


if __name__ == "__main__":
    config.run_script(main)
