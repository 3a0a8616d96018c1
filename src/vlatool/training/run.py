"""One run from its setup to its last checkpoint, on one rank."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlatool.artifacts.run.format import Retention, RunDir
from vlatool.config.rules import check_rules
from vlatool.events import Reporter
from vlatool.loading.base import DatasetInfo
from vlatool.models.base import Policy
from vlatool.training import validation
from vlatool.training.checkpoints import check_space, save_checkpoint
from vlatool.training.config import TrainConfig
from vlatool.training.data import DataStreams
from vlatool.training.metrics import DropsFile, MetricsFile, MetricsLogger
from vlatool.training.placement import peak_tflops
from vlatool.training.plan import TrainPlan, schedule_violations
from vlatool.training.runtime import Runtime
from vlatool.training.setup import TrainSetup, check_budget, set_up
from vlatool.training.state import TrainState
from vlatool.training.step import TrainStep
from vlatool.training.sync import RunSync
from vlatool.training.trackers import tracked
from vlatool.training.trainer import StopRequest, Trainer, exit_stopped


@dataclass(frozen=True)
class RunSetup:
    config: TrainConfig
    info: DatasetInfo
    plan: TrainPlan
    runtime: Runtime
    run: RunDir
    streams: DataStreams
    typed: Collection[str]  # keys that were given for this run, as for `train`
    origins: Mapping[str, str]  # dotted key of the configuration to its origin, without defaults
    roll_out: validation.CheckpointRollouts | None = (
        None  # rollouts of checkpoints; None without the section `eval`
    )
    # copies of the run at other locations; None without any, and on other ranks
    sync: RunSync | None = None


def train_run(setup: RunSetup, reporter: Reporter) -> tuple[TrainState, str]:
    """Trains a run to the end of its plan, from its newest checkpoint if it has one. Collective;
    returns the state, and what was done: `trained` or `already complete`.
    """
    config = setup.config
    plan = setup.plan
    runtime = setup.runtime
    run = setup.run
    # Files may appear late on other machines: all ranks start from the checkpoint of rank 0.
    latest = runtime.broadcast(run.latest())
    train_setup = set_up(config, setup.info, runtime, None if latest is None else latest[1])
    state = train_setup.state
    for note in train_setup.notes:
        reporter.note(note)
    if latest is None and config.init_from is not None:
        check_budget(state, plan.total_steps, config.init_from)
    _check_optimizers(setup, train_setup, reporter)
    if latest is not None:
        reporter.note(f"resuming after step {state.step} of {plan.total_steps}")
    if runtime.is_main:
        lost = run.truncate_logs(state.step, config.log_every_n_steps)
        if lost and latest is not None:
            reporter.warn("lost_metrics", f"{run.metrics}: {lost}")
    pending = runtime.broadcast(validation.is_pending(run, state.step, plan.rollout_steps))
    if state.step >= plan.total_steps and not pending:
        return state, "already complete"
    reporter.note(_loss_of_a_kill(config))
    if not runtime.is_main:
        _fit(setup, train_setup, reporter, is_rolled_out=not pending)
        return state, "trained"
    check_space(run, state)
    if setup.roll_out is not None:
        setup.roll_out.check(_policy(setup, state))
    with tracked(reporter, config, run, state.step) as reporter:
        _fit(setup, train_setup, reporter, is_rolled_out=not pending)
    return state, "trained"


def _loss_of_a_kill(config: TrainConfig) -> str:
    minutes = config.save_every_minutes
    if minutes is None:
        return "a killed run loses what came after its last planned checkpoint"
    return (
        f"a killed run loses at most {minutes:g} min, more if saves are slow (save_every_minutes)"
    )


def _check_optimizers(setup: RunSetup, train_setup: TrainSetup, reporter: Reporter) -> None:
    """Reports keys without an effect on an optimizer, and schedules that it does not complete."""
    h = setup.config.hparams
    total_steps = setup.plan.total_steps
    for name, spec in train_setup.objective.optimizers().items():
        if h.decay_by_name and spec.groups is not None:
            reporter.note(f"hparams.decay_by_name has no effect on {name}, which has its own rule")
        if spec.starts_at >= total_steps:
            reporter.note(f"{name} starts at step {spec.starts_at}, after the end: it never steps")
        else:
            problems = schedule_violations(h, total_steps - spec.starts_at)
            check_rules(problems if spec.starts_at else (), setup.typed, reporter)


def _policy(setup: RunSetup, state: TrainState) -> Policy:
    config = setup.config
    folder = setup.run.root
    assets = config.data_kind.load_assets(config.data, folder)
    policy = config.model_type.policy(config.model, state.modules, assets, folder)
    assert policy is not None, "a rule of the configuration excludes rollouts of such a model type"
    return policy


def _fit(
    setup: RunSetup, train_setup: TrainSetup, reporter: Reporter, *, is_rolled_out: bool
) -> None:
    """Trains to the end of the plan; a requested stop ends the process."""
    plan = setup.plan
    state = train_setup.state
    with StopRequest() as stop, reporter.progress("training", plan.total_steps, "steps") as bar:
        bar.advance(state.step)
        checkpoints = _Checkpoints(setup)
        config = setup.config
        runtime = setup.runtime
        reports = MetricsLogger(
            metrics=MetricsFile(setup.run.metrics if runtime.is_main else None, reporter),
            reporter=reporter,
            bar=bar,
            runtime=runtime,
            log_every=config.log_every_n_steps,
            total_steps=setup.plan.total_steps,
            drop_reasons=config.data_kind.drop_reasons,
            max_dropped_share=config.data.max_dropped_share,
            drops=DropsFile(setup.run.drops if runtime.is_main else None),
            ideal_rate=_ideal_rate(setup, reporter),
            newest_checkpoint=checkpoints.newest,
        )
        trainer = _trainer(setup, train_setup, reports, checkpoints, stop)
        if not is_rolled_out:
            trainer.measure_success(state)
        if state.step < plan.total_steps:
            with setup.streams.training(state.step) as batches:
                trainer.fit(state, batches, train_setup.objective)
        if state.step < plan.total_steps:
            if state.step != checkpoints.step:
                checkpoints.save(state)
            reporter.note(f"stopped after step {state.step}{_resume_hint(setup)}")
            exit_stopped(trainer.logger.stopped_by)


def _resume_hint(setup: RunSetup) -> str:
    """Rest of a note on a stopped run: how to resume it, unless the same command does."""
    # Without a name the same command would start another run.
    return "" if "name" in setup.typed else f"; add --output {setup.run.root} to resume this run"


def _trainer(
    setup: RunSetup,
    train_setup: TrainSetup,
    reports: MetricsLogger,
    checkpoints: "_Checkpoints",
    stop: StopRequest,
) -> Trainer:
    config = setup.config
    plan = setup.plan
    runtime = setup.runtime
    run = setup.run
    success = validation.SuccessRate(
        run, runtime, setup.roll_out, reports, stop, _resume_hint(setup)
    )

    def measure_success(state: TrainState) -> None:
        success(state)
        checkpoints.restart_clock()

    train_step = TrainStep(config.hparams, plan, runtime, train_setup.placed)
    return Trainer(
        plan=plan,
        train_step=train_step,
        placed=train_setup.placed,
        logger=reports,
        validate=validation.Validation(
            setup.streams.validation_batches,
            setup.streams.chunk_batches,
            train_setup.objective,
            runtime,
            train_step.contexts,
            reports,
        ),
        log_images=validation.ImageLogger(
            run, train_setup.objective, runtime, train_step.contexts, reports.reporter
        ),
        save=checkpoints.save,
        save_due=checkpoints.is_due,
        stop_signal=lambda: stop.signal,
        measure_success=measure_success,
    )


# The time between checkpoints by the clock is at least this many times that of a save.
_SAVES_APART = 50


def retention_of(config: TrainConfig) -> Retention:
    """Rule for the planned checkpoints that are kept."""
    return Retention(config.max_checkpoint_limit, config.keep_every_n_steps)


@dataclass
class _Checkpoints:
    """Checkpoints that this process writes."""

    setup: RunSetup
    # step of the newest checkpoint of this process; None if it has not written one
    step: int | None = None
    _since: float = field(default_factory=time.monotonic)
    _save_s: float = 0.0

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint. Collective."""
        setup = self.setup
        started = time.monotonic()
        save_checkpoint(
            setup.run,
            state,
            setup.runtime,
            retention_of(setup.config),
            needed=setup.sync.needed() if setup.sync else (),
            is_planned=state.step in setup.plan.checkpoint_steps,
        )
        self.step = state.step
        self.restart_clock()
        self._save_s = self._since - started
        if setup.sync:
            setup.sync.saved()

    def restart_clock(self) -> None:
        """Counts the minutes without a checkpoint from now on."""
        self._since = time.monotonic()

    def is_due(self) -> bool:
        """True on rank 0 if a checkpoint of `save_every_minutes` is due."""
        minutes = self.setup.config.save_every_minutes
        if minutes is None or not self.setup.runtime.is_main:
            return False
        return time.monotonic() - self._since >= max(60 * minutes, _SAVES_APART * self._save_s)

    def newest(self) -> Path | None:
        checkpoints = self.setup.run.checkpoints()
        return checkpoints[-1][1] if checkpoints else None


def _ideal_rate(setup: RunSetup, reporter: Reporter) -> float | None:
    """Samples per second at the peak arithmetic of all devices, for the MFU; None if unknown."""
    config = setup.config
    runtime = setup.runtime
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
