"""Mixed batches of any spread of lengths: how far is read ahead, how long an item waits, how often a row is read."""

import collections
import json
from types import SimpleNamespace

import numpy as np
import pytest

from t0jax import config
from t0jax.data.structured import assembly, items
from t0jax.data.structured.encoding import Item

LENGTHS = (32, 64, 128, 256)


class Sized(items.ItemStream):
    """A stream of items of told sizes, whose labels are their rows' numbers; `rows` are (length, width) pairs."""

    def read(self, places, draws):
        sizes = [self.tasks[0].rows.sizes[row] for row in draws.row]
        return [
            items.Drawn(place, 0, Item((np.zeros(length, np.int32),) * width, int(row)))
            for place, row, (length, width) in zip(places, draws.row, sizes, strict=True)
        ]


class Counted(items.ChunkReader):
    """Counts the rows that are read."""

    rows = 0

    def read(self):
        found, after = super().read()
        self.rows += sum(len(drawn.item.rows) for drawn in found)
        return found, after


def stream_of(counts, widths=(1,)):
    """`counts[i]` rows of length `LENGTHS[i]`, their widths in turn."""
    lengths = np.repeat(LENGTHS, counts).tolist()
    sizes = [(length, widths[i % len(widths)]) for i, length in enumerate(lengths)]
    rows = SimpleNamespace(record=SimpleNamespace(name="sized"), sizes=sizes)
    return Sized((items.StructuredTask(rows, len(sizes), 1.0),), None, config.Data(mixture="sized"))


def mixed_of(stream, layout, state=None):
    return assembly.Mixed(stream, layout, Counted, state)


SPREADS = {
    "rare long": (30, 120, 92, 8),
    "rarest long": (0, 150, 99, 1),
    "rare short": (1, 0, 0, 299),
    "both": (3, 200, 90, 2),
    "even": (60, 60, 60, 60),
    "one": (0, 300, 0, 0),
    "large": (1, 0, 2400, 3),
    "few": (10, 20, 5, 5),
    "fewest": (4, 4, 4, 4),
}
LAYOUTS = [assembly.Layout(32, LENGTHS, 1), assembly.Layout(8, LENGTHS, 2)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.rows}")
@pytest.mark.parametrize("counts", SPREADS.values(), ids=SPREADS)
def test_rows_come_as_often_as_epochs_were_read_give_or_take_one(counts, layout):
    stream, size = stream_of(counts), sum(counts)
    mixed, patience = mixed_of(stream, layout), assembly.patience(stream, layout)
    assert patience <= min(size / 2, 64 * layout.rows)
    seen, last = collections.Counter(), 0
    for step in range(1, 4 * size // layout.rows):
        placed = mixed.next().items
        assert len(placed) == layout.rows
        seen.update(one.item.label for one, _ in placed)
        last = max(last, *(items.draw_number(one.place) for one, _ in placed))
        waiting = map(items.draw_number, mixed.state()["waiting"])
        assert last < min(waiting, default=last) + patience
        epochs = step * layout.rows / size
        found = [seen[row] for row in range(size)]
        assert epochs - 2 < min(found) <= max(found) < epochs + 2
        if (step * layout.rows) % size < layout.rows:
            assert round(epochs) - 1 <= min(found) <= max(found) <= round(epochs) + 1


@pytest.mark.parametrize("widths", [(1,), (4, 2, 5)])
@pytest.mark.parametrize("counts", [(1, 0, 0, 999), *SPREADS.values()])
def test_no_more_is_read_ahead_than_a_batch_of_every_length_and_a_chunk(counts, widths):
    layout, widest = LAYOUTS[0], max(widths)
    mixed, before = mixed_of(stream_of(counts, widths), layout), 0
    bound = len(LENGTHS) * (layout.rows + widest) + items.CHUNK * widest
    served, used = [], 0
    for _ in range(80):
        placed = mixed.next()
        rows = [row for _, places in placed.items for row in places]
        assert len(set(rows)) == len(rows) > layout.rows - widest
        served += [one.place for one, _ in placed.items]
        used += len(rows)
        assert mixed._source.rows - before <= bound
        assert mixed._source.rows - used <= bound
        before = mixed._source.rows
    places = sorted(served + mixed.state()["waiting"])
    assert [items.draw_number(place) for place in places] == list(range(len(places)))


def test_a_rare_short_row_rides_with_longer_ones():
    """Rows of a batch differ, but for those that end one epoch and begin the next."""
    stream, layout = stream_of((1, 0, 0, 999)), LAYOUTS[0]
    mixed, short = mixed_of(stream, layout), 0
    for _ in range(250):
        placed = mixed.next()
        rows = collections.Counter(one.item.label for one, _ in placed.items)
        epochs = {items.draw_number(one.place) // 1000 for one, _ in placed.items}
        assert max(rows.values()) <= max(1, len(epochs)) <= 2
        short += rows[0]
    assert 7 <= short <= 9


@pytest.mark.parametrize("counts", [SPREADS["both"], SPREADS["few"]])
def test_a_stop_changes_nothing_whatever_waits(counts):
    stream, layout = stream_of(counts, (1, 3)), LAYOUTS[0]
    whole = mixed_of(stream, layout)
    for _ in range(60):
        stopped = mixed_of(stream, layout, json.loads(json.dumps(whole.state())))
        batches = [mixed.next() for mixed in (whole, stopped)]
        mine, other = ([(one.place, rows) for one, rows in batch.items] for batch in batches)
        assert mine == other
        assert batches[0].length == batches[1].length
        assert whole.state() == stopped.state()
