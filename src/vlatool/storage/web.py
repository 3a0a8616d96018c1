"""HTTP requests of all schemes: proxies, certificates, redirects, and bodies within limits.

The variables of proxies and certificates are the same as for urllib and the AWS tools. No message
has passwords of proxies.
"""

import errno
import importlib
import os
import re
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from vlatool.errors import EnvironmentProblem, StorageError, UsageError
from vlatool.storage import remote, retry

# Files or folders of certificates that are accepted besides the ones of OpenSSL, which reads
# SSL_CERT_FILE and SSL_CERT_DIR.
_BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CERTIFICATES = (*_BUNDLES, "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_VARIABLES = (*_CERTIFICATES, *_PROXIES, *map(str.upper, _PROXIES))
_CONNECTIONS = 64  # more than the threads that read or write concurrently
_SLOWEST = 1024  # bytes per second of a body, after the first minute
MAX_ERROR_BYTES = 64 * 1024
_REDIRECTS = 5
_LOGIN = 407  # status of a proxy that asks for credentials
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_MISSING = {404, 410}
# Codes of the answers of buckets.
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_CONFLICTS = {"PreconditionFailed", "BlobAlreadyExists"}
REJECTED_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_CREDENTIALS = {"authorization", "cookie", "proxy-authorization"}
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]+)</Code>")
RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
# Errors of code that reads an answer with other values than a server sends.
_UNREADABLE = (LookupError, TypeError, ArithmeticError, ValueError, RecursionError)
_CERTIFICATE_HINT = (
    "set SSL_CERT_FILE, REQUESTS_CA_BUNDLE or AWS_CA_BUNDLE to the file of certificates of your"
    " network"
)


class UnusableAnswer(Exception):
    """Answer that a retry does not change, such as a redirect to an invalid location."""

    def __init__(self, reason: str, hint: str = "check the location and the endpoint") -> None:
        super().__init__(reason)
        self.hint = hint


class ServerAnswer(NamedTuple):
    """Answer of a server that is no success."""

    status: int  # 0 if there was no answer
    code: str  # such as `NoSuchKey`, or what the server says; may be empty
    headers: Mapping[str, str]


class HttpStatusError(Exception):
    """Response with a status that is no success."""

    def __init__(self, status: int, headers: Mapping[str, str], code: str = "") -> None:
        super().__init__(f"{status} {code}".strip())
        self.answer = ServerAnswer(status, code, headers)


@dataclass(frozen=True)
class Proxy:
    url: str  # URL without credentials
    login: str = field(default="", repr=False)  # `user:password`; empty without credentials

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
    return _route(parts.scheme, parts.netloc, tuple(map(os.environ.get, _VARIABLES)))


def route_settings() -> Mapping[str, str]:
    """Proxies and certificates that the environment names, without credentials."""
    proxies = getproxies()
    named = {name: text for name in ("http", "https", "all") if (text := proxies.get(name))}
    shown = {f"{name.upper()}_PROXY": str(_parsed(text, name)) for name, text in named.items()}
    shown |= {"NO_PROXY": proxies["no"]} if proxies.get("no") else {}
    return shown | {name: os.environ[name] for name in _CERTIFICATES if os.environ.get(name)}


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
    context = ssl.create_default_context()
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


class Connections:
    """Persistent connections, through proxies; without retries, which `remote.call` makes."""

    def __init__(self) -> None:
        self._managers: dict[Route, Any] = {}

    def request(self, method: str, url: str, **options: Any) -> Any:
        """Response of urllib3, with its body unread; a redirect is a response."""
        urllib3: Any = importlib.import_module("urllib3")
        way = route(url)
        timeout = urllib3.Timeout(connect=retry.CONNECT_TIMEOUT_S, read=retry.READ_TIMEOUT_S)
        options = {"timeout": timeout, "preload_content": False, "redirect": False, **options}
        try:
            if way not in self._managers:
                self._managers[way] = _manager(urllib3, way)
            response = self._managers[way].request(method, url, **options)
        except (ValueError, OverflowError) as error:  # from an address that is none
            raise UnusableAnswer(f"the location is invalid ({type(error).__name__})") from error
        if response.status == _LOGIN and way.proxy:
            response.close()
            raise _proxy_refusal(url, _LOGIN)
        return response


def _manager(urllib3: Any, way: Route) -> Any:
    options = {"maxsize": _CONNECTIONS, "retries": False, "ssl_context": way.certificates}
    if way.proxy is None:
        return urllib3.PoolManager(**options)
    headers = urllib3.make_headers(proxy_basic_auth=way.proxy.login or None)
    tls = {"proxy_headers": headers, "proxy_ssl_context": way.certificates}
    return urllib3.ProxyManager(way.proxy.url, **options, **tls)


