"""Generated headers and answers of web servers, hubs and buckets: each is read or an error."""

import itertools
import json
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from tests.builders.s3_server import CREDENTIALS
from tests.builders.web_server import COMMIT, response, serving
from vlatool.errors import DataError, EnvironmentProblem, StorageError
from vlatool.storage import http, retry
from vlatool.storage.remote_path import RemotePath

COUNT = 40
NUMBERS = itertools.count()
EXPECTED = (StorageError, DataError, EnvironmentProblem, FileNotFoundError)
# A header value that is valid for the 8 bytes `12345678`, and values of other kinds.
HEADERS = {
    "Content-Length": "8",
    "Content-Range": "bytes 0-7/8",
    "Last-Modified": "Mon, 01 Jan 2026 00:00:00 GMT",
    "Date": "Mon, 01 Jan 2026 00:00:00 GMT",
    "Location": "http://127.0.0.1:9/other?x=%20#y",
    "ETag": '"0123456789abcdef"',
    "Retry-After": "Mon, 01 Jan 2026 00:00:00 GMT",
    "Content-Encoding": "gzip, deflate",
    "Transfer-Encoding": "chunked",
    "Content-Type": "text/html; charset=utf-8",
    "Link": '<http://127.0.0.1:9/?cursor=1>; rel="next"',
}
PIECES = ["-1", "9" * 30, "0x8", "1e9", " ", "\t", ",", ";", "%", "%%00", "\x01", "\x7f"]
PIECES += ["\xff", "\xb2", "\xe2\x80\xae", "bytes", "*", "/", "//", "://", "[", "]", "@"]
PIECES += [":99999", "\\", '"', '"', "<", ">", "..", "None", "nan", "inf", "gzip"]
PIECES += ["identity", "\r\n ", "x" * 3_000]


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "0")
    monkeypatch.setattr(retry, "READ_TIMEOUT_S", 0.3)


def mutated(text: str, rng: random.Random) -> str:
    """The text with some pieces inserted, repeated, cut out or replaced."""
    for _ in range(rng.randint(1, 3)):
        start, stop = sorted(rng.choices(range(len(text) + 1), k=2))
        piece = rng.choice([*PIECES, text[start:stop] * rng.randint(0, 3), ""])
        text = text[:start] + piece + text[rng.choice([start, stop]) :]
    return text


def check(read: Callable[[], object], value: object) -> None:
    """Calls a function; no value may be a bug, take long or fill the memory."""
    started, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read()
    except EXPECTED:
        pass
    except Exception as error:
        raise AssertionError(ascii(value)[:300]) from error
    assert time.monotonic() - started < 10, ascii(value)[:300]
    added_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory  # KiB
    assert added_kib < 2**20, ascii(value)[:300]


@pytest.mark.parametrize("name", HEADERS)
def test_generated_header_is_read_or_an_error(name: str) -> None:
    rng = random.Random(f"22 {name}")
    status = {"Location": "302 Found", "Retry-After": "503 Busy"}.get(name, "206 Partial Content")
    value = ""

    def answer(first: str) -> Iterator[bytes]:
        headers = {"Content-Length": "8", "Content-Range": "bytes 0-7/8", name: value}
        yield response(status, headers, b"" if first.startswith("HEAD") else b"12345678")

    with serving(answer) as endpoint:
        for _ in range(COUNT):
            value = mutated(HEADERS[name], rng)
            path = RemotePath(f"{endpoint}/file-{next(NUMBERS)}.bin")
            check(path.stat, value)
            check(path.read_bytes, value)


# headers and answers of a table


