"""Config of the `jsonl` sink: windows as JSON lines, images as files.

Source: reference/future-vla 1.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vlatool.artifacts.images import PNG
from vlatool.sinks.base import SinkConfig
from vlatool.sinks.images import (
    ImageEncoding,
    ImageSize,
    ResizingFilter,
    ResizingMethod,
    height_and_width,
)
from vlatool.storage.uri import is_file_name

QaMode = Literal["both", "vla", "wm", "alternate", "random"]

_LONGEST_NAME = 100
_PUBLISHED_MODES = {"1": "vla", "2": "wm"}


class JsonlConfig(SinkConfig):
    """Windows of the FUTURE-VLA pipeline."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "name"),
        "Windows": ("past_steps", "future_steps", "action_width", "qa_mode", "seed"),
        "Images": (
            "resize_images_size",
            "image_resizing_method",
            "image_resizing_filter",
            "verify_pixels",
        ),
    }

    type: Literal["jsonl"] = Field(
        default="jsonl", description="Form of the output: windows as JSON lines, and images."
    )
    name: str = Field(
        default="",
        description="Prefix of image names; empty: the name of the source folder.",
    )
    past_steps: int = Field(
        default=16, ge=1, le=10_000, description="Observed steps, the anchor included."
    )
    future_steps: int = Field(
        default=16,
        ge=1,
        le=10_000,
        description="Actions from the anchor on, and images of the steps after it.",
    )
    action_width: int | None = Field(
        default=None,
        ge=1,
        description="Required number of values of an action; null: any.",
    )
    qa_mode: QaMode = Field(
        default="both",
        description="Lines of a frame: vla (or 1) asks for the action, wm (or 2) for the state "
        "after it, both writes two lines, alternate and random (seeded) one of them.",
    )
    seed: int = Field(default=42, ge=0, description="Seed of the random lines.")
    resize_images_size: ImageSize = Field(
        default=(256, 256),
        description="Width, height of the images, or one number for both; null keeps their size. "
        "PNG files of this size are copied unchanged.",
    )
    image_resizing_method: ResizingMethod = "center_crop"
    image_resizing_filter: ResizingFilter = "lanczos_vips"
    verify_pixels: bool = Field(
        default=False, description="Decode images that are copied unchanged, to verify them."
    )

    @field_validator("name")
    @classmethod
    def _part_of_file_names(cls, value: str) -> str:
        is_short = is_file_name(value) and len(value.encode()) <= _LONGEST_NAME
        if "/" in value or "\\" in value or not value.isprintable() or not is_short:
            raise ValueError("cannot be part of a file name")
        return value

    @model_validator(mode="before")
    @classmethod
    def _by_number(cls, data: Any) -> Any:
        """Converts the published numbers of `qa_mode` to names before validation."""
        if isinstance(data, dict) and (mode := _PUBLISHED_MODES.get(str(data.get("qa_mode")))):
            return {**data, "qa_mode": mode}
        return data

    def encoding(self) -> ImageEncoding:
        """Form of written images."""
        return ImageEncoding(
            size=height_and_width(self.resize_images_size),
            method=self.image_resizing_method,
            filter=self.image_resizing_filter,
            formats=(PNG,),
            verify_pixels=self.verify_pixels,
        )
