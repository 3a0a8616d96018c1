"""How pictures of training samples are varied. Source: formats/lbm 5.1."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel

_Hue = Annotated[float, Field(ge=-0.5, le=0.5)]
_Side = Annotated[float, Field(gt=0)]


class JitterConfig(ConfigModel):
    """Changes of colour; a factor is drawn from 1 - x to 1 + x."""

    enabled: bool = Field(default=False, description="Whether colours are changed.")
    brightness: float = Field(default=0.2, ge=0, description="Range of the brightness.")
    contrast: float = Field(default=0.4, ge=0, description="Range of the contrast.")
    saturation: float = Field(default=0.2, ge=0, description="Range of the saturation.")
    hue: tuple[_Hue, _Hue] = Field(
        default=(-0.05, 0.05), description="Lowest and highest shift of the hue, in turns."
    )


class CropConfig(ConfigModel):
    """A part of each picture."""

    enabled: bool = Field(default=False, description="Whether pictures are cropped.")
    shape: tuple[_Side, _Side] = Field(
        default=(224, 224),
        description="Height and width in pixels; both at most 1: shares of the picture.",
    )
    mode: Literal["random", "center"] = Field(default="random", description="Where the part lies.")

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if (self.shape[0] <= 1) != (self.shape[1] <= 1):
            raise ValueError(f"shape {list(self.shape)} mixes pixels and shares")
        if self.mode == "center" and self.shape[0] <= 1:
            raise ValueError("shares of a picture need mode: random")
        return self


class ImageAugmentationConfig(ConfigModel):
    """First the crop, then the colours; equal for all pictures of a sample that have one size."""

    color_jitter: JitterConfig = Field(default=JitterConfig(), description="ImageMeanStd.")
    crop: CropConfig = Field(default=CropConfig(), description="Crop.")


class AugmentationConfig(ConfigModel):
    """How pictures of training samples are varied."""

    enabled: bool = Field(default=True, description="Whether anything below counts.")
    image: ImageAugmentationConfig = Field(
        default=ImageAugmentationConfig(), description="Pictures."
    )

    def without_randomness(self) -> Self:
        """What is left where nothing is drawn: the middle of a picture, colours as they are."""
        crop = self.image.crop.model_copy(update={"mode": "center"})
        image = self.image.model_copy(update={"crop": crop, "color_jitter": JitterConfig()})
        return self.model_copy(update={"image": image})

    @property
    def crop_shape(self) -> tuple[float, float] | None:
        """(height, width) of what is kept of a picture; None: all of it."""
        return self.image.crop.shape if self.enabled and self.image.crop.enabled else None
