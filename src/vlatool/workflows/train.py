"""Training of any registered model type on any data kind that it accepts."""

import signal
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.artifacts.run.checkpoint import CheckpointManifest
from vlatool.artifacts.run.format import Retention, RunDir, read_metrics
from vlatool.config.rules import (
    check_rules,
    derivations,
    explicit_keys,
    violations,
)
from vlatool.errors import UsageError
from vlatool.events import NULL, Progress, Reporter, counted
from vlatool.jobs.executor import default_workers
from vlatool.jobs.record import output_lock
from vlatool.loading.base import DatasetInfo
from vlatool.loading.order import OrderOptions, SampleOrder, check_single_epoch
from vlatool.models.base import ModelType
from vlatool.models.trained import run_of
from vlatool.pages.text import number_text
from vlatool.storage.uri import local_path
from vlatool.training.config import TrainConfig
from vlatool.training.plan import TrainPlan, make_plan, schedule_violations


@dataclass(frozen=True)
class TrainResult:
    """Result of a run; `export_problem` is the reason why `export` rejects it, or empty."""

    output: str
    status: str
    parameters: int
    steps: int
    samples: int
    unused_samples: int
    loss: float | None
    checkpoint: str | None
    checkpoint_steps: tuple[int, ...]
    dataset_samples: int
    blocks_in_use: int
    dropped: Mapping[str, int]
    acts: bool
    seconds: float
    export_problem: str = ""

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return asdict(self)

    def text(self) -> str:
        """The result as text."""
        size = f"{self.parameters / 1e6:.2f} M parameters"
        if self.status == "planned":
            text = (
                f"{self.output}: would train {size} for {counted(self.steps, 'step')} on "
                f"{counted(self.dataset_samples, 'sample')}, about {self.blocks_in_use} open "
                f"shards; checkpoints at {self.checkpoint_steps}; nothing was written"
            )
            problem = self.export_problem
            return f"{text}\nthe run cannot be exported: {problem}" if problem else text
        loss = "" if self.loss is None else f", loss {number_text(self.loss)}"
        lines = [f"{self.output}: {self.status}, {size}, {counted(self.steps, 'step')}{loss}"]
        if self.unused_samples:
            lines.append(f"{counted(self.unused_samples, 'sample')} left over, less than a step")
        for reason, count in self.dropped.items():
            lines.append(f"{counted(count, 'sample')} dropped: {reason.replace('_', ' ')}")
        lines.append(f"checkpoint: {self.checkpoint}")
        if self.acts:
            lines.append(f"next: vlatool eval open-loop {self.output} DATA")
        return "\n".join(lines)


if TYPE_CHECKING:
    from vlatool.training.data import DataStreams
    from vlatool.training.metrics import MetricsLogger
    from vlatool.training.runtime import Runtime
    from vlatool.training.setup import TrainSetup
    from vlatool.training.state import TrainState
    from vlatool.training.trainer import Trainer

__all__ = ["TrainConfig", "TrainResult", "finetune", "train"]


@dataclass(frozen=True)
class _RunSetup:
    """Configuration, data, plan and folder of a run.

    Attributes:
        typed: Keys that were given for this run, as for `train`.
    """

    config: TrainConfig
    info: DatasetInfo
    plan: TrainPlan
    runtime: "Runtime"
    run: RunDir
    streams: "DataStreams"
    typed: Collection[str]


def train(
    config: TrainConfig, *, typed: Collection[str] | None = None, reporter: Reporter = NULL
) -> TrainResult:
    """Starts or resumes the run in the folder `name` of `save_path`.

    Args:
        config: Model, data and hyperparameters.
        typed: Keys that were given for this run, by default all given ones; for inherited values
            some rules only warn.
        reporter: Receives progress and messages.

    Raises:
        ConfigError: A value is invalid or contradicts another one.
        UsageError: Budget or batch sizes are impossible, or the folder contains another run.
        DataError: Weights are missing, the data do not fit the config, or a loss is not finite.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM (143); a checkpoint was written.
    """
    from vlatool.training import resume

    _check_data_set(config)
    typed = explicit_keys(config) if typed is None else typed
    check_rules(violations(config), typed, reporter)
    before = None if config.name is None else RunDir(_output(config))
    config = resume.with_earlier_rules(config, before, typed, reporter)
    config = resume.pinned_data(resume.with_base_config(config, before))
    info = config.load_info(reporter, resume.started_run(config, before))
    config, rules = config.derive(info)
    from vlatool.training.data import DataStreams, check_samples, validation_data
    from vlatool.training.runtime import Runtime  # torch: locations that fail answer before

    runtime = Runtime(config)
    config = _machine_defaults(config, runtime)
    runtime.limit_threads(default_workers(), config.data.num_workers or 0)
    order = SampleOrder(info.datasets, OrderOptions.of(config.data, config.hparams.seed))
    plan = _plan(config, info, order, runtime)
    check_rules(schedule_violations(config.hparams, plan.total_steps), typed, reporter)
    validation_set = validation_data(config, reporter)
    check_samples(config, info)
    if runtime.is_main:
        _log_config(config, rules, runtime, reporter)
    if config.dry_run:
        return _planned(config, order, plan)
    run = RunDir(_output(config))
    streams = DataStreams(config, info, order, plan, runtime, run.root, validation_set)
    setup = _RunSetup(config, info, plan, runtime, run, streams, typed)
    with runtime.waiting():
        return _train_as_owner(setup, reporter) if runtime.is_main else _train_as_other(setup)


