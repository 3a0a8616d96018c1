"""Interfaces that a model implements: model type, objective, policy and visual tokenizer.

Training, evaluation and serving call only these methods. The methods that your class must have are
abstract: if one is missing, Python names it when you make an object.

    ModelType          build, objective, batcher, example
    Objective          optimizers, loss
    Policy             act
    VisualTokenizer    digest, encode, decode

All other methods have a default. `examples/act` and `models/vqgan` are model types to copy. Legend
of shapes: B samples of a micro-batch, N images.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from vlatool.errors import UsageError
from vlatool.models.published import Layout, WeightsOrigin

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vlatool.checkpoints.contract import Contract
    from vlatool.config.base import ConfigModel, Violation
    from vlatool.episode import Array, Observation, ObservationSpec, UInt8Array
    from vlatool.findings import Finding
    from vlatool.loading.base import Batcher

Batch = dict[str, Any]

# Largest sizes in a configuration of a network: far above any published model, and small
# enough that its modules are built within seconds, on the meta device without memory.
MAX_LAYERS = 256
MAX_WIDTH = 2**16  # of tokens, channels and sequences
MAX_SIDE = 2**14  # of images and patches, in pixels
MAX_ROWS = 2**24  # of tables


@dataclass(frozen=True)
class Part:
    """A network of a model type. It has a name, and is optimized, averaged and saved as a unit."""

    module: "nn.Module"  # the network
    # if True, an optimizer updates the parameters, except parameters that `build` or `load` froze:
    # these never change, and all checkpoints share one copy. If False, the module stays in eval
    # mode and its parameters get no gradient; gradients still flow to its inputs
    trained: bool = True
    averaged: bool = True  # if True, the averaged weights (EMA) of the run include it
    # if True, checkpoints contain it. If False, `load` reads it again on resume, and its digest
    # must be the same
    saved: bool = True

    # units of sharding, activation checkpointing and compilation, inner ones first. Each must be
    # called equally often on all ranks; tied weights must be in the same block
    blocks: Sequence["nn.Module"] = ()
    # if False, a loss may leave out trained parameters, which DDP then searches for in each step
    uses_all: bool = True

    def __post_init__(self) -> None:
        assert self.saved or not self.trained, "a part is trained but not saved"


def blocks_of(parts: Mapping[str, Part]) -> "list[nn.Module]":
    """The blocks of all parts."""
    return [block for part in parts.values() for block in part.blocks]


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share the same options of an optimizer."""

    params: Sequence["nn.Parameter"]  # the parameters
    decays: bool = True  # if True, weight decay applies to them
    rate: float = 1.0  # factor on the learning rate of the optimizer
    decay: float | None = None  # weight decay, if it is not the one of `hparams`


