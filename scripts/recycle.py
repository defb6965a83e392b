"""Model-recycling's 36 data sets: `python -m scripts.recycle --model M --output runs/recycle`.

M is a run folder, one of its checkpoints, or a Hugging Face directory of a DeBERTa. It is fine-tuned on each set by
itself, with a new head, by the ordinary trainer and the published settings; the checkpoint that validates best is
scored on the test split, and the model's score is the mean over sets (arXiv 2211.00107). Sets whose data cannot be had
are listed. The same command goes on where it was stopped; a finished set's checkpoints are removed.

    --sets cb,rte          only these
    --local                the cuts that can be had without a network, whose scores are not the published ones
    --epochs 2 --set data.batch_size=32 --set train.seed=1     other settings, which need another --output

Where this differs from what was published: all epochs are run and the best validation score chooses, where theirs
stopped after a million examples without a gain of 0.001 (each result says where that would have been); a set without a
validation split gives up a tenth of its training rows, one without a test split is scored on its validation rows;
STS-B's checkpoint is chosen by Pearson's correlation, and scored by Spearman's, as published; 0.0006, which stands
behind "linear" without a name, is taken as the share of the steps that warm up. Rows are cut at 256 tokens; theirs is
not told.
"""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t0jax import config
from t0jax.config import ConfigError, Model, UserError

OPTIONS: dict[str, dict[str, Any]] = {
    "output": {
        "type": str,
        "default": "",
        "help": "folder of all runs and results [runs/recycle; runs/recycle_local with --local]",
    },
    "sets": {"type": str, "default": "", "help": "names with commas between; all 36 when empty"},
    "local": {"action": "store_true", "help": "the cuts of the local data"},
    "epochs": {"type": float, "default": 0.0, "help": "[10, as published]"},
    "max_length": {"type": int, "default": 256, "help": "tokens of a row"},
    "set": {
        "type": str,
        "action": "append",
        "default": [],
        "help": "KEY=VALUE of the configuration, for all runs; repeatable",
    },
    "keep_checkpoints": {"action": "store_true", "help": "of finished sets"},
}

READ = ("data.local_dir", "train.compile_cache")
"""Keys of the configuration that are the host's matter; all others are the runs', and results are of them."""

RESULT_FILE = "result.json"
SETTINGS_FILE = "settings.json"
START_FOLDER = "start"


class RecycleError(UserError):
    """A set that is not known, or a run that cannot be scored."""


def main(argv: Sequence[str]) -> int:
    """Prints the table; returns 0."""
    path, rest = config.take_model(argv)
    settings, options = config.parse(rest, __doc__ or "", of_model=True, **OPTIONS)
    config.refuse_unread(rest, READ, "give them to the runs: --set KEY=VALUE")
    from t0jax import processes, train
    from t0jax.data.rows import DataUnavailable
    from t0jax.metrics import note

    processes.refuse_cluster("scripts.recycle")
    train.set_environment(settings)
    chosen = choose_sets(options.sets, options.local)
    read_changes(options.set)
    output, missing = Path(options.output or f"runs/recycle{'_local' * options.local}"), {}
    start = begin(path, output, options)
    for one, record in chosen:
        folder, record = output / one.name, divided(record, one.name)
        if is_finished(folder, record):
            tidy(folder)  # a run that was killed has not
            continue
        try:
            note(f"recycle: {one.name}")
            found = recycle(one, record, start, folder, options)
        except DataUnavailable as error:
            missing[one.name] = str(error)
            continue
        if found is None:
            note("SIGTERM: the same command goes on from there")
            return 0
        about = {"settings": read_json(output / SETTINGS_FILE), "kept": options.keep_checkpoints}
        write(folder / RESULT_FILE, found | about)
        tidy(folder)
    report(output, [one for one, _ in choose_sets("", options.local)], missing)
    return 0


# ---------------------------------------------------------------------------------------------------- sets


