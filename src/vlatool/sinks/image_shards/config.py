"""What the `image-shards` sink is asked to write. Source: reference/future-vla 2.1."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from vlatool.artifacts.image import Subsampling
from vlatool.sinks.base import SinkConfig
from vlatool.transforms.geometry import ResizeMethod
from vlatool.transforms.resampling import ResizeFilter

_LARGEST_SIDE = 16_384  # pixels


class ImageShardsConfig(SinkConfig):
    """Tars of pictures for a tokenizer."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "split_name", "val_ratio", "image_metadata"),
        "Pictures": (
            "image_format",
            "jpeg_quality",
            "jpeg_subsampling",
            "resize_images_size",
            "image_resizing_method",
            "image_resizing_filter",
            "verify_pixels",
        ),
    }

    type: Literal["image-shards"] = Field(
        default="image-shards", description="What is written: tars of pictures."
    )
    split_name: str = Field(
        default="train",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="What the name of every tar begins with.",
    )
    val_ratio: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Part of the shards for validation; null writes no lists, `vlatool split` can.",
    )
    image_metadata: bool = Field(
        default=True, description="Store beside each picture where it comes from."
    )
    image_format: Literal["jpeg", "png"] | None = Field(
        default=None,
        description="Format; null keeps stored PNG and JPEG, and writes PNG where pixels change.",
    )
    jpeg_quality: int = Field(default=100, ge=1, le=100, description="JPEG quality.")
    jpeg_subsampling: Subsampling = Field(
        default="4:4:4", description="Colour of JPEG: of every pixel, or of one in four."
    )
    resize_images_size: tuple[int, int] | int | None = Field(
        default=None,
        description="Width, height of the pictures, or one number for both; null keeps theirs.",
    )
    image_resizing_method: ResizeMethod = Field(
        default="center_crop", description="How pictures get their size."
    )
    image_resizing_filter: ResizeFilter = Field(
        default="lanczos_vips", description="How pixels are mixed in doing so."
    )
    verify_pixels: bool = Field(
        default=False, description="Decode also PNG files that go through as they are stored."
    )

    @field_validator("resize_images_size")
    @classmethod
    def _square(cls, value: tuple[int, int] | int | None) -> tuple[int, int] | None:
        """The published option has one number, 0 to keep sizes."""
        size = (value, value) if isinstance(value, int) else value
        if size in (None, (0, 0)):
            return None
        if not 1 <= min(size) <= max(size) <= _LARGEST_SIDE:
            raise ValueError(f"width and height must be 1 to {_LARGEST_SIDE}")
        return size

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of what is written; None where pictures keep theirs."""
        size = self.resize_images_size
        return (size[1], size[0]) if isinstance(size, tuple) else None
