"""`vlatool download` as users type it: published names, bad input, interruption, two at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.preprocessing import contents
from tests.builders.web_server import WebServer, web_server
from vlatool.cli.app import run
from vlatool.jobs.journal import Journal
from vlatool.jobs.record import read_record
from vlatool.storage import transfer

TASK = "PushBox"
CHUNK = 256 * 1024


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "CHUNK", CHUNK)
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "1")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for view in ("shards", "episodes"):
        folder = tmp_path / f"site/v0.1.0/{TASK}/{view}"
        folder.mkdir(parents=True)
        (folder / f"{view}.tar").write_bytes(view.encode() * CHUNK)
        (folder / "stats.json").write_text("{}")
        (folder / "preprocessing_config.yaml").write_text("{}")
        (folder / "manifest.jsonl").write_text(f'{{"shard": "{view}", "num_sequences": 1}}\n')
    with web_server(tmp_path / "site") as running:
        monkeypatch.setenv("VLATOOL_REGISTRY", running.endpoint)
        monkeypatch.chdir(tmp_path)
        yield running


def manifest(server: WebServer) -> Path:
    return server.folder / f"v0.1.0/{TASK}/shards/manifest.jsonl"


@pytest.mark.parametrize(
    ("options", "view"),
    [
        ("--local_path lbm --num_workers 2", "shards"),
        ("--to lbm --episodes --force", "episodes"),
        ("--episodes --local-path lbm", "episodes"),
        ("--to lbm --view episodes", "episodes"),
    ],
)
def test_published_options_are_accepted(
    server: WebServer, tmp_path: Path, options: str, view: str
) -> None:
    words = ["-q", "download", "--task", TASK, *options.split()]
    assert run([*words, "--dry_run"]) == 0
    assert not (tmp_path / "lbm").exists()
    assert run(words) == 0
    assert f"{view}/{view}.tar" in {*contents(tmp_path / f"lbm/{TASK}")}


def test_published_names_are_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["download", "--help-all"]) == 0
    text = capsys.readouterr().out
    assert not [name for name in ("--episodes", "--to ", "--local", "--force") if name in text]


def test_dry_run_counts_the_files_of_this_view_that_are_there(
    server: WebServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["-q", "download", "--task", TASK, "-o", "lbm"])
    run(["-q", "download", "--task", TASK, "-o", "lbm", "--episodes"])
    capsys.readouterr()
    run(["-q", "download", "--task", TASK, "-o", "lbm", "--dry-run", "--json"])
    assert json.loads(capsys.readouterr().out)["tasks"][TASK]["resumed"] == 4


def _rows(*shards: str) -> str:
    return "".join(f'{{"shard": "{shard}", "num_sequences": 1}}\n' for shard in shards)


@pytest.mark.parametrize(
    ("options", "text", "code"),
    [
        ("--task PushBocks -o out", None, "usage.unknown_name"),
        ("--task PushBox -o out --version v9", None, "data.no_source"),
        ("--task PushBox", None, "usage.missing_key"),
        ("-o out", None, "usage.missing_key"),
        ("--task PushBox -o file", None, "storage.write"),
        ("--task PushBox -o file/below", None, "storage.write"),
        ("--task PushBox -o s3://lab/out", None, "usage.unsupported"),
        ("--task PushBox -o out", _rows("../shards"), "data.broken"),
        ("--task PushBox -o out", _rows("a/../../b"), "data.broken"),
        ("--task PushBox -o out", _rows("shards", "shards"), "data.broken"),
        ("--task PushBox -o out", _rows("shards", "missing"), "data.missing"),
        ("--task PushBox -o out", "", "data.no_samples"),
        ("--task PushBox -o out", '{"shard": 3}', "data.broken"),
        ("--task PushBox -o out --view raw", None, "config.invalid_value"),
        ("--task PushBox -o out --limit-rate 1X", None, "config.invalid_value"),
        ("--list --task-table none.yaml", None, "data.broken"),
    ],
)
def test_bad_input_is_an_error_that_writes_nothing(
    server: WebServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: str,
    text: str | None,
    code: str,
) -> None:
    (tmp_path / "file").touch()
    if text is not None:
        manifest(server).write_text(text)
    assert run(["-q", "download", *options.split(), "--json"]) in (2, 3, 5)
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not (tmp_path / "out").exists()


def test_absolute_names_of_a_manifest_are_those_next_to_it(
    server: WebServer, tmp_path: Path
) -> None:
    manifest(server).write_text(_rows("/some/where/shards"))
    assert run(["-q", "download", "--task", TASK, "-o", "out"]) == 0
    assert "shards/shards.tar" in {*contents(tmp_path / f"out/{TASK}")}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_target_is_an_error_of_the_storage(
    server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    assert run(["-q", "download", "--task", TASK, "-o", "out"]) == 5


def command(*options: str) -> list[str]:
    """Command line of a process with small chunks."""
    code = (
        "import sys; from vlatool.storage import transfer; from vlatool.cli.app import main;"
        f"transfer.CHUNK = {CHUNK}; main()"
    )
    return [sys.executable, "-c", code, "download", "--task", TASK, "-o", "out", *options]


def wait_for_chunks(process: subprocess.Popen[Any], output: Path) -> None:
    while not any(log.stat().st_size for log in (output / ".vlatool/partial").glob("*.log")):
        assert process.poll() is None
        time.sleep(0.01)


def test_interrupted_download_prints_the_command_and_resumes_beside_no_other(
    server: WebServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"out/{TASK}"
    with subprocess.Popen(
        command("--limit-rate", "400k"), stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_chunks(process, output)
        second = run(["-q", "download", "--task", TASK, "-o", "out", "--json"])
        code = json.loads(capsys.readouterr().out)["error"]["code"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()

    assert (second, code) == (2, "usage.output_in_use")
    assert process.returncode == 130
    assert "vlatool download --task PushBox -o out --limit-rate 400k" in errors
    assert run(["-q", "download", "--task", TASK, "-o", "out"]) == 0
    assert (output / "shards/shards.tar").read_bytes() == b"shards" * CHUNK
    record = read_record(output)
    assert record is not None
    assert record.complete


def test_narrower_download_lists_the_files_of_a_killed_one(
    server: WebServer, tmp_path: Path
) -> None:
    output = tmp_path / f"out/{TASK}"
    journal = Journal(output)
    with subprocess.Popen(command("--limit-rate", "400k")) as process:
        wait_for_chunks(process, output)
        while not journal.logged():
            time.sleep(0.01)
        process.kill()
    there = set(journal.logged())
    run(["-q", "download", "--task", TASK, "-o", "out", "--include", "none/*"])
    assert run(["-q", "download", "--task", TASK, "-o", "out", "--include", "*/stats.json"]) == 0

    listed = (output / ".vlatool/files.jsonl").read_text()
    assert there
    assert not [name for name in there if f'"{name}"' not in listed]


def test_list_into_a_closed_pipe_is_no_error() -> None:
    line = [sys.executable, "-m", "vlatool", "download", "--list"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait()) == (b"", 0)