def choose_sets(names: str, local: bool) -> list[tuple[Any, Any]]:
    """(set, its record) of the sets asked for, in their order.

    Raises:
        RecycleError: an unknown set.
    """
    from tasks import recycling

    known = {one.name: one for one in recycling.SETS}
    wanted = names.split(",") if names else [n for n in known if not local or n in recycling.LOCAL]
    for name in wanted:
        if name not in known or (local and name not in recycling.LOCAL):
            there = ", ".join(recycling.LOCAL if local else known)
            raise RecycleError(f"--sets {name!r} is none of {there}")
    if not local:
        return [(known[name], known[name].record) for name in wanted]
    cut = {"comparable": False, "note": "a cut; the published scores are of the whole set"}
    return [(dataclasses.replace(known[name], **cut), recycling.LOCAL[name]) for name in wanted]


def divided(record: Any, name: str) -> Any:
    """The record as a task of its own, with three splits: to learn from, to choose by, to score.

    A missing test split is the validation split; a validation split that is missing then is a tenth of the training
    rows, and so is a test split where there is none of both.
    """
    train, validation, test = record.splits
    if test is None:
        validation, test = None, validation
    if test is None:
        splits = (part(train, 0, 80), part(train, 80, 90), part(train, 90, 100))
    elif validation is None:
        splits = (part(train, 0, 90), part(train, 90, 100), test)
    else:
        splits = (train, validation, test)
    return dataclasses.replace(record, name=f"recycle/{name}", splits=splits)


def part(split: str, first: int, last: int) -> str:
    """A split's rows from `first` % to `last` %, of a part of a split too."""
    from t0jax.data.structured.parts import find_part

    whole = find_part(split)
    start, stop = (
        whole.start + (whole.stop - whole.start) * percent // 100 for percent in (first, last)
    )
    return f"{whole.split}[{start}%:{stop}%]"


# ---------------------------------------------------------------------------------------------------- a set


def begin(path: Path, output: Path, options: Any) -> Path:
    """Takes the folder for a model and settings; returns what the sets start from, a copy of the model whose heads no
    new task takes over, or a model without heads as it is.

    Raises:
        RecycleError: the folder holds runs of other weights or settings.
    """
    from t0jax import checkpoint, models, sharding

    model = checkpoint.load_model(path, sharding.make_mesh(config.Mesh()))
    own = model.network.config
    if own.architecture != "deberta":
        raise ConfigError(f"{path} is a {own.architecture}; model-recycling's sets need a deberta")
    told = {
        "weights": models.fingerprint(model.params),
        "local": options.local,
        "epochs": options.epochs,
        "max_length": options.max_length,
        "set": read_changes(options.set),
    }
    take(output, told, str(path))
    if not own.heads:
        return path
    there, partial = output / START_FOLDER, output / f".{START_FOLDER}.partial"
    if not there.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        checkpoint.save_model(partial, model.params, set_aside(own), model.vocabulary)
        partial.replace(there)
    return there


def take(output: Path, told: Mapping[str, Any], model: str) -> None:
    """Writes down what the folder's runs are of, or compares it.

    Raises:
        RecycleError: it is something else.
    """
    file = output / SETTINGS_FILE
    if not file.is_file() and not any(output.glob(f"*/{RESULT_FILE}")):
        output.mkdir(parents=True, exist_ok=True)
        write(file, {"model": model, **told})
        return
    there = read_json(file) if file.is_file() else {}
    if other := [name for name in told if there.get(name) != told[name]]:
        differing = "; ".join(f"{n}: {there.get(n)!r} there, {told[n]!r} now" for n in other)
        raise RecycleError(
            f"{output} holds runs of another model or other settings ({differing}); choose another --output, or "
            "delete the folder to start over"
        )


def set_aside(model: Model) -> Model:
    """The model with its heads under names that no set has."""
    heads = tuple(
        dataclasses.replace(h, task=f"former/{h.task}", group=h.group and f"former {h.group}")
        for h in model.heads
    )
    return dataclasses.replace(model, heads=heads)


def is_finished(folder: Path, record: Any) -> bool:
    """Whether the set's result is there.

    Raises:
        RecycleError: it is of other splits.
    """
    file = folder / RESULT_FILE
    if not file.is_file():
        return False
    splits = read_json(file).get("splits")
    if splits != list(record.splits):
        raise RecycleError(
            f"{folder} was learnt on and scored on the splits {splits}, which now are {list(record.splits)}; delete "
            "that folder to do the set again"
        )
    return True


