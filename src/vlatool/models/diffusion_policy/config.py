"""Sections of the diffusion policy; light, no torch. Source: reference/policy 1, 2; reference/training 1.7.

What a section's `type` names is built by the table of its module: `backbones`, `denoisers`,
`solvers`. A section derives what data or a base model decide.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, derived_field
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.diffusion_policy.sections import (
    BaseBackboneConfig,
    BaseModelConfig,
    Derived,
    NetworkConfig,
)
from vlatool.models.diffusion_policy.vlm_prompts import image_side
from vlatool.models.pretrained import (
    CLIP,
    CLIP_COLORS,
    VLM_COLORS,
    read_architecture,
    text_width,
)

NormType = Literal[
    "default_layer_norm",
    "lp_layer_norm",
    "gain_only_lp_layer_norm",
    "gain_only_layer_norm",
    "no_wb_layer_norm",
    "rms_norm",
]


# backbones


class ByteTextConfig(ConfigModel):
    """A small text encoder on bytes, trained from scratch."""

    type: Literal["bytes"] = Field(default="bytes", description="Kind of text encoder.")
    hidden_dim: int = Field(default=64, ge=1, description="Width of its tokens.")
    max_length: int = Field(default=128, ge=1, description="Bytes of a sentence that are read.")


class ViTBackboneConfig(NetworkConfig):
    """A vision transformer trained from scratch; every patch is a token."""

    ignored: ClassVar[Mapping[str, str]] = {
        "pretrained": "it is trained from scratch",
        "interpolation_mode": "it is trained from scratch",
    }
    unsupported: ClassVar[Mapping[str, tuple[Sequence[Any], str]]] = {
        "cls_flag": ((False,), "every token is a patch"),
        "projector_pixel_shuffle_factor": ((1,), "patches are not joined; take larger ones"),
    }

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
    cls_flag: bool = Field(default=False, description="A token of its own for the picture.")
    projector_pixel_shuffle_factor: int = Field(
        default=1, ge=1, description="Patches per side that are joined to one token."
    )
    pretrained: str | None = Field(default=None, description="Has no effect.")
    interpolation_mode: str = Field(default="bicubic", description="Has no effect.")
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


class KeypointBackboneConfig(NetworkConfig):
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

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """Counts of cameras and pictures."""
        times = len(data.image_indices)
        return self._with_derived({"num_cameras": len(data.camera_names), "num_times": times})


class ClipBackboneConfig(BaseBackboneConfig):
    """CLIP; one token for the sentence, one for each picture."""

    type: Literal["clip_backbone", "clip_hf"] = Field(
        default="clip_backbone", description="Kind of backbone."
    )
    hf_pretrained: str = Field(
        default="openai/clip-vit-base-patch32",
        min_length=1,
        description="Base model: owner/name of the hub, or a folder of any scheme.",
    )
    freeze_text_encoder: bool = Field(
        default=False, description="Whether the text tower, without its projection, stays."
    )
    freeze_image_encoder: bool = Field(
        default=False, description="Whether the vision tower, without its projection, stays."
    )
    disable_text: bool = Field(default=False, description="Whether language is ignored.")
    image_words: bool = Field(
        default=False,
        description="Write `<image> ` before the sentence once per picture, as the published "
        "processor does; for weights that were trained so.",
    )

    def save_assets(self, folder: Path, origin: Path | None = None) -> None:
        """The tokenizer, unless language is ignored."""
        if not self.disable_text:
            super().save_assets(folder, origin)

    def _read(self, folder: Path) -> dict[str, Any]:
        colors = self._mean_and_std(folder, CLIP_COLORS)
        return {"architecture": read_architecture(folder, CLIP), **colors}


class VlmBackboneConfig(BaseBackboneConfig):
    """A vision-language model of the hub; one token per sample."""

    type: Literal["vlm_backbone"] = Field(default="vlm_backbone", description="Kind of backbone.")
    num_vlm_layers_to_use: int = Field(
        default=4, ge=1, description="Last layers whose states are taken side by side."
    )
    image_size: int | None = derived_field(
        "config.json of hf_pretrained", "Side of the pictures; others are resized.", ge=1
    )

    @classmethod
    def _base_model_keys(cls) -> Sequence[str]:
        return (*super()._base_model_keys(), "image_size")

    def _read(self, folder: Path) -> dict[str, Any]:
        architecture = read_architecture(folder)
        side = image_side(architecture) if self.image_size is None else self.image_size
        colors = self._mean_and_std(folder, VLM_COLORS)
        return {"architecture": architecture, "image_size": side, **colors}


class FoundryBackboneConfig(NetworkConfig):
    """A vision-language model that the published program trained; read, not built."""

    unsupported: ClassVar[Mapping[str, tuple[Sequence[Any], str]]] = {
        "type": ((), "such models are not built; take a base model of the hub, type vlm_backbone"),
    }

    type: Literal["vlm_foundry_backbone"] = Field(
        default="vlm_foundry_backbone", description="Kind of backbone."
    )
    num_vlm_layers_to_use: int = Field(
        default=4, ge=1, description="Last layers whose states are taken side by side."
    )
    vlm_experiment_dir: str | None = Field(default=None, description="Where it was trained.")


class OpenClipConfig(NetworkConfig):
    """CLIP of another library; read, not built."""

    unsupported: ClassVar[Mapping[str, tuple[Sequence[Any], str]]] = {
        "type": ((), "its names are another library's; take a CLIP of the hub, type clip_backbone"),
    }

    type: Literal["clip_openclip"] = Field(default="clip_openclip", description="Kind of backbone.")
    architecture: str | None = Field(default=None, description="Its name there.")
    pretrained_weights: str | None = Field(default=None, description="Its weights there.")
    freeze_text_encoder: bool = Field(default=False, description="Whether the text tower stays.")
    freeze_image_encoder: bool = Field(default=False, description="Whether the vision tower stays.")


Backbone = Annotated[
    ClipBackboneConfig
    | VlmBackboneConfig
    | ViTBackboneConfig
    | KeypointBackboneConfig
    | FoundryBackboneConfig
    | OpenClipConfig,
    Field(discriminator="type"),
]


# denoisers


class TransformerConfig(NetworkConfig):
    """The native transformer that denoises."""

    ignored: ClassVar[Mapping[str, str]] = {
        "cast_output_to_float32": "a policy has no word head",
        "max_seq_len": "rotations are made for any length",
    }

    type: Literal["transformer"] = Field(default="transformer", description="Kind of denoiser.")
    hidden_dim: int = Field(default=96, ge=1, description="Width.")
    n_layers: int = Field(default=8, ge=1, description="Blocks.")
    n_heads: int = Field(default=4, ge=1, description="Attention heads.")
    ffn_type: Literal["swiglu", "gelu"] = Field(default="swiglu", description="Feed-forward layer.")
    norm_type: NormType = Field(default="default_layer_norm", description="Norm layers.")
    norm_eps: float = Field(default=1e-5, gt=0, description="Epsilon of the norms.")
    qk_norm: bool = Field(default=False, description="Norms on queries and keys.")
    positional_embedding_type: Literal["rotary", "rotary_float32", "none"] = Field(
        default="rotary",
        description="How tokens know their place; both kinds of rotation are in float32.",
    )
    post_embed_norm: bool = Field(default=False, description="A norm on the input tokens.")
    is_causal: bool = Field(default=True, description="Tokens attend to earlier ones only.")
    vocab_size: int = Field(
        default=50432, ge=0, description="Rows of the unused word table of published files."
    )
    weight_tying: bool = Field(
        default=False, description="Whether published files have one word table, not two."
    )
    attn_name: Literal["torch_attn", "auto"] = Field(
        default="torch_attn", description="Kernel of the attention: torch chooses."
    )
    cast_output_to_float32: bool = Field(default=False, description="Has no effect.")
    max_seq_len: int = Field(default=2048, ge=1, description="Has no effect.")

    @property
    def width(self) -> int:
        """Width of its tokens."""
        return self.hidden_dim

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_dim % (2 * self.n_heads):
            raise ValueError(f"hidden_dim {self.hidden_dim} is no multiple of 2 * n_heads")
        return self


class CausalLMConfig(BaseModelConfig):
    """A causal language model of the hub as denoiser; its words are not used."""

    type: Literal["transformer_hf"] = Field(
        default="transformer_hf", description="Kind of denoiser."
    )

    @property
    def width(self) -> int:
        """Width of its tokens; zero before the architecture is known."""
        return text_width(self.architecture or {})

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """Sizes of the base model."""
        del data
        if self.architecture is not None:
            return self, {}
        folder = self.base
        return self._with_derived({**self._hub_revision(folder), "architecture": read_architecture(folder)})


DenoiserSection = Annotated[TransformerConfig | CausalLMConfig, Field(discriminator="type")]


# noise and solvers


class NoiseConfig(NetworkConfig):
    """How actions are mixed with noise."""

    type: Literal["noise_scheduler"] = Field(
        default="noise_scheduler", description="Kind of scheduler."
    )
    num_timesteps: int = Field(default=1000, ge=1, description="Resolution of the noise level.")
    clamp_range: tuple[float, float] | None = Field(
        default=(-1.5, 1.5),
        description="Limits of the noised actions, in diffusion of the denoised ones; null: none.",
    )
    beta_schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="How noise grows in diffusion; cosine ignores both betas."
    )
    beta_start: float = Field(
        default=1e-4, gt=0, lt=1, description="Share of noise of the first step of diffusion."
    )
    beta_end: float = Field(
        default=0.02, gt=0, lt=1, description="Share of noise of the last step of diffusion."
    )


class EulerConfig(ConfigModel):
    """Flow matching, one evaluation per step."""

    type: Literal["euler"] = Field(default="euler", description="Kind of solver.")


class HeunConfig(ConfigModel):
    """Flow matching, second order: two evaluations per step, which count as two."""

    type: Literal["heun"] = Field(default="heun", description="Kind of solver.")


class DdimConfig(ConfigModel):
    """Diffusion, any number of steps."""

    type: Literal["ddim"] = Field(default="ddim", description="Kind of solver.")
    eta: float = Field(
        default=0.0, ge=0, le=1, description="Fresh noise per step, as a share of DDPM's."
    )


class DdpmConfig(ConfigModel):
    """Diffusion as it was first published: fresh noise at every step."""

    type: Literal["ddpm"] = Field(default="ddpm", description="Kind of solver.")


Solver = Annotated[EulerConfig | HeunConfig | DdimConfig | DdpmConfig, Field(discriminator="type")]
FLOW_SOLVERS = ("euler", "heun")
