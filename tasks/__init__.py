"""Task modules: each registers seqio tasks and mixtures when it is imported."""
