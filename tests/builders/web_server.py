"""A web server of a folder and a hub of repositories, with faults for tests."""

import hashlib
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.builders.hub_writes import WrittenHub, answer, is_large

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_a_test"


@dataclass
class WebFaults:
    """Faults of the server."""

    fail_next: int = 0  # the next N requests get `status`
    status: int = 500  # status of these responses
    retry_after_s: int = 0  # seconds in the Retry-After header of these responses
    retry_date_in_s: int = 0  # the same, as a date from now; 0 for none
    redirect_to: str = ""  # start of the location to which requests of files are redirected
    endless: bool = False  # bodies have no length and no end
    cut_after: int = 0  # bodies and connections end after N bytes
    longer_by: int = 0  # number of bytes by which Content-Length and Content-Range are too large
    delay_s: float = 0.0  # seconds before each response
    stall_next: int = 0  # the next N requests get no response
    no_ranges: bool = False  # ranges are ignored
    no_head: bool = False  # HEAD is not allowed
    no_length: bool = False  # responses have no Content-Length
    no_length_of_get: bool = False  # the same for GET only
    no_versions: bool = False  # responses have neither ETag nor Last-Modified
    status_of_get: int = 0  # status of each GET of a file; HEAD answers as ever; 0 for none
    page: bool = False  # every response is a web page
    version: int = 1  # part of every ETag; it changes with the content
    fail_from: int = 0  # ranges from this byte on get `status`; 0 for none
    changes_every: int = 0  # files get another version every N requests
    scheme: str = "http"  # scheme of the locations that uploads are sent to
    commit: str = COMMIT  # commit of the branch `main` of the hub
    # Method, path and range of each request.
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)  # header Authorization of each request


@dataclass(frozen=True)
class WebServer:
    """Running server: `endpoint/NAME` is the file NAME of the folder; `written` are uploads."""

    endpoint: str
    folder: Path
    faults: WebFaults
    written: WrittenHub


class Server(ThreadingHTTPServer):
    """Server for many connections at once: one more than waits takes a second longer."""

    request_queue_size = 128
    daemon_threads = True