def decays_by_name(name: str) -> bool:
    """True if the published rule applies weight decay to a parameter of this name."""
    return not (name.endswith(".bias") or "norm" in name.lower())


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer, with its own learning-rate schedule and gradient clipping.

    The schedule covers the steps of the run from `starts_at` on, including steps at which the
    optimizer does not run. Fractions such as `warmup: 0.05` refer to these steps. Final learning
    rates are scaled with `lr`.
    """

    parts: tuple[str, ...]  # names of the parts that it updates
    # function that gets the sharded parts by name and returns parameter groups; parameters have the
    # names of `build`. None: groups by `hparams.decay_by_name`
    groups: Callable[[Mapping[str, "nn.Module"]], Sequence[ParamGroup]] | None = None
    lr: float | None = None  # peak learning rate; None: `hparams.lr`
    betas: tuple[float, float] | None = None  # coefficients of AdamW; None: as in `hparams`
    starts_at: int = 0  # first step at which the optimizer runs
    # factor on the learning rate of parameters, by the prefix of their names. If `groups` is set,
    # `ParamGroup.rate` is used instead
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    # factor on the peak learning rate at a step of a number of steps, which is used if
    # `hparams.lr_scheduler` is `model`
    schedule: Callable[[int, int], float] | None = None


@dataclass(frozen=True)
class Loss:
    """Loss of a micro-batch: the sum over its elements, and their number.

    The trainer adds up the sums of all micro-batches and ranks and divides by the total count, so
    the mean does not depend on how the global batch is split.
    """

    # sum of the losses of all counted elements; float32 scalar with gradient. A term that is a mean
    # over other elements must be multiplied by `count`. The graph must reach every trainable
    # parameter of the parts of the optimizer
    total: "Tensor"
    count: "Tensor"  # number of counted elements, or the sum of their weights; scalar
    # other sums over the micro-batch, detached. Names and shapes must be the same in every
    # micro-batch of an optimizer. The trainer adds them over micro-batches and ranks, in float64
    sums: Mapping[str, "Tensor"] = field(default_factory=dict)


class Rng(Protocol):
    """Random numbers on the device, one row per sample of the micro-batch.

    A row depends on the seed, the step, the index of the sample in the global batch, and the number
    of the call. It does not depend on the world size, the micro-batches, or a resume.
    """

    def normal(self, *shape: int) -> "Tensor":
        """Returns samples of the standard normal distribution, float32 [B, *shape]."""
        ...

    def uniform(self, *shape: int) -> "Tensor":
        """Returns samples of the uniform distribution over [0, 1), float32 [B, *shape]."""
        ...

    def integers(self, high: int, *shape: int) -> "Tensor":
        """Returns uniform integers in [0, high), int64 [B, *shape]."""
        ...


@dataclass(frozen=True)
class StepContext:
    """What an objective may use from the run."""

    step: int  # number of optimizer steps before this one
    rng: Rng  # random numbers of this micro-batch
    # map from name to module after placement (DDP or sharding). Call these modules or the methods
    # that the model type lists, never the modules of `build`
    parts: Mapping[str, Any]
    training: bool = True  # False for validation data
    samples: tuple[str, ...] = ()  # names of the samples, one per row of the batch


class Objective(Protocol):
    """The losses of a model type, and the optimizers that minimize them.

    Rules for all methods:

    - Use the weights of a part only through its `forward` or a method that the model type lists in
      `methods`.
    - Inside a loss, gradients with respect to weights are not available; gradients with respect to
      the outputs of a part are.
    - State that must survive a resume is in buffers of parts. Only `update_buffers` changes them,
      so layers that update buffers in `forward`, such as batch norm in training mode, are not
      supported.
    - Call each part equally often on all ranks.

    Attributes:
        samples_chunks: True if validation should call `chunk_errors` to measure sampled action
            chunks.
    """

    samples_chunks: ClassVar[bool] = False

    @abstractmethod
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """Returns all optimizers by name, in the order in which they run within a step."""
        ...

    def optimizers_at(self, step: int) -> Sequence[str]:
        """Returns the names of the optimizers that run at a step, in order; at least one."""
        return [name for name, spec in self.optimizers().items() if spec.starts_at <= step]

    def prepare(self, batch: Batch, ctx: StepContext) -> Batch:
        """Prepares a micro-batch on the device, for example adds teacher codes or augments images.

        Called once per micro-batch, before `loss`, `validate` or `images`, without gradient and
        without autocast.
        """
        return batch

    def global_sums(self, batch: Batch, ctx: StepContext) -> Mapping[str, "Tensor"]:
        """Returns sums over a micro-batch whose totals over the global batch the loss needs.

        Called before the losses of a step, without gradient and under autocast, unless the
        micro-batch is the global batch. Their totals over all micro-batches and ranks, float64, are
        added to each batch under their names.
        """
        return {}

    @abstractmethod
    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """Returns the loss of a micro-batch for one optimizer.

        You may add detached tensors to the batch for later optimizers of the step. The method runs
        under autocast; a part that needs float32 disables autocast itself.
        """
        ...

    def update_buffers(self, optimizer: str, sums: Mapping[str, "Tensor"], ok: "Tensor") -> None:
        """Updates buffers of parts, such as running means or codebooks.

        Called once per optimizer and step, after the update of the weights.

        Args:
            optimizer: Name of the optimizer.
            sums: Totals of `Loss.sums` over all micro-batches and ranks, float64, on the device.
                New values must not depend on anything else that differs between ranks.
            ok: Bool scalar on the device. If False, the weights were not updated, and buffers must
                not change either: write `torch.where(ok, new, old)`.
        """
        del optimizer, sums, ok

    def validate(self, batch: Batch, ctx: StepContext) -> Loss:
        """Returns the loss of a micro-batch of validation data; in eval mode, without gradient."""
        return self.loss(next(iter(self.optimizers())), batch, ctx)

    def chunk_errors(self, batch: Batch, ctx: StepContext) -> Mapping[str, "Tensor"]:
        """Samples an action chunk for each sample and compares it with the recorded one.

        Called after `prepare`, in eval mode, without gradient and without autocast, if
        `samples_chunks` is True.

        Returns:
            For each metric float64 [2]: the sum of absolute errors in physical units, and their
            number. The names must be the same for every micro-batch.
        """
        raise AssertionError("an objective with samples_chunks has chunk_errors")

    def metrics(
        self, phase: str, sums: Mapping[str, "Tensor"], count: float
    ) -> Mapping[str, float]:
        """Returns metrics to log beside the loss of an optimizer.

        Args:
            phase: Name of the optimizer, or `validation` for the results of `validate`.
            sums: `Loss.sums` over all steps since the last log, float64, on the CPU.
            count: Number of counted elements in these steps.
        """
        return {}

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence["Finding"]:
        """Returns findings about logged metrics: a warning is reported, an error ends the run.

        Args:
            metrics: Values by their names in the metrics file, such as `critic/real`, `val/error`.
        """
        return ()

    def images(self, batch: Batch, ctx: StepContext) -> Mapping[str, "UInt8Array"]:
        """Returns images to log during training, uint8 [N, H, W, 3] by name.

        Called on all ranks, in eval mode, without gradient; only the images of rank 0 are saved.
        """
        return {}


Precision = Literal["fp32", "bf16"]


class Codes(NamedTuple):
    """Codes of a batch of images."""

    values: "Tensor"  # int64 [B, K], on the device of the tokenizer
    # number of images that were encoded again, alone, because two codes were nearly equal
    num_encoded_alone: int = 0


class Reconstruction(NamedTuple):
    """Reconstructed images and their codes, on the device of the tokenizer."""

    pixels: "Tensor"  # float [B, 3, S, S]; 0 is black, 1 white; not clamped
    codes: "Tensor | None"  # int64 [B, K]; None without a codebook


class VisualTokenizer(Protocol):
    """Encodes images to codes and decodes them; `ModelType.tokenizer` returns one.

    All tensors are on the device of the network. Methods with a body are optional. S: side of an
    image in pixels, K: codes of an image.

    Attributes:
        image_size: S.
        codes_per_image: K.
        codebook_size: Number of codes; 0 for a tokenizer that only reconstructs.
        has_decoder: True if codes can be decoded to pixels.
    """

    image_size: int
    codes_per_image: int
    codebook_size: int
    has_decoder: bool = True

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of everything that determines the codes."""
        ...

    @property
    def decoder_digest(self) -> str:
        """SHA-256 of everything that determines the codes and the decoded images."""
        return self.digest

    @abstractmethod
    def encode(self, images: "Tensor", precision: Precision = "fp32") -> Codes:
        """Codes of images uint8 [B, S, S, 3]; in fp32 they depend on no other image."""
        ...

    @abstractmethod
    def decode(self, codes: "Tensor") -> "Tensor":
        """Images uint8 [B, S, S, 3] of codes int [B, K].

        Raises:
            DataError: A code is out of range, or an image does not have K codes.
        """
        ...

    def reconstructor(self) -> "Callable[[Tensor], Reconstruction]":
        """Returns a function that reconstructs images uint8 [B, S, S, 3], in float32.

        Raises:
            UsageError: The tokenizer needs a teacher to decode, and has none.
            DataError: The teacher is missing or broken.
        """

        def reconstruct(images: "Tensor") -> Reconstruction:
            codes = self.encode(images).values
            return Reconstruction(self.decode(codes).permute(0, 3, 1, 2).float() / 255, codes)

        return reconstruct


