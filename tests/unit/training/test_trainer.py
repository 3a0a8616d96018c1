"""The training loop on a linear model with an objective that uses no randomness."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.builders.errors import fails
from tests.builders.regression import Fixture, Regression, dummy_of, micro_batches, samples
from vlatool.errors import DataError
from vlatool.events import STOP_SIGNALS
from vlatool.loading.base import MicroBatch
from vlatool.models.base import Batch, Loss, StepContext
from vlatool.training.config import HParams, TrainConfig
from vlatool.training.runtime import Runtime
from vlatool.training.trainer import StopRequest


def test_weights_and_loss_do_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    whole = Fixture(tmp_path / "a", size=16).fit(samples())
    parts = Fixture(tmp_path / "b", size=2).fit(samples())
    torch.testing.assert_close(
        parts.model.state_dict(), whole.model.state_dict(), rtol=1e-6, atol=1e-7
    )
    for first, second in zip(parts.rows, whole.rows, strict=True):
        for key in ("loss", "grad_norm", "again"):
            assert first[key] == pytest.approx(second[key], rel=1e-5)


def test_update_uses_the_gradient_of_the_mean_over_counted_elements(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=4, steps=1, wd=0.0)
    model = nn.Linear(3, 2)
    model.load_state_dict(run.model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, betas=(0.9, 0.95), weight_decay=0.0)
    data = samples(16)
    error = (model(data["x"]) - data["y"]) ** 2
    error[data["mask"]].mean().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()

    run.fit(data)

    torch.testing.assert_close(run.model.state_dict(), model.state_dict(), rtol=1e-5, atol=1e-6)
    assert run.rows[-1]["grad_norm"] == pytest.approx(norm.item(), rel=1e-5)


def test_reported_metrics_cover_all_steps_since_the_last_report(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=4, lr=0.0).fit(samples())
    error = (run.model(samples()["x"]) - samples()["y"]) ** 2
    mask = samples()["mask"]
    expected = error[:48][mask[:48]].mean().item()
    assert run.rows[0]["again"] == pytest.approx(expected, rel=1e-6)


def test_checkpoints_and_metrics_are_written_at_their_steps(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=8, lr_scheduler="const", warmup=2).fit(samples())
    assert run.saved == [2, 4]
    assert (run.state.step, run.state.samples) == (4, 64)
    assert [row["step"] for row in run.rows] == [3, 4]
    assert run.rows[-1]["samples"] == 64
    assert {"loss", "lr", "grad_norm", "again", "data_wait"} <= run.rows[0].keys()
    assert run.state.optimizers["main"].param_groups[0]["lr"] == run.rows[-1]["lr"] == 0.05


def test_buffers_are_updated_once_per_step_with_the_sums_of_all_micro_batches(
    tmp_path: Path,
) -> None:
    run = Fixture(tmp_path, size=4, steps=1).fit(samples(16))
    assert run.objective.buffer_updates == [("main", float(samples(16)["mask"].sum()), True)]


def test_loss_that_is_not_finite_stops_before_weights_change(tmp_path: Path) -> None:
    run = Fixture(tmp_path / "a", size=8)
    data = samples()
    data["x"][16 + 9] = float("nan")
    with fails("data.not_finite") as caught:
        run.fit(data)
    assert caught.value.details["samples"] == [f"sample-{index}" for index in range(24, 32)]
    assert caught.value.details["step"] == 2
    first = Fixture(tmp_path / "b", size=8, steps=1, lr_scheduler="const")
    same = Fixture(tmp_path / "c", size=8, lr_scheduler="const")
    first.fit(samples())
    with pytest.raises(DataError):
        same.fit(data)
    assert torch.equal(first.model.weight, same.model.weight)
    averages = [fixture.state.averages["model"].weights["weight"] for fixture in (first, same)]
    assert torch.equal(*averages)
    assert same.objective.buffer_updates[1][2] is False
    assert same.saved == []


def test_step_after_a_loss_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    data = samples()
    data["x"][2 * 16 + 9] = float("nan")  # step 3; its loss is read after step 4
    first = Fixture(tmp_path / "a", size=8, steps=2, lr_scheduler="const")
    same = Fixture(tmp_path / "b", size=8, lr_scheduler="const")
    first.fit(samples())
    with pytest.raises(DataError):
        same.fit(data)
    assert torch.equal(first.model.weight, same.model.weight)


def test_dummy_micro_batch_changes_nothing_and_counts_nothing(tmp_path: Path) -> None:
    data = samples(16)
    half = {name: value[:8] for name, value in data.items()}
    run = Fixture(tmp_path / "a", size=8, steps=1)
    run.fit_batches(iter([*micro_batches(half, 8), dummy_of(data, 8)]))
    masked = {**data, "mask": data["mask"] & (torch.arange(16) < 8)[:, None]}
    expected = Fixture(tmp_path / "b", size=8, steps=1).fit(masked)
    assert torch.equal(run.model.weight, expected.model.weight)
    assert run.objective.buffer_updates == expected.objective.buffer_updates


def test_step_of_dummy_micro_batches_changes_nothing_and_is_not_an_error(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=8, steps=2)
    first = list(micro_batches(samples(16), 8))
    before: list[torch.Tensor] = []

    def batches() -> Iterator[MicroBatch]:
        yield from first
        before.extend(value.detach().clone() for value in run.model.state_dict().values())
        yield from [dummy_of(samples(), 8)] * 2

    run.fit_batches(batches())
    assert all(map(torch.equal, before, run.model.state_dict().values()))
    assert [ok for _, _, ok in run.objective.buffer_updates] == [True, False]
    assert run.state.step == 2


@pytest.mark.parametrize(("number", "at", "last"), [("SIGTERM", 1, 2), ("SIGINT", 2, 4)])
def test_stop_request_ends_after_the_step(number: str, at: int, last: int, tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=16)
    run.trainer.stop_signal = lambda: signal.Signals[number] if run.state.step >= at else None
    run.fit(samples())
    assert (run.state.step, run.saved[-1]) == (last, last)
    assert run.trainer.logger.stopped_by == signal.Signals[number]


def test_checkpoint_by_the_clock_is_saved_once_when_all_ranks_know_it(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=16, steps=6)
    run.trainer.save_due = lambda: run.state.step == 2
    run.fit(samples(96))
    assert run.saved == [2, 4, 6]


def test_randomness_of_a_step_is_the_same_after_a_resume() -> None:
    runtime = Runtime(TrainConfig())

    def draw(*key: int) -> tuple[torch.Tensor, torch.Tensor]:
        runtime.seed(*key)
        return runtime.rng(range(4), 4, *key).uniform(3), torch.rand(3)

    first = draw(42, 5)
    draw(42, 6)
    again, other = draw(42, 5), draw(43, 5)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_precision_may_differ_between_runs_of_one_process() -> None:
    for precision in ("float32", "amp_bfloat16", "float32"):
        runtime = Runtime(TrainConfig(hparams=HParams.model_validate({"precision": precision})))
        with runtime.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        expected = torch.bfloat16 if precision.startswith("amp") else torch.float32
        assert product.dtype == expected


class Weighted(Regression):
    """Regression with an element weight of 1 / 100: counts are below one."""

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        whole = super().loss(optimizer, batch, ctx)
        return Loss(whole.total / 100, whole.count / 100, whole.sums)


def test_weights_of_elements_scale_neither_loss_nor_gradient(tmp_path: Path) -> None:
    whole, weighted = (Fixture(tmp_path / name, size=2, steps=2) for name in ("a", "b"))
    weighted.objective = Weighted()
    for run in (whole, weighted):
        run.fit(samples())
    for first, second in zip(whole.rows, weighted.rows, strict=True):
        for key in ("loss", "grad_norm"):
            assert first[key] == pytest.approx(second[key], rel=1e-5)


@pytest.mark.parametrize(
    ("number", "other", "stored"),
    [
        (signal.SIGINT, signal.SIGTERM, signal.SIGINT),
        (signal.SIGTERM, signal.SIGINT, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM),
        (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM),
    ],
)
def test_first_signal_is_stored_and_one_soon_after_is_the_same_request(
    number: signal.Signals, other: signal.Signals, stored: signal.Signals
) -> None:
    handled = (signal.SIGINT, *STOP_SIGNALS)
    before = [signal.getsignal(name) for name in handled]
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), other)
        assert stop.signal == stored
    assert [signal.getsignal(name) for name in handled] == before


def test_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_later_signal_has_its_usual_effect() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        stop._since -= 10.0  # no test sleeps
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
