"""Web servers and hubs that answer with anything."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.builders.web_server import response, serving
from vlatool.errors import StorageError
from vlatool.storage import http, hub, web_requests
from vlatool.storage.remote_path import RemotePath

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "0")
    monkeypatch.setattr(web_requests, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(web_requests, "_ERROR_TIMEOUT_S", 0.1)


TEXTS = ["", "x", "-1", "1, 2", "\xb2", "9" * 5_000, "1e3", "0x10", "\u00bd", "nan", "\t", "1 2"]
DATES = ["0", "Mon, 99 Jan 2026 00:00:00 GMT", "Mon, 01 Jan 99999 00:00:00 GMT", "Mon,", ",", ", ,"]
DATES += ["Mon, 01 Jan 0001 00:00:00 +9999", "Mon, 01 Jan 2026 99:99:99 -0000", "1 2 3 4 5 6 7"]
RANGES = ["bytes", "bytes */8", "bytes 0-7/*", "bytes 7-0/8", "bytes 0-9/8", "bytes -1-7/8"]
RANGES += ["bytes 0-7/\xb2", "bytes \xb2-7/8", f"bytes 0-7/{'9' * 5_000}", "items 0-7/8"]
LOCATIONS = [
    "http://[",
    "http://a:99999/",
    "http://a:b/",
    "ftp://a/b",
    "file:///etc/passwd",
    "http://",
]
LOCATIONS += [
    "http:// /",
    "//",
    "http://\xff/",
    "http://a\x01/",
    "http://.../",
    "?" * 3,
    "http://a b/",
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *itertools.product(["Content-Length"], TEXTS),
        *itertools.product(["Last-Modified", "Date"], [*TEXTS, *DATES]),
        *itertools.product(["Content-Range"], [*TEXTS, *RANGES]),
        *itertools.product(["ETag"], ['"\x01"', '"\xff"', '"a\r\n b"', '"']),
        *itertools.product(["Location"], [*LOCATIONS, *TEXTS]),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_any_header_is_read_or_a_storage_error(name: str, text: str) -> None:
    def answer(first: str) -> Iterator[bytes]:
        status = "302 Found" if name == "Location" else "206 Partial Content"
        headers = {"Content-Length": "8", "Content-Range": "bytes 0-7/8", name: text}
        yield response(status, headers, b"" if first.startswith("HEAD") else b"12345678")

    with serving(answer) as endpoint:
        path = RemotePath(f"{endpoint}/file.bin")
        for read in (path.stat, path.read_bytes):
            with suppress(StorageError, FileNotFoundError):
                read()


ENDLESS = itertools.repeat(b"x" * 4096)


def drops() -> Iterator[bytes]:
    for _ in range(100):
        time.sleep(0.05)
        yield b"x"


@pytest.mark.parametrize(
    "start",
    [
        "HTTP/1.1 404 Missing\r\n\r\n",
        "HTTP/1.1 500 Error\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: /other\r\n\r\n",
        "HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-999999/1000000\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: ",
        "HT",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("body", [drops, lambda: ENDLESS], ids=["drops", "endless"])
def test_answer_without_an_end_takes_a_limited_time(
    start: str, body: Callable[[], Iterator[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LARGEST_WHOLE", 2**20)

    def answer(first: str) -> Iterator[bytes]:
        del first
        yield start.encode()
        yield from body()

    started = time.monotonic()
    with serving(answer) as endpoint, suppress(StorageError, FileNotFoundError):
        RemotePath(f"{endpoint}/file.bin").read_bytes()

    assert time.monotonic() - started < 4


JSON = [
    "[]",
    "{}",
    "null",
    "1",
    '"x"',
    "[[]]",
    "[null]",
    '{"sha": null}',
    '{"sha": "../x"}',
    "[{}]",
]
JSON += ["<html>please log in</html>", "", "{", "\xff", "[" * 10_000, "9" * 5_000, '"\\ud800"']
ENTRY = {"type": "file", "path": "a", "size": 1, "oid": "0"}
WRONG = {"path": [None, 1, "", "/etc/x", "../x", "a/../x", "a//b", "a\0"], "oid": [None, 1, []]}
WRONG |= {"size": [None, -1, 1.5, "1", True, []], "lfs": [{}, {"oid": 1}], "type": [None, 1]}
ROWS = [json.dumps([{**ENTRY, key: value}]) for key, values in WRONG.items() for value in values]


@pytest.mark.parametrize("place", ["revision", "tree"])
@pytest.mark.parametrize("document", [*JSON, *ROWS], ids=lambda text: ascii(text)[:50])
def test_any_answer_of_a_hub_is_read_or_a_storage_error(
    document: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(first: str) -> Iterator[bytes]:
        is_tree = "/tree/" in first
        content = document if is_tree == (place == "tree") else json.dumps({"sha": COMMIT})
        yield response("200 OK", {}, content.encode("latin-1"))

    with serving(answer) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with suppress(StorageError, FileNotFoundError):
            list(RemotePath("hf://datasets/lab/blocks").iterdir())


@pytest.mark.parametrize("target", ["", "?cursor={}", "http://127.0.0.2/x", "http://[", "ftp://x"])
def test_pages_of_a_hub_without_an_end_are_a_storage_error(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "_MAX_PAGES", 20)
    numbers = itertools.count()

    def answer(first: str) -> Iterator[bytes]:
        url = target.format(next(numbers)) or first.split()[1]
        link = {"Link": f'<{url}>; rel="next"'} if "/tree/" in first else {}
        yield response("200 OK", link, b"[]" if link else json.dumps({"sha": COMMIT}).encode())

    with serving(answer) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(StorageError) as caught:
            list(RemotePath("hf://datasets/lab/blocks").iterdir())

    assert caught.value.code == "storage.refused"
