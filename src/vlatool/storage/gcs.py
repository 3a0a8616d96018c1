"""Buckets of Google Cloud Storage, through its JSON interface; contents in parts through XML.

The version of an object is its generation. Credentials come from the Google Cloud tools
(application default credentials, with the package google-auth); public buckets need none.
"""

import base64
import html
import importlib
import io
import math
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

from vlatool.credentials import hide
from vlatool.errors import EnvironmentProblem, StorageError, install_line
from vlatool.storage import remote, web_requests
from vlatool.storage.background import in_parallel
from vlatool.storage.documents import MAX_BYTES, DocumentError, parse_json
from vlatool.storage.http import HttpStatusError, WebServer, ranged_body
from vlatool.storage.retry import RetryAdvice

_ENDPOINT = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_FIELDS = "name,size,updated,generation,md5Hash"
_MD5 = re.compile(r"md5=([A-Za-z0-9+/]{22}==)")
_UPLOAD_ID = re.compile(r"<UploadId>([^<]+)</UploadId>")
_UPLOAD = re.compile(
    r"<Upload>.*?<Key>([^<]*)</Key>.*?<UploadId>([^<]+)</UploadId>.*?</Upload>", re.S
)
_NEXT_UPLOADS = re.compile(
    r"<NextKeyMarker>([^<]*)</NextKeyMarker>.*<NextUploadIdMarker>([^<]*)<", re.S
)
_NO_BUCKET = re.compile(rb"NoSuchBucket|bucket does not exist")  # in XML, in JSON
_DELETED_AT_ONCE = 16
_MOST_EMPTY_PAGES = 1000
_NEW_FOR_S = 60  # credentials that are refused so soon are wrong


