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
    """Clock that only advances while sleeping; random waits are always the longest ones."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.sleeps: list[float] = []
        self.policy = RetryPolicy(self, lambda _, longest: longest, WarningThrottle())

    def now(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.passed += seconds


class Flaky:
    """Operation that raises the given errors, then succeeds."""

    def __init__(self, errors: Iterable[Exception]) -> None:
        self.errors = list(errors)

    def __call__(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def always_down() -> str:
    raise ConnectionResetError


def test_operation_succeeds_after_temporary_failures() -> None:
    clock = Clock()
    errors = [ConnectionRefusedError(), TimeoutError(), http.client.IncompleteRead(b"")]

    assert retrying(Flaky(errors), "s3://b/k", policy=clock.policy) == "answer"
    assert clock.sleeps == [0.5, 1.0, 2.0]


def test_waits_grow_to_ten_seconds() -> None:
    clock = Clock()

    retrying(Flaky([TimeoutError()] * 8), "s3://b/k", policy=clock.policy)

    assert clock.sleeps == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_outage_of_a_minute_is_survived_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLATOOL_STORAGE_PATIENCE_S", raising=False)
    clock = Clock()

    def down_for_a_minute() -> str:
        if clock.passed < 60:
            raise ConnectionRefusedError
        return "answer"

    assert retrying(down_for_a_minute, "s3://b/k", policy=clock.policy) == "answer"


def test_timeout_is_a_storage_error_with_the_location() -> None:
    clock = Clock()

    with pytest.raises(StorageError) as caught:
        retrying(always_down, "s3://b/k", retry_timeout_s=30, policy=clock.policy)

    assert (caught.value.code, caught.value.exit_code) == ("storage.unreachable", 5)
    assert caught.value.details["path"] == "s3://b/k"
    assert clock.passed == 30, "one last attempt at the timeout"


def test_timeout_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "7")
    clock = Clock()

    with pytest.raises(StorageError):
        retrying(always_down, "s3://b/k", policy=clock.policy)

    assert clock.passed == 7


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_invalid_timeout_is_a_usage_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", text)

    with pytest.raises(UsageError) as caught:
        retry_timeout()

    assert caught.value.code == "usage.bad_environment"


def test_requested_wait_is_respected() -> None:
    clock = Clock()

    retrying(
        Flaky([ValueError()]),
        "s3://b/k",
        classify=lambda _: RetryAdvice("busy", 25.0),
        policy=clock.policy,
    )

    assert clock.sleeps == [25.0]


def test_permanent_error_is_raised_immediately() -> None:
    clock = Clock()

    with pytest.raises(PermissionError):
        retrying(Flaky([PermissionError()]), "s3://b/k", policy=clock.policy)

    assert clock.sleeps == []


def test_warnings_are_some_seconds_apart(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()

    with caplog.at_level(logging.WARNING):
        retrying(Flaky([TimeoutError()] * 8), "s3://b/k", policy=clock.policy)

    assert 2 <= len(caplog.records) <= 5, "45 s with one warning per 10 s"
    assert "s3://b/k" in caplog.text


def test_clock_of_a_process_can_run_faster(monkeypatch: pytest.MonkeyPatch) -> None:
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
