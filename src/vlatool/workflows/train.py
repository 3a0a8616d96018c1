"""Trains and finetunes any registered model type on any kind of data that it accepts."""

import logging
import shlex
import time
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.checkpoints.checkpoint import CheckpointManifest
from vlatool.checkpoints.layout import BEST_NAME, BestCheckpoint, Retention, RunDir, read_metrics
from vlatool.config.rules import (
    check_rules,
    derivations,
    explicit_keys,
    violations,
)
from vlatool.datasets.lbm.layout import MANIFEST_NAME, SHARDS_NAME
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.executor import default_workers
from vlatool.jobs.record import OutputRecord, output_lock
from vlatool.loading.order import OrderOptions, SampleOrder, check_single_epoch
from vlatool.models.base import ModelType
from vlatool.models.trained import section_of
from vlatool.report.text import number_text
from vlatool.results import Result, outcome
from vlatool.storage.uri import location
from vlatool.training import resume
from vlatool.training.config import TrainConfig
from vlatool.training.plan import make_plan, schedule_violations
from vlatool.training.trackers import check_trackers
from vlatool.workflows.raw_data import with_frames

if TYPE_CHECKING:
    from vlatool.training.forecast import Forecast
    from vlatool.training.runtime import Runtime
    from vlatool.training.setup import CheckpointRollouts, Run
    from vlatool.training.sync import RemoteRun

# Words for `TrainResult.start`.
_STARTS = {
    "": "",
    "new": "",
    "resume": "; resumes the run that is there",
    "extend": "; extends the run that is there",
    "replace": "; replaces the run that is there",
    "continue": "; continues the run in {remote}",
}


@dataclass(frozen=True)
class TrainResult(Result):
    """Result of a run."""

    output: str
    status: str
    parameters: int
    steps: int
    samples: int
    unused_samples: int
    loss: float | None = None
    checkpoint: str | None = None
    checkpoint_steps: tuple[int, ...] = ()
    dataset_samples: int = 0
    blocks_in_use: int = 0  # estimated number of shards that all ranks read at a time
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    acts: bool = False  # True if the model type has policies
    seconds: float = 0.0
    export_problem: str = ""  # reason why `export` rejects it
    next: str = ""  # command that measures the model; empty after a dry run, or if there is none
    # For a dry run, what it would do in its folder: `new`, `resume`, `extend` (the budget of the
    # run there) or `replace` (with `overwrite`).
    start: str = ""
    # For a dry run, the memory, disk and time that the run will take.
    forecast: "Forecast | None" = None
    remote: str | None = None  # location of the copy of the run; None without `remote_sync`
    # By success or validation loss; None if neither was measured.
    best: BestCheckpoint | None = None

    def lines(self) -> Iterator[str]:
        size = f"{self.parameters / 1e6:.2f} M parameters"
        if self.is_planned:
            plan = (
                f"would train {size} for {counted(self.steps, 'step')} on "
                f"{counted(self.dataset_samples, 'sample')}, about {self.blocks_in_use} open "
                f"shards; checkpoints at {', '.join(map(str, self.checkpoint_steps))}"
                f"{_STARTS[self.start].format(remote=self.remote)}"
            )
            yield outcome(self.output, self.status, "", plan)
            yield from () if self.forecast is None else self.forecast.lines()
            if self.export_problem:
                yield f"the run cannot be exported: {self.export_problem}"
            return
        loss = "" if self.loss is None else f", loss {number_text(self.loss)}"
        yield f"{self.output}: {self.status}, {size}, {counted(self.steps, 'step')}{loss}"
        if self.unused_samples:
            samples = counted(self.unused_samples, "sample")
            yield f"left over from the budget: {samples}, too few for a step"
        for reason, count in self.dropped.items():
            yield f"{counted(count, 'sample')} dropped: {reason.replace('_', ' ')}"
        yield f"checkpoint: {self.checkpoint}"
        if self.best is not None:
            yield f"best checkpoint: {self.best.text()} ({self.output}/{BEST_NAME})"
        if self.remote:
            yield f"copy of the run: {self.remote}"


