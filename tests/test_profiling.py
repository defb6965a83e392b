"""Traces of a window of steps: what is in them, and which windows are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t0jax import profiling
from t0jax.config import ConfigError


@jax.jit
def polynomial_step(x):
    """Named so that its program is found again in a trace."""
    return jnp.tanh(x @ x) + 1.0


def run(window, run_dir, steps, first=1):
    """Steps `first` to `steps`, as the training loop makes them."""
    profiler, x = profiling.Profiler(window, run_dir, done=first - 1), jnp.eye(64)
    try:
        for number in range(first, steps + 1):
            with profiler.step(number) as span:
                x = span.result = polynomial_step(x)
    finally:
        profiler.close()
    return np.asarray(x)


def events(run_dir):
    """(name, {stat: value}) of every event of the one trace of this run."""
    (path,) = (run_dir / profiling.FOLDER).rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    return [
        (event.name, dict(event.stats))
        for plane in data.planes
        for line in plane.lines
        for event in line.events
    ]


def annotated(found):
    return sorted(stats["step_num"] for name, stats in found if name == profiling.NAME)


def test_a_window_is_half_open_and_counts_as_the_log_does():
    assert list(profiling.parse_window("10:15", steps=100)) == [10, 11, 12, 13, 14]
    assert list(profiling.parse_window("1:2", steps=1)) == [1]
    assert list(profiling.parse_window("", steps=100)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("15:10", "holds no step"),
        ("10:10", "holds no step"),
        ("0:5", "at least 1"),
        ("10", "first:end"),
        ("a:b", "first:end"),
        ("-3:5", "first:end"),
        ("10:15:2", "first:end"),
        ("10:", "first:end"),
        ("95:102", "ends with step 101, train.steps is 100"),
    ],
)
def test_other_windows_are_refused(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        profiling.parse_window(text, steps=100)
    assert f"train.profile '{text}'" in str(caught.value)


def test_a_trace_holds_the_windows_steps_and_their_programs_alone(tmp_path):
    traced = run(range(10, 15), tmp_path, steps=17)
    found = events(tmp_path)
    assert annotated(found) == [10, 11, 12, 13, 14]
    runs = {stats["run_id"] for _, stats in found if "polynomial" in stats.get("hlo_module", "")}
    assert len(runs) == 5
    assert not [name for name, _ in found if name.startswith("$")]  # "$file.py:9 function"
    np.testing.assert_array_equal(traced, run(range(0), tmp_path / "plain", steps=17))
    assert not (tmp_path / "plain").exists()


def test_a_run_that_ends_or_begins_inside_the_window_keeps_its_steps(tmp_path, capsys):
    run(range(3, 9), tmp_path / "ends", steps=4)
    assert annotated(events(tmp_path / "ends")) == [3, 4]
    run(range(3, 9), tmp_path / "begins", steps=10, first=7)
    assert annotated(events(tmp_path / "begins")) == [7, 8]
    assert "no trace" not in capsys.readouterr().out
    run(range(3, 9), tmp_path / "later", steps=10, first=9)
    assert "no trace; step 8, the window's last, is already done" in capsys.readouterr().out
    assert not (tmp_path / "later").exists()
