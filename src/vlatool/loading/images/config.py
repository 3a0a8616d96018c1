"""Configuration of image shards and of their preprocessing."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, required_field
from vlatool.loading.config import LoadingConfig
from vlatool.transforms.resampling import ResizeFilter


class ImagePreprocessing(ConfigModel):
    """Resize and crop to the square image that a model expects; saved with the weights.

    The defaults are those of the published pipeline, except for the flip.
    Source: reference/titok 6.1.
    """

    resize: Literal["shorter_edge", "squash"] = Field(
        default="shorter_edge",
        description="shorter_edge: keep the aspect ratio, then crop; squash: resize both edges to "
        "crop_size.",
    )
    resize_shorter_edge: int | None = Field(
        default=None, ge=1, description="Shorter edge in pixels before the crop; null: crop_size."
    )
    crop_size: int = Field(default=256, ge=1, description="Edge of the square crop in pixels.")
    random_crop: bool = Field(
        default=True,
        description="Crop at a random position during training; otherwise in the center.",
    )
    random_flip: bool = Field(
        default=False,
        description="Flip images horizontally with probability 0.5 during training; images of "
        "robots are not symmetric.",
    )
    resize_filter: ResizeFilter = Field(
        default="bicubic", description="Filter of the resize; published: bicubic."
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.shorter_edge < self.crop_size:
            raise ValueError(
                f"resize_shorter_edge {self.shorter_edge} is less than crop_size {self.crop_size}"
            )
        return self

    @property
    def shorter_edge(self) -> int:
        """Shorter edge in pixels before the crop."""
        return self.resize_shorter_edge or self.crop_size

    def without_randomness(self) -> "ImagePreprocessing":
        """Returns the preprocessing of evaluation and encoding: center crop, no flip."""
        return self.model_copy(update={"random_crop": False, "random_flip": False})


class ImageDataConfig(LoadingConfig):
    """Image shards (tar files)."""

    no_effect_on_output: ClassVar[frozenset[str]] = LoadingConfig.no_effect_on_output | {
        # Locations of the data. The fingerprint of a run covers their content.
        "shards",
        "val_shards",
    }

    type: Literal["images"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        default="images", description="Data kind."
    )
    shards: list[str] = required_field(
        [],
        "Shards of each data set: a folder, a list of shards (.txt), a pattern such as "
        "a-{000..252}.tar or *.tar, or one .tar file, of any scheme.",
    )
    val_shards: list[str] = Field(
        default=[],
        description="Shards of each validation data set, as for shards; of a folder, its "
        "validation shards are used.",
    )
    split: Literal["train", "val"] = Field(
        default="train", description="Shard list to read in a folder that has lists of both."
    )
    preprocessing: ImagePreprocessing = Field(
        default=ImagePreprocessing(), description="Preprocessing of images."
    )
    convert_colors: bool = Field(
        default=False,
        description="Convert grayscale, palette and RGBA images to RGB, as the published reader "
        "does; otherwise they are dropped and counted.",
    )

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        count, weights = len(self.shards), len(self.dataset_weighting)
        if weights and weights != count:
            raise ValueError(f"dataset_weighting has {weights} entries, shards has {count}")
        return self
