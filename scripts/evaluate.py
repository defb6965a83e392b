"""Score a model by rank classification: `python -m scripts.evaluate --model M --mixture t0_eval_score_eval`.

M is a run folder, one of its checkpoints, or a Hugging Face directory. `--output DIR` keeps `results.json` and the
scores of every row; all keys of the configuration can be set too, e.g. `--evaluate.max_examples 100`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t0jax import config
from t0jax.config import ConfigError

OPTIONS: dict[str, dict[str, Any]] = {
    "mixture": {"type": str, "default": "", "help": "seqio mixture or task [data.eval_mixture]"},
    "module": {"type": str, "default": "", "help": "modules that register it, with commas between"},
    "split": {"type": str, "default": "", "help": "[data.eval_split]"},
    "output": {"type": str, "default": "", "help": "folder for results.json and scores/"},
    "overwrite": {"action": "store_true", "help": "replace other results in that folder"},
    "available_only": {"type": bool, "default": False, "help": "[data.available_only]"},
}


def main(argv: Sequence[str]) -> int:
    """Prints the table of results; returns 0."""
    path, rest = take_model(argv)
    settings, options = config.parse(rest, __doc__ or "", **OPTIONS)
    settings = merge(settings, options)
    if not settings.data.eval_mixture:
        raise ConfigError("no tasks to score: give --mixture NAME, e.g. t0_eval_score_eval")
    given = any(flag.startswith(("--model.", "--config")) for flag in rest)
    score(path, settings, settings.model if given else None, options)
    return 0


def score(path: Path, settings: config.Config, compute: config.Model | None, options: Any) -> None:
    """Loads the model, scores `data.eval_mixture`, prints and writes the results."""
    # After parsing: a mistyped key is answered at once.
    import jax

    from t0jax import checkpoint, evaluate, sharding, train
    from t0jax.metrics import note

    sharding.start_cluster()
    train.set_environment(settings)
    mesh = sharding.make_mesh(settings.mesh)
    note(f"model: reading {path}")
    model = checkpoint.load_model(path, mesh, compute)
    if model.config and model.config.data.input_eos != settings.evaluate.input_eos:
        note(f"note: the model was trained with data.input_eos {model.config.data.input_eos}")
    mixture = settings.data.eval_mixture
    note(f"data: opening {mixture}")
    vocabulary = Path(settings.data.vocabulary) if settings.data.vocabulary else model.vocabulary
    evaluator = evaluate.Evaluator(
        model.network, mesh, settings.data, settings.evaluate, mixture, vocabulary=vocabulary
    )
    folder = None
    if options.output:
        named = {"model": f"{path.resolve()}, step {model.step}", **evaluator.describe()}
        folder = evaluate.ResultsFolder(Path(options.output), named, options.overwrite)
    results = evaluator(model.params, folder, note)
    note(f"done: {len(evaluator.scorer.compiled)} compiled shapes")
    if jax.process_index() == 0:
        print(results.table(), flush=True)


def take_model(argv: Sequence[str]) -> tuple[Path, list[str]]:
    """`--model M` and the other arguments; `--model.KEY` are the configuration's."""
    rest = [word for argument in argv for word in _split_model(argument)]
    if "--model" not in rest:
        if "--help" in rest:
            return Path(), rest
        raise ConfigError(
            "no model to score: give --model DIR (a run, a checkpoint, or a HF directory)"
        )
    at = rest.index("--model")
    if at + 1 == len(rest):
        raise ConfigError("--model needs a folder")
    return Path(rest[at + 1]), rest[:at] + rest[at + 2 :]


def _split_model(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--model=") else [argument]


def merge(settings: config.Config, options: Any) -> config.Config:
    """The configuration with the script's shorter options in their places."""
    data = settings.data
    data = dataclasses.replace(
        data,
        eval_mixture=options.mixture or data.eval_mixture,
        eval_split=options.split or data.eval_split,
        modules=tuple(options.module.split(",")) if options.module else data.modules,
        available_only=options.available_only or data.available_only,
    )
    return dataclasses.replace(settings, data=data)


if __name__ == "__main__":
    config.run_script(main)
