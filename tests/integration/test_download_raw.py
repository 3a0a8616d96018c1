"""Downloads of raw archives from a local registry, extracted meanwhile, with interruptions."""

import hashlib
import io
import os
import shlex
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.preprocessing import contents
from tests.builders.web_server import WebServer, web_server
from vlatool.cli.app import run
from vlatool.errors import DataError, PartialFailure, StorageError, UsageError, VlatoolError
from vlatool.inspection import verify_location
from vlatool.jobs.files import read_file_list
from vlatool.jobs.ownership import require_input
from vlatool.jobs.record import read_record
from vlatool.recordings.check import CheckOptions
from vlatool.recordings.spartan import archive as spartan_archive
from vlatool.storage import transfer
from vlatool.workflows.download import AnnotationsResult, DownloadConfig, TasksResult, download
from vlatool.workflows.download_raw import RawResult
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.verify import InspectConfig, inspect

CHUNK = 4096
TASK = "PutKiwiOnSaucer"
ANNOTATIONS = b"language_dict: {}\n"
rng = np.random.default_rng(0)
FILES = {
    "cabot/large.npz": rng.bytes(10 * CHUNK + 77),
    **{f"cabot/{index}/small.npz": rng.bytes(300 * index) for index in range(12)},
    "cabot/last.npz": rng.bytes(2 * CHUNK),
}


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"tasks/{TASK}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    site = tmp_path / "site"
    site.mkdir()
    (site / f"{TASK}.tar").write_bytes(archive(FILES))
    (site / "lbm_language_annotations.yaml").write_bytes(ANNOTATIONS)
    digest = hashlib.sha256(ANNOTATIONS).hexdigest()
    (tmp_path / "table.yaml").write_text(f"annotations_sha256: {digest}")
    monkeypatch.setattr(transfer, "CHUNK", CHUNK)
    monkeypatch.setattr(spartan_archive, "_SYNC_S", 0.0)
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "20")
    monkeypatch.setenv("VLATOOL_STORAGE_CLOCK_SPEED", "60")
    with web_server(site) as running:
        monkeypatch.setenv("VLATOOL_REGISTRY", running.endpoint)
        yield running


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out/tasks" / TASK


def get(out: Path, **keys: object) -> RawResult:
    folder = out.parents[1]
    table = folder.parent / "table.yaml"
    values = {"task": [TASK], "raw": True, "output": str(folder), "task_table": str(table), **keys}
    result = download(DownloadConfig.model_validate(values))
    assert isinstance(result, TasksResult)
    raw = result.tasks[TASK]
    assert isinstance(raw, RawResult)
    return raw


def ranges(server: WebServer) -> list[str]:
    return [
        span for method, path, span in server.faults.requests if method == "GET" and ".tar" in path
    ]