@contextmanager
def web_server(folder: Path, *, needs_token: bool = False) -> Iterator[WebServer]:
    """Serves a folder; below `datasets/OWNER/NAME` it is also a repository of a hub."""
    faults, written = WebFaults(), WrittenHub()

    class Handler(_Handler):
        pass

    Handler.faults, Handler.folder, Handler.needs_token = faults, folder, needs_token
    Handler.written = written
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield WebServer(f"http://127.0.0.1:{server.server_port}", folder, faults, written)
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faults: WebFaults
    folder: Path
    needs_token: bool
    written: WrittenHub

    def handle_any(self) -> None:
        faults = self.faults
        path = unquote(self.path.partition("?")[0])
        faults.requests.append((self.command, path, self.headers.get("Range", "")))
        faults.tokens.append(self.headers.get("Authorization", ""))
        if faults.changes_every and len(faults.requests) % faults.changes_every == 0:
            faults.version += 1
        time.sleep(faults.delay_s)
        if faults.stall_next > 0:
            faults.stall_next -= 1
            time.sleep(3600)
        elif faults.fail_next > 0:
            faults.fail_next -= 1
            self._send_error(faults.status)
        elif faults.no_head and self.command == "HEAD":
            self._send_error(405)
        elif path.startswith("/api/") or "/resolve/" in path:
            self._hub(path)
        else:
            self._file(self.folder / path.lstrip("/"))

    do_GET = do_HEAD = handle_any  # noqa: N815 - http.server's

    def handle_write(self) -> None:
        """Answers a request that writes a repository; they need a token."""
        body = self._body()
        path = unquote(self.path.partition("?")[0])
        self.faults.requests.append((self.command, path, ""))
        if self.faults.fail_next > 0:
            self.faults.fail_next -= 1
            self._send_error(self.faults.status)
        elif path.startswith("/api/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send_error(401, {"X-Error-Code": "RepoNotFound"})
        else:
            time.sleep(self.faults.delay_s)
            endpoint = f"{self.faults.scheme}://{self.headers['Host']}"
            request = (self.command, path, body)
            self._json(*answer(self.written, self.folder, endpoint, request)[::-1])

    do_POST = do_PUT = do_DELETE = handle_write  # noqa: N815 - http.server's

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        blocks: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            blocks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(blocks)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's
        del format, args

    def _hub(self, path: str) -> None:
        if self.needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send_error(401, {"X-Error-Code": "RepoNotFound"})
            return
        parts = path.removeprefix("/api").strip("/").split("/")
        if parts[0] == "buckets":
            self._bucket(self.folder / parts[1] / parts[2], parts[3], "/".join(parts[4:]))
            return
        kind = parts.pop(0) if parts[0] in ("datasets", "models", "spaces") else "models"
        owner, name, verb, *rest = [*parts, "revision", "main"][: max(5, len(parts))]
        repository = self.folder / owner / name
        if not repository.is_dir():
            self._send_error(404, {"X-Error-Code": "RepoNotFound"})
            return
        newest = self.written.commit if self.written.commits else self.faults.commit
        sha = newest if rest[0] == "main" else rest[0]
        if verb == "refs":
            request = (self.command, path, b"")
            self._json(answer(self.written, self.folder, "", request)[1])
        elif sha not in (newest, COMMIT, self.faults.commit, self.written.commit):
            self._send_error(404, {"X-Error-Code": "RevisionNotFound"})
        elif verb == "resolve":
            self._file(repository / "/".join(rest[1:]), {"X-Repo-Commit": sha})
        elif verb == "tree":
            self._json([entry(path, repository) for path in sorted(repository.rglob("*"))])
        else:
            self._json({"id": f"{owner}/{name}", "sha": sha, "kind": kind, "siblings": []})

    def _bucket(self, folder: Path, verb: str, name: str) -> None:
        if not folder.is_dir():
            self._send_error(404, {"X-Error-Code": "RepoNotFound"})
        elif verb == "resolve":
            self._file(folder / name)
        else:
            rows = [entry(path, folder) for path in sorted(folder.rglob("*"))]
            stamps = {"mtime": "2026-01-01T00:00:00.000Z", "uploadedAt": "2026-01-01T00:00:00.000Z"}
            self._json([{**row, **stamps, "xetHash": row.pop("oid")} for row in rows])

    def _json(self, document: Any, status: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        with suppress(OSError):  # the other side was killed
            self.end_headers()
            self.wfile.write(content)

    def _file(self, path: Path, headers: Mapping[str, str] | None = None) -> None:
        if self.faults.page:
            self._send(b"<html>please log in</html>", 200, {"Content-Type": "text/html"})
        elif not path.is_file():
            self._send_error(404, {"X-Error-Code": "EntryNotFound"})
        elif self.faults.redirect_to:
            self._send_error(302, {"Location": f"{self.faults.redirect_to}/{path.name}"})
        else:
            self._ranged(path.read_bytes(), headers or {})

    def _ranged(self, content: bytes, more: Mapping[str, str]) -> None:
        etag = f'"{hashlib.sha256(content).hexdigest()[:16]}-{self.faults.version}"'
        headers = {"ETag": etag, "Last-Modified": "Mon, 01 Jan 2026 00:00:00 GMT", **more}
        if self.faults.no_versions:
            headers = dict(more)
        if self.faults.status_of_get and self.command == "GET":
            self._send_error(self.faults.status_of_get)
            return
        if self.headers.get("If-Match", etag) != etag:
            self._send_error(412)
            return
        span = self.headers.get("Range", "").removeprefix("bytes=")
        if not span or self.faults.no_ranges:
            self._send(content, 200, headers)
            return
        first, _, last = span.partition("-")
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(len(content), int(last) + 1) if first and last else len(content)
        if start >= len(content):
            self._send_error(416)
            return
        if 0 < self.faults.fail_from <= start:
            self._send_error(self.faults.status)
            return
        total = len(content) + self.faults.longer_by
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
        self._send(content[start:stop], 206, headers)

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        faults = self.faults
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        no_length = faults.no_length or (faults.no_length_of_get and self.command == "GET")
        if not (no_length or faults.endless):
            self.send_header("Content-Length", str(len(content) + faults.longer_by))
        cut = 0 < faults.cut_after < len(content)
        if no_length or faults.endless or faults.longer_by or cut:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(content[: faults.cut_after] if cut else content)
                while faults.endless:
                    self.wfile.write(b"x" * 65536)

    def _send_error(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.faults.retry_after_s:
            self.send_header("Retry-After", str(self.faults.retry_after_s))
        if self.faults.retry_date_in_s:
            until = formatdate(time.time() + self.faults.retry_date_in_s, usegmt=True)
            self.send_header("Retry-After", until)
        self.send_header("Content-Length", "0")
        self.end_headers()


def entry(path: Path, repository: Path) -> dict[str, Any]:
    """Entry of the hub's list of files."""
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40}
    content = path.read_bytes()
    size = len(content)
    oid = hashlib.sha1(f"blob {size}\0".encode() + content, usedforsecurity=False).hexdigest()
    row = {"type": "file", "path": name, "oid": oid, "size": size}
    if not is_large(name, size):
        return row
    digest = hashlib.sha256(content).hexdigest()
    return {**row, "lfs": {"oid": digest, "size": size, "pointerSize": 130}}


Answer = Callable[[str], Iterator[bytes]]  # of the first line of a request


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Server that sends the parts of an answer, one answer per connection; yields its location."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                first = self.rfile.readline().decode("latin-1")
                while self.rfile.readline().strip():
                    pass
                for part in answer(first):
                    self.wfile.write(part)

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def response(status: str, headers: dict[str, str], body: bytes = b"") -> bytes:
    """Answer with these headers, after which the server closes the connection."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body
