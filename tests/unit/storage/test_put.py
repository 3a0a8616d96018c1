"""A put that timed out must not replace a newer object, whatever the server keeps."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tests.builders.s3_server import CREDENTIALS
from tests.builders.web_server import Server
from vlatool.storage import retry, writer
from vlatool.storage.remote import Address, forget_connections


class Slow(BaseHTTPRequestHandler):
    """An S3 server that takes the content `slow` half a second to write, the first time."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, tuple[bytes, str]]
    keeps_conditions: bool
    delays: list[float]
    requests: list[str]

    def do_PUT(self) -> None:
        self.requests.append("PUT")
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if data.endswith(b"slow") and self.delays:
            time.sleep(self.delays.pop())
        current = self.objects.get(self.path, (b"", ""))[1]
        if self.headers.get("If-Match") and not current:
            return self._answer(404)
        is_refused = self.headers.get("If-Match", current) != current
        is_refused |= self.headers.get("If-None-Match") == "*" and bool(current)
        if is_refused and self.keeps_conditions:
            return self._answer(412)
        etag = f'"{len(self.objects)}{data.hex()}"'
        self.objects[self.path] = (data, etag)
        return self._answer(200, etag)

    def do_HEAD(self) -> None:
        self.requests.append("HEAD")
        data, etag = self.objects.get(self.path, (b"", ""))
        self._answer(200 if etag else 404, etag, len(data))

    def _answer(self, status: int, etag: str = "", size: int = 0) -> None:
        self.send_response(status)
        self.send_header("ETag", etag)
        self.send_header("Last-Modified", "Mon, 01 Jan 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's
        del format, args


@pytest.fixture(params=[True, False], ids=["conditions", "no conditions"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Slow]]:
    class Handler(Slow):
        objects: dict[str, tuple[bytes, str]] = {}  # noqa: RUF012 - of one test
        keeps_conditions: bool = request.param
        delays = [0.6]  # noqa: RUF012 - of one test
        requests: list[str] = []  # noqa: RUF012 - of one test

    running = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "20")
    monkeypatch.setattr(retry, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(writer, "_kept", dict[str, bool]())
    monkeypatch.setattr(writer, "_replaced", dict[Address, str]())
    forget_connections()
    yield Handler
    running.shutdown()
    running.server_close()


def test_a_put_that_timed_out_does_not_replace_a_newer_one(server: type[Slow]) -> None:
    address = Address("s3://slow-bucket", "latest.json")
    writer.put(address, b"old")

    writer.put(address, b"slow")
    writer.put(address, b"new")
    time.sleep(0.8)

    assert [data for data, _ in server.objects.values()] == [b"new"]


def test_an_object_that_is_replaced_again_and_again_takes_one_request(server: type[Slow]) -> None:
    address = Address("s3://slow-bucket", "latest.json")
    for content in (b"1", b"2"):
        writer.put(address, content)
    server.requests.clear()

    for content in (b"3", b"4"):
        writer.put(address, content)

    assert server.requests == ["PUT", "PUT"]
    assert [data for data, _ in server.objects.values()] == [b"4"]


def test_an_object_that_was_replaced_and_removed_is_written_again(server: type[Slow]) -> None:
    address = Address("s3://slow-bucket", "latest.json")
    for content in (b"1", b"2"):
        writer.put(address, content)
    server.objects.clear()

    writer.put(address, b"3")

    assert [data for data, _ in server.objects.values()] == [b"3"]
