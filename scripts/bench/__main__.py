"""`python -m scripts.bench NAME [options]`: data, structured, train, step, evaluate, flipped, generate, convert,
checkpoint or multitask.

`--help` after the name lists its own options.
"""

import importlib
import sys

BENCHES = (
    *("data", "train", "step", "evaluate", "flipped", "generate", "convert", "checkpoint"),
    *("structured", "multitask"),
)


def main(argv: list[str]) -> int:
    """Runs the benchmark named first with the other arguments; returns the exit code."""
    if not argv or argv[0] not in BENCHES:
        print(__doc__, file=sys.stderr)
        return 2
    importlib.import_module(f"scripts.bench.{argv[0]}").main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
