"""Trying again until a storage that is down or busy answers."""

import http.client
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from vlatool.errors import StorageError, UsageError

PATIENCE_VARIABLE = "VLATOOL_STORAGE_PATIENCE_S"
_DEFAULT_PATIENCE_S = 180.0  # outlasts a restart or an outage of a minute with a wide margin
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 10.0
_LONGEST_REQUESTED_WAIT_S = 60.0  # a server that asks for an hour is asked again before
_WARNING_INTERVAL_S = 10.0

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Trouble:
    """A failure that may pass.

    Attributes:
        reason: What happened, in words without secrets.
        wait_s: How long the other side asks to wait.
    """

    reason: str
    wait_s: float = 0.0


@dataclass
class Notices:
    """When a warning was last written: many threads meet one outage, one sentence is enough."""

    last: float = field(default=-_WARNING_INTERVAL_S)

    def warn(self, where: str, reason: str, clock: Callable[[], float]) -> None:
        """Warns, unless that was done a moment ago."""
        now = clock()
        if now - self.last >= _WARNING_INTERVAL_S:
            self.last = now
            _LOGGER.warning("%s: %s; trying again", where, reason)


_NOTICES = Notices()


@dataclass(frozen=True)
class Pace:
    """Clock, sleep, chance and warnings of `retrying`, so that tests need not wait."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform
    notices: Notices = field(default_factory=lambda: _NOTICES)


_REAL_PACE = Pace()


def patience() -> float:
    """Seconds to keep trying: 180, or what the variable VLATOOL_STORAGE_PATIENCE_S says.

    Raises:
        UsageError: The variable is not a number of seconds.
    """
    text = os.environ.get(PATIENCE_VARIABLE, "")
    try:
        seconds = float(text) if text else _DEFAULT_PATIENCE_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(
            f"{PATIENCE_VARIABLE}={text}: not a number of seconds",
            hint=f"unset it, or set it to seconds, e.g. {PATIENCE_VARIABLE}=180",
            code="usage.bad_environment",
        )
    return seconds


def network_trouble(error: BaseException) -> Trouble | None:
    """What an error of the standard library means; None if trying again is pointless."""
    if isinstance(error, (ConnectionError, TimeoutError, http.client.HTTPException)):
        return Trouble(f"no connection ({type(error).__name__})")
    return None


def retrying(
    operation: Callable[[], T],
    what: str,
    *,
    judge: Callable[[Exception], Trouble | None] = network_trouble,
    patience_s: float | None = None,
    pace: Pace = _REAL_PACE,
) -> T:
    """The operation's result, after as many attempts as it takes.

    Waits grow exponentially to ten seconds and are drawn at random below that (full jitter), so
    that many workers do not come back at the same instant. Attempts go on for `patience_s` after
    the first failure, then once more.

    Args:
        operation: May run several times.
        what: The location, for warnings and the error.
        judge: What an error means; None ends the attempts and lets it through.
        patience_s: Total seconds; by default 180, or the variable VLATOOL_STORAGE_PATIENCE_S.
        pace: Clock and sleep.

    Raises:
        StorageError: The patience is over.
    """
    total = patience() if patience_s is None else patience_s
    deadline: float | None = None
    attempts = 0
    while True:
        try:
            return operation()
        except Exception as error:
            trouble = judge(error)
            if trouble is None:
                raise
            attempts += 1
            now = pace.clock()
            deadline = now + total if deadline is None else deadline
            if now >= deadline:
                raise _given_up(what, trouble.reason, total, attempts) from error
            wait = _wait(attempts, trouble, pace)
            reason = trouble.reason
        pace.notices.warn(what, reason, pace.clock)
        pace.sleep(min(wait, deadline - now))


def _wait(attempts: int, trouble: Trouble, pace: Pace) -> float:
    """Seconds until the next attempt."""
    ceiling = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(attempts - 1, 16))
    return max(pace.uniform(0.0, ceiling), min(trouble.wait_s, _LONGEST_REQUESTED_WAIT_S))


def _given_up(what: str, reason: str, total: float, attempts: int) -> StorageError:
    return StorageError(
        f"{what}: the storage does not answer: {reason}; tried for {total:.0f} s",
        hint="check the network and the endpoint, then run the same command again;"
        f" {PATIENCE_VARIABLE} sets how long to keep trying",
        code="storage.unreachable",
        details={"path": what, "reason": reason, "attempts": attempts},
    )
