"""Data sets of two episodes with one defect in the second episode or in the metadata."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.builders.lerobot import Columns, lerobot_dataset, write_video
from tests.builders.preprocessing import CAMERA, FRAMES, named, processed, value, without
from tests.builders.spartan import CAMERAS, Change, spartan_task

FRONT = "observation.images.front"
DATA = "data/chunk-000/episode_000001.parquet"
VIDEO = f"videos/chunk-000/{FRONT}/episode_000001.mp4"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NO_TEXT = b"\xff\xfe\x00"
DEEP = b"[" * 100_000 + b"]" * 100_000
DIGITS = b"9" * 5000
INFO, EPISODES, TASKS = "meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"
STATS, EPISODE_STATS = "meta/stats.json", "meta/episodes_stats.jsonl"

Make = Callable[[Path], Any]


def rows(name: str, change: Callable[[Any], Any], **options: Any) -> Make:
    """A LeRobot data set with a changed or added column in the second episode."""

    def apply(number: int, columns: Columns) -> None:
        if number == 1:
            columns[name] = change(columns.get(name))

    return lambda root: lerobot_dataset(root, (FRAMES, FRAMES), change=apply, **options)


def no_column(name: str, **options: Any) -> Make:
    """A LeRobot data set without a column in the second episode."""

    def apply(number: int, columns: Columns) -> None:
        if number == 1:
            del columns[name]

    return lambda root: lerobot_dataset(root, (FRAMES, FRAMES), change=apply, **options)


def files(change: Callable[[Path], Any], **options: Any) -> Make:
    """A LeRobot data set whose files are changed after writing."""
    return lambda root: change(lerobot_dataset(root, (FRAMES, FRAMES), **options))


def content(name: str, data: bytes, **options: Any) -> Make:
    """A LeRobot data set with other content in a file."""
    return files(lambda root: (root / name).write_bytes(data), **options)


def info(old: str, new: str) -> Make:
    """A LeRobot data set with a replaced text in info.json."""

    def change(root: Path) -> None:
        text = (root / INFO).read_text()
        assert old in text
        (root / INFO).write_text(text.replace(old, new, 1))

    return files(change)


def declared(name: str, more: Callable[[Path], Path] | None = None, **changes: Any) -> Make:
    """A LeRobot data set with a changed or added feature in info.json."""

    def change(root: Path) -> None:
        tree = json.loads((root / INFO).read_text())
        tree["features"].setdefault(name, {}).update(changes)
        (root / INFO).write_text(json.dumps(tree))

    return (lambda root: change(more(root))) if more else files(change)


def spartan(change: Change) -> Make:
    """Spartan episodes with a changed second one."""
    return lambda root: spartan_task(root, 2, FRAMES, changes={1: change})


def metadata(data: bytes) -> Make:
    """Spartan episodes whose second one has another metadata.yaml."""
    return lambda root: (processed(spartan_task(root, 2, FRAMES)) / "metadata.yaml").write_bytes(
        data
    )


def no_arrays(name: str) -> Make:
    """Spartan episodes whose second one has an empty archive."""
    return lambda root: zipfile.ZipFile(
        processed(spartan_task(root, 2, FRAMES)) / name, "w"
    ).close()


def observed(name: str, values: Any) -> Make:
    """Spartan episodes whose second one has a replaced or added observation."""
    return spartan(value("observations", name, values))


def all_videos_gone(root: Path) -> None:
    for video in root.rglob("*.mp4"):
        video.unlink()


def _counting(*numbers: int) -> Callable[[Any], Any]:
    return lambda _: np.array(numbers)


REWARD: dict[str, Any] = {"dtype": "float32", "shape": [1]}
IMAGES: dict[str, Any] = {"cameras": {FRONT: "image"}}
# Defects that exclude an episode, or the whole data set, from training data.
LEROBOT_ERRORS: dict[str, Make] = {
    "video is missing": files(lambda root: (root / VIDEO).unlink()),
    "all videos are missing": files(all_videos_gone),
    "video is a pointer": content(VIDEO, LFS),
    "video is no video": content(VIDEO, b"x"),
    "video is too short": files(lambda root: write_video(root / VIDEO, 3)),
    "parquet is missing": files(lambda root: (root / DATA).unlink()),
    "parquet is cut off": content(DATA, b"PAR1"),
    "frame is lost": rows("frame_index", _counting(0, 1, 2, 4, 5, 6)),
    "frame is double": rows("frame_index", _counting(0, 1, 2, 2, 3, 4)),
    "frame numbers are lists": rows("frame_index", lambda v: [[1]] * FRAMES),
    "times are texts": rows("timestamp", lambda v: ["a"] * FRAMES),
    "times are dates": rows("timestamp", lambda v: pa.array(range(FRAMES), pa.timestamp("s"))),
    "index is lists": rows("index", lambda v: [[1]] * FRAMES),
    "episode index is lists": rows("episode_index", lambda v: [[1]] * FRAMES),
    "task is a list": rows("task_index", lambda v: [[1]] * FRAMES),
    "task is bytes": rows("task_index", lambda v: [b"x"] * FRAMES),
    "task is unknown": rows("task_index", lambda v: v + 9),
    "state has NaN": rows("observation.state", lambda v: [[np.nan] * 3] * FRAMES),
    "state is ragged": rows("observation.state", lambda v: [*v[:-1], [1.0]]),
    "state is text": rows("observation.state", lambda v: ["a"] * FRAMES),
    "state has no value": rows("observation.state", lambda v: [*v[:-1], None]),
    "state is wider": rows("observation.state", lambda v: [[*x, 1.0] for x in v]),
    "action has no column": no_column("action"),
    "action has a shape of text": declared("action", shape="2"),
    "action has no shape": declared("action", shape=None),
    "action has two dimensions": declared("action", shape=[1, 2]),
    "action has a negative shape": declared("action", shape=[-2]),
    "action has another width": declared("action", shape=[3]),
    "action is declared as text": declared("action", dtype="string"),
    "action has no type": declared("action", dtype=None),
    "state has a shape of text": declared("observation.state", shape="3"),
    "camera has no type": declared(FRONT, dtype=None),
    "camera is declared otherwise": declared(FRONT, dtype="image"),
    "camera has a slash": files(lambda root: root, cameras={"obs/front": "video"}),
    "camera has a long name": files(lambda root: root, cameras={"f" * 300: "image"}),
    "camera has half a character": info(f'"{FRONT}"', '"obs\\ud800"'),
    "picture column is gone": no_column(FRONT, **IMAGES),
    "pictures are none": rows(FRONT, lambda v: [{"bytes": b"x", "path": None}] * FRAMES, **IMAGES),
    "pictures are numbers": rows(FRONT, lambda v: [1] * FRAMES, **IMAGES),
    "picture has a long path": rows(
        FRONT, lambda v: [{"bytes": b"", "path": "p" * 5000}] * FRAMES, **IMAGES
    ),
    "picture has an unreal path": rows(
        FRONT, lambda v: [{"bytes": b"", "path": "p\0"}] * FRAMES, **IMAGES
    ),
    "features are a list": info('"features": {', '"features": [1], "more": {'),
    "info is a list": content(INFO, b"[1]"),
    "info is no text": content(INFO, NO_TEXT),
    "info is deep": info('"arm"', DEEP.decode()),
    "rate has 5000 digits": info('"fps": 10', f'"fps": {DIGITS.decode()}'),
    "rate has 400 digits": info('"fps": 10', f'"fps": {"9" * 400}'),
    "rate is tiny": info('"fps": 10', '"fps": 1e-320'),
    "chunks are half": info('"chunks_size": 1000', '"chunks_size": 0.5'),
    "chunks are endless": info('"chunks_size": 1000', '"chunks_size": 1e999'),
    "template is long": info("{episode_chunk:03d}", "d" * 5000),
    "template has a null": info("{episode_chunk:03d}", "\\u0000"),
    "episodes are no text": content(EPISODES, NO_TEXT),
    "episodes are deep": content(EPISODES, b'{"a": ' + DEEP + b"}"),
    "episodes are lists": content(EPISODES, b"[1]\n"),
    "episode has 5000 digits": content(EPISODES, b'{"episode_index": ' + DIGITS + b"}"),
    "episode has 400 digits": content(EPISODES, b'{"episode_index": ' + b"9" * 400 + b"}"),
    "length has 400 digits": content(
        EPISODES, b'{"episode_index": 1, "length": ' + b"9" * 400 + b"}"
    ),
    "length is another": content(EPISODES, b'{"episode_index": 1, "length": 7}'),
}
# Defects that do not affect training data.
LEROBOT_ODDITIES: dict[str, Make] = {
    "nothing": files(lambda root: root),
    "video is longer": files(lambda root: write_video(root / VIDEO, 9)),
    "info begins with a mark": files(
        lambda root: (root / INFO).write_bytes(b"\xef\xbb\xbf" + (root / INFO).read_bytes())
    ),
    "times are NaN": rows("timestamp", lambda v: np.full(FRAMES, np.nan)),
    "unused column has NaN": declared(
        "next.reward", rows("next.reward", lambda v: [np.nan] * FRAMES), **REWARD
    ),
    "unused column is text": declared(
        "next.reward", rows("next.reward", lambda v: ["a"] * FRAMES), **REWARD
    ),
    "totals are lists": info('"total_frames": 12', '"total_frames": [1], "total_episodes": {}'),
    "splits are odd": info(
        '"robot_type"', f'"splits": {{"a": "\\u00b2:\\u00b3", "b": "{"1" * 5000}:2"}}, "robot_type"'
    ),
    "tasks are no text": content(TASKS, NO_TEXT),
    "tasks are deep": content(TASKS, DEEP),
    "tasks are a pointer": content(TASKS, LFS),
    "task has half a character": content(TASKS, b'{"task_index": 1, "task": "\\ud800"}\n'),
    "statistics are deep": content(STATS, DEEP),
    "statistics are a list": content(STATS, b"[1]"),
    "statistics are no numbers": content(
        STATS,
        b'{"action": {"min": {"a": 1}, "max": [[1], [1, 2]], "mean": "x", "std": [1, 2, 3],'
        b'"count": [[1], [1, 2]]}}',
    ),
    "statistics have 400 digits": content(STATS, b'{"action": {"min": [' + b"9" * 400 + b", 1]}}"),
    "statistics of episodes are no text": content(EPISODE_STATS, NO_TEXT),
    "statistics of episodes are lists": content(
        EPISODE_STATS, b'{"episode_index": 1, "stats": [1]}\n{"episode_index": [1]}'
    ),
}
SPARTAN_ERRORS: dict[str, Make] = {
    "extrinsics are missing": spartan(without("extrinsics")),
    "extrinsics are an empty archive": no_arrays("extrinsics.npz"),
    "extrinsics are NaN": spartan(value("extrinsics", CAMERA, np.full((4, 4), np.nan))),
    "intrinsics have another length": spartan(
        value("intrinsics", CAMERA, np.tile(np.eye(3), (FRAMES - 1, 1, 1)))
    ),
    "field is of objects": observed("robot__x", np.array([{}] * FRAMES, object)),
    "field is in one episode": observed("robot__new", np.zeros((FRAMES, 1))),
    "field is in the other episodes": spartan(without("observations", "language_instruction")),
    "action is NaN": spartan(value("actions", "actions", np.full((FRAMES, 20), np.nan))),
    "actions are narrow": spartan(value("actions", "actions", np.zeros((FRAMES, 19)))),
    "pictures of all cameras are missing": spartan(
        lambda documents: [documents["observations"].pop(camera) for camera in CAMERAS] and None
    ),
    "pictures are floats": observed(CAMERA, np.zeros((FRAMES, 24, 32, 3))),
    "instruction has half a character": observed(
        "language_instruction", np.array(["\ud800"] * FRAMES)
    ),
    "camera has a long name": spartan(named("a" * 300)),
    "camera is a list": spartan(
        value("metadata", "camera_id_to_semantic_name", {CAMERA: ["a"], "x": {"b": 1}})
    ),
    "metadata are a list": metadata(b"- 1"),
    "metadata are no text": metadata(NO_TEXT),
    "metadata are deep": metadata(b"a: " + DEEP),
    "metadata multiply": metadata(
        b"a: &a [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (i, i, b", ".join([b"*%c" % (i - 1)] * 9)) for i in range(98, 106)
        )
    ),
}
SPARTAN_ODDITIES: dict[str, Make] = {
    "nothing": spartan(lambda documents: None),
    "extrinsics lack a camera": spartan(lambda documents: documents["extrinsics"].pop(CAMERA)),
    "intrinsics are zero": spartan(value("intrinsics", CAMERA, np.zeros((3, 3)))),
    "extrinsics of no camera have another length": spartan(
        value("extrinsics", "other", np.tile(np.eye(4), (FRAMES - 1, 1, 1)))
    ),
    "depth has another length": observed(f"{CAMERA}_depth", np.zeros((FRAMES - 1, 24, 32))),
    "what nobody reads has another length": observed("mystery", np.zeros((FRAMES - 1, 2, 2))),
    "pictures of a camera are missing": spartan(without("observations", CAMERA)),
    "instruction is bytes": observed("language_instruction", np.array([b"\xff"] * FRAMES)),
}
