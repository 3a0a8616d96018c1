"""Small charts of fields as inline SVG, one per group of dimensions, with round ticks.

A drawing stretches to the width of its plot; labels are HTML, whose size does not change with it.
Sizes are CSS pixels; `page.html` repeats those of a chart. Legend of shapes: S positions along the
axis (frames of an episode, steps of a window), C dimensions of a field.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vlatool.episode import Array, LanguageSpan
from vlatool.pages.layout import Html, details, escape, label_with_unit, table
from vlatool.pages.text import number_text

# Plot of a chart: its width on a page 420 px wide, its smallest height.
PLOT_WIDTH = 170
PLOT_HEIGHT = 96
# Widest character and height of a label.
CHAR_WIDTH = 7
LABEL_HEIGHT = 14
# Longest labels at the left of a plot and under it, in characters.
MAX_LEFT = 8
MAX_BELOW = 6

_MAX_TICKS_BELOW = 6  # number of ticks under a plot
_GAP = 5
# Share of a step that rounding errors stay below.
_STEP_ROUNDING = 1e-6


@dataclass(frozen=True)
class Ticks:
    values: tuple[float, ...]  # ascending multiples of 1, 2 or 5 times a power of ten
    texts: tuple[str, ...]  # label of each tick
    base: str = ""  # number to add to the labels, as text; empty for 0


def ticks_below(low: float, high: float, *, whole: bool = False, signed: bool = False) -> Ticks:
    """Ticks from `low` to `high` with labels under a plot."""
    ticks = Ticks((), ())
    for step in _steps((high - low) / _MAX_TICKS_BELOW, whole=whole):
        first = -_floor(-low, step)
        last = _floor(high, step)
        if last - first >= _MAX_TICKS_BELOW:
            continue
        ticks = _ticks(range(first, last + 1), step, MAX_BELOW, signed=signed)
        width = max(map(len, ticks.texts), default=0) * CHAR_WIDTH + _GAP
        if len(ticks.texts) < 2 or step.size / (high - low) * PLOT_WIDTH >= width:
            break
    return ticks


def ticks_beside(low: float, high: float, *, whole: bool = False) -> Ticks:
    """Ticks that enclose `low` and `high`, which is above, with labels at the left of a plot."""
    most = PLOT_HEIGHT // (LABEL_HEIGHT + _GAP)
    step = next(
        step
        for step in _steps((high - low) / most, whole=whole)
        if -_floor(-high, step) - _floor(low, step) <= most
    )
    return _ticks(range(_floor(low, step), -_floor(-high, step) + 1), step, MAX_LEFT)


class _Step(NamedTuple):
    """Distance of ticks: `factor` times ten to the power of `exponent`."""

    factor: int
    exponent: int

    @property
    def size(self) -> float:
        return self.times(1)

    def times(self, index: int) -> float:
        """Multiple of the step, rounded once."""
        number = index * self.factor
        power = 10 ** abs(self.exponent)
        return float(number * power) if self.exponent >= 0 else number / power


def _steps(least: float, *, whole: bool) -> Iterator[_Step]:
    """Yields steps in ascending order, from the last below `least` on."""
    exponent = math.floor(math.log10(least))
    exponent = max(exponent, 0) if whole else exponent
    while True:
        yield from (_Step(factor, exponent) for factor in (1, 2, 5))
        exponent += 1


def _floor(value: float, step: _Step) -> int:
    return math.floor(value / step.size + _STEP_ROUNDING)


def _ticks(indices: Sequence[int], step: _Step, longest: int, *, signed: bool = False) -> Ticks:
    """Multiples of a step with labels of at most `longest` characters."""
    values = tuple(map(step.times, indices))
    texts = _texts(values, step, longest, signed=signed)
    if texts:
        return Ticks(values, texts)
    base = indices[0] - indices[0] % (10 // step.factor) if values else 0
    differences = [step.times(index - base) for index in indices]
    texts = _texts(differences, step, longest, signed=signed)
    return Ticks(values if texts else (), texts, f"{step.times(base):.12g}" if base else "")


def _texts(values: Sequence[float], step: _Step, longest: int, *, signed: bool) -> tuple[str, ...]:
    """Different labels of at most `longest` characters; empty if there are none."""
    for form in (f".{max(0, -step.exponent)}f", ".3g"):
        texts = tuple(f"{value:{'+' if signed and value > 0 else ''}{form}}" for value in values)
        if max(map(len, texts), default=0) <= longest and len({*texts}) == len(texts):
            return texts
    return ()


# Lines of a chart; page.html has as many colors.
MAX_LINES = 8
# Charts that fit a screen; those after them are collapsed.
PER_SCREEN = 10

# Size of a drawing in its own units.
WIDTH = 300.0
HEIGHT = 100.0
_MAX_POINTS = 240
# Changes below this share of the largest value are rounding errors.
_ROUNDING = 1e-9
_MAX_VALUE = 1e300
# Words in names of dimensions.
_WORDS = re.compile(r"[^a-z0-9]+")
_KINDS: Sequence[tuple[str, re.Pattern[str]]] = (
    ("gripper", re.compile(r"gripper|hand|finger|thumb")),
    ("position", re.compile(r"[xyz]")),
    ("rotation", re.compile(r"r[1-3][1-3]|roll|pitch|yaw|[rq][wxyz]")),
)
_JOINTS = "joints"


@dataclass(frozen=True)
class Axis:
    """Horizontal axis that several charts share."""

    low: float  # value at the left end of the chart
    high: float  # value at the right end
    unit: str = "s"
    whole: bool = False  # True if its ticks are integers
    marks: tuple[float, ...] = ()  # values with a dashed line
    # Value with a solid line, from which the others are counted; None without one.
    anchor: float | None = None
    shaded: tuple[tuple[float, float], ...] = ()  # shaded ranges, such as padding

    def to_x(self, values: Array | float) -> Array:
        """Horizontal positions of values in the drawing."""
        return (np.asarray(values, np.float64) - self.low) / (self.high - self.low) * WIDTH

    @cached_property
    def ticks(self) -> Ticks:
        return ticks_below(self.low, self.high, whole=self.whole, signed=self.anchor is not None)


@dataclass(frozen=True)
class FieldValues:
    name: str
    values: Array  # numbers [S, C]; a line has gaps where they are not finite
    names: Sequence[str]  # C names of its dimensions
    unit: str = ""  # unit of its values; empty if unknown


def field_charts(
    axis: Axis, positions: Array, fields: Iterable[FieldValues], *, dots: bool = False
) -> str:
    """Charts of fields over positions [S], and a table of those that never change."""
    charts: list[str] = []
    constant: dict[Html, str] = {}
    for field in fields:
        numbers = _drawable(field.values)
        is_finite = np.isfinite(numbers)
        low = np.where(is_finite, numbers, np.inf).min(axis=0)
        high = np.where(is_finite, numbers, -np.inf).max(axis=0)
        largest = np.where(is_finite, np.abs(numbers), 0.0).max(axis=0)
        # Dimensions whose finite numbers change, bool [C].
        varies = (high - low) > _ROUNDING * np.maximum(1.0, largest)
        for label, indices in dimension_groups(field.names, np.flatnonzero(varies).tolist()):
            charts.append(_field_chart(axis, positions, field, label, indices, dots=dots))
        if not varies.all():
            constant[label_with_unit(field.name, field.unit)] = _constant_text(field, ~varies)
    more = "".join(charts[PER_SCREEN:])
    return (
        _grid("".join(charts[:PER_SCREEN]))
        + details(f"{len(charts) - PER_SCREEN} more", _grid(more))
        + table(("constant", "values"), constant.items())
    )


def dimension_groups(names: Sequence[str], indices: Sequence[int]) -> list[tuple[str, list[int]]]:
    """(label, dimensions) of groups of at most `MAX_LINES` by name; one group has no label."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(_group(names[index]), []).append(index)
    parts = [
        (label, part)
        for label, members in groups.items()
        for part in _equal_parts(members, MAX_LINES)
    ]
    if len(parts) == 1:
        return [("", parts[0][1])]
    return [
        (label if len(groups[label]) == len(part) else _range_text(names, part), part)
        for label, part in parts
    ]