_LOCK = "vlatool train"
# Type of the backbone to the preset that names no camera and no field.
_PRESETS_FOR_OWN_DATA = {
    "keypoint_backbone": "policy-tiny",
    "text_backbone": "policy-state",
    "vit_backbone": "policy-small",
    "clip_backbone": "policy-clip",
    "clip_hf": "policy-clip",
    "vlm_backbone": "policy-vlm",
}
__all__ = ["TrainConfig", "TrainResult", "train"]


def train(
    config: TrainConfig,
    *,
    typed: Collection[str] | None = None,
    origins: Mapping[str, str] | None = None,
    stem: str = "",
    reporter: Reporter = NULL,
) -> TrainResult:
    """Starts or resumes the run in the folder `name` of `save_path`.

    By default the name says what is trained and on which data, so that the same call goes on.

    With `remote_sync`, a run that is not in the local folder is copied from there, and continued.

    Args:
        config: Model, data and hyperparameters.
        typed: Keys that you gave for this run; by default all keys that are set. For values that a
            resumed run inherits, some rules only warn.
        origins: Origin of each dotted key, such as a file and its line, for the pages of the run.
        stem: First part of the default name, such as the last preset.
        reporter: Receives progress and messages.

    Raises:
        ConfigError: A value is invalid or contradicts another one.
        UsageError: Budget or batch sizes are impossible, or the folder contains another run.
        DataError: Weights are missing, the data do not fit the config, or a loss is not finite.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM (143); a checkpoint was written.
    """
    config.check_given()
    check_trackers(config.trackers)
    config = resume.with_local_folder(config)
    typed = explicit_keys(config) if typed is None else typed
    check_rules(violations(config), typed, reporter)
    config = resume.named(config, stem, reporter)
    with ExitStack() as stack:
        config = stack.enter_context(with_frames(config, reporter))
        remote = stack.enter_context(_remote_run(config, typed, reporter))
        run, assets = _prepare(config, typed, origins or {}, reporter)
        if config.dry_run:
            return _planned(run, assets, remote, reporter)
        stack.enter_context(run.runtime.waiting())
        record = None
        with run.runtime.main_works():
            if run.runtime.is_main:
                record = _claim(run, remote, stack, reporter)
        run.runtime.barrier()
        from vlatool.training.run import train_run

        started = time.monotonic()
        status = train_run(run, reporter if run.runtime.is_main else NULL)
        result = _trained(run, status, started)
        if record is not None:
            _finish(run, record, result)
        return result


@contextmanager
def _remote_run(
    config: TrainConfig, typed: Collection[str], reporter: Reporter
) -> Generator["RemoteRun | None"]:
    """Locks the folder of a run below `remote_sync` on rank 0, and copies what it continues.

    Yields the remote run on rank 0; None without `remote_sync`.
    """
    if config.remote_sync is None:
        yield None
        return
    from vlatool.training import sync
    from vlatool.training.runtime import Runtime

    runtime = Runtime(config)
    starts = partial(resume.start_in, world_size=_ranks(config, runtime, typed))
    if config.dry_run:
        yield sync.find_remote_run(config, starts)
        return
    local = resume.local_run(config)
    with ExitStack() as stack:
        remote = latest = None
        if runtime.is_main:
            remote = stack.enter_context(sync.held_remote_run(config, starts, reporter))
            latest = local.latest()
        with runtime.waiting():
            latest = runtime.broadcast(latest)
            if latest is not None and runtime.is_first_of_machine:
                copy = RunDir(location(config.remote_sync) / str(config.name))
                # This machine may not share the disk of rank 0.
                if not local.checkpoint(latest[0]).exists() and copy.checkpoint(latest[0]).exists():
                    sync.fetch(copy, latest[0], local, reporter)
            runtime.barrier()
        yield remote


