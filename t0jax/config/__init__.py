"""The configuration of a run: frozen dataclasses, read from YAML with dotted overrides.

Every recipe in `configs/` is one YAML file with the sections below; every key can be overridden on the
command line (`--train.steps 100`). Unknown keys are refused with the nearest known one.
"""

import logging
import signal
import sys
from collections.abc import Callable, Sequence

from t0jax.config.checks import check
from t0jax.config.reading import (
    from_dict,
    known_keys,
    parse,
    read_yaml,
    refuse_unread,
    take_model,
)
from t0jax.config.sections import (
    COMPUTE_FIELDS,
    Config,
    ConfigError,
    Data,
    Evaluate,
    Head,
    HeadKind,
    Mesh,
    Model,
    Optimizer,
    Train,
    UserError,
    flatten,
    to_dict,
    with_compute,
)

__all__ = [
    "COMPUTE_FIELDS",
    "Config",
    "ConfigError",
    "Data",
    "Evaluate",
    "Head",
    "HeadKind",
    "Mesh",
    "Model",
    "Optimizer",
    "Train",
    "UserError",
    "check",
    "flatten",
    "from_dict",
    "known_keys",
    "parse",
    "read_yaml",
    "refuse_unread",
    "run_script",
    "take_model",
    "to_dict",
    "with_compute",
]


def run_script(main: Callable[[Sequence[str]], int]) -> None:
    """Ends the process with `main`'s exit status; what the user can mend, or Ctrl-C, is told in a line."""
    # Orbax logs a traceback a thread for what arrives here as one error.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    try:
        status = main(sys.argv[1:])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    sys.exit(status)
