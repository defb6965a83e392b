"""Structured tasks: declared records of labelled texts, which a multitask encoder reads and heads answer."""