TEXTS = ["", "x", "-1", "1, 2", "\xb2", "9" * 5_000, "1e3", "0x10", "\u00bd", "nan", "\t", "1 2"]
DATES = ["0", "Mon, 99 Jan 2026 00:00:00 GMT", "Mon, 01 Jan 99999 00:00:00 GMT", "Mon,", ",", ", ,"]
DATES += ["Mon, 01 Jan 0001 00:00:00 +9999", "Mon, 01 Jan 2026 99:99:99 -0000", "1 2 3 4 5 6 7"]
RANGES = ["bytes", "bytes */8", "bytes 0-7/*", "bytes 7-0/8", "bytes 0-9/8", "bytes -1-7/8"]
RANGES += ["bytes 0-7/\xb2", "bytes \xb2-7/8", f"bytes 0-7/{'9' * 5_000}", "items 0-7/8"]
LOCATIONS = ["http://[", "http://a:99999/", "http://a:b/", "ftp://a/b", "file:///etc/passwd"]
LOCATIONS += ["http://", "http:// /", "//", "http://\xff/", "http://a\x01/", "http://.../"]
LOCATIONS += ["?" * 3, "http://a b/"]


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


FILE = {"type": "file", "path": "a/b.bin", "size": 8, "oid": "0" * 40}
LARGE = {**FILE, "lfs": {"oid": "1" * 64, "size": 8, "pointerSize": 100}}
VALUES = [None, True, -1, 10**30, 1.5, 1e999, "", "x", "../x", "/x", "a\0b", "\ud800", [], {}, [[]]]


def mutated_tree(tree: object, rng: random.Random) -> object:
    """Nested JSON with one value replaced, added or left out."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(list(tree))
        if rng.random() < 0.2:
            return {other: tree[other] for other in tree if other != key}
        return {**tree, key: mutated_tree(tree[key], rng)}
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        position = rng.randrange(len(tree))
        return [*tree[:position], mutated_tree(tree[position], rng), *tree[position + 1 :]]
    return rng.choice(VALUES)


@pytest.mark.parametrize("place", ["revision", "tree"])
def test_generated_answer_of_a_hub_is_read_or_an_error(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(f"22 {place}")
    trees = {"revision": {"id": "lab/x", "sha": COMMIT, "siblings": []}, "tree": [FILE, LARGE]}
    content = b""

    def answer(first: str) -> Iterator[bytes]:
        is_tree = "/tree/" in first
        yield response("200 OK", {}, content if is_tree == (place == "tree") else whole)

    whole = json.dumps(trees["revision"] if place == "tree" else trees["tree"]).encode()
    with serving(answer) as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        for _ in range(COUNT):
            text = json.dumps(mutated_tree(trees[place], rng))
            content = (mutated(text, rng) if rng.random() < 0.5 else text).encode("latin-1")
            root = RemotePath(f"hf://datasets/lab/x{next(NUMBERS)}")
            check(lambda root=root: [path.stat() for path in root.rglob("*")], content)


def drops() -> Iterator[bytes]:
    for _ in range(100):
        time.sleep(0.05)
        yield b"x"


LISTING = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>lab</Name><Prefix>x/</Prefix>
<KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>
<Contents><Key>x/a.bin</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>
<ETag>"0"</ETag><Size>8</Size></Contents>
<CommonPrefixes><Prefix>x/b/</Prefix></CommonPrefixes></ListBucketResult>"""
TAGS = ["Key", "LastModified", "ETag", "Size", "IsTruncated", "Prefix", "Contents", "KeyCount"]


@pytest.fixture(params=["s3", "gs"])
def bucket(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], RemotePath]:
    """Function that returns a folder of a bucket at an endpoint."""
    variable = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST"}[request.param]

    def folder(endpoint: str) -> RemotePath:
        monkeypatch.setenv(variable, endpoint)
        return RemotePath(f"{request.param}://lab/x")

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return folder


def mutated_listing(rng: random.Random) -> str:
    """The listing with the content of an element replaced, or the element left out."""
    tag = rng.choice(TAGS)
    start, stop = LISTING.index(f"<{tag}>"), LISTING.index(f"</{tag}>")
    value = rng.choice(
        ["", "x", "-1", "9" * 30, "1.5", "true", "&#0;", "&lt;", "\xff", "x/", "/", ".."]
    )
    if rng.random() < 0.2:
        return LISTING[:start] + LISTING[stop + len(tag) + 3 :]
    return f"{LISTING[:start]}<{tag}>{value}{LISTING[stop:]}"


