"""The list of training runs and the comparison of two."""

import json
import os
import re
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.run_folders import run_folder
from tests.builders.s3_runs import upload
from vlatool.checkpoints.layout import RunDir
from vlatool.cli.app import run as run_command
from vlatool.cli.output import to_json
from vlatool.errors import DataError, UsageError
from vlatool.jobs.record import output_lock
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

    run = run_folder(folder / "third", [1.0], complete=False, stopped=True)
    with output_lock(run, "vlatool train"):
        assert listed(folder).document()["runs"][1]["state"] == "running"
    assert listed(folder).document()["runs"][1]["state"] == "stopped"


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
        "data.broken",
    }


@pytest.mark.parametrize(
    ("keys", "error", "code"),
    [
        ({"compare": ["first"]}, UsageError, "usage.bad_value"),
        ({"compare": ["first", "secnd"]}, UsageError, "usage.unknown_name"),
        ({"location": "empty"}, DataError, "data.no_source"),
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
    origins = {"hparams.lr": "presets/hparams/fast.yaml:3", "model.type": "command line"}
    run.write_origins(origins)
    save_image_grid(run, 10, {"made": np.zeros((2, 8, 8, 3), np.uint8)})
    target = tmp_path / "pages/all.html"
    listed(folder, compare=["first", "tuned/second"], html=str(target))
    files = target.parent / "all_files"
    for page in (target, files / "first.html", files / "tuned/second.html"):
        links = re.findall(r'<a href="([^#"]+)"', page.read_text())
        assert links
        assert all((page.parent / link).is_file() for link in links)
    text = (files / "first.html").read_text()
    typed, others = text.index(">command line<"), text.index("presets/hparams/fast.yaml:3")
    assert typed < text.index("<details>", typed) < others
    assert text.count("<img ") == 1
    listed(folder, html=str(target))  # pages of its own are replaced, those of others are not
    (files / "first.html").write_text("mine")
    target.unlink()
    with fails("usage.bad_value"):
        listed(folder, html=str(target))
    assert not target.exists()


def _bomb(path: Path) -> None:
    """PNG of 40,000 x 40,000 pixels in 2 MB, which would take 5 GB."""
    size, rows = 40_000, zlib.compressobj(9)
    content = b"".join(rows.compress(bytes(1 + size * 3)) for _ in range(size // 20))
    chunks = (b"IHDR", struct.pack(">2I5B", size, size, 8, 2, 0, 0, 0)), (b"IDAT", content)
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


NO_IMAGES: dict[str, Callable[[Path], object]] = {
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "pipe": os.mkfifo,
    "bomb": _bomb,
    "sparse file": _sparse,
    "folder": Path.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "text": lambda path: path.write_text("x"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", NO_IMAGES)
def test_file_that_is_no_image_is_named_on_the_page(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    images = folder / "first/images"
    images.mkdir()
    NO_IMAGES[kind](images / "step_00000010_made.png")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    listed(folder, html=str(tmp_path / "all.html"))

    text = (tmp_path / "all_files/first.html").read_text()
    assert "<img " not in text
    assert "step_00000010_made.png: " in text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**19  # KiB


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1, "loss": 1e308}, {"step": 2, "loss": 1.7e308}, {"step": 3, "loss": -1e308}],
        [{"step": 1, "loss": 1e308}, {"step": 2, "loss": 1e-308}],
        [{"step": 1, "loss": 1e308}] * 40,
        [{"step": 10**400, "loss": 1.0}],
        [{"step": 1, "loss": 2.0}, {"step": 10**400, "loss": 1.0}],
        [{"step": 2**63, "loss": 2.0}, {"step": -(10**30), "loss": 1.0}],
        [{"step": 10**18, "loss": 10**400}, {"step": 10**18 + 1, "loss": 1.0}],
        [{"step": 1, "loss": 5e-324}, {"step": 2, "loss": 1e300}],
        [{"step": 0, "loss": 0.0, "\x1b]0;x\x07": 1.0}],
    ],
)
def test_metrics_of_any_size_are_listed_and_drawn(
    rows: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "first/metrics.jsonl").write_text(text)
    shown = listed(folder, compare=["first", "tuned/second"], html=str(tmp_path / "all.html"))
    assert shown.text()
    assert len(listed(folder).text()) < 2_000
    to_json(shown.document())


def test_names_of_runs_give_the_terminal_no_orders(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "red\x1b[31m\x9b2J\x07\r"
    (folder / "first").rename(folder / name)
    assert run_command(["runs", str(folder), "--json"]) == 0
    document = capsys.readouterr().out
    assert run_command(["runs", str(folder)]) == 0
    table = capsys.readouterr().out
    assert run_command(["runs", str(folder / name), "--compare", name]) == 2
    error = capsys.readouterr().err

    assert name in {run["name"] for run in json.loads(document)["runs"]}
    for text in (document, table, error):
        assert not set(text) & set("\x1b\x9b\x07\r")
    assert "red\\u001b[31m\\u009b2J" in table


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
