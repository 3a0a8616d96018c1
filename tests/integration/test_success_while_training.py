"""Rollouts of checkpoints while a run trains, and the best checkpoint that they choose."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vlatool
from tests.builders.recording import Recorder
from tests.builders.toy_policy import BROKEN_RESET, BROKEN_STEP, LINE, register_line
from tests.builders.toy_runs import HALF, SITE, STEPS, toy_config, toys
from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.errors import ConfigError, DataError, UsageError, VlatoolError
from vlatool.evaluation.config import RolloutConfig
from vlatool.events import Progress
from vlatool.training.config import TrainConfig
from vlatool.workflows.rollout import rollout
from vlatool.workflows.train import train

OPTIONS: dict[str, Any] = {
    "eval__env": LINE,
    "eval__episodes": 3,
    "eval__batch_size": 2,
    "eval__contact_sheet_episodes": 0,
    "eval__env_processes": 1,
    "eval__fields": {"x": {"key": "x"}},
    "eval__action": [{"field": "push"}],
}
TIMES = {"samples_per_second", "step_ms", "data_wait", "memory_gb"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register_line()
    return toys(tmp_path_factory.mktemp("toys"))


@pytest.fixture(autouse=True)
def site(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / SITE))


def config(root: Path, name: str, model: str = "toy_push", **changes: Any) -> TrainConfig:
    return toy_config(root, model, name, **{**OPTIONS, **changes})


def rows_of(run: RunDir) -> list[dict[str, Any]]:
    """Rows of the metrics without times."""
    rows = read_metrics(run.metrics)
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def success_of(run: RunDir) -> dict[int, float]:
    rows = rows_of(run)
    return {row["step"]: row["eval/success_rate"] for row in rows if "eval/success_rate" in row}


def checkpoint_bytes(run: RunDir) -> dict[str, bytes]:
    files = sorted(run.checkpoints_folder.rglob("*.*"))
    return {str(path.relative_to(run.root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(root: Path) -> RunDir:
    """A run that was not disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / SITE))
        result = train(config(root, "whole"))
    assert result.best is not None
    assert "success 100 %" in result.text()
    return RunDir(Path(result.output))


def test_checkpoints_are_rolled_out_as_by_the_command(whole: RunDir, tmp_path: Path) -> None:
    assert success_of(whole) == {HALF: 1.0, STEPS: 1.0}
    keys = {key.removeprefix("eval__"): value for key, value in OPTIONS.items()}
    output = str(tmp_path / "report")
    rollout(RolloutConfig(checkpoint=str(whole.checkpoint(HALF)), output=output, **keys))
    expected, made = (
        json.loads((folder / "report.json").read_text())
        for folder in (Path(output), whole.rollouts(HALF))
    )
    assert made["rollouts"] == expected["rollouts"]
    assert made["weights"] == "ema"


def test_rollouts_change_no_weights(whole: RunDir, root: Path) -> None:
    plain = toy_config(root, "toy_push", "plain")
    train(plain)
    assert checkpoint_bytes(RunDir(root / "plain")) == checkpoint_bytes(whole)


def test_best_checkpoint_is_a_location_of_weights(whole: RunDir) -> None:
    assert vlatool.load_policy(whole.root / "best").checkpoint == whole.checkpoint(STEPS)
    assert json.loads(whole.best_file.read_text()) == {
        "checkpoint": f"checkpoints/step_{STEPS:08d}",
        "step": STEPS,
        "metric": "eval/success_rate",
        "value": 1.0,
    }


class AtRollouts(Recorder):
    """Reporter that calls a function when the rollouts of a checkpoint begin."""

    def __init__(self, call: Callable[[], object], checkpoint: int = 2) -> None:
        super().__init__()
        self._call, self._left = call, checkpoint

    def progress(self, name: str, total: int | None, unit: str) -> Progress:
        self._left -= name == "rollouts"
        if name == "rollouts" and not self._left:
            self._call()
        return super().progress(name, total, unit)


class KilledError(BaseException):
    """End of a process that nothing reacts to."""


def _die() -> None:
    raise KilledError


