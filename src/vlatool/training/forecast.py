"""Forecasts memory of each device, disk space and hours of a run before it starts."""

import logging
import shutil
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlatool.errors import UsageError
from vlatool.events import Reporter, counted
from vlatool.jobs import machine
from vlatool.loading.base import Batch, DatasetInfo, MicroBatch
from vlatool.models.base import Objective, Part, StepContext, blocks_of
from vlatool.models.rng import Distributions
from vlatool.storage.tree import parse_size, size_text
from vlatool.training.config import TrainConfig
from vlatool.training.data import sample_batch, to_device
from vlatool.training.placement import PlacedParts, Placement
from vlatool.training.plan import TrainPlan
from vlatool.training.setup import Run, set_up
from vlatool.training.state import TrainState
from vlatool.training.step import TrainStep, backward

_LOG = logging.getLogger(__name__)

# Memory of a process that is not that of tensors, by type of device. On a CPU code and caches of
# kernels of torch 2.13 (measured); on a GPU a usual size of its context and of the workspaces of
# cuBLAS, which was not measured.
_LIBRARIES = {"cpu": 45 * 2**20, "cuda": 600 * 2**20}
_MOMENTS = 2
# Blocks whose gathered weights or gradients of FSDP are in memory at once: one that computes, one
# that is sent.
_IN_FLIGHT = 2
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


def _parts(config: TrainConfig) -> Mapping[str, Part]:
    """The parts of the model, without memory."""
    with torch.device("meta"):
        return config.build()


def num_parameters(config: TrainConfig) -> int:
    """Number of parameters in the parts that checkpoints hold."""
    return TrainState(_parts(config)).num_parameters


def forecast(run: Run, assets: Path | None, reporter: Reporter) -> Forecast:
    """Memory, disk and hours of a run.

    Raises:
        UsageError: What is counted takes more than a device has.
    """
    config = run.config
    plan = run.plan
    device = run.runtime.device
    parts = _parts(config)
    batch: Batch | None = None
    activations: int | None = None
    try:
        batch = sample_batch(config, run.info, assets, plan.micro_batch)
    except MemoryError:
        problem = f"a batch of {plan.micro_batch} samples does not fit into the memory here"
    else:
        activations, problem = estimated_activations(
            config, run.info, batch, plan.micro_batch, plan.total_steps - 1
        )
    devices = plan.global_batch // (plan.micro_batch * plan.accumulation)
    kind = device.type if config.device_memory is None else "cuda"
    memory = device_memory(config, parts, devices, kind, activations)
    if config.device_memory is not None:
        available = parse_size(config.device_memory)
    else:
        available = _device_memory(device)
        if device.type == "cpu":  # its processes share the memory
            available //= devices
    _check_memory(memory, available, reporter)
    rate = config.rate
    if config.measure and batch is not None:
        rate = devices * _measured_rate(run, batch)
    count, size = _disk(config, plan, parts)
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
        memory=memory,
        device_memory=available,
        unknown=problem,
        checkpoints=count,
        disk_bytes=size,
        disk_free=free,
        samples_per_s=rate,
        hours=None if rate is None else plan.total_steps * plan.global_batch / rate / 3600,
        is_measured=config.measure and batch is not None,
    )


