"""Run ownership; a killed --overwrite can be repeated after a kill at any file operation."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.training import tiny_config
from vlatool.checkpoints.layout import RunDir
from vlatool.errors import UsageError
from vlatool.events import NULL
from vlatool.jobs.record import OutputRecord
from vlatool.storage.atomic import write_text
from vlatool.training.config import TrainConfig
from vlatool.training.resume import (
    RunStart,
    identity_keys,
    plan_run,
    prepare_run,
    with_base_config,
)

KILLED = 77
# Audit events that the interpreter raises before a write.
WRITES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}


def config_of(**keys: object) -> TrainConfig:
    return TrainConfig.model_validate({"total_train_steps": 4, **keys})


OLD, NEW = config_of(), config_of(total_train_steps=5)


def planned(run: RunDir, config: TrainConfig) -> tuple[RunStart, OutputRecord]:
    return plan_run(run, config, identity_keys(config), lambda before: "", NULL)


def start_run(run: RunDir, config: TrainConfig) -> None:
    """Opens a run folder as `train` does."""
    start, record = planned(run, config)
    prepare_run(run, config, start, record, lambda: write_text(run.stats, "{}"))


def finished(root: Path) -> RunDir:
    """A run with two checkpoints, images and metrics."""
    run = RunDir(root)
    start_run(run, OLD)
    for step in (2, 4):
        run.checkpoint(step).mkdir(parents=True)
        for name in ("manifest.json", "model.safetensors"):
            (run.checkpoint(step) / name).write_text("{}")
        run.write_latest(step)
    run.image(4, "look").parent.mkdir()
    run.image(4, "look").write_bytes(b"")
    run.metrics.write_text('{"step": 4}\n')
    return run


def operations(work: Callable[[], None], end: int = 0) -> int:
    """Number of file operations of `work` in a forked process.

    Args:
        work: Function to run.
        end: Number of the operation before which the process is killed, from 1; 0: none.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _count(work, end, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        count = len(pipe.read())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (KILLED if end else 0)
    return count


def _count(work: Callable[[], None], end: int, writer: int) -> None:
    done = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        is_read = event == "open" and not str(arguments[1]).startswith(("w", "a", "x"))
        if event not in WRITES or is_read:
            return
        done += 1
        if done == end:
            os._exit(KILLED)
        os.write(writer, b".")

    try:
        sys.addaudithook(hook)
        work()
    except BaseException:  # noqa: BLE001 - the parent sees the code
        os._exit(1)
    os._exit(0)


def test_overwrite_that_is_killed_anywhere_can_be_repeated(tmp_path: Path) -> None:
    finished(tmp_path / "old")
    root = tmp_path / "run"
    replacing = NEW.model_copy(update={"overwrite": True})

    def replaced() -> None:
        start_run(RunDir(root), replacing)

    shutil.copytree(tmp_path / "old", root)
    count = operations(replaced)
    assert count > 20, count
    codes: set[str] = set()
    for end in range(1, count + 1):
        shutil.rmtree(root)
        shutil.copytree(tmp_path / "old", root)
        operations(replaced, end)
        codes.add(_error_code(RunDir(root)))
        replaced()
        run = RunDir(root)
        assert (run.checkpoint_folders(), run.metrics.exists(), _error_code(run)) == ([], False, "")
        assert run.config_tree()["total_train_steps"] == 5
    assert codes == {"usage.output_differs", ""}


def _error_code(run: RunDir) -> str:
    """Error code of a new run without --overwrite; empty if it may start."""
    try:
        planned(run, NEW)
    except UsageError as error:
        return error.code
    return ""


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_that_is_not_a_run_is_unchanged(overwrite: bool, tmp_path: Path) -> None:
    for name in ("thesis.txt", ".a.12-ab.partial", "notes.partial", "sub/.b.12.partial"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = sorted(tmp_path.rglob("*"))
    with fails("usage.output_exists"):
        start_run(RunDir(tmp_path), config_of(overwrite=overwrite))
    assert sorted(tmp_path.rglob("*")) == before


def test_partial_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    run = finished(tmp_path)
    left = [
        run.checkpoints_folder / ".step_00000006.1.partial",
        tmp_path / ".latest.json.1-ab.partial",
    ]
    left[0].mkdir()
    left[1].write_text("")
    start_run(run, OLD)
    assert not any(path.exists() for path in left)
    assert len(run.checkpoints()) == 2


def test_other_files_in_a_run_are_not_listed(tmp_path: Path) -> None:
    run = finished(tmp_path)
    (tmp_path / "train.log").write_text("one line")
    start_run(run, NEW.model_copy(update={"overwrite": True}))
    assert {entry.path for entry in run.recorded_files()} == {"config.yaml", "stats.json"}


@pytest.mark.parametrize("name", [".vlatool/files.jsonl", "stats.json", "config.yaml"])
def test_damaged_asset_of_a_resumed_run_is_written_again(name: str, tmp_path: Path) -> None:
    run = finished(tmp_path)
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_text("{bad")
    recorder = Recorder()
    start, record = planned(run, OLD)
    prepare_run(run, OLD, start, record, lambda: write_text(run.stats, "{}"), recorder)
    assert (tmp_path / name).read_bytes() == before
    assert name in recorder.notes[0]


def test_overwrite_replaces_no_initial_weights_and_no_output_of_another_command(
    tmp_path: Path,
) -> None:
    run = finished(tmp_path / "run")
    replacing = OLD.model_copy(update={"overwrite": True})
    with fails("usage.conflict"):
        with_base_config(replacing.model_copy(update={"init_from": str(run.root)}), run)
    OutputRecord("export", {}).save(run.root)
    with fails("usage.output_exists"):
        planned(run, replacing)
    assert run.latest() is not None


def test_keys_that_0_3_lacks_are_in_a_record_only_if_they_change_the_run(
    data: Path, tmp_path: Path
) -> None:
    config = tiny_config(data, tmp_path / "run")
    assert "lora" not in identity_keys(config)
    assert identity_keys(tiny_config(data, tmp_path / "run", lora__rank=2))["lora"]["rank"] == 2
