"""LIBERO as LeRobot data sets: two image columns, one instruction per episode.

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
    """Options for LIBERO data sets; the two cameras are fixed."""

    camera_columns: ClassVar[tuple[str, ...]] = ("image", "wrist_image")
    needed_columns: ClassVar[tuple[str, ...]] = (FRAME_INDEX, EPISODE_INDEX)
    is_list_first: ClassVar[bool] = True
    needs_instruction: ClassVar[bool] = True
    known_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "actions": ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    }

    task_join: str | None = Field(
        default=" / ", description="Separator that joins several listed tasks of an episode."
    )


class LiberoReader(LeRobotReader):
    """Reader of LIBERO: the scene camera, the wrist camera, and the listed task."""

    Config: ClassVar[type[ConfigModel]] = LiberoConfig
    base_format: ClassVar[str] = "lerobot"
    default_sink: ClassVar[str] = "jsonl"
