"""Finds the rows of an episode of v3.0, in the file that its list names or in its neighbors.

Rows are found by their `episode_index`: statistics of row groups, or this column, are read.
"""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa

from vlatool.episode import RowSegment
from vlatool.errors import DataError
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.recordings.lerobot.layout import EPISODE_INDEX
from vlatool.recordings.lerobot.tables import check_is_data_file, damaged_error, episode_spans

_SHARED_FILE = re.compile(r"chunk-(\d+)/file-(\d+)\.parquet")


def episode_segment(stated: RowSegment, number: int) -> RowSegment:
    """The rows of an episode: in the stated file, else in the one after or before it.

    If the stated file has no column `episode_index`, the stated rows are used.

    Raises:
        DataError: No file has its rows, or they are in several places of a file.
    """
    if stated.count is None:
        return stated
    problem: DataError | None = None
    for path in chain([stated.path], _nearby_files(stated.path)):
        try:
            found = _segment(path, number)
            if found is not None:
                return found
            if path == stated.path and episode_spans(path) is None:
                return stated
        except DataError as error:
            if path == stated.path:  # of another file, the check of its own episodes reports it
                problem = error
    reason = f"has no rows of episode {number}, and neither have the files next to it"
    raise problem or LEROBOT.error("episode_index", stated.path, reason, field=EPISODE_INDEX)


def _segment(path: Path, number: int) -> RowSegment | None:
    """The rows of an episode in a file; None if it has none."""
    name = f"episode {number}"
    check_is_data_file(path, name)
    try:
        spans = episode_spans(path) or {}
    except (pa.ArrowException, OSError) as error:
        raise damaged_error(path, name, str(error)) from error
    runs = spans.get(number, ())
    if len(runs) > 1:
        starts = ", ".join(str(first) for first, _ in runs[:5])
        problem = f"has rows of episode {number} in {len(runs)} places, from rows {starts}"
        raise LEROBOT.error("split_rows", path, problem, field=EPISODE_INDEX, row=runs[1][0])
    return RowSegment(path, runs[0][0], runs[0][1]) if runs else None


def _nearby_files(path: Path) -> Iterator[Path]:
    """Yields the file after a file, in its folder or the next one, and the file before it."""
    match = _SHARED_FILE.search(path.as_posix())
    if match is None:
        return
    chunk = int(match[1])
    file = int(match[2])
    yield path.with_name(f"file-{file + 1:03d}.parquet")
    yield path.parent.with_name(f"chunk-{chunk + 1:03d}") / "file-000.parquet"
    if file:
        yield path.with_name(f"file-{file - 1:03d}.parquet")
