"""Sections of backbones, and of networks with a base model; no torch.

A section derives the keys that follow from the data or from a base model. The class of its network
is in `build.py`. Source: reference/policy 1.4; reference/training 1.6.
"""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from vlatool.config.base import (
    ConfigModel,
    Ignored,
    Names,
    Supported,
    derivation_rules,
    derived_field,
    option,
)
from vlatool.datasets.base_model import ImageMeanStd, copy_tokenizer, read_image_mean_std
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models import pretrained
from vlatool.models.backbones.prompts import image_side
from vlatool.models.base import MAX_LAYERS, MAX_SIDE, MAX_WIDTH
from vlatool.storage.uri import version_of

# A section with its derived keys, and the rule of each of them.
Derived = tuple[Any, dict[str, str]]
# Keys that are read from the files of a base model.
_FROM_BASE_MODEL = ("revision", "architecture", "image_mean", "image_std", "image_size")


class NetworkConfig(ConfigModel):
    """A network with optional initial weights, which may be frozen."""

    resume_from_checkpoint: str | None = option(
        None, "Checkpoint with the initial weights of this network; null: none."
    )
    resume_weights_only: bool = option(
        False, "Load only the weights and start a new run with them."
    )
    freeze: bool = option(False, "Do not train the weights of this network.")

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """Fills in the keys that follow from the data or from a base model."""
        return self, {}

    def restore_base_config(self, before: ConfigModel | None) -> Self:
        """The section, with the derived keys of an earlier section if both have the same base
        model.
        """
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
        """Raises DataError if the base model is missing, although its architecture is needed."""
        if self.architecture is None:
            _ = self.base

    def restore_base_config(self, before: ConfigModel | None) -> Self:
        """The section, with what an earlier one has read from the same base model."""
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
        "preprocessor_config.json of hf_pretrained", "Standard deviation of red, green and blue."
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


class ByteTextConfig(ConfigModel):
    """A small text encoder on bytes, trained from scratch."""

    type: Literal["bytes"] = option("bytes", "Type of text encoder.")
    hidden_dim: int = option(64, "Token width.", ge=1, le=MAX_WIDTH)
    max_length: int = option(128, "Maximum length of an instruction in bytes.", ge=1, le=MAX_WIDTH)


class ViTBackboneConfig(NetworkConfig):
    """A vision transformer trained from scratch; one token per patch."""

    NAMES: ClassVar[Names] = {
        "pretrained": Ignored("the backbone is trained from scratch"),
        "interpolation_mode": Ignored("the backbone is trained from scratch"),
        "cls_flag": Supported((False,), "there is no class token, only patch tokens"),
        "projector_pixel_shuffle_factor": Supported(
            (1,), "patches cannot be merged; use a larger patch_size"
        ),
    }

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
    group_norm: bool = option(False, "Use group norms after the first two convolutions.")
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
        "Images per camera, which a learned embedding distinguishes.",
        ge=1,
        le=MAX_WIDTH,
    )

    def derive(self, data: RoboticsDataConfig) -> Derived:
        times = len(data.image_indices)
        return self._with_derived({"num_cameras": len(data.cameras), "num_times": times})


class TextBackboneConfig(NetworkConfig):
    """A backbone without images: one token for the instruction, if it is encoded."""

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
        "Write `<image> ` before the instruction once per image, as the published processor does; "
        "needed by weights that were trained this way.",
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
        4, "Number of last layers whose states are joined.", ge=1, le=MAX_LAYERS
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


Backbone = Annotated[
    ClipBackboneConfig
    | VlmBackboneConfig
    | ViTBackboneConfig
    | KeypointBackboneConfig
    | TextBackboneConfig,
    Field(discriminator="type"),
]
