"""What a model type and its objective promise; the trainer knows nothing else of a model.

Legend of shapes: B samples of a micro-batch, T steps, A width of an action.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlatool.config.base import ConfigModel
    from vlatool.loading.config import DataConfig
    from vlatool.loading.decode import DecodedSample
    from vlatool.loading.facts import DatasetFacts
    from vlatool.loading.normalizer import Normalizer

Batch = dict[str, Any]


@dataclass(frozen=True)
class Loss:
    """A loss as a sum over elements, so that its mean does not depend on how a batch is cut.

    Attributes:
        total: Sum of the losses of all counted elements, with gradient.
        count: How many elements were counted.
        scalars: Further numbers to report, each already a mean.
    """

    total: "torch.Tensor"
    count: "torch.Tensor"
    scalars: Mapping[str, "torch.Tensor"] = field(default_factory=dict)


class Objective(Protocol):
    """Losses, and which optimizer moves when."""

    model: "nn.Module"

    def optimizers(self) -> Mapping[str, "nn.Module"]:
        """Name of each optimizer and the module whose parameters it moves."""
        ...

    def turns(self, step: int) -> Sequence[str]:
        """Names of the optimizers that move at this step, in order."""
        ...

    def loss(self, turn: str, batch: Batch, rng: "torch.Generator") -> Loss:
        """The loss of a micro-batch; all randomness comes from `rng`."""
        ...


class ModelType(Protocol):
    """One kind of model: config, network, batches, loss."""

    name: ClassVar[str]
    Config: ClassVar[type["ConfigModel"]]

    def derive(
        self, config: Any, data: "DataConfig", facts: "DatasetFacts"
    ) -> tuple[Any, dict[str, str]]:
        """The config with what the data decide, and dotted key to rule for what was filled in."""
        ...

    def build(self, config: Any) -> "nn.Module":
        """The network, freshly initialised from torch's global generator."""
        ...

    def objective(self, config: Any, model: "nn.Module") -> Objective:
        """Its loss."""
        ...

    def batcher(
        self, config: Any, data: "DataConfig", normalizer: "Normalizer"
    ) -> Callable[[Sequence["DecodedSample"]], Batch]:
        """Samples to a batch of tensors; picklable, runs in loader processes."""
        ...

    def act(
        self, model: "nn.Module", batch: Batch, *, steps: int, rng: "torch.Generator"
    ) -> "torch.Tensor":
        """Normalised actions [B, T, A] for a batch; for model types that are policies."""
        ...