def with_certificates(url: str, session: Any = None) -> Any:
    """Session of `requests`, by default a new one, that accepts the certificates of all schemes.

    It takes proxies from the environment by itself.
    """
    requests: Any = importlib.import_module("requests")
    certificates = route(url).certificates

    class Adapter(requests.adapters.HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            adapter: Any = super()
            adapter.init_poolmanager(*args, ssl_context=certificates, **options)

        def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
            adapter: Any = super()
            return adapter.proxy_manager_for(proxy, ssl_context=certificates, **options)

    session = session or requests.Session()
    if certificates is not None:
        session.mount("https://", Adapter(pool_maxsize=_CONNECTIONS))
    return session


def fetch(pool: Connections, method: str, url: str, headers: Mapping[str, str]) -> Any:
    """Response of a request, with its body unread; follows redirects.

    Credentials are not sent to another host.
    """
    for _ in range(_REDIRECTS + 1):
        response = pool.request(method, url, headers=headers)
        target = response.get_redirect_location()
        if not target:
            return response
        error_body(response)
        url, headers = _redirected(url, target, headers)
    raise UnusableAnswer(f"the server redirects more than {_REDIRECTS} times")


def _redirected(url: str, target: str, headers: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Location and headers of the request after a redirect."""
    try:
        new = urljoin(url, target)
        before = urlsplit(url)
        after = urlsplit(new)
    except ValueError as error:
        raise UnusableAnswer("the server redirects to an invalid location") from error
    if after.scheme not in ("http", "https") or not after.hostname:
        raise UnusableAnswer("the server redirects to a location that is not on the web")
    if (before.scheme, after.scheme) == ("https", "http"):
        raise UnusableAnswer("the server redirects from https to http")
    if (before.scheme, before.netloc) == (after.scheme, after.netloc):
        return new, headers
    return new, {name: text for name, text in headers.items() if name.lower() not in _CREDENTIALS}


class BodyStream:
    """Body of a response; it fails if it comes slower than 1 KiB/s."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self._waited_s = 0.0
        self._received = 0

    def read(self, size: int) -> bytes:
        """The next bytes, as many as one read of the connection returns; empty at the end."""
        started = time.monotonic()
        block = self._response.read1(size)
        self._waited_s += time.monotonic() - started
        self._received += len(block)
        is_slow = self._received < self._waited_s * _SLOWEST
        if is_slow and block and self._waited_s > retry.READ_TIMEOUT_S:
            self.close()
            raise TimeoutError(f"{self._received:,} bytes in {self._waited_s:.0f} s")
        return block

    def read_to_end(self, limit: int) -> bytes:
        """The rest of the body, up to `limit` bytes."""
        data = bytearray()
        while len(data) < limit and (block := self.read(limit - len(data))):
            data += block
        return bytes(data)

    def close(self) -> None:
        self._response.close()


def error_body(response: Any) -> bytes:
    """First 64 KiB of the body of an error; the connection serves on if this is all of it."""
    data = b""
    with suppress(OSError, *_errors()):
        data = BodyStream(response).read_to_end(MAX_ERROR_BYTES + 1)
    response.close()
    return data[:MAX_ERROR_BYTES]


def _errors() -> tuple[type[Exception], ...]:
    exceptions: Any = importlib.import_module("urllib3.exceptions")
    return (exceptions.HTTPError,)


def ranged_body(response: Any) -> remote.Body:
    """Body of a response to a request of a range, of a server that has ranges."""
    if response.status != 206:
        content = error_body(response)
        if response.status == 416 or (response.status == 200 and not content):
            # Some servers send an empty body with 200 instead of 416.
            raise remote.RangeNotSatisfiable
        if response.status == 200:
            raise UnusableAnswer(
                "the server ignores byte ranges, which are required",
                "copy the data to a local folder and give its path",
            )
        code = _CODE.search(content)
        raise HttpStatusError(response.status, response.headers, code[1].decode() if code else "")
    span = RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    first, last, total = map(int, span.groups()) if span else (0, 0, 0)
    if not first <= last < total:
        response.close()
        raise ConnectionError("status 206 without a valid Content-Range")
    date = date_seconds(response.headers.get("Date", ""))
    stream = BodyStream(response)
    info = object_info(response.headers, total)
    return remote.Body(info, first, stream.read, stream.close, date)


def object_info(headers: Mapping[str, str], size: int) -> remote.ObjectInfo:
    """Information on an object, from the headers of its response."""
    modified = headers.get("Last-Modified", "")
    return remote.ObjectInfo(size, date_seconds(modified), headers.get("ETag") or modified)


def check_server(url: str) -> str:
    """Reason why a web server does not answer; empty if it does, with any status."""
    try:
        error_body(fetch(Connections(), "HEAD", url, {}))
    except (UnusableAnswer, OSError, *_errors()) as error:
        mapped = map_error(error, url)
        if isinstance(mapped, StorageError):
            return str(mapped.details["reason"])
        advice = retry.network_retry_advice(error)
        return advice.reason if advice else f"the request fails ({type(error).__name__})"
    return ""


def answer_of(error: Exception) -> ServerAnswer:
    """Answer that an error of any library is about."""
    for cause in retry.chain(error):
        if isinstance(cause, HttpStatusError):
            return cause.answer
        response: Any = getattr(cause, "response", None)
        if isinstance(response, Mapping):  # of botocore
            content = cast("Mapping[str, Any]", response)
            metadata = content.get("ResponseMetadata", {})
            code = str(content.get("Error", {}).get("Code", ""))
            status = int(metadata.get("HTTPStatusCode", 0))
            return ServerAnswer(status, code, metadata.get("HTTPHeaders", {}))
        if getattr(response, "status_code", None):
            code = getattr(cause, "error_code", None) or ""  # of Azure
            return ServerAnswer(
                int(response.status_code), str(getattr(code, "value", code)), response.headers
            )
    return ServerAnswer(0, "", {})


def retry_advice(error: Exception) -> retry.RetryAdvice | None:
    """Advice on retrying after an error; None if a retry is useless."""
    answer = answer_of(error)
    if answer.status:
        return busy_advice(answer.status, answer.headers)
    if isinstance(error, UnusableAnswer):
        return None
    return retry.network_retry_advice(error)


def busy_advice(status: int, headers: Mapping[str, str]) -> retry.RetryAdvice | None:
    """Advice on retrying after a status of a server that is busy; None for others."""
    if status not in _BUSY:
        return None
    return retry.RetryAdvice(f"the server returns status {status}", requested_wait(headers))


def map_error(error: Exception, location: str) -> Exception:
    """Converts an error that retries cannot solve to one of vlatool; returns others as is."""
    certificate = retry.certificate_problem(error)
    tunnel = retry.tunnel_refusal(error)
    if isinstance(error, HttpStatusError):
        status = error.answer.status
        if status in _MISSING:
            return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
        hint = "check the location; log in, or download the data and give the local folder"
        if status in (401, 403):
            return storage_error(location, f"access is denied ({status})", "forbidden", hint)
        return storage_error(location, f"the server returns status {error}", "refused", hint)
    if certificate:
        reason = f"the certificate of the server is not accepted ({certificate})"
        error = UnusableAnswer(reason, _CERTIFICATE_HINT)
    elif 0 < tunnel < 500:
        error = _proxy_refusal("https://", tunnel)
    elif isinstance(error, _UNREADABLE):
        error = UnusableAnswer(f"the server's answer cannot be read ({type(error).__name__})")
    if isinstance(error, UnusableAnswer):
        return storage_error(location, str(error), "refused", error.hint)
    if isinstance(error, _errors()):
        reason = f"the request fails ({type(error).__name__})"
        return storage_error(location, reason, "request", "check the location")
    return error


def bucket_error(
    location: str, answer: ServerAnswer, login_hint: str, *, is_stranger: bool
) -> Exception:
    """Error for an answer of a bucket; `is_stranger`: True if the request had no credentials."""
    status, code, _ = answer
    if status == 412 or code in _CONFLICTS:
        return remote.ConditionFailed(location)
    if code in _NO_BUCKET:
        reason = "the bucket does not exist"
        return storage_error(location, reason, "refused", "check its name")
    if status == 501 or code == "NotImplemented":
        reason = "the server does not support this operation"
        return storage_error(location, reason, "unsupported", "choose another storage")
    if code in REJECTED_CODES or status == 401:
        reason = f"the credentials are not accepted ({status} {code})"
        return no_credentials(location, reason, login_hint)
    if is_stranger and status in (403, 409):
        reason = "there are no credentials, and the bucket is not public"
        return no_credentials(location, reason, login_hint)
    return map_error(HttpStatusError(status, {}, code), location)


def no_credentials(location: str, reason: str, login_hint: str) -> EnvironmentProblem:
    """Error for requests that need credentials."""
    return EnvironmentProblem.at(location, reason, hint=login_hint, code="environment.credentials")


def _proxy_refusal(url: str, status: int) -> UnusableAnswer:
    proxy = route(url).proxy or Proxy("")
    reason = "refuses the connection"
    hint = "ask for access to the host, or name it in NO_PROXY if it needs no proxy"
    if status == _LOGIN:
        reason = "does not accept the" if proxy.login else "asks for a"
        reason = f"{reason} user name and password"
        hint = "set HTTPS_PROXY and HTTP_PROXY to http://user:password@host:port"
    return UnusableAnswer(f"the proxy {urlsplit(proxy.url).netloc} {reason} ({status})", hint)


def storage_error(location: str, reason: str, code: str, hint: str) -> StorageError:
    """Error for a location, with the code `storage.CODE`."""
    details = {"path": location, "reason": reason}
    return StorageError(f"{location}: {reason}", hint=hint, code=f"storage.{code}", details=details)


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
