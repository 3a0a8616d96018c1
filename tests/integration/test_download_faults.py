"""Downloads from servers with faults: each is survived, or ends with an error of its own."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.forward_proxy import with_tls
from tests.builders.recording import Recorder
from tests.builders.web_server import TOKEN, WebServer, web_server
from vlatool.cli.app import run
from vlatool.errors import DataError, StorageError, VlatoolError
from vlatool.events import NULL, Progress
from vlatool.storage import http, transfer, web_requests
from vlatool.workflows.download import DownloadConfig, download

CHUNK = 256 * 1024
BIG = np.random.default_rng(0).bytes(10 * CHUNK + 123)

Fault = Callable[[WebServer], None]


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK", CHUNK)
    monkeypatch.setattr(web_requests, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "20")
    monkeypatch.setenv("VLATOOL_STORAGE_CLOCK_SPEED", "60")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    folder = tmp_path / "site/lab/set"
    (folder / "meta").mkdir(parents=True)
    (folder / "big.bin").write_bytes(BIG)
    for index in range(20):
        (folder / f"meta/{index}.json").write_text(f'{{"index": {index}}}')
    with web_server(tmp_path / "site") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.fixture
def other(tmp_path: Path) -> Iterator[WebServer]:
    """Another host, with the same file."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/big.bin").write_bytes(BIG)
    with web_server(tmp_path / "other") as running:
        yield running


def get(server: WebServer, output: Path, name: str = "big.bin", reporter: Any = NULL) -> None:
    source = f"{server.endpoint}/lab/set/{name}"
    download(DownloadConfig(source=source, output=str(output)), reporter=reporter)


def fault(**values: object) -> Fault:
    def set_faults(server: WebServer) -> None:
        for name, value in values.items():
            setattr(server.faults, name, value)

    return set_faults


def changes_once(server: WebServer) -> None:
    def change() -> None:
        while len(server.faults.requests) < 5:
            time.sleep(0.001)
        server.faults.version += 1

    threading.Thread(target=change, daemon=True).start()


