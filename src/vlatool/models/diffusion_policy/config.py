"""Config of the diffusion policy, its denoisers and solvers; no torch.

`DiffusionPolicyConfig`, at the end, is the section `model`. Its sections name a backbone
(`models/backbones/config.py`), a denoiser, the noise and a solver; each derives the keys that
follow from the data or from a base model. Source: reference/policy 1, 2; reference/training 1.6.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, Ignored, Names, derivation_rules, derived_field, option
from vlatool.errors import DataError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models import pretrained
from vlatool.models.backbones.config import (
    Backbone,
    BaseModelConfig,
    ClipBackboneConfig,
    Derived,
    KeypointBackboneConfig,
    NetworkConfig,
    TextBackboneConfig,
    ViTBackboneConfig,
)
from vlatool.models.base import MAX_LAYERS, MAX_ROWS, MAX_WIDTH

# denoisers


NormType = Literal[
    "default_layer_norm",
    "lp_layer_norm",
    "gain_only_lp_layer_norm",
    "gain_only_layer_norm",
    "no_wb_layer_norm",
    "rms_norm",
]


class TransformerConfig(NetworkConfig):
    """The published transformer as denoiser."""

    NAMES: ClassVar[Names] = {
        "cast_output_to_float32": Ignored("a policy has no language model head"),
        "max_seq_len": Ignored("rotary embeddings are computed for any length"),
    }

    type: Literal["transformer"] = option("transformer", "Type of denoiser.")
    hidden_dim: int = option(96, "Token width.", ge=1, le=MAX_WIDTH)
    n_layers: int = option(8, "Number of blocks.", ge=1, le=MAX_LAYERS)
    n_heads: int = option(4, "Attention heads.", ge=1)
    ffn_type: Literal["swiglu", "gelu"] = option("swiglu", "Feed-forward layer.")
    norm_type: NormType = option("default_layer_norm", "Norm layers.")
    norm_eps: float = option(1e-5, "Epsilon of the norms.", gt=0)
    qk_norm: bool = option(False, "Norms on queries and keys.")
    positional_embedding_type: Literal["rotary", "rotary_float32", "none"] = option(
        "rotary", "Position embedding; both rotary types are equal here and compute in float32."
    )
    post_embed_norm: bool = option(False, "Norm on the input tokens.")
    is_causal: bool = option(True, "Use causal attention.")
    vocab_size: int = option(
        50432, "Rows of the unused token embedding in published files.", ge=0, le=MAX_ROWS
    )
    weight_tying: bool = option(False, "Tie embedding and head in published files.")
    attn_name: Literal["torch_attn", "auto"] = option(
        "torch_attn", "Attention kernel; torch selects it."
    )

    @property
    def width(self) -> int:
        return self.hidden_dim

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_dim % (2 * self.n_heads):
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of 2 * n_heads")
        return self


class CausalLMConfig(BaseModelConfig):
    """A causal language model from the hub as denoiser, without token embedding and head."""

    type: Literal["transformer_hf"] = option("transformer_hf", "Type of denoiser.")

    @property
    def width(self) -> int:
        """Token width; zero before the architecture is known."""
        return pretrained.text_width(self.architecture or {})

    def derive(self, data: RoboticsDataConfig) -> Derived:
        if self.architecture is not None:
            return self, {}
        folder = self.base
        update: dict[str, Any] = self._hub_revision(folder)
        update["architecture"] = pretrained.read_architecture(folder)
        return self._with_derived(update)


DenoiserSection = Annotated[TransformerConfig | CausalLMConfig, Field(discriminator="type")]


# noise and solvers


class NoiseConfig(NetworkConfig):
    """Forward process that adds noise to actions."""

    type: Literal["noise_scheduler"] = option("noise_scheduler", "Type of scheduler.")
    num_timesteps: int = option(1000, "Number of noise levels.", ge=1, le=MAX_WIDTH)
    clamp_range: tuple[float, float] | None = option(
        (-1.5, 1.5),
        "Lowest and highest value of noised actions (flow matching) or denoised actions "
        "(diffusion); null: no limits.",
    )
    beta_schedule: Literal["linear", "cosine"] = option(
        "linear", "Beta schedule of diffusion; cosine ignores both betas."
    )
    beta_start: float = option(1e-4, "Beta of the first step of diffusion.", gt=0, lt=1)
    beta_end: float = option(0.02, "Beta of the last step of diffusion.", gt=0, lt=1)


class EulerConfig(ConfigModel):
    """Euler solver for flow matching, one evaluation per step."""

    type: Literal["euler"] = option("euler", "Type of solver.")


class HeunConfig(ConfigModel):
    """Heun solver for flow matching, second order; its two evaluations count as two steps."""

    type: Literal["heun"] = option("heun", "Type of solver.")


class DdimConfig(ConfigModel):
    """DDIM solver for diffusion, any number of steps."""

    type: Literal["ddim"] = option("ddim", "Type of solver.")
    eta: float = option(
        0.0, "Noise added per step, as a fraction of the noise of DDPM.", ge=0, le=1
    )


class DdpmConfig(ConfigModel):
    """DDPM solver for diffusion, which adds noise at every step."""

    type: Literal["ddpm"] = option("ddpm", "Type of solver.")


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

    NAMES: ClassVar[Names] = {
        "resume_except": "/init_except",
    }

    type: Literal["diffusion_policy"] = option("diffusion_policy", "Model type.")
    vision_language_backbone: Backbone = option(
        ClipBackboneConfig(), "Encoder of images and language to tokens."
    )
    transformer: DenoiserSection = option(TransformerConfig(), "Denoiser.")
    noise_scheduler: NoiseConfig = option(NoiseConfig(), "Forward process.")
    use_flow_matching_scheduler: bool = option(
        True, "Use flow matching, instead of diffusion (DDPM)."
    )
    use_diffusers_scheduler: bool = option(
        False, "Use diffusion, whatever use_flow_matching_scheduler says."
    )
    solver: Solver | None = option(
        None, "Solver that samples actions; null: euler for flow matching, ddim for diffusion."
    )
    input_noise_std: float = option(
        0.0, "Standard deviation of noise that is added to the inputs in training.", ge=0
    )
    clean_padded_steps: bool = option(
        False,
        "Add no noise to steps outside the episode, as published; the policy can then see in "
        "training where an episode begins and ends.",
    )
    diffusion_step_conditioning: Literal["concat", "add"] = option(
        "concat", "Whether the noise level becomes a token of its own, or is added to all tokens."
    )
    num_action_head_repeats: int | None = option(
        None, "Noise levels drawn per observation, which is encoded only once.", ge=1
    )
    lr_factors: dict[PolicyModule, Annotated[float, Field(ge=0)]] = option(
        {},
        "Factor on the learning rate by network, such as vision_language_backbone: 0.1 for a "
        "pretrained backbone.",
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
        """The solver that is set, else the default of the forward process."""
        return self.solver or (EulerConfig() if self.is_flow else DdimConfig())

    def restore_base_config(self, before: ConfigModel | None) -> Self:
        """The section with what an earlier one has read from the same base models."""
        if not isinstance(before, DiffusionPolicyConfig):
            return self
        backbone = self.vision_language_backbone
        sections = {
            "vision_language_backbone": backbone.restore_base_config(
                before.vision_language_backbone
            ),
            "transformer": self.transformer.restore_base_config(before.transformer),
        }
        return self.model_copy(update=sections)

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """Fills in dimensions, the number of cameras, and keys of base models.

        Without a camera in the data, a backbone that is trained from scratch becomes a text
        backbone with the same width and text encoder.

        Raises:
            DataError: The data have no camera, and the backbone encodes images.
        """
        backbone = self.vision_language_backbone
        rules = derivation_rules(self, ("action_dim", "proprioception_dim"))
        if not data.cameras and isinstance(backbone, KeypointBackboneConfig | ViTBackboneConfig):
            backbone = TextBackboneConfig(
                hidden_dim=backbone.hidden_dim, text_encoder=backbone.text_encoder
            )
            rules["vision_language_backbone.type"] = (
                "the data have no camera, so the policy sees only states and the instruction"
            )
        elif not data.cameras and not isinstance(backbone, TextBackboneConfig):
            raise DataError(
                f"your data have no camera, but {backbone.type} needs images",
                hint="train with --preset policy-state, which needs no images, or preprocess "
                "episodes with images",
                code="data.missing",
            )
        update: dict[str, Any] = {
            "action_dim": data.action_dim,
            "proprioception_dim": data.proprioception_dim,
        }
        networks: dict[str, NetworkConfig] = {
            "vision_language_backbone": backbone,
            "transformer": self.transformer,
        }
        for name, network in networks.items():
            update[name], network_rules = network.derive(data)
            for key, rule in network_rules.items():
                rules[f"{name}.{key}"] = rule
        return self.model_copy(update=update), rules

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        solves_flow = self.chosen_solver.type in FLOW_SOLVERS
        if solves_flow != self.is_flow:
            process = "flow matching" if self.is_flow else "diffusion"
            raise ValueError(f"solver {self.chosen_solver.type!r} does not work with {process}")
        if self.freeze:
            raise ValueError("freeze would leave nothing to train: freeze a section instead")
        return self
