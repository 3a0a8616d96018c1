"""Way to a web server: the proxy of a URL, and the certificates that are accepted.

The variables are the same as for urllib and the AWS tools. No message has passwords of proxies.
"""

import errno
import importlib
import multiprocessing
import os
import socket
import ssl
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from vlatool.errors import StorageError, UsageError
from vlatool.storage.background import in_background

# Files or folders of certificates that are accepted besides the ones of OpenSSL, which reads
# SSL_CERT_FILE and SSL_CERT_DIR.
_BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CERTIFICATES = (*_BUNDLES, "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_VARIABLES = (*_CERTIFICATES, *_PROXIES, *map(str.upper, _PROXIES))


@dataclass(frozen=True)
class Proxy:
    url: str  # URL without credentials
    login: str = field(default="", repr=False)  # `user:password`; empty without credentials

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.url).netloc

    def __str__(self) -> str:
        return f"{self.url} (with a password)" if self.login else self.url


class Route(NamedTuple):
    proxy: Proxy | None  # proxy on the way; None: no proxy
    # TLS context that accepts the certificates of the system and of all bundles that are named;
    # None without TLS
    certificates: ssl.SSLContext | None


def route(url: str) -> Route:
    """Way to the server of a URL, by the environment."""
    parts = urlsplit(url)
    return _route(parts.scheme, parts.netloc, _environment())


def route_settings() -> Mapping[str, str]:
    """Proxies and certificates that the environment names, without credentials."""
    proxies = getproxies()
    named = {name: text for name in ("http", "https", "all") if (text := proxies.get(name))}
    shown = {f"{name.upper()}_PROXY": str(_parsed(text, name)) for name, text in named.items()}
    shown |= {"NO_PROXY": proxies["no"]} if proxies.get("no") else {}
    return shown | {name: os.environ[name] for name in _CERTIFICATES if os.environ.get(name)}


def _environment() -> tuple[str | None, ...]:
    return tuple(map(os.environ.get, _VARIABLES))


@lru_cache(maxsize=1024)
def _route(scheme: str, host: str, environment: tuple[str | None, ...]) -> Route:
    proxies = getproxies()
    name = scheme if proxies.get(scheme) else "all"
    text = proxies.get(name)
    proxy = _parsed(text, name) if text and not proxy_bypass(host) else None
    has_tls = scheme == "https" or (proxy is not None and proxy.url.startswith("https:"))
    return Route(proxy, _certificates(environment) if has_tls else None)


def _parsed(text: str, name: str) -> Proxy:
    """Proxy of a variable, whose text may contain a password."""
    with suppress(ValueError):
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        has_rest = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme in ("http", "https") and parts.hostname and not has_rest:
            host = parts.netloc.rpartition("@")[2].removesuffix(f":{parts.port}")
            login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            return Proxy(f"{parts.scheme}://{host}:{port}", login if parts.username else "")
    raise UsageError(
        f"{name.upper()}_PROXY: not the URL of an HTTP proxy",
        hint="write http://host:port or http://user:password@host:port, with %40 for @, %3A for :"
        " and so on in the password",
        code="usage.bad_value",
    )


@lru_cache(maxsize=4)
def _certificates(_environment: tuple[str | None, ...]) -> ssl.SSLContext:
    """TLS context for the certificates of the system and of the environment."""
    module: Any = importlib.import_module("urllib3.util.ssl_")
    context: ssl.SSLContext = module.create_urllib3_context()
    context.load_default_certs()
    for name in _BUNDLES:
        if not (path := os.environ.get(name)):
            continue
        try:
            is_folder = os.path.isdir(path)
            context.load_verify_locations(**{"capath" if is_folder else "cafile": path})
        except OSError as error:  # ssl.SSLError is one
            raise UsageError(
                f"{name}={path}: no certificates can be read ({type(error).__name__})",
                hint="give a file of certificates in PEM format, or unset the variable",
                code="usage.bad_value",
            ) from error
    return context


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
