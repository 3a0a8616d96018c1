"""LIBERO as LeRobot data sets: two cameras in the table, one sentence per episode.

Source: reference/future-vla 1.2.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from vlatool.artifacts.lerobot import EPISODE_INDEX, FRAME_INDEX
from vlatool.config.base import ConfigModel
from vlatool.sources.lerobot.config import LeRobotConfig
from vlatool.sources.lerobot.reader import LeRobotReader


class LiberoConfig(LeRobotConfig):
    """Which columns of a LIBERO data set are read besides its two cameras."""

    camera_columns: ClassVar[tuple[str, ...]] = ("image", "wrist_image")
    needed_columns: ClassVar[tuple[str, ...]] = (FRAME_INDEX, EPISODE_INDEX)
    is_list_first: ClassVar[bool] = True
    needs_instruction: ClassVar[bool] = True
    known_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "actions": ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    }

    task_join: str | None = Field(
        default=" / ", description="Text between the tasks that an episode is listed with."
    )


class LiberoReader(LeRobotReader):
    """Reads LIBERO: a view of the scene, one of the wrist, and what was listed as the task."""

    Config: ClassVar[type[ConfigModel]] = LiberoConfig
    base_format: ClassVar[str] = "lerobot"
    default_sink: ClassVar[str] = "jsonl"
