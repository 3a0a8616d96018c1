"""Checks of an episode that only `verify` makes; they read data that nothing else needs.

Legend of shapes: F frames, C dimensions. Source: formats/lerobot 6, 9, 12.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Self

import numpy as np

from vlatool.artifacts.lerobot.format import (
    FRAME_INDEX,
    moments,
)
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Collector
from vlatool.sources.lerobot.dataset import EpisodeFiles
from vlatool.sources.lerobot.lists import (
    Statistics,
)
from vlatool.sources.lerobot.rows import Rows, read_rows
from vlatool.sources.lerobot.rules import EpisodeContents
from vlatool.sources.parquet_images import ParquetImages


def check_values(files: EpisodeFiles, contents: EpisodeContents, report: Collector) -> None:
    """Checks the order of rows, finite values, motion, and published statistics."""
    rows = contents.rows
    if rows is None:
        return
    _check_counting(rows, contents, report)
    _check_undeclared(files, rows, report)
    for name, values in contents.fields.items():
        names = files.dataset.info.features[name].dimension_names
        report.attempt(partial(rows.check_finite, name, values, names))
    vectors = {**contents.fields, **dict(_other_fields(files, rows, report))}
    _check_motion(rows, contents, report)
    for name, frames in contents.cameras.items():
        if isinstance(frames, ParquetImages):
            report.attempt(partial(frames.read, [0]), camera=name)
    published = files.statistics()
    summaries = {name: Moments.of(values) for name, values in vectors.items() if len(values)}
    for name, problem in statistics_mismatches(published, summaries):
        message = f"published statistics of {rows.episode}: {name} {problem}"
        report.note("stats_contradict", message, field=name)


def _check_counting(rows: Rows, contents: EpisodeContents, report: Collector) -> None:
    """Checks that rows are in order and that `index` is continuous."""
    location = {"path": str(rows.path)}
    if (np.diff(rows.order) != 1).any():
        message = f"{rows.path}: rows are not in the order of frame_index"
        report.note("rows_unsorted", message, **location, field=FRAME_INDEX)
    values = contents.metadata.get("index", ())
    start = values[0] if values and isinstance(values[0], int) else 0
    frame = next((row for row, value in enumerate(values) if value != row + start), None)
    if frame is not None:
        message = f"index is {values[frame]} at row {frame}, expected {frame + start}"
        report.note("index_gap", f"{rows.path}: {message}", **location, field="index", frame=frame)


def _check_undeclared(files: EpisodeFiles, rows: Rows, report: Collector) -> None:
    for name in rows.columns:
        if name not in files.dataset.info.features:
            message = f"{rows.path}: the column {name!r} is not a feature in meta/info.json"
            report.note("undeclared_column", message, path=str(rows.path), field=name)


def _other_fields(
    files: EpisodeFiles, rows: Rows, report: Collector
) -> Iterator[tuple[str, Array]]:
    """Numeric columns that are not fields of the episode, as [F, C]; defects are warnings."""
    used, features = files.dataset.field_names, files.dataset.info.features
    others = [
        name
        for name, feature in features.items()
        if feature.width is not None and feature.is_readable_number
        if name in rows.columns and name not in used
    ]
    try:
        columns = [read_rows(rows.segment, rows.episode, others)] * len(others)
    except DataError:  # of one column at least
        columns = []
    for name, column in zip_longest(others, columns):
        try:
            if column is None:
                column = read_rows(rows.segment, rows.episode, [name])
            values = column.vectors(name, features[name].width)
            column.check_finite(name, values)
        except DataError as error:
            report.note("unused_column", error.message, path=str(rows.path), field=name)
        else:
            yield name, values


def _check_motion(rows: Rows, contents: EpisodeContents, report: Collector) -> None:
    used = list(contents.fields.values())
    if used and len(used[0]) > 1 and not any(np.ptp(field, axis=0).any() for field in used):
        message = f"{rows.path}: no observation or action changes"
        report.note("no_motion", message, path=str(rows.path))


# float32 sums over many rows; SO-101 agrees with its rows to 3e-4. Source: formats/lerobot 9
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Moments:
    """Statistics of the rows of a field; `min`, `max`, `mean`, `std` are float64 [C]."""

    min: Array
    max: Array
    mean: Array
    std: Array
    count: int

    @classmethod
    def of(cls, values: Array) -> Self:
        """Statistics of rows [F, C], of which there is one at least."""
        return cls(**moments(values), count=len(values))


def statistics_mismatches(
    stated: Statistics, rows: Mapping[str, Moments]
) -> Iterator[tuple[str, str]]:
    """(feature, problem) of published statistics that differ from those of the rows."""
    for name, actual in rows.items():
        entry = stated.get(name)
        if entry is None:
            continue
        scale = np.maximum(np.maximum(np.abs(actual.min), np.abs(actual.max)), 1e-6)
        for key in ("min", "max", "mean", "std"):
            problem = _difference(key, entry.get(key), getattr(actual, key), scale)
            if problem:
                yield name, problem
        count = entry.get("count")
        if count and count not in (actual.count, [actual.count]):
            yield name, f"has count {str(count)[:40]}, there are {counted(actual.count, 'row')}"


def _difference(key: str, stated: object, actual: Array, scale: Array) -> str:
    if stated is None:
        return ""
    try:
        numbers = np.asarray(stated, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        return f"{key} is not a list of numbers"
    if numbers.shape != actual.shape:
        return f"{key} has {counted(len(numbers), 'value')}, the rows have {len(actual)}"
    differs = ~(np.abs(numbers - actual) <= _TOLERANCE * scale)
    if not differs.any():
        return ""
    column = int(differs.argmax())
    return (
        f"{key} of dimension {column} is {numbers[column]:.6g}, "
        f"that of the rows is {actual[column]:.6g}"
    )
