"""LIBERO data sets with one defect each: it is reported, and nothing is substituted."""

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import libero
from tests.builders.lerobot import Columns, write_lines
from tests.builders.preprocessing import failure_of, has_message_and_hint
from vlatool.errors import ConfigError

Make = Callable[[Path], Path]


def second(change: Callable[[Columns], Any]) -> Make:
    """Data set with changed columns in the second episode."""

    def apply(number: int, columns: Columns) -> None:
        if number == 1:
            change(columns)

    return lambda root: libero.libero_dataset(root, change=apply)


def column(name: str, value: Any) -> Make:
    return second(lambda columns: columns.update({name: value}))


def no_column(name: str) -> Make:
    return second(lambda columns: columns.pop(name))


def image(data: bytes | None, camera: str = "image") -> Make:
    """Data set with another second image in the second episode."""
    return second(lambda columns: columns[camera][1].update(bytes=data))


def listed(tasks: Sequence[str]) -> Make:
    """Data set whose second episode is listed with other tasks."""

    def make(root: Path) -> Path:
        libero.libero_dataset(root)
        lines = [
            {"episode_index": 0, "tasks": [libero.TASK], "length": 3},
            {"episode_index": 1, "tasks": list(tasks), "length": 4},
        ]
        write_lines(root / "meta/episodes.jsonl", lines)
        write_lines(root / "meta/tasks.jsonl", [])
        return root

    return make


def damaged() -> bytes:
    """PNG with one changed byte in its pixels."""
    data = bytearray(libero.png(1))
    data[data.index(b"IDAT") + 20] ^= 1
    return bytes(data)


def empty_image() -> bytes:
    """PNG with valid chunks but without pixels."""
    data = libero.png(1)
    start = data.index(b"IDAT") - 4
    content = zlib.compress(b"")
    chunk = len(content).to_bytes(4) + b"IDAT" + content
    return data[:start] + chunk + zlib.crc32(chunk[4:]).to_bytes(4) + data[-12:]


def with_value(value: float) -> list[list[float]]:
    rows = libero.actions(4)
    rows[2, 3] = value
    return rows.tolist()


UNREADABLE = "data.broken"
CASES: dict[str, tuple[Make, str]] = {
    "no actions": (no_column("actions"), "data.broken"),
    "no main view": (no_column("image"), "data.broken"),
    "no wrist view": (no_column("wrist_image"), "data.broken"),
    "no frame numbers": (no_column("frame_index"), "data.broken"),
    "no episode numbers": (no_column("episode_index"), "data.broken"),
    "no image in a cell": (image(None), UNREADABLE),
    "no wrist image in a cell": (image(None, "wrist_image"), UNREADABLE),
    "text instead of an image": (image(b"hello"), UNREADABLE),
    "damaged image": (image(damaged()), UNREADABLE),
    "truncated image": (image(libero.png(1)[:-20]), UNREADABLE),
    "bytes after an image": (image(libero.png(1) + b"more"), UNREADABLE),
    "image of another size": (image(libero.png(1, size=128)), UNREADABLE),
    "gray image of another size": (image(libero.png(1, size=128, mode="L")), UNREADABLE),
    "six actions": (column("actions", libero.actions(4)[:, :6].tolist()), "data.broken"),
    "NaN": (column("actions", with_value(float("nan"))), "data.not_finite"),
    "infinity": (column("actions", with_value(float("inf"))), "data.not_finite"),
    "a frame twice": (column("frame_index", np.array([0, 1, 1, 2])), "data.broken"),
    "a frame lost": (column("frame_index", np.array([0, 1, 3, 4])), "data.broken"),
    "no task": (listed([]), "data.missing"),
    "blank task": (listed([" "]), "data.missing"),
    "tag in the task": (listed(["take <image>"]), "data.broken"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_episode_is_reported_and_the_other_is_kept(tmp_path: Path, case: str) -> None:
    make, code = CASES[case]
    failure = failure_of(libero.convert_error(make(tmp_path / "raw"), tmp_path / "A"))
    assert (failure["code"], has_message_and_hint(failure)) == (code, True)
    assert len(libero.windows(tmp_path / "A")) == 6
    assert not list((tmp_path / "A").glob("*/*episode_000001*"))


def test_repaired_episode_completes_the_output(tmp_path: Path) -> None:
    broken = image(damaged())(tmp_path / "raw")
    assert libero.convert_error(broken, tmp_path / "A").exit_code == 4
    libero.convert(libero.libero_dataset(tmp_path / "raw"), tmp_path / "A")
    manifest = json.loads((tmp_path / "A/manifest.json").read_text())
    assert (manifest["episodes"], manifest["samples"]) == (2, 14)


@pytest.mark.parametrize(
    ("make", "options", "code"),
    [
        (image(empty_image()), {"verify_pixels": True}, UNREADABLE),
        (CASES["NaN"][0], {"fail_on_nan": False}, "data.not_finite"),
        (libero.libero_dataset, {"action_width": 8}, "data.mismatch"),
    ],
    ids=["pixels", "NaN", "width"],
)
def test_option_decides_what_is_an_error(
    tmp_path: Path, make: Make, options: dict[str, Any], code: str
) -> None:
    error = libero.convert_error(make(tmp_path / "raw"), tmp_path / "A", **options)
    is_partial = error.code.startswith("partial")
    assert (failure_of(error)["code"] if is_partial else error.code) == code


def listed_twice(root: Path) -> Path:
    libero.libero_dataset(root)
    lines = (root / "meta/episodes.jsonl").read_text()
    (root / "meta/episodes.jsonl").write_text(lines + lines)
    return root


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda root: libero.libero_dataset(root, cameras=["image"]), "data.no_episodes"),
        (
            lambda root: libero.libero_dataset(root, change=lambda _, c: c.pop("wrist_image")),
            "data.incomplete",
        ),
        (listed_twice, "data.broken"),
    ],
)
def test_data_set_that_is_not_libero_is_an_error(tmp_path: Path, make: Make, code: str) -> None:
    error = libero.convert_error(make(tmp_path / "raw"), tmp_path / "A")
    assert (error.code, error.exit_code) == (code, 3)


def test_missing_actions_of_the_first_episode_do_not_affect_the_others(tmp_path: Path) -> None:
    def apply(number: int, columns: Columns) -> None:
        if number == 0:
            columns.pop("actions")

    raw = libero.libero_dataset(tmp_path / "raw", change=apply)

    assert libero.convert_error(raw, tmp_path / "A").exit_code == 4
    assert len(libero.windows(tmp_path / "A", 1)) == 8


@pytest.mark.parametrize(
    ("key", "value"), [*(("name", text) for text in ("a/b", "a\nb", "x" * 101)), ("qa_mode", "3")]
)
def test_invalid_file_name_or_mode_is_rejected(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        libero.convert(tmp_path / "raw", tmp_path / "A", **{key: value})
