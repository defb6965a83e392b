"""Multitask loader: whole items, each once, the same batches whatever the processes, readers and stops."""

import collections
import dataclasses
import json
import re

import numpy as np
import pytest
from structured_data import Choices, Tags, Topic, write_mixed_data, write_rows

from scripts import records
from t0jax import config
from t0jax.data import loader as loader_lib
from t0jax.data.reading import ReadError
from t0jax.data.rows import DataUnavailable
from t0jax.data.shares import find_shares
from t0jax.data.structured import assembly, items
from t0jax.data.structured import loader as multitask
from t0jax.data.structured.pieces import PairPieces
from t0jax.data.structured.records import RecordError
from t0jax.data.vocabulary import VocabularyError, train_sentencepiece

DATA = config.Data(
    mixture="mt_all",
    modules=(),
    rates="rows",
    input_length=64,
    length_buckets=(8, 16, 64),
    max_choices=4,
    batch_size=16,
)
MIXTURES = {
    "mt_all": ("topics", "questions", "tagged"),
    "mt_some": ("topics", "ghosts"),
    "mt_kept": ("only_news", "questions"),
    "mt_torn": ("topics", "hollow", "torn"),
    "mt_bad": ("badly",),
    "mt_worse": ("topics", "badly", "mute", "early", "ghosts"),
}
UNTRIED = 5
"""A row of sixty that opening does not read."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The settings of a mixture of three kinds of tasks, with a vocabulary trained on it."""
    seqio = pytest.importorskip("seqio")
    from t0jax.data import sources
    from t0jax.data.structured.source import add_task

    root = tmp_path_factory.mktemp("multitask")
    write_mixed_data(root)
    hidden = [{"text": f"b{i}", "label": -1} for i in range(60)]
    bad = {"text": "b", "label": 3}
    assert UNTRIED not in np.linspace(0, 59, multitask.PROBED).astype(int)
    told = [{"text": "b0", "label": 1}, *hidden[1:]]
    write_rows(root, "badly", "train", [*told[:UNTRIED], bad, *told[UNTRIED + 1 :]])
    write_rows(root, "early", "train", [*told[:2], bad, bad])
    write_rows(root, "mute", "train", hidden)
    records = [Topic(), Choices(), Tags()]
    write_rows(root, "hollow", "train", [])
    write_rows(root, "torn", "train", [])
    (root / "torn" / "default" / "train.jsonl").write_text("{")
    others = ("ghosts", "badly", "mute", "early", "hollow", "torn")
    records += [Topic(dataset=name) for name in others]
    records.append(Topic(name="only_news", where=_is_news))
    names = [add_task(record).name for record in records]
    for name, tasks in MIXTURES.items():
        sources.add_mixture(name, dict.fromkeys(tasks, 1.0))
    patch = pytest.MonkeyPatch()
    patch.setenv("T0JAX_DATA_DIR", str(root))
    patch.setenv("T0JAX_CACHE_DIR", str(root / "cache"))
    settings = dataclasses.replace(
        DATA, vocabulary=str(root / "spm.model"), vocabulary_train_size=40
    )
    loader_lib.train_vocabulary(settings)
    yield settings
    patch.undo()
    for name in MIXTURES:
        seqio.MixtureRegistry.remove(name)
    for name in names:
        seqio.TaskRegistry.remove(name)


def make(data, parts=1, place=(0, 1), **changes):
    index, count = place
    data = dataclasses.replace(data, **changes)
    return loader_lib.make_loader(data, process_index=index, process_count=count, parts=parts)


def take(loader, count):
    return [next(loader) for _ in range(count)]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


MODES = [
    {"parts": 1},
    {"parts": 4},
    {"parts": 2, "length_buckets": ()},
    {"parts": 4, "batching": "single_task"},
]


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_changes_nothing(data, mode):
    whole = make(data, **mode)
    for _ in range(4):
        stopped = make(data, **mode)
        stopped.restore(json.loads(json.dumps(whole.state())))
        assert_same(take(whole, 5), take(stopped, 5))
        assert whole.state() == stopped.state()


