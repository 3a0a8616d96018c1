"""Forecasts memory of each device, disk space and hours of a run before it starts."""

import shutil
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlatool.config.coerce import value_text
from vlatool.errors import UsageError
from vlatool.events import Reporter, counted
from vlatool.jobs import machine
from vlatool.loading.base import Batch, DatasetInfo, MicroBatch
from vlatool.storage.tree import parse_size, size_text
from vlatool.training.config import TrainConfig
from vlatool.training.data import sample_batch, to_device
from vlatool.training.memory import (
    DeviceMemory,
    FakeStep,
    MemoryEstimator,
    StepSettings,
    first_full_step,
)
from vlatool.training.plan import TrainPlan
from vlatool.training.setup import Run, set_up
from vlatool.training.state import TrainState
from vlatool.training.step import TrainStep

# Steps that `measure` runs before it measures, and measures.
_FIRST_STEPS = 1
_MEASURED_STEPS = 3
_MOST_DOUBLINGS = 10


_KEYS = {
    "grad_checkpointing": "hparams.grad_checkpointing",
    "micro_batch": "hparams.per_gpu_batch_size",
    "fsdp": "distributed.fsdp",
    "reshard": "distributed.fsdp_reshard_after_forward",
    "devices": "nproc",
}
# Changes of `StepSettings` by attribute.
Changes = dict[str, Any]


@dataclass(frozen=True)
class PlannedSteps:
    """Settings of the steps of a run, and how they can be changed to save memory."""

    settings: StepSettings
    global_batch: int  # samples per step
    can_add_devices: bool  # False for processes that share the memory of a machine

    def changed(self, changes: Changes) -> StepSettings:
        """The settings with changes, and the number of micro-batches that follows."""
        new = replace(self.settings, **changes)
        return replace(new, accumulation=self.global_batch // (new.devices * new.micro_batch))

    def smaller_batches(self, devices: int) -> list[int]:
        """Smaller batches per device, in samples, largest first."""
        samples = self.global_batch // devices
        return [n for n in range(self.settings.micro_batch - 1, 0, -1) if samples % n == 0]

    def more_devices(self) -> list[int]:
        """Larger numbers of devices, smallest first."""
        numbers = (self.settings.devices * 2**n for n in range(1, _MOST_DOUBLINGS))
        return [count for count in numbers if self.global_batch % count == 0]


@dataclass(frozen=True)
class Forecast:
    devices: int  # number of devices
    device: str  # type of the devices: `cpu` or `cuda`
    memory: Mapping[str, int | None]  # bytes on each device at the peak, by kind; None: unknown
    device_memory: int  # bytes that each device has
    unknown: str  # reason why activations are not known; empty if they are
    checkpoints: int  # number of checkpoints that are on disk at once
    disk_bytes: int  # their bytes
    disk_free: int | None  # free bytes on the disk of the run; None if unknown
    # samples per second on all devices; None if neither given nor measured
    samples_per_s: float | None = None
    # duration of the run at this rate, without validation and checkpoints
    hours: float | None = None
    is_measured: bool = False  # the rate was measured in a few steps, without reading data

    def lines(self) -> list[str]:
        devices = f"each of {counted(self.devices, 'device')}" if self.devices > 1 else "the device"
        total = size_text(sum(size or 0 for size in self.memory.values()))
        if self.unknown:
            total += f" and activations, which are unknown ({self.unknown})"
        disk = f"{size_text(self.disk_bytes)} for {counted(self.checkpoints, 'checkpoint')}"
        if self.disk_free is not None:
            disk += f", {size_text(self.disk_free)} are free"
        lines = [
            f"memory of {devices}: {total} of {size_text(self.device_memory)} ({self.device})",
            f"  {_kinds_text(self.memory)}",
            f"disk: {disk}",
        ]
        if self.hours is not None:
            time_text = f"{_duration(self.hours)} at {self.samples_per_s:.4g} samples/s"
            if self.is_measured:
                time_text += ", measured without reading data"
            lines.append(f"time: {time_text}")
        return lines


def _kinds_text(sizes: Mapping[str, int | None]) -> str:
    """Bytes by kind of memory, without kinds that are empty or unknown, as text."""
    return ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items() if size)