def tidy(folder: Path) -> None:
    """Removes a finished set's checkpoints, unless its result says that they were to be kept."""
    if not read_json(folder / RESULT_FILE).get("kept", True):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def recycle(
    one: Any, record: Any, start: Path, folder: Path, options: Any
) -> dict[str, Any] | None:
    """Fine-tunes, and scores the best checkpoint; None when SIGTERM ended the run.

    Raises:
        DataUnavailable: the data cannot be had.
    """
    from t0jax.data.structured.rows import StructuredRows
    from t0jax.finetune import finetune

    changes = read_changes(options.set)
    for split in ("train", "validation", "test"):
        StructuredRows(record, split, changes.get("data.local_dir", "")).open()
    how = plan(record, options, changes)
    finetune(
        start,
        record,
        folder,
        batch_size=how["batch_size"],
        learning_rate=how["learning_rate"],
        max_length=options.max_length,
        task_embedding=False,
        settings=how["settings"] | changes,
    )
    steps = how["settings"]["train.steps"]
    scores = read_scores(folder)
    if steps not in scores:
        return None
    scores = {step: value for step, value in scores.items() if value is not None}
    best = best_step(folder, scores)
    value, entry = score(folder / "checkpoints" / str(best), folder, one.metric)
    return {
        "set": one.name,
        "metric": one.metric,
        "value": value,
        "validation": scores[best],
        "step": best,
        "steps": steps,
        "patience_ends": patience_ends(scores, how),
        "n": entry["n"],
        "chance": entry.get("chance"),
        "majority": entry.get("majority"),
        "splits": list(record.splits),
        "note": one.note,
    }