def step_cells(axis: Axis, positions: Array, rows: Mapping[str, Array]) -> str:
    """Chart with a row of cells [S] per name, filled where true."""
    half = float(axis.to_x(0.5) - axis.to_x(0.0))
    height = HEIGHT / max(len(rows), 1)
    drawn = "".join(
        f'<rect class="cell{"" if flag else " off"}" x="{x - 0.9 * half:.1f}" '
        f'y="{(row + 0.1) * height:.1f}" width="{1.8 * half:.1f}" height="{0.8 * height:.1f}"/>'
        for row, flags in enumerate(rows.values())
        for x, flag in zip(axis.to_x(positions), flags, strict=True)
    )
    labels = [((row + 0.5) / len(rows), name) for row, name in enumerate(rows)]
    return _grid(chart("filled: real steps", axis, drawn, labels, size="low"))


def span_charts(axis: Axis, fps: float, spans: Iterable[LanguageSpan]) -> str:
    """Chart of the texts of each kind over time, in the colors of their sentences."""
    kinds: dict[str, list[LanguageSpan]] = {}
    for span in spans:
        kinds.setdefault(span.kind, []).append(span)
    charts: list[str] = []
    for kind, members in kinds.items():
        texts = {text: number for number, text in enumerate(dict.fromkeys(s.text for s in members))}
        keys = [
            f'<span class="key"><i class="f{number % MAX_LINES}"></i>{escape(text)}</span>'
            for text, number in texts.items()
        ]
        drawn = "".join(_bar(axis, fps, span, texts[span.text] % MAX_LINES) for span in members)
        label = f"<b>{escape(kind)}</b> {'&emsp;'.join(keys)}"
        charts.append(chart(label, axis, background(axis, ()) + drawn, (), size="low"))
    return _grid("".join(charts))


