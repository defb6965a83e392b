"""Every recipe says what it needs and what it gives, and what it says is true as far as arithmetic can tell."""

import functools
import math
import re
from pathlib import Path

import jax
import pytest
import yaml

from t0jax import config, metrics, models, sharding, train
from t0jax.data import registry
from t0jax.data.sources import members, seqio
from t0jax.data.structured.rows import StructuredRows
from t0jax.evaluate.head_tasks import find_head_tasks

FOLDER = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
LARGE = [name for name in RECIPES if " full rows" in (FOLDER / f"{name}.yaml").read_text()]
"""Those whose time is computed, not measured."""

XL = config.Model(d_model=2048, d_ff=5120, num_heads=32, num_layers=24)
XXL = config.Model(d_model=4096, d_ff=10240, num_heads=64, num_layers=24)
BASE = config.Model(d_model=768, d_ff=2048, num_heads=12, num_layers=12)
DEBERTA = config.Model(
    architecture="deberta", vocab_size=128100, d_model=768, d_ff=3072, num_layers=12, num_heads=12
)
ARCHITECTURES = {
    "deberta-v3-base": DEBERTA, "deberta-v3-base-tasksource-nli": DEBERTA,
    "t5-v1_1-xl": XL, "t5-xl-lm-adapt": XL, "T0_3B": XL, "t5-v1_1-xxl": XXL, "t5-xxl-lm-adapt": XXL,
    "t5-base-lm-adapt": BASE,
}  # fmt: skip
"""`config.json`s of T5 v1.1 (https://huggingface.co/google/t5-v1_1-xl and its sizes) and of DeBERTa-v3."""
CHIPS = {"80 GB H100": "NVIDIA H100 80GB HBM3", "40 GB A100": "NVIDIA A100-SXM4-40GB"}

MIXTURES = {
    "t0_3b": ("t0_train", 313), "t0_11b": ("t0_train", 313), "t0_small": ("t0_train", 313),
    "t0p": ("t0+_train", 392), "t0pp": ("t0++_train", 464), "t0_single_prompt": ("t0_train_one_og_prompt", 35),
    "t0_original_task_only": ("t0_train_all_og_prompts", 222), "t0_local": ("t0_train", 313),
    "finetune": ("rotten_tomatoes_all_prompts", 10), "toy": ("toy_train", 53), "toy_flipped": ("toy_flipped_train", 48),
    "tasksource_base": ("tasksource_train", 196), "tasksource_small_local": ("tasksource_local_heldout", 8),
    "finetune_encoder": ("glue_rte", 1),
    **dict.fromkeys(("flipped_3b", "flipped_11b", "direct_3b", "channel_3b"), ("flipped_train", 140)),
}  # fmt: skip


@functools.cache
def recipe(name):
    return config.parse(["--config", str(FOLDER / f"{name}.yaml")], "")[0]


@functools.cache
def head(name):
    """The words of the comment at the top, with one space between them."""
    lines = (FOLDER / f"{name}.yaml").read_text().split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    return " ".join(word for line in lines for word in line.removesuffix("\\")[1:].split())


def devices(name):
    """(number, chip) of the hardware that the head names; a CPU's cores are one device."""
    found = re.search(r"Hardware: (\d+) x (\d+ GB \w+)", head(name))
    return (int(found[1]), found[2]) if found else (1, None)


def numbers(pattern, name):
    found = re.search(pattern, head(name))
    assert found, f"the head has no {pattern!r}"
    return [text.replace(",", "") for text in found.groups()]


def said(value, text):
    """Whether `text` is `value`, rounded to as many digits."""
    digits = len(text.partition(".")[2])
    return f"{value:.{digits}f}" == text


@pytest.mark.parametrize("name", RECIPES)
def test_the_head_has_command_hardware_time_and_score(name):
    assert f"python -m scripts.train --config configs/{name}.yaml" in head(name)
    for word in ("Hardware:", "Time:", "Score:"):
        assert head(name).count(word) == 1
    assert re.search(r"Time: [\d.]+ (seconds|minutes|hours)", head(name))
    starts = recipe(name).train.init_checkpoint
    assert (f"convert from-hf path/to/{Path(starts).name} {starts}" in head(name)) == bool(starts)


@pytest.mark.parametrize("name", RECIPES)
def test_the_mixtures_that_it_names_exist(name):
    data = recipe(name).data
    registry.import_tasks(data.modules)
    assert (data.mixture, len(members(data.mixture))) == MIXTURES[name]
    structured = recipe(name).evaluate.method == "classify"
    for task in members(data.eval_mixture) if data.eval_mixture else ():
        assert task.endswith("_score_eval") != structured
    registry.import_tasks(re.findall(r"--module (\S+)", head(name)))
    for mixture in re.findall(r"--(?:data\.(?:eval_)?)?mixture (\w+)", head(name)):
        assert members(mixture)


SCORED = [
    path.stem for path in sorted(FOLDER.glob("*.yaml")) if "eval_mixture:" in path.read_text()
]


@pytest.mark.parametrize("name", SCORED)
def test_scoring_refuses_nothing_that_it_asks_for(name, monkeypatch):
    """With all declared data there: `available_only`, which a recipe need not allow, is not needed."""
    data, heads = recipe(name).data, []
    registry.import_tasks(data.modules)
    structured = recipe(name).evaluate.method == "classify"
    for task in members(data.eval_mixture):
        source = seqio.TaskRegistry.get(task).source
        if structured:
            heads.append(source.record.head())
        else:
            assert {*data.eval_split.split(",")} & {*source.splits}
    if structured:
        monkeypatch.setattr(StructuredRows, "open", lambda self: self.split_in_data and self)
        tasks, missing, without = find_head_tasks(data.eval_mixture, data, data.eval_split, heads)
        assert tasks
        assert not missing
        assert len(tasks) + len(without) == len(heads)


