"""Buckets of Google Cloud Storage by google-cloud-storage, and our GET for ranges.

The version of an object is its generation. Credentials come from the Google Cloud tools
(application default credentials); public buckets need none.
"""

import base64
import importlib
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from vlatool.credentials import hide
from vlatool.errors import missing_package
from vlatool.storage import remote, retry, web

_ENDPOINT = "https://storage.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_FIELDS = "items(name,size,updated,generation,md5Hash),prefixes,nextPageToken"
# Without it, the library asks for properties of the bucket in the background.
_NO_TRACES = "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA"
_BINARY = "application/octet-stream"
_MD5 = re.compile(r"md5=([A-Za-z0-9+/]{22}==)")
_NO_BUCKET = "bucket does not exist"
_INCOMPLETE = 308  # status after a part that is not the last one
_MAX_EMPTY_PAGES = 1000
_LOGIN_HINT = (
    "`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to the file of"
    " a service account"
)


class GoogleBucket:
    """Objects of a bucket; the endpoint is Google's, or STORAGE_EMULATOR_HOST."""

    form = remote.LocationForm("gs://bucket/key")
    settings = ("GOOGLE_", "CLOUDSDK_", "STORAGE_EMULATOR_HOST")
    can_list = True

    def __init__(self, root: str) -> None:
        self.name = root.partition("://")[2]
        try:
            self._storage: Any = importlib.import_module("google.cloud.storage")
            self._auth: Any = importlib.import_module("google.auth")
            self._transport: Any = importlib.import_module("google.auth.transport.requests")
        except ImportError as error:
            raise missing_package("google-cloud-storage") from error
        self._pool = web.Connections()
        self._machine_credentials: Any = None  # searched once the bucket refuses strangers

    @cached_property
    def _request(self) -> Any:
        """What asks for tokens."""
        return self._transport.Request(web.with_certificates(_endpoint()))

    @cached_property
    def _credentials(self) -> Any:
        if self._machine_credentials is None and not _has_file():
            return importlib.import_module("google.auth.credentials").AnonymousCredentials()
        found = self._machine_credentials
        return found or self._auth.default(scopes=_SCOPES, request=self._request)[0]

    @cached_property
    def _session(self) -> Any:
        session = self._transport.AuthorizedSession(self._credentials, auth_request=self._request)
        return web.with_certificates(_endpoint(), session)

    @cached_property
    def _bucket(self) -> Any:
        os.environ.setdefault(_NO_TRACES, "true")
        client = self._storage.Client(
            project="none",
            credentials=self._credentials,
            client_options={"api_endpoint": _endpoint()},
            _http=self._session,
        )
        return client.bucket(self.name)

    def head(self, key: str) -> remote.ObjectInfo:
        blob = self._bucket.blob(key)
        blob.reload(**_once())
        return _info(blob)

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> remote.ListPage:
        listing = self._bucket.list_blobs(
            prefix=below,
            delimiter=delimiter or None,
            page_token=token or None,
            page_size=at_most,
            fields=_FIELDS,
            **_once(),
        )
        objects: list[tuple[str, remote.ObjectInfo]] = []
        for page in islice(listing.pages, _MAX_EMPTY_PAGES):
            objects = [(str(blob.name), _info(blob)) for blob in page]
            if objects or listing.prefixes:
                break
        return remote.ListPage(
            objects, sorted(map(str, listing.prefixes)), str(listing.next_page_token or "")
        )

    def get(self, key: str, start: int, stop: int, etag: str) -> remote.Body:
        span = str(start) if start < 0 else f"{start}-{stop - 1}"
        url = f"{_endpoint()}/{self.name}/{quote(key, safe='')}"
        # Without the encoding, an object that is stored as gzip would be sent inflated, and whole.
        headers = {"Range": f"bytes={span}", "Accept-Encoding": "gzip"}
        if etag:
            headers["x-goog-if-generation-match"] = etag
        self._credentials.before_request(self._request, "GET", url, headers)
        hide(self._credentials.token or "")
        response = self._pool.request("GET", url, headers=headers)  # takes half the time
        if response.status == 401 and self._credentials.token:
            response.close()
            response = self.fetch("GET", url, headers)
        response.decode_content = False
        body = web.ranged_body(response)
        match = _MD5.search(response.headers.get("x-goog-hash", ""))
        digest = _digest(match[1] if match else "")
        generation = response.headers.get("x-goog-generation", "")
        return replace(body, info=replace(body.info, etag=generation, digest=digest))

    def fetch(self, method: str, url: str, headers: dict[str, str], data: bytes = b"") -> Any:
        """Response of urllib3, with its body unread; a token that is not accepted is replaced."""
        response = self._session.request(
            method, url, data, headers, stream=True, timeout=_limits(), allow_redirects=False
        )
        hide(self._credentials.token or "")
        return response.raw

    def put(self, key: str, data: bytes, etag: str | None = None) -> str:
        condition = None if etag is None else int(etag or 0)
        blob = self._bucket.blob(key)
        blob.upload_from_string(data, _BINARY, if_generation_match=condition, **_once())
        return str(blob.generation)

    def multipart(self, key: str) -> remote.Upload:
        url = self._bucket.blob(key).create_resumable_upload_session(_BINARY, **_once())
        return _Parts(self, url)

    def unfinished(self, below: str) -> Sequence[tuple[str, remote.Upload]]:
        """Returns none: the server keeps an unfinished upload for a week, and lists none."""
        del below
        return ()

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        return remote.delete_each(self, keys, lambda key: self._bucket.delete_blob(key, **_once()))

    def retry_advice(self, error: Exception) -> retry.RetryAdvice | None:
        """Advice on retrying after an error; None if a retry is useless."""
        status = web.answer_of(error).status
        # The library tries to renew the token of a stranger, and says that there is none.
        is_stranger = isinstance(error, self._auth.exceptions.InvalidOperation)
        if (is_stranger or status in (401, 403)) and self._finds_machine_credentials():
            return retry.RetryAdvice("the bucket is not public")
        if not status and getattr(error, "retryable", False):
            return retry.RetryAdvice(f"no token ({type(error).__name__})")
        return web.retry_advice(error)

    def map_error(self, error: Exception, location: str) -> Exception:
        answer = web.answer_of(error)
        if answer.status:
            is_stranger = getattr(self.__dict__.get("_credentials"), "token", None) is None
            if _NO_BUCKET in str(error):
                answer = answer._replace(code="NoSuchBucket")
            return web.bucket_error(location, answer, _LOGIN_HINT, is_stranger=is_stranger)
        if isinstance(error, AttributeError) and error.obj is not self:  # values of other types
            error = TypeError()
        if isinstance(error, self._auth.exceptions.GoogleAuthError):
            return web.no_credentials(location, type(error).__name__, _LOGIN_HINT)
        return web.map_error(error, location)

    def _finds_machine_credentials(self) -> bool:
        """True if this machine of Google Cloud has credentials, which were not used so far."""
        if self._machine_credentials is not None or _has_file() or _emulator():
            return False
        try:
            found, _ = self._auth.default(scopes=_SCOPES, request=self._request)
        except self._auth.exceptions.GoogleAuthError:
            return False
        self._machine_credentials = found
        for name in ("_credentials", "_session", "_bucket"):
            self.__dict__.pop(name, None)
        return True


