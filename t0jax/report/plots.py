"""Plots as SVG that stays legible at any width.

Horizontal places are percentages of the plot's width and everything else is pixels, so that a narrow page gets a narrow
plot with letters of the same size. Colours are classes of `style.css`, which knows light and dark.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup, escape

SHAPES = {
    "diamond": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "triangle": "M0 -5.5L5.5 4.5L-5.5 4.5Z",
    "square": "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "cross": "M-4.5 -1.5H-1.5V-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5Z",
    "wedge": "M0 5.5L5.5 -4.5L-5.5 -4.5Z",
}
"""Outlines around (0, 0), for published figures: told apart by shape as well as by colour."""

SERIES = 6
"""Colours of models in `style.css`."""

STRIP_HEIGHT = 56
_MARKS, _TOP, _BOTTOM, _MEAN = 8, 17, 43, 50
"""Heights in a strip: of the published figures, of the box, and of the mean's interval."""
_DOT, _STEP = 3.4, 6.0


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element; text and attributes are escaped, `class_` and `stroke_width` are spelled as in SVG."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>{''.join(map(escape, children))}</{name}>")


@dataclass(frozen=True)
class Axis:
    """A range of values over the plot's width."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> str:
        return f"{100 * self.fraction(value):.2f}%"

    def fraction(self, value: float) -> float:
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def accuracy_axis(values: Iterable[float] = ()) -> Axis:
    """From 0 to 100%, or the tens of percents around `values`."""
    points = [10 * value for value in values] or [0.0, 10.0]
    low, high = math.floor(min(points) - 0.2), math.ceil(max(points) + 0.2)
    low, high = max(0, low), min(10, high)
    step = 2 if high - low > 5 else 1
    return Axis(low / 10, high / 10, tuple(k / 10 for k in range(low, high + 1) if k % step == 0))


def number_axis(values: Sequence[float], from_zero: bool = False) -> Axis:
    """Round ticks around the values."""
    low, high = min(values), max(values)
    low = min(low, 0.0) if from_zero else low
    if low == high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * k for k in (1, 2, 5, 10) if (high - low) / (power * k) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(k * step for k in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


@dataclass(frozen=True)
class Mark:
    """A published figure."""

    value: float
    series: int
    """Of its model, from 0; decides shape and colour."""
    label: str
    hollow: bool = False
    """It is of something wider than this data set."""


@dataclass(frozen=True)
class Strip:
    """One model on one data set: `dots` are (accuracy, label) of its prompts."""

    dots: Sequence[tuple[float, str]]
    chance: float
    mean: float
    interval: tuple[float, float] | None
    series: int = 0
    """Of the model, from 0; decides the colour."""
    marks: Sequence[Mark] = field(default_factory=tuple)

    @property
    def extent(self) -> list[float]:
        """All values that a plot of it shows."""
        values = [value for value, _ in self.dots]
        return [*values, *(mark.value for mark in self.marks), *(self.interval or ()), self.chance]


def strip(row: Strip, axis: Axis, name: str) -> Markup:
    """Box and dots over prompts, chance, the mean with its interval, and published figures; `name` is read aloud."""
    parts = [
        *_grid(axis, STRIP_HEIGHT),
        _upright(axis, row.chance, 4, STRIP_HEIGHT, "chance", f"chance {row.chance:.1%}"),
        *_box(row, axis),
        *_dots(row, axis),
        *_mean(row, axis),
        *(mark_at(axis.place(mark.value), _MARKS, mark) for mark in row.marks),
    ]
    return tag(
        "svg",
        tag("title", f"{name}: mean accuracy {row.mean:.1%} over {len(row.dots)} prompts"),
        *parts,
        class_=f"strip series-{row.series % SERIES}",
        width="100%",
        height=STRIP_HEIGHT,
        role="img",
    )


def _grid(axis: Axis, height: float) -> list[Markup]:
    return [_upright(axis, tick, 0, height, "grid") for tick in axis.ticks]


def _upright(
    axis: Axis, value: float, top: float, bottom: float, style: str, title: str = ""
) -> Markup:
    """A vertical line."""
    x = axis.place(value)
    children = (tag("title", title),) if title else ()
    return tag("line", *children, x1=x, x2=x, y1=top, y2=bottom, class_=style)


def _box(row: Strip, axis: Axis) -> list[Markup]:
    """Median, quartiles by linear interpolation, whiskers to the best and the worst prompt."""
    values = [value for value, _ in row.dots]
    least, low, middle, high, most = np.percentile(values, [0, 25, 50, 75, 100])
    centre = (_TOP + _BOTTOM) / 2
    width = f"{100 * (axis.fraction(high) - axis.fraction(low)):.2f}%"
    title = (
        f"median {middle:.1%}, quartiles {low:.1%} and {high:.1%}, range {least:.1%} to {most:.1%}"
    )
    return [
        tag("line", x1=axis.place(least), x2=axis.place(most), y1=centre, y2=centre, class_="whisker"),
        tag("rect", tag("title", title), x=axis.place(low), width=width, y=_TOP, height=_BOTTOM - _TOP, rx=2,
            class_="box"),
        _upright(axis, middle, _TOP, _BOTTOM, "median", f"median {middle:.1%}"),
    ]  # fmt: skip


def _dots(row: Strip, axis: Axis) -> list[Markup]:
    """Every prompt; those that would lie on one another are stacked around the middle."""
    groups: dict[int, list[tuple[float, str]]] = {}
    for value, label in row.dots:
        groups.setdefault(round(70 * axis.fraction(value)), []).append((value, label))
    room, centre = (_BOTTOM - _TOP) / 2 - 1, (_TOP + _BOTTOM) / 2
    dots = []
    for group in groups.values():
        step = min(_STEP, 2 * room / max(1, len(group) - 1))
        for number, (value, label) in enumerate(group):
            y = centre + step * (number - (len(group) - 1) / 2)
            title = tag("title", f"{label}: {value:.1%}")
            dots.append(
                tag("circle", title, cx=axis.place(value), cy=f"{y:.1f}", r=_DOT, class_="dot")
            )
    return dots


def _mean(row: Strip, axis: Axis) -> list[Markup]:
    low, high = row.interval or (row.mean, row.mean)
    words = f"mean {row.mean:.1%}" + (f", {low:.1%} to {high:.1%}" if row.interval else "")
    return [
        tag("line", x1=axis.place(low), x2=axis.place(high), y1=_MEAN, y2=_MEAN, class_="interval"),
        tag("circle", tag("title", words), cx=axis.place(row.mean), cy=_MEAN, r=3, class_="mean"),
    ]


def mark_at(x: str, y: float, mark: Mark) -> Markup:
    shape = list(SHAPES.values())[mark.series % len(SHAPES)]
    style = f"mark mark-{mark.series % len(SHAPES)}{' hollow' if mark.hollow else ''}"
    path = tag("path", tag("title", mark.label), d=shape, class_=style)
    return tag("svg", path, x=x, y=y, overflow="visible", width=1, height=1)


def scale(axis: Axis) -> Markup:
    """The tick labels under a column of strips."""
    labels = [
        tag("text", f"{tick:.0%}", x=axis.place(tick), y=14, text_anchor=_anchor(axis, tick))
        for tick in axis.ticks
    ]
    return tag("svg", *labels, class_="scale", width="100%", height=20, aria_hidden="true")


def _anchor(axis: Axis, tick: float) -> str:
    return {0.0: "start", 1.0: "end"}.get(axis.fraction(tick), "middle")


def whisker(
    value: float, interval: tuple[float, float] | None, chance: float, axis: Axis, series: int = 0
) -> Markup:
    """One prompt's accuracy and interval, small enough for a table's cell."""
    low, high = interval or (value, value)
    return tag(
        "svg",
        _upright(axis, chance, 0, 18, "chance"),
        tag("line", x1=axis.place(low), x2=axis.place(high), y1=9, y2=9, class_="interval"),
        tag("circle", cx=axis.place(value), cy=9, r=_DOT, class_="dot"),
        class_=f"whisker-cell series-{series % SERIES}",
        height=18,
        aria_hidden="true",
    )


@dataclass(frozen=True)
class Line:
    """One curve of a panel."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    style: str
    """A class of `style.css`."""


