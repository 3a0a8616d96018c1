"""Messages on the defects of LeRobot data sets that the format page lists.

Source: formats/lerobot 12.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.builders.lerobot import Columns, lerobot_dataset, write_lines, write_video
from tests.builders.lerobot_shared import edit_list
from vlatool.errors import DataError
from vlatool.sources.lerobot.dataset import LeRobotConfig
from vlatool.sources.lerobot.reader import LeRobotReader

FRONT = "observation.images.front"
INFO = "meta/info.json"
DATA = "data/chunk-000/episode_000001.parquet"
VIDEO = f"videos/chunk-000/{FRONT}/episode_000001.mp4"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
LENGTHS = (6, 4)

Make = Callable[[Path], Any]


def messages(root: Path) -> Iterator[str]:
    """All that a user reads about a data set: errors and findings, with every image decoded."""
    reader = LeRobotReader(LeRobotConfig())
    try:
        for ref in reader.discover([root]):
            yield from (finding.message for finding in reader.check(ref, deep=True))
        yield from (finding.message for finding in reader.source_findings)
        yield from (finding.message for finding in reader.check_source([root]))
    except DataError as error:
        yield error.message


def good(**options: Any) -> Make:
    return lambda root: lerobot_dataset(root, LENGTHS, **options)


def info(**changes: Any) -> Make:
    return good(info=changes)


def declared(name: str, **changes: Any) -> Make:
    def make(root: Path) -> None:
        lerobot_dataset(root, LENGTHS)
        tree = json.loads((root / INFO).read_text())
        tree["features"].setdefault(name, {}).update(changes)
        (root / INFO).write_text(json.dumps(tree))

    return make


def files(change: Callable[[Path], Any], **options: Any) -> Make:
    return lambda root: change(lerobot_dataset(root, LENGTHS, **options))


def column(name: str, change: Callable[[Any], Any], **options: Any) -> Make:
    """A set with a changed column in the second episode; None removes it."""

    def apply(number: int, columns: Columns) -> None:
        if number == 1:
            value = change(columns.pop(name))
            columns |= {} if value is None else {name: value}

    return good(change=apply, **options)


def of_all(name: str, value: Callable[[int], Any], **options: Any) -> Make:
    """A set with another column in all episodes; `value` takes the number of rows."""

    def apply(_number: int, columns: Columns) -> None:
        columns[name] = value(len(columns["frame_index"]))

    return good(change=apply, **options)


def with_list(*lengths: int, tasks: tuple[str, ...] = (), more: Make | None = None) -> Make:
    def make(root: Path) -> None:
        (more or good())(root)
        lines = [
            {"episode_index": number, "tasks": tasks, "length": length}
            for number, length in enumerate(lengths)
        ]
        write_lines(root / "meta/episodes.jsonl", lines)

    return make


def twice(root: Path) -> None:
    lerobot_dataset(root, LENGTHS, version="v3.0")
    edit_list(root, "episode_index", 1, 0)


def beyond(root: Path) -> None:
    lerobot_dataset(root, LENGTHS, version="v3.0")
    edit_list(root, f"videos/{FRONT}/from_timestamp", 1, 40.0)
    edit_list(root, f"videos/{FRONT}/to_timestamp", 1, 40.4)


def equal_rows(_number: int, columns: Columns) -> None:
    columns["observation.state"] = [[float(row)] * 3 for row in range(4)]
    columns["action"] = [[float(row)] * 2 for row in range(4)]


NAN = column("observation.state", lambda v: [*v[:3], [np.nan] * 3])
WIDE = column("observation.state", lambda v: [*v[:3], [1.0] * 4])
CELL = {"bytes": None, "path": "../x.png"}
IMAGES = {"cameras": {FRONT: "image"}}
DEFECTS: dict[str, tuple[Make, str]] = {
    "E01 missing": (files(lambda root: (root / INFO).unlink()), r"no episodes.*meta/info\.json"),
    "E01 broken": (files(lambda root: (root / INFO).write_text("{")), r"meta/info\.json"),
    "E02": (
        files(
            lambda root: [
                (root / f"meta/{name}.jsonl").unlink() for name in ("episodes", "episodes_stats")
            ],
            info={"codebase_version": "v1.6"},
        ),
        r"v1\.6",
    ),
    "W03": (info(codebase_version="v3.0"), r"says v3\.0 but the files are v2\.1; reading as v2\.1"),
    "E04": (info(fps=0), r"fps.*0"),
    "E05": (info(data_path="{episode}.parquet"), r'data_path uses unknown field "\{episode\}"'),
    "W06": (
        info(data_path="data/chunk-{episode_index:03d}/episode_{episode_index:06d}.parquet"),
        r"data_path gives data/chunk-001/episode_000001.parquet, but the file is data/chunk-000/",
    ),
    "S07": (files(lambda root: (root / DATA).unlink()), r"episode 1: .*episode_000001\.parquet"),
    "S08": (
        files(lambda root: (root / VIDEO).unlink()),
        rf"episode 1, camera {FRONT}: .*episode_000001\.mp4 is missing",
    ),
    "W09": (
        declared("observation.images.ghost", dtype="video", shape=[8, 8, 3]),
        r"camera observation\.images\.ghost has no video for any episode; left out",
    ),
    "E10": (files(lambda root: (root / DATA).write_bytes(LFS)), r"000001\.parquet.* Git LFS"),
    "E11": (files(lambda root: (root / DATA).write_bytes(b"PAR1")), r"cannot be read as parquet"),
    "E12": (column("action", lambda _: None), r"episode 1: .* action is missing; available: "),
    "S13": (with_list(6, 9), r"episode 1: .* has 4 rows, the list of episodes says 9"),
    "W14": (info(total_frames=2100), r"total_frames is 2100, the list of episodes has 10"),
    "S15": (
        files(lambda root: write_video(root / VIDEO, 3)),
        rf"episode 1, camera {FRONT}: .* has 3 frames, the data has 4 rows",
    ),
    "W16": (
        column("timestamp", lambda v: pa.array([time.as_py() + 0.1 for time in v])),
        r"episode 1: timestamps start at 0\.100 s; frames are matched by row number",
    ),
    "S17": (
        column("timestamp", lambda _: pa.array([0.0, 0.1, 0.0, 0.3])),
        r"episode 1: timestamp goes from 0\.10 to 0\.00 at row 2",
    ),
    "W18": (
        files(lambda root: write_video(root / VIDEO, 4, fps=5)),
        rf"camera {FRONT}: .* has 5 fps, the data 10",
    ),
    "S19": (beyond, r"episode 1, .* its frames are 40\.00 s to 40\.40 s .* ends at 1\.00 s"),
    "E20": (twice, r"episode_index 0 appears twice"),
    "S21": (
        column("task_index", lambda v: np.full(len(v), 7)),
        r"episode 1: task_index 7 is not in the list of tasks \(0\.\.1\)",
    ),
    "S22": (
        with_list(6, 4, tasks=("a", "b"), more=good(change=lambda _, c: c.pop("task_index"))),
        r'episode 1 lists 2 tasks \("a", "b"\) and its rows do not select one',
    ),
    "W23": (info(splits={"train": "0:100"}), r"splits\.train is '0:100', there are 2 episodes"),
    "W24": (declared("action", names=["x"]), r"action has 1 name for 2 values"),
    "E25": (WIDE, r"episode 1: .* observation\.state has 4 values at row 3, expected 3"),
    "S26": (NAN, r"episode 1: .* observation\.state .*NaN.*row 3"),
    "S27 size": (
        declared(FRONT, shape=[64, 64, 3]),
        r"episode 1, camera .* is 48x32 \(w x h\), meta/info\.json says \[64, 64, 3\]",
    ),
    "S27 decodes": (
        column(FRONT, lambda v: [*v[:3], {"bytes": b"x", "path": None}], **IMAGES),
        rf"{FRONT}.*3",
    ),
    "W28": (
        of_all("action", lambda rows: [[float(row), 1.0] for row in range(rows)]),
        r"1 of 2 dimensions never change: action\.?.*1",
    ),
    "E29": (column(FRONT, lambda v: [*v[:3], CELL], **IMAGES), r"\.\./x\.png"),
    "W30": (
        files(lambda root: (root / "meta/stats.json").unlink()),
        r"no statistics of the set or of its episodes; vlatool computes its own",
    ),
    "equal episodes": (
        lambda root: lerobot_dataset(root, (4, 4), change=equal_rows),
        r"episode 1 has the same observations and actions as episode 0",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_has_the_message_that_a_user_needs(name: str, tmp_path: Path) -> None:
    make, pattern = DEFECTS[name]
    make(tmp_path / "set")
    known = [*messages(tmp_path / "set")]
    assert any(re.search(pattern, message) for message in known), known
