"""Options of LeRobot formats: columns that are observed, predicted or name the task."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from vlatool.artifacts.lerobot.format import EPISODE_INDEX, FRAME_INDEX
from vlatool.config.base import ConfigModel


class LeRobotConfig(ConfigModel):
    """Options for LeRobot data sets.

    Class attributes in which formats based on LeRobot differ:
        camera_columns: Features that are cameras, in order; empty: all cameras.
        needed_columns: Columns that an episode must have.
        is_list_first: True if the tasks in the list of episodes take precedence over its rows.
        needs_instruction: True if an episode without an instruction is an error.
        known_names: Map from feature to its dimension names, used if info.json has none.
    """

    camera_columns: ClassVar[tuple[str, ...]] = ()
    needed_columns: ClassVar[tuple[str, ...]] = ()
    is_list_first: ClassVar[bool] = False
    needs_instruction: ClassVar[bool] = False
    known_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    observation_keys: list[str] | None = Field(
        default=None,
        description="Columns that the policy observes; default: all numeric ones below "
        "observation., or state.",
    )
    action_keys: list[str] | None = Field(
        default=None,
        description="Columns that the policy predicts; default: all numeric ones below action, or "
        "actions.",
    )
    task_column: str | None = Field(
        default=None, description="Column with the task index or sentence; default: task_index."
    )
    task_join: str | None = Field(
        default=None,
        description="Separator that joins several tasks of an episode whose rows name none.",
    )
    split: str | None = Field(
        default=None,
        description="Read only this split of meta/info.json, such as train; default: all episodes.",
    )


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