def _prepare(
    config: TrainConfig, typed: Collection[str], origins: Mapping[str, str], reporter: Reporter
) -> tuple["Run", Path | None]:
    """Resolves configuration, data and plan; returns the run and the folder of model assets."""
    before = resume.local_run(config)
    try:
        config, info, rules = resume.resolved(config, before, reporter)
    except DataError as error:
        error.hint = _hint_for_own_data(error, config, origins)
        raise
    # They import torch, slow: errors of locations come first.
    from vlatool.training.data import DataStreams, check_samples, report_shared, validation_data
    from vlatool.training.runtime import Runtime
    from vlatool.training.setup import Run

    runtime = Runtime(config)
    config = _machine_defaults(config, runtime, typed)
    runtime.limit_threads(default_workers(), config.data.num_workers or 0)
    order = SampleOrder(info.datasets, OrderOptions.of(config.data, config.hparams.seed))
    plan = make_plan(config, info.datasets, config.distributed.world_size or 1)
    if not config.data.allow_multiple_epochs:
        check_single_epoch(order, plan.total_steps * plan.global_batch)
    check_rules(schedule_violations(config.hparams, plan.total_steps), typed, reporter)
    validation_set = validation_data(config, reporter)
    if validation_set is not None:
        report_shared(info, validation_set.info, reporter)
    assets = _model_assets(config, before)
    check_samples(config, info, assets, reporter)
    roll_out = None
    if runtime.is_main:
        _log_config(config, rules, reporter)
        roll_out = _rollouts(config, reporter)
    streams = DataStreams(config, info, order, plan, runtime, before.root, validation_set)
    origins = {**origins, **{key: f"derived: {rule}" for key, rule in rules.items()}}
    return Run(config, info, plan, runtime, before, streams, typed, origins, roll_out), assets


def _hint_for_own_data(error: DataError, config: TrainConfig, origins: Mapping[str, str]) -> str:
    """The hint of an error, with advice if a preset for other data named what these data lack."""
    if error.code != "data.unknown_field":
        return error.hint
    backbone = getattr(config.model, "vision_language_backbone", None)
    preset = _PRESETS_FOR_OWN_DATA.get(getattr(backbone, "type", ""))
    for key in ("camera_names", "proprioception_fields", "action_fields"):
        origin = origins.get(f"data.{key}", "")
        is_named = any(repr(name) in error.message for name in getattr(config.data, key, ()))
        if preset and is_named and origin.startswith("presets/"):
            file = origin.rpartition(":")[0]
            hint = (
                f"data.{key} comes from {file}, a preset for other data; for your own, train with "
            )
            return f"{hint}--preset {preset}, or {error.hint}"
    return error.hint


def _rollouts(config: TrainConfig, reporter: Reporter) -> "CheckpointRollouts | None":
    """Rollouts of the checkpoints; None without the section `eval`."""
    if config.eval is None:
        return None
    from vlatool.evaluation.config import RolloutOptions
    from vlatool.workflows.rollout import EnvironmentRollouts

    assert isinstance(config.eval, RolloutOptions)
    return EnvironmentRollouts(config.eval, reporter)


def _claim(
    run: "Run", remote: "RemoteRun | None", stack: ExitStack, reporter: Reporter
) -> OutputRecord:
    """Locks and prepares the run folder and starts its copies, until `stack` is closed. Rank 0."""
    from vlatool.training.run import retention_of
    from vlatool.training.setup import report_differences, report_precision
    from vlatool.training.sync import RunMirror, RunSync

    config = run.config
    info = run.info
    folder = run.folder
    resume.earlier_run(folder, config)  # before the lock creates a file
    run.lock = stack.enter_context(output_lock(folder.root, _LOCK))

    def write_assets() -> None:
        config.data_kind.save_assets(config.data, info, folder.root)
        save_model_assets(config, folder.root)
        folder.write_origins(run.origins)

    start, record = resume.planned_run(folder, config, info, run.plan, reporter)
    resume.prepare_run(folder, config, start, record, write_assets, reporter)
    latest = folder.latest()
    if latest is not None:  # it may have been changed after it was written
        CheckpointManifest.read(latest[1]).check(latest[1])
    report_precision(config, reporter)
    if latest is None:
        report_differences(config, record.options, reporter)
    if remote is not None and remote.lock is not None:
        mirror = RunMirror(folder, remote.root, remote.lock.check, retention_of(config))
        run.sync = stack.enter_context(RunSync(mirror, reporter))
    folder.prune(Retention(), run.sync.needed() if run.sync else ())
    return record


