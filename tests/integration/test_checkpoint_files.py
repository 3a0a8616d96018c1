"""Damaged checkpoints raise an error that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders.errors import fails
from tests.builders.training import tiny_arguments, tiny_config
from vlatool.checkpoints.layout import RunDir
from vlatool.cli.app import run as run_command
from vlatool.errors import DataError
from vlatool.models.trained import open_trained
from vlatool.workflows.train import train

STEPS = {"total_train_steps": 2, "num_checkpoints": 2}
FILES = ["ema.safetensors", "manifest.json", "model.safetensors", "trainer.pt"]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(tiny_config(data, run, **STEPS))
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> RunDir:
    """Copy of the run that a test may damage; `train` accepts the run in its new folder."""
    return RunDir(Path(shutil.copytree(whole, tmp_path / "run")))


def flip(path: Path) -> None:
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_list_of_checkpoint_files_is_complete(run: RunDir) -> None:
    assert sorted(path.name for path in run.checkpoint(2).iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_damaged_file_stops_training_with_its_name(
    damage: Callable[[Path], None], name: str, run: RunDir, data: Path
) -> None:
    damage(run.checkpoint(2) / name)
    with fails("data.broken") as caught:
        train(tiny_config(data, run.root, **STEPS))
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("damage", "name", "weights"),
    [
        (flip, "ema.safetensors", "auto"),
        (flip, "model.safetensors", "raw"),
        (Path.unlink, "ema.safetensors", "auto"),
        (Path.unlink, "model.safetensors", "raw"),
        (Path.unlink, "manifest.json", "auto"),
    ],
)
def test_damaged_file_that_evaluation_reads_is_an_error_with_its_name(
    damage: Callable[[Path], None], name: str, weights: Any, run: RunDir
) -> None:
    damage(run.checkpoint(2) / name)
    for location in (run.root, run.checkpoint(2)):
        with fails("data.broken") as caught:
            open_trained(str(location), weights=weights)
        assert name in caught.value.message


def test_without_the_damaged_checkpoint_the_run_resumes_from_the_one_before(
    run: RunDir, data: Path
) -> None:
    flip(run.checkpoint(2) / "model.safetensors")
    shutil.rmtree(run.checkpoint(2))
    assert train(tiny_config(data, run.root, **STEPS)).status == "trained"
    assert open_trained(str(run.root)).origin.checkpoint == run.checkpoint(2)


def test_weights_that_no_manifest_lists_are_not_used(run: RunDir) -> None:
    folder = run.checkpoint(2)
    (folder / "ema.safetensors").unlink()
    tree = json.loads((folder / "manifest.json").read_text())
    del tree["files"]["ema.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(tree))
    shutil.copy(folder / "model.safetensors", folder / "ema.safetensors")
    assert open_trained(str(run.root)).origin.weights == "raw"


# files beside the checkpoints


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '{"step": 1, "checkpoint": "checkpoints/step_00000001"}']
)
def test_latest_that_is_not_the_newest_is_ignored_and_repaired(
    content: str | None, run: RunDir, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = run.latest_file.read_bytes()
    run.latest_file.unlink() if content is None else run.latest_file.write_text(content)
    assert open_trained(str(run.root)).origin.checkpoint == run.checkpoint(2)
    assert run_command(["inspect", str(run.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    assert train(tiny_config(data, run.root, **STEPS)).status == "already complete"
    assert run.latest_file.read_bytes() == expected


def test_changed_statistics_of_a_run_are_not_used(run: RunDir) -> None:
    run.stats.write_text(run.stats.read_text().replace("1", "2", 1))
    with pytest.raises(DataError) as caught:
        open_trained(str(run.root))
    assert caught.value.details["path"] == str(run.stats)


@pytest.mark.parametrize("name", ["config.yaml", "preprocessing_config.yaml"])
def test_damaged_file_of_a_run_has_a_hint(name: str, run: RunDir) -> None:
    (run.root / name).write_text("[" * 200 + "]" * 200)
    with pytest.raises(DataError) as caught:
        open_trained(str(run.root))
    assert caught.value.hint


def test_metrics_that_are_a_folder_are_reported_with_their_path(run: RunDir, data: Path) -> None:
    run.metrics.unlink()
    run.metrics.mkdir()
    with pytest.raises(DataError) as caught:
        train(tiny_config(data, run.root, **STEPS))
    assert caught.value.details["path"] == str(run.metrics)


def test_metrics_that_are_binary_do_not_end_a_run(run: RunDir, data: Path) -> None:
    shutil.rmtree(run.checkpoint(2))
    rows = [b"\xff\x00\xfe" * 99, b'{"step": "x"}', b'{"step": 1, "loss": "low"}', b"[" * 9999]
    run.metrics.write_bytes(b"\n".join(rows))
    result = train(tiny_config(data, run.root, **STEPS))
    assert (result.status, result.steps) == ("trained", 2)
    assert run_command(["-q", *tiny_arguments(data, run.root, **STEPS)]) == 0


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00", b"{}", b'{"data": [1]}'])
def test_lost_files_of_a_complete_run_are_written_again(
    content: bytes | None, run: RunDir, whole: Path, data: Path
) -> None:
    names = ("config.yaml", "stats.json", "preprocessing_config.yaml")
    for path in (run.root / name for name in names):
        path.unlink() if content is None else path.write_bytes(content)
    assert train(tiny_config(data, run.root, **STEPS)).status == "already complete"
    here, there = str(run.root.parent).encode(), str(whole.parent).encode()
    for name in names:
        actual = (run.root / name).read_bytes().replace(here, there)
        assert actual == (whole / name).read_bytes()
    open_trained(str(run.root))
