"""t0jax: prompted multitask training and scoring in JAX (T0, FLIPPED, tasksource)."""

__version__ = "0.5.0"
