"""Tables of statistics of fields, as text and HTML.

Legend of shapes: T steps of a window, C dimensions of a field.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.formats.field_summary import FieldSummary, Names, summarize_field, unit
from vlatool.formats.stats.layout import Statistics, number_array
from vlatool.pages.layout import Html, details, field_label, heading, label_with_unit, table
from vlatool.pages.plots import sparkline
from vlatool.pages.text import number_text, range_text, text_table

_COLUMNS = ("mean", "std", "min", "percentile_1", "percentile_99", "max")
_PER_STEP = Html("mean &plusmn; std per step")
_HEADER = ("field", "dimension", "mean", "std", "min", "1 %", "99 %", "max", _PER_STEP)


def field_summary(name: str, entry: Mapping[str, Any], recorded: Names) -> FieldSummary | None:
    """Summary of a field from its entry in stats.json; None if that is broken."""
    try:
        mean = np.asarray(entry["mean"], np.float64)
        values = {key: np.asarray(entry[key], np.float64) for key in ("min", "max")}
        std = np.broadcast_to(np.asarray(entry["std"], np.float64), mean.shape)
    except (KeyError, TypeError, ValueError):
        return None
    if mean.ndim != 1 or any(value.shape != mean.shape for value in values.values()):
        return None
    return summarize_field(name, {**values, "mean": mean, "std": std}, recorded)


def field_table(fields: Sequence[FieldSummary]) -> str:
    """Table of fields of training samples, one row per field."""
    header = ("name", "width", "range", "mean", "std", "constant dimensions")
    rows = (
        (
            field.name,
            field.width,
            field.range_text,
            range_text(field.mean),
            range_text(field.std),
            field.constant_text,
        )
        for field in fields
    )
    return text_table("Fields", header, rows)


def statistics_html(
    statistics: Statistics, fields: Sequence[FieldSummary], policy: Mapping[str, Sequence[str]]
) -> str:
    """Tables of the dimensions of all fields."""
    known = {info.name: info for info in fields}

    def tabled(names: Sequence[str]) -> str:
        return _statistics_table({name: statistics[name] for name in names}, known)

    policy_tables = "".join(
        heading(title, tabled([name for name in names if name in statistics]))
        for title, names in policy.items()
    )
    policy_names = {name for names in policy.values() for name in names}
    others = [name for name in statistics if name not in policy_names]
    rest = tabled(others)
    if not policy_tables:
        return rest
    return policy_tables + details(f"{len(others)} more fields", rest)


def _statistics_table(statistics: Statistics, known: Mapping[str, FieldSummary]) -> str:
    constant = {name: values for name in statistics if (values := _constant(known.get(name)))}
    rows = [
        row
        for name in statistics
        if name not in constant
        for row in _dimension_rows(name, statistics[name], known.get(name))
    ]
    constant_table = table(
        ("constant field", "values"),
        [
            (label_with_unit(name, unit(name)), Html(f"<code>{values}</code>"))
            for name, values in constant.items()
        ],
    )
    return table(_HEADER, rows, numbers=range(1, 8)) + constant_table


def _constant(info: FieldSummary | None) -> str:
    """Values of a constant field as text; empty for one that changes."""
    if info is None or len(info.constant) < info.width:
        return ""
    return ", ".join(map(number_text, info.mean))


def _dimension_rows(
    name: str, entry: Mapping[str, Any], info: FieldSummary | None
) -> list[tuple[object, ...]]:
    mean = number_array(entry.get("mean"))
    if mean is None or mean.ndim != 1:
        return [(field_label(name), "", *[""] * len(_COLUMNS), "not readable")]
    width = len(mean)
    columns = [_column(entry.get(key), width) for key in _COLUMNS]
    steps = _steps(entry, width)
    names = info.names if info and info.names else [str(number) for number in range(width)]
    return [
        (
            label_with_unit(name, unit(name)) if index == 0 else "",
            dimension,
            *(number_text(float(c[index])) if np.isfinite(c[index]) else "-" for c in columns),
            "" if steps is None else Html(sparkline(steps[0][:, index], steps[1][:, index])),
        )
        for index, dimension in enumerate(names)
    ]


def _column(value: object, width: int) -> Array:
    """Numbers [C]; NaN if there are none."""
    numbers = number_array(value)
    try:
        return np.broadcast_to(np.nan if numbers is None else numbers, (width,))
    except ValueError:
        return np.full(width, np.nan)


def _steps(entry: Mapping[str, Any], width: int) -> tuple[Array, Array] | None:
    """Mean and std per step [T, C]; None if they are missing or broken."""
    mean = number_array(entry.get("mean_per_timestep"))
    std = number_array(entry.get("std_per_timestep"))
    if mean is None or std is None or mean.ndim != 2 or mean.shape[1] != width:
        return None
    try:
        return mean, np.broadcast_to(std, mean.shape)
    except ValueError:
        return None
