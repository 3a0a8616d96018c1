"""Downloads of public tasks from a registry on a local server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.errors import fails
from tests.builders.preprocessing import contents
from tests.builders.web_server import WebServer, web_server
from vlatool.datasets.lbm.layout import ShardFolder
from vlatool.datasets.task_table import task_table
from vlatool.errors import DataError, StorageError
from vlatool.workflows.download import DownloadConfig, TasksResult, download

TASKS = ("PushBox", "PutKiwiOnSaucer")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    for task in TASKS:
        for view, stem in (("shards", "shard_000000"), ("episodes", "episode_a_0")):
            folder = tmp_path / "site/v0.1.0" / task / view
            folder.mkdir(parents=True)
            (folder / f"{stem}.tar").write_bytes(f"{task} {view}".encode())
            row = json.dumps({"shard": stem, "num_sequences": 1})
            (folder / "manifest.jsonl").write_text(row)
            (folder / "stats.json").write_text("{}")
        (tmp_path / "site/v0.1.0" / task / "shards/preprocessing_config.yaml").write_text("{}")
    with web_server(tmp_path / "site") as running:
        monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "1")
        monkeypatch.setenv("VLATOOL_REGISTRY", running.endpoint)
        yield running


def get(output: Path, *tasks: str, **keys: object) -> TasksResult:
    values = {"task": list(tasks), "output": str(output), **keys}
    result = download(DownloadConfig.model_validate(values))
    assert isinstance(result, TasksResult)
    return result


def test_tasks_are_outputs_of_their_own(server: WebServer, tmp_path: Path) -> None:
    assert not get(tmp_path / "out", *TASKS, dry_run=True).next
    result = get(tmp_path / "out", *TASKS)

    assert set(result.tasks) == set(TASKS)
    for task in TASKS:
        (shard,) = ShardFolder.open(tmp_path / "out" / task).shards()
        assert shard.location.read_bytes() == f"{task} shards".encode()
        assert (tmp_path / "out" / task / ".vlatool/run.json").is_file()
    data = [str(tmp_path / "out" / task) for task in TASKS]
    assert result.text().count("next: ") == 1
    assert f" --data {data[0]} --data {data[1]} " in result.next


def test_second_view_is_added_with_the_metadata_that_it_lacks(
    server: WebServer, tmp_path: Path
) -> None:
    get(tmp_path / "out", "PushBox")
    get(tmp_path / "out", "PushBox", view="episodes")

    both = ("manifest.jsonl", "stats.json", "preprocessing_config.yaml")
    assert {*contents(tmp_path / "out/PushBox")} == {
        *(f"shards/{name}" for name in (*both, "shard_000000.tar")),
        *(f"episodes/{name}" for name in (*both, "episode_a_0.tar")),
    }


def test_dead_server_is_not_asked_for_the_other_tasks(server: WebServer, tmp_path: Path) -> None:
    server.faults.fail_next, server.faults.status = 10_000, 503
    with pytest.raises(StorageError) as caught:
        get(tmp_path / "out", *TASKS)

    codes = [row["code"] for row in caught.value.details["failures"]]
    assert codes == ["storage.unreachable", "storage.not_requested"]
    assert not any(TASKS[1] in path for _, path, _ in server.faults.requests)


def test_task_that_fails_does_not_end_the_others(server: WebServer, tmp_path: Path) -> None:
    (server.folder / "v0.1.0/PushBox/shards/shard_000000.tar").unlink()
    with pytest.raises(Exception, match="1 of 2 tasks failed: PushBox") as caught:
        get(tmp_path / "out", *TASKS)

    result = getattr(caught.value, "result")  # noqa: B009 - set by the workflow
    assert set(result.tasks) == {"PutKiwiOnSaucer"}


def test_statistics_are_needed(server: WebServer, tmp_path: Path) -> None:
    for view in ("shards", "episodes"):
        (server.folder / "v0.1.0/PushBox" / view / "stats.json").unlink()
    with pytest.raises(DataError):
        get(tmp_path / "out", "PushBox")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"task": ["PushBocks"]}, "usage.unknown_name"),
        ({"task": ["PutMugInCenterOfTable"]}, "usage.unknown_name"),
        ({"task": ["PushBox"], "all": True}, "usage.conflict"),
        ({"task": ["PushBox"], "source": "s3://a/b"}, "usage.conflict"),
        ({"task": [], "source": ""}, "usage.missing_key"),
        ({"registry": "folder"}, "usage.bad_value"),
    ],
)
def test_bad_input_is_refused(
    server: WebServer, tmp_path: Path, keys: dict[str, object], code: str
) -> None:
    with fails(code):
        get(tmp_path / "out", **{"task": ["PushBox"], **keys})


@pytest.mark.parametrize(
    "text",
    [
        *("tasks: 3", "tasks: {A: {}}", "tasks: {A: {has: [x]}}", "{", "raw: 1", "- a"),
        *(f"tasks: {{{name!r}: {{has: [raw]}}}}" for name in ("../../X", "/tmp/X", "a/b", "..")),
        *(f"tasks: {{{name!r}: {{has: [raw]}}}}" for name in (".", "", "a" * 300, ".vlatool")),
        "annotations: http://127.0.0.1/..",
    ],
)
def test_broken_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(DataError):
        task_table(str(tmp_path / "own.yaml"))


def test_own_table_is_added_to_the_published_one(tmp_path: Path) -> None:
    tasks = task_table().tasks.values()
    assert sum("shards" in task.has for task in tasks) == 42
    assert sum("raw" in task.has for task in tasks) == 49
    (tmp_path / "own.yaml").write_text(
        "preprocessed: s3://lab/data\ntasks:\n  Fold: {has: [shards], station: ours}\n"
    )
    table = task_table(str(tmp_path / "own.yaml"))
    assert table.find("Fold").station == "ours"
    assert (table.preprocessed, table.version) == ("s3://lab/data", "v0.1.0")
    assert len(table.tasks) == 51
