"""Waits that servers request, the display of transfers, and logs of partial files."""

from email.utils import formatdate
from pathlib import Path

import pytest

from tests.builders.recording import RecordedBar
from vlatool.storage.remote import Address, ObjectInfo
from vlatool.storage.transfer import PartialFile, TransferPool
from vlatool.storage.web import requested_wait

DATE = formatdate(1_800_000_000, usegmt=True)
LATER = formatdate(1_800_000_042, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "7"}, 7),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"Retry-After": LATER, "Date": DATE}, 42),
        ({"Retry-After": DATE, "Date": LATER}, 0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:01 GMT"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "-3"}, 0),
        ({"Retry-After": "nan"}, 0),
    ],
)
def test_wait_is_seconds_or_a_date(headers: dict[str, str], seconds: float) -> None:
    assert requested_wait(headers) == seconds


def test_files_in_flight_are_shown() -> None:
    bar = RecordedBar()
    pool = TransferPool(2, bar=bar)
    with pool.file("a"), pool.file("b"):
        pool.count(10)
        assert bar.fields == {"in flight": "2: a, b", "files": 0}
    assert bar.fields == {"in flight": "0", "files": 2}
    assert bar.done == 10


def test_finished_files_are_counted_under_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[bool] = []

    def change(pool: TransferPool, value: int) -> None:
        if value:
            changes.append(pool._lock.locked())
        pool.__dict__["_finished"] = value

    counter = property(lambda pool: pool.__dict__["_finished"], change)
    monkeypatch.setattr(TransferPool, "_finished", counter)
    pool = TransferPool(1, _finished=0)
    with pool.file("a"):
        pass
    assert changes == [True]


def test_time_of_an_outage_is_not_made_up_for_at_full_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("vlatool.storage.transfer.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "vlatool.storage.transfer.time.sleep", lambda seconds: now.append(now.pop() + seconds)
    )
    pool = TransferPool(1, bytes_per_s=1000)
    pool.count(1000)
    assert now == [101.0]
    now[0] += 60
    pool.count(1000)
    assert now == [162.0]


def test_chunks_whose_content_was_lost_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "partial"
    info = ObjectInfo(12, etag="e")
    with PartialFile(path, Address("s3://b", "k"), info, 4) as file:
        for number in range(2):
            chunk = file.chunk(number)
            chunk.write(b"abcd")
            chunk.finish()
    with path.open("r+b") as data:  # as after a power cut
        data.write(b"x")

    with PartialFile(path, Address("s3://b", "k"), info, 4) as file:
        assert file.missing() == [0, 2]