def finetune(
    config: TrainConfig, *, typed: Collection[str] | None = None, reporter: Reporter = NULL
) -> TrainResult:
    """Trains a new run, with its own schedule, from the weights of `init_from`.

    Args:
        config: Configuration of the run.
        typed: As for `train`.
        reporter: Receives progress and messages.

    Raises:
        UsageError: No checkpoint is given, or as for `train`.
        DataError: The checkpoint is missing, broken or of another architecture, or as for `train`.
    """
    config.check_model()
    config, _ = config.derive_static()
    if not config.init_from:
        raise UsageError(
            "no checkpoint is given",
            hint="give a run, one of its checkpoints or a published file with --from CKPT",
            code="usage.missing_key",
        )
    if not config.init_weights_only:
        raise UsageError(
            "finetune begins a new schedule with the weights of a checkpoint, but "
            "init_weights_only is false",
            hint="to continue the training of that checkpoint use `vlatool train`; to take only "
            "its weights set init_weights_only (model.resume_weights_only) to true",
            code="usage.resume_weights_only",
        )
    return train(config, typed=typed, reporter=reporter)


def _train_as_other(setup: _RunSetup) -> TrainResult:
    """Trains after rank 0 has prepared the folder."""
    setup.runtime.barrier()
    return _train(setup, NULL)


def _train_as_owner(setup: _RunSetup, reporter: Reporter) -> TrainResult:
    """Trains with a lock on the folder, after a check that this run may use it."""
    from vlatool.training import resume

    run = setup.run
    resume.resumable_run(run, setup.config)  # before the lock creates a file there
    with output_lock(run.root, "vlatool train"):
        return _train_locked(setup, reporter)


def _train_locked(setup: _RunSetup, reporter: Reporter) -> TrainResult:
    from vlatool.training import resume
    from vlatool.training.continuation import report_differences
    from vlatool.training.plan import budget_extension
    from vlatool.training.setup import network_randomness

    config, info, run = setup.config, setup.info, setup.run

    def write_assets() -> None:
        config.data_kind.save_assets(config.data, info, run.root)
        save_model_assets(config, run.root)

    def extends_budget(before: Mapping[str, Any]) -> bool:
        change = budget_extension(config, info.datasets, setup.runtime.world_size, before)
        if change:
            reporter.note(f"{run.root}: {change}")
        return bool(change)

    rule = network_randomness(config, setup.plan)
    fingerprint = {**info.fingerprint, **resume.data_versions(config), **rule}
    record = resume.open_run(run, config, fingerprint, write_assets, extends_budget)
    _check_checkpoint(run)
    run.prune(Retention())
    for name in resume.repair_run(run, config, write_assets):
        reporter.note(f"{run.root}: {name} was missing or changed and is written again")
    if run.latest() is None:
        report_differences(config, fingerprint, reporter)
    setup.runtime.barrier()
    result = _train(setup, reporter)
    resume.complete_run(run, record, {"steps": result.steps, "samples": result.samples})
    return result


def save_model_assets(config: TrainConfig, folder: Path) -> None:
    """Writes the assets of the model, copied from the run with the initial weights if possible."""
    before = None if config.init_from is None else run_of(config.init_from)
    model_type = config.model_type
    if before is None or not model_type.copy_assets(config.model, *before, folder):
        model_type.save_assets(config.model, folder)


def _plan(
    config: TrainConfig, info: DatasetInfo, order: SampleOrder, runtime: "Runtime"
) -> TrainPlan:
    plan = make_plan(config, info.datasets, runtime.world_size)
    if not config.data.allow_multiple_epochs:
        check_single_epoch(order, plan.total_steps * plan.global_batch)
    return plan


