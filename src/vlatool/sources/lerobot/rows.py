"""Rows of a LeRobot episode as checked arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlatool.artifacts.field_summary import dimension_label
from vlatool.artifacts.lerobot.format import EPISODE_INDEX, FRAME_INDEX
from vlatool.artifacts.lerobot.tables import (
    episode_spans,
    read_segment,
    table_columns,
    table_length,
)
from vlatool.episode import Array, RowSegment
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.sources.base import check_is_data_file


@dataclass(frozen=True)
class Rows:
    """Requested columns of one episode, in frame order.

    Attributes:
        segment: Their place in a parquet file.
        episode: Name of the episode in errors, such as `episode 3`.
        table: The columns.
        order: Row in the file of each frame, int [F].
        columns: All columns of the file, read or not.
    """

    segment: RowSegment
    episode: str
    table: pa.Table
    order: Array
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def path(self) -> Path:
        """The parquet file."""
        return self.segment.path

    def require(self, name: str) -> None:
        """Raises DataError unless the file has the column `name`."""
        if name not in self.columns:
            known = ", ".join(self.columns)
            raise self._error(name, f"is missing; available: {known}", "data.missing_column")

    def values(self, name: str) -> list[Any]:
        """Values of a column as Python objects."""
        return self.table.column(name).to_pylist()

    def first(self, name: str) -> Any:
        """Value of a column in the first row."""
        return self.table.column(name)[0].as_py()

    def numbers(self, name: str) -> list[Any]:
        """Values of a scalar numeric column; None for null, NaN and infinity.

        Raises:
            DataError: The column is not numeric.
        """
        dtype = self.table.schema.field(name).type
        if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
            raise self._error(name, f"holds {dtype}, expected numbers", "data.not_numeric")
        values = self.values(name)
        return [None if value is None or not np.isfinite(value) else value for value in values]

    def labels(self, name: str) -> list[Any]:
        """Values of a column of integers or texts.

        Raises:
            DataError: The column has another type.
        """
        dtype = self.table.schema.field(name).type
        if pa.types.is_dictionary(dtype):  # each distinct text is stored once
            chunks = self.table.column(name).chunks
            texts = [(chunk.dictionary.to_pylist(), chunk.indices.to_pylist()) for chunk in chunks]
            return [
                None if index is None else values_of[index]
                for values_of, rows in texts
                for index in rows
            ]
        if not pa.types.is_integer(dtype):
            problem = f"holds {dtype}, expected integers or texts"
            raise self._error(name, problem, "data.not_numeric")
        return self.values(name)

    def vectors(self, name: str, width: int | None) -> Array:
        """Numeric column as [F, C] in its stored dtype; booleans become float32.

        C is `width`, the declared width; None: the width of the first row.

        Raises:
            DataError: Values are missing or not numeric, or rows differ in width.
        """
        self.require(name)
        return self._matrix(name, self.table.column(name).combine_chunks(), width)

    def check_finite(self, name: str, values: Array, dimensions: Sequence[str] = ()) -> None:
        """Raises DataError if a value of a column [F, C] is NaN or infinite.

        Args:
            name: The column.
            values: Its values.
            dimensions: Names of the C dimensions, if known.
        """
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0].tolist()
            value = "NaN" if np.isnan(values[row, column]) else "an infinite value"
            label = dimension_label(name, column, values.shape[1], {name: dimensions})
            dimension = label.removeprefix(name).removeprefix(": ")
            problem = f"has {value} at row {row}{f', {dimension}' if dimension else ''}"
            raise self._error(name, problem, "data.non_finite", row)

    def _matrix(self, name: str, column: Any, width: int | None) -> Array:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if not _is_list(column.type):
            array = self._numbers(name, column)[:, None]
            self._check_widths(name, np.ones(len(array), np.int64), width)
            return array
        if _is_list(column.type.value_type):
            raise self._error(name, "has 2 dimensions, expected 1", "data.not_a_vector")
        self._check_no_nulls(name, column)
        widths = pc.call_function("list_value_length", [column]).to_numpy(zero_copy_only=False)
        width = self._check_widths(name, widths, width)
        return self._numbers(name, column.flatten(), width).reshape(len(column), width)

    def _check_widths(self, name: str, widths: Array, declared: int | None) -> int:
        expected = int(widths[0]) if declared is None else declared
        wrong = widths != expected
        if wrong.any():
            row = int(wrong.argmax())
            raise self._error(
                name,
                f"has {counted(int(widths[row]), 'value')} at row {row}, expected {expected}",
                "data.ragged_rows",
                row,
            )
        return expected

    def _numbers(self, name: str, values: Any, width: int = 1) -> Array:
        """Flat values as a numeric array; `width` values belong to one row."""
        dtype = values.type
        if pa.types.is_boolean(dtype):
            values = values.cast(pa.uint8()).cast(pa.float32())
        elif not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
            raise self._error(name, f"holds {dtype}, expected numbers", "data.not_numeric")
        self._check_no_nulls(name, values, width)
        return values.to_numpy(zero_copy_only=False)

    def _check_no_nulls(self, name: str, values: Any, width: int = 1) -> None:
        if values.null_count:
            row = pc.index(values.is_null(), True).as_py() // max(width, 1)
            raise self._error(name, f"has no value at row {row}", "data.missing_value", row)

    def _error(self, field: str, problem: str, code: str, row: int | None = None) -> DataError:
        return DataError(
            f"{self.episode}: {self.path}: {field} {problem}",
            hint="repair or record the episode again, or exclude it with `preprocess --exclude`",
            code=code,
            details={"path": str(self.path), "field": field, "row": row},
        )


def read_rows(segment: RowSegment, episode: str, requested: Sequence[str]) -> Rows:
    """The `requested` columns that exist, sorted by `frame_index` if the file has it.

    Raises:
        DataError: The file is missing, a Git LFS pointer, damaged, or lacks rows of the segment.
    """
    path = segment.path
    check_is_data_file(path, episode)
    try:
        columns = table_columns(path)
        table = read_segment(segment, [*requested, FRAME_INDEX])
        total = table_length(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged_error(path, episode, str(error)) from error
    if not total:
        raise _damaged_error(path, episode, "the file has no rows")
    num_rows = min(total - segment.first, total if segment.count is None else segment.count)
    if segment.count is not None and num_rows < segment.count:
        raise _outside_error(segment, episode, total)
    if not num_rows:
        raise _damaged_error(path, episode, "the list of episodes gives it no rows")
    order = _frame_order(table, num_rows)
    if not np.array_equal(order, np.arange(num_rows)):
        table = table.take(pa.array(order))
    return Rows(segment, episode, table, order + segment.first, columns)


def actual_segment(segment: RowSegment, number: int, episode: str) -> RowSegment:
    """Rows of an episode in a file of many, by their `episode_index`.

    The stated segment, if the file has no such column.

    Raises:
        DataError: The file is missing or damaged, or has the rows nowhere, or in several places.
    """
    check_is_data_file(segment.path, episode)
    try:
        spans = episode_spans(segment.path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged_error(segment.path, episode, str(error)) from error
    if spans is None:
        return segment
    runs = spans.get(number, ())
    if not runs:
        raise DataError(
            f"{episode}: {segment.path} has no rows with its episode_index",
            hint="the list of episodes names another file, or files were mixed up; download both "
            "again, or exclude the episode with `preprocess --exclude`",
            code="data.episode_index",
            details={"path": str(segment.path), "field": EPISODE_INDEX},
        )
    if len(runs) > 1:
        starts = ", ".join(str(first) for first, _ in runs[:5])
        raise DataError(
            f"{episode}: {segment.path} has its rows in {len(runs)} places, from rows {starts}",
            hint="episodes were written twice or merged with equal numbers; download the file "
            "again, or exclude the episode with `preprocess --exclude`",
            code="data.split_rows",
            details={"path": str(segment.path), "field": EPISODE_INDEX, "row": runs[1][0]},
        )
    return replace(segment, first=runs[0][0], count=runs[0][1])


def _outside_error(segment: RowSegment, episode: str, total: int) -> DataError:
    stop = segment.first + (segment.count or 0)
    return DataError(
        f"{episode}: its rows are {segment.first} to {stop} of {segment.path}, which has {total}",
        hint="the file or the list is of another version; download both again",
        code="data.rows_outside",
        details={"path": str(segment.path), "row": segment.first},
    )


def column_names(path: Path) -> tuple[str, ...] | None:
    """Columns of a parquet file; None if it cannot be read, which `read_rows` reports."""
    try:
        return table_columns(path)
    except (pa.ArrowException, OSError):
        return None


def timestamp_problem(timestamps: Sequence[Any], fps: float) -> str:
    """Deviation of timestamps from `row / fps`, as a message; empty if there is none."""
    times = np.array([np.nan if t is None else t for t in timestamps], np.float64)
    if not np.isfinite(times).all():
        return "timestamps have missing values"
    falls = np.flatnonzero(np.diff(times) <= 0)
    if len(falls):
        row = int(falls[0]) + 1
        return f"timestamp goes from {times[row - 1]:.2f} to {times[row]:.2f} at row {row}"
    if abs(times[0]) > 0.5 / fps:
        return f"timestamps start at {times[0]:.3f} s"
    late = np.flatnonzero(np.abs(times - np.arange(len(times)) / fps) > 0.5 / fps)
    if len(late):
        row = int(late[0])
        return f"row {row} is at {times[row]:.3f} s, not at {row / fps:.3f} s"
    return ""


def _frame_order(table: pa.Table, num_rows: int) -> Array:
    if FRAME_INDEX not in table.column_names:
        return np.arange(num_rows)
    column = table.column(FRAME_INDEX)
    if column.null_count or not pa.types.is_integer(column.type):
        return np.arange(num_rows)
    return np.argsort(column.to_numpy(), kind="stable")


def _is_list(dtype: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype)


def _damaged_error(path: Path, episode: str, reason: str) -> DataError:
    return DataError(
        f"{episode}: {path} cannot be read as parquet: {reason}",
        hint="the file is damaged or truncated; download it again, or exclude the episode with "
        "--exclude",
        code="data.bad_parquet",
        details={"path": str(path)},
    )
