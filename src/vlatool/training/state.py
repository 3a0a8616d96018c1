"""What changes while a run trains."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from vlatool.models.base import Part
from vlatool.training.ema import WeightAverage


@dataclass
class TrainState:
    """Weights, optimizers and how far they are.

    Attributes:
        parts: The networks themselves, placed, without what stands around them.
        optimizers: By name, as the objective names them.
        averages: Averaged weights by part, where they are wanted.
        unsaved: Digest of each part that checkpoints do not hold.
        step: Optimizer steps done.
        samples: Positions of the data consumed, dropped samples included.
        dropped: How many of them were dropped, by reason.
    """

    parts: Mapping[str, Part]
    optimizers: dict[str, Optimizer] = field(default_factory=dict[str, Optimizer])
    averages: dict[str, WeightAverage] = field(default_factory=dict[str, WeightAverage])
    unsaved: Mapping[str, str] = field(default_factory=dict[str, str])
    step: int = 0
    samples: int = 0
    dropped: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Name to network."""
        return {name: part.module for name, part in self.parts.items()}

    @property
    def num_parameters(self) -> int:
        """Numbers in the parts that checkpoints hold."""
        saved = (part.module for part in self.parts.values() if part.saved)
        return sum(p.numel() for module in saved for p in module.parameters())
