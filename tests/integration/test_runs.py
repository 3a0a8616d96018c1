"""The list of training runs and the comparison of two."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.memory_remote import MemoryRemote
from tests.builders.run_folders import run_folder
from tests.builders.s3_runs import upload
from vlatool.artifacts.run.format import RunDir
from vlatool.cli.app import run as run_command
from vlatool.errors import DataError, UsageError
from vlatool.jobs.record import output_lock
from vlatool.plugins import SCHEMES
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.uri import location
from vlatool.training.validation import save_image_grid
from vlatool.workflows.runs import RunList, RunsConfig, runs


def listed(folder: Path | str, **keys: Any) -> RunList:
    return runs(RunsConfig(location=str(folder), **keys))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete run and one below a folder that was killed."""
    run_folder(tmp_path / "first", [3.0, 2.0, 1.0])
    run_folder(tmp_path / "tuned/second", [3.0, None], complete=False, hparams={"lr": 1e-3})
    return tmp_path


def test_list_has_state_step_losses_and_last_change_of_each_run(folder: Path) -> None:
    first, second = listed(folder).document()["runs"]
    assert (first["name"], first["state"], first["step"]) == ("first", "complete", 30)
    assert (first["loss"], first["validation_loss"], first["checkpoint"]) == (1.0, 0.25, 30)
    assert (second["name"], second["state"]) == ("tuned/second", "interrupted")
    assert (second["step"], second["total_steps"], second["loss"]) == (20, 100, 3.0)
    assert all(run["changed"].endswith("+00:00") and not run["findings"] for run in (first, second))


def test_state_of_a_run_that_is_training_or_stopped(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [1.0], complete=False, stopped=True)
    with output_lock(run, "vlatool train"):
        assert [run.state for run in listed(tmp_path).runs] == ["running"]
    assert [run.state for run in listed(tmp_path).runs] == ["stopped"]


def test_comparison_has_differing_keys_and_metrics_at_the_last_common_step(folder: Path) -> None:
    result = listed(folder, compare=["first", "tuned/second"])
    assert result.document()["comparison"] == {
        "runs": ["first", "tuned/second"],
        "differences": [{"key": "hparams.lr", "values": [1e-4, 1e-3]}],
        "metrics": {
            "loss": {"step": 10, "values": [3.0, 3.0]},
        },
    }
    assert "hparams.lr" in result.text()


def test_damaged_runs_are_listed_with_their_problems(folder: Path) -> None:
    (folder / "first/config.yaml").write_text("a: [")
    (folder / "first/metrics.jsonl").write_text('{"step": 1, "loss": 1e999}\n[]\n{"step": "2"}\n{')
    (folder / "first/.vlatool/run.json").write_text("{}")
    first = listed(folder).document()["runs"][0]
    assert (first["state"], first["loss"], first["model_type"]) == ("unknown", None, "")
    assert {finding["code"] for finding in first["findings"]} == {
        "data.broken_config",
        "data.broken_record",
    }


@pytest.mark.parametrize(
    ("keys", "error", "code"),
    [
        ({"compare": ["first"]}, UsageError, "usage.compare"),
        ({"compare": ["first", "secnd"]}, UsageError, "usage.unknown_run"),
        ({"location": "empty"}, DataError, "data.no_run"),
        ({"location": ""}, UsageError, "usage.missing_key"),
    ],
)
def test_wrong_names_are_errors(
    keys: dict[str, Any], error: type[Exception], code: str, folder: Path
) -> None:
    (folder / "empty").mkdir()
    where = keys.pop("location", ".")
    with pytest.raises(error) as caught:
        listed(folder / where if where else "", **keys)
    assert getattr(caught.value, "code", "") == code


def test_pages_of_the_runs_link_to_each_other(folder: Path, tmp_path: Path) -> None:
    run = RunDir(folder / "first")
    run.write_origins({"hparams.lr": "presets/hparams/fast.yaml:3"})
    save_image_grid(run, 10, {"made": np.zeros((2, 8, 8, 3), np.uint8)})
    target = tmp_path / "pages/all.html"
    listed(folder, compare=["first", "tuned/second"], html=str(target))
    files = target.parent / "all_files"
    for page in (target, files / "first.html", files / "tuned/second.html"):
        links = re.findall(r'<a href="([^#"]+)"', page.read_text())
        assert links
        assert all((page.parent / link).is_file() for link in links)
    text = (files / "first.html").read_text()
    assert "presets/hparams/fast.yaml:3" in text
    assert text.count("<img ") == 1
    listed(folder, html=str(target))  # pages of its own are replaced


def test_page_replaces_no_file_of_another_program(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "all_files").mkdir()
    (tmp_path / "all_files/first.html").write_text("mine")
    with pytest.raises(UsageError) as caught:
        listed(folder, html=str(tmp_path / "all.html"))
    assert caught.value.code == "usage.bad_target"
    assert not (tmp_path / "all.html").exists()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    builtins = SCHEMES._builtins  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setitem(builtins, "memory", MemoryRemote)
    yield "memory://runs"
    MemoryRemote.stores.clear()


def test_runs_elsewhere_are_listed_as_here(
    folder: Path, memory: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = location(f"{memory}/lab")
    assert isinstance(target, RemotePath)
    upload(folder, target)
    keys = ("name", "state", "step", "total_steps", "loss", "checkpoint")
    here, there = (
        [[run[key] for key in keys] for run in listed(where).document()["runs"]]
        for where in (folder, f"{memory}/lab")
    )
    assert here == there
    assert run_command(["runs", f"{memory}/lab", "--jsonl", "-q"]) == 0
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 2
