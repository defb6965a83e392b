"""The few rows of a data set that a run is cut down to."""

import functools
import hashlib
import logging

import numpy as np

from t0jax.data.mixing import shuffled

log = logging.getLogger("t0jax")


# A data set's tasks share one tuple, in memory and on the way to reader processes.
@functools.lru_cache(maxsize=4096)
def draw_shots(dataset: str, size: int, shots: int, seed: int) -> tuple[int, ...]:
    """Numbers of `shots` of a data set's `size` rows, in order; none, which means all, for 0 or as many as there are.

    A function of its arguments: all prompts of a data set get the same rows. Fewer shots are some of more.
    """
    if shots > size:
        log.warning(
            "%s has %d rows, fewer than data.num_shots %d: all are read", dataset, size, shots
        )
    if not 0 < shots < size:
        return ()
    key = hashlib.blake2b(f"{seed}:{dataset}:shots".encode(), digest_size=8).digest()
    lengths, keys = np.full((2, shots), [[size], [int.from_bytes(key, "little")]], np.uint64)
    return tuple(sorted(shuffled(np.arange(shots), lengths, keys).tolist()))
