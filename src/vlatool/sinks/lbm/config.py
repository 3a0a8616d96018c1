"""Config of the `lbm` sink: windows, images, statistics, shards.

Source: formats/lbm-preprocessing 1.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from vlatool.config.base import unique_items
from vlatool.sinks.base import SinkConfig
from vlatool.sinks.images import ImageSize, ResizingMethod, height_and_width
from vlatool.transforms.geometry import ResizeFilter, quarter_turns
from vlatool.transforms.relative import PoseGroupConfig
from vlatool.transforms.windows import Padding, SampleSpec, StillnessSpec, WindowSpec


class LbmConfig(SinkConfig):
    """Training shards of the LBM pipeline."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "keep_episodes"),
        "Windows": (
            "past_lowdim_steps",
            "future_lowdim_steps",
            "stride",
            "max_padding_left",
            "max_padding_right",
            "padding_strategy",
            "filter_still_samples",
            "still_threshold",
            "still_field_thresholds",
        ),
        "Images": (
            "image_indices",
            "resize_images_size",
            "image_resizing_method",
            "image_resizing_filter",
            "camera_rotations",
            "jpeg_quality",
            "depth",
            "labels",
            "compat",
        ),
        "Statistics and shards": ("compute_statistics", "samples_per_shard", "seed"),
    }

    type: Literal["lbm"] = Field(default="lbm", description="Form of the output: tars of windows.")
    past_lowdim_steps: int = Field(
        default=1, ge=0, le=100_000, description="Frames of a window before the anchor."
    )
    future_lowdim_steps: int = Field(
        default=14, ge=0, le=100_000, description="Frames of a window after the anchor."
    )
    stride: int = Field(default=1, ge=1, description="Frames from one anchor to the next.")
    max_padding_left: int = Field(
        default=1, ge=0, description="Maximum padded frames before an episode."
    )
    max_padding_right: int = Field(
        default=7, ge=0, description="Maximum padded frames after an episode."
    )
    padding_strategy: Padding = Field(default="copy", description="Content of padded rows.")
    filter_still_samples: bool = Field(
        default=False, description="Drop windows in which nothing moves."
    )
    still_threshold: float = Field(
        default=0.01,
        ge=0,
        description="A window is still if no field's standard deviation exceeds this value, in "
        "any unit.",
    )
    still_field_thresholds: dict[str, float] = Field(
        default={},
        description="Preferred rule: field to the range, in its unit, within which it is still; "
        "only these fields count.",
    )
    pose_groups: list[PoseGroupConfig] | None = Field(
        default=None,
        description="Poses that also get relative fields; null: those of the format.",
    )
    image_indices: list[int] = Field(
        default=[-1, 0],
        min_length=1,
        description="Images of a sample, as frame offsets from the anchor.",
    )
    resize_images_size: ImageSize = None
    image_resizing_method: ResizingMethod = "center_crop"
    image_resizing_filter: ResizeFilter | None = Field(
        default=None,
        description="Resize filter; null: lanczos_vips, or lanczos with compat.",
    )
    camera_rotations: dict[str, int] = Field(
        default={},
        description="Clockwise quarter turns by camera, before the resize; calibration is "
        "rotated too.",
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="JPEG quality.")
    depth: bool = Field(default=False, description="Store depth as 16-bit PNG, in millimetres.")
    labels: bool = Field(default=False, description="Store segmentation labels as 16-bit PNG.")
    samples_per_shard: int = Field(default=128, ge=1, description="Samples in a shard.")
    seed: int = Field(default=42, ge=0, description="Seed of the shuffle.")
    keep_episodes: bool = Field(
        default=True,
        description="Keep the tars per episode, as large as the shards, once the output is "
        "complete.",
    )
    compute_statistics: bool = Field(default=True, description="Write stats.json.")
    compat: bool = Field(
        default=False,
        description="Use the published filter and calibration arithmetic, which is off by up to "
        "half a pixel.",
    )

    @field_validator("image_indices")
    @classmethod
    def _each_once(cls, value: list[int]) -> Any:
        return unique_items(value)

    @field_validator("camera_rotations")
    @classmethod
    def _quarter_turns(cls, value: dict[str, int]) -> Any:
        return quarter_turns(value)

    @model_validator(mode="after")
    def _still_filter_is_on(self) -> Self:
        if self.still_field_thresholds and not self.filter_still_samples:
            raise ValueError("still_field_thresholds needs filter_still_samples: true")
        if any(threshold < 0 for threshold in self.still_field_thresholds.values()):
            raise ValueError("still_field_thresholds must not be negative")
        return self

    @model_validator(mode="after")
    def _leave_out_default_filter(self) -> Self:
        unset = self.model_copy(update={"image_resizing_filter": None})
        return unset if self.image_resizing_filter == unset.resize_filter else self

    @property
    def resize_filter(self) -> ResizeFilter:
        """Filter of the resize; by default the published one with `compat`."""
        return self.image_resizing_filter or ("lanczos" if self.compat else "lanczos_vips")

    def sample_spec(self) -> SampleSpec:
        still = StillnessSpec(self.still_threshold, self.still_field_thresholds)
        return SampleSpec(
            windows=WindowSpec(
                past=self.past_lowdim_steps,
                future=self.future_lowdim_steps,
                stride=self.stride,
                max_padding_left=self.max_padding_left,
                max_padding_right=self.max_padding_right,
                padding=self.padding_strategy,
            ),
            image_offsets=tuple(self.image_indices),
            image_size=height_and_width(self.resize_images_size),
            resize_method=self.image_resizing_method,
            resize_filter=self.resize_filter,
            rotations=self.camera_rotations,
            still=still if self.filter_still_samples else None,
            compat=self.compat,
        )
