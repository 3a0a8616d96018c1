"""HTTP requests within limits on time, redirects and bodies that nobody asked for.

Without them, a server that sends one byte a second, or an error page without an end, keeps a
command busy forever.
"""

import http.client
import importlib
import math
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import urljoin, urlsplit

from vlatool.storage.routes import Route, UnreachableHost, has_answered, note_answer, reach, route

_CONNECTIONS = 64
_CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 60.0  # until the headers are complete, and for a body below `SLOWEST`
SLOWEST = 1024  # bytes per second
MAX_ERROR_BYTES = 64 * 1024
_ERROR_TIMEOUT_S = 10.0  # of the body of an error or a redirect
_REDIRECTS = 5
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_TUNNEL = re.compile(r"Tunnel connection failed: ([0-9]{3})")
_LOGIN = 407  # status of a proxy that asks for credentials
_BUSY = {408, 425, 429}  # and 5xx
_CREDENTIALS = {"authorization", "cookie", "proxy-authorization"}


class UnusableAnswer(Exception):
    """Answer that a retry does not change, such as a redirect to an invalid location."""

    def __init__(self, reason: str, hint: str = "check the location and the endpoint") -> None:
        super().__init__(reason)
        self.hint = hint


@contextmanager
def reading_answer(*others: type[Exception]) -> Generator[None]:
    """Raises UnusableAnswer for an answer that the block, or a library in it, cannot read.

    `others`: further errors that mean it.
    """
    try:
        yield
    except (LookupError, TypeError, ArithmeticError, RuntimeError, UnicodeError, *others) as error:
        reason = f"the server's answer cannot be read ({type(error).__name__})"
        raise UnusableAnswer(reason) from error


class BodyStream:
    """Body of a response; it fails if it comes slower than 1 KiB/s; `timeout_s`: seconds of waiting
    before the speed is checked; None: 60.
    """

    def __init__(self, response: Any, timeout_s: float | None = None) -> None:
        self._response = response
        self._timeout_s = READ_TIMEOUT_S if timeout_s is None else timeout_s
        self._waited_s = 0.0
        self._received = 0

    def read(self, size: int) -> bytes:
        """The next bytes, as many as one read of the connection returns; empty at the end."""
        started = time.monotonic()
        block = self._response.read1(size)
        self._waited_s += time.monotonic() - started
        self._received += len(block)
        is_slow = self._received < self._waited_s * SLOWEST
        if is_slow and block and self._waited_s > self._timeout_s:
            self._response.close()
            raise TimeoutError(f"{self._received:,} bytes in {self._waited_s:.0f} s")
        return block

    def read_to_end(self, limit: int) -> bytes:
        """The rest of the body, up to `limit` bytes."""
        return b"".join(self.blocks(limit))

    def blocks(self, limit: int) -> Iterator[bytes]:
        """The rest of the body, up to `limit` bytes, as it comes."""
        while limit > 0 and (block := self.read(limit)):
            limit -= len(block)
            yield block

    def close(self) -> None:
        self._response.close()


def whole_body(response: Any, limit: int) -> bytes:
    """The body of a response, which is closed; `limit`: most bytes that are accepted."""
    stream = BodyStream(response)
    try:
        data = stream.read_to_end(limit + 1)
    finally:
        stream.close()
    if len(data) > limit:
        raise UnusableAnswer(f"the server answers with more than {limit:,} bytes")
    return data


class Connections:
    """Persistent connections without retries, which `remote.call` makes; through proxies."""

    def __init__(self) -> None:
        self._managers: dict[Route, Any] = {}

    def request(self, method: str, url: str, **options: Any) -> Any:
        """Response of urllib3, by the proxy of the URL."""
        way = route(url)
        manager = self._managers.get(way) or self._managers.setdefault(way, _manager(way))
        return manager.request(method, url, **options)


def _manager(way: Route) -> Any:
    urllib3: Any = importlib.import_module("urllib3")
    options = {
        "maxsize": _CONNECTIONS,
        "timeout": urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
        "retries": False,
        "ssl_context": way.certificates,
    }
    if way.proxy is None:
        manager = urllib3.PoolManager(**options)
    else:
        headers = urllib3.make_headers(proxy_basic_auth=way.proxy.login or None)
        options |= {"proxy_headers": headers, "proxy_ssl_context": way.certificates}
        manager = urllib3.ProxyManager(way.proxy.url, **options)
    manager.pool_classes_by_scheme = _pool_classes()
    return manager


