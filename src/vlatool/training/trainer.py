"""The training loop, whatever the model."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from vlatool.loading.base import MicroBatch
from vlatool.models.base import Objective
from vlatool.training.config import HParams
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan
from vlatool.training.report import MetricsLogger, StepRecord
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState
from vlatool.training.step import OptimizerStep, OptimizerStepper, StepContexts


@dataclass
class Trainer:
    """Moves weights until the plan is done.

    Attributes:
        plan: Steps, batches, checkpoints, validations.
        h: Rates, clipping, seed.
        runtime: Devices and processes.
        placed: The parts where they compute.
        contexts: What the objective may know of a moment.
        reports: Where numbers go.
        validate: Called at the plan's validation steps, parts in eval mode.
        show: Called with a micro-batch where pictures are wanted, parts in eval mode.
        save: Called at checkpoint steps; collective.
        stop_asked: The signal by which this process was asked to stop, if it was.
    """

    plan: TrainPlan
    h: HParams
    runtime: Runtime
    placed: PlacedParts
    contexts: StepContexts
    logger: MetricsLogger
    validate: Callable[[TrainState], None]
    log_images: Callable[[TrainState, MicroBatch], None]
    save: Callable[[TrainState], None]
    stop_signal: Callable[[], int | None]

    def fit(self, state: TrainState, batches: Iterator[MicroBatch], objective: Objective) -> None:
        """Trains from `state.step` to the end of the plan, or until a stop is asked for.

        Args:
            state: Is changed.
            batches: This rank's micro-batches from `state.step` on, on the device.
            objective: What is made smaller.

        Raises:
            DataError: A loss is not finite, too many samples are broken, or an alarm says so.
        """
        total_steps = self.plan.total_steps
        mover = OptimizerStepper(self.h, total_steps, self.runtime, self.placed, self.contexts)
        while state.step < self.plan.total_steps and self.logger.stopped_by is None:
            fetched = self._fetch(batches)
            self.contexts.seed_step(state.step)
            prepared = [self._prepare(objective, state.step, one) for one in fetched]
            told = self.logger.rank_counters(fetched, self.stop_signal())
            moved = self._optimizer_steps(state, objective, mover, prepared, told)
            self._update_averages(state, objective, moved)
            state.step += 1
            state.samples += self.plan.global_batch
            self.logger.log_step(_record(state, moved, fetched), state, objective)
            self._run_events(state, objective, prepared)
        self.logger.flush(state, objective)

    def _fetch(self, batches: Iterator[MicroBatch]) -> list[MicroBatch]:
        started = time.perf_counter()
        fetched = [next(batches) for _ in range(self.plan.accumulation)]
        self.logger.meter.add_wait(time.perf_counter() - started)
        return fetched

    def _prepare(self, objective: Objective, step: int, one: MicroBatch) -> MicroBatch:
        with torch.no_grad():
            ctx = self.contexts.of(step, one, "prepare")
            return replace(one, batch=objective.prepare(one.batch, ctx))

    def _optimizer_steps(
        self,
        state: TrainState,
        objective: Objective,
        mover: OptimizerStepper,
        prepared: list[MicroBatch],
        told: list[float],
    ) -> list[OptimizerStep]:
        """Moves and settles each optimizer whose turn it is; the first tells what ranks say."""
        names = objective.optimizers_at(state.step)
        assert names, f"no optimizer moves at step {state.step}"
        moved: list[OptimizerStep] = []
        for name in names:
            one = mover.step(name, state, objective, prepared, [] if moved else told)
            with torch.no_grad():
                objective.update_buffers(name, one.sums.sums, one.ok)
            moved.append(one)
        return moved

    def _update_averages(self, state: TrainState, objective: Objective, moved: list[OptimizerStep]) -> None:
        """An average takes in the steps of the optimizers that move its part."""
        specs = objective.optimizers()
        for name, average in state.averages.items():
            oks = [one.ok for one in moved if name in specs[one.optimizer].parts]
            if oks:
                average.update(torch.stack(oks).all())

    def _run_events(self, state: TrainState, objective: Objective, prepared: list[MicroBatch]) -> None:
        """Validation, pictures and a checkpoint, where the plan has them."""
        plan = self.plan
        if state.step not in plan.event_steps:
            return
        # What is saved or measured must not rest on a step that failed.
        self.logger.flush(state, objective)
        self.placed.eval()
        if state.step in plan.validation_steps:
            self.validate(state)
        if state.step in plan.image_steps:
            self.log_images(state, next((one for one in prepared if not one.is_dummy), prepared[0]))
        self.placed.train()
        if state.step in plan.checkpoint_steps:
            self.save(state)


def _record(state: TrainState, moved: list[OptimizerStep], fetched: list[MicroBatch]) -> StepRecord:
    drops = [one.first_drop for one in fetched if one.first_drop]
    return StepRecord(
        step=state.step,
        samples=state.samples,
        updates=moved,
        names=[one.samples for one in fetched],
        first_drop=drops[0] if drops else "",
    )