def _finish(run: "Run", record: OutputRecord, result: TrainResult) -> None:
    """Completes the record and the copies of a run. Rank 0."""
    from vlatool.training.run import retention_of

    if not record.complete:
        counts = {"steps": result.steps, "samples": result.samples}
        replace(record, complete=True, result=counts).save(run.folder.root)
    try:
        if run.sync is not None:
            run.sync.finish()
    except StorageError as error:
        error.result = result
        raise
    # Those that had to be sent first are still there, and the one that was the best before.
    run.folder.prune(retention_of(run.config))


def _model_assets(config: TrainConfig, run: RunDir | None) -> Path | None:
    """Folder with the assets of the model: the run, if it has started, else the initial weights."""
    started = resume.started_run(config, run)
    if started is not None:
        return started.root
    origin = None if config.init_from is None else section_of(config.init_from)
    return None if origin is None else origin[1]


def save_model_assets(config: TrainConfig, folder: Path) -> None:
    """Writes the assets of the model, copied from the run with the initial weights if possible."""
    before = None if config.init_from is None else section_of(config.init_from)
    config.model_type.save_assets(config.model, folder, *(before or (None, None)))


def _log_config(config: TrainConfig, rules: Mapping[str, str], reporter: Reporter) -> None:
    derived = list(derivations(config, rules))
    for message in derived:
        logging.getLogger(__name__).info(message)
        if message.partition(" from ")[0].endswith(".type"):  # another network than asked for
            reporter.note(message)
    if derived:
        keys = counted(len(derived), "key is", "keys are")
        reporter.note(f"{keys} set from your data, such as cameras and fields; -v lists them")
    if config.distributed.fsdp and config.distributed.world_size == 1:
        reporter.note("distributed.fsdp has no effect with one process")


