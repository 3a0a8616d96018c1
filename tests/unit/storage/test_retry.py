import http.client
import io
import logging
import threading
import time
from collections.abc import Iterable

import pytest
import urllib3

from vlatool.errors import StorageError, UsageError
from vlatool.storage import retry, web
from vlatool.storage.s3 import Bucket
from vlatool.storage.uri import require_existing


class Clock:
    """Clock that only advances while sleeping."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.passed += seconds


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warnings and no contacts so far; random waits are always the longest ones."""
    monkeypatch.setattr(retry, "_warnings", retry._Warnings())
    monkeypatch.setattr(retry, "_answered", set[str]())
    monkeypatch.setattr(retry.random, "uniform", lambda _, longest: longest)


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


def test_host_that_was_never_reached_is_given_up_after_ten_seconds() -> None:
    clock = Clock()

    def refused() -> str:
        raise ConnectionRefusedError

    with pytest.raises(StorageError) as caught:
        retry.retrying(refused, "s3://b/k", host="s3://b", clock=clock)
    assert (clock.passed, caught.value.code) == (10, "storage.unreachable")


def test_host_that_takes_the_connection_and_is_silent_costs_the_patience_and_one_read_limit() -> (
    None
):
    clock = Clock()

    def silent() -> str:
        clock.passed += retry.READ_TIMEOUT_S
        raise TimeoutError

    with pytest.raises(StorageError):
        retry.retrying(silent, "s3://b/k", retry_timeout_s=10, host="s3://b", clock=clock)
    assert clock.passed <= 10 + retry.READ_TIMEOUT_S


def test_a_command_gives_up_a_host_that_was_never_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(retry.SPEED_VARIABLE, "100")
    with pytest.raises(StorageError) as caught:
        require_existing("http://127.0.0.1:1/file.json")
    assert "retried for 10 s" in caught.value.message


def test_host_that_has_answered_is_retried() -> None:
    clock = Clock()
    retry.retrying(lambda: "", "s3://b/k", host="s3://b", clock=clock)

    with pytest.raises(StorageError):
        retry.retrying(
            Flaky([ConnectionRefusedError()] * 99),
            "s3://b/k",
            retry_timeout_s=60,
            host="s3://b",
            clock=clock,
        )
    assert clock.passed == 60


def test_operation_succeeds_after_temporary_failures_and_waits_that_grow_to_ten_seconds() -> None:
    clock = Clock()
    errors = [ConnectionRefusedError(), TimeoutError(), http.client.IncompleteRead(b"")]

    operation = Flaky([*errors, *([TimeoutError()] * 5)])
    assert retry.retrying(operation, "s3://b/k", clock=clock) == "answer"
    assert clock.sleeps == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_outage_of_a_minute_is_survived_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLATOOL_STORAGE_PATIENCE_S", raising=False)
    clock = Clock()

    def down_for_a_minute() -> str:
        if clock.passed < 60:
            raise ConnectionRefusedError
        return "answer"

    assert retry.retrying(down_for_a_minute, "s3://b/k", clock=clock) == "answer"


def test_timeout_is_a_storage_error_with_the_location(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "7")
    for options, passed in (({"retry_timeout_s": 30}, 30), ({}, 7)):
        clock = Clock()
        with pytest.raises(StorageError) as caught:
            retry.retrying(always_down, "s3://b/k", clock=clock, **options)

        assert (caught.value.code, caught.value.exit_code) == ("storage.unreachable", 5)
        assert caught.value.details["path"] == "s3://b/k"
        assert clock.passed == passed, "one last attempt at the timeout"


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_invalid_timeout_is_a_usage_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", text)

    with pytest.raises(UsageError) as caught:
        retry.retry_timeout()

    assert caught.value.code == "usage.bad_value"


def test_requested_wait_is_respected() -> None:
    clock = Clock()

    retry.retrying(
        Flaky([ValueError()]),
        "s3://b/k",
        classify=lambda _: retry.RetryAdvice("busy", 25.0),
        clock=clock,
    )

    assert clock.sleeps == [25.0]


def test_permanent_error_is_raised_immediately() -> None:
    clock = Clock()

    with pytest.raises(PermissionError):
        retry.retrying(Flaky([PermissionError()]), "s3://b/k", clock=clock)

    assert clock.sleeps == []


def test_warnings_say_attempt_time_left_and_reason_at_growing_intervals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()

    with caplog.at_level(logging.WARNING), pytest.raises(StorageError):
        retry.retrying(always_down, "s3://b/k", retry_timeout_s=180, clock=clock)

    text = (
        "s3://b/k: no complete answer (ConnectionResetError); attempt {} failed, retrying for {} s"
    )
    assert caplog.messages == [
        text.format(1, 180),
        text.format(6, 164),
        text.format(8, 144),
        text.format(12, 104),
        text.format(18, 44),
    ]


def test_clock_of_a_process_can_run_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(retry.SPEED_VARIABLE, "1000")
    clock, event = retry.ProcessClock(), threading.Event()
    started = time.monotonic()

    before = clock.now()
    clock.sleep(10)
    assert clock.now() - before >= 10
    assert not clock.wait(event, 10)
    event.set()
    assert clock.wait(event, 10_000)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("age_s", [0.0, 900.0])
def test_a_rejected_signature_is_made_again_only_if_it_is_from_an_earlier_request(
    age_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role's credentials are renewed; a URL that was signed before is refused."""
    bucket = Bucket("s3://bucket")
    bucket._signed_urls["key"] = ("url", time.monotonic() + 1800 - age_s)
    body = io.BytesIO(b"<Error><Code>ExpiredToken</Code></Error>")
    answer = urllib3.HTTPResponse(body, status=400, preload_content=False)
    monkeypatch.setattr(web, "fetch", lambda *_: answer)
    with pytest.raises(web.HttpStatusError) as caught:
        bucket.get("key", 0, 5, "")
    assert (bucket.retry_advice(caught.value) is not None) == (age_s > 0)
    assert "key" not in bucket._signed_urls
