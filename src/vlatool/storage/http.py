"""Files of web servers, read-only, in byte ranges if the server supports them."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from vlatool.errors import DataError
from vlatool.storage import remote, web
from vlatool.storage.retry import RetryAdvice

_WITHOUT_HEAD = {403, 405, 501}  # status of HEAD if only GET is supported, or signed
# Without ranges, a larger file would be downloaded repeatedly, or fill the memory.
LARGEST_WHOLE = 64 * 2**20
_SIZE = re.compile(r"[0-9]{1,18}")
_ETAG = re.compile(r'"[ -~]*"')  # others cannot be sent back
_AS_TYPED = "/%:@!$&'()*+,;=~"
_COPY = "copy the file to a local folder and give its path"


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
    def pool(self) -> web.Connections:
        """Persistent connections."""
        return web.Connections()

    def head(self, key: str) -> remote.ObjectInfo:
        """HEAD; GET of one byte if the server does not support HEAD or sends no size."""
        try:
            response = self._request("HEAD", key, {})
        except web.HttpStatusError as error:
            if error.answer.status not in _WITHOUT_HEAD:
                raise
            return self._first_byte(key)
        web.error_body(response)
        size = _size(response.headers)
        if size is None:
            return self._first_byte(key)
        return web.object_info(response.headers, size)

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> remote.ListPage:
        """Raises: the folders of a web server cannot be listed."""
        raise web.storage_error(
            f"{self._root}/{below}",
            "the folders of a web server cannot be listed",
            "unsupported",
            "use a manifest, a shard, an output of vlatool or a LeRobot data set; copy other "
            "data to a local folder, s3://, gs:// or hf://",
        )

    def get(self, key: str, start: int, stop: int, etag: str) -> remote.Body:
        """GET of a range; GET of the file if the server does not support ranges."""
        whole = self._whole
        if whole is not None and whole[0] == key and etag == whole[1].etag:
            return _slice(whole[1], whole[2], start)
        span = str(start) if start < 0 else f"{start}-{stop - 1}"
        headers = {"Range": f"bytes={span}", "Accept-Encoding": "identity"}
        if _ETAG.fullmatch(etag):
            headers["If-Match"] = etag
        try:
            response = self._request("GET", key, headers)
        except web.HttpStatusError as error:
            if error.answer.status == 416:
                raise remote.RangeNotSatisfiable from error
            if error.answer.status == 412:
                raise remote.ConditionFailed from error
            raise
        if response.status == 206:
            return web.ranged_body(response)
        return self._without_ranges(key, response, start)

    def retry_advice(self, error: Exception) -> RetryAdvice | None:
        """Advice on retrying after an error; None if a retry is useless."""
        return web.retry_advice(error)

    def map_error(self, error: Exception, location: str) -> Exception:
        return web.map_error(error, location)

    def _request(self, method: str, key: str, headers: Mapping[str, str]) -> Any:
        url = self.url(key)
        response = web.fetch(self.pool, method, url, {**self.headers(), **headers})
        if response.status not in (200, 206):
            web.error_body(response)
            raise web.HttpStatusError(response.status, response.headers)
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        suffix = PurePosixPath(key).suffix
        if kind == "text/html" and suffix not in (".html", ".htm"):
            response.close()
            if not suffix:  # the page that a server shows for a folder
                raise web.HttpStatusError(404, {})
            raise DataError.at(
                f"{self._root}/{key}",
                "the server returns a web page instead of data",
                hint="open the location in a browser: it may require a login, or have moved",
                code="data.broken",
            )
        return response

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
        stream = web.BodyStream(response)
        if size is not None and size > LARGEST_WHOLE and start == 0:
            info = web.object_info(response.headers, size)
            return remote.Body(info, 0, stream.read, stream.close, is_range=False)
        data = b""
        if size is None or size <= LARGEST_WHOLE:
            data = stream.read_to_end(LARGEST_WHOLE + 1)
        stream.close()
        if len(data) > LARGEST_WHOLE or (size or 0) > LARGEST_WHOLE:
            reason = "the server does not support ranges, which a large file needs"
            raise web.storage_error(f"{self._root}/{key}", reason, "unsupported", _COPY)
        info = web.object_info(response.headers, len(data))
        if size is None and "chunked" not in response.headers.get("Transfer-Encoding", "").lower():
            info = replace(info, has_known_size=False)
        self._whole = (key, info, data)
        return _slice(info, data, start)


def _slice(info: remote.ObjectInfo, data: bytes, start: int) -> remote.Body:
    first = max(0, len(data) + start) if start < 0 else start
    if first >= len(data):
        raise remote.RangeNotSatisfiable
    file = io.BytesIO(data)
    file.seek(first)
    return remote.Body(info, first, file.read, file.close, is_range=False)


def _size(headers: Mapping[str, str]) -> int | None:
    """Content-Length; None if it is missing or invalid."""
    length = headers.get("Content-Length", "").strip()
    return int(length) if _SIZE.fullmatch(length) else None