def _train(setup: _RunSetup, reporter: Reporter) -> TrainResult:
    from vlatool.training.checkpoints import check_space
    from vlatool.training.continuation import check_budget
    from vlatool.training.setup import set_up

    started = time.monotonic()
    config, plan, runtime, run = setup.config, setup.plan, setup.runtime, setup.run
    # Files may appear late on other machines: all ranks start from the checkpoint of rank 0.
    latest = runtime.broadcast(run.latest())
    train_setup = set_up(config, setup.info, runtime, None if latest is None else latest[1])
    state = train_setup.state
    for note in train_setup.notes:
        reporter.note(note)
    if latest is None and config.init_from is not None:
        check_budget(state, plan.total_steps, config.init_from)
    for name, spec in train_setup.objective.optimizers().items():
        if config.hparams.decay_by_name and spec.groups is not None:
            reporter.note(f"hparams.decay_by_name has no effect on {name}, which has its own rule")
        if spec.starts_at >= plan.total_steps:
            reporter.note(f"{name} starts at step {spec.starts_at}, after the end: it never steps")
        else:
            problems = schedule_violations(config.hparams, plan.total_steps - spec.starts_at)
            check_rules(problems if spec.starts_at else (), setup.typed, reporter)
    if latest is not None:
        reporter.note(f"resuming after step {state.step} of {plan.total_steps}")
    if runtime.is_main:
        run.truncate_logs(state.step)
    if state.step >= plan.total_steps:
        return _result(setup, state, "already complete", started)
    if runtime.is_main:
        check_space(run, state)
    _fit(setup, train_setup, reporter)
    return _result(setup, state, "trained", started)


def _fit(setup: _RunSetup, train_setup: "TrainSetup", reporter: Reporter) -> None:
    """Trains to the end of the plan; a requested stop ends the process."""
    from vlatool.training.trainer import StopRequest

    plan, run, state = setup.plan, setup.run, train_setup.state
    with (
        StopRequest() as stop,
        reporter.progress("training", plan.total_steps, "steps") as bar,
        setup.streams.training(state.step) as batches,
    ):
        bar.advance(state.step)
        trainer = _trainer(setup, train_setup, _reports(setup, reporter, bar), stop.received)
        trainer.fit(state, batches, train_setup.objective)
        if state.step < plan.total_steps:
            if state.step not in plan.checkpoint_steps:
                _save(setup, state, stopped=True)
            reporter.note(
                f"stopped after step {state.step}; run the same command with --output {run.root} "
                "to resume"
            )
            _exit_stopped(trainer.logger.stopped_by)


def _trainer(
    setup: _RunSetup,
    train_setup: "TrainSetup",
    reports: "MetricsLogger",
    stop_asked: Callable[[], int | None],
) -> "Trainer":
    from vlatool.training.step import StepContexts
    from vlatool.training.trainer import Trainer
    from vlatool.training.validation import ImageLogger, Validation

    config, plan, runtime, run = setup.config, setup.plan, setup.runtime, setup.run
    contexts = StepContexts(runtime, train_setup.placed, config.hparams.seed, plan)
    return Trainer(
        plan=plan,
        h=config.hparams,
        runtime=runtime,
        placed=train_setup.placed,
        contexts=contexts,
        logger=reports,
        validate=Validation(
            setup.streams.validation_batches,
            setup.streams.chunk_batches,
            train_setup.objective,
            runtime,
            contexts,
            reports,
        ),
        log_images=ImageLogger(run, train_setup.objective, runtime, contexts),
        save=lambda state: _save(setup, state),
        stop_signal=stop_asked,
    )


def _save(setup: _RunSetup, state: "TrainState", *, stopped: bool = False) -> None:
    from vlatool.training.checkpoints import save_checkpoint

    retention = Retention(setup.config.max_checkpoint_limit, setup.config.keep_every_n_steps)
    save_checkpoint(setup.run, state, setup.runtime, retention, stopped=stopped)


def _reports(setup: _RunSetup, reporter: Reporter, bar: Progress) -> "MetricsLogger":
    from vlatool.training.metrics import DropsFile, MetricsFile, MetricsLogger

    config, runtime = setup.config, setup.runtime
    return MetricsLogger(
        metrics=MetricsFile(setup.run.metrics if runtime.is_main else None, reporter),
        reporter=reporter,
        bar=bar,
        runtime=runtime,
        log_every=config.log_every_n_steps,
        total_steps=setup.plan.total_steps,
        drop_reasons=config.data_kind.drop_reasons,
        max_dropped_share=config.data.max_dropped_share,
        drops=DropsFile(setup.run.drops if runtime.is_main else None),
    )


def _log_config(
    config: TrainConfig, rules: Mapping[str, str], runtime: "Runtime", reporter: Reporter
) -> None:
    for message in derivations(config, rules):
        reporter.note(message)
    validation_set = config.data_kind.validation(config.data)
    if validation_set is not None and not config.validates:
        reporter.note("validation data are not used: set total_val_samples to measure them")
    if config.distributed.fsdp and runtime.world_size == 1:
        reporter.note("distributed.fsdp has no effect with one process")
    elif config.distributed.fsdp and runtime.device.type == "cpu":
        reporter.note("distributed.fsdp on a CPU is only for tests: it is not faster")


