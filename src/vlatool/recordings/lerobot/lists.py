"""Lists of LeRobot data sets: episodes, tasks and other texts, and statistics of the episodes.

v2.0 and v2.1 have JSON lines, v3.0 has tables. The texts of a table, and the statistics, are kept
for the next episode, since each one needs them. Source: formats/lerobot 5, 9.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from vlatool.episode import RowSegment
from vlatool.errors import DataError
from vlatool.recordings.lerobot import layout as lerobot_layout
from vlatool.recordings.lerobot import meta
from vlatool.recordings.lerobot.tables import (
    check_is_data_file,
    column_names,
    read_segment,
    table_columns,
)
from vlatool.storage.tree import files_named

Statistics = Mapping[str, Mapping[str, Any]]
_Columns = dict[str, list[Any]]

_STATS = "stats/"
_ROWS = ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
_NEEDED = (lerobot_layout.EPISODE_INDEX, *_ROWS)
_OPTIONAL = ("length", "tasks")
_CLIP = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
_PREFIXES = (_STATS, "videos/", "data/", "meta/", "__")
_UNNAMED_INDEX = "__index_level_0__"  # of a pandas table, written by earlier versions


# Episodes

_COPIED = (
    "if the files of two recordings were copied into one folder, keep them apart and read both: "
    "vlatool preprocess lerobot A B"
)


def read_episodes(root: Path, info: meta.Info) -> list[lerobot_layout.EpisodeLine]:
    """Entries of the list of episodes, ascending by number."""
    episodes: dict[int, lerobot_layout.EpisodeLine] = {}
    files: dict[int, Path] = {}  # that lists each episode
    entries = _lines_of_tables(root, info) if info.is_shared else _lines_of_text(root)
    for path, position, line in entries:
        problem = ""
        if not 0 <= line.number <= meta.LARGEST_COUNT:
            problem = "is not an episode number"
        elif line.number in episodes:
            problem = f"{line.number} appears twice"
        if problem:
            error = meta.metadata_error(path, lerobot_layout.EPISODE_INDEX, problem, position)
            if line.number in files and files[line.number] != path:
                error.hint = _COPIED
            raise error
        files[line.number] = path
        if line.length is not None and not 0 <= line.length <= meta.LARGEST_COUNT:
            raise meta.metadata_error(path, "length", "is not a number of frames", position)
        episodes[line.number] = line
    return [episodes[number] for number in sorted(episodes)]


def _lines_of_text(root: Path) -> Iterator[tuple[Path, int, lerobot_layout.EpisodeLine]]:
    """(file, number of the line, its content) of `meta/episodes.jsonl`."""
    path = root / lerobot_layout.EPISODES_FILE
    for position, line in meta.read_lines(path):
        number = meta.optional_int(line.get(lerobot_layout.EPISODE_INDEX))
        entry = lerobot_layout.EpisodeLine(
            -1 if number is None else number,
            _sentences(line.get("tasks")),
            meta.optional_int(line.get("length")),
            further=_further(line),
        )
        yield path, position, entry


def _lines_of_tables(
    root: Path, info: meta.Info
) -> Iterator[tuple[Path, int, lerobot_layout.EpisodeLine]]:
    """(file, number of the row from 1, its content) of the tables in `meta/episodes/`."""
    paths = list(meta.episode_tables(root))
    if not paths:
        raise meta.missing_list_error(root)
    videos = [feature.name for feature in info.features.values() if feature.dtype == "video"]
    optional = list(_OPTIONAL)
    for video in videos:
        optional += [f"videos/{video}/{key}" for key in _CLIP]
    for path in paths:
        others = [name for name in column_names(path) or () if _is_further(name)]
        columns = _table(path, _NEEDED, [*optional, *others])
        for row, number in enumerate(columns[lerobot_layout.EPISODE_INDEX]):
            chunk, file, start, stop = (columns[name][row] for name in _ROWS)
            clips: dict[str, lerobot_layout.Span] = {}
            for video in videos:
                clip = _clip(columns, video, row)
                if clip is not None:
                    clips[video] = clip
            line = lerobot_layout.EpisodeLine(
                number,
                _sentences(_cell(columns, "tasks", row)),
                meta.optional_int(_cell(columns, "length", row)),
                lerobot_layout.Span(chunk, file, start, stop),
                clips,
                _further({name: columns[name][row] for name in others}),
            )
            yield path, row + 1, line


def _sentences(value: object) -> tuple[str, ...]:
    """The texts of a list, or the only one."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        return ()
    return tuple(text for text in cast(list[object], value) if isinstance(text, str))


def _is_further(name: str) -> bool:
    known = (*lerobot_layout.AUTOMATIC, *_ROWS, *_OPTIONAL)
    return name not in known and not name.startswith(_PREFIXES)


