"""TensorFlow, imported without its greeting: importing this module imports it.

Every room of t0jax that needs TensorFlow or seqio imports this first. A module of tasks that is imported by itself, and
not by a script or after such a room, may still bring the greeting.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_GREETING = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|I\d{4} |To enable the following instructions:"
    rb"|[EW]\d{4} .*(failed call to cuInit|Unable to register cu|[Cc]omputation placer already registered)"
)
"""Lines that say how TensorFlow was built and that it has no GPU here, which it is not to have."""


@contextlib.contextmanager
def greeting_kept_back() -> Iterator[None]:
    """Holds what is written to file descriptor 2 and writes it at the end, TensorFlow's greeting left out.

    Its libraries write there before any setting is read. After an exception nothing is left out.
    """
    sys.stderr.flush()
    failed, kept = True, os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            told = [line for line in held if failed or not _GREETING.match(line)]
            if told:
                os.write(2, b"".join(told))


if os.environ.get("TF_CPP_MIN_LOG_LEVEL") in (None, "1"):  # JAX, if it came first, has set 1
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # of its first operation it would tell more
with greeting_kept_back():
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # it has its devices already
        tf.config.set_visible_devices([], "GPU")  # TensorFlow would claim the memory JAX needs
