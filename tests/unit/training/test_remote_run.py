"""Choice of the remote folder of a run: which run below `remote_sync` is continued."""

import os
from pathlib import Path

import pytest

from tests.builders.errors import fails
from vlatool.artifacts.run.checkpoint import CheckpointManifest
from vlatool.artifacts.run.format import RunDir
from vlatool.config.resolve import Override, load_config
from vlatool.errors import UsageError
from vlatool.jobs.ownership import owner_of
from vlatool.jobs.record import OutputRecord
from vlatool.training.config import TrainConfig
from vlatool.training.remote_run import RemoteRun, choose_remote_run
from vlatool.training.resume import RunStart, has_trained

_RATE = 1e-4


def _config(folder: Path, **changes: object) -> TrainConfig:
    """Configuration of a run `runs/a` with `remote_sync`."""
    keys = {"save_path": f"{folder}/runs", "name": "a", "remote_sync": f"{folder}/remote"}
    overrides = [Override(key, value, "test") for key, value in {**keys, **changes}.items()]
    presets = ["diffusion-policy-tiny"]
    return load_config(TrainConfig, presets=presets, overrides=overrides).config


def _write_run(
    root: Path, step: int, *, rate: float = _RATE, run_id: str = "", age: int = 0
) -> None:
    """Writes the record of a run and an empty checkpoint, some seconds ago."""
    run = RunDir(root)
    if step:
        run.checkpoint(step).mkdir(parents=True)
        CheckpointManifest(step, step, {}).write(run.checkpoint(step))
        run.write_latest(step)
        os.utime(run.latest_file, (1e9 - age, 1e9 - age))
    options = {"model": {"type": "diffusion_policy"}, "hparams": {"lr": rate}, "ema": {}}
    OutputRecord("train", options, run_id=run_id or root.name).save(root)


def _start_in(config: TrainConfig, run: RunDir) -> RunStart:
    """Rule of a run that differs from others by its learning rate only."""
    record = owner_of(run.root, "train")
    if record is None or not has_trained(run):
        return "new"
    if record.options["hparams"]["lr"] == config.hparams.lr:
        return "replace" if config.fresh and config.overwrite else "resume"
    if not config.overwrite:
        raise UsageError("other options", code="usage.output_differs")
    return "replace"


def _chosen(folder: Path, **changes: object) -> RemoteRun:
    config = _config(folder, **{"hparams.lr": _RATE, **changes})
    return choose_remote_run(config, "new", _start_in)


def test_run_starts_in_a_folder_of_its_name_if_nothing_is_there(tmp_path: Path) -> None:
    assert _chosen(tmp_path) == RemoteRun("a", tmp_path / "remote/a")
    assert _chosen(tmp_path, name=None) == RemoteRun("new", tmp_path / "remote/new")


@pytest.mark.parametrize(
    ("runs", "changes", "expected"),
    [
        ({"a": 2, "b": 4}, {}, ("a", "a", 2)),
        ({"b": 2, "c": 4}, {}, ("a", "c", 4)),
        ({"b": 2, "c": 4}, {"name": None}, ("c", "c", 4)),
        ({"b": 2}, {"hparams.lr": 0.5}, ("a", "a", None)),
        ({"a": 0}, {}, ("a", "a", None)),
        ({"a": 2}, {"fresh": True}, ("a", "a-2", None)),
        ({"a": 2, "a-2": 2, "b": 4}, {"fresh": True}, ("a", "a-3", None)),
        ({"a": 2, "b": 4}, {"fresh": True, "name": None}, ("new", "new", None)),
    ],
    ids=[
        "same name",
        "newest of other names",
        "newest gives the name",
        "other options of another name",
        "without a checkpoint",
        "fresh",
        "fresh again",
        "fresh without a name",
    ],
)
def test_run_of_a_machine_without_it_is(
    runs: dict[str, int],
    changes: dict[str, object],
    expected: tuple[str, str, int | None],
    tmp_path: Path,
) -> None:
    for age, (name, step) in enumerate(reversed(runs.items())):
        _write_run(tmp_path / "remote" / name, step, age=age)
    choice = _chosen(tmp_path, **changes)
    assert (choice.name, choice.root.name, choice.step) == expected


@pytest.mark.parametrize(
    ("local_step", "step"), [(2, 4), (4, None), (6, None)], ids=["behind", "level", "ahead"]
)
def test_local_run_belongs_to_the_remote_one_with_its_id(
    local_step: int, step: int | None, tmp_path: Path
) -> None:
    _write_run(tmp_path / "runs/a", local_step, run_id="mine")
    _write_run(tmp_path / "remote/a", 8)
    _write_run(tmp_path / "remote/a-2", 4, run_id="mine", age=9)
    assert _chosen(tmp_path) == RemoteRun("a", tmp_path / "remote/a-2", "mine", step=step)


def test_overwrite_replaces_the_local_run_by_the_remote_one(tmp_path: Path) -> None:
    _write_run(tmp_path / "runs/a", 6, rate=0.5)
    _write_run(tmp_path / "remote/b", 4)
    choice = _chosen(tmp_path, overwrite=True)
    assert choice == RemoteRun("a", tmp_path / "remote/b", "b", replaces=True, step=4)


def test_overwrite_and_fresh_replace_the_local_run_and_leave_the_remote_one(tmp_path: Path) -> None:
    for place in ("runs", "remote"):
        _write_run(tmp_path / place / "a", 4)
    choice = _chosen(tmp_path, overwrite=True, fresh=True)
    assert choice == RemoteRun("a", tmp_path / "remote/a-2", replaces=True)


@pytest.mark.parametrize(
    ("place", "changes", "code"),
    [
        ("runs", {"fresh": True}, "usage.output_exists"),
        ("runs", {"hparams.lr": 0.5}, "usage.output_differs"),
        ("remote", {"hparams.lr": 0.5}, "usage.output_differs"),
        ("remote", {"hparams.lr": 0.5, "overwrite": True}, "usage.output_differs"),
    ],
    ids=["fresh with a local run", "local options", "remote options", "overwrite is local"],
)
def test_run_of_its_name_is_an_error_with(
    place: str, changes: dict[str, object], code: str, tmp_path: Path
) -> None:
    _write_run(tmp_path / place / "a", 4)
    with fails(code):
        _chosen(tmp_path, **changes)


def test_remote_folder_with_other_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "remote/a").mkdir(parents=True)
    (tmp_path / "remote/a/thesis.tex").touch()
    with fails("usage.output_exists"):
        _chosen(tmp_path)
    assert _chosen(tmp_path, fresh=True).root.name == "a-2"
