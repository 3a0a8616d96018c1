"""Append-only log: rows are read again, even after a torn line."""

from pathlib import Path

import pytest

from vlatool.storage.append_log import AppendLog, read_log

ROWS = [{"item": name, "note": f"{name}\n\u2028\x85"} for name in ("ant", "bird", "cat")]


def write(path: Path, *rows: dict[str, str]) -> None:
    with AppendLog(path) as log:
        for row in rows:
            log.append(row)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    write(tmp_path / "deep/log.jsonl", *ROWS)
    return tmp_path / "deep/log.jsonl"


def test_rows_are_read_in_order(log: Path) -> None:
    assert list(read_log(log)) == ROWS


def test_no_log_has_no_rows(tmp_path: Path) -> None:
    assert list(read_log(tmp_path / "log.jsonl")) == []


def test_log_without_rows_leaves_no_file(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_torn_last_row_is_skipped(log: Path, cut: int) -> None:
    log.write_bytes(log.read_bytes()[:-cut])

    assert list(read_log(log)) == (ROWS if cut == 1 else ROWS[:2])


@pytest.mark.parametrize("cut", [1, 8])
def test_rows_after_a_torn_one_are_read(log: Path, cut: int) -> None:
    log.write_bytes(log.read_bytes()[:-cut])

    write(log, {"item": "dog"})

    assert list(read_log(log))[-1] == {"item": "dog"}
    assert len(list(read_log(log))) == (4 if cut == 1 else 3)


def test_row_survives_an_immediate_kill(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "log.jsonl")
    log.append(ROWS[0])
    log.append(ROWS[1])

    assert list(read_log(tmp_path / "log.jsonl")) == ROWS[:2]


@pytest.mark.parametrize("noise", [b"[1]\n", b"\xff\xfe\n", b"\0\0\0\n", b"\n", b"3\n"])
def test_line_that_is_not_a_row_is_skipped(log: Path, noise: bytes) -> None:
    log.write_bytes(noise + log.read_bytes())

    assert list(read_log(log)) == ROWS
