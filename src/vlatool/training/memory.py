"""Estimate of the memory that a run takes on each of its devices."""

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vlatool.config.base import with_value
from vlatool.loading.base import DatasetInfo
from vlatool.models.base import Batch, Objective, StepContext, blocks_of
from vlatool.models.rng import Distributions
from vlatool.training.config import TrainConfig
from vlatool.training.placement import PlacedParts, Placement
from vlatool.training.state import AVERAGED_AT_ONCE, replace_tensors
from vlatool.training.step import backward

_ATEN = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_ITEM = _ATEN._local_scalar_dense.default
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)
# Elements of a float tensor that keeps its values, such as a constant of a schedule.
_CONSTANT = 4096
# Glibc gives blocks of this size back to the system when they are freed; smaller ones stay with the
# process.
_LARGE = 2**25


class AllocationMeter(TorchDispatchMode):
    """Context in which new tensors are fake; it counts their bytes until they are freed."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and the check takes a tenth of the time

    def __init__(self, device: torch.device, *, for_gpu: bool = False) -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = self.retained = 0  # bytes that are allocated now
        self._is_cpu = device.type == "cpu" and not for_gpu
        self._small = 0
        self._storages: dict[int, weakref.finalize[Any, Any]] = {}
        self._fake_mode = FakeTensorMode(allow_non_fake_inputs=True)

    def resident(self, tensor: Tensor) -> Tensor:
        """A fake tensor on the device, whose bytes are not counted."""
        fake = self._empty(tensor, self.device)
        self._follow(fake, 0)
        return fake

    def copied(self, tensor: Tensor) -> Tensor:
        """A fake copy on the device, which keeps the values of integers and booleans."""
        fake = self._known(self._empty(tensor, self.device), tensor)
        self._follow(fake, tensor.nbytes)
        return fake

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs an operation on fake tensors."""
        # Two thirds of all calls: autograd asks each tensor for its device.
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        named = dict(kwargs or {})
        inputs = list(_tensors((args, named.values())))
        if not all(isinstance(tensor, FakeTensor) for tensor in inputs):
            args, named = tree_map(self._as_fake, (tuple(args), named))
            inputs = list(_tensors((args, named.values())))
        result = self._run(func, args, named, inputs)
        for tensor in _tensors((result,)):
            if tensor.device.type == self.device.type:
                self._follow(tensor, tensor.untyped_storage().nbytes())
        if self._is_cpu:
            self._raise_peak(_workspace(func, args, result))
        return result

    def _as_fake(self, value: Any) -> Any:
        is_real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self._known(self._empty(value, value.device), value) if is_real else value

    def _empty(self, like: Tensor, device: torch.device) -> Tensor:
        with self._fake_mode:
            return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)

    def _known(self, fake: Tensor, real: Tensor) -> Tensor:
        """Keeps the values of a tensor, if models use its type to select elements."""
        is_number = real.is_floating_point() or real.is_complex()
        if not real.is_meta and (not is_number or real.numel() <= _CONSTANT):
            fake.known = real  # pyright: ignore[reportAttributeAccessIssue] - read by `_values`
        return fake

    def _run(self, func: Any, args: Any, named: dict[str, Any], inputs: list[Tensor]) -> Any:
        if func in _INDEXING:
            args = self._without_masks(args)
        if all(_values(tensor) is not None for tensor in inputs):
            return self._run_known(func, args, named, inputs)
        if func is _ITEM:  # a number for a log, or a condition: any
            return torch.ones((), dtype=args[0].dtype).item()
        for spec, value in zip(func._schema.arguments, args, strict=False):
            if spec.alias_info and spec.alias_info.is_write:
                for tensor in _tensors((value,)):
                    tensor.known = None  # pyright: ignore[reportAttributeAccessIssue] - see `_known`
        with self._fake_mode:
            return func(*args, **named)

    def _run_known(self, func: Any, args: Any, named: dict[str, Any], inputs: list[Tensor]) -> Any:
        """Runs an operation whose inputs, if it has any, all have values."""
        if not inputs:  # makes a tensor: numbers of a network have no values
            with self._fake_mode:
                result = func(*args, **named)
            if isinstance(result, Tensor) and not result.is_floating_point():
                self._known(result, _on_values(func, args, named))
            return result
        real = _on_values(func, args, named)
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(real)):
            return real
        schema = func._schema
        if schema.is_mutable or any(value.alias_info for value in schema.returns):
            with self._fake_mode:
                result = func(*args, **named)
            for fake, values in zip(tree_leaves(result), tree_leaves(real), strict=True):
                if isinstance(fake, Tensor):
                    self._known(fake, values)
            return result
        # The size of the result may depend on values.
        device = named.get("device") or inputs[0].device

        def as_fake(leaf: Any) -> Any:
            return (
                self._known(self._empty(leaf, device), leaf) if isinstance(leaf, Tensor) else leaf
            )

        return tree_map(as_fake, real)

    def _without_masks(self, args: Any) -> Any:
        """Arguments of an indexing operation with indices in place of masks of known values."""
        tensor, indices, *rest = args
        new_indices: list[Tensor | None] = []
        for index in indices:
            values = None if index is None else _values(index)
            if index is None or values is None or values.dtype not in (torch.bool, torch.uint8):
                new_indices.append(index)
                continue
            for part in values.nonzero().T.contiguous().unbind():
                new_indices.append(self._known(self._empty(part, index.device), part))
        return (tensor, new_indices, *rest)

    def _follow(self, tensor: Tensor, size: int) -> None:
        """Counts the bytes of a tensor until it is freed, unless another one shares them."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        self._storages[key] = weakref.finalize(storage, self._free, key, size)
        self.live += size
        self._small += size if size < _LARGE else 0
        self._raise_peak(0)

    def _free(self, key: int, size: int) -> None:
        del self._storages[key]
        self.live -= size
        self._small -= size if size < _LARGE else 0

    def _raise_peak(self, temporary: int) -> None:
        if self._is_cpu:
            self.retained = max(self.retained, self._small)
        idle = max(self.retained - self._small, 0)
        self.peak = max(self.peak, self.live + idle + temporary)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among arguments or results of an operation, in lists of them too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Iterable) and not isinstance(value, str):
            yield from _tensors(value)


def _values(tensor: Tensor) -> Tensor | None:
    return getattr(tensor, "known", None)


def _on_values(func: Any, args: Any, named: Any) -> Any:
    """Result of an operation on the values of its inputs, on the CPU."""

    def real(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _values(value)
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value

    args, named = tree_map(real, (args, named))
    return func(*args, **named)


def _workspace(func: Any, args: Any, result: Any) -> int:
    """Bytes that a convolution on a CPU allocates besides its result.

    It copies tensors to the layout of its kernels (measured: oneDNN 3, AVX-512).
    """
    if func is _ATEN.convolution.default:
        return max(args[0].nbytes, result.nbytes)
    if func is _ATEN.convolution_backward.default:
        gradient = args[0].nbytes
        inputs = args[1].nbytes
        return max(inputs, gradient) + (0 if result[0] is None else inputs)
    return 0


class Gradients(Enum):
    """Gradients that are in memory when the backward pass begins."""

    NEW = "none: they appear one by one"
    HELD = "all: those of the micro-batch before, or the buckets of DDP"
    SENT = "none: each one leaves at once, to be reduced over devices"


@dataclass(frozen=True)
class StepBytes:
    """Memory of a step, without weights and the state of optimizers."""

    peak: int  # bytes at the peak, without gradients at the end
    retained: int  # bytes that the process does not give back after the step, without these too


@dataclass(frozen=True)
class FakeStep:
    """A step of a run."""

    config: TrainConfig  # configuration of the run, derived
    info: DatasetInfo  # metadata of the training data
    device: torch.device  # device of the run
    micro_batch: int  # samples per device and micro-batch
    last_step: int  # index of the last step
    batch: Callable[[int], Batch]  # returns a batch of a number of samples, on the CPU
    for_gpu: bool = False  # the run is for GPUs, which this machine may not have

    def run(self, size: int, gradients: Gradients, *, checkpointing: bool) -> StepBytes:
        """Runs loss and backward pass of all optimizers."""
        config = self.config
        model_type = self.config.model_type
        meter = AllocationMeter(self.device, for_gpu=self.for_gpu)
        batch = self.batch(size)
        with torch.device("meta"):
            parts = config.build()
        for part in parts.values():
            replace_tensors(part.module, meter.resident)
        with meter:
            placement = Placement(self.device, grad_checkpointing=checkpointing)
            placed = PlacedParts(parts, placement, model_type)
            objective = model_type.objective(config.model, config.data, self.info, parts)
            modules = {name: part.module for name, part in parts.items()}
            if gradients is Gradients.SENT:
                for parameter in _trainable(modules.values()):
                    parameter.register_post_accumulate_grad_hook(_drop)
            self._losses(objective, placed, modules, meter, batch, gradients)
            held = sum(p.grad.nbytes for p in _trainable(modules.values()) if p.grad is not None)
        return StepBytes(max(meter.peak - held, 0), max(meter.retained - held, 0))

    def _losses(
        self,
        objective: Objective,
        placed: PlacedParts,
        modules: dict[str, nn.Module],
        meter: AllocationMeter,
        batch: Batch,
        gradients: Gradients,
    ) -> None:
        specs = objective.optimizers()
        step = min(first_full_step(objective), self.last_step)
        names = objective.optimizers_at(step)
        size = len(next(iter(batch.values())))
        ctx = StepContext(step, _AnyRng(size, self.device), placed.callables, samples=("",) * size)
        # Gradients of an optimizer last until its next step, while others compute.
        for _ in range(2 if len(names) > 1 else 1):
            copied: Batch = dict(batch)
            for key, value in batch.items():
                if isinstance(value, Tensor):
                    copied[key] = meter.copied(value)
            with torch.no_grad():
                copied = objective.prepare(copied, ctx)
            for name in names:
                parts = [modules[part] for part in specs[name].parts]
                for parameter in _trainable(parts):
                    parameter.grad = None
                with placed.only_trains(specs[name].parts):
                    for _ in range(2 if gradients is Gradients.HELD else 1):
                        backward(objective, name, copied, ctx, self._autocast())
            del copied

    def _autocast(self) -> AbstractContextManager[object]:
        is_mixed = self.config.hparams.precision.startswith("amp")
        return torch.autocast(self.device.type, torch.bfloat16) if is_mixed else nullcontext()


def first_full_step(objective: Objective) -> int:
    """First step at which all optimizers have started."""
    return max(spec.starts_at for spec in objective.optimizers().values())


class _AnyRng(Distributions):
    """Random numbers of no particular seed."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._device = device

    def _draw(
        self, function: Callable[..., Tensor], bounds: tuple[int, ...], shape: tuple[int, ...]
    ) -> Tensor:
        return function(*bounds, (self._size, *shape), device=self._device)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _trainable(modules: Any) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


