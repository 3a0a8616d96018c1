"""Lists of a LeRobot data set: its episodes, its tasks, and their published statistics.

v2.0 and v2.1 have JSON lines, v3.0 has tables. Source: formats/lerobot 5, 9
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlatool.artifacts.lerobot.format import (
    EPISODE_INDEX,
    EPISODE_STATS_FILE,
    EPISODES_FILE,
    TASKS_FILE,
    TASKS_TABLE,
    EpisodeLine,
    Span,
)
from vlatool.artifacts.lerobot.tables import read_segment, table_columns
from vlatool.episode import RowSegment
from vlatool.errors import DataError
from vlatool.sources.base import check_is_data_file
from vlatool.sources.lerobot.meta import (
    LARGEST_COUNT,
    Info,
    episode_tables,
    metadata_error,
    missing_list_error,
    optional_int,
    read_lines,
    texts,
)

Statistics = Mapping[str, Mapping[str, Any]]
_Columns = dict[str, list[Any]]

_STATS = "stats/"
_ROWS = ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
_NEEDED = (EPISODE_INDEX, *_ROWS)
_OPTIONAL = ("length", "tasks")
_CLIP = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
_UNNAMED_INDEX = "__index_level_0__"  # of a pandas table, written by earlier versions


def read_episodes(root: Path, info: Info) -> list[EpisodeLine]:
    """Listed episodes, ascending by number.

    Raises:
        DataError: An entry is broken, or a number appears twice.
    """
    episodes: dict[int, EpisodeLine] = {}
    read = _lines_of_tables(root, info) if info.is_shared else _lines_of_text(root)
    for path, position, line in read:
        if not 0 <= line.number <= LARGEST_COUNT:
            raise metadata_error(path, EPISODE_INDEX, "is not an episode number", position)
        if line.number in episodes:
            raise metadata_error(path, EPISODE_INDEX, f"{line.number} appears twice", position)
        if line.length is not None and not 0 <= line.length <= LARGEST_COUNT:
            raise metadata_error(path, "length", "is not a number of frames", position)
        episodes[line.number] = line
    return [episodes[number] for number in sorted(episodes)]


def _lines_of_text(root: Path) -> Iterator[tuple[Path, int, EpisodeLine]]:
    """(file, number of the line, its content) of `meta/episodes.jsonl`."""
    path = root / EPISODES_FILE
    for position, line in read_lines(path):
        number, length = optional_int(line.get(EPISODE_INDEX)), optional_int(line.get("length"))
        sentences = texts(line.get("tasks"))
        yield path, position, EpisodeLine(-1 if number is None else number, sentences, length)


def _lines_of_tables(root: Path, info: Info) -> Iterator[tuple[Path, int, EpisodeLine]]:
    """(file, number of the row from 1, its content) of the tables in `meta/episodes/`."""
    videos = [feature.name for feature in info.features.values() if feature.dtype == "video"]
    paths = list(episode_tables(root))
    if not paths:
        raise missing_list_error(root)
    names = [*_OPTIONAL, *(f"videos/{video}/{key}" for video in videos for key in _CLIP)]
    for path in paths:
        columns = _table(path, _NEEDED, names)
        for row, number in enumerate(columns[EPISODE_INDEX]):
            chunk, file, start, stop = (columns[name][row] for name in _ROWS)
            clips = {video: clip for video in videos if (clip := _clip(columns, video, row))}
            line = EpisodeLine(
                number,
                texts(_cell(columns, "tasks", row)),
                optional_int(_cell(columns, "length", row)),
                Span(chunk, file, start, stop),
                clips,
            )
            yield path, row + 1, line


def _clip(columns: _Columns, video: str, row: int) -> Span | None:
    """The part of a video; None if the list names none."""
    values = [_cell(columns, f"videos/{video}/{key}", row) for key in _CLIP]
    if not all(isinstance(value, int | float) for value in values):
        return None
    chunk, file, start, stop = values
    is_numbered = isinstance(chunk, int) and isinstance(file, int)
    return Span(chunk, file, float(start), float(stop)) if is_numbered else None


def _cell(columns: _Columns, name: str, row: int) -> Any:
    return columns[name][row] if name in columns else None


def _table(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> _Columns:
    """Values of columns of a table in `meta/`; the needed ones are integers in every row.

    Raises:
        DataError: The file is damaged or a Git LFS pointer, or lacks values.
    """
    table = _read(path, [*needed, *optional])
    columns: _Columns = {}
    for name in (*needed, *optional):
        position = table.schema.get_field_index(name)  # -1 for two columns of the name, too
        if position >= 0:
            columns[name] = table.column(position).to_pylist()
        elif name in needed:
            raise metadata_error(path, name, "has no column")
    for name in needed:
        row = next((n for n, value in enumerate(columns[name], 1) if not _is_int(value)), None)
        if row is not None:
            raise metadata_error(path, name, "is not a number", row)
    return columns


def _is_int(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST_COUNT


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    check_is_data_file(path, "LeRobot data set")
    try:
        return read_segment(RowSegment(path), columns)
    except (pa.ArrowException, OSError) as error:
        raise metadata_error(path, "content", f"cannot be read: {error}") from error


def read_tasks(root: Path, info: Info) -> Mapping[int, str]:
    """Map from task index to sentence; empty without a list of tasks.

    Raises:
        DataError: The list is broken or a Git LFS pointer.
    """
    path = root / (TASKS_TABLE if info.is_shared else TASKS_FILE)
    if not path.exists():
        return {}
    return _tasks(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)  # each episode needs it
def _tasks(path: Path, changed: int) -> Mapping[int, str]:
    del changed
    if path.name.endswith(".parquet"):
        return _tasks_of_table(path)
    tasks: dict[int, str] = {}
    for position, line in read_lines(path):
        number, sentence = optional_int(line.get("task_index")), line.get("task")
        if number is None or not isinstance(sentence, str):
            raise metadata_error(
                path, "task_index, task", "are not a number and a sentence", position
            )
        tasks[number] = sentence
    return tasks


def _tasks_of_table(path: Path) -> dict[int, str]:
    """Tasks of `meta/tasks.parquet`, whose sentences may be the index of a pandas table."""
    try:
        names = table_columns(path)
    except (pa.ArrowException, OSError) as error:
        raise metadata_error(path, "content", f"cannot be read: {error}") from error
    others = [name for name in names if name != "task_index"]
    known = [name for name in ("task", _UNNAMED_INDEX) if name in names]
    column = next(iter([*known, *(others if len(others) == 1 else ())]), None)
    if column is None:
        raise metadata_error(path, "task", "has no column")
    columns = _table(path, ["task_index"], [column])
    sentences = columns.get(column, [None] * len(columns["task_index"]))
    for row, sentence in enumerate(sentences, 1):
        if not isinstance(sentence, str):
            raise metadata_error(path, column, "is not a sentence", row)
    return dict(zip(columns["task_index"], sentences, strict=True))


def episode_statistics(root: Path, info: Info) -> Mapping[int, Statistics]:
    """Map from episode to its published statistics; empty if they are missing or broken.

    Statistics are a map from feature to `min`, `max`, `mean`, `std`, `count` and others.
    """
    if info.is_shared:
        paths = tuple(episode_tables(root))
    else:
        paths = tuple(path for path in [root / EPISODE_STATS_FILE] if path.is_file())
    return _episode_statistics(paths, tuple(path.stat().st_mtime_ns for path in paths))


@lru_cache(maxsize=4)  # each episode needs its entry
def _episode_statistics(
    paths: tuple[Path, ...], changed: tuple[int, ...]
) -> Mapping[int, Statistics]:
    del changed
    try:
        if any(path.name.endswith(".parquet") for path in paths):
            return {number: stats for path in paths for number, stats in _table_statistics(path)}
        return {
            tree[EPISODE_INDEX]: feature_statistics(tree.get("stats"))
            for path in paths
            for _, tree in read_lines(path)
            if isinstance(tree.get(EPISODE_INDEX), int)
        }
    except DataError:
        return {}


def _table_statistics(path: Path) -> Iterator[tuple[int, Statistics]]:
    """(episode, statistics) of each row; a column is named `stats/FEATURE/KEY`."""
    names = [name for name in table_columns(path) if name.startswith(_STATS)]
    columns = _table(path, [EPISODE_INDEX], names)
    for row, number in enumerate(columns[EPISODE_INDEX]):
        stats: dict[str, dict[str, Any]] = {}
        for name in names:
            feature, _, key = name.removeprefix(_STATS).rpartition("/")
            if (value := _cell(columns, name, row)) is not None:
                stats.setdefault(feature, {})[key] = value
        yield number, stats


def feature_statistics(tree: object) -> Statistics:
    """The entries of statistics that are mappings."""
    if not isinstance(tree, dict):
        return {}
    return {str(name): entry for name, entry in tree.items() if isinstance(entry, dict)}
