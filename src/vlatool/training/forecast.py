"""Forecasts memory of each device, disk space and hours of a run before it starts."""

import shutil
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from vlatool.errors import UsageError
from vlatool.events import Reporter, counted
from vlatool.jobs import machine
from vlatool.loading.base import Batch, MicroBatch
from vlatool.storage.tree import parse_size, size_text
from vlatool.training.config import TrainConfig
from vlatool.training.data import sample_batch, to_device
from vlatool.training.memory import DeviceMemory, FakeStep, MemoryEstimator, first_full_step
from vlatool.training.plan import TrainPlan
from vlatool.training.setup import Run, set_up
from vlatool.training.state import TrainState
from vlatool.training.step import TrainStep

# Steps that `measure` runs before it measures, and measures.
_FIRST_STEPS = 1
_MEASURED_STEPS = 3


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
            total += f" and activations, which are unknown ({self.unknown}; --measure probes)"
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
    """Memory, disk and hours of a run.

    Raises:
        UsageError: What is counted takes more than a device has.
    """
    config = run.config
    plan = run.plan
    device = run.runtime.device
    batch = partial(sample_batch, config, run.info, assets)
    step = FakeStep(config, run.info, plan.micro_batch, plan.total_steps - 1, batch)
    estimator = MemoryEstimator(config)
    devices = plan.global_batch // (plan.micro_batch * plan.accumulation)
    kind = device.type if config.device_memory is None else "cuda"
    memory, problem = estimator.estimate(devices, kind, step)
    if config.device_memory is not None:
        available = parse_size(config.device_memory)
    else:
        available = _device_memory(device)
        if device.type == "cpu":  # its processes share the memory
            available //= devices
    _check_memory(memory, available, reporter)
    rate = config.rate
    if config.measure:
        rate = devices * _measured_rate(run, batch(plan.micro_batch))
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
        devices=devices,
        device=kind,
        memory=memory.kinds(),
        device_memory=available,
        unknown=problem,
        checkpoints=count,
        disk_bytes=size,
        disk_free=free,
        samples_per_s=rate,
        hours=None if rate is None else plan.total_steps * plan.global_batch / rate / 3600,
        is_measured=config.measure,
    )


def _check_memory(memory: DeviceMemory, available: int, reporter: Reporter) -> None:
    """Raises UsageError if what is counted does not fit; warns if activations, which are an
    estimate, make it so.
    """
    counted_bytes = memory.total - (memory.activations or 0)
    if counted_bytes > available:
        raise UsageError(
            f"a step takes {size_text(counted_bytes)} of each device without activations, and it "
            f"has {size_text(available)}: {_kinds_text(memory.kinds())}",
            hint="divide it over several devices with --distributed.fsdp true, train adapters with "
            "--lora 16, or choose a smaller model",
            code="usage.bad_value",
            details={"memory": memory.kinds(), "device_memory": available},
        )
    if memory.total > available:
        reporter.warn(
            "memory_activations",
            f"a step takes about {size_text(memory.total)} of each device, which has "
            f"{size_text(available)}; try a smaller --hparams.per_gpu_batch_size, then "
            "--hparams.grad_checkpointing true",
        )


def _device_memory(device: torch.device) -> int:
    """Memory of a GPU in bytes, or what this machine has available."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return machine.memory()


def checkpoint_bytes(config: TrainConfig, plan: TrainPlan) -> int:
    """Largest number of bytes that checkpoints of a run take on disk at any time."""
    return _disk(config, plan, MemoryEstimator(config))[1]


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