Rule = Literal["probable", "central", "future"]


@dataclass(frozen=True)
class Sampling:
    """How a policy that writes tokens samples its answers; see `SamplingOptions`."""

    temperature: float = 0.0
    samples: int = 1
    selection: Rule = "probable"


@dataclass(frozen=True)
class Candidates:
    """N answers to one observation; one of them is executed."""

    chosen: int
    scores: Mapping[Rule, "Array"]  # of each answer by each rule that was computed, [N]
    codes: Mapping[str, "Array"]  # of predicted images by camera, [N, F, codes]; may be empty


@dataclass(frozen=True)
class Decision:
    """Action chunks of a policy, and facts about how it computed them."""

    actions: Mapping[str, "Array"]  # result of `Policy.act`
    # number of tokens that were decoded for each observation; empty if there are none
    tokens: Sequence[int] = ()
    candidates: Sequence[Candidates] = ()  # of each observation; empty if a policy draws none


class Policy(Protocol):
    """A trained policy; evaluation, rollouts and `load_policy` call only these methods.

    It has no memory: `evaluation.control` keeps the history and executes chunks.

    Attributes:
        sees: The cameras, fields and steps that the policy takes.
        actions: Commanded fields, name to number of dimensions; poses are absolute.
        fps: Steps per second.
        horizon: Number of steps in a chunk of commands, T.
        predicts_images: True if the policy also predicts images, as codes of a visual tokenizer.
        contract: What the training data looked like; None: unknown.
        held: Dimensions that never moved in the training data, `FIELD: NAME`, to the value with
            which the policy commands them.
    """

    sees: "ObservationSpec"
    actions: Mapping[str, int]
    fps: float
    horizon: int
    predicts_images: ClassVar[bool] = False
    contract: "Contract | None" = None
    held: Mapping[str, float] = MappingProxyType({})

    @abstractmethod
    def act(
        self, observations: "Sequence[Observation]", *, seeds: Sequence[int]
    ) -> Mapping[str, "Array"]:
        """Returns chunks of commands by field, float [B, T, C], from the current step on.

        A chunk must depend only on its observation, its seed and B: on the same device it has the
        same bits, whichever observations share the batch.

        Args:
            observations: B observations, with the fields and cameras of `sees`.
            seeds: One seed for the random numbers of each observation.

        Raises:
            DataError: An observation lacks a value, or its images cannot be used.
        """
        ...

    def with_steps(self, steps: int) -> "Policy":
        """Returns the policy with `steps` evaluations of its network per chunk."""
        return self

    def with_sampling(self, sampling: Sampling) -> "Policy":
        """Returns the policy with other sampling, which only a policy that writes tokens has."""
        if sampling != Sampling():
            raise UsageError(
                "the policy writes no tokens, so temperature, samples and selection have no effect",
                hint="leave them out; another seed gives another chunk",
                code="usage.unsupported",
            )
        return self

    def decide(
        self, observations: "Sequence[Observation]", *, seeds: Sequence[int], look: bool = False
    ) -> Decision:
        """Returns the chunks of `act`, and how many tokens were decoded for each. `look`: also
        return the predicted images of all candidates, if the policy predicts images.
        """
        actions = self.act(observations, seeds=seeds)
        if not look or not self.predicts_images:
            return Decision(actions)
        codes = self.future_codes(observations, seeds=seeds)
        candidates: list[Candidates] = []
        for row in range(len(observations)):
            of_row = {name: values[row : row + 1] for name, values in codes.items()}
            candidates.append(Candidates(0, {}, of_row))
        return Decision(actions, candidates=candidates)

    def action_range(self, field: str) -> "tuple[Array, Array] | None":
        """Returns the smallest and the largest values of an action field in the training data.

        Both are float64 [C]; None if the range is unknown.
        """
        return None

    def state_range(self, field: str) -> "tuple[Array, Array] | None":
        """The same for a field of `sees`: a state far outside this range is reported."""
        return None

    def with_tokenizer(self, tokenizer: VisualTokenizer) -> "Policy":
        """Returns the policy with the tokenizer that decodes its predicted codes."""
        raise AssertionError("a policy with predicts_images has with_tokenizer")

    def future_codes(
        self, observations: "Sequence[Observation]", *, seeds: Sequence[int]
    ) -> Mapping[str, "Array"]:
        """Returns predicted codes of the next F steps by camera, int64 [B, F, codes].

        Arguments, errors and the rule of equal bits are as for `act`, which returns no codes.
        """
        raise AssertionError("a policy with predicts_images has future_codes")

    def futures(
        self, observations: "Sequence[Observation]", *, seeds: Sequence[int]
    ) -> Mapping[str, "UInt8Array"]:
        """Returns the images of the codes of `future_codes` by camera, uint8 [B, F, H, W, 3]."""
        raise AssertionError("a policy with predicts_images has futures")


