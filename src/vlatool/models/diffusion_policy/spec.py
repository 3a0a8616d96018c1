"""The model type `diffusion_policy`; light, no torch. Source: reference/policy 1, 2; reference/training 1.7."""

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
    """A policy that denoises a chunk of actions given pictures, language and proprioception."""

    type: Literal["diffusion_policy"] = Field(default="diffusion_policy", description="Model type.")
    vision_language_backbone: Backbone = Field(
        default=ClipBackboneConfig(), description="Pictures and language to tokens."
    )
    transformer: DenoiserSection = Field(default=TransformerConfig(), description="The denoiser.")
    noise_scheduler: NoiseConfig = Field(default=NoiseConfig(), description="Noise.")
    use_flow_matching_scheduler: bool = Field(
        default=True, description="Flow matching; else diffusion (DDPM)."
    )
    use_diffusers_scheduler: bool = Field(
        default=False, description="Diffusion, whatever use_flow_matching_scheduler says."
    )
    solver: Solver | None = Field(
        default=None,
        description="How actions are sampled; null: euler for flow matching, ddim for diffusion.",
    )
    input_noise_std: float = Field(default=0.0, ge=0, description="Noise on inputs while training.")
    diffusion_step_conditioning: Literal["concat", "add"] = Field(
        default="concat", description="Noise level as a token of its own, or added to the others."
    )
    num_action_head_repeats: int | None = Field(
        default=None, ge=1, description="Noise draws per observation that share one encoding."
    )
    resume_except: list[PolicyModule] = Field(
        default=[],
        description="Networks that begin anew although resume_from_checkpoint has their weights, "
        "such as action_encode and output_layer where actions differ.",
    )
    lr_factors: dict[PolicyModule, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="Network to a factor on the learning rate, such as vision_language_backbone: "
        "0.1 for one that is trained already.",
    )
    action_dim: int | None = derived_field("data.action_dim", "Width of an action.", ge=1)
    proprioception_dim: int | None = derived_field(
        "data.proprioception_dim", "Width of a proprioception vector.", ge=0
    )

    @property
    def is_flow(self) -> bool:
        """Flow matching, not diffusion."""
        return self.use_flow_matching_scheduler and not self.use_diffusers_scheduler

    @property
    def chosen_solver(self) -> Solver:
        """The solver, by default the one of the process."""
        return self.solver or (EulerConfig() if self.is_flow else DdimConfig())

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        solves_flow = self.chosen_solver.type in FLOW_SOLVERS
        if solves_flow != self.is_flow:
            process = "flow matching" if self.is_flow else "diffusion"
            raise ValueError(f"solver {self.chosen_solver.type!r} is not for {process}")
        if self.freeze:
            raise ValueError("freeze: nothing would be left to train; freeze a section of it")
        return self