def test_archive_is_extracted_with_digests_and_counts(server: WebServer, out: Path) -> None:
    assert get(out, dry_run=True).status == "planned"
    assert not out.parents[1].exists()
    server.faults.requests.clear()
    result = get(out)

    assert contents(out) == FILES
    assert (result.files, result.folders) == (len(FILES), 13)
    assert result.extracted_bytes == sum(map(len, FILES.values()))
    record = read_record(out)
    assert record is not None
    assert record.complete
    assert record.result is not None
    assert record.result["files"] == len(FILES)
    assert record.result["archive_sha256"] is None
    size = (server.folder / f"{TASK}.tar").stat().st_size
    listed = {entry.path: entry.sha256 for entry in read_file_list(out) or ()}
    assert listed == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert len(ranges(server)) == -(-size // CHUNK)
    assert not (out / ".vlatool/partial").exists()
    annotations = out.parents[1] / "lbm_language_annotations.yaml"
    assert annotations.read_bytes() == ANNOTATIONS

    server.faults.requests.clear()
    assert get(out).status == "already complete"
    assert not ranges(server)


def test_damaged_files_are_reported_and_extracted_again(server: WebServer, out: Path) -> None:
    get(out)
    assert not list(verify_location(out, CheckOptions()).findings)
    (out / "cabot/last.npz").write_bytes(bytes(2 * CHUNK))
    findings = list(verify_location(out, CheckOptions()).findings)
    assert [finding.code for finding in findings] == ["output.digest_mismatch"]

    (out / "cabot/9/small.npz").unlink()
    server.faults.requests.clear()
    get(out)
    assert contents(out) == FILES
    assert len(ranges(server)) <= 9  # from the first damaged member on


def _loses_ranges(server: WebServer) -> None:
    def change() -> None:
        while len(ranges(server)) < 3:
            time.sleep(0.001)
        server.faults.no_ranges = True

    threading.Thread(target=change, daemon=True).start()


@pytest.mark.parametrize(
    "faults",
    [
        {"cut_after": 1000},
        {"fail_next": 3, "status": 500},
        {"no_ranges": True},
        {},  # ranges are lost on the way
        {"changes_every": 40},
    ],
    ids=str,
)
def test_download_survives(server: WebServer, out: Path, faults: dict[str, Any]) -> None:
    for name, value in faults.items():
        setattr(server.faults, name, value)
    if not faults:
        _loses_ranges(server)
    get(out)
    assert contents(out) == FILES


def interrupted(
    server: WebServer, out: Path, monkeypatch: pytest.MonkeyPatch, at: int, **keys: object
) -> None:
    """Starts a download from a server that fails from a byte on."""
    server.faults.fail_from = at
    with monkeypatch.context() as patch:
        patch.setenv("VLATOOL_STORAGE_PATIENCE_S", "0")
        with pytest.raises(StorageError):
            get(out, workers=1, **keys)
    server.faults.fail_from = 0
    server.faults.requests.clear()


@pytest.mark.parametrize("at", [CHUNK, 5 * CHUNK, 13 * CHUNK, 17 * CHUNK])
def test_interrupted_extraction_continues_at_a_member(
    server: WebServer, out: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    interrupted(server, out, monkeypatch, at)
    before = read_record(out)
    assert before is not None
    assert not before.complete

    get(out)

    assert contents(out) == FILES
    size = (server.folder / f"{TASK}.tar").stat().st_size
    done = 0 if at < 10 * CHUNK else 10 * CHUNK  # the first file is larger
    assert len(ranges(server)) <= -(-(size - done) // CHUNK)


def test_content_that_a_power_cut_took_is_fetched_again(
    server: WebServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spartan_archive, "_SYNC_S", 1e9)
    interrupted(server, out, monkeypatch, 17 * CHUNK)
    large = out / "cabot/large.npz"
    status = large.stat()
    large.write_bytes(bytes(status.st_size))
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))

    get(out)

    assert contents(out) == FILES


def test_all_raw_tasks_are_those_that_have_an_archive(server: WebServer, out: Path) -> None:
    with pytest.raises(PartialFailure) as caught:
        get(out, task=[], all=True)
    failed = {failure["task"] for failure in caught.value.details["failures"]}
    assert len(failed) == 48
    assert "PushBox" not in failed
    assert contents(out) == FILES


@pytest.mark.parametrize("no_versions", [False, True])
def test_other_version_replaces_an_unfinished_one(
    server: WebServer, out: Path, monkeypatch: pytest.MonkeyPatch, no_versions: bool
) -> None:
    server.faults.no_versions = no_versions
    interrupted(server, out, monkeypatch, 13 * CHUNK)
    assert (out / "cabot/large.npz").is_file()
    files = {name: data[::-1] for name, data in FILES.items()}
    if not no_versions:
        files = {"riverway/new.npz": FILES["cabot/large.npz"][::-1]}
    (server.folder / f"{TASK}.tar").write_bytes(archive(files))

    get(out)

    assert contents(out) == files


def test_damaged_log_starts_again(
    server: WebServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(server, out, monkeypatch, 13 * CHUNK)
    log = out / ".vlatool/journal/members.0.jsonl"
    rows = log.read_text().splitlines()
    log.write_text("\n".join([rows[0], '{"start": 0}', "[", *rows[2:], '{"start": "a"}']))

    get(out)

    assert contents(out) == FILES


def test_archive_can_be_kept(server: WebServer, out: Path) -> None:
    get(out)
    data = (server.folder / f"{TASK}.tar").read_bytes()

    result = get(out, keep_archive=True)

    assert (result.status, result.files) == ("written", len(FILES))
    assert result.archive_sha256 == hashlib.sha256(data).hexdigest()
    assert contents(out) == {**FILES, f"{TASK}.tar": data}
    server.faults.requests.clear()
    (out / "cabot/last.npz").unlink()
    for keys in ({}, {"keep_archive": True}):
        get(out, **keys)
        assert contents(out) == {**FILES, f"{TASK}.tar": data}
    assert not ranges(server)


def test_interrupted_download_of_an_archive_to_keep_continues(
    server: WebServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(server, out, monkeypatch, 13 * CHUNK, keep_archive=True)
    get(out, keep_archive=True)

    data = (server.folder / f"{TASK}.tar").read_bytes()
    assert contents(out) == {**FILES, f"{TASK}.tar": data}
    assert len(ranges(server)) == len(data) // CHUNK - 13


def test_unsafe_archive_is_an_error_in_every_run(server: WebServer, out: Path) -> None:
    (server.folder / f"{TASK}.tar").write_bytes(archive({"a": b"1", "../../../b": b"2"}))
    for _ in range(2):
        with pytest.raises(DataError, match="leads out") as caught:
            get(out)
        assert caught.value.details["failures"][0]["code"] == "data.unsafe"
        assert "all archives" not in caught.value.message
    assert not (out.parents[2] / "b").exists()
    assert not (out.parents[1] / "b").exists()


def test_file_in_place_of_a_folder_and_a_folder_of_a_file_are_named(
    server: WebServer, out: Path
) -> None:
    (server.folder / f"{TASK}.tar").write_bytes(archive({"a": b"1"}))
    out.parent.mkdir(parents=True)
    out.touch()
    with pytest.raises(VlatoolError) as caught:
        get(out)
    assert caught.value.exit_code in (2, 5)
    out.unlink()
    get(out)
    (out / "a").unlink()
    (out / "a/b").mkdir(parents=True)
    with pytest.raises(DataError, match=r"is a file in the archive, but .* is a folder"):
        get(out)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"task": ["PushBox"]}, "usage.unknown_name"),
        ({"view": "episodes"}, "usage.conflict"),
        ({"version": "v1"}, "usage.conflict"),
        ({"include": ["*.npz"]}, "usage.conflict"),
        ({"raw": False, "keep_archive": True}, "usage.conflict"),
        ({"annotations": True}, "usage.conflict"),
        ({"task": [], "source": "s3://a/b"}, "usage.conflict"),
        ({"task": ["PutKiwiOnSaucerr"]}, "usage.unknown_name"),
        ({"task": ["PickAndPlaceBox"]}, "data.no_source"),
    ],
)
def test_bad_input_is_an_error(
    server: WebServer, out: Path, keys: dict[str, object], code: str
) -> None:
    with fails(code):
        get(out, **keys)
    assert not out.exists()