class ModelType(Protocol):
    """A type of model: defines its config, networks, batches, losses and policy.

    The module of a model type must be light to import: import torch inside the methods. Methods get
    `config`, the section `model`, which is derived only after `derive`; `data`, the derived section
    `data`; `info`, the metadata of the training data; `assets` of the data kind; and `folder`, the
    folder of the run with the files of `save_assets`.

    Attributes:
        name: Name of the type, which users write as `model.type`.
        Config: Config class of the section `model`.
        kinds: Data kinds that it accepts, the default first: names of built-in kinds, or
            `module:Kind` for a kind in your plugin.
        methods: For each part, the names of methods besides `forward` that use its weights.
        needs_init: True if a run needs the weights of `init_from`; without them it can only be
            planned.
        layout: How files of this type are published; by default they are not.
    """

    name: ClassVar[str]
    Config: ClassVar[type["ConfigModel"]]
    kinds: ClassVar[tuple[str, ...]]
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    needs_init: ClassVar[bool] = False
    layout: ClassVar[Layout] = Layout()

    # what every model type has

    @abstractmethod
    def build(self, config: Any) -> Mapping[str, Part]:
        """Returns all parts by name, with random weights from the global generator of torch.

        It must not open files, and must work on the meta device. Name the part that acts or encodes
        `model`. Leave out parameters on which no loss depends, or freeze them here.
        """
        ...

    @abstractmethod
    def objective(self, config: Any, data: Any, info: Any, parts: Mapping[str, Part]) -> Objective:
        """Returns the objective.

        Args:
            parts: The parts, placed on the devices; the objective may keep references to their
                buffers.
        """
        ...

    @abstractmethod
    def batcher(
        self, config: Any, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> "Batcher":
        """Returns a function that makes a batch of tensors from samples; it runs in loader workers.

        Args:
            folder: Folder with the files of `save_assets`; None if they are not written, as in a
                dry run.
            training: True for training data, False for validation and inference.
        """
        ...

    @abstractmethod
    def example(self, config: Any, data: Any, size: int) -> Batch:
        """Returns a made-up batch of `size` samples, in the format of the batcher.

        Its losses must be finite. Dry runs, dummy micro-batches and contract checks use it.
        """
        ...

    # what it is for: a policy, a visual tokenizer, or neither

    def policy(
        self, config: Any, parts: Mapping[str, "nn.Module"], assets: Any, folder: Path | None
    ) -> Policy | None:
        """Returns a policy, such as `models.policy.RoboticsPolicy`; None if the model is not a
        policy.

        Args:
            parts: Networks of `build_for_inference`, on their device, in eval mode.
            folder: Folder with the files of `save_assets`, such as the run; None for published
                weights without these files.
        """
        return None

    def tokenizer(
        self, config: Any, parts: Mapping[str, "nn.Module"], assets: Any
    ) -> VisualTokenizer | None:
        """Returns a visual tokenizer; None if the model is not one.

        Args:
            parts: Networks of `build_for_inference`, on their device, in eval mode.
            assets: Assets of the data kind; `assets.preprocessing` says how images are prepared.
        """
        return None

    def build_for_inference(self, config: Any) -> Mapping[str, Part]:
        """Returns the parts that inference uses: by default all parts that checkpoints contain."""
        return {name: part for name, part in self.build(config).items() if part.saved}

    def adapter_targets(self, network: "nn.Module") -> str:
        """Returns a pattern of the names of linear layers that get adapters; by default of all."""
        return ".*"

    def flops(self, config: Any, data: Any) -> float | None:
        """Returns the number of floating-point operations to train on one sample; None if unknown.

        Counts the forward and backward passes, without recomputation by gradient checkpointing. A
        multiplication with an addition counts as two. `models.flops.sample_flops` can count them.
        """
        return None

    # options, in the order in which a run calls them

    def run_defaults(self, section: Mapping[str, Any], init_from: str | None) -> Mapping[str, Any]:
        """Returns keys of a run, below presets and all others, for a section `model` as written."""
        return {}

    def windows(self, config: Any) -> Mapping[str, Any]:
        """Returns keys of `data.windows` that the model needs, for those that are not set."""
        return {}

    def violations(self, config: Any, data: Any) -> "Iterable[Violation]":
        """Returns contradictions in the sections `model` and `data`, or between them.

        The keys of a violation start at the root of the configuration, such as `model.width`.
        """
        return ()

    def check_init(self, config: Any, init_from: str | None) -> None:
        """Checks the initial weights before data are read. Opens no weights.

        Not called on resume, because the checkpoints of the run have all weights.

        Args:
            init_from: Location of the initial weights, which exists; None: there are none.

        Raises:
            DataError: Weights that the config names are missing.
            UsageError: Weights are required, or cannot be used with this config.
        """
        del config, init_from

    def restore_base_config(self, config: Any, before: Any) -> Any:
        """Returns the config with the values that an earlier run read from base models.

        Args:
            config: Section `model` as the user has configured it now.
            before: Derived section `model` of an earlier run: the run that is resumed, or the run
                of the initial weights.
        """
        return config

    def derive(self, config: Any, data: Any, info: Any) -> tuple[Any, dict[str, str]]:
        """Fills in values of the section `model` that follow from the data.

        May read config.json and the tokenizer of a base model. Opens no weights.

        Returns:
            The derived section, and for each dotted key that was filled in the rule.
        """
        return config, {}

    def check_data(self, config: Any, data: Any, info: Any, folder: Path) -> None:
        """Checks before training that the data fit the assets of the model. Opens no weights.

        Raises:
            DataError: The data cannot be used with this model.
        """
        del config, data, info, folder

    def save_assets(
        self, config: Any, folder: Path, before: Any = None, source: Path | None = None
    ) -> None:
        """Writes assets such as tokenizer and processor to the run folder, when the run starts.

        Args:
            before: Section `model` of the initial weights; None: there is none.
            source: Folder of the initial weights, local or remote. Copy its assets if they are what
                the config needs.
        """
        del config, folder, before, source

    def load(
        self, config: Any, parts: Mapping[str, Part], names: Sequence[str]
    ) -> Sequence[str] | None:
        """Loads weights from outside the run into some parts; called only on the first process.

        It may freeze parameters and change their types, but not the structure of the parts.

        Args:
            names: Names of the parts to load. When a run starts: all, without `model` if it has
                initial weights. On resume: the parts that checkpoints do not contain.

        Returns:
            Messages for the user, such as tensors of a file that are not used; None: no messages.
        """
        return ()

    def load_init(
        self,
        config: Any,
        parts: Mapping[str, Part],
        init: WeightsOrigin,
        init_except: Sequence[str],
    ) -> Sequence[str] | None:
        """Loads initial weights into the part `model`; by default they come from a run of this
        type.

        Args:
            init: Run, checkpoint, published folder or file.
            init_except: Networks of the part that keep their random weights.

        Returns:
            Messages for the user, as for `load`.

        Raises:
            ConfigError: A network does not exist.
            DataError: The weights are missing or broken, or do not match.
        """
        from vlatool.models.weights import init_state_dict

        init.check_type(self.name, "data.checkpoint_mismatch")
        module = parts["model"].module
        state = init_state_dict(module, init.read(), init.file, init_except)
        module.load_state_dict(state, strict=False)
        return ()