class DiffusionPolicyType(ModelType):
    """The model type `diffusion_policy`."""

    name: ClassVar[str] = "diffusion_policy"
    Config: ClassVar[type[ConfigModel]] = DiffusionPolicyConfig
    kinds: ClassVar[tuple[str, ...]] = ("robotics",)

    def violations(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig
    ) -> Iterator[Violation]:
        """Limits that do not fit the scale of actions, and a processor that is not the one used."""
        limits = config.noise_scheduler.clamp_range
        key = "model.noise_scheduler.clamp_range"
        scaling = data.normalization
        if limits is not None and not scaling.enabled:
            message = f"{key} is {list(limits)}, and actions are not normalised"
            yield Violation((key, "data.normalization.enabled"), message, "warning")
        elif limits is not None and limits[0] == -limits[1] and not _is_centered(data):
            message = f"{key} is {list(limits)}, and actions are normalised to 0 to 1, not -1 to 1"
            keys = (key, "data.normalization.centered_norm", "data.normalization.method")
            yield Violation(keys, message)
        base = getattr(config.vision_language_backbone, "hf_pretrained", None)
        if data.processor not in (None, base):
            reason = "has no base model" if base is None else f"reads as {base} does"
            message = f"data.processor is {data.processor!r}: the backbone {reason}"
            yield Violation(("data.processor",), message)

    def check_init_weights(self, config: DiffusionPolicyConfig) -> None:
        """Makes sure that the weights to begin with are there.

        Raises:
            DataError: They are missing.
            UsageError: A whole run is to go on by its weights.
        """
        if config.resume_from_checkpoint is not None and not config.resume_weights_only:
            raise UsageError(
                "model.resume_from_checkpoint: only weights can be taken into another run",
                hint="set model.resume_weights_only=true to begin a new run with them; a run goes "
                "on by the same command with its --output",
                code="usage.resume_weights_only",
            )
        for section in (config, config.vision_language_backbone, config.transformer):
            if section.resume_from_checkpoint is not None:
                weights_file(section.resume_from_checkpoint)

    def restore_base_config(
        self, config: DiffusionPolicyConfig, before: ConfigModel
    ) -> DiffusionPolicyConfig:
        """Versions, sizes and colours of base models."""
        if not isinstance(before, DiffusionPolicyConfig):
            return config
        return _with_base_config(config, before.vision_language_backbone, before.transformer)

    def derive(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig, info: "RoboticsInfo"
    ) -> tuple[DiffusionPolicyConfig, dict[str, str]]:
        """Dimensions and the number of cameras.

        Raises:
            DataError: There are no cameras, or a base model is missing.
        """
        del info
        if not data.camera_names:
            raise DataError(
                "the data have no camera, which a diffusion policy needs",
                hint="`vlatool inspect` shows what the data hold; preprocess recordings that have "
                "pictures",
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
        """One network."""
        from vlatool.models.diffusion_policy.model import DiffusionPolicy

        return {"model": Part(DiffusionPolicy(config))}

    def load(
        self, config: DiffusionPolicyConfig, parts: Mapping[str, Part], names: Sequence[str]
    ) -> None:
        """Weights of base models, or of a checkpoint to begin with.

        Raises:
            DataError: They are missing, broken, or do not fit.
        """
        from vlatool.models.diffusion_policy.weights import load_init_weights

        if "model" in names:
            load_init_weights(config, parts["model"].module)

    def save_assets(self, config: DiffusionPolicyConfig, folder: Path) -> None:
        """The tokenizer of a base model, from the run that the weights are of where it has one."""
        section = config.vision_language_backbone
        origin = find_origin(config.resume_from_checkpoint, type(config))
        has_it = origin is not None and origin.has_tokenizer_of(section)
        section.save_assets(folder, origin.folder if origin is not None and has_it else None)

    def blocks(self, parts: Mapping[str, Part]) -> Sequence["nn.Module"]:
        """The transformer blocks of backbone and denoiser."""
        network: Any = parts["model"].module
        return network.blocks()

    def objective(
        self,
        config: DiffusionPolicyConfig,
        data: RoboticsDataConfig,
        info: "RoboticsInfo",
        parts: Mapping[str, Part],
    ) -> "DenoisingObjective":
        """The error of what is predicted."""
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
        """Samples to tensors."""
        del training
        from vlatool.models.diffusion_policy.batch import PolicyBatcher

        return PolicyBatcher(config, data, assets.normalizer, folder)

    def example(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig, size: int
    ) -> dict[str, Any]:
        """Grey pictures, smooth actions, no sentence."""
        from vlatool.models.diffusion_policy.batch import example_batch

        return example_batch(config, data, size)

    def policy(
        self,
        config: DiffusionPolicyConfig,
        parts: Mapping[str, "nn.Module"],
        assets: "RoboticsAssets",
        folder: Path,
    ) -> "RoboticsPolicy":
        """Samples action chunks."""
        from vlatool.models.diffusion_policy.batch import PolicyBatcher
        from vlatool.models.diffusion_policy.objective import sample_actions
        from vlatool.models.policy import RoboticsPolicy

        network: Any = parts["model"]
        batcher = PolicyBatcher(config, assets.data, assets.normalizer, folder)
        return RoboticsPolicy(partial(sample_actions, network), batcher, assets)


def _with_base_config(
    config: DiffusionPolicyConfig, backbone: NetworkConfig, denoiser: NetworkConfig
) -> DiffusionPolicyConfig:
    """The config with what earlier sections know of its base models."""
    changes = {
        "vision_language_backbone": config.vision_language_backbone.restore_base_config(backbone),
        "transformer": config.transformer.restore_base_config(denoiser),
    }
    return config.model_copy(update=changes)


def _with_init_base_config(config: DiffusionPolicyConfig) -> DiffusionPolicyConfig:
    """The config with what the run that its weights are of knows of base models."""
    sections = (config.vision_language_backbone, config.transformer)
    if not any(isinstance(section, BaseModelConfig) and section.architecture is None for section in sections):
        return config
    origin = find_origin(config.resume_from_checkpoint, type(config))
    return config if origin is None else _with_base_config(config, origin.backbone, origin.denoiser)


def _is_centered(data: RoboticsDataConfig) -> bool:
    """Whether every field of the actions is scaled to lie about zero."""
    fields = [data.normalization.for_field(name) for name in data.action_fields]
    scalings = [scaling for scaling in fields if scaling.enabled] or [data.normalization]
    return all(scaling.centered_norm or scaling.method == "std" for scaling in scalings)
