"""A stand-in for Azure Blob Storage, written after its reference of the REST interface."""

import base64
import hashlib
import itertools
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.builders.web_server import Server

ACCOUNT = "lab"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class AzureServer:
    """A running server with its containers."""

    endpoint: str = ""
    containers: dict[str, dict[str, tuple[bytes, str]]] = field(default_factory=dict[str, Any])
    blocks: dict[tuple[str, str], bytes] = field(default_factory=dict[Any, bytes])
    lock: threading.RLock = field(default_factory=threading.RLock)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def env(self, endpoint: str = "") -> dict[str, str]:
        """Variables with which a process uses the server, or a proxy of it."""
        key = base64.b64encode(b"key").decode()
        text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};"
        location = f"BlobEndpoint={endpoint or self.endpoint}/{ACCOUNT}"
        return {"AZURE_STORAGE_CONNECTION_STRING": text + location}

    def container(self) -> str:
        """Location of a new container."""
        name = f"container-{os.getpid()}-{next(self._numbers)}"
        self.containers[name] = {}
        return f"az://{ACCOUNT}/{name}"

    def etag(self) -> str:
        return f'"0x{next(self._numbers):X}"'


@contextmanager
def azure_server() -> Iterator[AzureServer]:
    """Runs a server on threads of this process; other processes can use it too."""
    store = AzureServer()

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


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    store: AzureServer

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        md5 = self.headers.get("Content-MD5")
        assert md5 is None or md5 == _md5(body), "the content was damaged on the way"
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        _, _, container, *rest = unquote(parts.path).split("/", 3)
        with self.store.lock:
            blobs = self.store.containers.get(container)
            if blobs is None:
                self._error(404, "ContainerNotFound")
            elif query.get("comp") == "list":
                self._list(blobs, query)
            elif self.command == "PUT":
                self._put(blobs, (container, rest[0]), query, body)
            elif rest[0] not in blobs:
                self._error(404, "BlobNotFound")
            elif self.command == "DELETE":
                del blobs[rest[0]]
                self._send(202, {})
            else:
                self._get(*blobs[rest[0]])

    do_GET = do_PUT = do_HEAD = do_DELETE = handle_any  # noqa: N815 - http.server's

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's
        del format, args

    def _put(
        self,
        blobs: dict[str, tuple[bytes, str]],
        place: tuple[str, str],
        query: dict[str, str],
        body: bytes,
    ) -> None:
        if query.get("comp") == "block":
            self.store.blocks[place[0], query["blockid"]] = body
            return self._send(201, {})
        current = blobs[place[1]][1] if place[1] in blobs else ""
        if self.headers.get("If-None-Match") == "*" and current:
            return self._error(409, "BlobAlreadyExists")
        if self.headers.get("If-Match", current) != current:
            return self._error(412, "ConditionNotMet")
        if query.get("comp") == "blocklist":
            names = re.findall(rb"<Latest>([^<]+)</Latest>", body)
            body = b"".join(self.store.blocks[place[0], name.decode()] for name in names)
        blobs[place[1]] = (body, self.store.etag())
        return self._send(201, {"ETag": blobs[place[1]][1]})

    def _get(self, data: bytes, etag: str) -> None:
        if self.headers.get("If-Match", etag) != etag:
            return self._error(412, "ConditionNotMet")
        headers = {"ETag": etag, "x-ms-blob-type": "BlockBlob"}
        span = _RANGE.fullmatch(self.headers.get("x-ms-range", self.headers.get("Range", "")))
        if self.command == "HEAD" or span is None:
            return self._send(200, {**headers, "Content-MD5": _md5(data)}, data)
        part = data[int(span[1]) : int(span[2]) + 1]
        if not part:
            return self._error(416, "InvalidRange")
        headers["Content-Range"] = f"bytes {span[1]}-{int(span[1]) + len(part) - 1}/{len(data)}"
        headers |= {"Content-MD5": _md5(part), "x-ms-blob-content-md5": _md5(data)}
        return self._send(206, headers, part)

    def _list(self, blobs: dict[str, tuple[bytes, str]], query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        rows: dict[str, str] = {}
        marker = ""
        for key in sorted(key for key in blobs if key.startswith(prefix)):
            head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            name = f"{prefix}{head}{cut}" if cut else key
            if name <= query.get("marker", "") or name in rows:
                continue
            if len(rows) == int(query.get("maxresults", 5000)):
                marker = max(rows)
                break
            data, etag = blobs.get(key, (b"", ""))
            properties = f"<Last-Modified>{formatdate(usegmt=True)}</Last-Modified>"
            properties += (
                f"<Etag>{etag.strip(chr(34))}</Etag><Content-MD5>{_md5(data)}</Content-MD5>"
            )
            properties += "<BlobType>BlockBlob</BlobType>"
            properties += f"<Content-Length>{len(data)}</Content-Length>"
            kind = "BlobPrefix" if cut else "Blob"
            row = "" if cut else f"<Properties>{properties}</Properties>"
            rows[name] = f"<{kind}><Name>{escape(name)}</Name>{row}</{kind}>"
        text = f"<Blobs>{''.join(rows.values())}</Blobs><NextMarker>{escape(marker)}</NextMarker>"
        content = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults>{text}'
        content += "</EnumerationResults>"
        self._send(200, {"Content-Type": "application/xml"}, content.encode())

    def _error(self, status: int, code: str) -> None:
        self._send(status, {"x-ms-error-code": code})

    def _send(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, text in {**headers, "Last-Modified": formatdate(usegmt=True)}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()