@pytest.mark.parametrize("mode", MODES)
def test_processes_read_the_parts_of_the_same_batches(data, mode):
    alone = make(data, **mode)
    pair = [make(data, place=(index, 2), **mode) for index in range(2)]
    for _ in range(8):
        batch, parts = next(alone), [next(loader) for loader in pair]
        together = {name: np.concatenate([part[name] for part in parts]) for name in batch}
        assert_same([batch], [together])
        assert alone.cut_examples == sum(loader.cut_examples for loader in pair)
        tokens = [one.counts(part)[0] for one, part in zip(pair, parts, strict=True)]
        assert alone.counts(batch)[0] == sum(tokens)
        assert alone.counts(batch)[1]["cut"] == alone.cut_examples / batch["loss_weights"].sum()
    assert alone.state() == pair[0].state() == pair[1].state()


def test_reader_processes_change_nothing(data):
    here, there = make(data), make(data, workers=2)
    with there:
        assert_same(take(here, 12), take(there, 12))
        assert here.state() == there.state()
        there.restore(here.state())
        assert_same(take(here, 3), take(there, 3))


@pytest.mark.parametrize("mode", MODES)
def test_items_are_whole_and_lie_in_one_micro_batch(data, mode):
    loader = make(data, **mode)
    asks = [head.kind == "multiple_choice" for head in loader.heads]
    for batch in take(loader, 12):
        assert len(batch["task_ids"]) == 16
        used = batch["encoder_segment_ids"].any(axis=1)
        assert set(batch["encoder_segment_ids"][:, 0].tolist()) <= {0, 1}
        assert not batch["loss_weights"][~used].any()
        rows_of = collections.defaultdict(list)
        for row in np.flatnonzero(used):
            rows_of[batch["item_ids"][row]].append(row)
        for item, rows in rows_of.items():
            assert item == rows[0]
            assert len({row % mode["parts"] for row in rows}) == 1
            assert len(set(batch["task_ids"][rows])) == 1
            assert batch["loss_weights"][rows].sum() == 1
            if asks[batch["task_ids"][item]]:
                assert 2 <= len(rows) <= 4
                np.testing.assert_array_equal(batch["label_ids"][rows], batch["loss_weights"][rows])
            else:
                assert len(rows) == 1


def stream_of(data, **changes):
    data = dataclasses.replace(data, **changes)
    return items.ItemStream(tuple(multitask.open_tasks(data)), PairPieces(data.vocabulary), data)


@pytest.mark.parametrize("buckets", [(64,), (8, 16, 64)])
def test_every_row_of_an_epoch_comes_once_and_none_waits_too_long(data, buckets):
    stream = stream_of(data)
    mixed = assembly.Mixed(stream, assembly.Layout(16, buckets, 2), items.ChunkReader, None)
    served, entered, waited = [], {}, []
    for number in range(450):
        placed = mixed.next()
        for drawn, _ in placed.items:
            served.append(drawn.place)
            assert drawn.item.length <= placed.length
            waited.append(number - entered.get(drawn.place, number))
        for place in mixed.state()["waiting"]:
            entered.setdefault(place, number)
    assert len(set(served)) == len(served)
    assert max(waited) <= assembly.MOST_WAIT
    reader, read, after = items.ChunkReader(stream, 0), [], 0
    while after < mixed.state()["next"]:
        found, after = reader.read()
        read += found
    rest = mixed.state()["waiting"]
    assert sorted([*served, *rest]) == [drawn.place for drawn in read]
    block = stream.order().block(0)  # of 20 epochs and more; places below 2**20 are its draws
    draws = collections.Counter(
        (int(block.task[place]), int(block.epoch[place]), int(block.row[place]))
        for place in served
        if place < len(block)
    )
    assert set(draws.values()) == {1}
    for task, size in enumerate((24, 16, 60)):
        assert {row for of, epoch, row in draws if (of, epoch) == (task, 3)} == set(range(size))


