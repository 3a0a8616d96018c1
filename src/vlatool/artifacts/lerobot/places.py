"""Where the rows of an episode of v3.0 are: in the file that its list names, or in those beside it.

Rows are found by their `episode_index`: statistics of row groups, or this column, are read.
"""

import re
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path

import pyarrow as pa

from vlatool.artifacts.lerobot.findings import LEROBOT
from vlatool.artifacts.lerobot.format import EPISODE_INDEX
from vlatool.artifacts.lerobot.tables import check_is_data_file, damaged_error, episode_spans
from vlatool.episode import RowSegment
from vlatool.errors import DataError
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import can_list, is_remote

# Files before and after the stated one that are searched; in storage each takes a few requests.
_FARTHEST, _FARTHEST_REMOTE = 64, 4
_SHARED_FILE = re.compile(r"chunk-(\d+)/file-(\d+)\.parquet")


def episode_segments(
    root: Path, stated: RowSegment, number: int, length: int | None
) -> tuple[RowSegment, ...]:
    """The rows of an episode in the order of the files.

    The stated file may have none of its `length` rows, or their beginning or end: the files nearest
    to it are searched until all are found. If the file has no column `episode_index`, the stated
    rows are those of the episode.
    """
    if stated.count is None:
        return (stated,)
    try:
        own = _segment(stated.path, number)
    except DataError as error:
        own, problem = None, error
    else:
        problem = _no_rows_error(stated.path, number)
        if own is None and episode_spans(stated.path) is None:
            return (stated,)
    segments = [] if own is None else [own]
    missing = (length or 1) - sum(segment.count or 0 for segment in segments)
    for path in _nearby_files(root, stated.path) if missing > 0 else ():
        try:
            other = _segment(path, number)
        except DataError:  # the check of its own episodes reports it
            continue
        if other is not None and (not segments or (other.count or 0) <= missing):
            segments.append(other)
            missing -= other.count or 0
        if missing <= 0:
            break
    if not segments:
        raise problem
    return tuple(sorted(segments, key=lambda segment: natural_key(segment.path)))


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


def _no_rows_error(path: Path, number: int) -> DataError:
    problem = f"has no rows of episode {number}, nor have the data files beside it"
    return LEROBOT.error("episode_index", path, problem, field=EPISODE_INDEX)


def _nearby_files(root: Path, path: Path) -> Iterator[Path]:
    """Other data files, the nearest first; by their numbers where storage cannot be listed."""
    if can_list(root):
        files = sorted((root / "data").rglob("*.parquet"), key=natural_key)
        place = natural_key(path)
        before = [other for other in reversed(files) if natural_key(other) < place]
        after = [other for other in files if natural_key(other) > place]
    else:
        before, after = _numbered_files(path)
    farthest = _FARTHEST_REMOTE if is_remote(root) else _FARTHEST
    for pair in islice(zip_longest(after, before), farthest):
        yield from filter(None, pair)


def _numbered_files(path: Path) -> tuple[list[Path], list[Path]]:
    """Files whose numbers are those before and after that of a file; they may not exist."""
    match = _SHARED_FILE.search(path.as_posix())
    if match is None:
        return [], []
    chunk, file = int(match[1]), int(match[2])
    numbers = range(1, _FARTHEST_REMOTE)
    before = [path.with_name(f"file-{file - n:03d}.parquet") for n in numbers if n <= file]
    after = [path.with_name(f"file-{file + n:03d}.parquet") for n in numbers]
    after.append(path.parent.with_name(f"chunk-{chunk + 1:03d}") / "file-000.parquet")
    return before, after
