"""What `vlatool preprocess` is asked to do, and what it answers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, create_model, field_validator

from vlatool.config.base import ConfigModel, needed_field
from vlatool.errors import UsageError
from vlatool.plugins import FORMATS
from vlatool.transforms.geometry import ResizeMethod
from vlatool.transforms.windows import Padding


class PreprocessConfig(ConfigModel):
    """What `vlatool preprocess` does; keys of the format may also be written flat."""

    flat_sections: ClassVar[tuple[str, ...]] = ("source",)
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"output", "sources", "workers", "overwrite", "dry_run", "on_error", "max_failures"}
    )

    format: str = needed_field("", "Name of the dataset format.")
    sources: list[str] = needed_field([], "Folders to search for episodes.")
    output: str = needed_field("", "Folder for shards/ and episodes/.")
    source: SerializeAsAny[ConfigModel] = Field(
        default=ConfigModel(), description="Keys of the format's reader."
    )
    episodes: str | None = Field(
        default=None, description="Episodes to take, such as 0:4,7; the end of a range is excluded."
    )
    max_episodes: int | None = Field(
        default=None, ge=-1, description="Take at most so many episodes; -1 for all."
    )
    past_lowdim_steps: int = Field(
        default=1, ge=0, description="Frames of a window before the anchor."
    )
    future_lowdim_steps: int = Field(
        default=14, ge=0, description="Frames of a window after the anchor."
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
    jpeg_quality: int = Field(default=95, ge=1, le=100, description="JPEG quality.")
    samples_per_shard: int = Field(default=128, ge=1, description="Samples in a shard.")
    seed: int = Field(default=42, description="Seed of the shuffle.")
    compat: bool = Field(
        default=False,
        description="Published arithmetic for intrinsics, half a pixel beside the pixels.",
    )
    workers: int | None = Field(
        default=None, ge=1, description="Processes; null for one per processor."
    )
    on_error: Literal["skip", "stop"] = Field(
        default="skip", description="skip keeps the good episodes, stop ends at the first bad one."
    )
    max_failures: int | None = Field(
        default=None, ge=0, description="End when more episodes failed."
    )
    overwrite: bool = Field(default=False, description="Replace an output made with other options.")
    dry_run: bool = Field(default=False, description="Say what would be done and write nothing.")

    @field_validator("image_resizing_method", mode="before")
    @classmethod
    def _published_spelling(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("resize_images_size")
    @classmethod
    def _positive_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and min(value) < 1:
            raise ValueError("width and height must be at least 1")
        return value

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


@dataclass(frozen=True)
class PreprocessResult:
    """What came of a run; `failures` lists the episodes that are not in the output."""

    output: str
    episodes: int
    frames: int
    samples: int
    shards: int
    bytes: int
    cameras: tuple[str, ...]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    dropped: Mapping[str, int]
    failures: tuple[Mapping[str, Any], ...] = ()
    empty_episodes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    status: str = "written"
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def document(self) -> dict[str, Any]:
        """The result for programs."""
        return asdict(self)

    def text(self) -> str:
        """The result for people."""
        cameras = ", ".join(self.cameras) or "none"
        size = f"{self.episodes} episodes ({self.bytes / 1e6:.1f} MB)"
        lines = [
            f"{self.output}: {self.samples} samples in {self.shards} shards from {size}",
            f"cameras: {cameras}",
            f"actions: {', '.join(self.action_fields)}",
            f"proprioception: {', '.join(self.proprioception_fields)}",
        ]
        if self.status == "planned":
            lines[0] = (
                f"{self.output}: would write about {self.samples} samples in {self.shards} "
                f"shards from {self.episodes} episodes; nothing was written"
            )
        if self.status == "already complete":
            lines[0] += "; was already complete, nothing to do"
        lines += [f"dropped {count}: {reason}" for reason, count in self.dropped.items()]
        lines += [f"no samples from {name}" for name in self.empty_episodes]
        lines += [f"failed {one['episode']}: {one['message']}" for one in self.failures]
        if self.status != "planned":
            lines.append(f"next: vlatool train --preset diffusion-policy-tiny --data {self.output}")
        return "\n".join(lines)
