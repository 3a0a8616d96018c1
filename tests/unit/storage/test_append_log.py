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


def test_rows_are_read_in_order_as_soon_as_they_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert list(read_log(path)) == []
    write(path)
    assert list(tmp_path.iterdir()) == []
    log = AppendLog(path)
    for number, row in enumerate(ROWS, 1):
        log.append(row)
        assert list(read_log(path)) == ROWS[:number]


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_torn_last_row_is_skipped_and_rows_after_it_are_read(log: Path, cut: int) -> None:
    log.write_bytes(log.read_bytes()[:-cut])
    left = ROWS if cut == 1 else ROWS[:2]
    assert list(read_log(log)) == left

    write(log, {"item": "dog"})
    assert list(read_log(log)) == [*left, {"item": "dog"}]


@pytest.mark.parametrize("noise", [b"[1]\n", b"\xff\xfe\n", b"\0\0\0\n", b"\n", b"3\n"])
def test_line_that_is_not_a_row_is_skipped(log: Path, noise: bytes) -> None:
    log.write_bytes(noise + log.read_bytes())

    assert list(read_log(log)) == ROWS
