"""What the `jsonl` sink is asked to write: windows as lines of text, pictures as files.

Source: reference/future-vla 1.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vlatool.sinks.base import SinkConfig
from vlatool.storage.uri import is_file_name
from vlatool.transforms.geometry import ResizeMethod
from vlatool.transforms.resampling import ResizeFilter

QaMode = Literal["both", "vla", "wm", "alternate", "random"]

_LARGEST_SIDE = 16_384  # pixels
_LONGEST_NAME = 100
_PUBLISHED_MODES = {"1": "vla", "2": "wm"}


class JsonlConfig(SinkConfig):
    """Windows of the FUTURE-VLA pipeline."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "name"),
        "Windows": ("past_steps", "future_steps", "action_width", "qa_mode", "seed"),
        "Pictures": (
            "resize_images_size",
            "image_resizing_method",
            "image_resizing_filter",
            "verify_pixels",
        ),
    }

    type: Literal["jsonl"] = Field(
        default="jsonl", description="What is written: JSON lines and PNG pictures."
    )
    name: str = Field(
        default="",
        description="What names of pictures begin with; empty for the name of the source folder.",
    )
    past_steps: int = Field(
        default=16, ge=1, le=10_000, description="Steps that are seen, the present one included."
    )
    future_steps: int = Field(
        default=16, ge=1, le=10_000, description="Actions from the present on, and steps behind it."
    )
    action_width: int | None = Field(
        default=None,
        ge=1,
        description="Values that an action must have; null for as many as there are.",
    )
    qa_mode: QaMode = Field(
        default="both",
        description="Lines of a frame: vla (or 1) asks for the action, wm (or 2) for what it leads "
        "to, both writes two lines, alternate and random (seeded) one of them.",
    )
    seed: int = Field(default=42, ge=0, description="Seed of the random lines.")
    resize_images_size: tuple[int, int] | None = Field(
        default=(256, 256),
        description="Width, height of the pictures; null keeps theirs. PNG files that have it are "
        "copied as they are.",
    )
    image_resizing_method: ResizeMethod = Field(
        default="center_crop", description="How pictures get their size."
    )
    image_resizing_filter: ResizeFilter = Field(
        default="lanczos_vips", description="How pixels are mixed in doing so."
    )
    verify_pixels: bool = Field(
        default=False, description="Decode pictures that are copied as they are, to be sure."
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
        """Before values are fitted, which knows the names only."""
        if isinstance(data, dict) and (mode := _PUBLISHED_MODES.get(str(data.get("qa_mode")))):
            return {**data, "qa_mode": mode}
        return data

    @field_validator("resize_images_size")
    @classmethod
    def _positive_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 1 <= min(value) <= max(value) <= _LARGEST_SIDE:
            raise ValueError(f"width and height must be 1 to {_LARGEST_SIDE}")
        return value
