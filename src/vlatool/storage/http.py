"""Files of web servers, read-only, in byte ranges if the server supports them."""

import errno
import importlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from vlatool.errors import DataError, StorageError
from vlatool.storage import remote, web_requests
from vlatool.storage.documents import MAX_BYTES, DocumentError, parse_json
from vlatool.storage.retry import RetryAdvice, network_retry_advice
from vlatool.storage.routes import UnreachableHost

_BUSY = {408, 425, 429, 500, 502, 503, 504}
_MISSING = {404, 410}
_WITHOUT_HEAD = {403, 405, 501}  # status of HEAD if only GET is supported, or signed
# Without ranges, a larger file would be downloaded repeatedly, or fill the memory.
LARGEST_WHOLE = 64 * 2**20
_SIZE = re.compile(r"[0-9]{1,18}")
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_ETAG = re.compile(r'"[ -~]*"')  # others cannot be sent back
_AS_TYPED = "/%:@!$&'()*+,;=~"


class HttpStatusError(Exception):
    """Response with a status that is no success."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers


class WebServer:
    """Files of one host; they cannot be listed."""

    form = remote.LocationForm("https://host/path", secret=re.compile(r"[^/]*@|.*[?#]"))
    settings = ()
    can_list = False

    def __init__(self, root: str) -> None:
        self._root = root
        self._whole: tuple[str, remote.ObjectInfo, bytes] | None = None

    def url(self, key: str) -> str:
        return f"{self._root}/{quote(key, safe=_AS_TYPED)}"

    def headers(self) -> Mapping[str, str]:
        """Headers of every request; credentials are not sent after a redirect to another host."""
        return {}

    @cached_property
    def pool(self) -> web_requests.Connections:
        """Persistent connections."""
        return web_requests.Connections()

    def head(self, key: str) -> remote.ObjectInfo:
        """HEAD; GET of one byte if the server does not support HEAD or sends no size."""
        try:
            response = self._request("HEAD", key, {})
        except HttpStatusError as error:
            if error.status not in _WITHOUT_HEAD:
                raise
            return self._first_byte(key)
        web_requests.discard(response)
        size = _size(response.headers)
        return self._first_byte(key) if size is None else _info(response.headers, size)

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> remote.ListPage:
        """Raises: the folders of a web server cannot be listed."""
        raise StorageError(
            f"{self._root}/{below}: the folders of a web server cannot be listed",
            hint="use a manifest, a shard, an output of vlatool or a LeRobot data set; copy other "
            "data to a local folder, s3://, gs:// or hf://",
            code="storage.unsupported",
            details={"path": f"{self._root}/{below}"},
        )

    def get(self, key: str, start: int, stop: int, etag: str) -> remote.Body:
        """GET of a range; GET of the file if the server does not support ranges."""
        span = str(start) if start < 0 else f"{start}-{stop - 1}"
        headers = {"Range": f"bytes={span}", "Accept-Encoding": "identity"}
        if _ETAG.fullmatch(etag):
            headers["If-Match"] = etag
        whole = self._whole
        if whole is not None and whole[0] == key and etag == whole[1].etag:
            return _slice(whole[1], whole[2], start)
        try:
            response = self._request("GET", key, headers)
        except HttpStatusError as error:
            if error.status == 416:
                raise remote.RangeNotSatisfiable from error
            if error.status == 412:
                raise remote.ConditionFailed from error
            raise
        if response.status == 206:
            return ranged_body(response)
        return self._without_ranges(key, response, start)

    def retry_advice(self, error: Exception) -> RetryAdvice | None:
        """Advice on retrying after an error; None if a retry is useless."""
        if isinstance(error, HttpStatusError) and error.status in _BUSY:
            reason = f"the server returns status {error.status}"
            return RetryAdvice(reason, web_requests.requested_wait(error.headers))
        return http_retry_advice(error) or network_retry_advice(error)

    def map_error(self, error: Exception, location: str) -> Exception:
        if isinstance(error, HttpStatusError):
            return _status_error(error.status, location)
        if isinstance(error, UnreachableHost):
            return error.at(location)
        if isinstance(error, web_requests.UnusableAnswer):
            return unusable_answer_error(error, location)
        exceptions: Any = importlib.import_module("urllib3.exceptions")
        if isinstance(error, exceptions.HTTPError):
            reason = type(getattr(error, "reason", None) or error).__name__
            return _storage_error(
                location, f"the request fails ({reason})", "request", "check the location"
            )
        return error

    def _request(self, method: str, key: str, headers: Mapping[str, str]) -> Any:
        response = self._fetch(method, self.url(key), headers)
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html" and PurePosixPath(key).suffix not in (".html", ".htm"):
            response.close()
            raise self._html_error(key)
        return response

    def document(self, url: str) -> tuple[Any, Mapping[str, str]]:
        """Content of a JSON document, and the headers of the response."""
        response = self._fetch("GET", url, {"Accept-Encoding": "identity"})
        data = web_requests.whole_body(response, MAX_BYTES)
        try:
            return parse_json(data), response.headers
        except DocumentError as error:
            raise web_requests.UnusableAnswer(f"the server's answer is {error.reason}") from error

    def _fetch(self, method: str, url: str, headers: Mapping[str, str]) -> Any:
        response = web_requests.fetch(self.pool, method, url, {**self.headers(), **headers})
        if response.status not in (200, 206):
            web_requests.discard(response)
            raise HttpStatusError(response.status, response.headers)
        return response

    def _html_error(self, key: str) -> Exception:
        if not PurePosixPath(key).suffix:  # the page that a server shows for a folder
            return HttpStatusError(404, {})
        return DataError(
            f"{self._root}/{key}: the server returns a web page instead of data",
            hint="open the location in a browser: it may require a login, or have moved",
            code="data.broken",
            details={"path": f"{self._root}/{key}"},
        )

    def _first_byte(self, key: str) -> remote.ObjectInfo:
        try:
            body = self.get(key, 0, 1, "")
        except remote.RangeNotSatisfiable:
            return remote.ObjectInfo()
        body.close()
        return body.info

    def _without_ranges(self, key: str, response: Any, start: int) -> remote.Body:
        """Body of a response with the whole file.

        A small file is kept for the next range; a large one can only be read from its start.
        """
        size = _size(response.headers)
        stream = web_requests.BodyStream(response)
        if size is not None and size > LARGEST_WHOLE:
            if start != 0:
                response.close()
                raise _storage_error(
                    f"{self._root}/{key}",
                    f"the server does not support ranges, which a file of {size:,} bytes needs",
                    "unsupported",
                    "copy the file to a local folder and give its path",
                )
            return remote.Body(
                _info(response.headers, size), 0, stream.read, stream.close, is_range=False
            )
        data = stream.read_to_end(LARGEST_WHOLE + 1)
        stream.close()
        if len(data) > LARGEST_WHOLE:
            raise _storage_error(
                f"{self._root}/{key}",
                "the server sends no size and does not support ranges, and the file is large",
                "unsupported",
                "copy the file to a local folder and give its path",
            )
        info = _info(response.headers, len(data))
        if size is None and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
            info = replace(info, has_known_size=False)
        self._whole = (key, info, data)
        return _slice(info, data, start)


def http_retry_advice(error: Exception) -> RetryAdvice | None:
    """Advice on retrying after an error of urllib3; None if a retry is useless."""
    exceptions: Any = importlib.import_module("urllib3.exceptions")
    reason = getattr(error, "reason", None) or error
    permanent = (
        exceptions.SSLError,
        exceptions.LocationParseError,
        exceptions.LocationValueError,
    )
    if isinstance(reason, permanent) or not isinstance(error, exceptions.HTTPError):
        return None
    return RetryAdvice(f"no complete response ({type(reason).__name__})")


def _slice(info: remote.ObjectInfo, data: bytes, start: int) -> remote.Body:
    first = max(0, len(data) + start) if start < 0 else start
    if first >= len(data):
        raise remote.RangeNotSatisfiable
    file = io.BytesIO(data)
    file.seek(first)
    return remote.Body(info, first, file.read, file.close, is_range=False)


def ranged_body(response: Any) -> remote.Body:
    """Body of a response with status 206."""
    span = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    first, last, total = map(int, span.groups()) if span else (0, 0, 0)
    if not first <= last < total:
        response.close()
        raise ConnectionError("status 206 without a valid Content-Range")
    date = web_requests.date_seconds(response.headers.get("Date", ""))
    stream = web_requests.BodyStream(response)
    return remote.Body(_info(response.headers, total), first, stream.read, stream.close, date)


def _size(headers: Mapping[str, str]) -> int | None:
    """Content-Length; None if it is missing or invalid."""
    length = headers.get("Content-Length", "").strip()
    return int(length) if _SIZE.fullmatch(length) else None


def _info(headers: Mapping[str, str], size: int) -> remote.ObjectInfo:
    modified = headers.get("Last-Modified", "")
    return remote.ObjectInfo(
        size, web_requests.date_seconds(modified), headers.get("ETag") or modified
    )


def _status_error(status: int, location: str) -> Exception:
    if status in _MISSING:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
    if status in (401, 403):
        hint = "it may require a login; download the data and give the path of the local folder"
        return _storage_error(location, f"access is denied ({status})", "forbidden", hint)
    reason = f"the server returns status {status}"
    return _storage_error(location, reason, "refused", "check the location")


def unusable_answer_error(error: web_requests.UnusableAnswer, location: str) -> StorageError:
    """Error for an answer of a server that cannot be used."""
    return _storage_error(location, str(error), "refused", error.hint)


def _storage_error(location: str, reason: str, code: str, hint: str) -> StorageError:
    details = {"path": location, "reason": reason}
    return StorageError(f"{location}: {reason}", hint=hint, code=f"storage.{code}", details=details)
