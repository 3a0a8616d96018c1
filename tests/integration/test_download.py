"""Downloads from a web server, a hub and a bucket, with faults of the server."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.builders import web_server as web_server_builder
from tests.builders.errors import fails
from tests.builders.forward_proxy import with_tls
from tests.builders.lerobot import lerobot_dataset
from tests.builders.recording import Recorder
from tests.builders.s3_server import S3Server
from tests.builders.web_server import COMMIT, TOKEN, WebServer, web_server
from vlatool.cli.app import run
from vlatool.errors import DataError, PartialFailure, StorageError, VlatoolError
from vlatool.events import NULL, Progress, Reporter
from vlatool.inspection import verify_location
from vlatool.jobs.files import read_file_list
from vlatool.recordings.check import CheckOptions
from vlatool.storage import http, retry, transfer
from vlatool.storage.tree import files_below
from vlatool.workflows.download import DownloadConfig, download
from vlatool.workflows.download_files import DownloadResult

CHUNK = 256 * 1024
BIG = np.random.default_rng(0).bytes(10 * CHUNK + 123)
Fault = Callable[[WebServer], None]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK", CHUNK)
    monkeypatch.setattr(retry, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "20")
    monkeypatch.setenv("VLATOOL_STORAGE_CLOCK_SPEED", "60")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    folder = tmp_path / "site/lab/set"
    (folder / "meta").mkdir(parents=True)
    (folder / "big.bin").write_bytes(BIG)
    (folder / "empty").touch()
    for index in range(20):
        (folder / f"meta/{index}.json").write_text(f'{{"index": {index}}}')
    with web_server(tmp_path / "site") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def get(source: str, output: Path, reporter: Reporter = NULL, **keys: object) -> DownloadResult:
    values = {"source": source, "output": str(output), **keys}
    result = download(DownloadConfig.model_validate(values), reporter=reporter)
    assert isinstance(result, DownloadResult)
    return result


def get_set(output: Path, **keys: object) -> DownloadResult:
    return get("hf://datasets/lab/set", output, **keys)


def get_big(server: WebServer, output: Path) -> DownloadResult:
    return get(f"{server.endpoint}/lab/set/big.bin", output)


def content(folder: Path) -> dict[str, bytes]:
    return {
        file.name: (folder / file.name).read_bytes()
        for file in files_below(folder)
        if not file.name.startswith(".vlatool/")
    }


def expected(server: WebServer) -> dict[str, bytes]:
    return content(server.folder / "lab/set")


def test_hub_is_downloaded_with_digests_and_commit(server: WebServer, tmp_path: Path) -> None:
    output = tmp_path / "out"
    planned = get_set(output, dry_run=True)
    assert (planned.status, planned.files, output.exists()) == ("planned", 22, False)

    result = get_set(output)
    assert content(output) == expected(server)
    assert (result.files, result.bytes) == (22, sum(map(len, expected(server).values())))
    assert result.source.endswith(COMMIT)
    assert len(read_file_list(output) or ()) == 22
    assert not (output / ".vlatool/partial").exists()
    assert not list(verify_location(output, CheckOptions()).findings)

    server.faults.requests.clear()
    assert get_set(output).status == "already complete"
    assert not [path for _, path, _ in server.faults.requests if "/resolve/" in path]

    data = bytearray(BIG)
    data[5] ^= 1
    (output / "big.bin").write_bytes(data)
    findings = list(verify_location(output, CheckOptions()).findings)
    assert [finding.code for finding in findings] == ["output.digest_mismatch"]

    (output / "big.bin").unlink()
    (output / "meta/3.json").write_text('{"index": 4}')
    assert get_set(output).resumed == 20
    assert content(output) == expected(server)


def test_bucket_is_downloaded(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    bucket = s3.bucket()
    for name, data in {"raw/a/big.bin": BIG, "raw/b.txt": b"b", "other/c": b"c"}.items():
        s3.client().put_object(Bucket=bucket, Key=name, Body=data)

    get(f"s3://{bucket}/raw", tmp_path / "out")

    assert content(tmp_path / "out") == {"a/big.bin": BIG, "b.txt": b"b"}


def test_manifest_of_a_web_server_names_the_files(server: WebServer, tmp_path: Path) -> None:
    shards = server.folder / "task/shards"
    shards.mkdir(parents=True)
    (shards / "shard_000000.tar").write_bytes(b"tar")
    (shards / "stats.json").write_text("{}")
    (shards / "manifest.jsonl").write_text('{"shard": "shard_000000", "num_sequences": 1}')

    get(f"{server.endpoint}/task/shards", tmp_path / "out")

    assert content(tmp_path / "out") == content(shards)


def test_lerobot_set_of_a_web_server_names_the_files(server: WebServer, tmp_path: Path) -> None:
    cameras = {"observation.images.front": "video", "observation.images.wrist": "video"}
    root = lerobot_dataset(server.folder / "robot/set", cameras=cameras)
    shutil.rmtree(root / "videos/chunk-000/observation.images.wrist")

    get(f"{server.endpoint}/robot/set", tmp_path / "out")

    assert content(tmp_path / "out") == content(root)
    (root / "data/chunk-000/episode_000001.parquet").unlink()
    with pytest.raises(DataError, match=r"episode_000001\.parquet"):
        get(f"{server.endpoint}/robot/set", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_patterns_select_and_earlier_files_stay(server: WebServer, tmp_path: Path) -> None:
    get_set(tmp_path / "out", include=["meta/*"], leave_out=["*/1*.json"])
    first = set(content(tmp_path / "out"))
    get_set(tmp_path / "out", include=["empty"])

    assert first == {f"meta/{index}.json" for index in (0, *range(2, 10))}
    assert set(content(tmp_path / "out")) == {*first, "empty"}
    assert {entry.path for entry in read_file_list(tmp_path / "out") or ()} == {*first, "empty"}


def test_file_that_fails_does_not_end_the_others(server: WebServer, tmp_path: Path) -> None:
    get_set(tmp_path / "out", include=["empty"])
    (tmp_path / "out/meta/5.json").mkdir(parents=True)

    with pytest.raises(PartialFailure) as caught:
        get_set(tmp_path / "out")

    assert caught.value.details["failures"][0]["code"] == "data.bad_name"
    assert len(content(tmp_path / "out")) == len(expected(server)) - 1


def test_damaged_content_is_not_accepted(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = web_server_builder.entry
    monkeypatch.setattr(
        web_server_builder, "entry", lambda *args: {**entry(*args), "oid": "0" * 40}
    )
    with pytest.raises(DataError) as caught:
        get_set(tmp_path / "out", include=["meta/*"])
    assert caught.value.details["failures"][0]["code"] == "data.wrong_digest"
    assert content(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"source": "raw"}, "usage.bad_value"),
        ({"include": ["nothing*"]}, "usage.missing_file"),
        ({"source": "hf://datasets/lab/set/nothing"}, "data.no_source"),
        ({"source": "ftp://host/x"}, "usage.unsupported"),
        ({"output": "s3://lab/out"}, "usage.unsupported"),
    ],
)
def test_bad_input_is_refused(
    server: WebServer, tmp_path: Path, keys: dict[str, object], code: str
) -> None:
    values = {"source": "hf://datasets/lab/set", "output": str(tmp_path / "out"), **keys}
    with fails(code):
        download(DownloadConfig.model_validate(values))
    assert not (tmp_path / "out").exists()


def test_full_disk_and_other_files_are_found_before_the_first_byte(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(free=len(BIG) - 1)
    monkeypatch.setattr("vlatool.workflows.download_files.shutil.disk_usage", lambda path: full)
    with fails("storage.no_space"):
        get_big(server, tmp_path / "out")
    assert content(tmp_path / "out") == {}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine").touch()
    with fails("usage.output_exists"):
        get_set(tmp_path / "other")


@pytest.mark.parametrize("rate", ["0", "-1M", "fast", ""])
def test_rate_is_a_positive_number(rate: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        DownloadConfig(source="s3://a/b", output="o", limit_rate=rate)


def test_rate_is_limited(server: WebServer, tmp_path: Path) -> None:
    started = time.monotonic()
    get(f"{server.endpoint}/lab/set/big.bin", tmp_path / "out", limit_rate="5M")
    assert time.monotonic() - started > 0.9 * len(BIG) / 5e6


def test_killed_download_fetches_one_chunk_per_stream_again(
    server: WebServer, tmp_path: Path
) -> None:
    code = (
        "import sys; from vlatool.storage import transfer; transfer.CHUNK = int(sys.argv[1]);"
        "from vlatool.workflows.download import DownloadConfig, download;"
        "download(DownloadConfig(source=sys.argv[2], output=sys.argv[3], workers=2,"
        " limit_rate='2M'))"
    )
    source, output = f"{server.endpoint}/lab/set/big.bin", str(tmp_path / "out")
    command = [sys.executable, "-c", code, str(CHUNK), source, output]
    log = tmp_path / "out/.vlatool/partial"
    with subprocess.Popen(command) as process:
        while not any(b'"chunk": 4' in path.read_bytes() for path in log.glob("*.log")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    server.faults.requests.clear()

    get(source, tmp_path / "out")

    ranges = [span for method, _, span in server.faults.requests if method == "GET"]
    assert len(ranges) <= 11 - 5 + 2
    assert content(tmp_path / "out") == {"big.bin": BIG}


@pytest.mark.parametrize("has_versions", [True, False])
def test_partial_download_of_another_or_no_version_is_not_continued(
    server: WebServer, tmp_path: Path, has_versions: bool
) -> None:
    server.faults.no_versions = not has_versions
    server.faults.fail_from, server.faults.status = 5 * CHUNK, 403
    with pytest.raises(StorageError):
        get_big(server, tmp_path / "out")
    assert list((tmp_path / "out/.vlatool/partial").iterdir())
    server.faults.fail_from = 0
    changed = BIG[::-1]
    (server.folder / "lab/set/big.bin").write_bytes(changed)

    get_big(server, tmp_path / "out")

    assert content(tmp_path / "out") == {"big.bin": changed}


def listed(server: WebServer, *rows: dict[str, object]) -> str:
    """Location of an output of vlatool on a web server, with a file list of these rows."""
    (server.folder / "task/.vlatool").mkdir(parents=True)
    (server.folder / "task/a.bin").write_bytes(b"a" * 9)
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (server.folder / "task/.vlatool/files.jsonl").write_text(text)
    return f"{server.endpoint}/task"


LISTED = {"path": "a.bin", "bytes": 9, "sha256": hashlib.sha256(b"a" * 9).hexdigest()}


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([LISTED, LISTED], "data.broken"),
        ([LISTED, {**LISTED, "path": "./a.bin"}], "data.bad_name"),
        ([{**LISTED, "bytes": 10**400}], "data.broken"),
        ([{**LISTED, "bytes": -1}], "data.broken"),
        ([{**LISTED, "bytes": 2**62}], "storage.no_space"),
        ([{**LISTED, "sha256": "0" * 64}], "data.wrong_digest"),
    ],
)
def test_wrong_file_list_is_refused(
    server: WebServer, tmp_path: Path, rows: list[dict[str, object]], code: str
) -> None:
    with pytest.raises((DataError, StorageError)) as caught:
        get(listed(server, *rows), tmp_path / "out")

    codes = [row["code"] for row in caught.value.details.get("failures", ())]
    assert (codes or [caught.value.code]) == [code]
    assert not (tmp_path / "out/a.bin").exists()


# faults of the server


@pytest.fixture
def other(tmp_path: Path) -> Iterator[WebServer]:
    """Another host, with the same file."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/big.bin").write_bytes(BIG)
    with web_server(tmp_path / "other") as running:
        yield running


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

    get_big(server, tmp_path / "out")

    assert (tmp_path / "out/big.bin").read_bytes() == BIG


