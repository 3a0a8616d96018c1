"""Metrics and warnings of a run, which are logged one step late."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.regression import Fixture, Regression, micro_batches, samples
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.loading.base import DroppedSample, MicroBatch
from vlatool.models.base import Batch, Loss, StepContext
from vlatool.training.metrics import DropsFile, Meter


class WithFinding(Regression):
    """Objective that reports a finding for all metrics."""

    def __init__(self, severity: str) -> None:
        super().__init__()
        self._severity = severity

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        assert "again" in metrics
        return [Finding("toy.loud", self._severity, "it is loud")]  # pyright: ignore[reportArgumentType]


def run_of(folder: Path, steps: int, share: float = 0.01) -> tuple[Fixture, Recorder]:
    run, reporter = Fixture(folder, size=16, steps=steps), Recorder()
    run.trainer.logger.reporter = reporter
    run.config.log_every_n_steps = 1
    run.config.data_kind.drop_reasons = ("too_dark", "no_number")
    run.config.data.max_dropped_share = share
    return run, reporter


def dropping(*counts: tuple[int, int]) -> Iterator[MicroBatch]:
    """Micro-batches, one per step, with a pair of drop counts each."""
    reasons = ("too_dark", "no_number")
    for micro_batch, dropped in zip(micro_batches(samples(), 16), counts, strict=False):
        name = micro_batch.samples[0]
        drops = tuple(
            DroppedSample(reason, f"{name}-{number}", f"row {name} is broken")
            for reason, count in zip(reasons, dropped, strict=True)
            for number in range(count)
        )
        yield replace(micro_batch, dropped=dropped, drops=drops)


def test_dropped_samples_are_counted_and_listed_and_each_reason_is_reported_once(
    tmp_path: Path,
) -> None:
    run, reporter = run_of(tmp_path, 3)
    run.trainer.logger.drops = DropsFile(tmp_path / "dropped.jsonl")
    run.fit_batches(dropping((0, 2), (0, 3), (1, 3)))
    assert run.state.dropped == {"no_number": 8, "too_dark": 1}
    assert [code for code, _ in reporter.warnings] == ["data.dropped_samples"] * 2
    assert reporter.warnings[0][1].endswith("row sample-0 is broken")
    assert [row["dropped"] for row in run.rows] == [2, 5, 9]
    rows = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1] * 2 + [2] * 3 + [3] * 4
    expected = {"step": 1, "reason": "no_number", "sample": "sample-0-0"}
    assert rows[0] == {**expected, "message": "row sample-0 is broken"}
    again = DropsFile(tmp_path / "dropped.jsonl")
    again.add(4, [DroppedSample(row["reason"], row["sample"], "") for row in rows])
    assert len((tmp_path / "dropped.jsonl").read_text().splitlines()) == 9


def test_run_ends_when_too_large_a_share_is_dropped(tmp_path: Path) -> None:
    # The share is measured over at least 1000 samples: ten drops are allowed.
    run, _ = run_of(tmp_path, 4)
    with fails("data.incomplete") as caught:
        run.fit_batches(dropping((5, 0), (5, 0), (1, 0), (0, 0)))
    assert caught.value.details["dropped"] == {"too_dark": 11}
    assert run.saved == [2]


def test_share_of_dropped_samples_can_be_raised(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, 2, share=1.0)
    run.fit_batches(dropping((9, 0), (9, 0)))
    assert run.state.dropped == {"too_dark": 18}


def test_finding_is_reported_once(tmp_path: Path) -> None:
    run, reporter = run_of(tmp_path, 4)
    run.objective = WithFinding("warning")
    run.fit_batches(dropping(*[(0, 0)] * 4))
    assert reporter.warnings == [("toy.loud", "it is loud")]
    assert run.state.step == 4


def test_finding_that_is_an_error_ends_the_run(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, 4)
    run.objective = WithFinding("error")
    with pytest.raises(DataError, match="it is loud"):
        run.fit_batches(dropping(*[(0, 0)] * 4))
    assert run.saved == []


class Alternating(Regression):
    """Objective whose optimizers alternate; the second has a larger loss."""

    def __init__(self) -> None:
        super().__init__(("main", "second"))

    def optimizers_at(self, step: int) -> Sequence[str]:
        return [("main", "second")[step % 2]]

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        loss = super().loss(optimizer, batch, ctx)
        return replace(loss, total=loss.total * (1 if optimizer == "main" else 100))


def test_metrics_of_alternating_optimizers_are_separate(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, 2)
    run.objective = Alternating()
    run.state.optimizers["second"] = run.state.optimizers["main"]
    run.config.log_every_n_steps = 2
    run.fit_batches(dropping((0, 0), (0, 0)))
    (row,) = run.rows
    assert row["second/loss"] > 20 * row["loss"]
    assert {"again", "second/again", "second/lr"} <= row.keys()


def test_utilization_is_the_share_of_the_ideal_rate(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, 1)
    run.trainer.logger.meter = Meter(ideal_rate=1000.0)
    run.fit_batches(dropping((0, 0)))
    (row,) = run.rows
    assert row["mfu"] == pytest.approx(row["samples_per_second"] / 1000.0)
    assert row["memory_gb"] > 0.01


def test_waits_and_memory_are_those_of_the_slowest_and_the_fullest_process() -> None:
    meter = Meter()
    meter.add_ranks([0.5, 2.0], [3e9, 1e9])
    meter.add_ranks([1.0, 0.0], [3e9, 4e9])
    meter.add_step(8, time.perf_counter() + 6.0)
    values = meter.report({})
    assert values["data_wait"] == pytest.approx(0.5, rel=0.01)
    assert values["memory_gb"] == 4.0
    assert "mfu" not in values
