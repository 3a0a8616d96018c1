"""What changes while a run trains."""

from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from vlatool.training.ema import WeightAverage


@dataclass
class TrainState:
    """Weights, optimizers and how far they are.

    Attributes:
        model: The network itself, unwrapped.
        optimizers: By name, as the objective names them.
        average: Averaged weights, if wanted.
        step: Optimizer steps done.
        samples: Samples consumed.
    """

    model: nn.Module
    optimizers: dict[str, Optimizer] = field(default_factory=dict[str, Optimizer])
    average: WeightAverage | None = None
    step: int = 0
    samples: int = 0