OBJECT = {"name": "x/a.bin", "size": "8", "updated": "2026-01-01T00:00:00.000Z"}
OBJECT |= {"generation": "1", "md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="}
PAGE = {"items": [OBJECT], "prefixes": ["x/b/"]}


def mutated_page(rng: random.Random) -> str:
    return json.dumps(mutated_tree(PAGE, rng))


@pytest.mark.parametrize(
    ("bucket", "listing"), [("s3", mutated_listing), ("gs", mutated_page)], indirect=["bucket"]
)
def test_generated_listing_of_a_bucket_is_read_or_an_error(
    bucket: Callable[[str], RemotePath], listing: Callable[[random.Random], str]
) -> None:
    rng = random.Random("22 listing")
    content = b""

    def answer(first: str) -> Iterator[bytes]:
        del first
        yield response("200 OK", {"Content-Length": str(len(content))}, content)

    with serving(answer) as endpoint:
        folder = bucket(endpoint)
        for _ in range(COUNT):
            text = listing(rng)
            content = (mutated(text, rng) if rng.random() < 0.3 else text).encode("latin-1")
            check(lambda: list(folder.iterdir()), content)
            check(lambda: list(folder.rglob("*")), content)


@pytest.mark.parametrize("name", ["Content-Length", "Last-Modified", "ETag", "Content-Range"])
def test_generated_header_of_a_bucket_is_read_or_an_error(
    name: str, bucket: Callable[[str], RemotePath]
) -> None:
    rng = random.Random(f"22 s3 {name}")
    value = ""

    def answer(first: str) -> Iterator[bytes]:
        headers = {
            "Content-Length": "8",
            "Content-Range": "bytes 0-7/8",
            "ETag": '"0"',
            name: value,
        }
        yield response("206 Partial", headers, b"" if first.startswith("HEAD") else b"12345678")

    with serving(answer) as endpoint:
        path = bucket(endpoint) / "a.bin"
        for _ in range(COUNT):
            value = mutated(HEADERS[name], rng)
            check(path.stat, value)
            check(path.read_bytes, value)


XML_PAGE = LISTING.replace(
    "<IsTruncated>false", "<NextContinuationToken>t</NextContinuationToken><IsTruncated>true"
)


@pytest.mark.parametrize(
    ("bucket", "page"),
    [("s3", XML_PAGE), ("gs", json.dumps({**PAGE, "nextPageToken": "t"}))],
    indirect=["bucket"],
    ids=["s3", "gs"],
)
def test_pages_of_a_bucket_without_an_end_are_an_error(
    bucket: Callable[[str], RemotePath], page: str
) -> None:

    def answer(first: str) -> Iterator[bytes]:
        del first
        yield response("200 OK", {}, page.encode())

    with serving(answer) as endpoint, pytest.raises(StorageError) as caught:
        list(bucket(endpoint).iterdir())

    assert caught.value.code == "storage.refused"


@pytest.mark.parametrize("hello", [b"", b"\x16\x03\x03\x40\x00"])
def test_tls_handshake_without_an_end_takes_a_limited_time(
    hello: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "CONNECT_TIMEOUT_S", 0.3)

    def answer(first: str) -> Iterator[bytes]:
        del first
        yield hello
        yield from drops()

    with serving(answer) as endpoint:
        url = endpoint.replace("http://", "https://")
        started = time.monotonic()
        with pytest.raises(StorageError):
            RemotePath(f"{url}/file.bin").read_bytes()
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "start",
    [
        "HTTP/1.1 404 Missing\r\n\r\n",
        "HTTP/1.1 500 Error\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: /other\r\n\r\n",
        "HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-999999/1000000\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=ascii,
)
@pytest.mark.parametrize(
    "body", [drops, lambda: itertools.repeat(b"x" * 4096)], ids=["drops", "endless"]
)
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


JSON = ["[]", "{}", "null", "1", '"x"', "[[]]", "[null]", '{"sha": null}']
JSON += ['{"sha": "../x"}', "[{}]", "<html>please log in</html>", "", "{", "\xff"]
JSON += ["[" * 10_000, "9" * 5_000, '"\\ud800"']
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
