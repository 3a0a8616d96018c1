"""The training loop, for any model type, and requests to stop it.

One round of `Trainer.fit`:

1. fetch the micro-batches of a step from the loader;
2. run the step (training/step.py), which also adds up numbers of all ranks: signals, drops, times;
3. log the step before this one, so that the host never waits for the device;
4. if the plan has an event at this step, validate, log images, save a checkpoint, roll it out.

A stop signal on any rank travels with the sums of the next step. All ranks see it in the same
round, leave the loop together and write a checkpoint. Everything here is collective: each rank
calls the same functions in the same order.
"""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, Self

import torch

from vlatool.events import STOP_SIGNALS
from vlatool.loading.base import MicroBatch
from vlatool.training.metrics import STOPS, MetricsLogger, StepRecord
from vlatool.training.runtime import Runtime
from vlatool.training.setup import Run
from vlatool.training.step import TrainStep

_SAME_STOP_S = 2.0
_POLLED_EVERY_S = 1.0


class StopRequest:
    """Context that remembers the first SIGINT or stop signal; a later one has its usual effect.

    The run stops after the step and writes a checkpoint. Stop signals count as SIGTERM.

    A signal within two seconds of the first belongs to the same request: schedulers and launchers
    send signals to a process and to its group.
    """

    def __init__(self) -> None:
        self.signal: int | None = None  # the first signal that was received, if any
        self._since = 0.0
        self._interrupts = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        # Python delivers signals only to the main thread; other threads cannot set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *STOP_SIGNALS):
                handler = signal.getsignal(number)
                # `nohup` ignores SIGHUP.
                if number in (signal.SIGINT, signal.SIGTERM) or handler != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()

    @contextmanager
    def interrupting(self) -> Generator[None]:
        """Context in which the first signal raises KeyboardInterrupt, even if it came before."""
        self._interrupts = True
        try:
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._interrupts = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and time.monotonic() - self._since < _SAME_STOP_S:
            return
        if self.signal is not None:
            self._restore()
            signal.raise_signal(number)
        self.signal = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        self._since = time.monotonic()
        if self._interrupts:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]


class StopPoll:
    """Finds out about once a second, in the same call on all ranks, if one was asked to stop."""

    def __init__(self, runtime: Runtime, stop: StopRequest) -> None:
        self._runtime = runtime
        self._stop = stop
        self._calls = 0  # since the last answer
        self._asked_at_call = 1
        self._since = time.monotonic()

    def __call__(self) -> int | None:
        """Signal that asked a rank to stop; None if there was none, and between answers.
        Collective.
        """
        if self._runtime.world_size == 1:
            return self._stop.signal
        self._calls += 1
        if self._calls < self._asked_at_call:
            return None
        seconds = time.monotonic() - self._since
        numbers = [float(self._stop.signal == number) for number in STOPS]
        values = torch.tensor([*numbers, seconds], device=self._runtime.device)
        *counts, total_s = self._runtime.sum(values).tolist()
        # Equal on all ranks, like the sum that it follows from. The first calls say little.
        seconds_per_call = total_s / self._runtime.world_size / self._calls
        calls = int(_POLLED_EVERY_S / max(seconds_per_call, 1e-6))
        self._asked_at_call = min(max(calls, 1), 10 * self._calls)
        self._calls = 0
        self._since = time.monotonic()
        return next((number for number, count in zip(STOPS, counts, strict=True) if count), None)


def exit_stopped(number: int | None) -> NoReturn:
    """Ends a command that a signal asked to stop, with the exit code of the signal."""
    if number == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    raise KeyboardInterrupt


@dataclass
class Trainer:
    """Trains until the plan is complete."""

    run: Run
    logger: MetricsLogger  # logs the results of steps
    # called after validation steps, with the parts in eval mode
    validate: Callable[[], None]
    # called with a micro-batch after image steps, with the parts in eval mode
    log_images: Callable[[MicroBatch], None]
    # called after checkpoint steps, and when one is due. Collective
    save: Callable[[], None]
    stop_signal: Callable[[], int | None]  # returns the signal that asked this rank to stop, if any
    # True if this rank asks for a checkpoint between those of the plan
    save_due: Callable[[], bool] = lambda: False
    # called after rollout steps, when the checkpoint is written. Collective
    measure_success: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        run = self.run
        self._step = TrainStep(run.config.hparams, run.plan, run.runtime, run.placed)

    def fit(self, batches: Iterator[MicroBatch]) -> None:
        """Trains from the current step to the end of the plan, or until a stop is requested.
        `batches`: micro-batches of this rank from this step on, on the device.
        """
        run = self.run
        state = run.state
        while state.step < run.plan.total_steps and self.logger.stopped_by is None:
            fetched, waited_s = self._fetch(batches)
            counters = self.logger.rank_counters(
                fetched, waited_s, self.stop_signal(), save_due=self.save_due()
            )
            updates, prepared_batches = self._step(state, run.objective, fetched, counters.vector)
            record = StepRecord(
                step=state.step,
                samples=state.samples,
                updates=updates,
                counters=counters,
                names=[micro_batch.samples for micro_batch in fetched],
                drops=[drop for micro_batch in fetched for drop in micro_batch.drops],
                ended_s=time.perf_counter(),
            )
            self.logger.log_step(record)
            self._run_events(prepared_batches)
        self.logger.flush()

    def _fetch(self, batches: Iterator[MicroBatch]) -> tuple[list[MicroBatch], float]:
        """Micro-batches of a step, and the seconds that this rank waited for them."""
        started = time.perf_counter()
        fetched = [next(batches) for _ in range(self.run.plan.accumulation)]
        return fetched, time.perf_counter() - started

    def _run_events(self, prepared_batches: list[MicroBatch]) -> None:
        """Validates, logs images, saves and rolls out a checkpoint at the steps of the plan.

        A checkpoint that a rank asked for is due one step later, when all ranks know it.
        """
        plan = self.run.plan
        step = self.run.state.step
        if step not in plan.event_steps and not self.logger.save_due:
            return
        # Raises if this step failed: nothing of a failed step is saved or measured.
        self.logger.flush()
        self.run.placed.eval()
        if step in plan.validation_steps:
            self.validate()
        if step in plan.image_steps:
            self.log_images(
                next(
                    (micro_batch for micro_batch in prepared_batches if not micro_batch.is_dummy),
                    prepared_batches[0],
                )
            )
        self.run.placed.train()
        if step in plan.checkpoint_steps or self.logger.save_due:
            self.save()
            self.logger.save_due = False
        if step in plan.rollout_steps:
            self.measure_success()
