"""Retries of requests to a storage that is busy or unreachable."""

import errno
import http.client
import logging
import multiprocessing
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vlatool.errors import StorageError, UsageError

TIMEOUT_VARIABLE = "VLATOOL_STORAGE_PATIENCE_S"
SPEED_VARIABLE = "VLATOOL_STORAGE_CLOCK_SPEED"  # for tests: an outage of a minute takes seconds
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0  # until the next byte of an answer
_DEFAULT_TIMEOUT_S = 180.0  # much longer than a restart or an outage of a minute
_FIRST_CONTACT_S = 10.0  # of a host to which no connection was ever made
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 10.0
_LONGEST_REQUESTED_WAIT_S = 60.0  # limit of the wait that a server requests
_INTERVAL_S = 10.0
_LONGEST_INTERVAL_S = 60.0
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
# Packages whose errors are about a connection, unless they are about the URL.
_CLIENTS = {"urllib3", "requests", "httpx", "httpx2", "httpcore", "botocore", "azure"}
_TUNNEL = re.compile(r"Tunnel connection failed: ([0-9]{3})|^([0-9]{3}) [A-Z]")

_LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RetryAdvice:
    """Advice to retry after a temporary failure."""

    reason: str  # description of the failure, without secrets
    wait_s: float = 0.0  # seconds that the server requests to wait
    is_unreached: bool = False  # True if there was no connection to the server


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
class _Warnings:
    """Warnings of retries in the log of this process.

    Many threads see the same outage: a reason is repeated after 10 s, then at intervals that
    double up to a minute.
    """

    due: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def add(self, reason: str, message: str, now: float) -> None:
        """Logs a retry, unless its reason was logged some seconds ago."""
        due, interval = self.due.get(reason, (now, _INTERVAL_S))
        if now < due:
            return
        if now > due + _LONGEST_INTERVAL_S:  # another outage
            interval = _INTERVAL_S
        self.due[reason] = (now + interval, min(2 * interval, _LONGEST_INTERVAL_S))
        _LOGGER.warning("%s", message)


_warnings = _Warnings()
_answered: set[str] = set()  # hosts that this process has had a connection to


def expect_answers() -> None:
    """Makes this process retry every host; for workers that no process of this machine started."""
    _answered.add("")


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


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, then what libraries store in it as the reason, and its causes."""
    pending: list[object] = [error]
    seen: list[BaseException] = []
    while pending:
        current = pending.pop(0)
        if isinstance(current, BaseException) and current not in seen:
            seen.append(current)
            yield current
            names = ("reason", "original_error", "inner_exception", "__cause__", "__context__")
            pending += [*current.args, *(getattr(current, name, None) for name in names)]


def network_retry_advice(error: BaseException) -> RetryAdvice | None:
    """Advice on retrying after an error of a connection, of any library; None for other errors."""
    causes = list(chain(error))
    if certificate_problem(error) or 0 < tunnel_refusal(error) < 500:
        return None
    # A proxy that is on the way is what was not reached, or what did not reach the host.
    has_proxy = any("Proxy" in type(cause).__name__ for cause in causes)
    for cause in causes:
        reason = _unreached(cause)
        if reason:
            server = "proxy" if has_proxy else "host"
            return RetryAdvice(f"the {server} {reason}", is_unreached=True)
    for cause in causes:
        package = type(cause).__module__.partition(".")[0]
        is_standard = isinstance(cause, ConnectionError | TimeoutError | http.client.HTTPException)
        if is_standard or (package in _CLIENTS and not isinstance(cause, ValueError)):
            return RetryAdvice(f"no complete answer ({type(cause).__name__})")
    return None


def certificate_problem(error: BaseException) -> str:
    """Reason why the certificate of a server is not accepted; empty for other errors."""
    for cause in chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return str(cause.verify_message)
    return ""


def tunnel_refusal(error: BaseException) -> int:
    """Status of a proxy that does not connect to a host; 0 for other errors."""
    for cause in chain(error):
        match = _TUNNEL.search(str(cause))
        if match is not None and (match[1] or "Proxy" in type(cause).__name__):
            return int(match[1] or match[2])
    return 0


def _unreached(error: BaseException) -> str:
    """Reason why there is no connection; empty if there was one."""
    status = tunnel_refusal(error)
    if status:
        return f"answers {status}"
    if isinstance(error, socket.gaierror):
        return "has a name that cannot be resolved"
    if isinstance(error, ConnectionRefusedError):
        return "refuses connections"
    if "ConnectTimeout" in type(error).__name__:
        return f"does not answer within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, OSError) and error.errno in _NO_ROUTE:
        return "has no route to it"
    if isinstance(error, ssl.SSLError):
        return "answers without TLS"
    return ""


def retrying(
    operation: Callable[[], T],  # function that may be called several times
    location: str,  # location for warnings and the error
    *,
    # returns the advice on retrying after an error, or None to raise the error
    classify: Callable[[Exception], RetryAdvice | None] = network_retry_advice,
    # total seconds; by default VLATOOL_STORAGE_PATIENCE_S, else 180
    retry_timeout_s: float | None = None,
    host: str = "",  # name of the host, which is given up soon if it was never reached
    clock: Any = None,  # for tests; by default a ProcessClock
) -> T:
    """Calls an operation until it succeeds; returns its result.

    The limit of the wait grows exponentially to 10 s, and each wait is a random part of it (full
    jitter), so that many workers do not retry simultaneously. Retries end with one last attempt.
    The first attempt counts, up to the time in which a server has to answer.
    """
    total = retry_timeout() if retry_timeout_s is None else retry_timeout_s
    clock = clock or ProcessClock()
    began = clock.now()
    deadline: float | None = None
    attempts = 0
    while True:
        try:
            result = operation()
        except Exception as error:
            advice = classify(error)
            if advice is None:
                raise
            attempts += 1
            now = clock.now()
            if deadline is None:
                if _is_new(host, advice):
                    total = min(total, _FIRST_CONTACT_S)
                deadline = now + total - min(now - began, READ_TIMEOUT_S)
            if now >= deadline:
                raise _timeout_error(location, advice, total, attempts) from error
            ceiling = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(attempts - 1, 16))
            wait = random.uniform(0.0, ceiling)  # noqa: S311 - no secret
            wait = max(wait, min(advice.wait_s, _LONGEST_REQUESTED_WAIT_S))
            left = deadline - now
            message = f"{location}: {advice.reason}; attempt {attempts} failed, retrying for "
            _warnings.add(advice.reason, f"{message}{left:.0f} s", now)
        else:
            _answered.update([host] if host else [])
            return result
        clock.sleep(min(wait, left))


def _is_new(host: str, advice: RetryAdvice) -> bool:
    """True for a host that this process has never reached; workers expect that it answers."""
    if host and not advice.is_unreached:
        _answered.add(host)
    is_worker = "" in _answered or multiprocessing.parent_process() is not None
    return bool(host) and host not in _answered and not is_worker


def _timeout_error(location: str, advice: RetryAdvice, total: float, attempts: int) -> StorageError:
    hint = "check the network and the endpoint, then run the same command again;"
    hint += f" {TIMEOUT_VARIABLE} sets the seconds to keep retrying"
    if advice.is_unreached:
        hint = "check the name of the host, the network, HTTPS_PROXY and NO_PROXY; without a"
        hint += " network, give the path of a local folder or file instead"
    return StorageError(
        f"{location}: the storage does not respond: {advice.reason}; retried for {total:.0f} s",
        hint=hint,
        code="storage.unreachable",
        details={"path": location, "reason": advice.reason, "attempts": attempts},
    )
