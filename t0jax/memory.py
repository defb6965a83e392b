"""Memory of a process that computes on CPUs: what a step gives back is kept for the next one."""

import ctypes
import importlib.metadata
import importlib.util
import platform
from typing import Any

import jax

MALLOPT = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}
"""Parameters of mallopt(3) with their numbers in glibc's malloc.h: never trim, never map, one heap."""


def keep_pages() -> bool:
    """Has malloc keep freed memory, where JAX has CPUs alone; whether it does.

    XLA's CPU backend takes a program's temporary memory from malloc at every call and frees it after. From 32 MB on
    glibc makes that a mapping of its own, which the kernel fills with zeros page by page: a quarter of the time of a
    small model's training step. One heap that is never given back serves all steps with the same pages. The process
    then stays as large as it was at its largest, and larger than with mappings where the heap has gaps (3.2 GB became
    5.2 in a step of T5 v1.1 small with 2.2 GB of temporaries); hosts of accelerators are left alone.

    For programs, before they touch JAX's devices: threads that have a heap of their own by then go on with it.
    """
    if platform.libc_ver()[0] != "glibc" or not _cpu_alone():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    taken = [mallopt(number, value) for number, value in MALLOPT.values()]
    return all(taken)


def _cpu_alone() -> bool:
    """Whether JAX will find no accelerator; asking for its devices would be too late for malloc."""
    settings: Any = jax.config  # whose options are declared at run time
    if settings.jax_platforms:
        return settings.jax_platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    modules = map(importlib.util.find_spec, ("jax_plugins", "libtpu"))
    return not plugins and not any(modules)
