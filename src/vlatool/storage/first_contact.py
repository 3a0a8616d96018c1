"""First contact with a server: a host that cannot be reached is an error within seconds.

Once a host has answered this process, the same failure is an outage, which is retried. Workers
expect every host to answer: the process that started them has reached the storage before.
"""

import errno
import multiprocessing
import socket
import time
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from vlatool.errors import StorageError
from vlatool.storage.background import in_background
from vlatool.storage.routes import route

ANSWER_TIMEOUT_S = 3.0  # of name and connection together
_NAME_WAIT_S = 0.5  # before a name is looked up again after a temporary failure
_MAX_ADDRESSES = 8
_PORTS = {"http": 80, "https": 443}
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}


class UnreachableHost(Exception):
    """Host that has never answered this process, and does not answer now."""

    def __init__(self, host: str, reason: str, proxy: str = "") -> None:
        server = f"the proxy {proxy} for {host}" if proxy else host
        super().__init__(f"{server} cannot be reached: {reason}")
        self.host = host
        self.reason = reason  # reason why it does not answer
        self.has_proxy = bool(proxy)

    def at(self, location: str) -> StorageError:
        """Error of vlatool for a location on the host."""
        return StorageError(
            f"{location}: {self}",
            hint=f"check {'HTTPS_PROXY and NO_PROXY' if self.has_proxy else 'the name of the host'}"
            " and the network; without a network, give the path of a local folder or file instead",
            code="storage.unreachable",
            details={"path": location, "host": self.host, "reason": self.reason},
        )


@dataclass
class _Contacts:
    """Hosts that have answered this process; `are_expected`: all are assumed to have."""

    answered: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    are_expected: bool = False


_CONTACTS = _Contacts()


def expect_answers() -> None:
    """Makes this process retry every host; for workers that no process of this machine started."""
    _CONTACTS.are_expected = True


def reach(url: str) -> None:
    """Connects once to the host of a URL or to its proxy, unless it has answered this process."""
    if has_answered(url):
        return
    proxy = route(url).proxy
    try:
        _connect(*_server(proxy.url if proxy else url))
    except UnreachableHost as error:
        if proxy is None:
            raise
        host, _ = _server(url)
        raise UnreachableHost(host, error.reason, proxy.host) from error
    if proxy is None:
        note_answer(url)


def has_answered(url: str) -> bool:
    """True if the host of a URL has answered this process, or is assumed to have.

    It is also true of a URL without a host: the request reports an invalid location.
    """
    if _CONTACTS.are_expected or multiprocessing.parent_process() is not None:
        return True
    server = _server(url)
    return not all(server) or server in _CONTACTS.answered


def note_answer(url: str) -> None:
    """Stores that the host of a URL has answered this process."""
    _CONTACTS.answered.add(_server(url))


def _server(url: str) -> tuple[str, int]:
    """Host and port of a URL; empty and 0 if it is invalid."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return "", 0


def _connect(host: str, port: int) -> None:
    """Connects to all addresses of a host at once, because some may not work."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    problem: Exception = TimeoutError()
    try:
        rows = in_background(partial(_addresses, host, port)).result(ANSWER_TIMEOUT_S)
    except (OSError, UnicodeError) as error:
        raise UnreachableHost(host, _reason(error, port)) from error
    attempts = {in_background(partial(_open, row)) for row in rows[:_MAX_ADDRESSES]}
    while attempts:
        left = max(0.0, deadline - time.monotonic())
        done, attempts = wait(attempts, left, FIRST_COMPLETED)
        if not done:
            problem = TimeoutError()
            break
        for attempt in done:
            error = attempt.exception()
            if error is None:
                return
            problem = error if isinstance(error, OSError) else problem
    raise UnreachableHost(host, _reason(problem, port)) from problem


def _addresses(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno != socket.EAI_AGAIN:
            raise
    time.sleep(_NAME_WAIT_S)
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _open(row: Any) -> None:
    family, kind, protocol, _, address = row
    with socket.socket(family, kind, protocol) as connection:
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(address)


def _reason(error: Exception, port: int) -> str:
    """Reason why a host does not answer."""
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "its name cannot be resolved"
    if isinstance(error, TimeoutError):
        return f"it does not answer within {ANSWER_TIMEOUT_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return f"it refuses connections on port {port}"
    if isinstance(error, OSError) and error.errno in _NO_ROUTE:
        return "there is no route to it"
    return getattr(error, "strerror", None) or type(error).__name__
