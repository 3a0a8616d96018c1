"""Config of FUTURE-VLA; no torch. Source: reference/future-vla 8."""

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from vlatool.config.base import ConfigModel, derived_field
from vlatool.models.base import MAX_WIDTH
from vlatool.models.pretrained import architecture_problem

# Number of images of a sample that are possible.
MAX_IMAGES = 4096
# Sides of the three grids of patches, as divisors of the side of the grid of DINOv3: oldest images
# first. Source: reference/future-vla 8.1.
REDUCTIONS = (4, 2, 1)


class FutureVlaConfig(ConfigModel):
    """Language model that reads past images and writes actions and future images as tokens."""

    no_effect_on_output: ClassVar[frozenset[str]] = frozenset()

    type: Literal["future_vla"] = Field(default="future_vla", description="Model type.")
    qwen: dict[str, Any] | None = derived_field(
        "config.json of the weights to start from", "Architecture of Qwen3-VL."
    )
    dino: dict[str, Any] | None = derived_field(
        "config.json of the weights to start from", "Architecture of DINOv3."
    )
    views: int = Field(default=2, ge=1, le=64, description="Number of cameras.")
    compress: tuple[int, int, int] = Field(
        default=(8, 6, 2),
        description="Number of past steps with a quarter, half, and full side of the grid of "
        "patches, oldest first.",
    )
    conv_width: int = Field(
        default=1280,
        ge=1,
        le=MAX_WIDTH,
        description="Channels between the convolutions that compress the oldest images.",
    )
    patch_order: Literal["raster", "block"] = Field(
        default="raster",
        description="Order of the patches of an image; raster: rows, as in the published weights, "
        "which fuses strips of 1 x 4 patches; block: squares of 2 x 2, as Qwen3-VL expects.",
    )
    freeze_dino: bool = Field(default=True, description="Do not train DINOv3.")

    @property
    def images(self) -> int:
        """Number of images of a sample, oldest step first, views of a step together."""
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
    def _check_frames(self) -> Self:
        if min(self.compress) < 0 or not sum(self.compress):
            raise ValueError(f"compress {list(self.compress)} must have counts of steps, not all 0")
        if self.images > MAX_IMAGES:
            raise ValueError(f"compress and views give {self.images} images, at most {MAX_IMAGES}")
        return self