class GoogleBucket(WebServer):
    """Objects of a bucket; the endpoint is Google's, or STORAGE_EMULATOR_HOST."""

    form = remote.LocationForm("gs://bucket/key")
    settings = ("GOOGLE_", "CLOUDSDK_", "STORAGE_EMULATOR_HOST")
    can_list = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.name = root.partition("://")[2]
        self._credentials = _Credentials(self.pool)

    @cached_property
    def endpoint(self) -> str:
        return _emulator() or _ENDPOINT

    def url(self, key: str) -> str:
        """URL of the resource of an object."""
        return f"{self._objects}/{quote(key, safe='')}"

    def headers(self) -> Mapping[str, str]:
        return self._credentials.headers()

    def head(self, key: str) -> remote.ObjectInfo:
        item = self._document("GET", f"{self.url(key)}?fields={_FIELDS}")
        return _info(item)[1]

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> remote.ListPage:
        query = {"prefix": below, "delimiter": delimiter, "pageToken": token, "maxResults": at_most}
        query["fields"] = f"items({_FIELDS}),prefixes,nextPageToken"
        named = {name: value for name, value in query.items() if value != ""}
        objects: list[tuple[str, remote.ObjectInfo]] = []
        prefixes: list[str] = []
        for _ in range(_MOST_EMPTY_PAGES):
            page = self._document("GET", f"{self._objects}?{urlencode(named)}")
            with web_requests.reading_answer():
                objects = [_info(item) for item in page.get("items", ())]
                prefixes = [str(prefix) for prefix in page.get("prefixes", ())]
            named["pageToken"] = str(page.get("nextPageToken", ""))
            if objects or prefixes or not named["pageToken"]:
                break
        return remote.ListPage(objects, prefixes, str(named["pageToken"]))

    def get(self, key: str, start: int, stop: int, etag: str) -> remote.Body:
        span = str(start) if start < 0 else f"{start}-{stop - 1}"
        # Without the encoding, an object that is stored as gzip would be sent inflated, and whole.
        headers = {**self.headers(), "Range": f"bytes={span}", "Accept-Encoding": "gzip"}
        if etag:
            headers["x-goog-if-generation-match"] = etag
        response = web_requests.fetch(self.pool, "GET", self.path(key), headers)
        response.decode_content = False
        if response.status != 206:
            raise self._error(response, headers)
        body = ranged_body(response)
        digest = _md5_digest(_MD5.search(response.headers.get("x-goog-hash", "")))
        generation = response.headers.get("x-goog-generation", "")
        return replace(body, info=replace(body.info, etag=generation, digest=digest))

    def put(self, key: str, data: bytes, etag: str | None = None) -> str:
        query = {"uploadType": "media", "name": key, "fields": _FIELDS}
        if etag is not None:
            query["ifGenerationMatch"] = etag or "0"
        url = f"{self.endpoint}/upload/storage/v1/b/{self.name}/o?{urlencode(query)}"
        return _info(self._document("POST", url, data))[1].etag

    def multipart(self, key: str) -> remote.Upload:
        answer, _ = self.answer("POST", f"{self.path(key)}?uploads")
        upload_id = _UPLOAD_ID.search(answer.decode(errors="replace"))
        if upload_id is None:
            raise web_requests.UnusableAnswer("the server starts no upload")
        return _Parts(self, key, html.unescape(upload_id[1]))

    def unfinished(self, below: str) -> Sequence[tuple[str, remote.Upload]]:
        uploads: list[tuple[str, remote.Upload]] = []
        markers: tuple[str, str] = ("", "")
        while True:
            query = {"prefix": below, "key-marker": markers[0], "upload-id-marker": markers[1]}
            answer, _ = self.answer("GET", f"{self.path('')}?uploads&{urlencode(query)}")
            text = answer.decode(errors="replace")
            for key, upload_id in _UPLOAD.findall(text):
                name = html.unescape(key)
                uploads.append((name, _Parts(self, name, html.unescape(upload_id))))
            following = _NEXT_UPLOADS.search(text)
            if "<IsTruncated>true<" not in text or following is None:
                return uploads
            previous = markers
            markers = (html.unescape(following[1]), html.unescape(following[2]))
            if markers <= previous:
                raise web_requests.UnusableAnswer("the list of uploads has no end")

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        for _ in in_parallel(self._delete, keys, _DELETED_AT_ONCE):
            pass
        return ()

    def _delete(self, key: str) -> None:
        try:
            self.answer("DELETE", self.url(key))
        except HttpStatusError as error:
            if error.status != 404:
                raise

    def retry_advice(self, error: Exception) -> RetryAdvice | None:
        """Advice on retrying after an error; None if a retry is useless."""
        if isinstance(error, _Refusal) and error.is_about_credentials:
            is_renewed = self._credentials.renew(error.authorization)
            return RetryAdvice("the credentials are not accepted") if is_renewed else None
        if _has_no_token(error):
            return RetryAdvice(f"no token ({type(error).__name__})")
        return super().retry_advice(error)

    def map_error(self, error: Exception, location: str) -> Exception:
        if isinstance(error, _Refusal) and error.is_about_credentials:
            return self._credentials.problem(location, f"HTTP {error.status}")
        if type(error).__module__.startswith("google.auth"):
            return self._credentials.problem(location, type(error).__name__)
        if isinstance(error, _Refusal) and error.status == 403:
            return StorageError.at(
                location,
                "access is denied (403)",
                hint="ask for permission to read, write and list here, or log in as someone else",
                code="storage.forbidden",
            )
        return super().map_error(error, location)

    def path(self, key: str) -> str:
        """URL of an object, or of the bucket, in the XML interface."""
        return f"{self.endpoint}/{self.name}/{quote(key, safe='')}".rstrip("/")

    def answer(
        self, method: str, url: str, data: bytes = b"", *, kind: str = "application/octet-stream"
    ) -> tuple[bytes, Mapping[str, str]]:
        """Whole body and headers of a response; HttpStatusError if it is no success."""
        headers = {**self.headers(), "Content-Type": kind, "Accept-Encoding": "identity"}
        headers["Content-Length"] = str(len(data))
        # From a file, each block has its own time limit.
        response = web_requests.send(self.pool, method, url, headers, io.BytesIO(data))
        if response.status >= 300:
            raise self._error(response, headers)
        return web_requests.whole_body(response, MAX_BYTES), response.headers

    @property
    def _objects(self) -> str:
        return f"{self.endpoint}/storage/v1/b/{self.name}/o"

    def _document(self, method: str, url: str, data: bytes = b"") -> dict[str, Any]:
        content, _ = self.answer(method, url, data)
        try:
            document = parse_json(content)
        except DocumentError as error:
            raise web_requests.UnusableAnswer(f"the server's answer is {error.reason}") from error
        if not isinstance(document, dict):
            raise web_requests.UnusableAnswer("the server's answer is no object")
        return cast("dict[str, Any]", document)

    def _error(self, response: Any, headers: Mapping[str, str]) -> Exception:
        """Error of a response that is no success, to a request with these headers."""
        content = web_requests.error_body(response)
        if response.status == 416 or (response.status == 200 and not content):
            return remote.RangeNotSatisfiable()
        if response.status == 200:
            return web_requests.UnusableAnswer("the server ignores byte ranges")
        if response.status == 412:
            return remote.ConditionFailed()
        if response.status == 404 and _NO_BUCKET.search(content):
            reason = "the bucket does not exist"
            hint = "check its name"
            return StorageError.at(f"gs://{self.name}", reason, hint=hint, code="storage.refused")
        authorization = headers.get("Authorization", "")
        return _Refusal(response.status, response.headers, authorization)


