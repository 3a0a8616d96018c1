"""Configuration of image augmentation. Source: formats/lbm 5.1."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel

_Hue = Annotated[float, Field(ge=-0.5, le=0.5)]
_Side = Annotated[float, Field(gt=0)]


class JitterConfig(ConfigModel):
    """Color jitter. A factor is drawn uniformly between 1 - x and 1 + x for a range x."""

    enabled: bool = Field(default=False, description="Change colors randomly.")
    brightness: float = Field(default=0.2, ge=0, description="Range of the brightness factor.")
    contrast: float = Field(default=0.4, ge=0, description="Range of the contrast factor.")
    saturation: float = Field(default=0.2, ge=0, description="Range of the saturation factor.")
    hue: tuple[_Hue, _Hue] = Field(
        default=(-0.05, 0.05),
        description="Lowest and highest hue shift, as fractions of the color circle.",
    )


class CropConfig(ConfigModel):
    """Crop of images."""

    enabled: bool = Field(default=False, description="Crop images.")
    shape: tuple[_Side, _Side] = Field(
        default=(224, 224),
        description="Height and width of the crop in pixels; if both are at most 1, as fractions "
        "of the image.",
    )
    mode: Literal["random", "center"] = Field(default="random", description="Position of the crop.")

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if (self.shape[0] <= 1) != (self.shape[1] <= 1):
            raise ValueError(f"shape {list(self.shape)} mixes pixels and fractions")
        if self.mode == "center" and self.shape[0] <= 1:
            raise ValueError("a shape in fractions of the image requires mode: random")
        return self


class ImageAugmentationConfig(ConfigModel):
    """Crop, then color jitter; the same for all images of a sample that have the same size."""

    color_jitter: JitterConfig = Field(default=JitterConfig(), description="Color jitter.")
    crop: CropConfig = Field(default=CropConfig(), description="Crop.")


class AugmentationConfig(ConfigModel):
    """Augmentation of training samples."""

    enabled: bool = Field(default=True, description="Apply the augmentation below.")
    image: ImageAugmentationConfig = Field(
        default=ImageAugmentationConfig(), description="Augmentation of images."
    )

    def without_randomness(self) -> Self:
        """Returns the augmentation of evaluation: center crop, no color jitter."""
        crop = self.image.crop.model_copy(update={"mode": "center"})
        image = self.image.model_copy(update={"crop": crop, "color_jitter": JitterConfig()})
        return self.model_copy(update={"image": image})

    @property
    def crop_shape(self) -> tuple[float, float] | None:
        """(height, width) of the crop, as `CropConfig.shape`; None: no crop."""
        return self.image.crop.shape if self.enabled and self.image.crop.enabled else None