def _check_memory(memory: Mapping[str, int | None], available: int, reporter: Reporter) -> None:
    """Raises UsageError if what is counted does not fit; warns if activations, which are an
    estimate, make it so.
    """
    total = sum(size or 0 for size in memory.values())
    counted_bytes = total - (memory["activations"] or 0)
    if counted_bytes > available:
        raise UsageError(
            f"a step takes {size_text(counted_bytes)} of each device without activations, and it "
            f"has {size_text(available)}: {_kinds_text(memory)}",
            hint="divide it over several devices with --distributed.fsdp true, train adapters with "
            "--lora 16, or choose a smaller model",
            code="usage.bad_value",
            details={"memory": dict(memory), "device_memory": available},
        )
    if total > available:
        reporter.warn(
            "memory_activations",
            f"a step takes about {size_text(total)} of each device, which has "
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
    return _disk(config, plan, _parts(config))[1]


def _disk(config: TrainConfig, plan: TrainPlan, parts: Mapping[str, Part]) -> tuple[int, int]:
    """Largest number of checkpoints on disk at any time, and their bytes with the frozen weights
    that they share.
    """
    weights = sum(_all_bytes(part.module) for part in parts.values() if part.saved)
    trained = [part.module for part in parts.values() if part.trained]
    trainable = sum(map(_trainable_bytes, trained))
    frozen = sum(_bytes(module.parameters()) for module in trained) - trainable
    size = weights - frozen + _average_bytes(config, parts) + _MOMENTS * trainable
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


def device_memory(
    config: TrainConfig,
    parts: Mapping[str, Part],
    devices: int,  # number of devices
    device_type: str,
    activations: int | None,
) -> dict[str, int | None]:
    """Bytes on each device at the peak of a step by kind, counted except for the activations: all
    tensors that are neither weights nor state.
    """
    shards = devices if config.distributed.fsdp else 1
    trained = [part.module for part in parts.values() if part.trained]
    trainable = sum(map(_trainable_bytes, trained))
    parameters = sum(_bytes(module.parameters()) for module in trained)
    whole = sum(_all_bytes(part.module) for part in parts.values())
    return {
        "weights": whole - parameters + parameters // shards,
        "gradients": trainable // shards,
        "optimizer": _MOMENTS * trainable // shards,
        "averages": _average_bytes(config, parts) // shards,
        "gathered": _gathered_bytes(config, parts) if shards > 1 else 0,
        "activations": activations,
        "libraries": _LIBRARIES.get(device_type, 0),
    }


def _average_bytes(config: TrainConfig, parts: Mapping[str, Part]) -> int:
    averages = 0
    for part in parts.values():
        if config.ema.enabled and part.trained and part.averaged and part.saved:
            averages += _trainable_bytes(part.module) + _bytes(part.module.buffers())
    return averages


def _gathered_bytes(config: TrainConfig, parts: Mapping[str, Part]) -> int:
    """Weights and gradients that FSDP has in memory at once."""
    trained = [part.module for part in parts.values() if part.trained]
    units: list[int] = []  # bytes of each block, then of the rest of each trained part
    seen: set[int] = set()
    for unit in (*blocks_of(parts), *trained):
        new = [parameter for parameter in unit.parameters() if id(parameter) not in seen]
        seen.update(map(id, new))
        units.append(_bytes(new))
    everything = sum(units)
    in_flight = _IN_FLIGHT * max(units, default=0)
    weights = everything
    if config.distributed.fsdp_reshard_after_forward:
        weights = min(everything, in_flight + sum(units[len(units) - len(trained) :]))
    return weights + min(everything, in_flight)


def estimated_activations(
    config: TrainConfig, info: DatasetInfo, batch: Batch, size: int, step: int
) -> tuple[int | None, str]:
    """Bytes at the peak of loss and backward pass of all optimizers, without weights and gradients,
    and the reason why they are unknown. Computes a step on tensors without memory or values.

    `batch`: a batch of `size` samples on the CPU.
    """
    try:
        return _activations(config, info, batch, size, step), ""
    except Exception as error:  # noqa: BLE001 - a model may do what fake tensors do not know
        _LOG.debug("no estimate of activations", exc_info=True)
        return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _activations(config: TrainConfig, info: DatasetInfo, batch: Batch, size: int, step: int) -> int:
    model_type = config.model_type
    with torch.device("meta"):
        parts = config.build()
    meter = AllocationMeter()
    # With a `ShapeEnv`, `item` gives an unknown number, which many models only report.
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()) as mode:
        for part in parts.values():
            part.module.to_empty(device="cpu")
        placement = Placement(
            torch.device("cpu"), grad_checkpointing=config.hparams.grad_checkpointing
        )
        placed = PlacedParts(parts, placement, model_type)
        objective = model_type.objective(config.model, config.data, info, parts)
        gradients = 0
        for part in parts.values():
            for tensor in (*part.module.parameters(), *part.module.buffers()):
                meter.follow(tensor, 0)
            gradients += _trainable_bytes(part.module)
        fake: Batch = dict(batch)
        for key, value in batch.items():
            if isinstance(value, Tensor):
                fake[key] = mode.from_tensor(value, static_shapes=True)
                meter.follow(fake[key], value.nbytes)
        step = min(first_full_step(objective), step)
        ctx = StepContext(step, _AnyRng(size), placed.callables, samples=("",) * size)
        is_mixed = config.hparams.precision.startswith("amp")
        with meter:
            with torch.no_grad():
                fake = objective.prepare(fake, ctx)
            for name in objective.optimizers_at(step):
                autocast = torch.autocast("cpu", torch.bfloat16) if is_mixed else nullcontext()
                with placed.only_trains(objective.optimizers()[name].parts):
                    backward(objective, name, fake, ctx, autocast)
    return max(meter.peak - gradients, 0)


class AllocationMeter(TorchDispatchMode):
    """Context that counts the bytes of new tensors until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._storages: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operation, and counts what it returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.follow(tensor, tensor.untyped_storage().nbytes())
        return result

    def follow(self, tensor: Tensor, size: int) -> None:
        """Counts `size` bytes until a tensor is freed, unless another one shares its storage."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.finalize(storage, self._free, key, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _free(self, key: int, size: int) -> None:
        del self._storages[key]
        self.live -= size


def first_full_step(objective: Objective) -> int:
    """First step at which all optimizers have started."""
    return max(spec.starts_at for spec in objective.optimizers().values())


class _AnyRng(Distributions):
    """Random numbers of no particular seed."""

    def __init__(self, size: int) -> None:
        self._size = size

    def _draw(
        self, function: Callable[..., Tensor], bounds: tuple[int, ...], shape: tuple[int, ...]
    ) -> Tensor:
        return function(*bounds, (self._size, *shape))


def _trainable_bytes(module: nn.Module) -> int:
    return _bytes(p for p in module.parameters() if p.requires_grad)


def _all_bytes(module: nn.Module) -> int:
    return _bytes(module.parameters()) + _bytes(module.buffers())


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
