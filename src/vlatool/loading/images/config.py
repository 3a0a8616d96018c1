"""Where image shards are, and how their pictures become those that a model sees."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, required_field
from vlatool.loading.config import LoadingConfig
from vlatool.transforms.resampling import ResizeFilter


class ImagePreprocessing(ConfigModel):
    """How a picture becomes the square that a model sees; it is kept beside the weights.

    The defaults are those of the published pipeline but for the flip. Source: reference/titok 6.1.
    """

    resize: Literal["shorter_edge", "squash"] = Field(
        default="shorter_edge",
        description="Keep the aspect and crop, or bring both edges to crop_size.",
    )
    resize_shorter_edge: int | None = Field(
        default=None, ge=1, description="Shorter edge before cropping; null: crop_size."
    )
    crop_size: int = Field(default=256, ge=1, description="Edge of the square.")
    random_crop: bool = Field(
        default=True, description="Crop anywhere while training; else, and later, in the middle."
    )
    random_flip: bool = Field(
        default=False, description="Mirror half of the pictures; robot views are not symmetric."
    )
    resize_filter: ResizeFilter = Field(
        default="bicubic", description="Which pixels are mixed; bicubic is the published one."
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
        """The shorter edge before cropping."""
        return self.resize_shorter_edge or self.crop_size

    def without_randomness(self) -> "ImagePreprocessing":
        """The same without chance, for measuring and encoding."""
        return self.model_copy(update={"random_crop": False, "random_flip": False})


class ImageDataConfig(LoadingConfig):
    """Pictures in tar shards."""

    no_effect_on_output: ClassVar[frozenset[str]] = LoadingConfig.no_effect_on_output | {
        # Where the data are; what they are is in the fingerprint of a run.
        "shards",
        "val_shards",
    }

    type: Literal["images"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        default="images", description="Kind of data."
    )
    shards: list[str] = required_field(
        [],
        "Shards of each data set: a folder, a list (.txt), a pattern such as a-{000..252}.tar or "
        "*.tar, or one .tar, of any scheme.",
    )
    val_shards: list[str] = Field(
        default=[], description="The same of held-out pictures; of a folder its list of those."
    )
    split: Literal["train", "val"] = Field(
        default="train", description="Which list counts of a folder that has both."
    )
    preprocessing: ImagePreprocessing = Field(
        default=ImagePreprocessing(), description="How pictures become what a model sees."
    )
    convert_colors: bool = Field(
        default=False,
        description="Make RGB of grey, palette and alpha pictures, as the published reader does; "
        "else they are dropped and counted.",
    )

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        count, weights = len(self.shards), len(self.dataset_weighting)
        if weights and weights != count:
            raise ValueError(f"dataset_weighting has {weights} entries, shards has {count}")
        return self
