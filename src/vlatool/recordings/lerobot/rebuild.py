"""Lists of a LeRobot set of v3.0 whose recorder was killed, made anew from its rows and videos.

LeRobot adds an episode to a file of rows, then to the videos, and to the list of episodes when ten
are there or the session ends. Its files of rows and of the list have no footer until then, so that
a killed session is not in the list. Source: formats/lerobot 5.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.episode import Clip
from vlatool.errors import DataError, VlatoolError
from vlatool.events import counted
from vlatool.media.frames import packet_table
from vlatool.recordings.lerobot import layout as lerobot_layout
from vlatool.recordings.lerobot import output
from vlatool.recordings.lerobot.lists import read_texts
from vlatool.storage.atomic import open_atomic, remove_file, write_json
from vlatool.storage.documents import read_json

_NUMBERS = re.compile(r"/chunk-(\d+)/file-(\d+)\.(?:parquet|mp4)\Z")
_DATA_MB = 100  # of a file of rows, if meta/info.json does not say it
_UNTRUNC = "`untrunc WHOLE FILE` takes the index of a damaged video from a whole one"


class Rebuilt(NamedTuple):
    """What was added to a set."""

    files: tuple[Path, ...]  # written, changed or removed
    episodes: int  # added to the list
    left_out: tuple[str, ...]  # why episodes are in no list


@dataclass(frozen=True)
class _Recorded:
    """Rows of an episode."""

    number: int
    path: Path  # file of the rows
    first_row: int  # in the whole set
    length: int
    tasks: tuple[int, ...]  # numbers of its tasks, in the order of their rows
    starts_session: bool  # False: its recorder went on from the episode before


@dataclass
class _Video:
    """A video, and how many of its frames belong to episodes."""

    path: Path
    frames: int
    used: int = 0


def is_list(name: str) -> bool:
    """True for the name of a file, relative to a set, that `rebuild_lists` can write anew."""
    return name == lerobot_layout.TASKS_TABLE or name.startswith(lerobot_layout.EPISODES_FOLDER)


def rebuild_lists(root: Path, instruction: str | None = None) -> Rebuilt | None:
    """Adds the episodes behind the listed ones whose rows and videos are there to the lists.

    Episodes from the first one on that lacks its videos are left out, and so are their rows.

    Args:
        root: Copy of a set of v3.0 whose tables are whole; its files are changed.
        instruction: Sentence of the tasks whose text is lost.

    Returns:
        What was added; None if the lists have all episodes.

    Raises:
        DataError: The text of a task is lost, and there is no `instruction`; or no episode has its
            videos; or the files are no set.
    """
    try:
        return _rebuild(root, instruction)
    except VlatoolError:
        raise
    except (
        pa.ArrowException,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno:  # of the disk; pyarrow has none
            raise
        raise DataError.at(
            root,
            f"its lists cannot be made anew: {error}",
            hint="a file of data/ or meta/info.json is damaged, or this is no set of LeRobot v3.0",
            code="data.broken",
        ) from error


def _rebuild(root: Path, instruction: str | None) -> Rebuilt | None:
    paths = _numbered(root, lerobot_layout.SHARED_TABLES)
    if not paths:
        return None
    listed = _listed(root)
    known = set(listed.column(lerobot_layout.EPISODE_INDEX).to_pylist()) if listed else set[int]()
    last = max(known, default=-1)
    info = cast("dict[str, Any]", read_json(root / lerobot_layout.INFO_FILE))
    recorded = list(_recorded(paths, int(info.get("data_files_size_in_mb", _DATA_MB))))
    added: list[_Recorded] = []
    unlisted: list[str] = []
    for episode in recorded:
        if episode.number > last:
            added.append(episode)
        elif episode.number not in known:
            unlisted.append(f"episode {episode.number} is in no list, between listed ones")
    if (root / lerobot_layout.TASKS_TABLE).is_file() and not added and not unlisted:
        return None
    clips, left_out = _placed(root, listed, added, info)
    if listed is None and not clips:
        raise DataError.at(root, "; ".join(left_out), hint=_UNTRUNC, code="data.incomplete")
    left_out += unlisted
    texts = _task_texts(root, listed, recorded, instruction)
    files = [root / lerobot_layout.INFO_FILE]
    files += _write_list(root, listed, added[: len(clips)], clips, texts, float(info["fps"]))
    files += _remove_rows(added[len(clips) :])
    listed = _listed(root)
    assert listed is not None
    info["total_episodes"] = len(listed)
    info["total_frames"] = sum(listed.column("length").to_pylist())
    info["total_tasks"] = len(texts)
    if set(info.get("splits") or ()) <= {"train"}:
        info["splits"] = {"train": f"0:{len(listed)}"}
    write_json(root / lerobot_layout.INFO_FILE, info, indent=4)
    return Rebuilt(tuple(files), len(clips), tuple(left_out))


def _numbered(root: Path, pattern: str) -> list[Path]:
    """Files of a set with the names that LeRobot gives, in the order of their numbers."""
    return sorted(
        (path for path in root.glob(pattern) if _NUMBERS.search(path.as_posix())), key=_numbers
    )


def _numbers(path: Path) -> tuple[int, int]:
    """Numbers of the chunk and the file of a path."""
    match = _NUMBERS.search(path.as_posix())
    assert match is not None
    return int(match[1]), int(match[2])


def _listed(root: Path) -> pa.Table | None:
    """The list of episodes, as far as it is there."""
    paths = _numbered(root, lerobot_layout.EPISODES_TABLES)
    tables = [pq.read_table(path) for path in paths]
    return pa.concat_tables(tables, promote_options="default") if tables else None


def _recorded(paths: Sequence[Path], limit_mb: int) -> Iterator[_Recorded]:
    """Yields the episodes in the files of rows.

    A session begins with a file of its own. Within a session, another file only begins if the one
    before is full, at `limit_mb`.
    """
    first_row = 0
    room: float = 0.0  # rows that the file before could still take
    for path in paths:
        rows = pq.read_table(path, columns=[lerobot_layout.EPISODE_INDEX, "task_index"])
        numbers = rows.column(0).to_numpy()
        tasks = rows.column(1).to_pylist()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
            yield _Recorded(
                number=int(numbers[start]),
                path=path,
                first_row=first_row + start,
                length=stop - start,
                tasks=tuple(dict.fromkeys(tasks[start:stop])),
                starts_session=start == 0 and room > stop - start,
            )
        first_row += len(numbers)
        size = path.stat().st_size / max(len(numbers), 1)
        room = (limit_mb * 2**20) / max(size, 1) - len(numbers)


_Places = list[dict[str, tuple[int, int, int]]]


def _placed(
    root: Path, listed: pa.Table | None, added: Sequence[_Recorded], info: Mapping[str, Any]
) -> tuple[_Places, list[str]]:
    """(chunk, file, first frame) of the clip of each camera, up to the first episode that lacks
    one, and why it and those behind it are left out.
    """
    clips: _Places = [{} for _ in added]
    reason = ""
    expected = added[0].number if listed is None and added else 0
    if listed is not None:
        expected = max(listed.column(lerobot_layout.EPISODE_INDEX).to_pylist()) + 1
    for position, episode in enumerate(added):
        if episode.number != expected + position:
            clips = clips[:position]
            reason = f"the rows of episode {expected + position} are missing"
            break
    for camera, declared in info["features"].items():
        if declared["dtype"] != "video":
            continue
        placed = list(_clips(root, camera, listed, added[: len(clips)], float(info["fps"])))
        if len(placed) < len(clips):
            clips = clips[: len(placed)]
            lacking = added[len(placed)].number
            reason = f"the video of {camera} of episode {lacking} is missing or too short"
            reason += f": {_UNTRUNC}"
        for of_episode, clip in zip(clips, placed, strict=False):
            of_episode[camera] = clip
    if not reason:
        return clips, []
    count = len(added) - len(clips)
    numbers = f"from {added[len(clips)].number} on" if count > 1 else f"{added[-1].number}"
    return clips, [f"{counted(count, 'episode')}, {numbers}: {reason}"]


def _clips(
    root: Path, camera: str, listed: pa.Table | None, added: Sequence[_Recorded], fps: float
) -> Iterator[tuple[int, int, int]]:
    """Yields (chunk, file, first frame) of the clip of each episode, until one has none."""
    videos = _videos(root, camera, listed, fps)
    for episode in added:
        # Behind the last episode of a session are frames of one that was not saved.
        if videos and videos[0].used and episode.starts_session:
            videos.pop(0)
        while videos and videos[0].used == videos[0].frames:
            videos.pop(0)
        if not videos or videos[0].used + episode.length > videos[0].frames:
            return
        yield *_numbers(videos[0].path), videos[0].used
        videos[0].used += episode.length


def _videos(root: Path, camera: str, listed: pa.Table | None, fps: float) -> list[_Video]:
    """Videos of a camera from the one of the last listed episode on, up to one that is missing."""
    prefix = f"videos/{camera}"
    first = (0, 0)
    used = 0
    places = [f"{prefix}/chunk_index", f"{prefix}/file_index", f"{prefix}/to_timestamp"]
    for row in [] if listed is None else listed.select(places).to_pylist():
        if row[f"{prefix}/to_timestamp"] is not None:
            place = row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"]
            stop = round(row[f"{prefix}/to_timestamp"] * fps)
            used = max(used, stop) if place == first else stop
            first = place
    videos: list[_Video] = []
    expected = first
    for path in _numbered(root, f"{prefix}/chunk-*/file-*.mp4"):
        place = _numbers(path)
        if place < first:
            continue
        if place not in (expected, (expected[0] + 1, 0)):
            break
        videos.append(_Video(path, packet_table(Clip(path)).num_frames, 0 if videos else used))
        expected = (place[0], place[1] + 1)
    return videos


def _task_texts(
    root: Path, listed: pa.Table | None, recorded: Sequence[_Recorded], instruction: str | None
) -> Mapping[int, str]:
    """Map from the number of a task to its sentence; writes the table if it lacks some."""
    path = root / lerobot_layout.TASKS_TABLE
    texts = dict(read_texts(path, "task")) if path.is_file() else {}
    before = dict(texts)
    of_episode: dict[int, list[str]] = {}
    names = [lerobot_layout.EPISODE_INDEX, "tasks"]
    for row in [] if listed is None else listed.select(names).to_pylist():
        of_episode[row["episode_index"]] = row["tasks"]
    for episode in recorded:
        sentences = of_episode.get(episode.number, [])
        if len(sentences) == len(episode.tasks) == 1:
            texts.setdefault(episode.tasks[0], sentences[0])
    for episode in recorded:
        for number in episode.tasks:
            if number not in texts and not instruction:
                raise DataError.at(
                    path,
                    f"the text of task {number} of episode {episode.number} is lost: repeat the "
                    'command with --instruction "TEXT"',
                    hint="give the sentence of the task",
                    code="data.missing",
                )
            texts.setdefault(number, instruction or "")
    if texts != before:
        output.write_texts(root, "v3.0", "task", dict(sorted(texts.items())))
    return texts


def _write_list(
    root: Path,
    listed: pa.Table | None,
    added: Sequence[_Recorded],
    clips: Sequence[Mapping[str, tuple[int, int, int]]],
    texts: Mapping[int, str],
    fps: float,
) -> Iterator[Path]:
    """Writes the next table of the list of episodes; yields it, and the table of tasks."""
    yield root / lerobot_layout.TASKS_TABLE
    if not added:
        return
    tables = _numbered(root, lerobot_layout.EPISODES_TABLES)
    chunk, number = _numbers(tables[-1]) if tables else (0, -1)
    path = root / output.EPISODES_TABLE.format(chunk_index=chunk, file_index=number + 1)
    rows: list[dict[str, Any]] = []
    for episode, videos in zip(added, clips, strict=True):
        written = output.WrittenEpisode(
            number=episode.number,
            tasks=[texts[task] for task in episode.tasks],
            length=episode.length,
            first_row=episode.first_row,
            stats={},
            data=_numbers(episode.path),
            videos=videos,
        )
        place = {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": number + 1}
        rows.append({**output.episode_row(written, fps), **place})
    table = pa.Table.from_pylist(rows)
    if listed is not None:  # all tables have the same columns
        table = pa.Table.from_pylist(rows, schema=listed.schema)
    with open_atomic(path) as file:
        pq.write_table(table, file)
    yield path


def _remove_rows(episodes: Sequence[_Recorded]) -> Iterator[Path]:
    """Removes the rows of episodes that are left out; yields the files."""
    left_out = [episode.number for episode in episodes]
    for path in dict.fromkeys(episode.path for episode in episodes):
        rows = pq.read_table(path)
        numbers = rows.column(lerobot_layout.EPISODE_INDEX).to_numpy()
        kept = rows.filter(pa.array(~np.isin(numbers, left_out)))
        if len(kept):
            with open_atomic(path) as file:
                pq.write_table(kept, file)
        else:
            remove_file(path)
        yield path
