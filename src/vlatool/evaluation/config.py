"""Options of evaluation, on recorded data or in an environment."""

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from vlatool.config.base import ConfigModel, execution_field, option, required_field, unique_items
from vlatool.models.base import Rule, Sampling
from vlatool.models.trained import Weights
from vlatool.transforms.geometry import quarter_turns
from vlatool.transforms.names import FieldMap, NameMap
from vlatool.transforms.relative import PoseGroupConfig


def allow_option() -> Any:
    """The key `allow` of commands that compare data with the training data."""
    return option(
        [], "Differences from the training data to accept, by the key that the error names."
    )


class SamplingOptions(ConfigModel):
    """Options that control how a policy computes an action chunk."""

    inference_steps: int = option(8, "Evaluations of the network per action chunk.", ge=1)
    temperature: float = option(
        0.0,
        "Temperature of a policy that writes action tokens; 0: the most probable token each time.",
        ge=0,
        le=100,
    )
    samples: int = option(
        1, "Answers that such a policy samples per decision; one of them is executed.", ge=1, le=256
    )
    selection: Rule = option(
        "probable",
        "Which answer is executed: probable has the highest probability, central is nearest to "
        "all others, future has the most probable predicted images.",
    )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.samples, self.selection)

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"{self.samples} samples are all equal at temperature 0; raise it, for example to "
                "temperature 0.5"
            )
        if self.samples == 1 and self.selection != type(self).model_fields["selection"].default:
            raise ValueError(
                f"selection {self.selection} chooses among several samples; set samples, such as 4"
            )
        return self


class OpenLoopConfig(SamplingOptions):
    """Options of `vlatool eval open-loop`."""

    checkpoint: str = required_field("", "Run folder or checkpoint; local, s3://, gs:// or hf://.")
    data: str = option(
        "", "Output of `vlatool preprocess`; empty: the held-out episodes of the training data."
    )
    output: str | None = option(None, "Folder for the results; null: in the run, if it is local.")
    weights: Weights = option("auto", "Averaged (ema) or raw weights; auto: averaged if any.")
    max_samples: int = option(
        2000, "Largest number of samples to evaluate, evenly spaced over the data.", ge=1
    )
    batch_size: int = option(32, "Samples per batch; a smaller last batch is filled up.", ge=1)
    seed: int = option(0, "Seed of the sampled noise.", ge=0)
    tokenizer: str | None = option(
        None,
        "Visual tokenizer of a policy that predicts images, to compare the images, too; null: "
        "compare actions only.",
    )
    future_samples: int = option(
        32, "Largest number of samples whose images are predicted, which is slow.", ge=1
    )
    allow: list[str] = allow_option()


# Way in which an image gets another aspect ratio.
ImageFit = Literal["squash", "pad", "crop"]


class ActionMap(ConfigModel):
    """Sends an action field of the policy to a part of the environment's action vector."""

    field: str = Field(
        description="Absolute action field of the policy, or the name of a group in "
        "`pose_groups` for its position and rotation."
    )
    scale: float = option(
        1.0, "Factor that converts the unit of the field into the unit of the environment."
    )
    offset: float = option(0.0, "Number added after the factor is applied.")
    is_whole: bool = option(
        False,
        "The whole action of a policy that has this field; other policies take the other parts.",
    )


class GripperConfig(ConfigModel):
    """A gripper with only two commands, open and close, each sent when a threshold is crossed."""

    field: str = Field(description="Action field of the policy.")
    dimension: int = option(0, "Dimension of the field.", ge=0)
    closed: float | None = option(
        None, "Command that closes it; null: the smallest value in the training data."
    )
    opened: float | None = option(
        None, "Command that opens it; null: the largest value in the training data."
    )
    close_below: float = option(
        0.4, "It closes below this share of the way from closed to opened.", ge=0, le=1
    )
    open_above: float = option(0.6, "It opens above this share of the way.", ge=0, le=1)

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        if self.close_below > self.open_above:
            raise ValueError("close_below must not be larger than open_above")
        return self