def _bar(axis: Axis, fps: float, span: LanguageSpan, order: int) -> str:
    frames = np.array([span.first - 0.5, span.last + 0.5])
    left, right = axis.to_x(np.clip(frames / fps, axis.low, axis.high))
    path = f'd="M{left:.1f} {HEIGHT / 2:.0f}H{right:.1f}" style="stroke-width:14"'
    return f'<path class="line s{order}" {path}><title>{escape(span.text)}</title></path>'


def chart(
    label: str,  # HTML
    axis: Axis,  # horizontal axis
    drawing: str,  # SVG elements
    left: Iterable[tuple[float, str]],  # (distance from the top as a share of the height, text)
    legend: str = "",  # HTML
    *,
    size: str = "",  # CSS class of the height
) -> str:
    """Chart: its label above, ticks at the left and below, legend at the right."""
    ticks = axis.ticks
    below = zip((axis.to_x(np.array(ticks.values)) / WIDTH).tolist(), ticks.texts, strict=True)
    unit = axis.unit + f" + {ticks.base}" * bool(ticks.base)
    return (
        f'<figure class="chart {size}"><figcaption>{label}</figcaption>'
        f'<div class="left">{_labels("top", left)}</div>'
        f'<div class="plot"><svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" '
        f'preserveAspectRatio="none">{drawing}</svg></div>'
        f'<div class="legend">{legend}</div>'
        f'<div class="below">{_labels("left", below)}</div>'
        f'<div class="unit">{escape(unit)}</div></figure>'
    )


def left_labels(ticks: Ticks) -> list[tuple[float, str]]:
    """Labels at the left of a chart whose ends are the first and the last tick."""
    if not ticks.values:
        return []
    bottom = ticks.values[0]
    top = ticks.values[-1]
    shares = [(top - value) / (top - bottom) for value in ticks.values]
    return list(zip(shares, ticks.texts, strict=True))


def _labels(side: str, labels: Iterable[tuple[float, str]]) -> str:
    return "".join(
        f'<span style="{side}:{100 * share:.2f}%">{escape(text)}</span>' for share, text in labels
    )


def _grid(charts: str) -> str:
    return f'<div class="charts">{charts}</div>' if charts else ""


def _group(name: str) -> str:
    group, _, number = name.rpartition(".")
    if group and number.isdecimal():
        return group
    words = [word for word in _WORDS.split(name.lower()) if word]
    side = next((word for word in words if word in ("left", "right")), "")
    matches = (kind for kind, words_of in _KINDS if any(map(words_of.fullmatch, words)))
    return f"{side} {next(matches, _JOINTS)}".strip()