def _further(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values of an episode in the list that reading does not need, except empty ones."""
    further: dict[str, Any] = {}
    for name, value in values.items():
        if _is_further(name) and value is not None:
            further[name] = value if isinstance(value, bool | int | float | str) else None
    return further


def _clip(columns: _Columns, video: str, row: int) -> lerobot_layout.Span | None:
    """The part of a video; None if the list names none."""
    chunk, file, start, stop = (_cell(columns, f"videos/{video}/{key}", row) for key in _CLIP)
    if not (isinstance(chunk, int) and isinstance(file, int)):
        return None
    if not (isinstance(start, int | float) and isinstance(stop, int | float)):
        return None
    return lerobot_layout.Span(chunk, file, float(start), float(stop))


def _cell(columns: _Columns, name: str, row: int) -> Any:
    return columns[name][row] if name in columns else None


def _table(path: Path, needed: Sequence[str], optional: Sequence[str] | None = ()) -> _Columns:
    """Values of columns of a table in `meta/`, the needed ones integers; without `optional` all."""
    check_is_data_file(path, "LeRobot data set")
    try:
        names = None if optional is None else [*needed, *optional]
        columns: _Columns = read_segment(RowSegment(path), names).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise meta.metadata_error(path, "content", f"cannot be read: {error}") from error
    for name in needed:
        if name not in columns:
            raise meta.metadata_error(path, name, "is missing: no column has this name")
        for row, value in enumerate(columns[name], 1):
            if not isinstance(value, int) or not 0 <= value <= meta.LARGEST_COUNT:
                raise meta.metadata_error(path, name, "is not a number", row)
    return columns


# Texts


def tasks_file(root: Path, info: meta.Info) -> Path | None:
    """List of tasks; None if there is none."""
    name = lerobot_layout.TASKS_TABLE if info.is_shared else lerobot_layout.TASKS_FILE
    found = files_named(root, [name])
    return found[0] if found else None


def texts_path(root: Path, column: str) -> Path | None:
    """Table of the texts that the numbers of a column `NAME_index` stand for, such as
    `meta/subtasks.parquet`; None if there is none.
    """
    if column in lerobot_layout.AUTOMATIC or not column.endswith("_index"):
        return None
    names = [f"{text_kind(column)}s.parquet", f"{text_kind(column)}s.jsonl"]
    found = files_named(root / "meta", names)
    return found[0] if found else None


def text_kind(column: str) -> str:
    """`NAME` of a column `NAME_index`, which may have groups before it."""
    return column.rpartition(".")[2].removesuffix("_index")


def read_texts(path: Path, name: str) -> Mapping[int, str]:
    """Map from `NAME_index` to the text of a table with both."""
    return _texts(path, name, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)  # each episode needs it
def _texts(path: Path, name: str, changed: int) -> Mapping[int, str]:
    if path.name.endswith(".parquet"):
        return _texts_of_table(path, name)
    found: dict[int, str] = {}
    for position, line in meta.read_lines(path):
        number = meta.optional_int(line.get(f"{name}_index"))
        text = line.get(name)
        if number is None or not isinstance(text, str):
            problem = "must be a number and a sentence"
            raise meta.metadata_error(path, f"{name}_index, {name}", problem, position)
        found[number] = text
    return found


def _texts_of_table(path: Path, name: str) -> dict[int, str]:
    """Texts of a table such as `meta/tasks.parquet`, which may be the index of a pandas table."""
    key = f"{name}_index"
    columns = _table(path, [key], None)
    others = [other for other in columns if other != key]
    if name in others:
        column = name
    elif _UNNAMED_INDEX in others:
        column = _UNNAMED_INDEX
    elif len(others) == 1:
        column = others[0]
    else:
        raise meta.metadata_error(path, name, "is missing: no column has this name")
    for row, text in enumerate(columns[column], 1):
        if not isinstance(text, str):
            raise meta.metadata_error(path, column, "is not a sentence", row)
    return dict(zip(columns[key], columns[column], strict=True))


# Statistics


def episode_statistics(root: Path, info: meta.Info) -> Mapping[int, Statistics]:
    """Returns the published statistics of each episode; empty if they are missing or broken.

    Statistics are a map from feature to `min`, `max`, `mean`, `std`, `count` and others.
    """
    paths: tuple[Path, ...] = ()
    if info.is_shared:
        paths = tuple(meta.episode_tables(root))
    elif (root / lerobot_layout.EPISODE_STATS_FILE).is_file():
        paths = (root / lerobot_layout.EPISODE_STATS_FILE,)
    return _episode_statistics(paths, tuple(path.stat().st_mtime_ns for path in paths))


@lru_cache(maxsize=4)  # each episode needs its entry
def _episode_statistics(
    paths: tuple[Path, ...], changed: tuple[int, ...]
) -> Mapping[int, Statistics]:
    statistics: dict[int, Statistics] = {}
    try:
        for path in paths:
            if path.name.endswith(".parquet"):
                statistics.update(_table_statistics(path))
                continue
            for _, line in meta.read_lines(path):
                number = line.get(lerobot_layout.EPISODE_INDEX)
                if isinstance(number, int):
                    statistics[number] = feature_statistics(line.get("stats"))
    except DataError:
        return {}
    return statistics


def _table_statistics(path: Path) -> Iterator[tuple[int, Statistics]]:
    """(episode, statistics) of each row; a column is named `stats/FEATURE/KEY`."""
    names = [name for name in table_columns(path) if name.startswith(_STATS)]
    columns = _table(path, [lerobot_layout.EPISODE_INDEX], names)
    for row, number in enumerate(columns[lerobot_layout.EPISODE_INDEX]):
        statistics: dict[str, dict[str, Any]] = {}
        for name in names:
            feature, _, key = name.removeprefix(_STATS).rpartition("/")
            value = _cell(columns, name, row)
            if value is not None:
                statistics.setdefault(feature, {})[key] = value
        yield number, statistics


def feature_statistics(tree: object) -> Statistics:
    if not isinstance(tree, dict):
        return {}
    return {str(name): entry for name, entry in tree.items() if isinstance(entry, dict)}
