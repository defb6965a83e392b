"""Reading by index: batches are the stream's examples whatever the processes, resume is exact, errors name the row."""

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from t0jax import config
from t0jax.data import iterators, reading
from t0jax.data.iterators import IndexLoader
from t0jax.data.reading import ReadError, Stream, Task
from t0jax.data.rows import DatasetSpec
from t0jax.data.templates import Rendered

DATA = config.Data(
    mixture="fake", input_length=40, target_length=16, batch_size=8, shards=4, pack_rows=3, seed=5
)
HEAVY = ("tensorflow", "seqio", "jax", "torch", "grain")


@dataclasses.dataclass(frozen=True)
class FakeRows:
    """Row i says which row it is; every third one does not apply, and lengths vary."""

    name: str
    length: int

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        if i % 3 == 2:
            return None
        return Rendered(f"{self.name}{i}" + "x" * (7 * i % 19), f"{i}", None)


@dataclasses.dataclass(frozen=True)
class BadRow(FakeRows):
    bad: int = 0

    def __getitem__(self, i):
        if i == self.bad:
            raise KeyError("no such field")
        return super().__getitem__(i)


class EmptyRows(FakeRows):
    def __getitem__(self, i):
        return Rendered("some input", "", None)


class Unspellable(FakeRows):
    """Has text, of which the tokeniser makes nothing."""

    def __getitem__(self, i):
        return Rendered("\0", "some target", None)


class ModuleRows(FakeRows):
    """Tells which heavy modules the reading process has imported."""

    def __getitem__(self, i):
        return Rendered(
            "i", ",".join(name for name in HEAVY if name in sys.modules) or "none", None
        )


class PidRows(FakeRows):
    def __getitem__(self, i):
        return Rendered("i", str(os.getpid()), None)


class InterruptedRows(FakeRows):
    calls = 0

    def __getitem__(self, i):
        InterruptedRows.calls += 1
        if InterruptedRows.calls == 70:
            raise KeyboardInterrupt
        return super().__getitem__(i)


class Letters:
    """Ids are code points."""

    eos_id = 1

    def encode_batch(self, texts):
        return [[ord(letter) for letter in text if letter != "\0"] for text in texts]


def stream(*rows, **changes):
    rows = rows or (FakeRows("a", 50), FakeRows("b", 11))
    tasks = tuple(Task(r.name, r, len(r), 1.0 + k) for k, r in enumerate(rows))
    return Stream(tasks, Letters(), dataclasses.replace(DATA, **changes))


def take(loader, count):
    return [next(loader) for _ in range(count)]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name, strict=True)


def segments(batch):
    """(inputs, targets) texts of every segment of a batch, targets with their EOS."""
    found = []
    for i in range(len(batch["encoder_segment_ids"])):
        for segment in range(1, batch["encoder_segment_ids"][i].max(initial=0) + 1):
            sides = (
                ("encoder_input_tokens", "encoder_segment_ids"),
                ("decoder_target_tokens", "decoder_segment_ids"),
            )
            texts = ["".join(map(chr, batch[t][i][batch[s][i] == segment])) for t, s in sides]
            found.append(tuple(texts))
    return found


def stream_examples(of, shard, count):
    """The first examples of a shard, straight from the mixture's order."""
    order, found = of.order(), []
    for number in range(100):
        draws = order.shard(number, shard, of.data.shards)
        for task, row in zip(draws.task.tolist(), draws.row.tolist(), strict=True):
            lesson = reading.render(of.tasks[task], row, 0, of.data)
            if lesson:
                inputs, targets = lesson.right.inputs, lesson.right.targets + "\1"
                found.append((inputs[: of.data.input_length], targets[: of.data.target_length]))
    return found[:count]


@pytest.mark.parametrize("pack", [True, False])
def test_batches_hold_the_streams_examples_each_once(pack):
    of = stream(shards=2, batch_size=2, pack=pack)
    batches = take(IndexLoader(of), 60 * of.data.pack_rows)
    for shard in range(2):
        rows = [
            {name: array[shard : shard + 1] for name, array in batch.items()} for batch in batches
        ]
        found = [pair for row in rows for pair in segments(row)]
        assert sorted(found) == sorted(stream_examples(of, shard, len(found)))
        if not pack:
            assert found == stream_examples(of, shard, len(found))
            assert all(len(segments(row)) == 1 for row in rows)


@pytest.mark.parametrize("pack", [True, False])
def test_resume_at_every_position(pack):
    of = stream(pack=pack)
    loader = IndexLoader(of)
    states, batches = [loader.state()], []
    for batch in take(loader, 12):
        batches.append(batch)
    loader = IndexLoader(of)
    for batch in batches:
        assert_same([next(loader)], [batch])
        states.append(json.loads(json.dumps(loader.state())))
    for position, state in enumerate(states[:-1]):
        resumed = IndexLoader(of)
        resumed.restore(state)
        assert resumed.state() == state
        assert_same(take(resumed, len(batches) - position), batches[position:])


