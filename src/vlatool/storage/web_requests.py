"""HTTP requests within limits on time, redirects and bodies that nobody asked for.

Without them, a server that sends one byte a second, or an error page without an end, keeps a
command busy forever.
"""

import http.client
import importlib
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any
from urllib.parse import urljoin, urlsplit

from vlatool.storage.first_contact import UnreachableHost, reach

_CONNECTIONS = 64
_CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60.0  # until the headers are complete, and for a body below `SLOWEST`
SLOWEST = 1024  # bytes per second
MAX_ERROR_BYTES = 64 * 1024
_ERROR_TIMEOUT_S = 10.0  # of the body of an error or a redirect
_REDIRECTS = 5
_CREDENTIALS = {"authorization", "cookie", "proxy-authorization"}


class UnusableAnswer(Exception):
    """Answer that a retry does not change, such as a redirect to an invalid location."""


class BodyStream:
    """Body of a response; it fails if it comes slower than 1 KiB/s.

    Args:
        response: Response of urllib3.
        timeout_s: Seconds of waiting before the speed is checked; None: 60.
    """

    def __init__(self, response: Any, timeout_s: float | None = None) -> None:
        self._response = response
        self._timeout_s = READ_TIMEOUT_S if timeout_s is None else timeout_s
        self._waited_s = 0.0
        self._received = 0
        self._error: Exception | None = None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end or before an error.

        An error after some bytes is raised by the next call, so that these bytes are not lost.

        Raises:
            TimeoutError: The body comes too slowly.
        """
        if self._error is not None:
            raise self._error
        data = bytearray()
        while len(data) < size:
            started = time.monotonic()
            try:
                chunk = self._response.read1(size - len(data))
            except Exception as error:
                if not data:
                    raise
                self._error = error
                break
            self._waited_s += time.monotonic() - started
            if not chunk:
                break
            data += chunk
            self._received += len(chunk)
            is_slow = self._received < self._waited_s * SLOWEST
            if is_slow and self._waited_s > self._timeout_s:
                self._response.close()
                raise TimeoutError(f"{self._received:,} bytes in {self._waited_s:.0f} s")
        return bytes(data)

    def read_to_end(self, limit: int) -> bytes:
        """The rest of the body, up to `limit` bytes.

        Raises:
            TimeoutError: The body comes too slowly.
        """
        data = self.read(limit)
        if self._error is not None:
            raise self._error
        return data

    def close(self) -> None:
        """Closes the response."""
        self._response.close()


def connections() -> Any:
    """Pool of persistent connections without retries; `remote.call` retries requests."""
    urllib3: Any = importlib.import_module("urllib3")
    pool = urllib3.PoolManager(
        maxsize=_CONNECTIONS,
        timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        retries=False,
    )
    pool.pool_classes_by_scheme = _pool_classes()
    return pool


def fetch(pool: Any, method: str, url: str, headers: Mapping[str, str]) -> Any:
    """Response of a request, with its body unread; follows redirects.

    Credentials are not sent to another host.

    Raises:
        UnreachableHost: The host, or that of a redirect, has never answered.
        UnusableAnswer: A location is invalid, or there are more than 5 redirects.
    """
    for _ in range(_REDIRECTS + 1):
        response = send(pool, method, url, headers)
        target = response.get_redirect_location()
        if not target:
            return response
        discard(response)
        url, headers = _redirected(url, target, headers)
    raise UnusableAnswer(f"the server redirects more than {_REDIRECTS} times")


def check_server(url: str) -> str:
    """Reason why a web server does not answer; empty if it does, with any status."""
    exceptions: Any = importlib.import_module("urllib3.exceptions")
    try:
        discard(fetch(connections(), "HEAD", url, {}))
    except (UnreachableHost, UnusableAnswer) as error:
        return str(error)
    except (exceptions.HTTPError, OSError) as error:
        return f"the request fails ({type(getattr(error, 'reason', None) or error).__name__})"
    return ""


def error_body(response: Any) -> bytes:
    """First 64 KiB of the body of an error; less if it does not come within 10 s.

    The connection serves further requests only if this is all of it.
    """
    exceptions: Any = importlib.import_module("urllib3.exceptions")
    data = b""
    with suppress(exceptions.HTTPError, http.client.HTTPException, OSError):
        data = BodyStream(response, _ERROR_TIMEOUT_S).read(MAX_ERROR_BYTES + 1)
    response.close()
    return data[:MAX_ERROR_BYTES]


def discard(response: Any) -> None:
    """Ends a response whose body is not needed."""
    error_body(response)


def send(pool: Any, method: str, url: str, headers: Mapping[str, str], body: Any = None) -> Any:
    """Response of a request; redirects are responses.

    Args:
        pool: Pool of `connections`.
        method: Method of the request.
        url: URL of the request.
        headers: Its headers.
        body: Its body, bytes or a file; None for none.

    Raises:
        UnreachableHost: The host has never answered.
        UnusableAnswer: The location is invalid.
    """
    reach(url)
    exceptions: Any = importlib.import_module("urllib3.exceptions")
    try:
        return pool.request(
            method,
            url,
            body=body,
            headers=headers,
            chunked=headers.get("Transfer-Encoding") == "chunked",
            preload_content=False,
            redirect=False,
        )
    except exceptions.HTTPError:
        raise
    except (ValueError, OverflowError, http.client.InvalidURL) as error:
        raise UnusableAnswer(f"the location is invalid ({type(error).__name__})") from error


def _redirected(url: str, target: str, headers: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Location and headers of the request after a redirect."""
    try:
        new = urljoin(url, target)
        before, after = urlsplit(url), urlsplit(new)
        is_same = (before.scheme, before.netloc) == (after.scheme, after.netloc)
    except ValueError as error:
        raise UnusableAnswer("the server redirects to an invalid location") from error
    if after.scheme not in ("http", "https") or not after.hostname:
        raise UnusableAnswer("the server redirects to a location that is not on the web")
    if is_same:
        return new, headers
    return new, {name: text for name, text in headers.items() if name.lower() not in _CREDENTIALS}


@cache
def _pool_classes() -> Mapping[str, type]:
    """Pools of urllib3 by scheme, whose connections limit the time until headers are complete."""
    connection: Any = importlib.import_module("urllib3.connection")
    pools: Any = importlib.import_module("urllib3.connectionpool")

    class Connection(_InTime, connection.HTTPConnection): ...

    class SecureConnection(_InTime, connection.HTTPSConnection): ...

    class Pool(pools.HTTPConnectionPool):
        ConnectionCls = Connection

    class SecurePool(pools.HTTPSConnectionPool):
        ConnectionCls = SecureConnection

    return {"http": Pool, "https": SecurePool}


class _InTime:
    """Mixin of a connection that ends if its headers are not complete in time.

    The timeout of a socket only limits the wait for the next byte.
    """

    sock: Any

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        timer = threading.Timer(READ_TIMEOUT_S, _shut_down, [self.sock])
        timer.daemon = True
        timer.start()
        try:
            parent: Any = super()
            return parent.getresponse(*args, **kwargs)
        finally:
            timer.cancel()


def _shut_down(sock: Any) -> None:
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
