"""Sum of losses over ranks, once per optimizer and step, and its copy to the host.

All values are in one vector, so that there is one collective. It is float64, because element counts
and histograms must be exact. The copy to the host starts at once and is read one step later, so
that the host does not wait for the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from vlatool.models.base import Loss
from vlatool.training.runtime import Runtime


@dataclass
class LossSums:
    """Losses of the micro-batches of one optimizer on this rank.

    Attributes:
        device: Device of the sums.
        totals: Loss of each micro-batch, detached.
    """

    device: torch.device
    totals: list[Tensor] = field(default_factory=list[Tensor])
    _counts: list[Tensor] = field(default_factory=list[Tensor])
    _sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def add(self, loss: Loss, *, is_dummy: bool) -> None:
        """Adds the loss of a micro-batch; a dummy micro-batch counts nothing."""
        weight = 0.0 if is_dummy else 1.0
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        self.totals.append(zero if is_dummy else loss.total.detach().double())
        self._counts.append(zero if is_dummy else loss.count.detach().double())
        for name, value in loss.sums.items():
            value = value.detach().double()
            value = value if weight else torch.zeros_like(value)
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def reduced(self, runtime: Runtime, extra: Sequence[float]) -> "ReducedLoss":
        """Sums over all ranks. Collective; `extra` must have the same length on all ranks."""
        names = sorted(self._sums)
        shapes = {name: tuple(self._sums[name].shape) for name in names}
        totals, counts = torch.stack(self.totals), torch.stack(self._counts)
        bad = ~(totals.isfinite() & counts.isfinite())
        head = torch.stack([totals.sum(), counts.sum(), bad.sum().double()])
        more = torch.tensor(extra, dtype=torch.float64).to(self.device, non_blocking=True)
        flat = [self._sums[name].reshape(-1).to(self.device) for name in names]
        packed = runtime.sum(torch.cat([head, more, *flat]))
        return ReducedLoss(packed, len(extra), shapes)


@dataclass(frozen=True)
class ReducedLoss:
    """Sums of one optimizer and step over all ranks.

    Attributes:
        packed: float64 [3 + E + ...]: total, count, number of micro-batches that are not finite,
            the extra numbers, the sums by name.
        extra: E, the number of extra numbers.
        shapes: Map from name to shape of the sums, in their order in `packed`.
    """

    packed: Tensor
    extra: int
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def count(self) -> Tensor:
        """Number of counted elements."""
        return self.packed[1]

    @property
    def is_bad(self) -> Tensor:
        """True (a bool scalar) if a loss on any rank is not finite."""
        return self.packed[2] > 0

    @property
    def sums(self) -> dict[str, Tensor]:
        """The sums of the objective, by name."""
        return self.read(self.packed)

    def read(self, packed: Tensor) -> dict[str, Tensor]:
        """The sums of the objective, from a copy of `packed`."""
        start, sums = 3 + self.extra, dict[str, Tensor]()
        for name, shape in self.shapes.items():
            end = start + prod(shape)
            sums[name] = packed[start:end].reshape(shape)
            start = end
        return sums


class AsyncHostCopy:
    """Asynchronous copy of a small tensor to the host."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._values = values.detach().clone()
            return
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._values.copy_(values.detach(), non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def read(self) -> Tensor:
        """The values on the host; waits until the copy is done."""
        if self._event is not None:
            self._event.synchronize()
        return self._values