@pytest.mark.parametrize(("only", "sizes"), [(0, [24]), (1, [16]), (None, [24, 16, 60])])
def test_an_epoch_of_a_task_ends_before_its_next_begins(data, only, sizes):
    order = dataclasses.replace(stream_of(data), only=only).order()
    blocks = [order.block(number) for number in range(2)]
    assert len({tuple(block.task[:20]) for block in blocks}) == len(blocks) or only is not None
    for task, size in enumerate(sizes):
        rows = np.concatenate([block.row[block.task == task] for block in blocks])
        epochs = rows[: len(rows) // size * size].reshape(-1, size)
        assert len(epochs) > 50
        np.testing.assert_array_equal(
            np.sort(epochs, axis=1), np.tile(np.arange(size), (len(epochs), 1))
        )


def test_short_texts_are_not_padded_to_the_longest(data):
    def cells_a_token(**changes):
        batches = take(make(data, batch_size=4, **changes), 240)  # many an epoch
        used = sum(batch["encoder_segment_ids"].sum() for batch in batches)
        return sum(batch["encoder_segment_ids"].size for batch in batches) / used

    assert cells_a_token() < 0.75 * cells_a_token(length_buckets=())
    lengths = {
        batch["task_ids"].shape + batch["encoder_input_tokens"].shape
        for batch in take(make(data), 60)
    }
    assert lengths <= {(16, 16, 8), (16, 16, 16), (16, 16, 64)}


@pytest.mark.parametrize("batching", ["mixed", "single_task"])
def test_tasks_are_read_by_their_rows_up_to_the_cap(data, batching):
    loader = make(data, batching=batching, rate_cap=20)
    found = np.zeros(3)
    for batch in take(loader, 600):
        for task in range(3):
            found[task] += ((batch["task_ids"] == task) * batch["loss_weights"]).sum()
        if batching == "single_task":
            assert len(set(batch["task_ids"][batch["encoder_segment_ids"].any(axis=1)])) == 1
    assert loader.tasks == ("questions", "tagged", "topics")
    assert found / found.sum() == pytest.approx(np.array([20, 16, 20]) / 56, abs=0.04)


def test_rows_left_out_do_not_thin_a_task(data):
    """A task weighs as the rows that `where` keeps; few shots are of those."""
    task = next(t for t in multitask.open_tasks(data) if t.name == "topics")
    rows = dataclasses.replace(
        task.rows, record=dataclasses.replace(task.rows.record, where=_is_news)
    )
    kept = multitask._make_task(rows, 1.0, data)
    assert (rows.training_rows(), rows.training_rows(4)) == (30, 4)
    assert (kept.length, kept.rate) == (30, 30.0)
    assert kept.chosen.tolist() == list(range(0, 60, 2))
    few = multitask._make_task(rows, 1.0, dataclasses.replace(data, num_shots=4))
    assert few.length == 4
    assert set(few.chosen.tolist()) < set(kept.chosen.tolist())
    stream = items.ItemStream((few,), PairPieces(data.vocabulary), data)
    assert all(stream.example(0, row).label == 0 for row in range(4))
    none = dataclasses.replace(rows, record=dataclasses.replace(rows.record, where=bool))
    assert multitask._make_task(none, 1.0, data).length == 60
    fails = dataclasses.replace(rows, record=dataclasses.replace(rows.record, where="gone"))
    with pytest.raises(RecordError, match=r"^task 'topics'.*no column 'gone'"):
        multitask._make_task(fails, 1.0, data)


def _is_news(row):
    return row["label"] == 0


@pytest.mark.parametrize("changes", [{}, {"num_shots": 12}, {"rate_cap": 20}])
def test_the_table_of_shares_counts_the_rows_that_are_drawn_from(data, changes):
    kept = dataclasses.replace(data, mixture="mt_kept", **changes)
    tasks = multitask.open_tasks(kept)
    total = sum(task.rate for task in tasks)
    found = {share.name: (share.rows, share.share) for share in find_shares(kept, "task", True)}
    assert found == {task.name: (task.length, task.rate / total) for task in tasks}
    by_data = {share.name: share.rows for share in find_shares(kept, "dataset", True)}
    assert by_data == {task.rows.spec.name: task.length for task in tasks}


def test_few_shots_are_the_same_rows_in_every_epoch(data):
    loader = make(data, mixture="topics", num_shots=5)
    rows = {row.tobytes() for b in take(loader, 12) for row in b["encoder_input_tokens"][:, :8]}
    assert len(rows) == 5


def test_heads_and_vocabulary_of_a_mixture(data):
    heads = loader_lib.find_heads(data)
    assert [head.task for head in heads] == ["questions", "tagged", "topics"]
    path = loader_lib.find_vocabulary(data)
    assert loader_lib.vocabulary_size(data, path) == PairPieces(path).size == 41
    assert loader_lib.added_ids(data) == 1
    texts = list(loader_lib.mixture_texts(data))
    for kind in (
        "w[0-9]+ runs unknown",
        "q[0-9]+ which one",
        "o[0-9]+x1",
        "t[0-9]+ (news of the day )*",
    ):
        assert any(re.fullmatch(kind, text) for text in texts)


def test_seqio_users_read_the_texts(data):
    import seqio

    mixture = seqio.get_mixture_or_task("mt_all")
    elements = mixture.get_dataset(None, "train", shuffle=False, num_epochs=1)
    seen = set()
    for element in elements.take(60).as_numpy_iterator():
        first, second, labels = (
            [text.decode() for text in element[name]]
            for name in ("sentence1", "sentence2", "labels")
        )
        seen.add(first[0][0])
        if first[0].startswith("q"):
            assert labels[0] in second
            assert len(first) == len(second)
        elif first[0].startswith("w"):
            assert labels == ["N", "V", ""]
        else:
            assert labels == [["news", "sport"][int(first[0].split()[0][1:]) % 2]]
    assert seen == {"t", "q", "w"}
    source = seqio.TaskRegistry.get("topics").source
    assert source.splits == ("train", "validation")
    shards = [source.get_dataset("train", False, None, seqio.ShardInfo(i, 2)) for i in range(2)]
    assert sum(len(list(shard.as_numpy_iterator())) for shard in shards) == 60


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_stops_reading_with_its_task_and_number(data, workers):
    message = f"^task 'badly', row {UNTRIED}: label 3 is outside the 2 declared labels"
    with make(data, mixture="mt_bad", workers=workers) as loader:
        with pytest.raises(ReadError, match=message):
            next(loader)
        with pytest.raises(ReadError, match=message):
            next(loader)


def test_what_stops_training_is_told_when_it_is_opened_and_listed_row_by_row(data):
    for mixture, reason in (
        ("mute", "task 'mute': none of the 60 rows looked at gives an example"),
        ("early", "task 'early', row 2: label 3 is outside"),
    ):
        with pytest.raises(RecordError, match=reason):
            make(data, mixture=mixture)
    worse = dataclasses.replace(data, mixture="mt_worse", available_only=True)
    with pytest.raises(
        RecordError,
        match=r"'early', row 2: .*; 1 more cannot be read: 'mute'; .* mt_worse .*` lists",
    ):
        loader_lib.find_heads(worse)
    found = list(multitask.check_rows(worse))
    assert [one[:2] for one in found] == [
        ("badly", UNTRIED),
        ("early", 2),
        ("early", 3),
        ("mute", None),
    ]
    with_ghosts = multitask.check_rows(dataclasses.replace(worse, available_only=False))
    assert {task for task, *_ in with_ghosts} == {"badly", "early", "ghosts", "mute"}
    assert list(multitask.check_rows(data)) == []


def test_the_script_lists_tasks_and_what_is_wrong_with_their_rows(data, capsys):
    def run(command, mixture, *flags):
        status = records.main([command, "--mixture", mixture, "--module", "json", *flags])
        return status, [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]

    status, lines = run("list", "mt_some", "--data")
    assert (status, lines[1:]) == (
        0,
        [["ghosts", "classification", "?", "?", "?"], ["topics", "classification", "60", "7", "?"]],
    )
    assert ["only_news", "classification", "30", "4", "?"] in run("list", "mt_kept", "--data")[1]
    status, lines = run("check", "mt_worse", "--available_only")
    assert (status, lines[0][:2]) == (1, ["badly", str(UNTRIED)])
    assert lines[-1][0].endswith(": 4 found")
    rows = sum(task.length for task in multitask.open_tasks(data))
    assert run("check", "mt_all") == (0, [[f"{rows} rows of train, tasks: 3: no row is wrong"]])


def test_readers_that_single_tasks_do_not_use_are_told(data, caplog):
    make(data, batching="single_task", workers=2)
    assert "data.workers 2 plays no part" in caplog.text


def test_a_position_of_other_tasks_is_refused_by_their_names(data):
    saved = make(data).state()
    with pytest.raises(
        config.ConfigError, match=r"2 tasks are no longer read: questions, tagged\. Go"
    ):
        make(data, mixture="topics").restore(saved)
    saved["stream"]["tasks"]["tagged"] = "0"
    with pytest.raises(config.ConfigError, match=r"1 task is changed .*: tagged\. .*or state"):
        make(data).restore(saved)
    saved["stream"] = {**saved["stream"], "structured order": 1, "tasks": "0"}
    with pytest.raises(config.ConfigError, match="structured order was 1, is 3"):
        make(data).restore(saved)


def test_missing_data_is_told_in_one_table(data, caplog):
    table = r"(?s)1 data set \(1 of 2 tasks\) of 'mt_some' cannot be had:.*ghosts +1 task"
    for read in (make, loader_lib.find_heads):
        with pytest.raises(DataUnavailable, match=table):
            read(dataclasses.replace(data, mixture="mt_some"))
    rest = dataclasses.replace(data, mixture="mt_some", available_only=True)
    assert [head.task for head in loader_lib.find_heads(rest)] == ["topics"]
    assert make(rest).tasks == ("topics",)


def test_a_broken_or_empty_file_is_one_of_the_table_too(data):
    torn = dataclasses.replace(data, mixture="mt_torn")
    reasons = {"hollow": "no rows in ", "torn": "line 1: not JSON"}
    table = "(?s)2 data sets .*" + ".*".join(f"{k} +1 task +.*{v}" for k, v in reasons.items())
    with pytest.raises(DataUnavailable, match=table):
        make(torn)
    assert make(dataclasses.replace(torn, available_only=True)).tasks == ("topics",)
    lost = {share.name: share.missing for share in find_shares(torn, "task", True)}
    assert [name for name, reason in lost.items() if not reason] == ["topics"]
    assert all(reason in lost[name] for name, reason in reasons.items())


def test_a_task_id_is_taken_once(data):
    from t0jax.data.structured.source import add_task

    assert add_task(Topic()).name == "topics"
    taken = (
        r"^task 'topics': the id is taken: .* labels \('news', 'sport'\), here \('sport', 'news'\)"
    )
    with pytest.raises(RecordError, match=taken):
        add_task(Topic(labels=("sport", "news")))
    with pytest.raises(RecordError, match=r"^task 'topics': the id is taken"):
        add_task(Topic(), "topics_again")


def test_mixtures_of_both_kinds_and_vocabularies_of_t5_are_refused(data, tmp_path):
    import seqio

    from t0jax.data import sources
    from t0jax.data.rows import DatasetSpec

    text = sources.add_prompt_task("mt_text", DatasetSpec("topics"), "none")
    with pytest.raises(ValueError, match="Tasks with different output features"):
        sources.add_mixture("mt_both", {"topics": 1.0, text.name: 1.0})
    features = seqio.TaskRegistry.get("topics").output_features
    seqio.TaskRegistry.add("mt_own", source=text.source, output_features=features)
    sources.add_mixture("mt_both", {"topics": 1.0, "mt_own": 1.0})
    try:
        both = dataclasses.replace(data, mixture="mt_both")
        for read in (make, loader_lib.find_heads):
            with pytest.raises(
                config.ConfigError, match=r"structured tasks \('topics'\) and others"
            ):
                read(both)
        text_alone = dataclasses.replace(data, mixture=text.name)
        assert loader_lib.find_heads(text_alone) == ()
        assert loader_lib.added_ids(text_alone) == 100
    finally:
        seqio.MixtureRegistry.remove("mt_both")
        seqio.TaskRegistry.remove("mt_text")
        seqio.TaskRegistry.remove("mt_own")
    t5 = train_sentencepiece(["news of the day"] * 9, tmp_path / "t5.model", 18)
    with pytest.raises(VocabularyError, match=r"is not a vocabulary of DeBERTa-v3"):
        make(data, vocabulary=str(t5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": 3}, "data.batch_size=16 must be a multiple of the 3 micro-batches"),
        ({"place": (0, 3)}, "data.batch_size=16 must be a multiple of the 3 processes"),
        ({"parts": 8}, "a micro-batch of 2 rows .* data.max_choices=4 .*lower train.grad_acc"),
        (
            {"batch_size": 2},
            "a micro-batch of 2 rows .* data.max_choices=4 .*raise data.batch_size",
        ),
        ({"view": "channel"}, "data.view=channel is only for tasks of texts to texts"),
        ({"cache_dir": "x"}, "data.cache_dir=x is only for tasks of texts to texts"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(data, changes, message):
    with pytest.raises(config.ConfigError, match=message):
        make(data, **changes)


def test_a_position_of_another_stream_is_refused(data):
    state = make(data).state()
    with pytest.raises(config.ConfigError, match=r"data.seed was 0, is 1"):
        make(data, seed=1).restore(state)
    with pytest.raises(config.ConfigError, match="3 tasks are changed"):
        make(data, rate_cap=3).restore(state)