@pytest.mark.parametrize(
    ("call", "end"),
    [
        (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt),
        (lambda: signal.raise_signal(signal.SIGTERM), SystemExit),
        (_die, KilledError),
    ],
    ids=["Ctrl-C", "SIGTERM", "killed"],
)
def test_run_that_ends_in_rollouts_resumes_to_an_equal_one(
    call: Callable[[], object], end: type[BaseException], root: Path, whole: RunDir
) -> None:
    ended = config(root, end.__name__, num_checkpoints=2)
    run = RunDir(root / end.__name__)
    with pytest.raises(end):
        train(ended, reporter=AtRollouts(call))
    assert (success_of(run), run.latest()) == ({HALF: 1.0}, (STEPS, run.checkpoint(STEPS)))
    train(ended)
    assert rows_of(run) == rows_of(whole)
    assert checkpoint_bytes(run) == checkpoint_bytes(whole)
    assert run.best_file.read_bytes() == whole.best_file.read_bytes()
    assert train(ended).status == "already complete"


def test_rollouts_before_the_first_line_of_metrics_are_repeated(root: Path) -> None:
    keys: dict[str, Any] = {"log_every_n_steps": 100, "num_checkpoints": 2}
    with pytest.raises(KilledError):
        train(config(root, "no-lines", **keys), reporter=AtRollouts(_die, 1))
    train(config(root, "no-lines", **keys))
    assert success_of(RunDir(root / "no-lines")) == {HALF: 1.0, STEPS: 1.0}


def test_complete_run_gets_the_rollouts_that_a_later_command_asks_for(root: Path) -> None:
    train(toy_config(root, "toy_push", "later"))
    run = RunDir(root / "later")
    assert run.read_best() is None
    train(config(root, "later"))
    assert success_of(run) == {STEPS: 1.0}


def test_each_task_of_a_suite_has_a_success_rate(root: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"tasks:\n  first: {{env: {LINE}}}\n  other: {{env: {LINE}, seed: 7}}\n")
    keys: dict[str, Any] = {"eval__suite": str(suite), "eval__env": "", "num_checkpoints": 1}
    train(config(root, "suite", **keys))
    row = rows_of(RunDir(root / "suite"))[-1]
    assert [row[f"eval/success_rate/{task}"] for task in ("first", "other")] == [1.0, 1.0]
    assert row["eval/episodes"] == 6.0


def test_environment_that_always_fails_does_not_end_the_run(root: Path) -> None:
    reporter, broken = Recorder(), {"broken": [BROKEN_STEP]}
    keys = {"eval__seed": BROKEN_STEP, "eval__episodes": 1, "eval__env_options": broken}
    assert train(config(root, "broken", **keys), reporter=reporter).status == "trained"
    assert [code for code, _ in reporter.warnings] == ["rollouts_failed"] * 2
    assert RunDir(root / "broken").read_best() is None


ERRORS: dict[str, tuple[dict[str, Any], type[VlatoolError], str]] = {
    "unknown environment": ({"eval__env": "toys/None-v0"}, UsageError, "usage.unknown_name"),
    "no environment": ({"eval__env": ""}, UsageError, "usage.missing_key"),
    "unmapped field": ({"eval__fields": {}}, DataError, "data.unknown_field"),
    "unknown key": ({"eval__fields": {"x": {"key": "y"}}}, DataError, "data.bad_request"),
    "width": (
        {"eval__action": [{"field": "push"}, {"field": "push"}]},
        DataError,
        "data.mismatch",
    ),
    "failing reset": (
        {"eval__seed": BROKEN_RESET, "eval__env_options": {"broken": [BROKEN_RESET]}},
        UsageError,
        "usage.bad_value",
    ),
    "no policy": ({"model": "toy_lm"}, ConfigError, "config.contradiction"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_rollouts_that_cannot_be_made_end_the_command_before_the_first_step(
    name: str, root: Path
) -> None:
    changes, error, code = ERRORS[name]
    run = name.replace(" ", "-")
    with pytest.raises(error) as caught:
        train(config(root, run, **changes))
    assert caught.value.code == code
    assert not RunDir(root / run).metrics.exists()
