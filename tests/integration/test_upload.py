"""Uploads to the hub of the tests, which takes commits as the real one does."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.builders.codes import plain_fast, published_windows, write_tree_codes
from tests.builders.errors import fails
from tests.builders.lerobot import lerobot_dataset
from tests.builders.recording import Recorder
from tests.builders.web_server import TOKEN, WebServer, web_server
from vlatool.cli import reporters
from vlatool.errors import VlatoolError
from vlatool.storage import hub as hub_storage
from vlatool.workflows import upload as upload_command
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.download import DownloadConfig, download
from vlatool.workflows.upload import UploadConfig, UploadResult, chosen_files, upload

TARGET = "hf://datasets/lab/pick"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    constants = pytest.importorskip("huggingface_hub.constants")
    (tmp_path / "hub").mkdir()
    with web_server(tmp_path / "hub", needs_token=True) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "5")
        # The storage behind the hub has a protocol of its own; the other one is as public.
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield running


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lerobot_dataset(tmp_path_factory.mktemp("built") / "data", lengths=(4, 3))


@pytest.fixture
def data(built: Path, tmp_path: Path) -> Path:
    (built / "meta/.env").write_text("KEY=1")
    return Path(shutil.copytree(built, tmp_path / "data"))


def uploaded(folder: Path, **options: object) -> UploadResult:
    values = {"folder": str(folder), "location": TARGET, **options}
    return upload(UploadConfig.model_validate(values))


def names(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files} - {".gitattributes"}


def test_data_come_back_from_a_private_repository_with_a_card_and_a_tag(
    hub: WebServer, data: Path, tmp_path: Path
) -> None:
    result = uploaded(data, license="cc-by-4.0")

    there = hub.folder / "lab/pick"
    assert names(there) == names(data) - {"meta/.env"} | {"README.md"}
    assert (hub.written.is_private, hub.written.sent) == ({"lab/pick": True}, 4)
    assert hub.written.tags == {"v2.1": hub.written.commit}
    assert (result.kind, result.sent_files, result.status) == ("source", result.files, "written")
    header = yaml.safe_load((there / "README.md").read_text().split("---")[1])
    assert (header["license"], "LeRobot" in header["tags"]) == ("cc-by-4.0", True)
    assert str(tmp_path) not in (there / "README.md").read_text()

    requests = len(hub.written.commits)
    assert uploaded(data, license="cc-by-4.0").status == "already complete"
    assert len(hub.written.commits) == requests
    download(DownloadConfig(source=TARGET, output=str(tmp_path / "back")))
    back = tmp_path / "back"
    assert all((back / name).read_bytes() == (there / name).read_bytes() for name in names(there))


def test_a_card_has_no_commands_for_a_terminal(hub: WebServer, data: Path) -> None:
    tasks = data / "meta/tasks.jsonl"
    tasks.write_text(tasks.read_text().replace('"task": "', '"task": "\\u001b[2J'))
    uploaded(data)
    card = (hub.folder / "lab/pick/README.md").read_text()
    assert "\\u001b[2J" in card
    assert "\x1b" not in card


def test_interrupted_upload_continues_with_the_files_that_are_missing(
    hub: WebServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_storage, "_MAX_FILES", 2)
    hub.written.cut_after = 2
    with pytest.raises(VlatoolError) as caught:
        uploaded(data)
    assert (caught.value.code, len(hub.written.commits)) == ("storage.refused", 2)
    assert "quota" in caught.value.message

    hub.written.cut_after = None
    result = uploaded(data)

    assert result.sent_files == result.files - 4
    sent = [name for _, paths in hub.written.commits for name in paths]
    assert sorted(sent) == sorted(set(sent))
    assert sent[-1] == "README.md"


def test_plan_creates_nothing_and_a_busy_hub_is_asked_again(hub: WebServer, data: Path) -> None:
    plan = uploaded(data, dry_run=True)
    assert (plan.status, plan.sent_files, hub.written.is_private) == ("planned", plan.files, {})

    hub.faults.fail_next, hub.faults.status = 1, 503
    assert uploaded(data).status == "written"


def test_upload_of_a_slow_hub_is_not_silent(
    hub: WebServer, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reporters, "LINE_EVERY_S", 0.04)
    monkeypatch.setattr(upload_command, "_SHOWN_EVERY_S", 0.04)
    hub.faults.delay_s = 0.2

    config = UploadConfig(folder=str(data), location=TARGET)
    upload(config, reporter=reporters.LineReporter())

    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("upload: 0 B")
    ]
    assert len(lines) >= 3


def test_other_files_there_stay_unless_they_are_to_be_replaced(hub: WebServer, data: Path) -> None:
    uploaded(data)
    there = hub.folder / "lab/pick"
    (there / "notes.txt").write_text("of another")
    (there / "meta/tasks.jsonl").write_text("{}\n")
    with fails("usage.output_exists") as caught:
        uploaded(data)
    assert caught.value.details == {"changed": ["meta/tasks.jsonl"], "others": ["notes.txt"]}

    result = uploaded(data, overwrite=True)

    assert (result.sent_files, result.removed_files) == (1, 1)
    assert names(there) == names(data) - {"meta/.env"} | {"README.md"}
    assert hub.written.tags == {"v2.1": hub.written.commit}


def without_rows(data: Path) -> None:
    next(data.glob("data/*/*.parquet")).unlink()


def checkpoint(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()
    for name in ("manifest.json", "model.safetensors"):
        (data / name).write_text("{}")


def link_out(data: Path) -> None:
    (data / "README.md").symlink_to("/etc/hosts")


def folder_out(data: Path) -> None:
    (data / "extra").symlink_to("/etc/ssl")


def unprintable(data: Path) -> None:
    (data / "meta/a\x1b[2J").write_text("x")


def card_in_latin_1(data: Path) -> None:
    (data / "README.md").write_bytes("für".encode("latin-1"))


@pytest.mark.parametrize(
    ("change", "options", "code"),
    [
        (link_out, {}, "data.unsafe"),
        (folder_out, {}, "data.unsafe"),
        (unprintable, {}, "data.unsafe"),
        (card_in_latin_1, {}, "data.broken"),
        (without_rows, {}, "data.incomplete"),
        (None, {"location": "s3://lab/pick"}, "usage.bad_value"),
        (None, {"location": "hf://datasets/lab/pick/folder"}, "usage.bad_value"),
        (None, {"location": "hf://datasets/lab/pick@dev"}, "usage.bad_value"),
        (None, {"license": "All rights"}, "usage.bad_value"),
        (None, {"folder": "missing"}, "data.no_source"),
        (checkpoint, {}, "usage.unsupported"),
        (None, {"HF_TOKEN": "hf_of_another"}, "environment.credentials"),
    ],
)
def test_nothing_is_created_for_what_cannot_be_uploaded(
    change: Callable[[Path], None] | None,
    options: dict[str, str],
    code: str,
    hub: WebServer,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if change is not None:
        change(data)
    if "HF_TOKEN" in options:
        monkeypatch.setenv("HF_TOKEN", options.pop("HF_TOKEN"))
    with fails(code):
        uploaded(**{"folder": data, **options})
    assert hub.written.is_private == {}


def test_run_is_uploaded_without_folders_of_this_machine(tmp_path: Path) -> None:
    config = {"save_path": "/home/ada b/runs", "data": ["/home/ada b/shards", "s3://lab/x/y"]}
    for name, text in {
        "config.yaml": yaml.safe_dump(config),
        "origins.json": '{"hparams.lr": "/home/ada b/job.yaml:12"}',
        "wandb/run/log": "of a tracker",
        ".vlatool/run.json": "{}",
        "metrics.jsonl": '{"step": 1}\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    files = {file.name: file.content for file in chosen_files(tmp_path, "run", ())}

    content = files["config.yaml"]
    assert isinstance(content, bytes)
    assert yaml.safe_load(content) == {"save_path": "runs", "data": ["shards", "s3://lab/x/y"]}
    assert b"ada" not in bytes(files["origins.json"])  # pyright: ignore[reportArgumentType] - read
    assert files["metrics.jsonl"] == tmp_path / "metrics.jsonl"
    assert set(files) == {"config.yaml", "origins.json", "metrics.jsonl"}


def test_samples_whose_images_are_beside_them_are_uploaded_with_a_warning(
    hub: WebServer, tmp_path: Path
) -> None:
    tree = published_windows(tmp_path / "windows", episodes=1)
    write_tree_codes(tree)
    plain_fast(tmp_path / "fast")
    options = {"data": str(tree), "fast": str(tmp_path / "fast"), "workers": 1}
    options["output"] = str(tree / "samples")
    build_dataset(BuildDatasetConfig.model_validate(options))
    reporter = Recorder()

    config = {"folder": options["output"], "location": TARGET}
    upload(UploadConfig.model_validate(config), reporter=reporter)

    (message,) = [text for code, text in reporter.warnings if code == "images_elsewhere"]
    assert "put the samples into it" in message


@pytest.mark.slow
def test_killed_upload_continues_with_the_same_command(hub: WebServer, data: Path) -> None:
    command = [sys.executable, "-m", "vlatool", "upload", str(data), TARGET]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1"}
    hub.faults.delay_s = 0.5
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while hub.written.sent < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    hub.faults.delay_s = 0.0
    assert (hub.written.sent, hub.written.commits) == (4, [])

    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)

    assert names(hub.folder / "lab/pick") == names(data) - {"meta/.env"} | {"README.md"}
    assert hub.written.sent == 4