def _check_data_set(config: TrainConfig) -> None:
    config.check_model()
    key = config.data_kind.folders_keys[0]
    if not getattr(config.data, key):
        raise UsageError(
            f"no training data are given: data.{key} is empty",
            hint="give a folder of training data with --data DIR",
            code="usage.no_data",
        )


def _check_checkpoint(run: RunDir) -> None:
    """Raises DataError if the checkpoint to resume from was changed after it was written."""
    latest = run.latest()
    if latest is not None:
        CheckpointManifest.read(latest[1]).check(latest[1])


def _machine_defaults(config: TrainConfig, runtime: "Runtime") -> TrainConfig:
    """Sets null keys that depend on the machine; a resumed run keeps its values."""
    name = config.name
    if name is None:
        now = datetime.now(UTC).strftime("%Y_%m_%d-%H_%M_%S")
        name = f"{now}-model_{config.model.type}-lr_{config.hparams.lr}"  # pyright: ignore[reportAttributeAccessIssue]
    config = config.model_copy(update={"name": runtime.broadcast(name)})
    workers = config.data.num_workers
    if workers is None:
        stored = (RunDir(_output(config)).read_config() or {}).get("data")
        stored_workers = stored.get("num_workers") if isinstance(stored, dict) else None
        is_known = isinstance(stored_workers, int) and stored_workers >= 0
        workers = stored_workers if is_known else max(1, default_workers() // runtime.world_size)
    data = config.data.model_copy(update={"num_workers": runtime.broadcast(workers)})
    count = {"world_size": runtime.world_size}
    processes = config.distributed.model_copy(update=count)
    hparams = config.hparams.model_copy(update=count)
    return config.model_copy(update={"data": data, "distributed": processes, "hparams": hparams})


def _output(config: TrainConfig) -> Path:
    """The run folder; UsageError for remote storage, which cannot rename a checkpoint's folder."""
    assert config.name is not None
    try:
        return local_path(config.save_path) / config.name
    except UsageError as error:
        if error.code != "usage.unsupported_scheme":
            raise
        raise UsageError(
            f"{config.save_path.rstrip('/')}/{config.name}: a run is written to a local folder, "
            "not to other storage",
            hint="give a local --output such as runs/NAME, and copy that folder when the run has "
            "ended, as with `aws s3 sync runs/NAME s3://BUCKET/NAME`; eval and finetune read it "
            "there",
            code=error.code,
        ) from None


def _exit_stopped(number: int | None) -> None:
    if number == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    raise KeyboardInterrupt


def _planned(config: TrainConfig, order: SampleOrder, plan: TrainPlan) -> TrainResult:
    import torch

    from vlatool.training.state import TrainState

    with torch.device("meta"):
        parts = config.model_type.build(config.model)
    return TrainResult(
        output=str(_output(config)),
        status="planned",
        parameters=TrainState(parts).num_parameters,
        steps=plan.total_steps,
        samples=plan.total_steps * plan.global_batch,
        unused_samples=plan.unused_samples,
        loss=None,
        checkpoint=None,
        checkpoint_steps=plan.checkpoint_steps,
        dataset_samples=order.size,
        blocks_in_use=order.shards_in_use(),
        dropped={},
        acts=_has_policy(config),
        seconds=0.0,
        export_problem=config.model_type.export_problem(config.model),
    )


def _result(setup: _RunSetup, state: "TrainState", status: str, started: float) -> TrainResult:
    run, plan = setup.run, setup.plan
    rows = read_metrics(run.metrics) if run.metrics.is_file() else []
    losses = [row["loss"] for row in rows if isinstance(row.get("loss"), float)]
    latest = run.latest()
    return TrainResult(
        output=str(run.root),
        status=status,
        parameters=state.num_parameters,
        steps=state.step,
        samples=state.samples,
        unused_samples=plan.unused_samples,
        loss=losses[-1] if losses else None,
        checkpoint=None if latest is None else str(latest[1]),
        checkpoint_steps=plan.checkpoint_steps,
        dataset_samples=setup.streams.order.size,
        blocks_in_use=setup.streams.order.shards_in_use(),
        dropped=dict(state.dropped),
        acts=_has_policy(setup.config),
        seconds=round(time.monotonic() - started, 2),
        export_problem=setup.config.model_type.export_problem(setup.config.model),
    )


def _has_policy(config: TrainConfig) -> bool:
    """True if the model type has policies."""
    return type(config.model_type).policy is not ModelType.policy
