"""The best checkpoint of a run: its choice, its file, and the checkpoints that stay."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from vlatool.checkpoints.checkpoint import MODEL, CheckpointManifest
from vlatool.checkpoints.layout import CONFIG, BestCheckpoint, Retention, RunDir, choose_best
from vlatool.checkpoints.locations import find_checkpoint, named_best
from vlatool.errors import DataError

SUCCESS, AVERAGED, RAW = "eval/success_rate", "val/ema/loss", "val/loss"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, {SUCCESS: 0.5}), (2, {SUCCESS: 0.9}), (3, {SUCCESS: 0.7})], (2, SUCCESS, 0.9)),
        ([(1, {SUCCESS: 0.9}), (2, {SUCCESS: 0.9})], (2, SUCCESS, 0.9)),
        ([(1, {SUCCESS: 0.0, RAW: 9.0}), (2, {RAW: 1.0})], (1, SUCCESS, 0.0)),
        ([(1, {AVERAGED: 2.0, RAW: 3.0}), (2, {AVERAGED: 3.0, RAW: 1.0})], (1, AVERAGED, 2.0)),
        ([(1, {RAW: 3.0}), (2, {RAW: None}), (9, {RAW: 0.0})], (1, RAW, 3.0)),
        ([(1, {"loss": 3.0})], None),
    ],
    ids=["success", "latest of equal ones", "success before loss", "averaged", "known", "none"],
)
def test_best_is_by_success_else_by_validation_loss(
    rows: Sequence[tuple[int, Mapping[str, float]]], expected: tuple[int, str, float] | None
) -> None:
    best = choose_best([{"step": step, **values} for step, values in rows], {1, 2, 3})
    assert best == (None if expected is None else BestCheckpoint(*expected))


def run_with(root: Path, success: Mapping[int, float], stopped: Sequence[int] = ()) -> RunDir:
    """A run with a checkpoint and a success rate per step."""
    root.mkdir(exist_ok=True)
    run = RunDir(root)
    for step in success:
        folder = run.checkpoint(step)
        folder.mkdir(parents=True)
        (folder / MODEL).write_text(str(step))
        CheckpointManifest.of(folder, step, step, stopped=step in stopped).write(folder)
    rows = [{"step": step, SUCCESS: rate} for step, rate in success.items()]
    run.metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (root / CONFIG).write_text("model: {type: toy}\n")
    run.update_best()
    return run


@pytest.mark.parametrize(("stopped", "best"), [((), 2), ((2,), 3)])
def test_retention_keeps_the_best_planned_checkpoint(
    tmp_path: Path, stopped: Sequence[int], best: int
) -> None:
    run = run_with(tmp_path, {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.3}, stopped)
    run.prune(Retention(latest=1))
    assert [step for step, _ in run.checkpoints()] == [best, 4]
    assert find_checkpoint(named_best(tmp_path / "best"))[1] == run.checkpoint(best)


def test_best_of_a_run_without_its_file_is_by_the_metrics_or_an_error(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", {1: 0.1, 2: 0.9, 3: 0.5})
    run.best_file.unlink()
    assert named_best(run.root / "best") == run.checkpoint(2)
    assert not run.best_file.exists()

    unmeasured = run_with(tmp_path / "unmeasured", {})
    assert not unmeasured.best_file.exists()
    with pytest.raises(DataError) as caught:
        named_best(unmeasured.root / "best")
    assert caught.value.code == "data.missing"

    best = run_with(tmp_path / "best", {1: 0.1})
    assert named_best(best.root) == best.root, "a run of this name is itself"
    assert find_checkpoint(named_best(best.root / "best"))[1] == best.checkpoint(1)
