"""Builders of LeRobot v3.0 data sets: episodes that share files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
LIST, TASK_TABLE = "meta/episodes/chunk-000/file-000.parquet", "meta/tasks.parquet"
DATA_FILE = "data/chunk-000/file-000.parquet"


def video_file(camera: str, number: int = 0) -> str:
    """Path of a video of a camera."""
    return VIDEO_PATH.format(video_key=camera, chunk_index=0, file_index=number)


def write_shared(
    root: Path,
    tables: Sequence[pa.Table],
    videos: Mapping[str, Sequence[Path]],
    tasks: Sequence[str],
    *,
    fps: float,
    per_file: int,
) -> None:
    """Writes tables, videos and lists of v3.0 from the tables and videos of episodes.

    Each file of rows has a row group per episode; episodes of other columns get files of their
    own. Packets of the videos are copied.
    """
    starts = [0, *np.cumsum([len(table) for table in tables]).tolist()]
    lines: dict[str, list[Any]] = {}
    for file, numbers in enumerate(_groups(tables, per_file)):
        first = numbers[0]
        path = root / DATA_PATH.format(chunk_index=0, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, tables[first].schema) as writer:
            for number in numbers:
                writer.write_table(tables[number])
        for camera, paths in videos.items():
            concatenate([paths[number] for number in numbers], root / video_file(camera, file))
        for number in numbers:
            clip = (starts[number] - starts[first]) / fps
            line = {
                "episode_index": number,
                "tasks": [tasks[number % len(tasks)]],
                "length": len(tables[number]),
                "data/chunk_index": 0,
                "data/file_index": file,
                "dataset_from_index": starts[number],
                "dataset_to_index": starts[number + 1],
            }
            for camera in videos:
                line[f"videos/{camera}/chunk_index"] = 0
                line[f"videos/{camera}/file_index"] = file
                line[f"videos/{camera}/from_timestamp"] = clip
                line[f"videos/{camera}/to_timestamp"] = clip + len(tables[number]) / fps
            for name, value in line.items():
                lines.setdefault(name, []).append(value)
    write_list(root, lines)
    named = {"task_index": range(len(tasks)), "__index_level_0__": tasks}
    pq.write_table(
        pa.table({name: list(values) for name, values in named.items()}), root / TASK_TABLE
    )


def _groups(tables: Sequence[pa.Table], per_file: int) -> list[list[int]]:
    groups: list[list[int]] = []
    for number, table in enumerate(tables):
        is_like = groups and table.schema.equals(tables[groups[-1][0]].schema)
        if is_like and len(groups[-1]) < per_file:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups


def edit_list(root: Path, column: str, number: int, value: Any) -> None:
    """Changes a value of the list of episodes."""
    columns = read_list(root)
    columns[column][number] = value
    write_list(root, columns)


def read_list(root: Path) -> dict[str, list[Any]]:
    """Columns of the list of episodes."""
    return pq.read_table(root / LIST).to_pydict()


def write_list(root: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Writes the list of episodes."""
    (root / LIST).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), root / LIST)


def concatenate(paths: Sequence[Path], output: Path) -> None:
    """Writes the packets of videos of one format one after the other."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(output), "w") as container:
        stream: Any = None
        offset = 0
        for path in paths:
            with av.open(str(path)) as part:
                source = part.streams.video[0]
                stream = stream or container.add_stream_from_template(source)
                packets = [packet for packet in part.demux(source) if packet.size]
                ticks = packets[0].duration or 1
                for packet in packets:
                    assert packet.pts is not None
                    assert packet.dts is not None
                    packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                    packet.stream = stream
                    container.mux(packet)
                offset += ticks * len(packets)