SURVIVED = {
    "cut": fault(cut_after=100_000),
    "500": fault(fail_next=3, status=500),
    "429": fault(fail_next=2, status=429, retry_after_s=1),
    "429 until a date": fault(fail_next=2, status=429, retry_date_in_s=3),
    "no ranges": fault(no_ranges=True),
    "no HEAD": fault(no_head=True),
    "no length": fault(no_length=True),
    "another version once": changes_once,
    "a stall": fault(stall_next=1),
    "endless ranges": fault(endless=True),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_fault_is_survived(server: WebServer, tmp_path: Path, name: str) -> None:
    SURVIVED[name](server)

    get(server, tmp_path / "out")

    assert (tmp_path / "out/big.bin").read_bytes() == BIG


FATAL: dict[str, tuple[Fault, type[VlatoolError], str]] = {
    "503": (fault(fail_next=10_000, status=503), StorageError, "storage.unreachable"),
    "too long": (fault(longer_by=7), StorageError, "storage.changed"),
    "too short": (fault(longer_by=-7), StorageError, "storage.unreachable"),
    "other versions": (fault(changes_every=2), StorageError, "storage.changed"),
    "a web page": (fault(page=True), DataError, "data.web_page"),
    "endless": (fault(endless=True, no_ranges=True), StorageError, "storage.unsupported"),
    "to ftp": (fault(redirect_to="ftp://127.0.0.1"), StorageError, "storage.refused"),
    "to a file": (fault(redirect_to="file:///etc"), StorageError, "storage.refused"),
    "nowhere": (fault(redirect_to="http://[bad"), StorageError, "storage.refused"),
    "nothing behind HEAD": (fault(status_of_get=404), DataError, "data.unreadable"),
    "no bytes behind HEAD": (fault(status_of_get=416), StorageError, "storage.changed"),
    "no bytes and no version": (
        fault(status_of_get=416, no_versions=True),
        StorageError,
        "storage.changed",
    ),
    "cut without a length": (
        fault(no_length_of_get=True, no_ranges=True, cut_after=99),
        StorageError,
        "storage.changed",
    ),
}


@pytest.mark.parametrize("name", FATAL)
def test_fault_is_named(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(http, "LARGEST_WHOLE", 2**20)
    set_faults, error, code = FATAL[name]
    set_faults(server)

    with pytest.raises(error) as caught:
        get(server, tmp_path / "out")

    codes = [row["code"] for row in caught.value.details.get("failures", ())]
    assert (codes or [caught.value.code]) == [code]
    assert not (tmp_path / "out/big.bin").exists()


@pytest.mark.parametrize(
    ("set_faults", "code"),
    [
        (fault(status_of_get=404), "data.unreadable"),
        (fault(status_of_get=416), "storage.changed"),
        (fault(no_length_of_get=True, no_ranges=True, cut_after=5), "storage.changed"),
    ],
)
def test_small_file_that_does_not_come_whole_is_named(
    server: WebServer, tmp_path: Path, set_faults: Fault, code: str
) -> None:
    set_faults(server)

    with pytest.raises((DataError, StorageError)) as caught:
        get(server, tmp_path / "out", "meta/1.json")

    (row,) = caught.value.details["failures"]
    assert row["code"] == code
    assert not (tmp_path / "out/1.json").exists()


def test_shard_that_only_head_finds_is_no_bug(
    server: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (server.folder / "lab/x.tar").write_bytes(bytes(10240))
    server.faults.status_of_get = 404

    assert run(["-q", "verify", f"{server.endpoint}/lab/x.tar", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "data.no_source"


def test_missing_sizes_and_ranges_are_reported(server: WebServer, tmp_path: Path) -> None:
    server.faults.no_length = server.faults.no_ranges = True
    reporter = Recorder()

    get(server, tmp_path / "out", "meta/1.json", reporter)

    assert [code for code, _ in reporter.warnings] == ["unknown_size"]
    server.faults.no_length = False
    get(server, tmp_path / "big", reporter=reporter)
    assert [note for note in reporter.notes if "no byte ranges" in note]


def test_server_that_redirects_to_itself_is_named(server: WebServer, tmp_path: Path) -> None:
    server.faults.redirect_to = f"{server.endpoint}/lab/set"
    with pytest.raises(StorageError, match="more than 5 times"):
        get(server, tmp_path / "out")


def test_page_in_place_of_a_manifest_is_named(server: WebServer, tmp_path: Path) -> None:
    server.faults.page = True
    source = f"{server.endpoint}/task/manifest.jsonl"
    with fails("data.web_page"):
        download(DownloadConfig(source=source, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_other_host_gets_no_token(
    server: WebServer, other: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.faults.redirect_to = other.endpoint
    source = "hf://datasets/lab/set/big.bin"

    download(DownloadConfig(source=source, output=str(tmp_path / "out")))

    assert (tmp_path / "out/big.bin").read_bytes() == BIG
    assert any(server.faults.tokens)
    assert not any(other.faults.tokens)


def test_dead_server_ends_a_download_after_a_few_files(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "2")

    class DiesAfterListing(Recorder):
        def progress(self, name: str, total: int | None, unit: str) -> Progress:
            server.faults.fail_next, server.faults.status = 10_000, 503
            return super().progress(name, total, unit)

    source, output = "hf://datasets/lab/set", str(tmp_path / "out")
    config = DownloadConfig(source=source, output=output, workers=1, include=["meta/*"])
    reporter = DiesAfterListing()
    with pytest.raises(StorageError) as caught:
        download(config, reporter=reporter)

    codes = [row["code"] for row in caught.value.details["failures"]]
    assert sorted(codes) == ["storage.not_requested"] * 17 + ["storage.unreachable"] * 3
    assert len(reporter.warnings) == 3
    assert reporter.last_bar.fields["in flight"] == "0"
    server.faults.fail_next = 0
    download(config)
    assert len(list((tmp_path / "out/meta").iterdir())) == 20


def test_redirect_from_https_to_http_is_an_error(
    server: WebServer, other: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults.redirect_to = other.endpoint
    with with_tls(server.endpoint, tmp_path, "localhost") as (endpoint, authority):
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        source = f"{endpoint}/lab/set/big.bin"
        with pytest.raises(StorageError, match="from https to http"):
            download(DownloadConfig(source=source, output=str(tmp_path / "out")))
    assert not other.faults.requests
