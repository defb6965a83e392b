"""Score a model by rank classification: `python -m scripts.evaluate --model M --mixture t0_eval_score_eval`.

M is a run folder, one of its checkpoints, or a Hugging Face directory. A run is scored as it was trained (modules,
view, `evaluate`'s lengths, EOS on inputs, and without `--mixture` its own) where the command line says nothing else.
`--output DIR` keeps `results.json`, the scores of every row and `report.html`; the same command goes on where it was
stopped. All keys of the configuration can be set too, e.g. `--evaluate.max_examples 100`, or `--method
generate` for the tasks' own metrics of generated text. A multitask encoder answers structured tasks with its heads;
`--head glue/mnli` lets one answer the tasks of others.

`--compare DIR DIR ...` sets results side by side instead: a table, and a report in `--output FILE.html`.
"""

import argparse
import dataclasses
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t0jax import config
from t0jax.config import ConfigError

if TYPE_CHECKING:
    from t0jax.processes import Preemption

OPTIONS: dict[str, dict[str, Any]] = {
    "mixture": {
        "type": str,
        "default": "",
        "help": "seqio mixtures or tasks, with commas between [data.eval_mixture]",
    },
    "module": {"type": str, "default": "", "help": "modules that register it, with commas between"},
    "split": {
        "type": str,
        "default": "",
        "help": "validation,test: the first that a data set has [data.eval_split]",
    },
    "view": {
        "choices": ["", "direct", "channel", "flipped"],
        "default": "",
        "help": "how prompts are seen [data.view]",
    },
    "label_words": {
        "type": str,
        "default": "",
        "help": 'other words for the answers, {"Yes": "agree", "No": "disagree"} [evaluate.label_words]',
    },
    "method": {
        "choices": ["", "rank", "generate", "classify"],
        "default": "",
        "help": "how tasks are scored [as the model's architecture and evaluate.method say]",
    },
    "head": {
        "type": str,
        "default": "",
        "help": "the task whose head answers all structured tasks, glue/mnli say [evaluate.head]",
    },
    "output": {
        "type": str,
        "default": "",
        "help": "folder for results.json, scores/ and report.html; goes on with what is there",
    },
    "compare": {"nargs": "*", "default": [], "help": "folders of results to set side by side"},
    "names": {"nargs": "*", "default": [], "help": "of the folders compared [the folders]"},
    "overwrite": {"action": "store_true", "help": "replace other results in that folder"},
    "available_only": {"type": bool, "default": None, "help": "[data.available_only]"},
}


AS_TRAINED = ("modules", "eval_mixture", "eval_split", "view", "instruction_split", "truncation")
AS_SCORED = ("method", "num_beams", "max_input_length", "max_target_length")
AS_SCORED += ("length_normalize", "label_words")
"""Keys of `data` and of `evaluate` that a run is scored with. Where data are, and how many rows, is the scorer's own
matter."""


def main(argv: Sequence[str]) -> int:
    """Prints the table of results; returns 0."""
    if "--compare" in argv:
        return compare(argv)
    path, rest = config.take_model(argv)
    # A mistyped key is answered before JAX starts.
    given, _ = config.parse(rest, __doc__ or "", of_model=True, **OPTIONS)
    from t0jax import processes
    from t0jax.metrics import note

    with processes.cluster(given.train.patience), processes.Preemption() as preemption:
        settings, options = config.parse(
            rest, __doc__ or "", as_trained(path), of_model=True, **OPTIONS
        )
        settings = merge(settings, options)
        if not settings.data.eval_mixture:
            raise ConfigError("no tasks to score: give --mixture NAME, e.g. t0_eval_score_eval")
        named = any(flag.startswith(("--model.", "--config")) for flag in rest)
        try:
            score(path, settings, settings.model if named else None, options, preemption)
        except processes.Preempted:
            kept = "the same command goes on from what is in the folder"
            note(f"SIGTERM: {kept if options.output else 'nothing is kept without --output'}")
    return 0


def as_trained(path: Path) -> config.Config:
    """The settings that a run was trained with, as far as scoring shares them; the defaults for other models.

    A run's own export is scored as the run.
    """
    from t0jax import checkpoint, train

    if path.name == train.EXPORT_FOLDER and (path.parent / "config.yaml").is_file():
        path = path.parent
    if checkpoint.is_hugging_face(path):
        return config.Config()
    own, defaults = checkpoint.read_config(path), config.Config()
    data = dataclasses.replace(
        defaults.data,
        **{name: getattr(own.data, name) for name in AS_TRAINED},
    )
    evaluate = dataclasses.replace(
        defaults.evaluate,
        input_eos=own.data.input_eos,
        **{name: getattr(own.evaluate, name) for name in AS_SCORED},
    )
    return config.Config(model=own.model, data=data, evaluate=evaluate)


