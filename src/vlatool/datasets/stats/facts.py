"""Tables of statistics of fields.

Legend of shapes: T steps of a window, C dimensions of a field.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.datasets.stats.layout import Statistics, number_array
from vlatool.episode import Array
from vlatool.recordings.field_summary import FieldSummary, Names, summarize_field, unit
from vlatool.report.facts import Fold, Part, Table, Titled
from vlatool.report.text import number_text, range_text, spark_text

_COLUMNS = ("mean", "std", "min", "percentile_1", "percentile_99", "max")
_SPARK = 8  # characters of the course of a mean
_HEADER = ("field", "dimension", "mean", "std", "min", "1 %", "99 %", "max", "mean per step")


def field_summary(name: str, entry: Mapping[str, Any], recorded: Names) -> FieldSummary | None:
    """Summary of a field from its entry in stats.json; None if that is broken."""
    try:
        mean = np.asarray(entry["mean"], np.float64)
        low = np.asarray(entry["min"], np.float64)
        high = np.asarray(entry["max"], np.float64)
        std = np.broadcast_to(np.asarray(entry["std"], np.float64), mean.shape)
    except (KeyError, TypeError, ValueError):
        return None
    if mean.ndim != 1 or low.shape != mean.shape or high.shape != mean.shape:
        return None
    return summarize_field(name, {"min": low, "max": high, "mean": mean, "std": std}, recorded)


def field_table(fields: Sequence[FieldSummary]) -> Table:
    """Table of fields of training samples, one row per field."""
    header = ("name", "width", "range", "mean", "std", "constant dimensions")
    rows: list[tuple[object, ...]] = []
    for field in fields:
        values = (field.range_text, range_text(field.mean), range_text(field.std))
        rows.append((field.name, field.width, *values, field.constant_text))
    return Table(header, rows, "Fields")


def statistics_parts(
    statistics: Statistics, fields: Sequence[FieldSummary], policy: Mapping[str, Sequence[str]]
) -> list[Part]:
    """Tables of the dimensions of all fields; fields of the policy come first, by the titles of
    `policy`.
    """
    summaries = {info.name: info for info in fields}
    parts: list[Part] = []
    others = dict(statistics)
    for title, names in policy.items():
        entries = {name: statistics[name] for name in names if name in statistics}
        if entries:
            parts.append(Titled(title, _statistics_tables(entries, summaries)))
        for name in names:
            others.pop(name, None)
    tables = _statistics_tables(others, summaries)
    if not parts:
        return tables
    return [*parts, Fold(f"{len(others)} more fields", tables)]


def _statistics_tables(statistics: Statistics, summaries: Mapping[str, FieldSummary]) -> list[Part]:
    rows: list[tuple[object, ...]] = []
    constant: list[tuple[str, str]] = []
    for name, entry in statistics.items():
        info = summaries.get(name)
        if info is not None and info.width and len(info.constant) == info.width:
            constant.append((_label(name), ", ".join(map(number_text, info.mean))))
        else:
            rows += _dimension_rows(name, entry, info)
    return [Table(_HEADER, rows), Table(("constant field", "values"), constant)]


def _label(name: str) -> str:
    """Name of a field with its unit."""
    return f"{name} [{unit(name)}]" if unit(name) else name


def _dimension_rows(
    name: str, entry: Mapping[str, Any], info: FieldSummary | None
) -> list[tuple[object, ...]]:
    """Rows of a field, one for each dimension."""
    mean = number_array(entry.get("mean"))
    if mean is None or mean.ndim != 1:
        return [(name, "", *[""] * len(_COLUMNS), "not readable")]
    width = len(mean)
    columns = [_column(entry.get(key), width) for key in _COLUMNS]
    steps = number_array(entry.get("mean_per_timestep"))
    if steps is not None and (steps.ndim != 2 or steps.shape[1] != width):
        steps = None
    names = [str(number) for number in range(width)]
    if info is not None and info.names:
        names = info.names
    rows: list[tuple[object, ...]] = []
    for index, dimension in enumerate(names):
        numbers: list[str] = []
        for column in columns:
            value = float(column[index])
            numbers.append(number_text(value) if np.isfinite(value) else "-")
        course = "" if steps is None else spark_text(steps[:, index].tolist(), _SPARK)
        rows.append((_label(name), dimension, *numbers, course))
    return rows


def _column(value: object, width: int) -> Array:
    """Numbers [C]; NaN if there are none."""
    numbers = number_array(value)
    if numbers is not None and numbers.shape in ((), (1,), (width,)):
        return np.broadcast_to(numbers, (width,))
    return np.full(width, np.nan)