class _Parts:
    """Upload of an object in parts, which are sent in order: all but the last have equal sizes.

    The server ignores bytes that it has already, so that each part may be sent again.
    """

    def __init__(self, bucket: GoogleBucket, url: str) -> None:
        self._bucket = bucket
        self._url = url
        self._lock = threading.Lock()
        self._held: dict[int, bytes] = {}  # until it is known if a part is the last one
        self._number = 1
        self._start = 0

    def send(self, number: int, data: bytes) -> str:
        with self._lock:
            self._held[number] = data
            while self._number + 1 in self._held and self._number in self._held:
                self._transmit("*")
        return str(number)

    def complete(self, parts: Sequence[str]) -> None:
        with self._lock:
            while self._number < len(parts):
                self._transmit("*")
            self._transmit(str(self._start + len(self._held[self._number])))

    def abort(self) -> None:
        self._bucket.fetch("DELETE", self._url, {}).close()

    def _transmit(self, total: str) -> None:
        data = self._held[self._number]
        stop = self._start + len(data)
        headers = {"Content-Range": f"bytes {self._start}-{stop - 1}/{total}"}
        response = self._bucket.fetch("PUT", self._url, headers, data)
        if response.status not in (200, 201) and (total != "*" or response.status != _INCOMPLETE):
            raise web.HttpStatusError(response.status, response.headers)
        web.error_body(response)
        if total == "*":
            self._start = stop
            del self._held[self._number]
            self._number += 1


def _once() -> Mapping[str, Any]:
    """Options of one attempt."""
    return {"timeout": _limits(), "retry": None}


def _limits() -> tuple[float, float]:
    return (retry.CONNECT_TIMEOUT_S, retry.READ_TIMEOUT_S)


def _emulator() -> str:
    """URL of the server that is used in place of Google's; empty for Google's."""
    host = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    return host if "://" in host or not host else f"http://{host}"


def _endpoint() -> str:
    return _emulator() or _ENDPOINT


def _has_file() -> bool:
    """True if there is a file with credentials that the endpoint may see."""
    emulator = _emulator()
    if emulator and urlsplit(emulator).hostname not in ("localhost", "127.0.0.1"):
        return False
    if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return True
    folder = os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud"
    file = Path(folder).expanduser() / "application_default_credentials.json"
    return file.is_file() and not emulator


def _info(blob: Any) -> remote.ObjectInfo:
    modified = blob.updated.timestamp()
    digest = _digest(blob.md5_hash or "")
    return remote.ObjectInfo(int(blob.size), modified, str(blob.generation), digest=digest)


def _digest(md5: str) -> str:
    return f"md5:{base64.b64decode(md5).hex()}" if md5 else ""
