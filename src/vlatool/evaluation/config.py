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
    """Key `allow` of commands that compare what they get with what training saw."""
    return option(
        [], "Differences from what training saw that are taken, by the key that the error names."
    )


class SamplingOptions(ConfigModel):
    """Options of how a policy computes a chunk."""

    inference_steps: int = option(8, "Evaluations of the network per sampled chunk.", ge=1)
    temperature: float = option(
        0.0,
        "Temperature at which a policy that writes tokens draws its actions; 0: the most probable "
        "ones.",
        ge=0,
        le=100,
    )
    samples: int = option(
        1, "Answers per decision of such a policy, of which one is executed.", ge=1, le=256
    )
    selection: Rule = option(
        "probable",
        "Rule for the answer to execute: probable has the greatest probability, central is nearest "
        "to all others, future has the most probable predicted images.",
    )

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.samples, self.selection)

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        if self.samples > 1 and not self.temperature:
            raise ValueError(
                f"{self.samples} samples are all equal with a temperature of 0; give one, such as "
                "temperature 0.5"
            )
        if self.samples == 1 and self.selection != type(self).model_fields["selection"].default:
            raise ValueError(
                f"selection {self.selection} chooses among several samples; give samples, such as 4"
            )
        return self


class OpenLoopConfig(SamplingOptions):
    """Options of the comparison of predicted with recorded action chunks."""

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    data: str = option(
        "",
        "Output of `vlatool preprocess`, of any scheme; empty: the held-out episodes of the "
        "training data.",
    )
    output: str | None = option(None, "Folder for the results; null: in the run, if that is local.")
    weights: Weights = option("auto", "Averaged or raw weights; auto: averaged if any.")
    max_samples: int = option(2000, "Most samples to evaluate, evenly spaced over the data.", ge=1)
    batch_size: int = option(32, "Samples computed at once; fewer are filled up.", ge=1)
    seed: int = option(0, "Seed of the sampled noise.", ge=0)
    tokenizer: str | None = option(
        None,
        "Visual tokenizer of the codes of a policy that predicts images, to compare "
        "these too; null: compare actions only.",
    )
    future_samples: int = option(
        32, "Most samples whose images are predicted, which takes many tokens.", ge=1
    )
    allow: list[str] = allow_option()


# Way in which an image gets another aspect ratio.
ImageFit = Literal["squash", "pad", "crop"]


class ActionMap(ConfigModel):
    """Mapping of an action field to a part of the environment's action vector."""

    field: str = Field(
        description="Action field of the policy, absolute, or a group of `pose_groups`: its "
        "position and rotation."
    )
    scale: float = option(1.0, "Factor from the field's unit to the environment's.")
    offset: float = option(0.0, "Number that is added after the factor.")


class GripperConfig(ConfigModel):
    """Gripper whose command has two values; it changes at a threshold each way."""

    field: str = Field(description="Action field of the policy.")
    dimension: int = option(0, "Dimension of the field.", ge=0)
    closed: float | None = option(
        None, "Command that closes it; null: the smallest of the training data."
    )
    opened: float | None = option(
        None, "Command that opens it; null: the largest of the training data."
    )
    close_below: float = option(
        0.4, "Share of the way from closed to opened below which it closes.", ge=0, le=1
    )
    open_above: float = option(0.6, "Share of the way above which it opens.", ge=0, le=1)

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        if self.close_below > self.open_above:
            raise ValueError("close_below is larger than open_above")
        return self