def test_restoring_a_running_loader_goes_back():
    loader = IndexLoader(stream())
    first = loader.state()
    batches = take(loader, 5)
    loader.restore(first)
    assert_same(take(loader, 5), batches)


def test_batches_of_1_2_and_4_processes_are_the_same():
    of = stream()
    whole = take(IndexLoader(of), 9)
    for count in (2, 4):
        loaders = [IndexLoader(of, process_index=i, process_count=count) for i in range(count)]
        for batch in whole:
            parts = [next(loader) for loader in loaders]
            assert all(len(part["encoder_positions"]) == DATA.batch_size // count for part in parts)
            assert_same([reading.concatenate(parts)], [batch])


def test_a_position_saved_by_two_processes_restores_one():
    of = stream()
    loaders = [IndexLoader(of, process_index=i, process_count=2) for i in range(2)]
    for loader in loaders:
        take(loader, 4)
    states = [loader.state() for loader in loaders]
    union = states[0] | {"shards": states[0]["shards"] | states[1]["shards"]}
    one = IndexLoader(of)
    one.restore(union)
    assert_same(take(one, 3), take(IndexLoader(of), 7)[4:])
    with pytest.raises(config.ConfigError, match="no place for the shards 2, 3"):
        one.restore(states[0])


def test_batches_and_positions_do_not_depend_on_the_workers():
    whole = IndexLoader(stream())
    batches = take(whole, 6)
    for workers in (1, 2, 3):
        with IndexLoader(stream(workers=workers)) as loader:
            assert_same(take(loader, 3), batches[:3])
            state = loader.state()
        with IndexLoader(stream(workers=3 - workers if workers < 3 else 9)) as loader:
            loader.restore(state)
            assert_same(take(loader, 3), batches[3:])
            assert loader.state() == whole.state()


def test_reader_processes_import_nothing_heavy():
    with IndexLoader(stream(ModuleRows("m", 9), workers=1, target_length=64)) as loader:
        assert {targets for _, targets in segments(next(loader))} == {"none\1"}


def test_closing_ends_the_reader_processes_and_reading_can_go_on():
    loader = IndexLoader(stream(PidRows("p", 9), workers=2))
    pids = {int(targets[:-1]) for _, targets in segments(next(loader))}
    assert len(pids) == 2
    loader.close()
    assert not any(alive(pid) for pid in pids)
    assert {int(targets[:-1]) for _, targets in segments(next(loader))}.isdisjoint(pids)
    loader.close()
    loader.close()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_what_a_reader_process_cannot_send_is_an_error():
    script = (
        "import io; from t0jax.data.reading import _Outbox\n"
        "out = _Outbox(io.BytesIO()); out.put(lambda: None); out.finish(); print('went on')"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "pickle" in run.stderr
    assert not run.stdout


def test_no_process_is_left_when_one_of_several_cannot_start(monkeypatch):
    started, real = [], iterators.ReaderProcess

    def start(job):
        if len(started) == 2:
            raise OSError("no more processes")
        started.append(real(job))
        return started[-1]

    monkeypatch.setattr(iterators, "ReaderProcess", start)
    with pytest.raises(OSError, match="no more processes"):
        next(IndexLoader(stream(workers=3)))
    assert len(started) == 2
    assert not any(alive(reader.pid) for reader in started)


def test_reader_processes_end_with_their_parent():
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import test_reading as t
loader = t.IndexLoader(t.stream(t.PidRows("p", 9), workers=2))
print(*{{targets[:-1] for _, targets in t.segments(next(loader))}}, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "reader processes outlive their parent"
        time.sleep(0.05)


def test_a_killed_reader_process_is_an_error_and_nothing_is_lost():
    loader = IndexLoader(stream(PidRows("p", 9), workers=1))
    (_, pid), *_ = segments(next(loader))
    os.kill(int(pid[:-1]), signal.SIGKILL)
    with pytest.raises(ReadError, match="exit code -9"):
        take(loader, 50)  # what had been sent before still comes
    state = loader.state()
    assert next(loader)["encoder_input_tokens"].any()
    assert loader.state() != state
    loader.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_name_the_task_and_the_row(workers):
    loader = IndexLoader(stream(FakeRows("a", 50), BadRow("b", 40, bad=17), workers=workers))
    with pytest.raises(ReadError, match="task 'b', row 17: KeyError: 'no such field'"):
        take(loader, 50)
    loader.close()


def test_an_interrupted_read_leaves_the_position():
    loader = IndexLoader(stream(InterruptedRows("a", 50)))
    InterruptedRows.calls = -10_000
    expected = take(IndexLoader(stream(InterruptedRows("a", 50))), 12)
    InterruptedRows.calls = 0
    batches = []
    while len(batches) < 12:
        try:
            batches.append(next(loader))
        except KeyboardInterrupt:
            InterruptedRows.calls = 1000
    assert InterruptedRows.calls > 1000
    assert_same(batches, expected)


def test_a_task_that_gives_no_example_is_named(monkeypatch):
    monkeypatch.setattr(reading, "MAX_BARREN", 200)
    with pytest.raises(ReadError, match="task 'empty' gave no example in 200 draws"):
        next(IndexLoader(stream(EmptyRows("empty", 30))))
    with pytest.raises(ReadError, match="task 'empty' gave no example in 200 draws"):
        take(IndexLoader(stream(FakeRows("a", 50), EmptyRows("empty", 30))), 100)
    with pytest.raises(ReadError, match="task 'odd' gave no example in 200 draws"):
        next(IndexLoader(stream(Unspellable("odd", 30))))


@dataclasses.dataclass(frozen=True)
class Untold(FakeRows):
    """A part of the rows has no target; to every third one the prompt does not apply."""

    untold: int = 2
    spec: object = None

    def __getitem__(self, i):
        rendered = super().__getitem__(i)
        if rendered and i % self.untold == 0:
            return dataclasses.replace(rendered, targets="")
        return rendered


LOCAL = DatasetSpec("mine", local="here")
WARNING = r"(\d+) of the first 100 rows drawn from (\w+) have no target and are left out \(labels hidden, or outside"


@pytest.mark.parametrize("workers", [0, 2])
def test_many_rows_without_a_target_are_told_once_a_task(workers, caplog, capfd):
    """Half of the rows that the prompt applies to, and so many; a fortieth is not told of."""
    rows = Untold("half", 600, spec=LOCAL), Untold("few", 600, 60)
    with IndexLoader(stream(*rows, workers=workers)) as loader:
        batches = take(loader, 60)
    said = caplog.text if workers == 0 else capfd.readouterr().err
    ((count, task),) = re.findall(WARNING, said)
    assert task == "half"
    assert 20 <= int(count) <= 48  # a third is expected: 33, and a standard deviation of 4.7
    assert "answer choices): run `python -m scripts.prompts lint mine --local here`" in said
    assert_same(batches, take(IndexLoader(stream(*rows)), 60))


def test_rows_that_the_prompt_does_not_apply_to_are_not_told_of(caplog):
    take(IndexLoader(stream(FakeRows("a", 300), Untold("b", 300, 1000))), 60)
    assert "no target" not in caplog.text


def test_long_texts_are_trimmed_on_the_right_and_eos_comes_before_the_trim():
    of = stream(FakeRows("abcdefgh", 30), input_length=9, target_length=2)
    inputs, targets = zip(
        *[pair for batch in take(IndexLoader(of), 20) for pair in segments(batch)], strict=True
    )
    assert {len(text) for text in inputs} == {9}
    assert {"0\1", "1\1", "10", "28"} <= set(targets)
    assert not any(len(text) > 2 for text in targets)
    with_eos = IndexLoader(
        dataclasses.replace(of, data=dataclasses.replace(of.data, input_eos=True, input_length=30))
    )
    assert all(text.endswith("\1") for text, _ in segments(next(with_eos)))


def test_proportions_are_the_rates():
    of = stream(FakeRows("a", 5000), FakeRows("b", 300), FakeRows("c", 40))  # rates 1, 2, 3
    found = [text[0] for batch in take(IndexLoader(of), 600) for text, _ in segments(batch)]
    shares = [found.count(name) / len(found) for name in "abc"]
    np.testing.assert_allclose(shares, [1 / 6, 2 / 6, 3 / 6], atol=0.02)
    neighbours = [a == b for a, b in itertools.pairwise(found)]
    assert np.mean(neighbours) == pytest.approx(1 / 36 + 4 / 36 + 9 / 36, abs=0.05)


def test_the_saved_position_is_small():
    loader = IndexLoader(stream(shards=128, batch_size=128))
    next(loader)
    assert len(json.dumps(loader.state())) < 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": 6}, "data.seed was 5, is 6"), ({"pack_rows": 4}, "data.pack_rows was 3, is 4")],
)
def test_a_position_of_another_stream_is_refused(changes, message):
    state = IndexLoader(stream()).state()
    with pytest.raises(config.ConfigError, match=message):
        IndexLoader(stream(**changes)).restore(state)


def test_a_position_with_other_tasks_is_refused():
    with pytest.raises(config.ConfigError, match="tasks was"):
        IndexLoader(stream(FakeRows("a", 51))).restore(IndexLoader(stream()).state())


def test_a_position_with_another_prompt_is_refused():
    def of(prompt):
        tasks = [dataclasses.replace(task, identity=(prompt,)) for task in stream().tasks]
        return IndexLoader(dataclasses.replace(stream(), tasks=tuple(tasks)))

    of("{{text}}").restore(of("{{text}}").state())
    with pytest.raises(config.ConfigError, match="tasks was"):
        of("{{text}}?").restore(of("{{text}}").state())


@pytest.mark.parametrize(
    ("changes", "processes", "message"),
    [
        ({"batch_size": 6}, 1, "data.batch_size=6 must be a multiple of data.shards=4"),
        ({}, 3, "data.shards=4 must be a multiple of the 3 processes"),
        ({"pack_rows": 0}, 1, "data.pack_rows=0"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes, processes, message):
    with pytest.raises(config.ConfigError, match=message):
        IndexLoader(stream(**changes), process_count=processes)
