"""State of a run that changes during training."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from vlatool.models.base import Part
from vlatool.training.ema import WeightAverage


@dataclass
class TrainState:
    """Weights, optimizers and counters of a run.

    Attributes:
        parts: The placed parts, without wrappers.
        optimizers: Optimizers by the name that the objective gives them.
        averages: Averaged weights by part; empty if weights are not averaged.
        unsaved: Digest of each part that checkpoints do not hold.
        step: Optimizer steps done.
        samples: Positions consumed, dropped samples included.
        dropped: Number of dropped samples by reason.
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
        """Map from part name to network."""
        return {name: part.module for name, part in self.parts.items()}

    @property
    def num_parameters(self) -> int:
        """Number of parameters in the parts that checkpoints hold."""
        saved = (part.module for part in self.parts.values() if part.saved)
        return sum(p.numel() for module in saved for p in module.parameters())
