"""All that a LeRobot data set has about an episode, for a writer of the same format.

An `Episode` has the columns that a policy sees; a recording has every column, as it is stored.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.artifacts.lerobot.format import FRAME_INDEX, split_spans
from vlatool.artifacts.lerobot.tables import read_segment
from vlatool.episode import Clip, RowSegment
from vlatool.errors import DataError
from vlatool.storage.uri import as_native_file


@runtime_checkable
class LeRobotRecording(Protocol):
    """An episode of a LeRobot data set; picklable, since workers receive it."""

    @property
    def number(self) -> int:
        """Its number."""
        ...

    @property
    def tasks(self) -> Sequence[str]:
        """Sentences that the list of episodes has for it."""
        ...

    @property
    def rows(self) -> RowSegment:
        """Its rows."""
        ...

    @property
    def clips(self) -> Mapping[str, Clip]:
        """Map from camera to its part of a video, depth cameras included."""
        ...

    @property
    def root(self) -> Path:
        """Folder of the data set."""
        ...

    @property
    def document(self) -> Mapping[str, Any]:
        """Content of `meta/info.json`."""
        ...

    @property
    def task_table(self) -> Mapping[int, str]:
        """Map from task index to sentence; empty if there is no list."""
        ...


def declared_features(recording: LeRobotRecording) -> Mapping[str, Mapping[str, Any]]:
    """Declarations of columns and cameras, in file order."""
    return {
        name: tree
        for name, tree in recording.document["features"].items()
        if isinstance(tree, Mapping)
    }


def task_sentences(recording: LeRobotRecording) -> Mapping[int, str]:
    """Map from task index to sentence; empty if the list cannot be read, which reading reports."""
    try:
        return recording.task_table
    except DataError:
        return {}


def split_names(recording: LeRobotRecording) -> tuple[str, ...]:
    """Splits that have an episode; `train` if those of its data set cannot be read."""
    spans = split_spans(recording.document)
    if not any(spans.values()):
        return ("train",)
    return tuple(
        name
        for name, ranges in spans.items()
        if any(recording.number in numbers for numbers in ranges or ())
    )


def stored_columns(recording: LeRobotRecording) -> pa.Schema:
    """Columns of the file of an episode.

    Raises:
        pa.ArrowException, OSError: The file cannot be read.
    """
    return pq.read_schema(as_native_file(recording.rows.path))


def read_columns(recording: LeRobotRecording, columns: Sequence[str]) -> pa.Table:
    """The columns that exist, sorted by `frame_index` where it is an integer column.

    Raises:
        pa.ArrowException, OSError: The file cannot be read.
    """
    table = read_segment(recording.rows, [*columns, FRAME_INDEX])
    if FRAME_INDEX in table.column_names:
        numbers = table.column(FRAME_INDEX)
        if pa.types.is_integer(numbers.type) and not numbers.null_count:
            table = table.take(pa.array(np.argsort(numbers.to_numpy(), kind="stable")))
    return table
