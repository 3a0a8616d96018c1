"""Estimate of the memory that a run takes on each of its devices."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.config.base import with_value
from vlatool.models.base import blocks_of
from vlatool.training.config import TrainConfig
from vlatool.training.fake_step import FakeStep, Gradients, StepBytes
from vlatool.training.state import AVERAGED_AT_ONCE

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
    """Bytes on each device at the peak of a step.

    Attributes:
        weights: Parameters and buffers of all parts.
        gradients: Gradients of the trained parameters.
        optimizer: Moments of AdamW.
        averages: Averaged weights (EMA).
        gathered: Weights and gradients that FSDP gathers from other devices.
        activations: All other tensors: batch, results for the backward pass, temporary ones, on a
            CPU the copy of a checkpoint that is written; None: unknown.
        libraries: Memory of the process that is not that of tensors.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    gathered: int
    activations: int | None
    libraries: int

    @property
    def total(self) -> int:
        """Sum of all known kinds."""
        return sum(size or 0 for size in self.kinds().values())

    def kinds(self) -> dict[str, int | None]:
        """Bytes by kind."""
        return asdict(self)


@dataclass(frozen=True)
class StepSettings:
    """Settings of a run that change its memory and not its result.

    Attributes:
        devices: Number of devices.
        micro_batch: Samples per device and micro-batch.
        accumulation: Micro-batches per step and device.
        grad_checkpointing: As the key of `hparams`.
        fsdp: Weights are sharded over the devices.
        reshard: As `distributed.fsdp_reshard_after_forward`.
    """

    devices: int
    micro_batch: int
    accumulation: int = 1
    grad_checkpointing: bool = False
    fsdp: bool = False
    reshard: bool = False

    @property
    def is_sharded(self) -> bool:
        """True if there are several devices to shard over."""
        return self.fsdp and self.devices > 1


class MemoryEstimator:
    """Estimates the memory of a run with any settings.

    Attributes:
        problem: Reason why activations are not known; empty if they are.
    """

    def __init__(self, config: TrainConfig, step: FakeStep) -> None:
        """Builds the parts without memory.

        Args:
            config: Configuration of the run, derived.
            step: A step of the run.
        """
        self._config = config
        self._step = step
        self._kind = "cuda" if step.for_gpu else step.device.type
        self._sizes: dict[tuple[int, bool, Gradients], StepBytes] = {}
        self.problem = ""
        with torch.device("meta"):
            self._parts = config.model_type.build(config.model)
        self._trained = [part.module for part in self._parts.values() if part.trained]
        averaged = [
            part.module
            for part in self._parts.values()
            if config.ema.enabled and part.trained and part.averaged and part.saved
        ]
        self._averages = sum(
            _bytes(p for p in module.parameters() if p.requires_grad) + _bytes(module.buffers())
            for module in averaged
        )
        units = [*blocks_of(self._parts), *self._trained]
        seen: set[int] = set()
        self._units = [_bytes(_unseen(unit.parameters(), seen)) for unit in units]

    @property
    def has_blocks(self) -> bool:
        """True if activations of blocks can be computed again in the backward pass."""
        return len(self._units) > len(self._trained)

    def with_adapters(self) -> tuple[dict[str, Any], "MemoryEstimator"] | None:
        """Keys with which adapters are trained, and the estimator with them; None: none, or set."""
        config, keys = self._config, self._config.model_type.adapters
        for key, value in keys.items():
            config = with_value(config, f"model.{key}", value)
        changed = {f"model.{key}": value for key, value in keys.items()}
        if config == self._config:
            return None
        return changed, MemoryEstimator(config, replace(self._step, config=config))

    def checkpoint_bytes(self) -> tuple[int, int]:
        """Bytes of a checkpoint, and of the frozen weights that all checkpoints share."""
        saved = [part.module for part in self._parts.values() if part.saved]
        frozen = _bytes(p for m in self._trained for p in m.parameters() if not p.requires_grad)
        weights = sum(_bytes(m.parameters()) + _bytes(m.buffers()) for m in saved)
        return weights - frozen + self._averages + _MOMENTS * self._trainable, frozen

    @property
    def _trainable(self) -> int:
        return sum(map(_trainable_bytes, self._trained))

    def estimate(self, settings: StepSettings) -> DeviceMemory:
        """Memory on each device; `problem` says why activations are not known."""
        modules = [part.module for part in self._parts.values()]
        shards = settings.devices if settings.is_sharded else 1
        whole = sum(_bytes(m.parameters()) + _bytes(m.buffers()) for m in modules)
        parameters = sum(_bytes(m.parameters()) for m in self._trained)
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
        everything, in_flight = sum(self._units), _IN_FLIGHT * max(self._units, default=0)
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
        kind = self._kind
        peak, retained = (int(n * _HEAP.get(kind, 1.0)) for n in (step.peak, step.retained))
        if kind == "cpu":  # safetensors copies the weights of the largest part
            peak = max(peak, retained + max(map(_trainable_bytes, self._trained), default=0))
        return peak if settings.is_sharded else max(peak, min(self._averages, AVERAGED_AT_ONCE))

    def _measured(self, size: int, mode: Gradients, *, checkpointing: bool) -> StepBytes:
        """Memory of a step on a number of samples.

        Only one sample and the micro-batch of the run are computed; others lie on the line.
        """
        first, last = 1, self._step.micro_batch
        if size in (first, last) or first == last:
            key = size, checkpointing, mode
            if key not in self._sizes:
                self._sizes[key] = self._step.run(size, mode, checkpointing=checkpointing)
            return self._sizes[key]
        low, high = (
            self._measured(end, mode, checkpointing=checkpointing) for end in (first, last)
        )
        share = (size - first) / (last - first)
        return StepBytes(
            *(int(a + (b - a) * share) for a, b in zip(astuple(low), astuple(high), strict=True))
        )


def _trainable_bytes(module: nn.Module) -> int:
    return _bytes(p for p in module.parameters() if p.requires_grad)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _unseen(tensors: Iterable[Tensor], seen: set[int]) -> Iterator[Tensor]:
    for tensor in tensors:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor
