"""Configuration of the diffusion policy; light, no torch. Source: lbm-training 1.11, 2.3-2.8."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, derivation_rules, derived_field
from vlatool.errors import DataError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.base import ModelType, Part

if TYPE_CHECKING:
    from torch import nn

    from vlatool.loading.robotics.facts import DatasetFacts
    from vlatool.loading.robotics.kind import RoboticsKept
    from vlatool.models.diffusion_policy.batch import PolicyBatcher
    from vlatool.models.diffusion_policy.objective import FlowMatchingObjective
    from vlatool.models.policy import Policy


class ByteTextConfig(ConfigModel):
    """A small text encoder on bytes, trained from scratch."""

    type: Literal["bytes"] = Field(default="bytes", description="Kind of text encoder.")
    hidden_dim: int = Field(default=64, ge=1, description="Width of its tokens.")
    max_length: int = Field(default=128, ge=1, description="Bytes of a sentence that are read.")


class ViTBackboneConfig(ConfigModel):
    """A vision transformer trained from scratch; every patch is a token."""

    type: Literal["vit_backbone"] = Field(default="vit_backbone", description="Kind of backbone.")
    hidden_dim: int = Field(default=768, ge=1, description="Width.")
    inter_dim: int = Field(default=3072, ge=1, description="Width inside the MLP.")
    patch_size: int = Field(default=16, ge=1, description="Side of a patch in pixels.")
    img_size: int = Field(
        default=384, ge=1, description="Side of the pictures; others are resized."
    )
    n_heads: int = Field(default=12, ge=1, description="Attention heads.")
    n_layers: int = Field(default=12, ge=0, description="Blocks.")
    ln_eps: float = Field(default=1e-6, gt=0, description="Epsilon of the layer norms.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout in the blocks.")
    text_encoder: ByteTextConfig | None = Field(
        default=None, description="Text encoder; null ignores language, as published."
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is no multiple of patch_size")
        if self.hidden_dim % self.n_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is no multiple of n_heads")
        return self


class KeypointBackboneConfig(ConfigModel):
    """Convolutions with a spatial softmax; each picture becomes one token of keypoints."""

    type: Literal["keypoint_backbone"] = Field(
        default="keypoint_backbone", description="Kind of backbone."
    )
    hidden_dim: int = Field(default=128, ge=1, description="Width of a token.")
    channels: tuple[int, int] = Field(
        default=(32, 64), description="Channels of the first two layers."
    )
    num_keypoints: int = Field(default=64, ge=1, description="Keypoints per picture.")
    text_encoder: ByteTextConfig | None = Field(
        default=ByteTextConfig(),
        description="Text encoder whose sentence conditions the convolutions.",
    )
    num_cameras: int | None = derived_field(
        "number of data.camera_names", "Cameras, each with weights of its own.", ge=1
    )
    num_times: int | None = derived_field(
        "number of data.image_indices", "Pictures per camera, told apart by a learned mark.", ge=1
    )


Backbone = Annotated[ViTBackboneConfig | KeypointBackboneConfig, Field(discriminator="type")]


class TransformerConfig(ConfigModel):
    """The native transformer that denoises."""

    type: Literal["transformer"] = Field(default="transformer", description="Kind of denoiser.")
    hidden_dim: int = Field(default=96, ge=1, description="Width.")
    n_layers: int = Field(default=8, ge=1, description="Blocks.")
    n_heads: int = Field(default=4, ge=1, description="Attention heads.")
    ffn_type: Literal["swiglu", "gelu"] = Field(default="swiglu", description="Feed-forward layer.")
    norm_eps: float = Field(default=1e-5, gt=0, description="Epsilon of the layer norms.")
    post_embed_norm: bool = Field(default=False, description="A layer norm on the input tokens.")
    is_causal: bool = Field(default=True, description="Tokens attend to earlier ones only.")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_dim % (2 * self.n_heads):
            raise ValueError(f"hidden_dim {self.hidden_dim} is no multiple of 2 * n_heads")
        return self


class NoiseConfig(ConfigModel):
    """Flow matching between data and noise."""

    num_timesteps: int = Field(default=1000, ge=1, description="Resolution of the flow time.")
    clamp_range: tuple[float, float] | None = Field(
        default=(-1.5, 1.5), description="Limits of the noised actions; null for none."
    )


class DiffusionPolicyConfig(ConfigModel):
    """A policy that denoises a chunk of actions given pictures, language and proprioception."""

    type: Literal["diffusion_policy"] = Field(default="diffusion_policy", description="Model type.")
    vision_language_backbone: Backbone = Field(
        default=ViTBackboneConfig(), description="Pictures and language to tokens."
    )
    transformer: TransformerConfig = Field(default=TransformerConfig(), description="The denoiser.")
    noise_scheduler: NoiseConfig = Field(default=NoiseConfig(), description="Noise.")
    use_flow_matching_scheduler: Literal[True] = Field(
        default=True,
        description="Flow matching, the one scheduler that the policy can sample with.",
    )
    input_noise_std: float = Field(default=0.0, ge=0, description="Noise on inputs while training.")
    diffusion_step_conditioning: Literal["concat", "add"] = Field(
        default="concat", description="Flow time as a token of its own, or added to the others."
    )
    num_action_head_repeats: int | None = Field(
        default=None, ge=1, description="Noise draws per observation that share one encoding."
    )
    action_dim: int | None = derived_field("data.action_dim", "Width of an action.", ge=1)
    proprioception_dim: int | None = derived_field(
        "data.proprioception_dim", "Width of a proprioception vector.", ge=0
    )


class DiffusionPolicyType(ModelType):
    """The model type `diffusion_policy`."""

    name: ClassVar[str] = "diffusion_policy"
    Config: ClassVar[type[ConfigModel]] = DiffusionPolicyConfig
    kinds: ClassVar[tuple[str, ...]] = ("robotics",)

    def derive(
        self, config: DiffusionPolicyConfig, data: RoboticsDataConfig, facts: "DatasetFacts"
    ) -> tuple[DiffusionPolicyConfig, dict[str, str]]:
        """Dimensions and the number of cameras.

        Raises:
            DataError: There are no cameras.
        """
        del facts
        if not data.camera_names:
            raise DataError(
                "the data have no camera, which a diffusion policy needs",
                hint="`vlatool inspect` shows what the data hold; preprocess recordings that have "
                "pictures",
                code="data.no_cameras",
            )
        widths = ("action_dim", "proprioception_dim")
        update: dict[str, Any] = {name: getattr(data, name) for name in widths}
        rules = derivation_rules(config, update)
        backbone = config.vision_language_backbone
        if isinstance(backbone, KeypointBackboneConfig):
            counts = {
                "num_cameras": len(data.camera_names),
                "num_times": len(data.image_indices),
            }
            update["vision_language_backbone"] = backbone.model_copy(update=counts)
            rules |= derivation_rules(backbone, counts, "vision_language_backbone.")
        return config.model_copy(update=update), rules

    def build(self, config: DiffusionPolicyConfig) -> Mapping[str, Part]:
        """One network."""
        from vlatool.models.diffusion_policy.model import DiffusionPolicy

        return {"model": Part(DiffusionPolicy(config))}

    def blocks(self, parts: Mapping[str, Part]) -> Sequence["nn.Module"]:
        """The transformer blocks of denoiser and vision tower."""
        from vlatool.models.diffusion_policy.backbones import ViTBlock
        from vlatool.models.diffusion_policy.model import Block

        modules = parts["model"].module.modules()
        return [module for module in modules if isinstance(module, Block | ViTBlock)]

    def objective(
        self,
        config: DiffusionPolicyConfig,
        data: RoboticsDataConfig,
        facts: "DatasetFacts",
        parts: Mapping[str, Part],
    ) -> "FlowMatchingObjective":
        """The flow-matching loss."""
        del data, facts, parts
        from vlatool.models.diffusion_policy.objective import FlowMatchingObjective

        return FlowMatchingObjective(config)

    def batcher(
        self,
        config: DiffusionPolicyConfig,
        data: RoboticsDataConfig,
        kept: "RoboticsKept",
        folder: Path | None,
        *,
        training: bool,
    ) -> "PolicyBatcher":
        """Samples to tensors."""
        del folder, training
        from vlatool.models.diffusion_policy.batch import PolicyBatcher

        return PolicyBatcher(config, data, kept.normalizer)

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
        kept: "RoboticsKept",
        folder: Path,
    ) -> "Policy":
        """Samples action chunks."""
        del folder
        from vlatool.models.diffusion_policy.batch import PolicyBatcher
        from vlatool.models.diffusion_policy.objective import sample_actions
        from vlatool.models.policy import Policy

        network: Any = parts["model"]
        batcher = PolicyBatcher(config, kept.data, kept.normalizer)
        return Policy(partial(sample_actions, network), batcher, kept)
