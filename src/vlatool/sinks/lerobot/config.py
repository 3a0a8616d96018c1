"""Config of the `lerobot` sink. Source: formats/lerobot-writing 1, 2."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from vlatool.artifacts.lerobot.format import CHUNKS_SIZE, Version
from vlatool.sinks.base import SinkConfig


class LeRobotSinkConfig(SinkConfig):
    """A LeRobot data set."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "layout_version", "robot_type", "modality"),
        "Images": ("use_videos", "copy_videos", "video_crf", "keyframe_interval"),
        "Files": ("data_files_size_in_mb", "video_files_size_in_mb", "chunks_size"),
    }

    type: Literal["lerobot"] = Field(
        default="lerobot", description="Form of the output: a LeRobot data set."
    )
    layout_version: Version = Field(default="v3.0", description="Version of the layout.")
    robot_type: str | None = Field(
        default=None, description="Name of the robot; null: that of the source, if it has one."
    )
    modality: bool = Field(
        default=False, description="Write meta/modality.json, which GR00T reads."
    )
    use_videos: bool | None = Field(
        default=None,
        description="Store cameras as videos, or as images in the table; null: as a LeRobot source "
        "does, videos for others.",
    )
    copy_videos: bool = Field(
        default=True,
        description="Copy encoded video where it needs no change; otherwise encode it anew.",
    )
    video_crf: int = Field(
        default=18, ge=0, le=51, description="Quality of encoded videos; lower is better."
    )
    keyframe_interval: int = Field(
        default=2,
        ge=1,
        description="Frames from one keyframe to the next; low numbers make single frames cheap.",
    )
    data_files_size_in_mb: int = Field(default=100, ge=1, description="MiB of a data file (v3.0).")
    video_files_size_in_mb: int = Field(default=200, ge=1, description="MiB of a video (v3.0).")
    chunks_size: int = Field(
        default=CHUNKS_SIZE, ge=1, description="Files of a folder (v3.0), or episodes of it (v2.1)."
    )