def _equal_parts(members: Sequence[int], most: int) -> list[list[int]]:
    count = -(-len(members) // most)
    return [part.tolist() for part in np.array_split(np.array(members, int), count)]


def _range_text(names: Sequence[str], part: Sequence[int]) -> str:
    first = names[part[0]]
    last = names[part[-1]]
    return first if first == last else f"{first} to {last}"


def _constant_text(field: FieldValues, is_constant: Array) -> str:
    numbers = _drawable(field.values)
    texts: list[str] = []
    for index in np.flatnonzero(is_constant).tolist():
        finite = numbers[np.isfinite(numbers[:, index]), index]
        value = number_text(float(finite[0])) if finite.size else "not finite"
        texts.append(value if len(field.names) == 1 else f"{field.names[index]} {value}")
    return ", ".join(texts)


def _field_chart(
    axis: Axis,
    positions: Array,
    field: FieldValues,
    group: str,
    indices: Sequence[int],
    *,
    dots: bool,
) -> str:
    shown = _drawable(field.values[:, list(indices)])
    finite = shown[np.isfinite(shown)]
    low = float(finite.min())
    high = float(finite.max())
    ticks = ticks_beside(low, high)
    bottom, top = (ticks.values[0], ticks.values[-1]) if ticks.values else (low, high)
    x = axis.to_x(positions)
    y = (top - shown) / (top - bottom) * HEIGHT
    lines = "".join(line(x, y[:, order], order, dots=dots) for order in range(y.shape[1]))
    left = left_labels(ticks)
    base = f' <span class="quiet">+ {ticks.base}</span>' if ticks.base else ""
    part = f" <b>{escape(group)}</b>" if group else ""
    label = f"{label_with_unit(field.name, field.unit)}{part}{base}"
    drawing = background(axis, [share * HEIGHT for share, _ in left]) + lines
    return chart(label, axis, drawing, left, _legend(field, group, indices))


def _legend(field: FieldValues, group: str, indices: Sequence[int]) -> str:
    """Color and name of each line; empty for a field of one dimension."""
    if len(field.names) == 1:
        return ""
    return "".join(
        f'<span class="key"><i class="f{order}"></i>'
        f"{escape(field.names[index].removeprefix(f'{group}.'))}</span>"
        for order, index in enumerate(indices)
    )


def _drawable(values: Array) -> Array:
    """Numbers as float64; NaN for those that are not finite or too large for differences."""
    numbers = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(numbers) < _MAX_VALUE, numbers, np.nan)


def background(axis: Axis, heights: Sequence[float]) -> str:
    """Shades, marks and horizontal lines of a chart, at heights from its top."""
    parts = [
        f'<rect class="shade" x="{float(axis.to_x(low)):.1f}" y="0" '
        f'width="{float(axis.to_x(high) - axis.to_x(low)):.1f}" height="{HEIGHT:.0f}"/>'
        for low, high in axis.shaded
    ]
    across = "".join(f"M0 {y:.1f}H{WIDTH:.0f}" for y in heights)
    parts.append(f'<path class="rule" d="{across}"/>' if across else "")
    rules = [("mark", axis.marks), ("anchor", () if axis.anchor is None else (axis.anchor,))]
    for kind, values in rules:
        down = "".join(f"M{float(axis.to_x(value)):.1f} 0V{HEIGHT:.0f}" for value in values)
        parts.append(f'<path class="{kind}" d="{down}"/>' if down else "")
    return "".join(parts)


def line(xs: Array, ys: Array, order: int, *, dots: bool = False) -> str:
    """Line in the color `order`, in segments between gaps; a single position is a dot."""
    indices = _downsampled(ys)
    xs = xs[indices]
    ys = ys[indices]
    finite = np.isfinite(ys)
    points = [f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True)]
    padded = np.concatenate([[False], finite, [False]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(padded))
    runs = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    if not runs:
        return ""
    drawn = "".join(f"M{'L'.join(points[start:stop])}" for start, stop in runs if stop - start > 1)
    dotted = finite if dots else _single_positions(len(ys), runs)
    round_dots = "".join(f"M{points[index]}h0" for index in np.flatnonzero(dotted))
    path = f'<path class="line s{order}" d="{drawn}"/>' if drawn else ""
    return path + (f'<path class="line dot s{order}" d="{round_dots}"/>' if round_dots else "")


def _single_positions(count: int, runs: Sequence[tuple[int, int]]) -> Array:
    flags = np.zeros(count, bool)
    flags[[start for start, stop in runs if stop - start == 1]] = True
    return flags


def _downsampled(values: Array) -> Array:
    """Indices of points that keep the peaks of a long line: minimum and maximum of short parts."""
    count = len(values)
    if count <= _MAX_POINTS:
        return np.arange(count)
    parts = np.array_split(np.arange(count), _MAX_POINTS // 2)
    indices: set[int] = {0, count - 1}
    for part in parts:
        finite = np.isfinite(values[part])
        indices |= {int(index) for index in part[~finite][:1]}
        if finite.any():
            numbers = values[part][finite]
            indices_of_part = part[finite]
            indices |= {
                int(indices_of_part[numbers.argmin()]),
                int(indices_of_part[numbers.argmax()]),
            }
    return np.array(sorted(indices))
