"""Structured records as text-to-text tasks of seqio: T0 and FLIPPED train on and score what heads are trained on.

add_instruct_tasks(sst2)        # glue_sst2_instruct, and glue_sst2_instruct_score_eval for rank classification
"""

import t0jax.data.quiet  # noqa: F401  before TensorFlow and seqio

# isort: split

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import seqio

from t0jax.config import ConfigError
from t0jax.data.instructions import SplitMode
from t0jax.data.sources import PromptSource, add_rank_source, add_text_source
from t0jax.data.structured.instruct import FORMAT, OPTIONS, InstructRows, check_verbal
from t0jax.data.structured.records import SPLITS, Record
from t0jax.data.structured.source import seqio_name
from t0jax.data.views import find_view

SUFFIX = "_instruct"


class InstructSource(PromptSource):
    """A record's examples as prompts. Training shows at most four labels or options, rank classification all."""

    def __init__(
        self,
        record: Record,
        *,
        view: str = "direct",
        rank: bool = False,
        seed: int = 0,
        local_dir: str = "",
    ) -> None:
        """
        Args:
          record: the declaration.
          view, rank, seed, local_dir: as of `PromptSource`.

        Raises:
          RecordError: labels that are no words.
        """
        check_verbal(record)
        self.record = record
        splits = {name: held for name, held in zip(SPLITS, record.splits, strict=True) if held}
        super().__init__(
            record.spec, FORMAT, splits=splits, view=view, rank=rank, seed=seed, local_dir=local_dir
        )

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits; of a data set with local files, those that are there."""
        return self.record.splits_there(self.local_dir)

    def rows(
        self,
        split: str,
        *,
        view: str = "",
        instruction_split: SplitMode = "rendered",
        label_words: Mapping[str, str] = MappingProxyType({}),
    ) -> InstructRows:
        """The rows of a split, not yet opened; arguments as of `PromptSource.rows`.

        Raises:
          DataUnavailable: no such split.
          config.ConfigError: label words, which these prompts have none of.
        """
        del instruction_split  # the prompt is not written in Jinja, so there is one way to split it
        find_view(view or self.view)
        if label_words:
            raise ConfigError(
                f"label words cannot be put into {self.record.name}, whose labels are declared; change them there"
            )
        return InstructRows(
            *(self.spec, self.split_in_data(split), FORMAT, self.seed),
            local_dir=self.local_dir,
            record=self.record,
            home_split=split,
            options=None if self.rank else OPTIONS,
        )

    def identity(self) -> tuple[Any, ...]:
        return (*super().identity(), self.record)


def add_instruct_tasks(
    record: Record,
    *,
    view: str = "direct",
    vocabulary: seqio.Vocabulary | None = None,
    local_dir: str = "",
) -> list[seqio.Task]:
    """Registers `<id>_instruct` and, where answers are chosen, `<id>_instruct_score_eval`: the tasks.

    Declaring the same record again changes nothing.

    Raises:
      RecordError: labels that are no words.
      ValueError: the name is taken by another task.
    """
    name = seqio_name(record) + SUFFIX
    options: dict[str, Any] = {"view": view, "local_dir": local_dir}
    tasks = [add_text_source(name, InstructSource(record, **options), vocabulary=vocabulary)]
    if record.kind != "token_classification":
        source = InstructSource(record, rank=True, **options)
        tasks.append(add_rank_source(name, source, vocabulary))
    return tasks