def num_parameters(config: TrainConfig) -> int:
    """Number of parameters in the parts that checkpoints hold."""
    with torch.device("meta"):
        return TrainState(config.build()).num_parameters


def forecast(run: Run, assets: Path | None, reporter: Reporter) -> Forecast:
    config = run.config
    plan = run.plan
    device = run.runtime.device
    batch = partial(sample_batch, config, run.info, assets)
    for_gpu = config.device_memory is not None
    last = plan.total_steps - 1
    step = FakeStep(config, run.info, device, plan.micro_batch, last, batch, for_gpu)
    estimator = MemoryEstimator(config, step)
    settings = StepSettings(
        devices=plan.global_batch // (plan.micro_batch * plan.accumulation),
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        grad_checkpointing=config.hparams.grad_checkpointing,
        fsdp=config.distributed.fsdp,
        reshard=config.distributed.fsdp_reshard_after_forward,
    )
    memory = estimator.estimate(settings)
    own = _device_memory(device)
    # Processes on a CPU share its memory.
    is_shared = device.type == "cpu" and config.device_memory is None
    available = parse_size(config.device_memory) if config.device_memory else own
    available //= settings.devices if is_shared else 1
    planned = PlannedSteps(settings, plan.global_batch, can_add_devices=not is_shared)
    _check_memory(memory, available, estimator, planned)
    if estimator.problem and config.device_memory is not None:
        raise UsageError(
            f"the memory of activations is unknown ({estimator.problem}), so nobody can say if a "
            f"step fits in {config.device_memory}; everything else takes {size_text(memory.total)}",
            hint="plan without --device-memory, or run --measure on such a device",
            code="usage.bad_value",
            details={"memory": memory.kinds(), "reason": estimator.problem},
        )
    rate = config.rate
    if config.measure:
        here = replace(planned, settings=replace(settings, devices=run.runtime.world_size))
        own_estimator = MemoryEstimator(config, replace(step, for_gpu=False))
        _check_memory(own_estimator.estimate(here.settings), own, own_estimator, here)
        rate = settings.devices * _measured_rate(run, batch(plan.micro_batch))
    count, size = _disk(config, plan, estimator)
    free = _free(run.folder.root)
    if free is not None and size > free:
        reporter.warn(
            "storage.no_space",
            f"{run.folder.root}: {counted(count, 'checkpoint')} would take {size_text(size)}, but "
            f"{size_text(free)} are free; set max_checkpoint_limit or a larger "
            "save_every_n_steps, or choose another --output",
        )
    return Forecast(
        devices=settings.devices,
        device="cuda" if for_gpu else device.type,
        memory=memory.kinds(),
        device_memory=available,
        unknown=estimator.problem,
        checkpoints=count,
        disk_bytes=size,
        disk_free=free,
        samples_per_s=rate,
        hours=None if rate is None else plan.total_steps * plan.global_batch / rate / 3600,
        is_measured=config.measure,
    )


def _check_memory(
    memory: DeviceMemory, available: int, estimator: MemoryEstimator, planned: PlannedSteps
) -> None:
    """Raises UsageError with the keys that would make a run fit, if it does not."""
    if memory.total <= available:
        return
    fitting = [] if estimator.problem else _fitting(available, estimator, planned)
    hint = "no batch size and no number of devices makes it fit: choose a smaller model"
    if estimator.problem:
        hint = f"the memory of activations is unknown ({estimator.problem})"
    if fitting:
        ways: list[str] = []
        for keys, size in fitting:
            options = " ".join(f"--{key} {value_text(value)}" for key, value in keys.items())
            ways.append(f"{options} ({size_text(size)})")
        hint = f"it would fit with {', or '.join(ways)}"
    raise UsageError(
        f"a step takes about {size_text(memory.total)} of each device, which has "
        f"{size_text(available)}: {_kinds_text(memory.kinds())}",
        hint=hint,
        code="usage.bad_value",
        details={
            "memory": memory.kinds(),
            "device_memory": available,
            "fits_with": [dict(keys) for keys, _ in fitting],
        },
    )


