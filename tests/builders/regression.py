"""Training runs in memory: a linear model with an objective that uses no randomness."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.events import NULL, NullProgress
from vlatool.loading.base import MicroBatch
from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, Part, StepContext
from vlatool.training.config import EmaConfig, HParams, TrainConfig
from vlatool.training.metrics import MetricsLogger
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
from vlatool.training.setup import Run
from vlatool.training.state import TrainState, WeightAverage
from vlatool.training.step import build_optimizer
from vlatool.training.trainer import Trainer

GLOBAL_BATCH = 16


class Regression(Objective):
    """Squared error over masked elements; optionally several optimizers of one part."""

    def __init__(self, names: Sequence[str] = ("main",)) -> None:
        self._names = names
        self.buffer_updates: list[tuple[str, float, bool]] = []

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {name: OptimizerSpec(("model",)) for name in self._names}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        del optimizer
        error = (ctx.parts["model"](batch["x"]) - batch["y"]) ** 2
        error = torch.where(batch["mask"], error, torch.zeros_like(error))
        count = batch["mask"].sum()
        return Loss(error.sum(), count, {"error": error.detach().sum(), "n": count})

    def update_buffers(
        self, optimizer: str, sums: Mapping[str, torch.Tensor], ok: torch.Tensor
    ) -> None:
        self.buffer_updates.append((optimizer, float(sums["n"]), bool(ok)))

    def metrics(
        self, phase: str, sums: Mapping[str, torch.Tensor], count: float
    ) -> Mapping[str, float]:
        del phase
        return {"again": float(sums["error"]) / max(count, 1.0)}


def samples(count: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator)
    mask = torch.rand(count, 2, generator=generator) > 0.3
    return {"x": x, "y": x[:, :2] * 2 - 1, "mask": mask}


def micro_batches(data: Batch, size: int, start: int = 0) -> Iterator[MicroBatch]:
    for first in range(start, len(data["x"]), size):
        rows = range(first, min(first + size, len(data["x"])))
        batch = {name: value[rows.start : rows.stop] for name, value in data.items()}
        yield MicroBatch(batch, tuple(f"sample-{n}" for n in rows), tuple(rows))


class Fixture:
    """A training run in memory."""

    def __init__(self, folder: Path, *, size: int, steps: int = 4, **keys: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.saved: list[int] = []
        self.metrics = folder / "metrics.jsonl"
        defaults = {"lr": 0.05, "warmup": 0, "precision": "float32"}
        defaults |= {"global_batch_size": GLOBAL_BATCH, "per_gpu_batch_size": size}
        h = HParams.model_validate({**defaults, **keys})
        config = TrainConfig(hparams=h)
        runtime = Runtime(config)
        # The part of a configuration that a trainer reads: there is no model type.
        self.config: Any = SimpleNamespace(
            hparams=h,
            log_every_n_steps=3,
            data=SimpleNamespace(max_dropped_share=1.0),
            data_kind=SimpleNamespace(drop_reasons=()),
        )
        torch.manual_seed(0)
        parts = {"model": Part(nn.Linear(3, 2))}
        no_methods: Any = SimpleNamespace(methods={})
        placed = PlacedParts(parts, runtime.placement(config), no_methods)
        self.objective: Regression = Regression()
        self.state = self._state(parts, h)
        accumulation = GLOBAL_BATCH // runtime.world_size // size
        plan = TrainPlan(steps, GLOBAL_BATCH, size, accumulation, (2, steps), 0)
        no_data: Any = None
        run = Run(self.config, no_data, plan, runtime, RunDir(folder), no_data)
        run.state = self.state
        run.placed = placed
        self.trainer = Trainer(
            run=run,
            logger=MetricsLogger(run, NULL, NullProgress()),
            validate=lambda: None,
            log_images=lambda micro_batch: None,
            save=lambda: self.saved.append(self.state.step),
            stop_signal=lambda: None,
        )
        self.size = size

    def _state(self, parts: Mapping[str, Part], h: HParams) -> TrainState:
        modules = {name: part.module for name, part in parts.items()}
        specs = self.objective.optimizers().items()
        optimizers = {name: build_optimizer(spec, modules, h) for name, spec in specs}
        average = WeightAverage(EmaConfig(enabled=True), modules["model"])
        return TrainState(parts, dict(optimizers), {"model": average})

    @property
    def model(self) -> nn.Linear:
        module = self.state.parts["model"].module
        assert isinstance(module, nn.Linear)
        return module

    def fit(self, data: Batch) -> "Fixture":
        return self.fit_batches(micro_batches(data, self.size))

    def fit_batches(self, batches: Iterator[MicroBatch]) -> "Fixture":
        self.trainer.run.objective = self.objective
        self.trainer.fit(batches)
        return self

    @property
    def rows(self) -> list[dict[str, float]]:
        return read_metrics(self.metrics)


def dummy_of(data: Batch, size: int) -> MicroBatch:
    return MicroBatch({name: value[-size:] for name, value in data.items()}, (), is_dummy=True)