def test_annotations_are_a_file_of_their_own(server: WebServer, tmp_path: Path) -> None:
    values = {"annotations": True, "task_table": str(tmp_path / "table.yaml")}
    target = tmp_path / "a/annotations.yaml"
    states = []
    for is_planned in (True, False, False):
        result = download(
            DownloadConfig.model_validate({**values, "output": str(target), "dry_run": is_planned})
        )
        assert isinstance(result, AnnotationsResult)
        states.append((result.status, target.exists()))
    assert states == [("planned", False), ("written", True), ("already complete", True)]
    target.write_text("mine")
    with pytest.raises(UsageError, match="its content differs"):
        download(DownloadConfig.model_validate({**values, "output": str(target)}))
    assert target.read_text() == "mine"


def test_annotations_are_compared_with_their_digest_and_not_needed(
    server: WebServer, out: Path
) -> None:
    name = "lbm_language_annotations.yaml"
    (server.folder / name).write_bytes(b"other")
    with fails("data.wrong_digest") as caught:
        get(out)
    assert isinstance(caught.value.result, TasksResult)
    assert caught.value.result.next
    assert contents(out) == FILES
    assert not (out.parents[1] / name).exists()
    (server.folder / name).unlink()
    shutil.rmtree(out.parents[1])
    get(out)
    assert contents(out) == FILES


def test_printed_command_preprocesses_the_task(
    server: WebServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = out.parents[2] / "raw"
    sample(SampleConfig(layout="spartan", output=str(raw), episodes=1, frames=20, cameras=4))
    (task,) = (raw / "tasks").iterdir()
    with tarfile.open(server.folder / f"{TASK}.tar", "w") as tar:
        tar.add(task, f"tasks/{TASK}")
    monkeypatch.chdir(out.parents[2])
    monkeypatch.setattr(transfer, "CHUNK", 2**20)

    command = get(out).next

    folder = out.parents[1]
    size = sum(path.stat().st_size for path in task.rglob("*") if path.is_file())
    shown = inspect(InspectConfig(location=str(folder))).document()
    assert shown["bytes"] == size + len(ANNOTATIONS)
    assert f"--language-annotations-path {folder}/lbm_language_annotations.yaml" in command
    assert run(["-q", *shlex.split(command)[1:], "--dry-run"]) == 0


def test_interrupted_extraction_is_refused_with_the_command_that_completes_it(
    server: WebServer, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(server, out, monkeypatch, 13 * CHUNK)
    with pytest.raises(DataError) as caught:
        require_input(str(out.parents[1]))
    (command,) = caught.value.details["commands"]

    assert run(["-q", *shlex.split(command)[1:]]) == 0
    assert contents(out) == FILES