@pytest.mark.parametrize("name", RECIPES)
def test_rows_divide_over_the_hardware(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings, count = recipe(name), devices(name)[0]
    train.check_settings(settings, sharding.make_mesh(settings.mesh, jax.devices()[:count]))
    for fsdp, parts in re.findall(
        r"--mesh\.fsdp (\d+) --train\.grad_accumulation (\d+)", head(name)
    ):
        assert settings.data.batch_size % (int(fsdp) * int(parts)) == 0


@pytest.mark.parametrize("name", RECIPES)
def test_the_architecture_is_the_start_s_or_its_own(name):
    """Of a model that is read from `init_checkpoint` a recipe says how to compute it, nothing else."""
    keys = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"].keys()
    if recipe(name).train.init_checkpoint:
        assert keys <= {*config.COMPUTE_FIELDS, "architecture"}
    else:
        assert {"vocab_size", "d_model", "d_ff", "num_layers", "num_heads"} <= keys


def test_a_computed_time_is_said_of_all_that_were_not_run():
    assert len(LARGE) == 14
    for name in RECIPES:
        assert ("Not run on such" in head(name)) == (name in LARGE)


def architecture(name):
    return ARCHITECTURES[Path(recipe(name).train.init_checkpoint).name]


@pytest.mark.parametrize("name", LARGE)
def test_the_time_is_that_of_the_formula(name):
    settings, (count, chip) = recipe(name), devices(name)
    hours, total, steps, rows, mfu = numbers(
        r"Time: ([\d.]+) hours by the FLOP formula \(([\d.e]+) for ([\d,]+) x ([\d,]+) full rows\) "
        r"at an assumed MFU of (\d+)%",
        name,
    )
    assert (int(steps), int(rows)) == (settings.train.steps, settings.data.batch_size)
    flops = row_flops(name) * int(steps) * int(rows)
    assert f"{flops:.2e}".replace("+", "") == total
    rate = count * metrics.PEAK_FLOPS[CHIPS[chip]] * int(mfu) / 100
    assert said(flops / rate / 3600, hours)


def row_flops(name):
    """Of a row that is full, forward and backward."""
    data, model = recipe(name).data, architecture(name)
    if model.architecture == "deberta":
        return 3 * metrics.encoder_flops(model, data.input_length)
    return metrics.train_flops(model, data.input_length, data.target_length)


def state_bytes(name):
    """Of a device: float32 weights and gradients, the sum of micro-batches' gradients, AdamW's two moments."""
    settings = recipe(name)
    size = sum(math.prod(x.shape) for x in jax.tree.leaves(models.build(architecture(name)).shapes))
    copies = 2 + (settings.train.grad_accumulation > 1) + 2 * (settings.optimizer.name == "adamw")
    return 4 * size * copies / (settings.mesh.fsdp * settings.mesh.model)


def activation_bytes(name):
    """Of a device, about, with `remat: full`: what layers hand on, one layer's attention three times, three logits."""
    settings, model = recipe(name), architecture(name)
    assert settings.model.remat == "full"
    inputs, targets = settings.data.input_length, settings.data.target_length
    rows = settings.data.batch_size / settings.train.grad_accumulation / devices(name)[0]
    if model.architecture == "deberta":
        # Scores, and products with the distances in both directions, which are twice as many; they and their gradients.
        attention = 2 * 4 * model.num_heads * inputs**2 * (2 + 2 * 2)
        return rows * (2 * model.num_layers * inputs * model.d_model + attention)
    handed_on = 2 * model.num_layers * (inputs + targets) * model.d_model
    attention = 3 * 4 * model.num_heads * inputs**2
    return rows * (handed_on + attention + 3 * 4 * targets * model.vocab_size)


@pytest.mark.parametrize("name", LARGE)
def test_it_fits(name):
    """What the head says of the state is its formula's, and with activations it takes no more than 3/4 of a chip."""
    capacity = float(devices(name)[1].split()[0])
    stated = re.search(r"take ([\d.]+) GB of (?:each|it)", head(name))
    if stated:
        assert said(state_bytes(name) / 1e9, stated[1])
    assert (state_bytes(name) + activation_bytes(name)) / 1e9 < 0.75 * capacity


def test_the_releases_differ_in_what_they_read_alone():
    base = config.flatten(recipe("t0_11b"))
    for name in ("t0_3b", "t0p", "t0pp", "t0_single_prompt", "t0_original_task_only"):
        other = config.flatten(recipe(name))
        differs = {key for key in base if base[key] != other[key]}
        assert differs - {"train.init_checkpoint"} <= {"data.mixture", "train.output_dir"}


def test_what_was_published_of_t0():
    settings = config.flatten(recipe("t0_11b"))
    published = {
        "train.steps": 12_200, "data.batch_size": 1024, "data.input_length": 1024, "data.target_length": 256,
        "data.pack": True, "optimizer.name": "adafactor", "optimizer.learning_rate": 1e-3,
        "optimizer.schedule": "constant", "optimizer.warmup_steps": 0, "model.dropout_rate": 0.1,
        "model.dtype": "bfloat16", "data.input_eos": False, "train.z_loss": 1e-4,
        "train.loss_normalization": "constant", "data.eval_mixture": "t0_train_score_eval",
    }  # fmt: skip
    assert published.items() <= settings.items()
