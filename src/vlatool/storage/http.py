"""Web servers: files that can be read, in ranges where the server knows them."""

import errno
import importlib
import io
import os
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from vlatool.errors import DataError, StorageError
from vlatool.storage.remote import Body, ConditionFailed, ListPage, ObjectInfo, RangeNotSatisfiable
from vlatool.storage.retry import RetryAdvice, network_retry_advice

_CONNECTIONS = 64
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_REDIRECTS = 5
_BUSY = {408, 425, 429, 500, 502, 503, 504}
_MISSING = {404, 410}
_WITHOUT_HEAD = {403, 405, 501}  # what servers say that know only GET, or signed for it alone
# Without ranges, what is larger would be fetched again and again, or fill the memory.
LARGEST_WHOLE = 64 * 2**20
_AS_TYPED = "/%:@!$&'()*+,;=~"


class HttpStatusError(Exception):
    """An answer that is not the file."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.headers = headers


class WebServer:
    """The files of one host, which it cannot list."""

    can_list = False

    def __init__(self, place: str) -> None:
        self._place = place
        self._whole: tuple[str, ObjectInfo, bytes] | None = None

    def url(self, key: str) -> str:
        """Where a file is."""
        return f"{self._place}/{quote(key, safe=_AS_TYPED)}"

    def headers(self) -> Mapping[str, str]:
        """What goes with every request; nothing secret follows a redirect to another host."""
        return {}

    @cached_property
    def pool(self) -> Any:
        """The urllib3 pool."""
        return connections()

    def head(self, key: str) -> ObjectInfo:
        """HEAD; a GET of one byte where the server knows no HEAD or tells no size."""
        try:
            answer = self._request("HEAD", key, {})
        except HttpStatusError as refusal:
            if refusal.status not in _WITHOUT_HEAD:
                raise
            return self._first_byte(key)
        answer.release_conn()
        if not answer.headers.get("Content-Length"):
            return self._first_byte(key)
        return _info(answer.headers, int(answer.headers["Content-Length"]))

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> ListPage:
        """Refuses."""
        del delimiter, token, at_most
        raise StorageError(
            f"{self._place}/{below}: the folders of a web server cannot be listed",
            hint="give a manifest, a shard, an output of vlatool or a LeRobot data set; copy other "
            "data to a local folder, s3:// or hf://",
            code="storage.no_list",
            details={"path": f"{self._place}/{below}"},
        )

    def get(self, key: str, start: int, stop: int, etag: str) -> Body:
        """GET of a range; of the whole where the server knows none."""
        span = str(start) if start < 0 else f"{start}-{stop - 1}"
        wanted = {"Range": f"bytes={span}", "Accept-Encoding": "identity"}
        if etag.startswith('"'):
            wanted["If-Match"] = etag
        if self._whole is not None and self._whole[0] == key and etag == self._whole[1].etag:
            return _slice(self._whole[1], self._whole[2], start)
        try:
            answer = self._request("GET", key, wanted)
        except HttpStatusError as refusal:
            if refusal.status == 416:
                raise RangeNotSatisfiable from refusal
            if refusal.status == 412:
                raise ConditionFailed from refusal
            raise
        if answer.status == 206:
            return ranged_body(answer)
        return self._without_ranges(key, answer, start)

    def retry_advice(self, error: Exception) -> RetryAdvice | None:
        """What an error means for another attempt."""
        if isinstance(error, HttpStatusError) and error.status in _BUSY:
            return RetryAdvice(f"the server says {error.status}", _requested_wait(error.headers))
        return http_retry_advice(error) or network_retry_advice(error)

    def map_error(self, error: Exception, where: str) -> Exception:
        """Our error for one of the server or of urllib3."""
        if isinstance(error, HttpStatusError):
            return _told(error.status, where)
        faults: Any = importlib.import_module("urllib3.exceptions")
        if isinstance(error, faults.HTTPError):
            reason = type(getattr(error, "reason", None) or error).__name__
            return _storage_error(
                where, f"the request cannot be made ({reason})", "request", "check the location"
            )
        return error

    def _request(self, method: str, key: str, headers: Mapping[str, str]) -> Any:
        answer = self.pool.request(
            method,
            self.url(key),
            headers={**self.headers(), **headers},
            preload_content=False,
        )
        if answer.status not in (200, 206):
            answer.drain_conn()
            raise HttpStatusError(answer.status, answer.headers)
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind == "text/html" and PurePosixPath(key).suffix not in (".html", ".htm"):
            answer.close()
            raise self._page_instead(key)
        return answer

    def _page_instead(self, key: str) -> Exception:
        if not PurePosixPath(key).suffix:  # what a server shows of a folder
            return HttpStatusError(404, {})
        return DataError(
            f"{self._place}/{key}: a web page came where data should be",
            hint="open the location in a browser: it may ask for a login, or have moved",
            code="data.web_page",
            details={"path": f"{self._place}/{key}"},
        )

    def _first_byte(self, key: str) -> ObjectInfo:
        try:
            body = self.get(key, 0, 1, "")
        except RangeNotSatisfiable:
            return ObjectInfo()
        body.close()
        return body.info

    def _without_ranges(self, key: str, answer: Any, start: int) -> Body:
        """The whole file, which is kept for the next range of it; a large one from its start."""
        length = answer.headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else LARGEST_WHOLE
        if size > LARGEST_WHOLE:
            if start != 0:
                answer.close()
                raise _storage_error(
                    f"{self._place}/{key}",
                    f"the server knows no ranges, so the {size:,} bytes cannot be read in parts",
                    "unsupported",
                    "copy the file to a local folder and give its path",
                )
            return Body(_info(answer.headers, size), 0, answer.read, answer.close)
        data: bytes = answer.read(LARGEST_WHOLE + 1)
        answer.close()
        if len(data) > LARGEST_WHOLE:
            raise _storage_error(
                f"{self._place}/{key}",
                "the server tells no size and knows no ranges, and the file is large",
                "unsupported",
                "copy the file to a local folder and give its path",
            )
        info = _info(answer.headers, len(data))
        self._whole = (key, info, data)
        return _slice(info, data, start)


def connections() -> Any:
    """A pool of connections that are kept; requests are tried again by `remote.call` alone."""
    urllib3: Any = importlib.import_module("urllib3")
    return urllib3.PoolManager(
        maxsize=_CONNECTIONS,
        timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=_READ_TIMEOUT_S),
        retries=urllib3.Retry(
            total=None, connect=0, read=0, status=0, other=0, redirect=_REDIRECTS
        ),
    )


def http_retry_advice(error: Exception) -> RetryAdvice | None:
    """What an error of urllib3 means for another attempt; None if one is pointless."""
    faults: Any = importlib.import_module("urllib3.exceptions")
    reason = getattr(error, "reason", None) or error
    hopeless = (faults.SSLError, faults.LocationParseError, faults.LocationValueError)
    if isinstance(reason, hopeless) or not isinstance(error, faults.HTTPError):
        return None
    return RetryAdvice(f"no complete answer ({type(reason).__name__})")


def _slice(info: ObjectInfo, data: bytes, start: int) -> Body:
    first = max(0, len(data) + start) if start < 0 else start
    if first >= len(data):
        raise RangeNotSatisfiable
    file = io.BytesIO(data)
    file.seek(first)
    return Body(info, first, file.read, file.close)


def ranged_body(answer: Any) -> Body:
    """The body of an answer with status 206."""
    span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    if not first.isdigit() or not total.isdigit():
        answer.close()
        raise ConnectionError("an answer in parts that does not say which")
    date = _seconds(answer.headers.get("Date", ""))
    return Body(_info(answer.headers, int(total)), int(first), answer.read, answer.close, date)


def _info(headers: Mapping[str, str], size: int) -> ObjectInfo:
    modified = headers.get("Last-Modified", "")
    return ObjectInfo(size, _seconds(modified), headers.get("ETag") or modified)


def _seconds(date: str) -> float:
    """A date of a header in seconds since 1970; 0 for none."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else 0.0
    except ValueError:
        return 0.0


def _requested_wait(headers: Mapping[str, str]) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After", "0")))
    except ValueError:  # a date
        return 0.0


def _told(status: int, where: str) -> Exception:
    if status in _MISSING:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where)
    if status in (401, 403):
        hint = "it may need a login; download it and give the path of the local folder"
        return _storage_error(where, f"access is denied ({status})", "forbidden", hint)
    return _storage_error(where, f"the server says {status}", "refused", "check the location")


def _storage_error(where: str, reason: str, code: str, hint: str) -> StorageError:
    details = {"path": where, "reason": reason}
    return StorageError(f"{where}: {reason}", hint=hint, code=f"storage.{code}", details=details)
