"""The model type `diffusion_policy`; no torch.

Source: reference/policy 1, 2; reference/training 1.7.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, Violation, derivation_rules, derived_field
from vlatool.errors import DataError, UsageError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.base import ModelType, Part
from vlatool.models.diffusion_policy.config import (
    FLOW_SOLVERS,
    Backbone,
    ClipBackboneConfig,
    DdimConfig,
    DenoiserSection,
    EulerConfig,
    NoiseConfig,
    Solver,
    TransformerConfig,
)
from vlatool.models.diffusion_policy.origin import find_origin
from vlatool.models.diffusion_policy.sections import BaseModelConfig, NetworkConfig
from vlatool.models.pretrained import weights_file

if TYPE_CHECKING:
    from torch import nn

    from vlatool.loading.robotics.info import RoboticsInfo
    from vlatool.loading.robotics.kind import RoboticsAssets
    from vlatool.models.diffusion_policy.batch import PolicyBatcher
    from vlatool.models.diffusion_policy.objective import DenoisingObjective
    from vlatool.models.policy import RoboticsPolicy


PolicyModule = Literal[
    "vision_language_backbone",
    "transformer",
    "time_encoding",
    "condition_encode",
    "action_encode",
    "proprioception_encode",
    "output_layer",
]


class DiffusionPolicyConfig(NetworkConfig):
    """A policy that denoises an action chunk, given images, language and proprioception."""

    type: Literal["diffusion_policy"] = Field(default="diffusion_policy", description="Model type.")
    vision_language_backbone: Backbone = Field(
        default=ClipBackboneConfig(), description="Encoder of images and language to tokens."
    )
    transformer: DenoiserSection = Field(default=TransformerConfig(), description="Denoiser.")
    noise_scheduler: NoiseConfig = Field(default=NoiseConfig(), description="Forward process.")
    use_flow_matching_scheduler: bool = Field(
        default=True, description="Use flow matching; else diffusion (DDPM)."
    )
    use_diffusers_scheduler: bool = Field(
        default=False, description="Use diffusion and ignore use_flow_matching_scheduler."
    )
    solver: Solver | None = Field(
        default=None,
        description="Solver that samples actions; null: euler for flow matching, ddim for "
        "diffusion.",
    )
    input_noise_std: float = Field(
        default=0.0, ge=0, description="Std of noise on the inputs during training."
    )
    diffusion_step_conditioning: Literal["concat", "add"] = Field(
        default="concat", description="Append the noise level as a token, or add it to all tokens."
    )
    num_action_head_repeats: int | None = Field(
        default=None, ge=1, description="Noise draws per observation that share one encoding."
    )
    resume_except: list[PolicyModule] = Field(
        default=[],
        description="Networks to initialize randomly although resume_from_checkpoint has their "
        "weights, such as action_encode and output_layer if the actions differ.",
    )
    lr_factors: dict[PolicyModule, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="Network to a factor on the learning rate, such as vision_language_backbone: "
        "0.1 for a pretrained backbone.",
    )
    action_dim: int | None = derived_field("data.action_dim", "Width of an action.", ge=1)
    proprioception_dim: int | None = derived_field(
        "data.proprioception_dim", "Width of a proprioception vector.", ge=0
    )

    @property
    def is_flow(self) -> bool:
        """True for flow matching, False for diffusion."""
        return self.use_flow_matching_scheduler and not self.use_diffusers_scheduler

    @property
    def chosen_solver(self) -> Solver:
        """The solver; by default that of the forward process."""
        return self.solver or (EulerConfig() if self.is_flow else DdimConfig())

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        solves_flow = self.chosen_solver.type in FLOW_SOLVERS
        if solves_flow != self.is_flow:
            process = "flow matching" if self.is_flow else "diffusion"
            raise ValueError(f"solver {self.chosen_solver.type!r} does not work with {process}")
        if self.freeze:
            raise ValueError("freeze: nothing would be left to train; freeze only a section")
        return self


class DiffusionPolicyType(ModelType):
    """The model type `diffusion_policy`."""

    name: ClassVar[str] = "diffusion_policy"
    Config: ClassVar[type[ConfigModel]] = DiffusionPolicyConfig
    kinds: ClassVar[tuple[str, ...]] = ("robotics",)

    def violations(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig
    ) -> Iterator[Violation]:
        """Clamp limits that do not match the normalization, and a processor that is not used."""
        limits = config.noise_scheduler.clamp_range
        key = "model.noise_scheduler.clamp_range"
        scaling = data.normalization
        if limits is not None and not scaling.enabled:
            message = f"{key} is {list(limits)}, but actions are not normalized"
            yield Violation((key, "data.normalization.enabled"), message, "warning")
        elif limits is not None and limits[0] == -limits[1] and not _is_centered(data):
            message = f"{key} is {list(limits)}, but actions are normalized to [0, 1], not [-1, 1]"
            keys = (key, "data.normalization.centered_norm", "data.normalization.method")
            yield Violation(keys, message)
        base = getattr(config.vision_language_backbone, "hf_pretrained", None)
        if data.processor not in (None, base):
            reason = "has no base model" if base is None else f"uses the processor of {base}"
            message = f"data.processor is {data.processor!r}, but the backbone {reason}"
            yield Violation(("data.processor",), message)

    def check_init_weights(self, config: DiffusionPolicyConfig) -> None:
        """Checks that the initial weights exist.

        Raises:
            DataError: The weights are missing.
            UsageError: A run is to be resumed from its weights.
        """
        if config.resume_from_checkpoint is not None and not config.resume_weights_only:
            raise UsageError(
                "model.resume_from_checkpoint: another run can only take over the weights",
                hint="set model.resume_weights_only=true to start a new run with them; to resume a "
                "run, repeat its command with the same --output",
                code="usage.resume_weights_only",
            )
        for section in (config, config.vision_language_backbone, config.transformer):
            if section.resume_from_checkpoint is not None:
                weights_file(section.resume_from_checkpoint)

    def restore_base_config(
        self, config: DiffusionPolicyConfig, before: ConfigModel
    ) -> DiffusionPolicyConfig:
        """The config with commits, architectures and image normalization of base models."""
        if not isinstance(before, DiffusionPolicyConfig):
            return config
        return _with_base_config(config, before.vision_language_backbone, before.transformer)

    def derive(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig, info: "RoboticsInfo"
    ) -> tuple[DiffusionPolicyConfig, dict[str, str]]:
        """Derives dimensions, the number of cameras, and keys of base models.

        Raises:
            DataError: There are no cameras, or a base model is missing.
        """
        del info
        if not data.camera_names:
            raise DataError(
                "the data have no camera; a diffusion policy needs at least one",
                hint="check the data with `vlatool inspect`; preprocess episodes that have images",
                code="data.no_cameras",
            )
        config = _with_init_base_config(config)
        widths = ("action_dim", "proprioception_dim")
        update: dict[str, Any] = {name: getattr(data, name) for name in widths}
        rules = derivation_rules(config, update)
        for name in ("vision_language_backbone", "transformer"):
            section: NetworkConfig = getattr(config, name)
            update[name], section_rules = section.derive(data)
            rules |= {f"{name}.{key}": rule for key, rule in section_rules.items()}
        return config.model_copy(update=update), rules

    def build(self, config: DiffusionPolicyConfig) -> Mapping[str, Part]:
        """The network, as the part `model`."""
        from vlatool.models.diffusion_policy.model import DiffusionPolicy

        return {"model": Part(DiffusionPolicy(config))}

    def load(
        self, config: DiffusionPolicyConfig, parts: Mapping[str, Part], names: Sequence[str]
    ) -> None:
        """Loads the weights of base models or of the initial checkpoint.

        Raises:
            DataError: The weights are missing, broken, or do not match the network.
        """
        from vlatool.models.diffusion_policy.weights import load_init_weights

        if "model" in names:
            load_init_weights(config, parts["model"].module)

    def save_assets(self, config: DiffusionPolicyConfig, folder: Path) -> None:
        """Writes the text tokenizer; copied from the run of the initial weights if possible."""
        section = config.vision_language_backbone
        origin = find_origin(config.resume_from_checkpoint, type(config))
        has_tokenizer = origin is not None and origin.has_tokenizer_of(section)
        section.save_assets(folder, origin.folder if origin is not None and has_tokenizer else None)

    def blocks(self, parts: Mapping[str, Part]) -> Sequence["nn.Module"]:
        """The transformer blocks of the backbone and the denoiser."""
        network: Any = parts["model"].module
        return network.blocks()

    def objective(
        self,
        config: DiffusionPolicyConfig,
        data: RoboticsDataConfig,
        info: "RoboticsInfo",
        parts: Mapping[str, Part],
    ) -> "DenoisingObjective":
        """Squared error of the prediction."""
        del parts
        from vlatool.models.diffusion_policy.loss_breakdown import LossBreakdown
        from vlatool.models.diffusion_policy.objective import DenoisingObjective

        widths = dict(zip(data.action_fields, info.widths(data.action_fields), strict=True))
        breakdown = LossBreakdown(widths, data.dataset_manifest, data.val_dataset_manifest)
        return DenoisingObjective(config, breakdown)

    def batcher(
        self,
        config: DiffusionPolicyConfig,
        data: RoboticsDataConfig,
        assets: "RoboticsAssets",
        folder: Path | None,
        *,
        training: bool,
    ) -> "PolicyBatcher":
        """Converts samples to tensors."""
        del training
        from vlatool.models.diffusion_policy.batch import PolicyBatcher

        return PolicyBatcher(config, data, assets.normalizer, folder)

    def example(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig, size: int
    ) -> dict[str, Any]:
        """Gray images, smooth actions, empty instructions."""
        from vlatool.models.diffusion_policy.batch import example_batch

        return example_batch(config, data, size)

    def policy(
        self,
        config: DiffusionPolicyConfig,
        parts: Mapping[str, "nn.Module"],
        assets: "RoboticsAssets",
        folder: Path,
    ) -> "RoboticsPolicy":
        """A policy that samples action chunks."""
        from vlatool.models.diffusion_policy.batch import PolicyBatcher
        from vlatool.models.diffusion_policy.objective import sample_actions
        from vlatool.models.policy import RoboticsPolicy

        network: Any = parts["model"]
        batcher = PolicyBatcher(config, assets.data, assets.normalizer, folder)
        return RoboticsPolicy(partial(sample_actions, network), batcher, assets)


def _with_base_config(
    config: DiffusionPolicyConfig, backbone: NetworkConfig, denoiser: NetworkConfig
) -> DiffusionPolicyConfig:
    """The config with base model keys of earlier sections."""
    changes = {
        "vision_language_backbone": config.vision_language_backbone.restore_base_config(backbone),
        "transformer": config.transformer.restore_base_config(denoiser),
    }
    return config.model_copy(update=changes)


def _with_init_base_config(config: DiffusionPolicyConfig) -> DiffusionPolicyConfig:
    """The config with base model keys of the run that has the initial weights."""
    sections = (config.vision_language_backbone, config.transformer)
    if not any(
        isinstance(section, BaseModelConfig) and section.architecture is None
        for section in sections
    ):
        return config
    origin = find_origin(config.resume_from_checkpoint, type(config))
    return config if origin is None else _with_base_config(config, origin.backbone, origin.denoiser)


def _is_centered(data: RoboticsDataConfig) -> bool:
    """True if the normalization centers every action field around zero."""
    fields = [data.normalization.for_field(name) for name in data.action_fields]
    scalings = [scaling for scaling in fields if scaling.enabled] or [data.normalization]
    return all(scaling.centered_norm or scaling.method == "std" for scaling in scalings)
