import http.client
import logging
import threading
import time
from collections.abc import Iterable

import pytest

from vlatool.errors import StorageError, UsageError
from vlatool.storage.retry import (
    SPEED_VARIABLE,
    ProcessClock,
    RetryAdvice,
    RetryPolicy,
    WarningThrottle,
    retry_timeout,
    retrying,
)


class Clock:
    """Time that passes only while someone sleeps; chance always chooses the longest wait."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.sleeps: list[float] = []
        self.pace = RetryPolicy(self, lambda _, longest: longest, WarningThrottle())

    def now(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.passed += seconds


class Flaky:
    """Fails with the given errors, then answers."""

    def __init__(self, errors: Iterable[Exception]) -> None:
        self.errors = list(errors)

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def always_down() -> str:
    raise ConnectionResetError


def test_answer_comes_after_failures_that_pass() -> None:
    clock = Clock()
    errors = [ConnectionRefusedError(), TimeoutError(), http.client.IncompleteRead(b"")]

    assert retrying(Flaky(errors), "s3://b/k", policy=clock.pace) == "answer"
    assert clock.sleeps == [0.5, 1.0, 2.0]


def test_waits_grow_to_ten_seconds() -> None:
    clock = Clock()

    retrying(Flaky([TimeoutError()] * 8), "s3://b/k", policy=clock.pace)

    assert clock.sleeps == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_outage_of_a_minute_is_outlasted_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLATOOL_STORAGE_PATIENCE_S", raising=False)
    clock = Clock()

    def down_for_a_minute() -> str:
        if clock.passed < 60:
            raise ConnectionRefusedError
        return "answer"

    assert retrying(down_for_a_minute, "s3://b/k", policy=clock.pace) == "answer"


def test_patience_ends_with_a_storage_error_that_names_the_place() -> None:
    clock = Clock()

    with pytest.raises(StorageError) as caught:
        retrying(always_down, "s3://b/k", retry_timeout_s=30, policy=clock.pace)

    assert (caught.value.code, caught.value.exit_code) == ("storage.unreachable", 5)
    assert caught.value.details["path"] == "s3://b/k"
    assert clock.passed == 30, "one last attempt when the patience ends"


def test_patience_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "7")
    clock = Clock()

    with pytest.raises(StorageError):
        retrying(always_down, "s3://b/k", policy=clock.pace)

    assert clock.passed == 7


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_patience_that_is_no_number_is_a_usage_error(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", text)

    with pytest.raises(UsageError) as caught:
        retry_timeout()

    assert caught.value.code == "usage.bad_environment"


def test_requested_wait_is_kept() -> None:
    clock = Clock()

    retrying(
        Flaky([ValueError()]),
        "s3://b/k",
        classify=lambda _: RetryAdvice("busy", 25.0),
        policy=clock.pace,
    )

    assert clock.sleeps == [25.0]


def test_error_that_cannot_pass_is_raised_at_once() -> None:
    clock = Clock()

    with pytest.raises(PermissionError):
        retrying(Flaky([PermissionError()]), "s3://b/k", policy=clock.pace)

    assert clock.sleeps == []


def test_warnings_are_some_seconds_apart(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()

    with caplog.at_level(logging.WARNING):
        retrying(Flaky([TimeoutError()] * 8), "s3://b/k", policy=clock.pace)

    assert 2 <= len(caplog.records) <= 5, "45 s, of which every tenth second may say something"
    assert "s3://b/k" in caplog.text


def test_clock_of_a_process_can_be_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, "1000")
    clock, event = ProcessClock(), threading.Event()
    started = time.monotonic()

    before = clock.now()
    clock.sleep(10)
    assert clock.now() - before >= 10
    assert not clock.wait(event, 10)
    event.set()
    assert clock.wait(event, 10_000)
    assert time.monotonic() - started < 5