class RolloutTask(ConfigModel):
    """One environment, its episodes, and how its names map to the names of a policy."""

    env: str = required_field("", "Id of a Gymnasium environment.")
    env_options: dict[str, Any] = option({}, "Arguments of the environment, such as {cameras: 4}.")
    episodes: int = option(50, "Number of episodes.", ge=1)
    seed: int = option(100_000, "Seed of the first episode's initial state.", ge=0)
    max_steps: int | None = option(
        None, "Largest number of steps per episode; null: the environment's limit.", ge=1
    )
    instruction: str | None = option(
        None, "Instruction for the policy; null: the instruction of the environment."
    )
    instruction_key: str = option(
        "instruction", "Key of the instruction in the observation or the info."
    )
    success_key: str = option("success", "Key in the info that says whether the episode succeeded.")
    cameras: dict[str, str] = option(
        {},
        "Observation key for each camera of the policy; a camera that is not listed has its "
        "own name.",
    )
    flipped_cameras: list[str] = option(
        [], "Cameras whose images arrive upside down, and are turned over."
    )
    camera_rotations: dict[str, int] = option(
        {}, "Clockwise quarter turns of the images by camera of the policy."
    )
    channels_first_cameras: list[str] = option(
        [], "Cameras whose images are [3, H, W]; others are if their last axis is not 3."
    )
    resize: ImageFit | dict[str, ImageFit] | None = option(
        None,
        "How images with another aspect ratio are fitted to the recordings: squash, pad or crop, "
        "for all cameras or by camera; null: they are refused.",
    )
    fields: dict[str, FieldMap] = option({}, "Observation key for each field of the policy.")
    map: NameMap = option(
        NameMap(),
        "More observation keys, which win, such as cameras.front=image or fields.pose=state[0:3].",
    )
    action: list[ActionMap] = option(
        [], "Fields that are joined, in this order, to the action vector."
    )
    pose_groups: list[PoseGroupConfig] = option(
        [],
        "Poses in the convention of your robot: measured poses, by observation keys, and "
        "commanded poses, which `action` names.",
    )

    @field_validator("pose_groups")
    @classmethod
    def _each_once(cls, value: list[PoseGroupConfig]) -> list[PoseGroupConfig]:
        unique_items([group.name for group in value])
        return value

    @field_validator("camera_rotations")
    @classmethod
    def _quarter_turns(cls, value: dict[str, int]) -> Any:
        return quarter_turns(value)


class SuiteConfig(ConfigModel):
    """Tasks that a policy is evaluated on together."""

    tasks: dict[str, RolloutTask] = option(
        {}, "Keys of each task, by its name; all other keys are taken from the command."
    )

    @field_validator("tasks")
    @classmethod
    def _valid_names(cls, value: dict[str, RolloutTask]) -> dict[str, RolloutTask]:
        for name in value:
            if not re.fullmatch(r"[\w.+-]+", name):
                raise ValueError(f"{name!r}: a name can only have letters, digits and . + - _")
        return value


class RolloutOptions(SamplingOptions, RolloutTask):
    """Options of rollouts of a policy in Gymnasium environments; the section `eval` of a run."""

    suite: str | None = option(
        None, "YAML file with `tasks: {NAME: {env: ..., episodes: ...}}` to run together."
    )
    execute_steps: int = option(
        4, "Steps of a chunk to execute before the next chunk is computed.", ge=1
    )
    delay_steps: int = option(
        0,
        "Steps that pass until a new chunk takes effect, as if computing it took that long.",
        ge=0,
    )
    ensemble_decay: float | None = option(
        None,
        "Average overlapping chunks with weights exp(-decay i), i = 0 for the oldest; null: use "
        "only the newest chunk.",
        ge=-1,
    )
    grippers: list[GripperConfig] = option(
        [], "Grippers that are always fully opened or closed, with hysteresis."
    )
    compat: bool = option(
        False,
        "Published schedule: hold still for execute_steps - 1 steps, then execute that many of "
        "each chunk.",
    )
    batch_size: int = option(8, "Observations per batch; a smaller batch is filled up.", ge=1)
    env_processes: int | None = execution_field(
        None,
        "Number of processes for environments; null: one for the built-in world, else one per CPU.",
        ge=1,
    )
    env_timeout_s: float = execution_field(
        600.0,
        "Seconds after which a reset or step in another process is killed and counts as an error "
        "of the episode.",
        gt=0,
        le=1e6,
    )
    videos: int = option(0, "Number of episodes per task that get a video.", ge=0)
    contact_sheet_episodes: int = option(8, "Number of episodes in the contact sheet.", ge=0)

    @model_validator(mode="after")
    def _check_compat(self) -> Self:
        if self.compat and (self.delay_steps or self.ensemble_decay is not None):
            raise ValueError(
                "compat, the published schedule, allows neither delay_steps nor ensemble_decay"
            )
        return self


class RolloutConfig(RolloutOptions):
    """Options of rollouts of trained weights."""

    checkpoint: str = required_field("", "Run folder or checkpoint; local, s3://, gs:// or hf://.")
    output: str | None = option(None, "Folder for the results; null: in the run, if it is local.")
    weights: Weights = option("auto", "Averaged (ema) or raw weights; auto: averaged if any.")
    allow: list[str] = allow_option()


class CompareConfig(ConfigModel):
    """Options of `vlatool eval compare`."""

    a: str = required_field("", "Output of `vlatool eval rollout`, or its report.json.")
    b: str = required_field("", "Second output of `vlatool eval rollout`, or its report.json.")
    html: str | None = option(None, "HTML page of the comparison to write.")
