"""Estimate of the memory that a run takes on each of its devices."""

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlatool.loading.base import DatasetInfo
from vlatool.models.base import Batch, Objective, StepContext, blocks_of
from vlatool.models.rng import Distributions
from vlatool.training.config import TrainConfig
from vlatool.training.placement import PlacedParts, Placement
from vlatool.training.step import backward

_LOG = logging.getLogger(__name__)

# Memory of a process that is not that of tensors, by type of device. On a CPU code and caches of
# kernels of torch 2.13 (measured); on a GPU a usual size of its context and of the workspaces of
# cuBLAS, which was not measured.
_LIBRARIES = {"cpu": 45 * 2**20, "cuda": 600 * 2**20}
_MOMENTS = 2
# Blocks whose gathered weights or gradients of FSDP are in memory at once: one that computes, one
# that is sent.
_IN_FLIGHT = 2


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on each device at the peak of a step."""

    weights: int  # parameters and buffers of all parts
    gradients: int  # gradients of the trained parameters
    optimizer: int  # moments of AdamW
    averages: int  # averaged weights (EMA)
    gathered: int  # weights and gradients that FSDP gathers from other devices
    # all other tensors: batch, results for the backward pass, temporary ones; None: unknown
    activations: int | None
    libraries: int  # memory of the process that is not that of tensors

    @property
    def total(self) -> int:
        """Sum of all known kinds."""
        return sum(size or 0 for size in self.kinds().values())

    def kinds(self) -> dict[str, int | None]:
        """Bytes by kind."""
        return asdict(self)


@dataclass(frozen=True)
class FakeStep:
    """A step of a run on tensors without memory or values."""

    config: TrainConfig  # configuration of the run, derived
    info: DatasetInfo  # metadata of the training data
    micro_batch: int  # samples per device and micro-batch
    last_step: int  # index of the last step
    batch: Callable[[int], Batch]  # returns a batch of a number of samples, on the CPU

    def activations(self) -> int:
        """Bytes at the peak of loss and backward pass of all optimizers, without weights and
        gradients.

        Raises what a model raises that needs the values of tensors.
        """
        config = self.config
        model_type = config.model_type
        batch = self.batch(self.micro_batch)
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
            objective = model_type.objective(config.model, config.data, self.info, parts)
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
            with meter:
                self._losses(objective, placed, fake)
        return max(meter.peak - gradients, 0)

    def _losses(self, objective: Objective, placed: PlacedParts, batch: Batch) -> None:
        specs = objective.optimizers()
        step = min(first_full_step(objective), self.last_step)
        size = self.micro_batch
        ctx = StepContext(step, _AnyRng(size), placed.callables, samples=("",) * size)
        is_mixed = self.config.hparams.precision.startswith("amp")
        with torch.no_grad():
            batch = objective.prepare(batch, ctx)
        for name in objective.optimizers_at(step):
            autocast = torch.autocast("cpu", torch.bfloat16) if is_mixed else nullcontext()
            with placed.only_trains(specs[name].parts):
                backward(objective, name, batch, ctx, autocast)


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


class MemoryEstimator:
    """Counts the memory of a run."""

    def __init__(self, config: TrainConfig) -> None:
        """Builds the parts without memory."""
        self._config = config
        with torch.device("meta"):
            self._parts = config.build()
        self._trained = [part.module for part in self._parts.values() if part.trained]
        self._trainable = sum(map(_trainable_bytes, self._trained))
        self._averages = 0
        for part in self._parts.values():
            if config.ema.enabled and part.trained and part.averaged and part.saved:
                self._averages += _trainable_bytes(part.module) + _bytes(part.module.buffers())
        # Bytes of each block, then of the rest of each trained part.
        self._units: list[int] = []
        seen: set[int] = set()
        for unit in (*blocks_of(self._parts), *self._trained):
            new = [parameter for parameter in unit.parameters() if id(parameter) not in seen]
            seen.update(map(id, new))
            self._units.append(_bytes(new))

    def checkpoint_bytes(self) -> tuple[int, int]:
        """Bytes of a checkpoint, and of the frozen weights that all checkpoints share."""
        weights = sum(_all_bytes(part.module) for part in self._parts.values() if part.saved)
        frozen = sum(_bytes(module.parameters()) for module in self._trained) - self._trainable
        return weights - frozen + self._averages + _MOMENTS * self._trainable, frozen

    def estimate(self, devices: int, device_type: str, step: FakeStep) -> tuple[DeviceMemory, str]:
        """Memory of each of the devices, and the reason why activations are unknown."""
        shards = devices if self._config.distributed.fsdp else 1
        whole = sum(_all_bytes(part.module) for part in self._parts.values())
        parameters = sum(_bytes(module.parameters()) for module in self._trained)
        activations: int | None = None
        problem = ""
        try:
            activations = step.activations()
        except Exception as error:  # noqa: BLE001 - a model may do what fake tensors do not know
            _LOG.debug("no estimate of activations", exc_info=True)
            problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        memory = DeviceMemory(
            weights=whole - parameters + parameters // shards,
            gradients=self._trainable // shards,
            optimizer=_MOMENTS * self._trainable // shards,
            averages=self._averages // shards,
            gathered=self._gathered() if shards > 1 else 0,
            activations=activations,
            libraries=_LIBRARIES.get(device_type, 0),
        )
        return memory, problem

    def _gathered(self) -> int:
        everything = sum(self._units)
        in_flight = _IN_FLIGHT * max(self._units, default=0)
        roots = sum(self._units[len(self._units) - len(self._trained) :])
        weights = everything
        if self._config.distributed.fsdp_reshard_after_forward:
            weights = min(everything, in_flight + roots)
        return weights + min(everything, in_flight)


def _trainable_bytes(module: nn.Module) -> int:
    return _bytes(p for p in module.parameters() if p.requires_grad)


def _all_bytes(module: nn.Module) -> int:
    return _bytes(module.parameters()) + _bytes(module.buffers())


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
