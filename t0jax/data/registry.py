"""Bringing the tasks a run names into seqio's registry."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

from t0jax.config import ConfigError


def import_tasks(modules: Sequence[str]) -> None:
    """Imports modules that register seqio tasks.

    Raises:
      ConfigError: there is no such module.
    """
    with _greeting_kept_back() if "tensorflow" not in sys.modules else contextlib.nullcontext():
        import tensorflow as tf
    with contextlib.suppress(RuntimeError):  # it has its devices already
        tf.config.set_visible_devices([], "GPU")  # TensorFlow would claim the memory JAX needs
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            missing = error.name
            if missing is None or not (module == missing or module.startswith(f"{missing}.")):
                raise
            raise ConfigError(
                f"data.modules names {module!r}, which cannot be imported; run from the folder it is in, or "
                "put that on PYTHONPATH"
            ) from None


@contextlib.contextmanager
def _greeting_kept_back() -> Iterator[None]:
    """Sends file descriptor 2 to nowhere: TensorFlow's libraries write there before any setting is read."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
