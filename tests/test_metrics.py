"""FLOPs against XLA's own count; metric files across a resume."""

import json

import jax
import jax.numpy as jnp
import pytest

from t0jax import config, metrics, models


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_flop_formula_agrees_with_xla_on_an_unrolled_model(projection):
    model = config.Model(
        vocab_size=512, d_model=128, d_kv=32, num_heads=4, d_ff=256, num_layers=2, num_decoder_layers=3,
        feed_forward_proj=projection, scan_layers=False, dropout_rate=0.0,
    )  # fmt: skip
    rows, inputs, targets = 4, 96, 48
    network = models.build(model)
    ids = {
        "encoder_input_tokens": (rows, inputs),
        "encoder_segment_ids": (rows, inputs),
        "decoder_input_tokens": (rows, targets),
        "decoder_segment_ids": (rows, targets),
    }
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in ids.items()}
    forward = jax.jit(lambda params, batch: network.bind(params)(batch))
    counted = forward.lower(network.shapes, batch).compile().cost_analysis()["flops"]
    assert rows * metrics.forward_flops(model, inputs, targets) == pytest.approx(counted, rel=0.1)


def test_flop_formula_gives_the_published_order_of_t5_base():
    base = config.Model(d_model=768, d_ff=2048, num_layers=12, num_heads=12)
    assert metrics.train_flops(base, 512, 114) == pytest.approx(0.425e12, rel=0.01)


def test_resumed_metric_file_reads_as_if_never_stopped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = metrics.JsonLines(path, resume_step=0)
    for step in range(1, 6):
        sink.write(step, {"loss": float(step)})
    sink.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # a kill cut this line short
    sink = metrics.JsonLines(path, resume_step=3)
    sink.write(4, {"loss": 40.0})
    sink.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_log_line_says_what_a_watcher_needs():
    meter = metrics.Meter(steps=100)
    meter.add(flops=1e9, tokens=1000)
    rates = meter.rates(step=50)
    assert rates["tokens_per_s"] == pytest.approx(1000 * rates["steps_per_s"])
    values = {"loss": 2.0, "accuracy": 0.5, "learning_rate": 1e-3, "grad_norm": 1.0, **rates}
    line = metrics.log_line(50, 100, {**values, "examples_per_s": 3.0})
    for part in ("step 50/100", "loss 2.0000", "lr 1.0e-03", "ex/s", "tok/s", "ETA"):
        assert part in line