def _fitting(
    available: int, estimator: MemoryEstimator, planned: PlannedSteps
) -> list[tuple[Mapping[str, Any], int]]:
    """Changes that would make a run fit, and the bytes per device with each."""
    settings = planned.settings
    recompute = Changes()
    shard = Changes()
    if estimator.has_blocks and not settings.grad_checkpointing:
        recompute = {"grad_checkpointing": True}
    if settings.devices > 1 and not (settings.fsdp and settings.reshard):
        shard = {"reshard": True} if settings.fsdp else {"fsdp": True}
    smaller: list[Changes] = [
        {"micro_batch": size} for size in planned.smaller_batches(settings.devices)
    ]
    fitting: list[tuple[Mapping[str, Any], int]] = []
    for group in ([recompute], smaller, [shard]):
        fitting += _first_fitting(available, estimator, planned, filter(None, group))
    if fitting:
        return fitting
    if adapted := estimator.with_adapters():
        keys, with_adapters = adapted
        changes = [{}, recompute, *(recompute | fewer for fewer in smaller)]
        for names, size in _first_fitting(available, with_adapters, planned, changes):
            fitting.append(({**keys, **names}, size))
    together = [recompute | shard | fewer for fewer in ({}, *smaller)]
    if planned.can_add_devices:
        least = recompute | {"fsdp": True, "reshard": True, "micro_batch": 1}
        together += [least | {"devices": count} for count in planned.more_devices()]
    fitting += _first_fitting(available, estimator, planned, together)
    return fitting


def _first_fitting(
    available: int, estimator: MemoryEstimator, planned: PlannedSteps, group: Iterable[Changes]
) -> Iterator[tuple[Mapping[str, Any], int]]:
    """The first of some changes that fits, if any."""
    for changes in group:
        size = estimator.estimate(planned.changed(changes)).total
        if size <= available:
            yield {_KEYS[name]: value for name, value in changes.items()}, size
            return


def _device_memory(device: torch.device) -> int:
    """Memory of a GPU in bytes, or what this machine has available."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return machine.memory()


def checkpoint_bytes(config: TrainConfig, info: DatasetInfo, plan: TrainPlan) -> int:
    """Largest number of bytes that checkpoints of a run take on disk at any time."""
    batch = partial(sample_batch, config, info, None)
    device = torch.device("cpu")
    last = plan.total_steps - 1
    step = FakeStep(config, info, device, plan.micro_batch, last, batch, for_gpu=True)
    return _disk(config, plan, MemoryEstimator(config, step))[1]


def _disk(config: TrainConfig, plan: TrainPlan, estimator: MemoryEstimator) -> tuple[int, int]:
    """Largest number of checkpoints on disk at any time, and their bytes."""
    size, frozen = estimator.checkpoint_bytes()
    steps = plan.checkpoint_steps
    latest = config.max_checkpoint_limit
    every = config.keep_every_n_steps
    count = len(steps)
    if latest is not None:
        older = sum(every is not None and step % every == 0 for step in steps[:-latest])
        # The oldest one is removed when the newest is written; the best one stays.
        has_best = config.validates or config.eval is not None
        count = min(count, latest + 1 + older + has_best)
    count += config.save_every_minutes is not None
    return count, frozen + count * size


def _free(folder: Path) -> int | None:
    """Free bytes on the disk of a folder, which may not exist yet; None if unknown."""
    for parent in (folder, *folder.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(parent).free
    return None


def _measured_rate(run: Run, batch: Batch) -> float:
    """Samples per second on this device, without reading data. Collective."""
    plan = run.plan
    runtime = run.runtime
    set_up(run, None)
    state = run.state
    objective = run.objective
    train_step = TrainStep(run.config.hparams, plan, runtime, run.placed)
    positions = tuple(range(plan.micro_batch))
    fetched = MicroBatch(
        to_device(batch, runtime.device), samples=("",) * plan.micro_batch, positions=positions
    )
    seconds: list[float] = []
    for _ in range(_FIRST_STEPS + _MEASURED_STEPS):
        started = time.perf_counter()
        state.step = min(first_full_step(objective), plan.total_steps - 1)
        train_step(state, objective, [fetched] * plan.accumulation)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        seconds.append(time.perf_counter() - started)
    per_step = statistics.median(seconds[_FIRST_STEPS:])
    return plan.micro_batch * plan.accumulation / per_step


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
