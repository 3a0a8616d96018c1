"""Config of FUTURE-VLA; no torch. Source: reference/future-vla-model 2."""

from typing import Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from vlatool.config.base import ConfigModel, Names, derived_field, option
from vlatool.models.base import MAX_WIDTH
from vlatool.models.future_vla.token_ids import TokenIds
from vlatool.models.pretrained import architecture_problem

# Number of images of a sample that are possible.
MAX_IMAGES = 4096
# Positions of Qwen3-VL. Source: reference/future-vla-model 2.
MAX_POSITIONS = 262_144

PatchOrder = Literal["raster", "block"]
# Number of past steps with each grid.
Steps = tuple[int, int, int]


class SegmentWeights(ConfigModel):
    """Weight of a token in the loss, by the segment of the answer to which it belongs."""

    text: float = option(1.0, "Weight of text, including the end.", ge=0)
    action: float = option(1.0, "Weight of action ids and markers.", ge=0)
    future: float = option(1.0, "Weight of codes and markers.", ge=0)
    moving: float = option(
        1.0,
        "Factor on the weight of codes that change over the future images of their camera; above "
        "1, what moves counts more than the background.",
        gt=0,
    )

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        if not self.text + self.action + self.future:
            raise ValueError("set one of text, action and future above 0")
        return self


class LoraConfig(ConfigModel):
    """Adapters of low rank beside the linear layers of the language model."""

    rank: int = option(
        0,
        "Rank of the adapters that are trained instead of the language model; 0: no adapters.",
        ge=0,
        le=MAX_WIDTH,
    )
    alpha: float = option(32.0, "Scale of the adapters, multiplied by their rank.", gt=0)


class NumberDigests(ConfigModel):
    """Digests of the tokenizers and the normalization behind the numbers in samples; empty:
    unknown.
    """

    codes: str = option("", "Visual tokenizer of the codes.")
    actions: str = option("", "Action tokenizer of the action ids.")
    profile: str = option("", "Normalization of the actions.")


class FutureVlaConfig(ConfigModel):
    """Language model that reads past images and writes actions and future images as tokens."""

    NAMES: ClassVar[Names] = {"path": "/init_from"}

    type: Literal["future_vla"] = option("future_vla", "Model type.")
    qwen: dict[str, Any] | None = derived_field(
        "config.json of the weights to start from", "Architecture of Qwen3-VL."
    )
    dino: dict[str, Any] | None = derived_field(
        "config.json of the weights to start from", "Architecture of DINOv3."
    )
    special_ids: dict[str, int] | None = derived_field(
        "tokenizer.json of the weights to start from", "Token ids of special tokens and markers."
    )
    tokens: TokenIds | None = derived_field(
        "model.special_ids, and sizes of codes and action ids of the data",
        "Map from codes and action ids to token ids.",
    )
    numbers: NumberDigests = derived_field(
        "manifest.json of the samples",
        "What codes and action ids stand for.",
        default=NumberDigests(),
    )
    max_length: int | None = option(
        None,
        "Largest number of tokens of a sample; null: the positions of the language model.",
        ge=1,
    )
    views: int = option(2, "Number of cameras.", ge=1, le=64)
    compress: Steps = option(
        (8, 6, 2),
        "Number of past steps whose images get a quarter, half, and full side of the grid of "
        "patches, oldest first.",
    )
    conv_width: int = option(
        1280,
        "Channels between the convolutions that compress the oldest images.",
        ge=1,
        le=MAX_WIDTH,
    )
    patch_order: PatchOrder = option(
        "raster",
        "Order of the patches of an image; raster: rows, as in the published weights, "
        "which fuses strips of 1 x 4 patches; block: squares of 2 x 2, as Qwen3-VL expects.",
    )
    freeze_dino: bool = option(True, "Do not train DINOv3.")
    freeze_vision: bool = option(
        False, "Do not train the vision transformer and the convolutions before it."
    )
    freeze_mergers: bool = option(
        False, "Do not train the layers between vision and language, including deepstack."
    )
    freeze_language: bool = option(False, "Do not train the language model.")
    freeze_layers: int = option(
        0,
        "Number of first layers of the language model that are frozen, together with the "
        "embedding; 0 freezes none.",
        ge=0,
    )
    lora: LoraConfig = option(LoraConfig(), "Adapters of low rank.")
    future_share: float = option(
        1.0,
        "Share of the future images that each sample has in a training step, drawn anew each "
        "time; they keep their places. Below 1, more samples fit into the same time.",
        ge=0,
        le=1,
    )
    segment_weights: SegmentWeights = option(SegmentWeights(), "Weights of tokens in the loss.")

    @property
    def length_limit(self) -> int:
        """Largest number of tokens of a sample; the section must be derived."""
        assert self.qwen is not None
        positions = self.qwen["text_config"].get("max_position_embeddings")
        return self.max_length or int(positions or MAX_POSITIONS)

    @property
    def images(self) -> int:
        return self.views * sum(self.compress)

    @property
    def frames(self) -> tuple[int, int, int]:
        """Number of images of a sample with each grid, oldest first."""
        first, second, third = self.compress
        return self.views * first, self.views * second, self.views * third

    @field_validator("qwen", "dino")
    @classmethod
    def _check_architecture(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and (problem := architecture_problem(value)):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        check_grid(self.views, self.compress)
        return self


def check_grid(views: int, compress: Steps) -> None:
    """Raises ValueError if numbers of cameras and of past steps give no possible sample."""
    if min(compress) < 0 or not sum(compress):
        raise ValueError(f"compress {list(compress)} must be numbers of steps, not all of them 0")
    if views * sum(compress) > MAX_IMAGES:
        count = views * sum(compress)
        raise ValueError(f"compress and views give {count} images, at most {MAX_IMAGES}")