def read_words(text: str) -> dict[str, str]:
    """`--label_words` as a mapping.

    Raises:
        ConfigError: it is no JSON object of texts.
    """
    try:
        words = json.loads(text) if text else {}
    except ValueError:
        words = None
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        example = '{"Yes": "agree", "No": "disagree"}'
        raise ConfigError(f"--label_words takes a JSON object of words, '{example}', not {text!r}")
    return words


def score(
    path: Path,
    settings: config.Config,
    compute: config.Model | None,
    options: Any,
    preemption: "Preemption",
) -> None:
    """Loads the model, scores `data.eval_mixture`, prints and writes the results; may raise Preempted in between."""
    import jax

    from t0jax import checkpoint, evaluate, models, processes, report, sharding, train
    from t0jax import results as results_lib
    from t0jax.data.registry import known_heads
    from t0jax.metrics import note

    train.set_environment(settings)
    mesh = sharding.make_mesh(settings.mesh)
    note(f"model: reading {path}")
    # Files of the published layout may leave out what the tasks' declarations say.
    known = known_heads(settings.data.modules) if checkpoint.is_hugging_face(path) else {}
    model = checkpoint.load_model(path, mesh, compute, known=known)
    mixture, view = settings.data.eval_mixture, settings.data.view
    note(f"data: opening {mixture}" + (f", view {view}" if view else ""))
    vocabulary = Path(settings.data.vocabulary) if settings.data.vocabulary else model.vocabulary
    evaluator = evaluate.make_evaluator(
        model.network, mesh, settings.data, settings.evaluate, mixture, vocabulary
    )
    processes.meet("opening the data")
    folder = None
    if options.output:
        weights = models.fingerprint(model.params)
        named = {
            "model": f"{path.resolve()}, step {model.step}",
            "weights": weights,
            **evaluator.describe(),
        }
        folder = evaluate.ResultsFolder(Path(options.output), named, options.overwrite)
    note(
        f"evaluation: {mixture}, tasks: {len(evaluator.tasks)}; each length of rows is compiled as it comes"
    )
    results = evaluator(model.params, folder, note, preemption.check)
    if jax.process_index() > 0:
        return
    print(results.table(), flush=True)
    if folder is not None:
        page = folder.folder / results_lib.REPORT_FILE
        report.write_report([folder.folder], page, references=read_references(), run=run_of(path))
        note(f"report: {page}")


def run_of(model: Path) -> Path | None:
    """The folder of the run that a model comes from, where it has kept its training curve."""
    from t0jax import train

    inside = {"checkpoints": model.parent.parent, train.EXPORT_FOLDER: model.parent}
    run = inside.get(model.parent.name) or inside.get(model.name) or model
    return run if (run / "metrics.jsonl").is_file() else None


def compare(argv: Sequence[str]) -> int:
    """Sets the results of several folders side by side; returns 0."""
    from t0jax import report

    parser = argparse.ArgumentParser("python -m scripts.evaluate")
    parser.add_argument("--compare", nargs="+", required=True, metavar="DIR", type=Path)
    parser.add_argument("--names", nargs="+", default=[], help="what to call them [their folders]")
    parser.add_argument("--output", type=Path, metavar="FILE.html")
    options = parser.parse_args(list(argv))
    if options.names and len(options.names) != len(options.compare):
        counts = f"{len(options.compare)} folders and {len(options.names)} --names"
        raise ConfigError(f"{counts}; give one name for each folder")
    print(report.compare_table(options.compare, options.names))
    if options.output:
        references = read_references()
        report.write_report(
            options.compare, options.output, names=options.names, references=references
        )
        print(f"report: {options.output}")
    return 0


def read_references() -> list[dict[str, Any]]:
    """Published figures to show beside one's own."""
    file = importlib.resources.files("tasks") / "t0_references.json"
    return json.loads(file.read_text(encoding="utf-8"))


def merge(settings: config.Config, options: Any) -> config.Config:
    """The configuration with the script's shorter options in their places."""
    data = settings.data
    data = dataclasses.replace(
        data,
        eval_mixture=options.mixture or data.eval_mixture,
        eval_split=options.split or data.eval_split,
        view=options.view or data.view,
        modules=tuple(options.module.split(",")) if options.module else data.modules,
        available_only=data.available_only
        if options.available_only is None
        else options.available_only,
    )
    words = read_words(options.label_words) or settings.evaluate.label_words
    evaluate = dataclasses.replace(
        settings.evaluate,
        label_words=words,
        method=options.method or settings.evaluate.method,
        head=options.head or settings.evaluate.head,
    )
    return dataclasses.replace(settings, data=data, evaluate=evaluate)


if __name__ == "__main__":
    config.run_script(main)
