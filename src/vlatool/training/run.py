"""Trains one run on one rank, from its setup to its last checkpoint."""

import time
from dataclasses import dataclass, field
from typing import NoReturn

from vlatool.checkpoints.layout import EVALUATION, VALIDATION, Retention
from vlatool.config.rules import check_rules
from vlatool.events import Reporter
from vlatool.jobs.record import read_record
from vlatool.models.base import Policy
from vlatool.training import validation
from vlatool.training.checkpoints import save_checkpoint
from vlatool.training.config import TrainConfig
from vlatool.training.metrics import MetricsLogger
from vlatool.training.placement import peak_tflops
from vlatool.training.plan import schedule_violations
from vlatool.training.setup import Run, check_budget, set_up
from vlatool.training.trackers import tracked
from vlatool.training.trainer import StopRequest, Trainer, exit_stopped


def train_run(run: Run, reporter: Reporter) -> str:
    """Trains a run to the end of its plan, from its newest checkpoint if it has one. Returns
    `trained` or `already complete`. Collective.
    """
    config = run.config
    plan = run.plan
    runtime = run.runtime
    # Files may appear late on other machines: all ranks start from the checkpoint of rank 0.
    latest = runtime.broadcast(run.folder.latest())
    for note in set_up(run, None if latest is None else latest[1]):
        reporter.note(note)
    state = run.state
    if latest is None and config.init_from is not None:
        check_budget(state, plan.total_steps, config.init_from)
    _check_optimizers(run, reporter)
    if latest is not None:
        reporter.note(f"resuming after step {state.step} of {plan.total_steps}")
    if runtime.is_main:
        lost = run.folder.truncate_logs(state.step, config.log_every_n_steps)
        if lost and latest is not None:
            reporter.warn("lost_metrics", f"{run.folder.metrics}: {lost}")
    validates, rolls_out = runtime.broadcast(_pending(run))
    if state.step >= plan.total_steps and not (validates or rolls_out):
        return "already complete"
    reporter.note(_loss_of_a_kill(config))
    if not runtime.is_main:
        _fit(run, reporter, validates=validates, rolls_out=rolls_out)
        return "trained"
    if run.roll_out is not None:
        run.roll_out.check(_policy(run))
    with tracked(reporter, config, run.folder, state.step) as reporter:
        _fit(run, reporter, validates=validates, rolls_out=rolls_out)
    return "trained"


def _pending(run: Run) -> tuple[bool, bool]:
    """Whether the validation of the current step was stopped; whether its rollouts are missing."""
    step = run.state.step
    plan = run.plan
    record = read_record(run.folder.root)
    is_complete = record is not None and record.complete
    validates = not is_complete and validation.is_pending(
        run.folder, step, plan.validation_steps, VALIDATION
    )
    return validates, validation.is_pending(run.folder, step, plan.rollout_steps, EVALUATION)


def _loss_of_a_kill(config: TrainConfig) -> str:
    minutes = config.save_every_minutes
    if minutes is None:
        return "if this run is killed, you lose everything since its last planned checkpoint"
    return (
        f"if this run is killed, you lose at most {minutes:g} min, more if saves are slow "
        "(save_every_minutes)"
    )


def _check_optimizers(run: Run, reporter: Reporter) -> None:
    """Notes keys that have no effect on an optimizer, and schedules that it does not complete."""
    h = run.config.hparams
    total_steps = run.plan.total_steps
    for name, spec in run.objective.optimizers().items():
        if h.decay_by_name and spec.groups is not None:
            reporter.note(f"hparams.decay_by_name has no effect on {name}, which has its own rule")
        if spec.starts_at >= total_steps:
            reporter.note(
                f"{name} would start at step {spec.starts_at}, after the end: it never trains"
            )
        else:
            problems = schedule_violations(h, total_steps - spec.starts_at)
            check_rules(problems if spec.starts_at else (), run.typed, reporter)


def _policy(run: Run) -> Policy:
    config = run.config
    folder = run.folder.root
    assets = config.data_kind.load_assets(config.data, folder)
    policy = config.model_type.policy(config.model, run.state.modules, assets, folder)
    assert policy is not None, "a rule of the configuration excludes rollouts of such a model type"
    return policy