class RolloutTask(ConfigModel):
    """An environment, its episodes, and the mapping to the names of a policy."""

    env: str = required_field("", "Id of a Gymnasium environment.")
    env_options: dict[str, Any] = option({}, "Arguments of the environment, such as {cameras: 4}.")
    episodes: int = option(50, "Number of episodes.", ge=1)
    seed: int = option(100_000, "Seed of the first episode's initial state.", ge=0)
    max_steps: int | None = option(
        None, "Maximum number of steps per episode; null: the environment's limit.", ge=1
    )
    instruction: str | None = option(
        None, "Instruction for the policy; null: that of the environment."
    )
    instruction_key: str = option("instruction", "Observation or info key of the instruction.")
    success_key: str = option("success", "Info key of success.")
    cameras: dict[str, str] = option(
        {}, "Camera of the policy to observation key; absent: the same name."
    )
    flipped_cameras: list[str] = option([], "Cameras whose images are upside down.")
    camera_rotations: dict[str, int] = option(
        {}, "Clockwise quarter turns of the images by camera of the policy."
    )
    channels_first_cameras: list[str] = option(
        [], "Cameras whose images are [3, H, W]; others are if their last axis is not 3."
    )
    resize: ImageFit | dict[str, ImageFit] | None = option(
        None,
        "Way in which images of another aspect ratio get that of the recordings: squash, pad or "
        "crop, for all or by camera of the policy; null: they are refused.",
    )
    fields: dict[str, FieldMap] = option({}, "Observation key of each field of the policy.")
    map: NameMap = option(
        NameMap(),
        "Observation keys over those, such as cameras.front=image or fields.pose=state[0:3].",
    )
    action: list[ActionMap] = option([], "Fields that are concatenated, in order, to the action.")
    pose_groups: list[PoseGroupConfig] = option(
        [],
        "Poses of the robot in its convention: measured ones, by observation keys, and those that "
        "`action` names, which are commanded.",
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
        {}, "Name of each task to its keys; the others are those of the command."
    )

    @field_validator("tasks")
    @classmethod
    def _valid_names(cls, value: dict[str, RolloutTask]) -> dict[str, RolloutTask]:
        for name in value:
            if not re.fullmatch(r"[\w.+-]+", name):
                raise ValueError(f"{name!r}: a name has letters, digits and . + - _ only")
        return value


class RolloutOptions(SamplingOptions, RolloutTask):
    """Options of rollouts of a policy in Gymnasium environments; the section `eval` of a run."""

    suite: str | None = option(
        None, "YAML file with `tasks: {NAME: {env: ..., episodes: ...}}` to run together."
    )
    execute_steps: int = option(4, "Steps of a chunk to execute before the next is sampled.", ge=1)
    delay_steps: int = option(
        0,
        "Steps of the last chunk that are executed until the next takes effect, as if "
        "computing took that long.",
        ge=0,
    )
    ensemble_decay: float | None = option(
        None,
        "Average the commands of overlapping chunks, weighted exp(-decay i), i = 0 for "
        "the oldest; null: the newest counts.",
        ge=-1,
    )
    grippers: list[GripperConfig] = option(
        [], "Grippers that are opened or closed fully, with hysteresis."
    )
    compat: bool = option(
        False,
        "Published schedule: hold still for execute_steps - 1 steps, then execute as "
        "many of each chunk.",
    )
    batch_size: int = option(8, "Observations computed at once; fewer are filled up.", ge=1)
    env_processes: int | None = execution_field(
        None,
        "Processes that environments are in; null: one for the built-in world, else one per CPU.",
        ge=1,
    )
    env_timeout_s: float = execution_field(
        600.0,
        "Longest time of a reset or step in another process, which is then killed: an error of the "
        "episode.",
        gt=0,
        le=1e6,
    )
    videos: int = option(0, "Number of episodes of each task with a video.", ge=0)
    contact_sheet_episodes: int = option(8, "Number of episodes in the contact sheet.", ge=0)

    @model_validator(mode="after")
    def _check_compat(self) -> Self:
        if self.compat and (self.delay_steps or self.ensemble_decay is not None):
            raise ValueError("compat, the published schedule, has neither a delay nor an ensemble")
        return self


class RolloutConfig(RolloutOptions):
    """Options of rollouts of trained weights."""

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    output: str | None = option(None, "Folder for the results; null: in the run, if that is local.")
    weights: Weights = option("auto", "Averaged or raw weights; auto: averaged if any.")
    allow: list[str] = allow_option()


class CompareConfig(ConfigModel):
    """Options of the comparison of two outputs of rollouts."""

    a: str = required_field("", "Output of `vlatool eval rollout`, or its report.json.")
    b: str = required_field("", "The output to compare with it.")
    html: str | None = option(None, "HTML page of the comparison to write.")
