"""Downloads from a web server, a hub and a bucket, with faults of the server."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.builders import web_server as web_server_builder
from tests.builders.errors import fails
from tests.builders.lerobot import lerobot_dataset
from tests.builders.s3_server import S3Server
from tests.builders.web_server import COMMIT, WebServer, web_server
from vlatool.artifacts.check import CheckOptions
from vlatool.errors import DataError, PartialFailure, StorageError
from vlatool.inspection import verify_location
from vlatool.jobs.files import read_file_list
from vlatool.storage import transfer
from vlatool.storage.tree import files_below
from vlatool.workflows.download import DownloadConfig, download
from vlatool.workflows.download_files import DownloadResult

CHUNK = 256 * 1024
BIG = np.random.default_rng(0).bytes(10 * CHUNK + 123)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK", CHUNK)
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


def get(source: str, output: Path, **keys: object) -> DownloadResult:
    values = {"source": source, "output": str(output), **keys}
    result = download(DownloadConfig.model_validate(values))
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

    assert caught.value.details["failures"][0]["code"] == "data.name_conflict"
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
        ({"source": "raw"}, "usage.local_source"),
        ({"include": ["nothing*"]}, "usage.nothing_selected"),
        ({"source": "hf://datasets/lab/set/nothing"}, "data.no_files"),
        ({"source": "ftp://host/x"}, "usage.unsupported_scheme"),
        ({"output": "s3://lab/out"}, "usage.unsupported_scheme"),
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


@pytest.mark.parametrize("rate", ["0", "-1M", "fast", "1T", ""])
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
        ([LISTED, LISTED], "data.doubled_name"),
        ([LISTED, {**LISTED, "path": "./a.bin"}], "data.bad_name"),
        ([{**LISTED, "bytes": 10**400}], "data.broken_file_list"),
        ([{**LISTED, "bytes": -1}], "data.broken_file_list"),
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
