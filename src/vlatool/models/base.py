"""What a model type and its objective promise; the trainer knows nothing else of a model.

The protocols have bodies where most types say the same: a class that names the protocol as its base
inherits them. Legend of shapes: B samples of a micro-batch, N pictures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlatool.config.base import ConfigModel, Violation
    from vlatool.episode import UInt8Array
    from vlatool.findings import Finding
    from vlatool.loading.base import Batcher

Batch = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One network of a model type: what is moved, averaged and saved together.

    Attributes:
        module: The network.
        trained: An optimizer moves it; parameters that `build` or `load` froze stay frozen. Else it
            stays in eval mode and its parameters get no gradient; what goes in may.
        averaged: The run's moving average, if there is one, includes it.
        saved: It stands in checkpoints; else `load` brings it back and its digest is compared.
    """

    module: "nn.Module"
    trained: bool = True
    averaged: bool = True
    saved: bool = True

    def __post_init__(self) -> None:
        assert self.saved or not self.trained, "a part is trained but not saved"


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that one optimizer treats alike.

    Attributes:
        params: The parameters.
        decays: Whether weight decay makes them smaller.
        rate: Factor on the optimizer's learning rate.
    """

    params: Sequence["nn.Parameter"]
    decays: bool = True
    rate: float = 1.0


@dataclass(frozen=True)
class OptimizerSpec:
    """One optimizer; each has a learning-rate schedule and gradient clipping of its own.

    The schedule runs over the steps of the run since `starts_at`, those at which it does not move
    included; shares such as `warmup: 0.05` are of that span, and final rates scale with `lr`.

    Attributes:
        parts: Names of the parts that it moves.
        groups: (parts after sharding, names as built) to parameter groups; None: matrices decay,
            all else does not.
        lr: Peak rate; None: `hparams.lr`.
        betas: Momenta; None: those of `hparams`.
        starts_at: First step at which it moves.
        rates: Start of the names of parameters to a factor on their rate; for groups of its own
            `ParamGroup.rate` says it.
    """

    parts: tuple[str, ...]
    groups: Callable[[Mapping[str, "nn.Module"]], Sequence[ParamGroup]] | None = None
    lr: float | None = None
    betas: tuple[float, float] | None = None
    starts_at: int = 0
    rates: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Loss:
    """A loss as a sum over elements, so that its mean does not depend on how a batch is cut.

    Attributes:
        total: Sum of the losses of all counted elements, with gradient; float32 scalar. A term that
            is a mean over other elements is multiplied by this micro-batch's count. Connected to
            every trainable parameter of the parts that move.
        count: How many elements were counted, or their weight; scalar.
        sums: Further sums over the micro-batch, detached, each of a fixed shape: the same names and
            shapes in every micro-batch of an optimizer. The trainer adds them up over micro-batches
            and ranks, in float64.
    """

    total: "Tensor"
    count: "Tensor"
    sums: Mapping[str, "Tensor"] = field(default_factory=dict)


class Rng(Protocol):
    """Randomness with a row per sample of the micro-batch, on the device.

    A row depends on seed, step, place of the sample within the step's global batch and number of
    the call: not on how many processes or micro-batches share the step, nor on a resume.
    """

    def normal(self, *shape: int) -> "Tensor":
        """Standard normal, float32 [B, *shape]."""
        ...

    def uniform(self, *shape: int) -> "Tensor":
        """In [0, 1), float32 [B, *shape]."""
        ...

    def integers(self, high: int, *shape: int) -> "Tensor":
        """In [0, high), int64 [B, *shape]."""
        ...


@dataclass(frozen=True)
class StepContext:
    """What an objective may know of the moment.

    Attributes:
        step: Optimizer steps done before this one.
        draws: Randomness of this micro-batch.
        parts: The parts as placed: call these, or their listed methods, never what was built.
        training: False while held-out data are measured.
        samples: Names of the samples, in the order of the batch's rows.
    """

    step: int
    rng: Rng
    parts: Mapping[str, Any]
    training: bool = True
    samples: tuple[str, ...] = ()


class Objective(Protocol):
    """Losses, and which optimizer moves when.

    Whatever touches the weights of a part does so in its `forward` or in a method that the model
    type lists; a gradient with respect to weights cannot be asked for inside a loss, one with
    respect to what a part returns can. Values that are to survive a resume are buffers of parts;
    `settle` alone changes them (layers that change theirs in `forward`, such as batch norms in
    training mode, do not fit). Parts are called equally often on every rank.
    """

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """Every optimizer by name, in the order in which they move within a step."""
        ...

    def optimizers_at(self, step: int) -> Sequence[str]:
        """Names of those that move at a step, in order; at least one."""
        return [name for name, one in self.optimizers().items() if one.starts_at <= step]

    def prepare(self, batch: Batch, ctx: StepContext) -> Batch:
        """Once per micro-batch, on the device, without gradient: teacher's ids, augmentation.

        Also before `validate` and `images`; outside of autocast.
        """
        del ctx
        return batch

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """The loss of a micro-batch for one optimizer.

        May leave detached tensors in the batch for later optimizers of the step. Runs under
        autocast, which a part switches off where it needs float32.
        """
        ...

    def update_buffers(self, optimizer: str, sums: Mapping[str, "Tensor"], ok: "Tensor") -> None:
        """Once per optimizer and step, after it moved: the only place where buffers change.

        Args:
            optimizer: Which one.
            sums: `Loss.sums` over all micro-batches and ranks, float64, on the device. Nothing else
                that differs between ranks may be used.
            ok: bool scalar on the device, false where no weight was changed: change nothing then,
                as with `torch.where(ok, new, old)`.
        """
        del optimizer, sums, ok

    def validate(self, batch: Batch, ctx: StepContext) -> Loss:
        """The loss of a micro-batch of held-out data: parts in eval mode, no gradient."""
        return self.loss(next(iter(self.optimizers())), batch, ctx)

    def metrics(
        self, phase: str, sums: Mapping[str, "Tensor"], count: float
    ) -> Mapping[str, float]:
        """Numbers to report beside the loss of an optimizer.

        Args:
            phase: The optimizer's name; `validation` for what `validate` gave.
            sums: `Loss.sums` over all steps since the last report, float64, on the CPU.
            count: The counted elements of those steps.
        """
        del phase, sums, count
        return {}

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence["Finding"]:
        """What is alarming about reported figures: warnings are told, an error ends the run.

        Names are those of the metrics file: `critic/real`, `val/error`.
        """
        del metrics
        return ()

    def images(self, batch: Batch, ctx: StepContext) -> Mapping[str, "UInt8Array"]:
        """What to look at while it trains: name to uint8 [N, H, W, 3].

        Called on every rank, in eval mode, without gradient; those of the first rank are kept.
        """
        del batch, ctx
        return {}


class ModelType(Protocol):
    """One kind of model: config, networks, batches, loss. Light to import; torch in methods.

    Attributes:
        name: What `model.type` says.
        Config: Its section.
        kinds: Kinds of data that it takes, the first by default: names of built-in kinds, or
            `module:Kind` for one of its own.
        methods: Part to methods besides `forward` that touch its weights.
    """

    name: ClassVar[str]
    Config: ClassVar[type["ConfigModel"]]
    kinds: ClassVar[tuple[str, ...]]
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def check_init_weights(self, config: Any) -> None:
        """Makes sure, before data are looked at, that weights to begin with are there.

        Not called for a run that goes on: its checkpoints have them. Opens no weights.

        Raises:
            DataError: They are missing.
            UsageError: They cannot be used so.
        """
        del config

    def restore_base_config(self, config: Any, before: Any) -> Any:
        """The config of a run that goes on, with what it found out of base models when it began.

        Args:
            config: As it was typed.
            before: As it was derived then.
        """
        del before
        return config

    def derive(self, config: Any, data: Any, info: Any) -> tuple[Any, dict[str, str]]:
        """The config with what the data decide, and dotted key to rule for what was filled in.

        May read the configuration and tokenizer of a base model; opens no weights.
        """
        del data, info
        return config, {}

    def violations(self, config: Any, data: Any) -> "Iterable[Violation]":
        """What contradicts itself in the sections `model` and `data`, with keys from the root."""
        del config, data
        return ()

    def build(self, config: Any) -> Mapping[str, Part]:
        """The architecture of all parts, initialised from torch's global generator.

        Opens nothing and works on the meta device. The part that acts is called `model`. Parameters
        that no loss reaches are not built, or frozen here.
        """
        ...

    def load(self, config: Any, parts: Mapping[str, Part], names: Sequence[str]) -> None:
        """Weights from elsewhere into the named parts.

        On a fresh start all of them, on resume those that a checkpoint does not hold.
        """
        del config, parts, names

    def save_assets(self, config: Any, folder: Path) -> None:
        """Writes tokenizer, processor and the like beside a run, once, when it starts."""
        del config, folder

    def blocks(self, parts: Mapping[str, Part]) -> Sequence["nn.Module"]:
        """Units of sharding, gradient checkpointing and compilation, inner ones first.

        A block is called equally often on all ranks; tied weights share one.
        """
        del parts
        return ()

    def objective(self, config: Any, data: Any, info: Any, parts: Mapping[str, Part]) -> Objective:
        """Its losses; `parts` are placed already, so their buffers may be held."""
        ...

    def batcher(
        self, config: Any, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> "Batcher":
        """Samples to a batch of tensors; picklable, runs in loader processes.

        Args:
            config: Derived.
            data: Derived section of the data.
            assets: What the kind of data keeps for inference, of the training data.
            folder: Where `keep` wrote; None where nothing was kept, as for a dry run.
            training: Augment or not.
        """
        ...

    def example(self, config: Any, data: Any, size: int) -> Batch:
        """A made-up batch of `size` samples, as the batcher makes them.

        Its losses are finite. It stands in where nothing is left of a micro-batch, and is what
        contract checks train on.
        """
        ...

    def policy(
        self, config: Any, parts: Mapping[str, "nn.Module"], assets: Any, folder: Path
    ) -> Any | None:
        """What sees and acts (`models.policy.Policy`); None for what does not act.

        Args:
            config: Derived.
            parts: Those that checkpoints hold, on their device, in eval mode.
            assets: What the kind of data kept beside the run.
            folder: The run, where `keep` wrote.
        """
        del config, parts, assets, folder
        return None
