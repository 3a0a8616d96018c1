"""Draws charts of numeric fields, one per group of dimensions.

Legend of shapes: S positions along the axis (frames of an episode, steps of a window), C dimensions
of a field.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.report.facts import Axis, Chart, Curve, Fold, Part, Table
from vlatool.report.page import NUM_COLORS
from vlatool.report.text import MAX_DRAWN, number_text

_PER_SCREEN = 10  # charts that fit a screen; those after them are collapsed
_EQUAL = 1e-6  # share by which a prediction may differ from an equal value
_ROUNDING = 1e-9  # changes below this share of the largest value are rounding errors
_MOST_PAIRS = 4  # dimensions of a chart with recorded and predicted values
_WORDS = re.compile(r"[^a-z0-9]+")  # between words in names of dimensions
_KINDS: Sequence[tuple[str, re.Pattern[str]]] = (
    ("gripper", re.compile(r"gripper|hand|finger|thumb")),
    ("position", re.compile(r"[xyz]")),
    ("rotation", re.compile(r"r[1-3][1-3]|roll|pitch|yaw|[rq][wxyz]")),
)
_JOINTS = "joints"


@dataclass(frozen=True)
class FieldValues:
    name: str
    values: Array  # numbers [S, C]; a line has gaps where they are not finite
    names: Sequence[str]  # C names of its dimensions
    unit: str = ""  # unit of its values; empty if unknown

    @property
    def title(self) -> str:
        return f"{self.name} [{self.unit}]" if self.unit else self.name


def field_charts(
    axis: Axis, positions: Array, fields: Iterable[FieldValues], *, has_dots: bool = False
) -> list[Part]:
    """Charts of fields over positions [S], and a table of dimensions that never change."""
    charts: list[Chart] = []
    constant: list[tuple[str, str]] = []
    for field in fields:
        varies = _varies(field.values)
        for label, indices in dimension_groups(field.names, np.flatnonzero(varies).tolist()):
            lines: list[Curve] = []
            for index in indices:
                name = field.names[index].removeprefix(f"{label}.")
                shown = "" if len(field.names) == 1 else name
                lines.append(Curve(shown, positions, field.values[:, index]))
            charts.append(Chart(field.title, lines, axis, label, has_dots=has_dots))
        if not varies.all():
            constant.append((field.title, _constant_text(field, ~varies)))
    return [*screens(charts), Table(("constant", "values"), constant)]


def screens(charts: Sequence[Chart]) -> list[Part]:
    """Charts; all after the first ten are collapsed."""
    rest = charts[_PER_SCREEN:]
    return [*charts[:_PER_SCREEN], Fold(f"{len(rest)} more", rest)]


def prediction_charts(
    axis: Axis, positions: Array, fields: Iterable[tuple[FieldValues, Array]], *, has_dots: bool
) -> list[Part]:
    """Charts of recorded fields, with the predicted values [S, C] of each dashed in its color, and
    a table of the dimensions in which neither changes and both are equal.
    """
    charts: list[Chart] = []
    constant: list[tuple[str, str]] = []
    for field, predicted in fields:
        varies = _varies(field.values) | _varies(predicted) | _differs(field.values, predicted)
        shown = np.flatnonzero(varies).tolist()
        for first in range(0, len(shown), _MOST_PAIRS):
            lines: list[Curve] = []
            for color, index in enumerate(shown[first : first + _MOST_PAIRS]):
                name = field.names[index]
                label = "recorded" if len(field.names) == 1 else name
                lines.append(Curve(label, positions, field.values[:, index], color))
                dashed = f"{name} predicted" if len(field.names) > 1 else "predicted"
                lines.append(Curve(dashed, positions, predicted[:, index], color, is_dashed=True))
            charts.append(Chart(field.title, lines, axis, has_dots=has_dots))
        if not varies.all():
            constant.append((field.title, _constant_text(field, ~varies)))
    return [*screens(charts), Table(("constant", "values"), constant)]


def metric_charts(title: str, curves: Sequence[Curve]) -> list[Chart]:
    """Charts of curves over steps, at most eight lines in each; empty without finite values."""
    shown = [curve for curve in curves if np.isfinite(curve.y).any()]
    if not shown:
        return []
    low = min(float(curve.x[0]) for curve in shown)
    high = max(float(curve.x[-1]) for curve in shown)
    margin = 0.5 if low == high else 0.0
    axis = Axis(low - margin, high + margin, "step", whole=True)
    charts: list[Chart] = []
    for start in range(0, len(shown), NUM_COLORS):
        part = shown[start : start + NUM_COLORS]
        charts.append(Chart(title, part, axis, may_be_log=True))
    return charts


def dimension_groups(names: Sequence[str], indices: Sequence[int]) -> list[tuple[str, list[int]]]:
    """(label, dimensions) of groups of at most eight by name; one group has no label."""
    groups: dict[str, list[int]] = {}
    for index in indices:
        groups.setdefault(_group(names[index]), []).append(index)
    parts: list[tuple[str, list[int]]] = []
    for label, members in groups.items():
        count = -(-len(members) // NUM_COLORS)
        for part in np.array_split(np.array(members, int), count):
            numbers: list[int] = part.tolist()
            first = names[numbers[0]]
            last = names[numbers[-1]]
            shown = label
            if count > 1:
                shown = first if first == last else f"{first} to {last}"
            parts.append((shown, numbers))
    if len(parts) == 1:
        return [("", parts[0][1])]
    return parts


def _group(name: str) -> str:
    group, _, number = name.rpartition(".")
    if group and number.isdecimal():
        return group
    words = [word for word in _WORDS.split(name.lower()) if word]
    side = next((word for word in words if word in ("left", "right")), "")
    kind = _JOINTS
    for known, pattern in _KINDS:
        if any(pattern.fullmatch(word) for word in words):
            kind = known
            break
    return f"{side} {kind}".strip()


def _varies(values: Array) -> Array:
    """Dimensions whose drawable numbers change, bool [C]."""
    numbers = values.astype(np.float64)
    with np.errstate(invalid="ignore"):
        is_drawn = np.abs(numbers) < MAX_DRAWN
    low = np.where(is_drawn, numbers, np.inf).min(axis=0, initial=np.inf)
    high = np.where(is_drawn, numbers, -np.inf).max(axis=0, initial=-np.inf)
    largest = np.where(is_drawn, np.abs(numbers), 0.0).max(axis=0, initial=0.0)
    return (high - low) > _ROUNDING * np.maximum(1.0, largest)


def _differs(recorded: Array, predicted: Array) -> Array:
    """Dimensions whose predictions differ from the record, or are not finite, bool [C]."""
    with np.errstate(invalid="ignore"):
        gap = np.nan_to_num(np.abs(predicted - recorded), nan=0.0).max(axis=0, initial=0.0)
    largest = np.nan_to_num(np.abs(recorded), nan=0.0).max(axis=0, initial=1.0)
    return (gap > _EQUAL * largest) | ~np.isfinite(predicted).all(axis=0)


def _constant_text(field: FieldValues, is_constant: Array) -> str:
    texts: list[str] = []
    for index in np.flatnonzero(is_constant).tolist():
        column = field.values[:, index]
        finite = column[np.isfinite(column)]
        value = number_text(float(finite[0])) if finite.size else "not finite"
        if 0 < finite.size < column.size:
            value += f" (not finite in {column.size - finite.size})"
        texts.append(value if len(field.names) == 1 else f"{field.names[index]} {value}")
    return ", ".join(texts)
