"""A stand-in for Google Cloud Storage, written after its reference of the JSON interface.

It keeps the rules that `gcp-storage-emulator` does not know: generations as conditions, listings in
pages, ranges that cannot be satisfied, resumable uploads, and tokens.
"""

import base64
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.builders.web_server import Server

_OBJECTS = re.compile(r"/storage/v1/b/([^/]+)/o(?:/(.*))?")
_UPLOADED = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
_CONTENT = re.compile(r"/([^/]+)/(.*)")
_SENT = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_RANGE = re.compile(r"bytes=(?:(\d+)-(\d+)|-(\d+))")


@dataclass
class StoredObject:
    data: bytes
    generation: int
    updated: str


@dataclass
class StoredUpload:
    bucket: str
    key: str
    condition: str = ""  # generation that the object must have
    data: bytes = b""


@dataclass
class GcsServer:
    """A running server with its objects."""

    endpoint: str = ""
    buckets: dict[str, dict[str, StoredObject]] = field(default_factory=dict[str, Any])
    uploads: dict[str, StoredUpload] = field(default_factory=dict[str, Any])
    token: str = ""  # that requests need; empty: the buckets are public
    tokens_given: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def env(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.endpoint}

    def bucket(self) -> str:
        """Creates an empty bucket; returns its name."""
        name = f"bucket-{os.getpid()}-{next(self._numbers)}"
        self.buckets[name] = {}
        return name

    def put(self, bucket: str, key: str, data: bytes) -> StoredObject:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.buckets[bucket][key] = StoredObject(data, next(self._numbers), now)
        return self.buckets[bucket][key]

    def start_upload(self, bucket: str, key: str, condition: str = "") -> str:
        name = f"upload-{next(self._numbers)}"
        self.uploads[name] = StoredUpload(bucket, key, condition)
        return name

    def unfinished(self, bucket: str) -> list[str]:
        """Keys of unfinished uploads."""
        return sorted(upload.key for upload in self.uploads.values() if upload.bucket == bucket)

    def service_account(self, path: Path) -> Path:
        """Writes the file of a service account whose tokens this server gives."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        account = {
            "type": "service_account",
            "client_email": "robot@lab.iam.gserviceaccount.com",
            "private_key_id": "1",
            "private_key": key.decode(),
            "token_uri": f"{self.endpoint}/token",
        }
        path.write_text(json.dumps(account))
        return path


@contextmanager
def gcs_server() -> Iterator[GcsServer]:
    """Runs a server on threads of this process; other processes can use it too."""
    store = GcsServer()

    class Handler(_Handler):
        pass

    Handler.store = store
    server = Server(("127.0.0.1", 0), Handler)
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()


class _Refusal(Exception):
    def __init__(self, status: int, message: str = "test") -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: GcsServer

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(parts.query, True).items()}
        try:
            with self.store.lock:
                self._answer(parts.path, body)
        except _Refusal as refusal:
            error = {"error": {"code": refusal.status, "message": str(refusal)}}
            self._send(json.dumps(error).encode(), refusal.status)

    do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - http.server's

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's
        del format, args

    def _answer(self, path: str, body: bytes) -> None:
        if path == "/token":
            self.store.tokens_given += 1
            if not self.store.token.startswith("token-"):  # it was withdrawn
                self.store.token = f"token-{self.store.tokens_given}"
            token = {"access_token": self.store.token, "expires_in": 3600, "token_type": "Bearer"}
            return self._send(json.dumps(token).encode())
        if self.store.token and self.headers.get("Authorization") != f"Bearer {self.store.token}":
            is_json = path.startswith(("/storage/", "/upload/"))
            raise _Refusal(401 if is_json or "Authorization" in self.headers else 403)
        if match := _UPLOADED.fullmatch(path):
            return self._insert(match[1], body)
        if match := _OBJECTS.fullmatch(path):
            if match[2] is None:
                return self._list(match[1])
            return self._object(match[1], unquote(match[2]))
        match = _CONTENT.fullmatch(path)
        assert match is not None
        stored = self._objects(match[1]).get(unquote(match[2]))
        if stored is None:
            raise _Refusal(404)
        return self._content(stored)

    def _insert(self, bucket: str, body: bytes) -> None:
        condition = self.query.get("ifGenerationMatch", "")
        if "upload_id" in self.query:
            return self._upload(self.query["upload_id"], body)
        if self.query["uploadType"] == "resumable":
            self._objects(bucket)
            key = json.loads(body)["name"]
            name = self.store.start_upload(bucket, key, condition)
            host = self.headers["X-Forwarded-Host"] or self.headers["Host"]
            url = f"http://{host}{self.path.partition('?')[0]}?upload_id={name}"
            return self._send(b"", headers={"Location": url})
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip('"')
        _, head, content, _ = body.split(f"--{boundary}".encode(), 3)
        document = json.loads(head.partition(b"\r\n\r\n")[2])
        data = content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        return self._store(bucket, document["name"], data, condition)

    def _store(self, bucket: str, key: str, data: bytes, condition: str) -> None:
        objects = self._objects(bucket)
        current = objects[key].generation if key in objects else 0
        if condition and int(condition) != current:
            raise _Refusal(412)
        stored = self.store.put(bucket, key, data)
        self._send(json.dumps(_resource(key, stored)).encode())

    def _list(self, bucket: str) -> None:
        objects = self._objects(bucket)
        prefix = self.query.get("prefix", "")
        delimiter = self.query.get("delimiter", "")
        most = int(self.query.get("maxResults", 1000))
        items: list[dict[str, str]] = []
        prefixes: list[str] = []
        page: dict[str, Any] = {"kind": "storage#objects"}
        last = self.query.get("pageToken", "")
        for key in sorted(objects):
            if not key.startswith(prefix) or (last and key <= last):
                continue
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            folder = f"{prefix}{head}{cut}" if cut else ""
            if folder and folder not in prefixes and not last.startswith(folder):
                prefixes.append(folder)
            elif not folder:
                items.append(_resource(key, objects[key]))
            if len(items) + len(prefixes) == most:
                following = [other for other in sorted(objects) if other > key]
                if any(other.startswith(prefix) for other in following):
                    page["nextPageToken"] = key
                break
        if items:
            page["items"] = items
        if prefixes:
            page["prefixes"] = prefixes
        self._send(json.dumps(page).encode())

    def _object(self, bucket: str, key: str) -> None:
        objects = self._objects(bucket)
        if key not in objects:
            raise _Refusal(404)
        if self.command == "DELETE":
            del objects[key]
            return self._send(b"", 204)
        return self._send(json.dumps(_resource(key, objects[key])).encode())

    def _content(self, stored: StoredObject) -> None:
        generation = self.headers.get("x-goog-if-generation-match", stored.generation)
        if int(generation) != stored.generation:
            raise _Refusal(412)
        span = _RANGE.fullmatch(self.headers["Range"])
        assert span is not None
        size = len(stored.data)
        start = max(0, size - int(span[3])) if span[3] else int(span[1])
        stop = size if span[3] else min(size, int(span[2]) + 1)
        if start >= size:
            raise _Refusal(416)
        headers = {
            "Content-Range": f"bytes {start}-{stop - 1}/{size}",
            "Last-Modified": format_datetime(datetime.fromisoformat(stored.updated), usegmt=True),
            "x-goog-generation": str(stored.generation),
            "x-goog-hash": f"crc32c=AAAAAA==, md5={_md5(stored.data)}",
        }
        self._send(stored.data[start:stop], 206, headers)

    def _upload(self, name: str, body: bytes) -> None:
        """Part of an upload; bytes that are there already are ignored."""
        if self.command == "DELETE":
            self.store.uploads.pop(name, None)
            return self._send(b"", 499)
        if name not in self.store.uploads:
            raise _Refusal(404)
        upload = self.store.uploads[name]
        span = _SENT.fullmatch(self.headers.get("Content-Range", ""))
        start = int(span[1]) if span else 0
        if start > len(upload.data):
            raise _Refusal(503)
        upload.data += body[len(upload.data) - start :]
        if span is not None and span[3] == "*":
            if len(body) % 2**18:
                raise _Refusal(400, "a part is no multiple of 256 KiB")
            return self._send(b"", 308, {"Range": f"bytes=0-{len(upload.data) - 1}"})
        if span is not None and len(upload.data) != int(span[3]):
            raise _Refusal(400, "another size")
        del self.store.uploads[name]
        return self._store(upload.bucket, upload.key, upload.data, upload.condition)

    def _objects(self, bucket: str) -> dict[str, StoredObject]:
        if bucket not in self.store.buckets:
            raise _Refusal(404, "<Code>NoSuchBucket</Code>The specified bucket does not exist.")
        return self.store.buckets[bucket]

    def _send(
        self, content: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _resource(key: str, stored: StoredObject) -> dict[str, str]:
    """Metadata of an object, whose numbers are texts."""
    return {
        "name": key,
        "size": str(len(stored.data)),
        "updated": stored.updated,
        "generation": str(stored.generation),
        "md5Hash": _md5(stored.data),
    }


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()