class _Refusal(HttpStatusError):
    """Response with a status that is no success, and the header of the request with the token."""

    def __init__(self, status: int, headers: Mapping[str, str], authorization: str) -> None:
        super().__init__(status, headers)
        self.authorization = authorization

    @property
    def is_about_credentials(self) -> bool:
        """True for a token that is not accepted, and where one is needed."""
        # To requests without a token, JSON answers 401 and XML 403.
        return self.status == 401 or (self.status == 403 and not self.authorization)


class _Parts:
    """Upload of an object in parts."""

    def __init__(self, bucket: GoogleBucket, key: str, upload_id: str) -> None:
        self._bucket = bucket
        self._url = f"{bucket.path(key)}?{urlencode({'uploadId': upload_id})}"

    def send(self, number: int, data: bytes) -> str:
        _, headers = self._bucket.answer("PUT", f"{self._url}&partNumber={number}", data)
        return str(headers.get("ETag", ""))

    def complete(self, parts: Sequence[str]) -> None:
        rows: list[str] = []
        for number, etag in enumerate(parts, start=1):
            rows.append(
                f"<Part><PartNumber>{number}</PartNumber><ETag>{html.escape(etag)}</ETag></Part>"
            )
        text = f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>"
        self._bucket.answer("POST", self._url, text.encode(), kind="application/xml")

    def abort(self) -> None:
        self._bucket.answer("DELETE", self._url)


class _Credentials:
    """Token of the application default credentials, if there are any.

    Files with credentials are read at the first request. Only after a request without credentials
    was refused is the server asked that gives them on machines of Google Cloud.
    """

    def __init__(self, pool: web_requests.Connections) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._found: Any = None
        self._is_searched = False
        self._renewed_at = -math.inf

    def headers(self) -> Mapping[str, str]:
        with self._lock:
            if not self._is_searched and self._has_file():
                self._search()
            self._is_searched = True
            if self._found is None:
                return {}
            if not self._found.valid:
                self._found.refresh(self._request())
            hide(self._found.token)
            return {"Authorization": f"Bearer {self._found.token}"}

    def renew(self, refused: str) -> bool:
        """Replaces a token that was refused; False if there is none, or it is new."""
        with self._lock:
            token = self._found.token if self._found is not None else None
            is_replaced = self._found is not None and f"Bearer {token}" != refused
            if is_replaced:  # for another thread
                return True
            if time.monotonic() < self._renewed_at + _NEW_FOR_S:
                return False
            self._renewed_at = time.monotonic()
            if self._found is not None:
                self._found.token = None  # the next request asks for another one
            elif not _emulator():
                self._search()
            return self._found is not None

    def problem(self, location: str, reason: str) -> EnvironmentProblem:
        hint = (
            "`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to the"
            " file of a service account"
        )
        if self._auth is None:
            hint = f"{install_line('gcs')}, then {hint}"
        message = f"{location}: no usable Google Cloud credentials ({reason})"
        code = "environment.credentials"
        return EnvironmentProblem(message, hint=hint, code=code, details={"path": location})

    @cached_property
    def _auth(self) -> Any:
        """Module `google.auth`; None if it is not installed."""
        try:
            importlib.import_module("google.auth.transport.urllib3")
            return importlib.import_module("google.auth")
        except ImportError:
            return None

    def _has_file(self) -> bool:
        host = urlsplit(_emulator()).hostname
        if host not in (None, "localhost", "127.0.0.1"):  # it would get the token
            return False
        if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            return True
        folder = os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
        file = Path(folder).expanduser() / "application_default_credentials.json"
        return file.is_file() and not _emulator()

    def _search(self) -> None:
        if self._auth is None:
            return
        try:
            self._found, _ = self._auth.default(scopes=[_SCOPE], request=self._request())
        except self._auth.exceptions.DefaultCredentialsError:
            if self._has_file():
                raise

    def _request(self) -> Any:
        return self._auth.transport.urllib3.Request(self._pool)


def _emulator() -> str:
    """URL of the server that is used in place of Google's; empty for Google's."""
    host = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    return host if "://" in host or not host else f"http://{host}"


def _has_no_token(error: Exception) -> bool:
    """True if the server that gives tokens did not answer."""
    if not type(error).__module__.startswith("google.auth"):
        return False
    for reason in (error, error.__cause__, *error.args[:1]):
        if type(reason).__name__ == "TransportError" or getattr(reason, "retryable", False):
            return True
    return False


@web_requests.reading_answer(ValueError, AttributeError)
def _info(item: Any) -> tuple[str, remote.ObjectInfo]:
    """Key and information of an object in an answer."""
    modified = datetime.fromisoformat(item["updated"]).timestamp()
    digest = _md5_digest(_MD5.match(f"md5={item.get('md5Hash', '')}"))
    info = remote.ObjectInfo(int(item["size"]), modified, str(item["generation"]), digest=digest)
    return str(item["name"]), info


def _md5_digest(match: re.Match[str] | None) -> str:
    return f"md5:{base64.b64decode(match[1]).hex()}" if match else ""