def fetch(pool: Any, method: str, url: str, headers: Mapping[str, str]) -> Any:
    """Response of a request, with its body unread; follows redirects.

    Credentials are not sent to another host.
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
        discard(fetch(Connections(), "HEAD", url, {}))
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
    data = bytearray()
    with suppress(exceptions.HTTPError, http.client.HTTPException, OSError):
        for block in BodyStream(response, _ERROR_TIMEOUT_S).blocks(MAX_ERROR_BYTES + 1):
            data += block
    response.close()
    return bytes(data[:MAX_ERROR_BYTES])


def discard(response: Any) -> None:
    """Ends a response whose body is not needed."""
    error_body(response)


def send(pool: Any, method: str, url: str, headers: Mapping[str, str], body: Any = None) -> Any:
    """Response of a request; redirects are responses; `body`: its body, bytes or a file; None for
    none.
    """
    reach(url)
    exceptions: Any = importlib.import_module("urllib3.exceptions")
    try:
        response = pool.request(
            method,
            url,
            body=body,
            headers=headers,
            chunked=headers.get("Transfer-Encoding") == "chunked",
            preload_content=False,
            redirect=False,
        )
    except exceptions.HTTPError as error:
        # Raises for a proxy that does not connect to the host of a URL, unless a retry may help.
        tunnel = _TUNNEL.search(str(getattr(error, "original_error", "")))
        status = int(tunnel[1]) if tunnel else 0
        if 400 <= status < 500 and status not in _BUSY:
            raise _proxy_refusal(url, status) from error
        if status and not has_answered(url):
            reason = f"the proxy {_proxy_host(url)} answers {status}"
            raise UnreachableHost(urlsplit(url).hostname or "", reason) from error
        _check_certificate(error)
        raise
    except (ValueError, OverflowError, http.client.InvalidURL) as error:
        raise UnusableAnswer(f"the location is invalid ({type(error).__name__})") from error
    if response.status == _LOGIN and _proxy_host(url):
        response.close()
        raise _proxy_refusal(url, _LOGIN)
    note_answer(url)
    return response


def _proxy_refusal(url: str, status: int) -> UnusableAnswer:
    proxy = route(url).proxy
    reason = "refuses the connection"
    hint = "ask for access to the host, or name it in NO_PROXY if it needs no proxy"
    if status == _LOGIN:
        has_login = proxy is not None and proxy.login
        reason = "does not accept the" if has_login else "asks for a"
        reason = f"{reason} user name and password"
        hint = "set HTTPS_PROXY and HTTP_PROXY to http://user:password@host:port"
    return UnusableAnswer(f"the proxy {_proxy_host(url)} {reason} ({status})", hint)


def _proxy_host(url: str) -> str:
    proxy = route(url).proxy
    return proxy.host if proxy else ""


def _check_certificate(error: BaseException | None) -> None:
    """Raises UnusableAnswer for an error about a certificate that is not accepted."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            raise UnusableAnswer(
                f"the certificate of the server is not accepted ({error.verify_message})",
                "set SSL_CERT_FILE, REQUESTS_CA_BUNDLE or AWS_CA_BUNDLE to the file of certificates"
                " of your network",
            ) from error
        error = error.__cause__ or error.__context__


def requested_wait(headers: Mapping[str, str]) -> float:
    """Seconds that the header Retry-After requests to wait, from now or until a date; else 0."""
    lower = {name.lower(): text.strip() for name, text in headers.items()}
    text = lower.get("retry-after", "")
    if _SECONDS.fullmatch(text):
        return float(text)
    # The date is by the server's clock, which may differ from the one here.
    now = date_seconds(lower.get("date", "")) or time.time()
    return max(0.0, date_seconds(text) - now)


def date_seconds(date: str) -> float:
    """Date of a header in seconds since 1970; 0 if empty or invalid."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else 0.0
    except (ValueError, LookupError, TypeError, ArithmeticError, OSError):
        return 0.0


def _redirected(url: str, target: str, headers: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Location and headers of the request after a redirect."""
    try:
        new = urljoin(url, target)
        before = urlsplit(url)
        after = urlsplit(new)
        is_same = (before.scheme, before.netloc) == (after.scheme, after.netloc)
    except ValueError as error:
        raise UnusableAnswer("the server redirects to an invalid location") from error
    if after.scheme not in ("http", "https") or not after.hostname:
        raise UnusableAnswer("the server redirects to a location that is not on the web")
    if (before.scheme, after.scheme) == ("https", "http"):
        raise UnusableAnswer("the server redirects from https to http")
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
        parent: Any = super()
        with _deadlines(os.getpid()).limit(self.sock, READ_TIMEOUT_S):
            return parent.getresponse(*args, **kwargs)


class _Deadlines:
    """Thread that shuts down sockets at their deadlines; timers would be a thread each."""

    def __init__(self) -> None:
        self._sockets: dict[object, tuple[float, Any]] = {}
        self._changed = threading.Condition()
        self._wakes_at = math.inf
        threading.Thread(target=self._run, daemon=True, name="vlatool-deadlines").start()

    @contextmanager
    def limit(self, sock: Any, seconds: float) -> Generator[None]:
        """Shuts the socket down if the block takes longer."""
        key = object()
        deadline = time.monotonic() + seconds
        with self._changed:
            self._sockets[key] = (deadline, sock)
            if deadline < self._wakes_at:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._sockets.pop(key, None)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for key, (deadline, sock) in list(self._sockets.items()):
                    if deadline <= now:
                        del self._sockets[key]
                        with suppress(OSError):
                            socket.socket.shutdown(sock, socket.SHUT_RDWR)
                deadlines = [deadline for deadline, _ in self._sockets.values()]
                self._wakes_at = min(deadlines, default=math.inf)
                self._changed.wait(self._wakes_at - now if deadlines else None)


@cache
def _deadlines(_pid: int) -> _Deadlines:
    """Deadlines of this process; a forked child does not have the thread of its parent."""
    return _Deadlines()
