"""The copy of a run below `remote_sync`: when it is continued, and when it is refused."""

from pathlib import Path

import pytest

from tests.builders.errors import fails
from vlatool.checkpoints.checkpoint import CheckpointManifest
from vlatool.checkpoints.layout import RunDir
from vlatool.config.resolve import Override, load_config
from vlatool.errors import UsageError
from vlatool.jobs.ownership import owner_of
from vlatool.jobs.record import OutputRecord
from vlatool.training.config import TrainConfig
from vlatool.training.resume import RunStart, has_trained
from vlatool.training.sync import RemoteRun, find_remote_run

_RATE = 1e-4


def _config(folder: Path, **changes: object) -> TrainConfig:
    """Configuration of a run `runs/a` with `remote_sync`."""
    keys = {"save_path": f"{folder}/runs", "name": "a", "remote_sync": f"{folder}/remote"}
    overrides = [Override(key, value, "test") for key, value in {**keys, **changes}.items()]
    presets = ["diffusion-policy-tiny"]
    return load_config(TrainConfig, presets=presets, overrides=overrides).config


def _write_run(
    root: Path,
    step: int,
    *,
    rate: float = _RATE,
    run_id: str = "mine",
    complete: bool = False,
) -> None:
    """Writes the record of a run and an empty checkpoint."""
    run = RunDir(root)
    if step:
        run.checkpoint(step).mkdir(parents=True, exist_ok=True)
        CheckpointManifest(step, step, {}).write(run.checkpoint(step))
        run.write_latest(step)
    options = {"model": {"type": "diffusion_policy"}, "hparams": {"lr": rate}, "ema": {}}
    OutputRecord("train", options, run_id=run_id, complete=complete).save(root)


def _start_in(config: TrainConfig, run: RunDir) -> RunStart:
    """Rule of a run that differs from others by its learning rate only."""
    record = owner_of(run.root, "train")
    if record is None or not has_trained(run):
        return "new"
    if record.options["hparams"]["lr"] != config.hparams.lr and not config.overwrite:
        raise UsageError("other options", code="usage.output_differs")
    return "resume"


def _found(folder: Path, **changes: object) -> RemoteRun:
    config = _config(folder, **{"hparams.lr": _RATE, **changes})
    return find_remote_run(config, _start_in)


@pytest.mark.parametrize(
    ("local_step", "remote_step", "step"),
    [(None, 2, 2), (2, 4, 4), (4, 4, None), (6, 4, None), (None, 0, None)],
    ids=["no local run", "behind", "level", "ahead", "no remote checkpoint"],
)
def test_run_continues_its_copy_if_that_is_ahead(
    local_step: int | None, remote_step: int, step: int | None, tmp_path: Path
) -> None:
    _write_run(tmp_path / "remote/a", remote_step)
    _write_run(tmp_path / "remote/b", 8, run_id="other")
    if local_step is not None:
        _write_run(tmp_path / "runs/a", local_step)
    assert _found(tmp_path) == RemoteRun(tmp_path / "remote/a", step)


def test_run_without_a_copy_is_new_whatever_else_is_there(tmp_path: Path) -> None:
    _write_run(tmp_path / "remote/b", 8)
    assert _found(tmp_path) == RemoteRun(tmp_path / "remote/a")


@pytest.mark.parametrize("changes", [{}, {"overwrite": True}], ids=["", "overwrite is local"])
def test_remote_run_with_other_options_is_an_error(
    changes: dict[str, object], tmp_path: Path
) -> None:
    _write_run(tmp_path / "remote/a", 4)
    with fails("usage.output_differs"):
        _found(tmp_path, **{"hparams.lr": 0.5, **changes})


def test_local_run_that_is_not_the_one_of_the_copy_is_an_error(tmp_path: Path) -> None:
    _write_run(tmp_path / "runs/a", 6, run_id="other")
    _write_run(tmp_path / "remote/a", 4)
    with fails("usage.output_differs"):
        _found(tmp_path, overwrite=True)


def test_remote_folder_with_other_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "remote/a").mkdir(parents=True)
    (tmp_path / "remote/a/thesis.tex").touch()
    with fails("usage.output_exists"):
        _found(tmp_path)


def test_local_folder_with_other_files_is_an_error(tmp_path: Path) -> None:
    _write_run(tmp_path / "remote/a", 4)
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/thesis.tex").touch()
    with fails("usage.output_exists"):
        _found(tmp_path)


@pytest.mark.parametrize("folder", ["runs", "remote"])
def test_overwriting_a_complete_run_that_has_a_copy_is_an_error(
    folder: str, tmp_path: Path
) -> None:
    for root in ("runs", "remote"):
        _write_run(tmp_path / root / "a", 4)
    _write_run(tmp_path / folder / "a", 4, complete=True)
    with fails("usage.output_exists"):
        _found(tmp_path, overwrite=True)
