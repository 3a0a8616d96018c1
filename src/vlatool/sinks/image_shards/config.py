"""Config of the `image-shards` sink. Source: reference/future-vla 2.1."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from vlatool.artifacts.images import JPEG, PNG, Subsampling
from vlatool.sinks.base import SinkConfig
from vlatool.sinks.images import (
    ImageEncoding,
    ImageSize,
    ResizingFilter,
    ResizingMethod,
    height_and_width,
)


class ImageShardsConfig(SinkConfig):
    """Tars of images that a visual tokenizer is trained on."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "split_name", "val_ratio", "image_metadata", "label"),
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
        default="image-shards", description="Form of the output: tars of images."
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
    label: int | None = Field(
        default=None,
        ge=0,
        description="Class label to store beside every image, which the original reader of "
        "1d-tokenizer asks for.",
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
    resize_images_size: ImageSize = None
    image_resizing_method: ResizingMethod = "center_crop"
    image_resizing_filter: ResizingFilter = "lanczos_vips"
    verify_pixels: bool = Field(
        default=False, description="Also decode PNG files that are copied unchanged."
    )

    def encoding(self) -> ImageEncoding:
        """Form of written images."""
        return ImageEncoding(
            size=height_and_width(self.resize_images_size),
            method=self.image_resizing_method,
            filter=self.image_resizing_filter,
            formats=(PNG, JPEG) if self.image_format is None else (self.image_format,),
            quality=self.jpeg_quality,
            subsampling=self.jpeg_subsampling,
            verify_pixels=self.verify_pixels,
        )