_LOG = logging.getLogger(__name__)

# Memory of a process that is not that of tensors, by type of device. On a CPU code and caches of
# kernels of torch 2.13 (measured); on a GPU a usual size of its context and of the workspaces of
# cuBLAS, which was not measured.
_LIBRARIES = {"cpu": 45 * 2**20, "cuda": 600 * 2**20}
# Share that the heap of a process takes beyond the tensors in it (measured: 0.95 to 1.3 on a CPU).
_HEAP = {"cpu": 1.15}
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
    # all other tensors: batch, results for the backward pass, temporary ones, on a CPU the copy of
    # a checkpoint that is written; None: unknown
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
class StepSettings:
    """Settings of a run that change its memory, but not its result."""

    devices: int  # number of devices
    micro_batch: int  # samples per device and micro-batch
    accumulation: int = 1  # micro-batches per step and device
    grad_checkpointing: bool = False  # as the key of `hparams`
    fsdp: bool = False  # weights are sharded over the devices
    reshard: bool = False  # as `distributed.fsdp_reshard_after_forward`

    @property
    def is_sharded(self) -> bool:
        """True if there are several devices to shard over."""
        return self.fsdp and self.devices > 1


class MemoryEstimator:
    """Estimates the memory of a run with any settings."""

    def __init__(self, config: TrainConfig, step: FakeStep) -> None:
        """Builds the parts without memory."""
        self._config = config
        self._step = step
        self._kind = "cuda" if step.for_gpu else step.device.type
        self._sizes: dict[tuple[int, bool, Gradients], StepBytes] = {}
        self.problem = ""  # reason why activations are not known; empty if they are
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

    @property
    def has_blocks(self) -> bool:
        """True if activations of blocks can be computed again in the backward pass."""
        return len(self._units) > len(self._trained)

    def with_adapters(self) -> tuple[dict[str, Any], "MemoryEstimator"] | None:
        """Keys that train adapters, and the estimator with them; None if the model has none, or
        they are set.
        """
        config = self._config
        changed: dict[str, Any] = {}
        for key, value in config.model_type.adapters.items():
            changed[f"model.{key}"] = value
            config = with_value(config, f"model.{key}", value)
        if config == self._config:
            return None
        return changed, MemoryEstimator(config, replace(self._step, config=config))

    def checkpoint_bytes(self) -> tuple[int, int]:
        """Bytes of a checkpoint, and of the frozen weights that all checkpoints share."""
        weights = sum(_all_bytes(part.module) for part in self._parts.values() if part.saved)
        frozen = sum(_bytes(module.parameters()) for module in self._trained) - self._trainable
        return weights - frozen + self._averages + _MOMENTS * self._trainable, frozen

    def estimate(self, settings: StepSettings) -> DeviceMemory:
        """Estimates the memory of each device; `problem` then says why activations are unknown."""
        shards = settings.devices if settings.is_sharded else 1
        whole = sum(_all_bytes(part.module) for part in self._parts.values())
        parameters = sum(_bytes(module.parameters()) for module in self._trained)
        return DeviceMemory(
            weights=whole - parameters + parameters // shards,
            gradients=self._trainable // shards,
            optimizer=_MOMENTS * self._trainable // shards,
            averages=self._averages // shards,
            gathered=self._gathered(settings),
            activations=self._activations(settings),
            libraries=_LIBRARIES.get(self._kind, 0),
        )

    def _gathered(self, settings: StepSettings) -> int:
        if not settings.is_sharded:
            return 0
        everything = sum(self._units)
        in_flight = _IN_FLIGHT * max(self._units, default=0)
        roots = sum(self._units[len(self._units) - len(self._trained) :])
        weights = min(everything, in_flight + roots) if settings.reshard else everything
        return weights + min(everything, in_flight)

    def _activations(self, settings: StepSettings) -> int | None:
        has_held = settings.accumulation > 1 or settings.devices > 1
        mode = Gradients.HELD if has_held else Gradients.NEW
        if settings.is_sharded:
            mode = Gradients.SENT
        try:
            step = self._measured(
                settings.micro_batch, mode, checkpointing=settings.grad_checkpointing
            )
        except Exception as error:  # noqa: BLE001 - a model may do what fake tensors do not know
            _LOG.debug("no estimate of activations", exc_info=True)
            self.problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            return None
        heap = _HEAP.get(self._kind, 1.0)
        peak = int(step.peak * heap)
        if self._kind == "cpu":  # safetensors copies the weights of the largest part
            largest = max(map(_trainable_bytes, self._trained), default=0)
            peak = max(peak, int(step.retained * heap) + largest)
        if settings.is_sharded:
            return peak
        return max(peak, min(self._averages, AVERAGED_AT_ONCE))

    def _measured(self, size: int, mode: Gradients, *, checkpointing: bool) -> StepBytes:
        """Memory of a step on a number of samples.

        Only one sample and the micro-batch of the run are computed; other sizes are interpolated.
        """
        last = self._step.micro_batch
        if size in (1, last) or last == 1:
            key = size, checkpointing, mode
            if key not in self._sizes:
                self._sizes[key] = self._step.run(size, mode, checkpointing=checkpointing)
            return self._sizes[key]
        low = self._measured(1, mode, checkpointing=checkpointing)
        high = self._measured(last, mode, checkpointing=checkpointing)
        share = (size - 1) / (last - 1)
        return StepBytes(
            peak=int(low.peak + (high.peak - low.peak) * share),
            retained=int(low.retained + (high.retained - low.retained) * share),
        )


def _trainable_bytes(module: nn.Module) -> int:
    return _bytes(p for p in module.parameters() if p.requires_grad)


def _all_bytes(module: nn.Module) -> int:
    return _bytes(module.parameters()) + _bytes(module.buffers())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
