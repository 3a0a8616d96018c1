"""Config of the `image-shards` sink. Source: reference/future-vla 2.1."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from vlatool.artifacts.image import Subsampling
from vlatool.sinks.base import SinkConfig
from vlatool.transforms.geometry import ResizeMethod
from vlatool.transforms.resampling import ResizeFilter

_LARGEST_SIDE = 16_384  # pixels


class ImageShardsConfig(SinkConfig):
    """Tars of images that a visual tokenizer is trained on."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "split_name", "val_ratio", "image_metadata"),
        "Images": (
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
        default="image-shards", description="Sink: tars of images."
    )
    split_name: str = Field(
        default="train",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="Prefix of the name of every tar.",
    )
    val_ratio: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of the shards for validation; null writes no lists (see `vlatool "
        "split`).",
    )
    image_metadata: bool = Field(
        default=True, description="Store the origin of each image as JSON beside it."
    )
    image_format: Literal["jpeg", "png"] | None = Field(
        default=None,
        description="Image format; null keeps stored PNG and JPEG, and writes PNG where pixels "
        "change.",
    )
    jpeg_quality: int = Field(default=100, ge=1, le=100, description="JPEG quality.")
    jpeg_subsampling: Subsampling = Field(
        default="4:4:4", description="Chroma subsampling of JPEG."
    )
    resize_images_size: tuple[int, int] | int | None = Field(
        default=None,
        description="Width, height of the images, or one number for both; null keeps their size.",
    )
    image_resizing_method: ResizeMethod = Field(default="center_crop", description="Resize method.")
    image_resizing_filter: ResizeFilter = Field(
        default="lanczos_vips", description="Resize filter."
    )
    verify_pixels: bool = Field(
        default=False, description="Also decode PNG files that are copied unchanged."
    )

    @field_validator("resize_images_size")
    @classmethod
    def _square(cls, value: tuple[int, int] | int | None) -> tuple[int, int] | None:
        """Size from the published form too: one number, 0 keeps the size."""
        size = (value, value) if isinstance(value, int) else value
        if size in (None, (0, 0)):
            return None
        if not 1 <= min(size) <= max(size) <= _LARGEST_SIDE:
            raise ValueError(f"width and height must be 1 to {_LARGEST_SIDE}")
        return size

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of written images; None if they keep their size."""
        size = self.resize_images_size
        return (size[1], size[0]) if isinstance(size, tuple) else None
