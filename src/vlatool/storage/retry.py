"""Retries of requests to a storage that is busy or unreachable."""

import http.client
import json
import logging
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol, TypeVar

from vlatool.errors import StorageError, UsageError

TIMEOUT_VARIABLE = "VLATOOL_STORAGE_PATIENCE_S"
SPEED_VARIABLE = "VLATOOL_STORAGE_CLOCK_SPEED"  # for tests: an outage of a minute takes seconds
_DEFAULT_TIMEOUT_S = 180.0  # much longer than a restart or an outage of a minute
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 10.0
_LONGEST_REQUESTED_WAIT_S = 60.0  # limit of the wait that a server requests
_INTERVAL_S = 10.0
_LONGEST_INTERVAL_S = 60.0
_PIPE_BYTES = 4000  # less than PIPE_BUF, up to which writes are atomic

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RetryAdvice:
    """Advice to retry after a temporary failure."""

    reason: str  # description of the failure, without secrets
    wait_s: float = 0.0  # seconds that the server requests to wait


class Clock(Protocol):
    """Clock that retries use."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


@dataclass(frozen=True)
class ProcessClock:
    """Real time, `speed` times as fast; workers inherit the environment variable that sets it."""

    speed: float = field(default_factory=lambda: _number(SPEED_VARIABLE, 1.0) or 1.0)

    def now(self) -> float:
        return time.monotonic() * self.speed

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / self.speed)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Waits until the event is set, at most `seconds`; True if it is set."""
        return event.wait(seconds / self.speed)


@dataclass
class RetryWarnings:
    """Warnings of retries in the log, or in the log of the process that started this worker.

    Many threads and workers see the same outage: a reason is repeated after 10 s, then at intervals
    that double up to a minute.
    """

    # connection to the process that started this one; None: log here
    pipe: Connection | None = None
    _due: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def add(self, retry: "Retry", now: float) -> None:
        """Logs a retry, unless its reason was logged some seconds ago."""
        due, interval = self._due.get(retry.reason, (now, 0.0))
        if now < due:
            return
        if now > due + _LONGEST_INTERVAL_S:  # another outage
            interval = 0.0
        interval = min(max(_INTERVAL_S, 2 * interval), _LONGEST_INTERVAL_S)
        self._due[retry.reason] = (now + interval, interval)
        if self.pipe is None:
            _LOGGER.warning("%s", retry)
            return
        with suppress(OSError):  # the other process has ended
            self.pipe.send_bytes(json.dumps(retry).encode()[:_PIPE_BYTES])


class Retry(NamedTuple):
    """Failed attempt that will be repeated."""

    location: str
    reason: str
    attempt: int
    left_s: float

    def __str__(self) -> str:
        return (
            f"{self.location}: {self.reason}; attempt {self.attempt} failed, "
            f"retrying for {self.left_s:.0f} s"
        )


_WARNINGS = RetryWarnings()


def warnings_of_workers() -> Connection:
    """Connection that workers give to `warn_through`: their retries are logged by this process.

    Several workers may share it: a message is one write to a pipe, which is atomic.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)
    threading.Thread(target=_receive, args=(reader,), daemon=True).start()
    return writer


def warn_through(pipe: Connection) -> None:
    """Sends the warnings of this worker through a pipe of the process that started it."""
    _WARNINGS.pipe = pipe


def _receive(reader: Connection) -> None:
    with suppress(EOFError, OSError):
        while True:
            message = reader.recv_bytes()
            with suppress(ValueError, TypeError):  # a location that was cut
                _WARNINGS.add(Retry(*json.loads(message)), ProcessClock().now())


@dataclass(frozen=True)
class RetryPolicy:
    """Clock, randomness and warnings of `retrying`, which tests replace to avoid waiting."""

    clock: Clock = field(default_factory=ProcessClock)
    uniform: Callable[[float, float], float] = random.uniform
    warnings: RetryWarnings = field(default_factory=lambda: _WARNINGS)


def retry_timeout() -> float:
    """Seconds to keep retrying: VLATOOL_STORAGE_PATIENCE_S, by default 180."""
    return _number(TIMEOUT_VARIABLE, _DEFAULT_TIMEOUT_S)


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(
            f"{variable}={text}: not a number of at least 0",
            hint=f"unset the variable, or set it to a number, e.g. {variable}={default:g}",
            code="usage.bad_value",
        )
    return number


def network_retry_advice(error: BaseException) -> RetryAdvice | None:
    """Advice on retrying after an error of the standard library; None if a retry is useless."""
    if isinstance(error, (ConnectionError, TimeoutError, http.client.HTTPException)):
        return RetryAdvice(f"no connection ({type(error).__name__})")
    return None


def retrying(
    operation: Callable[[], T],  # function that may be called several times
    location: str,  # location for warnings and the error
    *,
    # returns the advice on retrying after an error, or None to raise the error
    classify: Callable[[Exception], RetryAdvice | None] = network_retry_advice,
    # total seconds; by default VLATOOL_STORAGE_PATIENCE_S, else 180
    retry_timeout_s: float | None = None,
    policy: RetryPolicy | None = None,
) -> T:
    """Calls an operation until it succeeds; returns its result.

    The limit of the wait grows exponentially to 10 s, and each wait is a random part of it (full
    jitter), so that many workers do not retry simultaneously. Retries end `retry_timeout_s` after
    the first failure, with one last attempt.
    """
    total = retry_timeout() if retry_timeout_s is None else retry_timeout_s
    policy = policy or RetryPolicy()
    deadline: float | None = None
    attempts = 0
    while True:
        try:
            return operation()
        except Exception as error:
            advice = classify(error)
            if advice is None:
                raise
            attempts += 1
            now = policy.clock.now()
            deadline = now + total if deadline is None else deadline
            if now >= deadline:
                raise _timeout_error(location, advice.reason, total, attempts) from error
            ceiling = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(attempts - 1, 16))
            wait = max(policy.uniform(0.0, ceiling), min(advice.wait_s, _LONGEST_REQUESTED_WAIT_S))
            reason = advice.reason
        policy.warnings.add(Retry(location, reason, attempts, deadline - now), now)
        policy.clock.sleep(min(wait, deadline - now))


def _timeout_error(location: str, reason: str, total: float, attempts: int) -> StorageError:
    return StorageError(
        f"{location}: the storage does not respond: {reason}; retried for {total:.0f} s",
        hint="check the network and the endpoint, then run the same command again;"
        f" {TIMEOUT_VARIABLE} sets the seconds to keep retrying",
        code="storage.unreachable",
        details={"path": location, "reason": reason, "attempts": attempts},
    )
