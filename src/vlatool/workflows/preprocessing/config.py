"""What `vlatool preprocess` is asked to do. Source: lbm-data 3.1."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, create_model, field_validator, model_validator

from vlatool.config.base import ConfigModel, needed_field
from vlatool.errors import UsageError
from vlatool.parallel.engines import Engine
from vlatool.plugins import FORMATS
from vlatool.transforms.geometry import ResizeFilter, ResizeMethod
from vlatool.transforms.pose_groups import PoseGroupConfig
from vlatool.transforms.windows import Padding

_LARGEST_SIDE = 16_384  # pixels


class PreprocessConfig(ConfigModel):
    """What `vlatool preprocess` does; keys of the format may also be written flat."""

    flat_sections: ClassVar[tuple[str, ...]] = ("source",)
    renamed: ClassVar[Mapping[str, str]] = {
        "type": "format",
        "source_episodes": "sources",
        "dataset_root": "sources",
        "input_dir": "sources",
        "output_dir": "output",
        "out_dir": "output",
        "num_workers": "workers",
        "max_episodes_to_process": "max_episodes",
        "use_depth_data": "depth",
    }
    without_effect: ClassVar[Mapping[str, str]] = {
        "auto_tag": "git is never touched; the run record names the version",
        "skip_git_tagging": "git is never touched; the run record names the version",
        "output_dir_fixed_path": "no second copy is made; copy the output where you want it",
        "db_logging": "there is no database; .vlatool/run.json records the run",
    }
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {
            "output",
            "sources",
            "workers",
            "engine",
            "ray_address",
            "ray_num_cpus",
            "overwrite",
            "dry_run",
            "on_error",
            "max_failures",
            *without_effect,
        }
    )

    format: str = needed_field("", "Name of the dataset format.")
    sources: list[str] = needed_field([], "Folders or s3:// locations to search.")
    output: str = needed_field("", "Folder or s3:// location for shards/ and episodes/.")
    sink: Literal["lbm"] = Field(default="lbm", description="What is written: LBM shards.")
    source: SerializeAsAny[ConfigModel] = Field(
        default=ConfigModel(), description="Keys of the format's reader."
    )
    episodes: str | None = Field(
        default=None, description="Episodes to take, such as 0:4,7; the end of a range is excluded."
    )
    max_episodes: int | None = Field(
        default=None, ge=-1, description="Take at most so many episodes; 0 or -1 for all."
    )
    past_lowdim_steps: int = Field(
        default=1, ge=0, le=100_000, description="Frames of a window before the anchor."
    )
    future_lowdim_steps: int = Field(
        default=14, ge=0, le=100_000, description="Frames of a window after the anchor."
    )
    stride: int = Field(default=1, ge=1, description="Frames from one anchor to the next.")
    max_padding_left: int = Field(
        default=1, ge=0, description="Most padded frames before an episode."
    )
    max_padding_right: int = Field(
        default=7, ge=0, description="Most padded frames after an episode."
    )
    padding_strategy: Padding = Field(default="copy", description="What padded rows hold.")
    camera_names: list[str] | None = Field(
        default=None, description="Cameras, in order; null for all."
    )
    skip_episodes_missing_cameras: bool = Field(
        default=False,
        description="Drop an episode that lacks a camera instead of keeping it without.",
    )
    only_successful: bool = Field(
        default=False, description="Drop episodes that failed or do not say whether they did."
    )
    filter_still_samples: bool = Field(
        default=False, description="Drop windows in which nothing moves."
    )
    still_threshold: float = Field(
        default=0.01,
        ge=0,
        description="Still: no field's standard deviation is above it, whatever the unit.",
    )
    still_field_thresholds: dict[str, float] = Field(
        default={},
        description="Better: field to the range, in its unit, within which it stands still; "
        "only these fields count.",
    )
    pose_groups: list[PoseGroupConfig] | None = Field(
        default=None,
        description="Poses that also get relative fields; null for the format's own.",
    )
    image_indices: list[int] = Field(
        default=[-1, 0],
        min_length=1,
        description="Pictures of a sample, as frames from the anchor.",
    )
    resize_images_size: tuple[int, int] | None = Field(
        default=None, description="Width, height of the pictures; null keeps theirs."
    )
    image_resizing_method: ResizeMethod = Field(
        default="center_crop", description="How pictures get their size."
    )
    image_resizing_filter: ResizeFilter = Field(
        default="lanczos", description="How pixels are mixed in doing so."
    )
    camera_rotations: dict[str, int] = Field(
        default={},
        description="Camera to quarter turns clockwise, before the resize; calibration turns too.",
    )
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="JPEG quality.")
    depth: bool = Field(default=False, description="Store depth as 16-bit PNG, in millimetres.")
    labels: bool = Field(default=False, description="Store segmentation labels as 16-bit PNG.")
    samples_per_shard: int = Field(default=128, ge=1, description="Samples in a shard.")
    seed: int = Field(default=42, ge=0, description="Seed of the shuffle.")
    fail_on_nan: bool = Field(
        default=True, description="An episode with NaN or infinity fails; else they are kept."
    )
    compute_statistics: bool = Field(default=True, description="Write stats.json.")
    compat: bool = Field(
        default=False,
        description="Published arithmetic for calibration, half a pixel beside the pixels.",
    )
    engine: Engine = Field(default="local", description="local processes, or a Ray cluster.")
    workers: int | None = Field(
        default=None, ge=1, description="Processes; null for one per processor."
    )
    ray_address: str | None = Field(
        default=None, description="Cluster to join with --engine ray; null for a private one."
    )
    ray_num_cpus: int | None = Field(
        default=None, ge=1, description="Processors of a private Ray cluster; null for --workers."
    )
    on_error: Literal["skip", "stop"] = Field(
        default="skip", description="skip keeps the good episodes, stop ends at the first bad one."
    )
    max_failures: int | None = Field(
        default=None, ge=0, description="End when more episodes failed."
    )
    overwrite: bool = Field(default=False, description="Replace an output made with other options.")
    dry_run: bool = Field(default=False, description="Say what would be done and write nothing.")
    auto_tag: bool | None = Field(default=None, description="Does nothing.")
    skip_git_tagging: bool | None = Field(default=None, description="Does nothing.")
    output_dir_fixed_path: str | None = Field(default=None, description="Does nothing.")
    db_logging: bool | None = Field(default=None, description="Does nothing.")

    @field_validator("camera_names", "image_indices")
    @classmethod
    def _each_once(cls, value: list[Any] | None) -> list[Any] | None:
        twice = [item for item in value or [] if (value or []).count(item) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is given twice")
        return value

    @field_validator("resize_images_size")
    @classmethod
    def _positive_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 1 <= min(value) <= max(value) <= _LARGEST_SIDE:
            raise ValueError(f"width and height must be 1 to {_LARGEST_SIDE}")
        return value

    @field_validator("camera_rotations")
    @classmethod
    def _quarter_turns(cls, value: dict[str, int]) -> dict[str, int]:
        for name, turns in value.items():
            if not 0 <= turns <= 3:
                raise ValueError(f"{name}: {turns} is not 0 to 3 quarter turns; 90 degrees are 1")
        return value

    @field_validator("sources", "output")
    @classmethod
    def _not_blank(cls, value: list[str] | str) -> list[str] | str:
        is_unset = value == ""  # needed later, and then asked for by name
        texts = [value] if isinstance(value, str) else value
        if not is_unset and any(not text.strip() for text in texts):
            raise ValueError("a location is blank")
        return value

    @model_validator(mode="after")
    def _still_filter_is_on(self) -> Self:
        if self.still_field_thresholds and not self.filter_still_samples:
            raise ValueError("still_field_thresholds needs filter_still_samples: true")
        if any(threshold < 0 for threshold in self.still_field_thresholds.values()):
            raise ValueError("still_field_thresholds must not be negative")
        return self

    @classmethod
    def specialise(cls, tree: Mapping[str, Any]) -> type[Self]:
        """The class whose `source` section is the format's."""
        name = tree.get("format")
        if not name:
            return cls
        try:
            section = FORMATS.get(str(name)).Config
        except UsageError as error:
            error.details["key"] = "format"
            raise
        return create_model(
            cls.__name__, __base__=cls, source=(section, Field(default_factory=section))
        )
