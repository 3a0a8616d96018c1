"""Trying again until a storage that is down or busy answers."""

import http.client
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from vlatool.errors import StorageError, UsageError

TIMEOUT_VARIABLE = "VLATOOL_STORAGE_PATIENCE_S"
SPEED_VARIABLE = "VLATOOL_STORAGE_CLOCK_SPEED"  # for tests: an outage of a minute in seconds
_DEFAULT_PATIENCE_S = 180.0  # outlasts a restart or an outage of a minute with a wide margin
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 10.0
_LONGEST_REQUESTED_WAIT_S = 60.0  # a server that asks for an hour is asked again before
_WARNING_INTERVAL_S = 10.0

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RetryAdvice:
    """A failure that may pass.

    Attributes:
        reason: What happened, in words without secrets.
        wait_s: How long the other side asks to wait.
    """

    reason: str
    wait_s: float = 0.0


class Clock(Protocol):
    """Time as the storage waits by it."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        ...


@dataclass(frozen=True)
class ProcessClock:
    """Real time, or `speed` times as fast; workers inherit the variable that says so."""

    speed: float = field(default_factory=lambda: _number(SPEED_VARIABLE, 1.0) or 1.0)

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() * self.speed

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        time.sleep(seconds / self.speed)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Lets time pass until something happens; whether it did."""
        return event.wait(seconds / self.speed)


@dataclass
class WarningThrottle:
    """When a warning was last written: many threads meet one outage, one sentence is enough."""

    last: float = field(default=-_WARNING_INTERVAL_S)

    def warn(self, where: str, reason: str, now: float) -> None:
        """Warns, unless that was done a moment ago."""
        if now - self.last >= _WARNING_INTERVAL_S:
            self.last = now
            _LOGGER.warning("%s: %s; trying again", where, reason)


_NOTICES = WarningThrottle()


@dataclass(frozen=True)
class RetryPolicy:
    """Clock, chance and warnings of `retrying`, so that tests need not wait."""

    clock: Clock = field(default_factory=ProcessClock)
    uniform: Callable[[float, float], float] = random.uniform
    throttle: WarningThrottle = field(default_factory=lambda: _NOTICES)


def retry_timeout() -> float:
    """Seconds to keep trying: 180, or what the variable VLATOOL_STORAGE_PATIENCE_S says.

    Raises:
        UsageError: The variable is not a number of seconds.
    """
    return _number(TIMEOUT_VARIABLE, _DEFAULT_PATIENCE_S)


def _number(variable: str, default: float) -> float:
    """A variable of the environment that holds a number."""
    text = os.environ.get(variable, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(
            f"{variable}={text}: not a number from 0 on",
            hint=f"unset it, or set it to one, e.g. {variable}={default:g}",
            code="usage.bad_environment",
        )
    return number


def network_retry_advice(error: BaseException) -> RetryAdvice | None:
    """What an error of the standard library means; None if trying again is pointless."""
    if isinstance(error, (ConnectionError, TimeoutError, http.client.HTTPException)):
        return RetryAdvice(f"no connection ({type(error).__name__})")
    return None


def retrying(
    operation: Callable[[], T],
    location: str,
    *,
    classify: Callable[[Exception], RetryAdvice | None] = network_retry_advice,
    retry_timeout_s: float | None = None,
    policy: RetryPolicy | None = None,
) -> T:
    """The operation's result, after as many attempts as it takes.

    Waits grow exponentially to ten seconds and are drawn at random below that (full jitter), so
    that many workers do not come back at the same instant. Attempts last `retry_timeout_s` after
    the first failure, then once more.

    Args:
        operation: May run several times.
        what: The location, for warnings and the error.
        classify: What an error means; None ends the attempts and lets it through.
        retry_timeout_s: Total seconds; by default 180, or the variable VLATOOL_STORAGE_PATIENCE_S.
        pace: What passes for time; by default that of this process.

    Raises:
        StorageError: The patience is over.
    """
    total = retry_timeout() if retry_timeout_s is None else retry_timeout_s
    policy = policy or RetryPolicy()
    deadline: float | None = None
    attempts = 0
    while True:
        try:
            return operation()
        except Exception as error:
            trouble = classify(error)
            if trouble is None:
                raise
            attempts += 1
            now = policy.clock.now()
            deadline = now + total if deadline is None else deadline
            if now >= deadline:
                raise _given_up(location, trouble.reason, total, attempts) from error
            wait = _wait(attempts, trouble, policy)
            reason = trouble.reason
        policy.throttle.warn(location, reason, now)
        policy.clock.sleep(min(wait, deadline - now))


def _wait(attempts: int, trouble: RetryAdvice, pace: RetryPolicy) -> float:
    """Seconds until the next attempt."""
    ceiling = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(attempts - 1, 16))
    return max(pace.uniform(0.0, ceiling), min(trouble.wait_s, _LONGEST_REQUESTED_WAIT_S))


def _given_up(what: str, reason: str, total: float, attempts: int) -> StorageError:
    return StorageError(
        f"{what}: the storage does not answer: {reason}; tried for {total:.0f} s",
        hint="check the network and the endpoint, then run the same command again;"
        f" {TIMEOUT_VARIABLE} sets how long to keep trying",
        code="storage.unreachable",
        details={"path": what, "reason": reason, "attempts": attempts},
    )