def plan(record: Any, options: Any, changes: Mapping[str, str]) -> dict[str, Any]:
    """The published settings for a set of this size."""
    from t0jax.data.structured.source import add_task
    from t0jax.finetune import epoch_rows, typed
    from tasks.recycling import HYPERPARAMETERS as published

    choices = record.choices if record.kind == "multiple_choice" else ()
    each = len(choices) if isinstance(choices, tuple) and choices else 1
    asked = typed(
        {
            "data.mixture": add_task(record).name,
            "data.modules": (),
            "data.input_length": options.max_length,
            "data.shards": 1,
            "data.batch_size": published["batch_size"] * each,
            **{key: value for key, value in changes.items() if key.startswith("data.")},
            "train.steps": changes.get("train.steps", 0),
        }
    )
    batch, steps = asked.data.batch_size, asked.train.steps
    if "train.steps" not in changes:
        epochs = options.epochs or published["epochs"]
        steps = max(1, math.ceil(epochs * epoch_rows(asked.data) / batch))
    every = min(steps, max(1, published["validate_every_examples"] * each // batch))
    return {
        "batch_size": batch,
        "learning_rate": published["learning_rate"],
        "patience": published["patience_examples"] * each // batch,
        "epsilon": published["early_stop_epsilon"],
        "settings": {
            "train.steps": steps,
            "train.eval_every": every,
            "train.checkpoint_every": every,
            "train.keep_last": 1,
            "train.keep_best": 1,
            "train.seed": published["seed"],
            "train.tensorboard": False,
            "optimizer.warmup_steps": round(published["decay_rate"] * steps),
            "optimizer.weight_decay": published["weight_decay"],
        },
    }


def read_changes(given: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE`s; values stay text, which the configuration reads by its keys' types.

    Raises:
        ConfigError: one without a `=`.
    """
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} is not KEY=VALUE, data.batch_size=32 say")
        found[key] = value
    return found


def read_scores(folder: Path) -> dict[int, float | None]:
    """Validation scores by step; None of one that was not finite."""
    from t0jax.evaluate.history import SCORES_FILE

    file = folder / SCORES_FILE
    content = read_json(file) if file.is_file() else {}
    return {int(step): list(found.values())[-1] for step, found in content.items() if found}


def best_step(folder: Path, scores: Mapping[int, float]) -> int:
    """The step of the best checkpoint that is there, the later of equal ones.

    Raises:
        RecycleError: none has a finite score.
    """
    there = [step for step in scores if (folder / "checkpoints" / str(step)).is_dir()]
    if not there:
        raise RecycleError(f"{folder}: no checkpoint has a validation score; the run diverged")
    return max(there, key=lambda step: (scores[step], step))


def patience_ends(scores: Mapping[int, float], how: Mapping[str, Any]) -> int | None:
    """The step at which the published patience would have ended the run; None if it would not have."""
    best, since = -math.inf, 0
    for step, value in scores.items():
        if value > best + how["epsilon"]:
            best, since = value, step
        elif step - since >= how["patience"]:
            return step
    return None


def score(checkpoint_folder: Path, folder: Path, metric: str) -> tuple[float, dict[str, Any]]:
    """(test score, the task's entry of the results), which are kept beside the run."""
    from t0jax import checkpoint, evaluate, sharding
    from t0jax.metrics import note

    run = checkpoint.read_config(checkpoint_folder)
    mesh = sharding.make_mesh(run.mesh)
    model = checkpoint.load_model(checkpoint_folder, mesh)
    data = dataclasses.replace(run.data, eval_split="test")
    evaluator = evaluate.make_evaluator(
        model.network, mesh, data, run.evaluate, data.mixture, model.vocabulary
    )
    told = {"model": f"{folder.resolve()}, step {model.step}", **evaluator.describe()}
    results = evaluator(model.params, evaluate.ResultsFolder(folder / "test", told, True), note)
    (entry,) = results.tasks.values()
    return entry["accuracy"] if metric == "accuracy" else entry["metrics"][metric], entry


# ---------------------------------------------------------------------------------------------------- results


def report(output: Path, sets: Sequence[Any], missing: Mapping[str, str]) -> None:
    """Prints a line a set, the means and what is missing; writes all to `results.json`.

    The second mean is of the sets that are alike: published scores are of the same rows and texts.

    Args:
        output: the folder of all runs; whatever is finished in it counts, so that a few sets done again leave the mean.
        sets: that could be there.
        missing: why sets could not be had; what was told of others before still holds.
    """
    from t0jax.results import missing_lines

    files = {one.name: output / one.name / RESULT_FILE for one in sets}
    found = {name: read_json(file) for name, file in files.items() if file.is_file()}
    file = output / "results.json"
    before = read_json(file)["missing"] if file.is_file() else {}
    missing = {name: why for name, why in (before | {**missing}).items() if name not in found}
    width = max(8, *(len(one.name) for one in sets))
    print(f"{'set':{width}}  metric    value  chance  base   tasksource-420     n")
    for one in sets:
        if one.name in found:
            entry = found[one.name]
            chance = "     -" if entry["chance"] is None else f"{100 * entry['chance']:6.2f}"
            print(
                f"{one.name:{width}}  {entry['metric']:8}  {100 * entry['value']:5.2f}  {chance}  "
                f"{one.baseline:5.2f}  {one.tasksource:14.2f}  {entry['n']:4}"
            )
    there = [one for one in sets if one.name in found]
    held = [one for one in there if one.comparable]
    if there:
        means = {"sets": _means(found, there), "comparable": _means(found, held)}
        for label, of in ((f"mean of {len(there)}", "sets"), (f"{len(held)} alike", "comparable")):
            if means[of]:
                own, base, tasksource = means[of]
                print(
                    f"{label:{width}}            {own:5.2f}          {base:5.2f}  {tasksource:14.2f}"
                )
        content = {
            "mean": means["sets"][0],
            "of": len(there),
            "comparable_mean": means["comparable"][0] if held else None,
            "comparable": [one.name for one in held],
            "sets": found,
            "missing": missing,
        }
        write(file, content)
        for one in there:
            if not one.comparable:
                print(f"not alike: {one.name}: {one.note}")
    for line in missing_lines(missing):
        print(line)


def _means(found: Mapping[str, Any], sets: Sequence[Any]) -> list[float]:
    """Percent: here, of the base model, of tasksource-420; none without sets."""
    rows = [(100 * found[one.name]["value"], one.baseline, one.tasksource) for one in sets]
    return [sum(column) / len(sets) for column in zip(*rows, strict=True)]


def read_json(path: Path) -> dict[str, Any]:
    """A file that `write` or a run has written."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Any) -> None:
    """JSON, the file whole or not there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    config.run_script(main)
