"""The contract of `Remote`: what every scheme does, with the same code in front of it."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.builders.azure_server import azure_server
from tests.builders.gcs_server import gcs_server
from tests.builders.s3_server import CREDENTIALS, Faults, S3Server, faulty_proxy
from tests.builders.web_server import web_server
from vlatool.errors import UsageError
from vlatool.jobs.record import output_lock
from vlatool.storage.atomic import open_atomic, remove_tree, write_bytes
from vlatool.storage.byte_ranges import ByteRange, open_file, open_tail, read_byte_range
from vlatool.storage.remote import (
    Address,
    ConditionFailed,
    RangeNotSatisfiable,
    call,
    connect,
    find_object,
)
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import SPEED_VARIABLE
from vlatool.storage.tree import files_below
from vlatool.storage.uri import location

MIB = 2**20
BIG = np.random.default_rng(0).bytes(9 * MIB)
FILES = {
    "big.bin": BIG,
    "empty": b"",
    "a.tar": b"a",
    "b/c.tar": b"c",
    "b/d/e.json": b"{}",
    "some folder/text #1?": "\u00e4\nb\n".encode(),
}
WRITTEN = ["s3", "gs", "az", "memory"]
LISTED = [*WRITTEN, "hf"]
READ = [*LISTED, "https"]
WITH_FAULTS = ["s3", "gs", "az", "hf", "https"]


@dataclass
class Store:
    """Copy of `FILES` on a scheme, and the faults of the way there."""

    root: Path
    faults: Faults | None


@pytest.fixture
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """`FILES` on the scheme of the parameter; a proxy with faults is on the way, if it has one."""
    scheme: str = request.param
    if scheme == "memory":
        root = RemotePath(f"{request.getfixturevalue('memory')}/data")
        _fill(root)
        yield Store(root, None)
        return
    variables: dict[str, Callable[[str], dict[str, str]]] = {
        "s3": lambda url: {**CREDENTIALS, "AWS_ENDPOINT_URL": url},
        "gs": lambda url: {"STORAGE_EMULATOR_HOST": url},
        "hf": lambda url: {"HF_ENDPOINT": url, "HF_TOKEN_PATH": os.devnull},
        "https": lambda _: {},
    }
    if scheme in ("hf", "https"):
        folder = tmp_path / "site/lab/data"
        _fill(folder)
        running = web_server(tmp_path / "site")
    elif scheme == "s3":
        server: S3Server = request.getfixturevalue("s3")
        running = faulty_proxy(server.endpoint)
    else:
        running = {"gs": gcs_server, "az": azure_server}[scheme]()
    with running as upstream, faulty_proxy(upstream.endpoint) as proxy:
        roots: dict[str, Callable[[], str]] = {
            "s3": lambda: f"s3://{request.getfixturevalue('s3_bucket')}",
            "gs": lambda: f"gs://{upstream.bucket()}",
            "az": lambda: upstream.container(),
            "hf": lambda: "hf://datasets/lab",
            "https": lambda: f"{proxy.endpoint}/lab",
        }
        root = RemotePath(f"{roots[scheme]()}/data")
        settings = variables.get(scheme, getattr(upstream, "env", dict))
        for name, value in settings(proxy.endpoint).items():
            monkeypatch.setenv(name, value)
        if scheme in WRITTEN:
            _fill(root)
        proxy.faults.clear()
        monkeypatch.setenv(SPEED_VARIABLE, "20")
        yield Store(root, proxy.faults)


def _fill(root: Path) -> None:
    for name, content in FILES.items():
        if not isinstance(root, RemotePath):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(root / name, content)


read = pytest.mark.parametrize("store", READ, indirect=True)
listed = pytest.mark.parametrize("store", LISTED, indirect=True)
written = pytest.mark.parametrize("store", WRITTEN, indirect=True)
faulty = pytest.mark.parametrize("store", WITH_FAULTS, indirect=True)


@read
def test_files_are_read_whole_and_in_ranges(store: Store) -> None:
    for name, content in FILES.items():
        path = store.root / name
        assert path.is_file()
        assert path.stat().st_size == len(content)
        assert path.read_bytes() == content
        with path.open("rb") as file:
            file.seek(max(0, len(content) - 7))
            assert file.read() == content[-7:]
            assert file.read(1) == b""
        with open_tail(path) as file:
            assert file.read() == content
    big = store.root / "big.bin"
    for start, stop in [
        (5, 10),
        (7, len(BIG)),
        (len(BIG) - 3, len(BIG) + 9),
        (len(BIG) + 1, 2**40),
    ]:
        assert read_byte_range(ByteRange(big, start, stop)) == BIG[start:stop]
    with open_file(big) as file:
        assert b"".join(iter(lambda: file.read(300_000), b"")) == BIG


@read
def test_missing_file_does_not_exist(store: Store) -> None:
    path = store.root / "missing"
    assert not path.is_file()
    for method in (path.read_bytes, path.open, path.stat):
        with pytest.raises(FileNotFoundError) as caught:
            method()
        assert caught.value.filename == str(path)


@read
def test_one_attempt_of_get_keeps_the_contract(store: Store) -> None:
    address = location(store.root / "big.bin").address
    remote = connect(address.root)
    tail = remote.get(address.key, -5, 0, "")
    assert (tail.start + 5, tail.info.size) == (len(BIG), len(BIG))
    tail.close()
    with pytest.raises((ConditionFailed, RangeNotSatisfiable)):
        call(address, lambda remote: remote.get(address.key, len(BIG), len(BIG) + 5, ""))
    etag = remote.get(address.key, 0, 1, "").info.etag
    body = remote.get(address.key, 2, 9, etag)
    assert b"".join(iter(lambda: body.read(3), b"")) == BIG[2:9]
    another = remote.head(address.key.replace("big.bin", "a.tar")).etag
    with pytest.raises(ConditionFailed):
        call(address, lambda remote: remote.get(address.key, 0, 5, another))


@listed
def test_files_and_folders_are_found_as_pathlib_would(store: Store, tmp_path: Path) -> None:
    def names(paths: Iterable[Path], root: Path) -> list[str]:
        return sorted(path.relative_to(root).as_posix() for path in paths)

    here, there = tmp_path / "here", store.root
    _fill(here)
    kinds = {path.name: path.is_dir() for path in there.iterdir()}
    assert kinds == {path.name: path.is_dir() for path in here.iterdir()}
    for pattern in ("*", "d"):
        assert names(there.rglob(pattern), there) == names(here.rglob(pattern), here)
    for pattern in ("*", "*.tar", "*/*.tar", "b/d", "*/*/*.json", "b/**/*.json"):
        assert names(there.glob(pattern), there) == names(here.glob(pattern), here)
    sizes = {name: len(content) for name, content in FILES.items()}
    assert {file.name: file.bytes for file in files_below(there)} == sizes
    assert not (there / "missing").exists()
    with pytest.raises(FileNotFoundError):
        list((there / "missing").iterdir())


@pytest.mark.parametrize("store", [name for name in LISTED if name != "memory"], indirect=True)
def test_a_listing_in_pages_is_complete(store: Store) -> None:
    root = location(store.root)
    keys: list[str] = []
    token = ""
    while True:
        page = call(
            root.address,
            lambda remote, token=token: remote.list_page(root.address.prefix, "", token, 2),
        )
        keys += [key for key, _ in page.objects]
        token = page.token
        if not token:
            break
    assert sorted(keys) == sorted(f"{root.address.prefix}{name}" for name in FILES)


@written
def test_put_keeps_its_conditions(store: Store) -> None:
    address = location(store.root / "new").address
    remote = connect(address.root)

    def put(data: bytes, etag: str | None) -> str:
        return call(address, lambda remote: remote.put(address.key, data, etag))

    first = put(b"1", "")
    with pytest.raises(ConditionFailed):
        put(b"2", "")
    second = put(b"3", first)
    with pytest.raises(ConditionFailed):
        put(b"4", first)
    assert remote.head(address.key).etag == second
    put(b"5", None)
    assert (store.root / "new").read_bytes() == b"5"


@written
def test_an_upload_in_parts_appears_when_it_is_complete(store: Store) -> None:
    path = store.root / "parts.bin"
    with open_atomic(path) as file:
        for start in range(0, len(BIG), 500_000):
            file.write(BIG[start : start + 500_000])
        assert not path.exists()
    assert path.read_bytes() == BIG

    def fail() -> None:
        with open_atomic(store.root / "none") as file:
            file.write(BIG)
            raise FileNotFoundError("an input")

    with pytest.raises(FileNotFoundError):
        fail()
    assert not (store.root / "none").exists()


@written
def test_objects_are_removed_with_all_below_but_no_neighbors(store: Store) -> None:
    write_bytes(store.root.parent / "data2/x", b"beside")
    (store.root / "a.tar").unlink()
    remove_tree(store.root / "b")
    assert sorted(file.name for file in files_below(store.root)) == sorted(
        name for name in FILES if name != "a.tar" and not name.startswith("b/")
    )
    assert (store.root.parent / "data2/x").exists()


@written
def test_a_second_run_does_not_get_the_lock(store: Store) -> None:
    with output_lock(store.root, "vlatool first"):
        with pytest.raises(UsageError) as caught, output_lock(store.root, "vlatool second"):
            pytest.fail("both runs hold the lock")
        assert caught.value.code == "usage.output_in_use"
    with output_lock(store.root, "vlatool third"):
        pass


@faulty
def test_failed_requests_cut_bodies_and_an_outage_are_survived(store: Store) -> None:
    faults = store.faults
    assert faults is not None
    faults.fail_every, faults.status = 3, 503
    assert (store.root / "big.bin").read_bytes() == BIG
    faults.clear()
    faults.cut_after, faults.cuts = MIB, 3
    assert (store.root / "big.bin").read_bytes() == BIG
    faults.clear()
    faults.down_for(0.3)
    assert (store.root / "big.bin").read_bytes() == BIG


@pytest.mark.parametrize("store", [name for name in WRITTEN if name != "memory"], indirect=True)
def test_a_removal_repeats_the_requests_that_failed(store: Store) -> None:
    faults = store.faults
    assert faults is not None
    faults.fail_every, faults.status = 3, 503
    remove_tree(store.root)
    faults.clear()
    assert not store.root.exists()
    assert find_object(Address(location(store.root).address.root, "data/big.bin")) is None
