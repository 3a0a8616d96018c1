"""Training of any registered model type on `lbm` shards."""

import shutil
import signal
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.artifacts.run_dir import RunDir, read_metrics
from vlatool.errors import StorageError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.record import output_lock
from vlatool.loading.robotics.facts import DatasetFacts, read_facts
from vlatool.loading.robotics.normalizer import Normalizer
from vlatool.parallel.executor import default_workers
from vlatool.plugins import MODELS
from vlatool.storage.uri import local_path
from vlatool.training.config import TrainConfig

if TYPE_CHECKING:
    from vlatool.models.base import Objective
    from vlatool.training.plan import TrainPlan
    from vlatool.training.runtime import Runtime
    from vlatool.training.state import TrainState

__all__ = ["TrainConfig", "TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What came of a run."""

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
    seconds: float

    def document(self) -> dict[str, Any]:
        """The result for programs."""
        return asdict(self)

    def text(self) -> str:
        """The result for people."""
        size = f"{self.parameters / 1e6:.2f} M parameters"
        if self.status == "planned":
            return (
                f"{self.output}: would train {size} for {self.steps} steps on "
                f"{self.dataset_samples} samples; checkpoints at {self.checkpoint_steps}; "
                "nothing was written"
            )
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        lines = [f"{self.output}: {self.status}, {size}, {self.steps} steps{loss}"]
        if self.unused_samples:
            lines.append(f"{self.unused_samples} samples of the budget do not fill a step")
        lines.append(f"checkpoint: {self.checkpoint}")
        lines.append(f"next: vlatool eval open-loop {self.output} DATA")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Setup:
    """What a run is made of, once it is known whose the folder is."""

    config: TrainConfig
    facts: DatasetFacts
    plan: "TrainPlan"
    runtime: "Runtime"
    run: RunDir


def train(config: TrainConfig, *, reporter: Reporter = NULL) -> TrainResult:
    """Trains, or goes on with, the run that `save_path` and `name` say.

    Raises:
        UsageError: Budget or batch sizes cannot work; the run folder holds another run.
        DataError: The data do not fit the configuration, or a loss is not finite.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM (143); a checkpoint was written.
    """
    from vlatool.training.claim import claim_run, complete_run
    from vlatool.training.plan import make_plan
    from vlatool.training.runtime import Runtime
    from vlatool.training.schedule import check_schedule

    _check_model(config)
    facts = read_facts(config.data)
    config, rules = config.derive(facts)
    runtime = Runtime(config)
    config = _machine_defaults(config, runtime)
    runtime.share_processors(default_workers(), config.data.num_workers or 0)
    plan = make_plan(config, facts.sizes, runtime.world_size)
    check_schedule(config.hparams, plan.total_steps)
    if runtime.is_main:
        for key, rule in rules.items():
            reporter.note(f"{key} from {rule}: {_value(config, key)}")
    if config.dry_run:
        return _planned(config, facts, plan)
    run = RunDir(_output(config))
    setup = _Setup(config, facts, plan, runtime, run)
    if not runtime.is_main:
        runtime.wait()
        return _train(setup, NULL)
    with output_lock(run.root, "vlatool train"):
        record = claim_run(run, config, facts)
        runtime.wait()
        result = _train(setup, reporter)
        complete_run(run, record, {"steps": result.steps, "samples": result.samples})
        return result


def _train(setup: _Setup, reporter: Reporter) -> TrainResult:
    from vlatool.training.checkpoints import load_checkpoint, save_checkpoint
    from vlatool.training.metrics import MetricsFile
    from vlatool.training.signals import StopRequest
    from vlatool.training.trainer import Trainer

    started = time.monotonic()
    config, plan, runtime, run = setup.config, setup.plan, setup.runtime, setup.run
    state, objective = _build(config, runtime)
    latest = run.latest()
    if latest is not None:
        load_checkpoint(latest[1], state, runtime.device)
        reporter.note(f"going on after step {state.step} of {plan.total_steps}")
    if runtime.is_main:
        run.truncate_metrics(state.step)
    if state.step >= plan.total_steps:
        return _result(setup, state, "already complete", started)
    if runtime.is_main:
        _check_disk(run, state)

    def save(state: "TrainState") -> None:
        if runtime.is_main:
            save_checkpoint(run, state, config.max_checkpoint_limit)
        runtime.wait()

    with StopRequest() as stop, reporter.progress("training", plan.total_steps, "step") as bar:
        bar.advance(state.step)
        trainer = Trainer(
            plan=plan,
            h=config.hparams,
            runtime=runtime,
            metrics=MetricsFile(run.metrics if runtime.is_main else None, reporter),
            log_every=config.log_every_n_steps,
            save=save,
            stop_asked=stop.asked,
        )
        loader = _loader(setup, state.step)
        trainer.fit(state, loader, objective, bar)
        if state.step < plan.total_steps:
            save(state)
            reporter.note(
                f"stopped after step {state.step}; the same command with --output {run.root} "
                "goes on from there"
            )
            _end(stop.signal)
    return _result(setup, state, "trained", started)


def _build(config: TrainConfig, runtime: "Runtime") -> tuple["TrainState", "Objective"]:
    import torch

    from vlatool.training.ema import WeightAverage
    from vlatool.training.optim import build_optimizer
    from vlatool.training.state import TrainState

    model_type = MODELS.get(config.model.type)()  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(config.hparams.seed)
    model = model_type.build(config.model).to(runtime.device)
    objective: Objective = model_type.objective(config.model, model)
    optimizers = {
        name: build_optimizer(module, config.hparams)
        for name, module in objective.optimizers().items()
    }
    average = WeightAverage(config.ema, model) if config.ema.enabled else None
    objective.model = runtime.prepare(model)
    return TrainState(model=model, optimizers=dict(optimizers), average=average), objective


def _loader(setup: _Setup, step: int) -> Any:
    from vlatool.loading.loader import LoaderPlan, build_loader

    config, plan, runtime = setup.config, setup.plan, setup.runtime
    facts = setup.facts
    model_type = MODELS.get(config.model.type)()  # pyright: ignore[reportAttributeAccessIssue]
    normalizer = Normalizer(config.data, facts.statistics, facts.statistics_past)
    batcher = model_type.batcher(config.model, config.data, normalizer)
    loader_plan = LoaderPlan(
        batch_size=plan.micro_batch,
        rank=runtime.rank,
        world_size=runtime.world_size,
        seed=config.hparams.seed,
        skip_batches=step * plan.accumulation,
    )
    return build_loader(config.data, facts, batcher, loader_plan)


def _check_model(config: TrainConfig) -> None:
    if not getattr(config.model, "type", None):
        raise UsageError(
            "no model is configured",
            hint="start from a preset, such as --preset diffusion-policy-tiny, or set model.type",
            code="usage.no_model",
        )


def _machine_defaults(config: TrainConfig, runtime: "Runtime") -> TrainConfig:
    """Null keys that this machine decides; a run that goes on keeps what it started with."""
    name = config.name
    if name is None:
        now = datetime.now(UTC).strftime("%Y_%m_%d-%H_%M_%S")
        name = f"{now}-model_{config.model.type}-lr_{config.hparams.lr}"  # pyright: ignore[reportAttributeAccessIssue]
    config = config.model_copy(update={"name": runtime.agree(name)})
    workers = config.data.num_workers
    if workers is None:
        stored = (RunDir(_output(config)).read_config() or {}).get("data", {}).get("num_workers")
        workers = max(1, default_workers() // runtime.world_size) if stored is None else stored
    data = config.data.model_copy(update={"num_workers": runtime.agree(workers)})
    processes = config.distributed.model_copy(update={"world_size": runtime.world_size})
    return config.model_copy(update={"data": data, "distributed": processes})


def _output(config: TrainConfig) -> Path:
    assert config.name is not None
    return local_path(config.save_path) / config.name


def _check_disk(run: RunDir, state: "TrainState") -> None:
    """Refuses to start a run whose first checkpoint does not fit the disk."""
    weights = sum(p.numel() * 4 for p in state.model.parameters())
    needed = 4 * weights
    free = shutil.disk_usage(run.root).free
    if free < needed:
        raise StorageError(
            f"{run.root}: {free / 1e9:.1f} GB free, a checkpoint takes about {needed / 1e9:.1f} GB",
            hint="free some space or choose another --output",
            code="storage.no_space",
        )


def _end(number: int | None) -> None:
    if number == signal.SIGTERM:
        raise SystemExit(128 + signal.SIGTERM)
    raise KeyboardInterrupt


def _planned(config: TrainConfig, facts: DatasetFacts, plan: "TrainPlan") -> TrainResult:
    import torch

    model_type = MODELS.get(config.model.type)()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.device("meta"):
        model = model_type.build(config.model)
    return TrainResult(
        output=str(_output(config)),
        status="planned",
        parameters=sum(p.numel() for p in model.parameters()),
        steps=plan.total_steps,
        samples=plan.total_steps * plan.global_batch,
        unused_samples=plan.unused_samples,
        loss=None,
        checkpoint=None,
        checkpoint_steps=plan.checkpoint_steps,
        dataset_samples=facts.num_samples,
        seconds=0.0,
    )


def _result(setup: _Setup, state: "TrainState", status: str, started: float) -> TrainResult:
    run, plan = setup.run, setup.plan
    rows = read_metrics(run.metrics) if run.metrics.is_file() else []
    latest = run.latest()
    return TrainResult(
        output=str(run.root),
        status=status,
        parameters=sum(p.numel() for p in state.model.parameters()),
        steps=state.step,
        samples=state.samples,
        unused_samples=plan.unused_samples,
        loss=rows[-1]["loss"] if rows else None,
        checkpoint=None if latest is None else str(latest[1]),
        checkpoint_steps=plan.checkpoint_steps,
        dataset_samples=setup.facts.num_samples,
        seconds=round(time.monotonic() - started, 2),
    )


def _value(config: TrainConfig, key: str) -> object:
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
