"""The loop on a linear model whose objective draws no randomness."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vlatool.artifacts.run_dir import read_metrics
from vlatool.errors import DataError
from vlatool.events import NULL, NullProgress
from vlatool.models.base import Batch, Loss
from vlatool.training.config import HParams, TrainConfig
from vlatool.training.metrics import MetricsFile
from vlatool.training.optim import build_optimizer
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState
from vlatool.training.trainer import Trainer


class Regression:
    """Squared error over real elements; optionally several turns."""

    def __init__(self, model: nn.Module, turns: Sequence[str] = ("main",)) -> None:
        self.model = model
        self._turns = turns

    def optimizers(self) -> Mapping[str, nn.Module]:
        return dict.fromkeys(self._turns, self.model)

    def turns(self, step: int) -> Sequence[str]:
        del step
        return self._turns

    def loss(self, turn: str, batch: Batch, rng: torch.Generator) -> Loss:
        del turn, rng
        error = (self.model(batch["x"]) - batch["y"]) ** 2
        error = torch.where(batch["mask"], error, torch.zeros_like(error))
        return Loss(error.sum(), batch["mask"].sum(), {"largest": error.max()})


def samples(count: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator)
    mask = torch.rand(count, 2, generator=generator) > 0.3
    keys = [f"sample-{index}" for index in range(count)]
    return {"x": x, "y": x[:, :2] * 2 - 1, "mask": mask, "keys": keys}


def micro_batches(data: Batch, size: int, start: int = 0) -> Iterator[Batch]:
    for first in range(start, len(data["x"]), size):
        yield {name: value[first : first + size] for name, value in data.items()}


class Fixture:
    """One run of the loop in memory."""

    def __init__(self, folder: Path, *, size: int, steps: int = 4, **keys: Any) -> None:
        self.saved: list[int] = []
        self.metrics = folder / "metrics.jsonl"
        h = HParams(
            **{
                "lr": 0.05,
                "warmup": 0,
                "precision": "float32",
                "global_batch_size": 16,
                "per_gpu_batch_size": size,
                **keys,
            }
        )
        plan = TrainPlan(steps, 16, size, 16 // size, (2, steps), 0)
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        self.objective = Regression(model)
        self.state = TrainState(model, {"main": build_optimizer(model, h)})
        self.trainer = Trainer(
            plan=plan,
            h=h,
            runtime=Runtime(TrainConfig(hparams=h)),
            metrics=MetricsFile(self.metrics, NULL),
            log_every=3,
            save=lambda state: self.saved.append(state.step),
            stop_asked=lambda: False,
        )
        self.size = size

    def fit(self, data: Batch) -> "Fixture":
        loader = micro_batches(data, self.size)
        self.trainer.fit(self.state, loader, self.objective, NullProgress())
        return self

    @property
    def rows(self) -> list[dict[str, float]]:
        return read_metrics(self.metrics)


def test_weights_and_loss_do_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    whole = Fixture(tmp_path / "a", size=16)
    parts = Fixture(tmp_path / "b", size=2)
    for one in (whole, parts):
        one.metrics.parent.mkdir()
        one.fit(samples())
    torch.testing.assert_close(
        parts.state.model.state_dict(), whole.state.model.state_dict(), rtol=1e-6, atol=1e-7
    )
    for first, second in zip(parts.rows, whole.rows, strict=True):
        for key in ("loss", "grad_norm"):
            assert first[key] == pytest.approx(second[key], rel=1e-5)


def test_gradient_is_that_of_the_mean_over_counted_elements(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=4, steps=1, lr=0.0)
    data = samples(16)
    run.fit(data)
    model = nn.Linear(3, 2)
    model.load_state_dict(run.state.model.state_dict())
    error = (model(data["x"]) - data["y"]) ** 2
    error[data["mask"]].mean().backward()
    torch.testing.assert_close(run.state.model.weight.grad, model.weight.grad)


def test_clipping_limits_the_gradient_and_reports_the_norm_before(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=16, steps=1, grad_clip_norm=1e-3).fit(samples(16))
    gradients = [p.grad for p in run.state.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert run.rows[-1]["grad_norm"] > 0.1


def test_checkpoints_and_metrics_come_at_their_steps(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=8).fit(samples())
    assert run.saved == [2, 4]
    assert (run.state.step, run.state.samples) == (4, 64)
    assert [row["step"] for row in run.rows] == [3, 4]
    assert run.rows[-1]["samples"] == 64
    assert {"loss", "lr", "grad_norm", "largest", "data_wait"} <= run.rows[0].keys()


def test_rate_of_the_schedule_reaches_the_optimizer(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=16, lr_scheduler="const", warmup=2).fit(samples())
    assert run.state.optimizers["main"].param_groups[0]["lr"] == 0.05
    assert run.rows[-1]["lr"] == 0.05


def test_loss_that_is_not_finite_stops_before_weights_change(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=8)
    data = samples()
    data["x"][16 + 9] = float("nan")
    with pytest.raises(DataError) as caught:
        run.fit(data)
    assert caught.value.code == "data.loss_not_finite"
    assert caught.value.details["samples"] == [f"sample-{index}" for index in range(24, 32)]
    assert run.state.step == 1
    assert all(torch.isfinite(value).all() for value in run.state.model.parameters())
    (tmp_path / "b").mkdir()
    first = Fixture(tmp_path / "b", size=8, steps=4)
    first.trainer.stop_asked = lambda: first.state.step == 1
    first.fit(samples())
    assert torch.equal(first.state.model.weight, run.state.model.weight)


def test_stop_request_ends_after_the_step(tmp_path: Path) -> None:
    run = Fixture(tmp_path, size=16)
    run.trainer.stop_asked = lambda: run.state.step >= 2
    run.fit(samples())
    assert run.state.step == 2


def test_randomness_of_a_step_is_the_same_after_a_resume(tmp_path: Path) -> None:
    runtime = Fixture(tmp_path, size=16).trainer.runtime
    first = torch.rand(3, generator=runtime.generator(42, 5)), torch.rand(3)
    runtime.generator(42, 6)
    again = torch.rand(3, generator=runtime.generator(42, 5)), torch.rand(3)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    other = torch.rand(3, generator=runtime.generator(43, 5))
    assert not torch.equal(first[0], other)


def test_precision_may_differ_between_runs_of_one_process() -> None:
    for precision in ("float32", "amp_bfloat16", "float32"):
        runtime = Runtime(TrainConfig(hparams=HParams(precision=precision)))
        with runtime.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        wanted = torch.bfloat16 if precision.startswith("amp") else torch.float32
        assert product.dtype == wanted
