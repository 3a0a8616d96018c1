"""Config of the diffusion policy, its backbones, denoisers, solvers and prompts; no torch.

`DiffusionPolicyConfig`, at the end, is the section `model`. Its sections name a backbone, a
denoiser, the noise and a solver; each derives the keys that follow from the data or from a base
model. Source: reference/policy 1, 2; reference/training 1.7.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from vlatool.config.base import ConfigModel, Published, derivation_rules, derived_field, option
from vlatool.errors import DataError
from vlatool.formats.base_model import ImageMeanStd, copy_tokenizer, read_image_mean_std
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models import pretrained
from vlatool.models.base import MAX_LAYERS, MAX_ROWS, MAX_SIDE, MAX_WIDTH
from vlatool.storage.uri import version_of


@dataclass(frozen=True)
class VlmPrompt:
    """Prompt of one kind of vision-language model."""

    before: str  # text before the images
    image: str  # text of an image, with `{}` for its tokens
    token: str  # text of one image token
    between: str  # text between the images and the instruction
    after: str  # text after the instruction
    side: int | None = None  # side of the images in pixels, if the model takes any size
    # key of config.json, or of its vision section, with the number of patches per side that are
    # merged into one token; empty: no merging
    merge: str = ""

    def prompt(self, images: int, tokens: int) -> tuple[str, str]:
        """Text before and after the instruction, for `images` images of `tokens` tokens each."""
        image_text = self.image.format(self.token * tokens) * images
        return self.before + image_text + self.between, self.after


_FRAMED = "<fake_token_around_image><global-img>{}<fake_token_around_image>"
_IDEFICS = VlmPrompt(
    "<|im_start|>User:",
    _FRAMED,
    "<image>",
    "",
    "<end_of_utterance>\nAssistant:",
    merge="scale_factor",
)
FAMILIES: Mapping[str, VlmPrompt] = {
    "paligemma": VlmPrompt("", "{}", "<image>", "<bos>", "\n"),
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "qwen3_vl": VlmPrompt(
        "<|im_start|>user\n",
        "<|vision_start|>{}<|vision_end|>",
        "<|image_pad|>",
        "",
        "<|im_end|>\n<|im_start|>assistant\n",
        side=256,
        merge="spatial_merge_size",
    ),
}


def vlm_prompt_of(architecture: Mapping[str, Any]) -> VlmPrompt:
    kind = architecture["model_type"]
    if kind not in FAMILIES:
        raise DataError(
            f"base models of type {kind!r} are not supported as vision-language backbone",
            hint=f"use a base model of one of the types {', '.join(FAMILIES)}",
            code="data.missing",
            details={"model_type": kind},
        )
    return FAMILIES[kind]


def image_side(architecture: Mapping[str, Any]) -> int:
    """Side of the input images of a model in pixels."""
    return vlm_prompt_of(architecture).side or int(architecture["vision_config"]["image_size"])


def image_tokens(architecture: Mapping[str, Any], side: int) -> int:
    """Number of tokens of an image."""
    vision = architecture["vision_config"]
    patch = int(vision["patch_size"])
    merge = vlm_prompt_of(architecture).merge
    if merge:
        patch *= int({**vision, **architecture}.get(merge, 1))
    return (side // patch) ** 2


def image_token_id(architecture: Mapping[str, Any]) -> int:
    index = architecture.get("image_token_index")
    return int(architecture["image_token_id"] if index is None else index)


# A section with its derived keys, and the rule of each of them.
Derived = tuple[Any, dict[str, str]]
# Keys that are read from the files of a base model.
_FROM_BASE_MODEL = ("revision", "architecture", "image_mean", "image_std", "image_size")


class NetworkConfig(ConfigModel):
    """A network with optional initial weights, which may be frozen."""

    resume_from_checkpoint: str | None = option(
        None, "Checkpoint with the initial weights; null: none."
    )
    resume_weights_only: bool = option(
        False, "Load only the weights and start a new run with them."
    )
    freeze: bool = option(False, "Do not train the weights of this network.")

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """Fills in the keys that follow from the data or from a base model."""
        return self, {}

    def restore_base_config(self, before: ConfigModel | None) -> Self:
        """The section with the derived keys of an earlier section with the same base model."""
        return self

    def save_assets(self, folder: Path, origin: Path | None = None) -> None:
        """Writes the assets of a base model to a run folder.

        Args:
            folder: The run folder.
            origin: Folder of a run with these assets; None: copy them from the base model.
        """
        del folder, origin

    def _with_derived(self, update: Mapping[str, Any]) -> Derived:
        """The section with derived keys, and the rules of these keys."""
        return self.model_copy(update=dict(update)), derivation_rules(self, update)


class BaseModelConfig(NetworkConfig):
    """A network with the architecture of a base model."""

    hf_pretrained: str = option("", "Base model: owner/name on the hub, or a folder of any scheme.")
    revision: str | None = derived_field(
        "commit of hf_pretrained on its hub",
        "Commit of a base model on the hub.",
        may_be_null=True,
    )
    architecture: dict[str, Any] | None = derived_field(
        "config.json of hf_pretrained", "Architecture of the base model."
    )

    @field_validator("architecture")
    @classmethod
    def _check_architecture(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and (problem := pretrained.architecture_problem(value)):
            raise ValueError(problem)
        return value

    @property
    def base(self) -> Path:
        """Folder of the base model; see `pretrained.base_model`."""
        return pretrained.base_model(self.hf_pretrained, self.revision)

    def check_base(self) -> None:
        """Raises DataError if the base model does not exist and is needed for the architecture."""
        if self.architecture is None:
            _ = self.base

    def restore_base_config(self, before: ConfigModel | None) -> Self:
        """The section with what the earlier one has read from the same base model."""
        if self.architecture is not None or not isinstance(before, type(self)):
            return self
        is_same = before.hf_pretrained == self.hf_pretrained
        if not is_same or self.revision not in (None, before.revision):
            return self
        names = [name for name in _FROM_BASE_MODEL if getattr(self, name, "") is None]
        return self.model_copy(update={name: getattr(before, name) for name in names})

    def _hub_revision(self, folder: Path) -> dict[str, str]:
        """The commit of a folder from the hub; empty for other folders."""
        version = version_of(folder)
        return {"revision": version} if version else {}


class BaseBackboneConfig(BaseModelConfig):
    """A backbone from a base model, with its image normalization and text tokenizer."""

    image_mean: tuple[float, float, float] | None = derived_field(
        "preprocessor_config.json of hf_pretrained", "Mean of red, green and blue."
    )
    image_std: tuple[float, float, float] | None = derived_field(
        "preprocessor_config.json of hf_pretrained", "Std of red, green and blue."
    )
    num_images: int | None = derived_field(
        "data.camera_names times data.image_indices", "Images per sample.", ge=1, le=MAX_WIDTH
    )

    def derive(self, data: RoboticsDataConfig) -> Derived:
        update: dict[str, Any] = {"num_images": len(data.cameras) * len(data.image_indices)}
        if self.architecture is None:
            folder = self.base
            update |= self._hub_revision(folder) | self._read(folder)
        return self._with_derived(update)

    def save_assets(self, folder: Path, origin: Path | None = None) -> None:
        copy_tokenizer(origin or self.base, folder)

    @abstractmethod
    def _read(self, folder: Path) -> dict[str, Any]:
        """The derived keys, read from the files of a base model."""


def _mean_and_std(folder: Path, default: ImageMeanStd) -> dict[str, Any]:
    colors = read_image_mean_std(folder, default)
    return {"image_mean": colors.image_mean, "image_std": colors.image_std}


# backbones


NormType = Literal[
    "default_layer_norm",
    "lp_layer_norm",
    "gain_only_lp_layer_norm",
    "gain_only_layer_norm",
    "no_wb_layer_norm",
    "rms_norm",
]


class ByteTextConfig(ConfigModel):
    """A small text encoder on bytes, trained from scratch."""

    type: Literal["bytes"] = option("bytes", "Type of text encoder.")
    hidden_dim: int = option(64, "Token width.", ge=1, le=MAX_WIDTH)
    max_length: int = option(128, "Maximum length of an instruction in bytes.", ge=1, le=MAX_WIDTH)


class ViTBackboneConfig(NetworkConfig):
    """A vision transformer trained from scratch; one token per patch."""

    published: ClassVar[tuple[Published, ...]] = (
        Published("pretrained", reason="the backbone is trained from scratch"),
        Published("interpolation_mode", reason="the backbone is trained from scratch"),
        Published("cls_flag", values=(False,), reason="there is no class token, only patch tokens"),
        Published(
            "projector_pixel_shuffle_factor",
            values=(1,),
            reason="patches cannot be merged; use a larger patch_size",
        ),
    )

    type: Literal["vit_backbone"] = option("vit_backbone", "Type of backbone.")
    hidden_dim: int = option(768, "Token width.", ge=2, le=MAX_WIDTH, multiple_of=2)
    inter_dim: int = option(3072, "Hidden width of the MLP.", ge=1, le=MAX_WIDTH)
    patch_size: int = option(16, "Side of a patch in pixels.", ge=1, le=MAX_SIDE)
    img_size: int = option(
        384, "Side of the input images in pixels; other sizes are resized.", ge=1, le=MAX_SIDE
    )
    n_heads: int = option(12, "Attention heads.", ge=1)
    n_layers: int = option(12, "Number of blocks.", ge=0, le=MAX_LAYERS)
    ln_eps: float = option(1e-6, "Epsilon of the layer norms.", gt=0)
    dropout: float = option(0.0, "Dropout in the blocks.", ge=0, lt=1)
    cls_flag: bool = option(False, "Add a class token.")
    projector_pixel_shuffle_factor: int = option(
        1, "Patches per side that are merged into one token.", ge=1
    )
    text_encoder: ByteTextConfig | None = option(
        None, "Text encoder; null: ignore language, as published."
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size {self.img_size} is not a multiple of patch_size")
        if self.hidden_dim % self.n_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of n_heads")
        return self


_Channels = Annotated[int, Field(ge=1, le=MAX_WIDTH)]


class KeypointBackboneConfig(NetworkConfig):
    """Convolutions with a spatial softmax; one token of keypoints per image."""

    type: Literal["keypoint_backbone"] = option("keypoint_backbone", "Type of backbone.")
    hidden_dim: int = option(128, "Token width.", ge=2, le=MAX_WIDTH, multiple_of=2)
    channels: tuple[_Channels, _Channels] = option((32, 64), "Channels of the first two layers.")
    num_keypoints: int = option(64, "Keypoints per image.", ge=1, le=MAX_WIDTH)
    group_norm: bool = option(False, "Group norms after the first two convolutions.")
    text_encoder: ByteTextConfig | None = option(
        ByteTextConfig(), "Text encoder that conditions the convolutions; null: ignore language."
    )
    num_cameras: int | None = derived_field(
        "number of data.camera_names",
        "Number of cameras; each has separate weights.",
        ge=1,
        le=MAX_LAYERS,
    )
    num_times: int | None = derived_field(
        "number of data.image_indices",
        "Images per camera, distinguished by a learned embedding.",
        ge=1,
        le=MAX_WIDTH,
    )

    def derive(self, data: RoboticsDataConfig) -> Derived:
        times = len(data.image_indices)
        return self._with_derived({"num_cameras": len(data.cameras), "num_times": times})


class TextBackboneConfig(NetworkConfig):
    """No images: one token of the instruction, if it is encoded."""

    type: Literal["text_backbone"] = option("text_backbone", "Type of backbone.")
    hidden_dim: int = option(128, "Token width.", ge=2, le=MAX_WIDTH, multiple_of=2)
    text_encoder: ByteTextConfig | None = option(None, "Text encoder; null: ignore language.")


class ClipBackboneConfig(BaseBackboneConfig):
    """CLIP; one token for the instruction, one per image."""

    type: Literal["clip_backbone", "clip_hf"] = option("clip_backbone", "Type of backbone.")
    hf_pretrained: str = option(
        "openai/clip-vit-base-patch32",
        "Base model: owner/name on the hub, or a folder of any scheme.",
        min_length=1,
    )
    freeze_text_encoder: bool = option(False, "Freeze the text tower, except its projection.")
    freeze_image_encoder: bool = option(False, "Freeze the vision tower, except its projection.")
    disable_text: bool = option(False, "Ignore language.")
    image_words: bool = option(
        False,
        "Write `<image> ` before the instruction once per image, as the published "
        "processor does; for weights that were trained this way.",
    )

    def save_assets(self, folder: Path, origin: Path | None = None) -> None:
        """Writes the text tokenizer, unless language is ignored."""
        if not self.disable_text:
            super().save_assets(folder, origin)

    def _read(self, folder: Path) -> dict[str, Any]:
        mean_std = _mean_and_std(folder, pretrained.CLIP_MEAN_STD)
        return {"architecture": pretrained.read_architecture(folder, pretrained.CLIP), **mean_std}


class VlmBackboneConfig(BaseBackboneConfig):
    """A vision-language model from the hub; one token per sample."""

    type: Literal["vlm_backbone"] = option("vlm_backbone", "Type of backbone.")
    num_vlm_layers_to_use: int = option(
        4, "Number of last layers whose states are concatenated.", ge=1, le=MAX_LAYERS
    )
    image_size: int | None = derived_field(
        "config.json of hf_pretrained",
        "Side of the input images in pixels; other sizes are resized.",
        ge=1,
        le=MAX_SIDE,
    )

    def _read(self, folder: Path) -> dict[str, Any]:
        architecture = pretrained.read_architecture(folder)
        side = image_side(architecture) if self.image_size is None else self.image_size
        mean_std = _mean_and_std(folder, pretrained.VLM_MEAN_STD)
        return {"architecture": architecture, "image_size": side, **mean_std}


class FoundryBackboneConfig(NetworkConfig):
    """A vision-language model that the published LBM program trained; the section is only read."""

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            "type",
            values=(),
            reason="this backbone is not supported; use a base model from the hub with type "
            "vlm_backbone",
        ),
    )

    type: Literal["vlm_foundry_backbone"] = option("vlm_foundry_backbone", "Type of backbone.")
    num_vlm_layers_to_use: int = option(
        4, "Number of last layers whose states are concatenated.", ge=1, le=MAX_LAYERS
    )
    vlm_experiment_dir: str | None = option(None, "Run folder of the model.")


class OpenClipConfig(NetworkConfig):
    """A CLIP model of the OpenCLIP library; the section is only read."""

    published: ClassVar[tuple[Published, ...]] = (
        Published(
            "type",
            values=(),
            reason="OpenCLIP is not supported; use a CLIP model from the hub with type "
            "clip_backbone",
        ),
    )

    type: Literal["clip_openclip"] = option("clip_openclip", "Type of backbone.")
    architecture: str | None = option(None, "Name of the architecture.")
    pretrained_weights: str | None = option(None, "Name of the weights.")
    freeze_text_encoder: bool = option(False, "Freeze the text tower.")
    freeze_image_encoder: bool = option(False, "Freeze the vision tower.")


Backbone = Annotated[
    ClipBackboneConfig
    | VlmBackboneConfig
    | ViTBackboneConfig
    | KeypointBackboneConfig
    | TextBackboneConfig
    | FoundryBackboneConfig
    | OpenClipConfig,
    Field(discriminator="type"),
]


# denoisers


class TransformerConfig(NetworkConfig):
    """The native transformer as denoiser."""

    published: ClassVar[tuple[Published, ...]] = (
        Published("cast_output_to_float32", reason="a policy has no language model head"),
        Published("max_seq_len", reason="rotary embeddings are computed for any length"),
    )

    type: Literal["transformer"] = option("transformer", "Type of denoiser.")
    hidden_dim: int = option(96, "Token width.", ge=1, le=MAX_WIDTH)
    n_layers: int = option(8, "Number of blocks.", ge=1, le=MAX_LAYERS)
    n_heads: int = option(4, "Attention heads.", ge=1)
    ffn_type: Literal["swiglu", "gelu"] = option("swiglu", "Feed-forward layer.")
    norm_type: NormType = option("default_layer_norm", "Norm layers.")
    norm_eps: float = option(1e-5, "Epsilon of the norms.", gt=0)
    qk_norm: bool = option(False, "Norms on queries and keys.")
    positional_embedding_type: Literal["rotary", "rotary_float32", "none"] = option(
        "rotary", "Position embedding; both rotary types compute in float32."
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
        "Limits of the noised actions (flow matching) or of the denoised actions "
        "(diffusion); null: none.",
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
    eta: float = option(0.0, "Noise added per step, as a fraction of that of DDPM.", ge=0, le=1)


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

    published: ClassVar[tuple[Published, ...]] = (Published("resume_except", "/init_except"),)

    type: Literal["diffusion_policy"] = option("diffusion_policy", "Model type.")
    vision_language_backbone: Backbone = option(
        ClipBackboneConfig(), "Encoder of images and language to tokens."
    )
    transformer: DenoiserSection = option(TransformerConfig(), "Denoiser.")
    noise_scheduler: NoiseConfig = option(NoiseConfig(), "Forward process.")
    use_flow_matching_scheduler: bool = option(True, "Use flow matching; else diffusion (DDPM).")
    use_diffusers_scheduler: bool = option(
        False, "Use diffusion and ignore use_flow_matching_scheduler."
    )
    solver: Solver | None = option(
        None, "Solver that samples actions; null: euler for flow matching, ddim for diffusion."
    )
    input_noise_std: float = option(0.0, "Std of noise on the inputs during training.", ge=0)
    clean_padded_steps: bool = option(
        False,
        "Add no noise to steps outside the episode, as published; the policy then "
        "sees in its training inputs where an episode begins and ends.",
    )
    diffusion_step_conditioning: Literal["concat", "add"] = option(
        "concat", "Append the noise level as a token, or add it to all tokens."
    )
    num_action_head_repeats: int | None = option(
        None, "Noise draws per observation that share one encoding.", ge=1
    )
    lr_factors: dict[PolicyModule, Annotated[float, Field(ge=0)]] = option(
        {},
        "Network to a factor on the learning rate, such as vision_language_backbone: "
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
                "data without cameras, so the policy sees states and the instruction alone"
            )
        elif not data.cameras and not isinstance(backbone, TextBackboneConfig):
            raise DataError(
                f"the data have no camera, and {backbone.type} encodes images",
                hint="train with --preset policy-state, whose backbone has no images "
                "(text_backbone), or preprocess episodes that have images",
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
            raise ValueError("freeze: nothing would be left to train; freeze only a section")
        return self