def _fit(run: Run, reporter: Reporter, *, validates: bool, rolls_out: bool) -> None:
    """Finishes what is pending at the current step, then trains to the end of the plan. A requested
    stop ends the process.
    """
    total_steps = run.plan.total_steps
    state = run.state
    with StopRequest() as stop, reporter.progress("training", total_steps, "steps") as bar:
        bar.advance(state.step)
        checkpoints = _Checkpoints(run)
        logger = MetricsLogger(run, reporter, bar, _ideal_rate(run, reporter))

        def end(where: str, number: int | None) -> NoReturn:
            if state.step != checkpoints.step:
                checkpoints.save()
            reporter.note(f"stopped {where} step {state.step}")
            exit_stopped(number)

        success = validation.SuccessRate(run, logger, stop, end)

        def measure_success() -> None:
            success()
            checkpoints.restart_clock()

        streams = run.streams
        validate = validation.Validation(
            run, logger, streams.validation_batches, streams.chunk_batches, stop, end
        )
        trainer = Trainer(
            run=run,
            logger=logger,
            validate=validate,
            log_images=validation.ImageLogger(run, reporter),
            save=checkpoints.save,
            stop_signal=lambda: stop.signal,
            save_due=checkpoints.is_due,
            measure_success=measure_success,
        )
        if validates:
            run.placed.eval()
            validate()
            run.placed.train()
        if rolls_out:
            measure_success()
        if state.step < total_steps:
            with streams.training(state.step) as batches:
                trainer.fit(batches)
        if state.step < total_steps:
            end("after", logger.stopped_by)


# The time between checkpoints by the clock is at least this many times that of a save.
_SAVES_APART = 50


def retention_of(config: TrainConfig) -> Retention:
    """The rule that says which planned checkpoints are kept."""
    return Retention(config.max_checkpoint_limit, config.keep_every_n_steps)


@dataclass
class _Checkpoints:
    """Writes the checkpoints of a run."""

    run: Run
    # step of the newest checkpoint of this process; None if it has not written one
    step: int | None = None
    _since: float = field(default_factory=time.monotonic)
    _save_s: float = 0.0

    def save(self) -> None:
        """Writes a checkpoint. Collective."""
        run = self.run
        started = time.monotonic()
        save_checkpoint(
            run.folder,
            run.state,
            run.runtime,
            retention_of(run.config),
            needed=run.sync.needed() if run.sync else (),
            is_planned=run.state.step in run.plan.checkpoint_steps,
        )
        self.step = run.state.step
        self.restart_clock()
        self._save_s = self._since - started
        if run.sync:
            run.sync.saved()

    def restart_clock(self) -> None:
        """Counts the minutes without a checkpoint from now on."""
        self._since = time.monotonic()

    def is_due(self) -> bool:
        """True on rank 0 if a checkpoint of `save_every_minutes` is due.

        Raises:
            StorageError: Another run has taken over the folder.
        """
        if self.run.lock is not None:
            self.run.lock.check_known()
        minutes = self.run.config.save_every_minutes
        if minutes is None or not self.run.runtime.is_main:
            return False
        return time.monotonic() - self._since >= max(60 * minutes, _SAVES_APART * self._save_s)


def _ideal_rate(run: Run, reporter: Reporter) -> float | None:
    """Samples per second at the peak arithmetic of all devices, for the MFU; None if unknown."""
    config = run.config
    runtime = run.runtime
    mixed = config.hparams.precision.startswith("amp")
    peak = config.distributed.device_tflops or peak_tflops(runtime.device, mixed=mixed)
    if peak is None or not runtime.is_main:
        return None
    flops = config.model_type.flops(config.model, config.data)
    if not flops:
        return None
    reporter.note(
        f"training takes {flops / 1e9:.4g} GFLOP per sample; mfu is the share of "
        f"{peak:g} TFLOP/s per device"
    )
    return runtime.world_size * peak * 1e12 / flops
