"""Benchmarks of the project, each in a process of its own: `python -m scripts.bench data|train|evaluate`."""