FATAL: dict[str, tuple[Fault, type[VlatoolError], str]] = {
    "503": (fault(fail_next=10_000, status=503), StorageError, "storage.unreachable"),
    "too long": (fault(longer_by=7), StorageError, "storage.changed"),
    "too short": (fault(longer_by=-7), StorageError, "storage.unreachable"),
    "other versions": (fault(changes_every=2), StorageError, "storage.changed"),
    "a web page": (fault(page=True), DataError, "data.broken"),
    "endless": (fault(endless=True, no_ranges=True), StorageError, "storage.unsupported"),
    "to ftp": (fault(redirect_to="ftp://127.0.0.1"), StorageError, "storage.refused"),
    "to a file": (fault(redirect_to="file:///etc"), StorageError, "storage.refused"),
    "nowhere": (fault(redirect_to="http://[bad"), StorageError, "storage.refused"),
    "nothing behind HEAD": (fault(status_of_get=404), DataError, "data.broken"),
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
        get_big(server, tmp_path / "out")

    codes = [row["code"] for row in caught.value.details.get("failures", ())]
    assert (codes or [caught.value.code]) == [code]
    assert not (tmp_path / "out/big.bin").exists()


@pytest.mark.parametrize(
    ("set_faults", "code"),
    [
        (fault(status_of_get=404), "data.broken"),
        (fault(status_of_get=416), "storage.changed"),
        (fault(no_length_of_get=True, no_ranges=True, cut_after=5), "storage.changed"),
    ],
)
def test_small_file_that_does_not_come_whole_is_named(
    server: WebServer, tmp_path: Path, set_faults: Fault, code: str
) -> None:
    set_faults(server)

    with pytest.raises((DataError, StorageError)) as caught:
        get(f"{server.endpoint}/lab/set/meta/1.json", tmp_path / "out")

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

    get(f"{server.endpoint}/lab/set/meta/1.json", tmp_path / "out", reporter)

    assert [code for code, _ in reporter.warnings] == ["unknown_size"]
    server.faults.no_length = False
    get(f"{server.endpoint}/lab/set/big.bin", tmp_path / "big", reporter)
    assert [note for note in reporter.notes if "no byte ranges" in note]


def test_server_that_redirects_to_itself_is_named(server: WebServer, tmp_path: Path) -> None:
    server.faults.redirect_to = f"{server.endpoint}/lab/set"
    with pytest.raises(StorageError, match="more than 5 times"):
        get_big(server, tmp_path / "out")


def test_page_in_place_of_a_manifest_is_named(server: WebServer, tmp_path: Path) -> None:
    server.faults.page = True
    source = f"{server.endpoint}/task/manifest.jsonl"
    with fails("data.broken"):
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
