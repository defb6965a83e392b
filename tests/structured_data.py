"""Declarations of structured records for tests, each a function of what differs from the usual."""

from t0jax.data.structured.records import Classification, MultipleChoice, TokenClassification


def Topic(**changes):
    """A classification of one text as news or sport."""
    usual = {"dataset": "topics", "sentence1": "text", "labels": ("news", "sport")}
    return Classification(**usual | changes)


def Choices(**changes):
    """A question with a list of options."""
    usual = {"dataset": "questions", "inputs": "text", "choices": "options", "label": "right"}
    return MultipleChoice(**usual | changes)


def Tags(**changes):
    """Words tagged N or V."""
    usual = {"dataset": "tagged", "tokens": "tokens", "tags": "tags", "labels": ("N", "V")}
    return TokenClassification(**usual | changes)
