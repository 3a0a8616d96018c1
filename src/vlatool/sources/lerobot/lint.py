"""Checks of a LeRobot episode that only `verify` makes; they read data that nothing else needs.

Legend of shapes: F frames, C dimensions. Source: formats/lerobot 6, 8, 9, 12.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np

from vlatool.artifacts.lerobot import FRAME_INDEX
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.findings import Collector
from vlatool.sources.lerobot.dataset import EpisodeFiles
from vlatool.sources.lerobot.rows import Rows, read_rows
from vlatool.sources.lerobot.rules import EpisodeContents
from vlatool.sources.lerobot.set_rules import episode_statistics, statistics_mismatches
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
    published = episode_statistics(files.dataset.root).get(files.line.number, {})
    for name, problem in statistics_mismatches(published, vectors):
        message = f"meta/episodes_stats.jsonl, {rows.episode}: {name} {problem}"
        report.note("stats_contradict", message, field=name)


def _check_counting(rows: Rows, contents: EpisodeContents, report: Collector) -> None:
    """Checks that rows are in order and that `index` is continuous."""
    location = {"path": str(rows.path)}
    if not np.array_equal(rows.order, np.arange(len(rows))):
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
    for name in others:
        try:
            column = read_rows(rows.path, rows.episode, [name])
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