CURVE_HEIGHT = 190
_POINTS = 300


def panel(lines: Sequence[Line], name: str, from_zero: bool = False) -> Markup:
    """Curves over training steps, with their own scale of values."""
    across = number_axis([step for line in lines for step in line.steps], from_zero=True)
    lines = [_thinned(line) for line in lines]
    up = number_axis([value for line in lines for value in line.values], from_zero)
    levels = [f"{100 * (1 - up.fraction(tick)):.2f}%" for tick in up.ticks]
    rules = [tag("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid") for y in levels]
    heights = [
        tag("text", f"{tick:.6g}", x=-6, y=y, dy="0.35em", text_anchor="end")
        for tick, y in zip(up.ticks, levels, strict=True)
    ]
    steps = [
        tag("text", f"{tick:,.0f}", x=across.place(tick), y=CURVE_HEIGHT + 16, text_anchor=_anchor(across, tick))
        for tick in across.ticks
    ]  # fmt: skip
    curves = [_curve(line, across, up) for line in lines]
    # Curves are stretched to the plot, their strokes are not.
    plot = tag(
        "svg",
        *curves,
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        width="100%",
        height="100%",
    )
    return tag("svg", tag("title", name), *rules, *heights, *steps, plot, class_="panel", width="100%",
               height=CURVE_HEIGHT, role="img")  # fmt: skip


def _curve(line: Line, across: Axis, up: Axis) -> Markup:
    places = [
        f"{1000 * across.fraction(step):.1f},{1000 * (1 - up.fraction(value)):.1f}"
        for step, value in zip(line.steps, line.values, strict=True)
    ]
    # A single point is drawn as a line of no length, with round ends.
    points = " ".join(places if len(places) > 1 else 2 * places)
    title = tag("title", f"{line.name}: {line.values[-1]:.4g} at the end")
    style = {"class": f"curve {line.style}", "vector_effect": "non-scaling-stroke"}
    return tag("polyline", title, points=points, **style)


def _thinned(line: Line) -> Line:
    """Means over equal stretches, where there are more points than a plot can show."""
    if len(line.values) <= _POINTS:
        return line
    steps, values = np.array_split(line.steps, _POINTS), np.array_split(line.values, _POINTS)
    return Line(line.name, [s[-1] for s in steps], [v.mean() for v in values], line.style)