def _machine_defaults(
    config: TrainConfig, runtime: "Runtime", typed: Collection[str]
) -> TrainConfig:
    """Sets null keys that depend on the machine; a resumed run keeps its values."""
    workers = config.data.num_workers
    if workers is None:
        stored = (resume.local_run(config).read_config() or {}).get("data")
        stored_workers = stored.get("num_workers") if isinstance(stored, dict) else None
        is_known = isinstance(stored_workers, int) and stored_workers >= 0
        workers = stored_workers if is_known else max(1, default_workers() // runtime.ranks_here)
    data = config.data.model_copy(update={"num_workers": runtime.broadcast(workers)})
    count = {"world_size": _ranks(config, runtime, typed)}
    processes = config.distributed.model_copy(update=count)
    hparams = config.hparams.model_copy(update=count)
    return config.model_copy(update={"data": data, "distributed": processes, "hparams": hparams})


def _ranks(config: TrainConfig, runtime: "Runtime", typed: Collection[str]) -> int:
    """Number of ranks; a dry run plans for any number."""
    is_planned = config.dry_run and "distributed.world_size" in typed
    return (is_planned and config.distributed.world_size) or runtime.world_size


def _planned(
    run: "Run", assets: Path | None, remote: "RemoteRun | None", reporter: Reporter
) -> TrainResult:
    """Result of a dry run; raises the errors of `plan_run` and of `forecast`."""
    from vlatool.training.forecast import forecast, num_parameters

    config = run.config
    start, _ = resume.planned_run(run.folder, config, run.info, run.plan, reporter)
    copy = None if remote is None or remote.step is None else str(remote.root)
    return _result(
        run,
        status="planned",
        parameters=num_parameters(config),
        steps=run.plan.total_steps,
        samples=run.plan.total_steps * run.plan.global_batch,
        start="continue" if copy else start,
        remote=copy,
        forecast=forecast(run, assets, reporter),
    )


def _trained(run: "Run", status: str, started: float) -> TrainResult:
    folder = run.folder
    state = run.state
    rows = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    losses = [row["loss"] for row in rows if isinstance(row.get("loss"), float)]
    latest = folder.latest()
    return _result(
        run,
        status=status,
        parameters=state.num_parameters,
        steps=state.step,
        samples=state.samples,
        loss=losses[-1] if losses else None,
        checkpoint=None if latest is None else str(latest[1]),
        dropped=dict(state.dropped),
        seconds=round(time.monotonic() - started, 2),
        next=_next_command(run),
        remote=None if run.sync is None else run.sync.location,
        best=folder.read_best(),
    )


def _result(run: "Run", **values: Any) -> TrainResult:
    """The result of a run or of a plan, with what both know."""
    plan = run.plan
    order = run.streams.order
    return TrainResult(
        output=str(run.folder.root),
        unused_samples=plan.unused_samples,
        checkpoint_steps=plan.checkpoint_steps,
        dataset_samples=order.size,
        blocks_in_use=order.shards_in_use(),
        acts=_has_policy(run.config),
        export_problem=run.config.model_type.layout.problem(run.config.model),
        **values,
    )


def _next_command(run: "Run") -> str:
    """The next command: measures the model, on held-out data if there are any; may be empty."""
    config = run.config
    output = str(run.folder.root)
    is_tokenizer = type(config.model_type).tokenizer is not ModelType.tokenizer
    if not is_tokenizer and not _has_policy(config):
        return ""
    key = config.data_kind.folders_keys[0]
    validation = run.streams.validation
    if not is_tokenizer and validation is not None and len(getattr(validation.section, key)) == 1:
        return shlex.join(["vlatool", "eval", "open-loop", output])
    data = str(getattr(config.data, key)[0]).removesuffix(f"/{SHARDS_NAME}/{MANIFEST_NAME}")
    kind = ("tokenizer", "eval") if is_tokenizer else ("eval", "open-loop")
    return shlex.join(["vlatool", *kind, output, data])


def _has_policy(config: TrainConfig) -> bool:
    """True if the model type has policies."""
    return type(config.model_type).policy is not ModelType.policy


def finetune(
    config: TrainConfig,
    *,
    typed: Collection[str] | None = None,
    origins: Mapping[str, str] | None = None,
    stem: str = "",
    reporter: Reporter = NULL,
) -> TrainResult:
    """Like `train`, but starts a new run, with its own schedule, from the weights of `init_from`.

    Raises:
        UsageError: No checkpoint is given, or as for `train`.
        DataError: The checkpoint is missing, broken or of another architecture, or as for `train`.
    """
    config = check_initial_weights(config)
    return train(config, typed=typed, origins=origins, stem=stem, reporter=reporter)


def check_initial_weights(config: TrainConfig) -> TrainConfig:
    """The configuration with its initial weights; raises UsageError if none are given."""
    config.check_model()
    config, _ = config.derive_static()
    if not config.init_from:
        raise UsageError(
            "finetune needs a checkpoint to start from",
            hint="add --from CKPT: a run, one of its checkpoints, or a published file",
            code="usage.missing_key",
        )
    if not config.init_weights_only:
        raise UsageError(
            "finetune starts anew from the weights of a checkpoint, but init_weights_only is false",
            hint="set init_weights_only (model.resume_weights_only) to true, or continue it "
            "with `vlatool train`",
            code="usage.conflict",
        )
    return config
