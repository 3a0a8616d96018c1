"""Config of the diffusion policy, its denoisers and solvers; no torch.

Source: reference/policy 1, 2; reference/training 1.7.

A table in `backbones`, `denoisers` or `noise` maps the `type` of a section to its class. Sections
derive the keys that depend on the data or on a base model.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, derived_field
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.base import MAX_LAYERS, MAX_ROWS, MAX_WIDTH
from vlatool.models.diffusion_policy.backbone_config import (
    Backbone,
    BaseModelConfig,
    ClipBackboneConfig,
    Derived,
    NetworkConfig,
    NormType,
)
from vlatool.models.pretrained import (
    read_architecture,
    text_width,
)

# backbones


# denoisers


class TransformerConfig(NetworkConfig):
    """The native transformer as denoiser."""

    ignored: ClassVar[Mapping[str, str]] = {
        "cast_output_to_float32": "a policy has no language model head",
        "max_seq_len": "rotary embeddings are computed for any length",
    }

    type: Literal["transformer"] = Field(default="transformer", description="Type of denoiser.")
    hidden_dim: int = Field(default=96, ge=1, le=MAX_WIDTH, description="Token width.")
    n_layers: int = Field(default=8, ge=1, le=MAX_LAYERS, description="Number of blocks.")
    n_heads: int = Field(default=4, ge=1, description="Attention heads.")
    ffn_type: Literal["swiglu", "gelu"] = Field(default="swiglu", description="Feed-forward layer.")
    norm_type: NormType = Field(default="default_layer_norm", description="Norm layers.")
    norm_eps: float = Field(default=1e-5, gt=0, description="Epsilon of the norms.")
    qk_norm: bool = Field(default=False, description="Norms on queries and keys.")
    positional_embedding_type: Literal["rotary", "rotary_float32", "none"] = Field(
        default="rotary",
        description="Position embedding; both rotary types compute in float32.",
    )
    post_embed_norm: bool = Field(default=False, description="Norm on the input tokens.")
    is_causal: bool = Field(default=True, description="Use causal attention.")
    vocab_size: int = Field(
        default=50432,
        ge=0,
        le=MAX_ROWS,
        description="Rows of the unused token embedding in published files.",
    )
    weight_tying: bool = Field(
        default=False, description="Tie embedding and head in published files."
    )
    attn_name: Literal["torch_attn", "auto"] = Field(
        default="torch_attn", description="Attention kernel; torch selects it."
    )

    @property
    def width(self) -> int:
        """Token width."""
        return self.hidden_dim

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_dim % (2 * self.n_heads):
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of 2 * n_heads")
        return self


class CausalLMConfig(BaseModelConfig):
    """A causal language model from the hub as denoiser, without token embedding and head."""

    type: Literal["transformer_hf"] = Field(
        default="transformer_hf", description="Type of denoiser."
    )

    @property
    def width(self) -> int:
        """Token width; zero before the architecture is known."""
        return text_width(self.architecture or {})

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """Derives the sizes of the base model."""
        del data
        if self.architecture is not None:
            return self, {}
        folder = self.base
        return self._with_derived(
            {**self._hub_revision(folder), "architecture": read_architecture(folder)}
        )


DenoiserSection = Annotated[TransformerConfig | CausalLMConfig, Field(discriminator="type")]


# noise and solvers


class NoiseConfig(NetworkConfig):
    """Forward process that adds noise to actions."""

    type: Literal["noise_scheduler"] = Field(
        default="noise_scheduler", description="Type of scheduler."
    )
    num_timesteps: int = Field(
        default=1000, ge=1, le=MAX_WIDTH, description="Number of noise levels."
    )
    clamp_range: tuple[float, float] | None = Field(
        default=(-1.5, 1.5),
        description="Limits of the noised actions (flow matching) or of the denoised actions "
        "(diffusion); null: none.",
    )
    beta_schedule: Literal["linear", "cosine"] = Field(
        default="linear", description="Beta schedule of diffusion; cosine ignores both betas."
    )
    beta_start: float = Field(
        default=1e-4, gt=0, lt=1, description="Beta of the first step of diffusion."
    )
    beta_end: float = Field(
        default=0.02, gt=0, lt=1, description="Beta of the last step of diffusion."
    )


class EulerConfig(ConfigModel):
    """Euler solver for flow matching, one evaluation per step."""

    type: Literal["euler"] = Field(default="euler", description="Type of solver.")


class HeunConfig(ConfigModel):
    """Heun solver for flow matching, second order; its two evaluations count as two steps."""

    type: Literal["heun"] = Field(default="heun", description="Type of solver.")


class DdimConfig(ConfigModel):
    """DDIM solver for diffusion, any number of steps."""

    type: Literal["ddim"] = Field(default="ddim", description="Type of solver.")
    eta: float = Field(
        default=0.0, ge=0, le=1, description="Noise added per step, as a fraction of that of DDPM."
    )


class DdpmConfig(ConfigModel):
    """DDPM solver for diffusion, which adds noise at every step."""

    type: Literal["ddpm"] = Field(default="ddpm", description="Type of solver.")


Solver = Annotated[EulerConfig | HeunConfig | DdimConfig | DdpmConfig, Field(discriminator="type")]
FLOW_SOLVERS = ("euler", "heun")


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
    """A policy that denoises an action chunk, given images, language and proprioception.

    At its root the published key `resume_from_checkpoint`, with `resume_weights_only`, stands for
    `init_from` of the run.
    """

    root_aliases: ClassVar[Mapping[str, str]] = {"resume_except": "init_except"}

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
    clean_padded_steps: bool = Field(
        default=False,
        description="Add no noise to steps outside the episode, as published; the policy then "
        "sees in its training inputs where an episode begins and ends.",
    )
    diffusion_step_conditioning: Literal["concat", "add"] = Field(
        default="concat", description="Append the noise level as a token, or add it to all tokens."
    )
    num_action_head_repeats: int | None = Field(
        default=None, ge=1, description="Noise draws per observation that share one encoding."
    )
    lr_factors: dict[PolicyModule, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="Network to a factor on the learning rate, such as vision_language_backbone: "
        "0.1 for a pretrained backbone.",
    )
    action_dim: int | None = derived_field(
        "data.action_dim", "Width of an action.", ge=1, le=MAX_WIDTH
    )
    proprioception_dim: int | None = derived_field(
        "data.proprioception_dim", "Width of a proprioception vector.", ge=0, le=MAX_ROWS
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
