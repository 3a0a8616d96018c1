"""Options of evaluation, on recorded data or in an environment."""

import re
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from vlatool.config.base import ConfigModel, execution_field, required_field
from vlatool.models.trained import Weights
from vlatool.transforms.geometry import quarter_turns


class OpenLoopConfig(ConfigModel):
    """Options of the comparison of predicted with recorded action chunks."""

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    data: str = required_field("", "Output of `vlatool preprocess`, of any scheme.")
    output: str | None = Field(
        default=None, description="Folder for the results; null: in the run, if that is local."
    )
    weights: Weights = Field(
        default="auto", description="Averaged or raw weights; auto: averaged if any."
    )
    inference_steps: int = Field(
        default=8, ge=1, description="Evaluations of the network per sampled chunk."
    )
    max_samples: int = Field(
        default=2000, ge=1, description="Most samples to evaluate, evenly spaced over the data."
    )
    batch_size: int = Field(
        default=32, ge=1, description="Samples computed at once; fewer are filled up."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampled noise.")
    tokenizer: str | None = Field(
        default=None,
        description="Visual tokenizer of the codes of a policy that predicts images, to compare "
        "these too; null: compare actions only.",
    )
    future_samples: int = Field(
        default=32,
        ge=1,
        description="Most samples whose images are predicted, which takes many tokens.",
    )


class FieldMap(ConfigModel):
    """Mapping of an environment's observation to a field."""

    key: str | None = Field(
        default=None, description="Key of the observation; dots separate nested keys."
    )
    start: int = Field(default=0, ge=0, description="First dimension.")
    stop: int | None = Field(
        default=None, ge=1, description="Dimension after the last; null: to the end."
    )
    scale: float = Field(
        default=1.0, description="Factor from the environment's unit to the field's."
    )
    constant: list[float] | None = Field(default=None, description="Fixed values, without key.")


class ActionMap(ConfigModel):
    """Mapping of an action field to a part of the environment's action vector."""

    field: str = Field(description="Action field of the policy, absolute.")
    scale: float = Field(
        default=1.0, description="Factor from the field's unit to the environment's."
    )


class GripperConfig(ConfigModel):
    """Gripper whose command has two values; it changes at a threshold each way."""

    field: str = Field(description="Action field of the policy.")
    dimension: int = Field(default=0, ge=0, description="Dimension of the field.")
    closed: float | None = Field(
        default=None,
        description="Command that closes it; null: the smallest of the training data.",
    )
    opened: float | None = Field(
        default=None, description="Command that opens it; null: the largest of the training data."
    )
    close_below: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="Share of the way from closed to opened below which it closes.",
    )
    open_above: float = Field(
        default=0.6, ge=0, le=1, description="Share of the way above which it opens."
    )

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        if self.close_below > self.open_above:
            raise ValueError("close_below is larger than open_above")
        return self


class RolloutTask(ConfigModel):
    """An environment, its episodes, and the mapping to the names of a policy."""

    env: str = required_field("", "Id of a Gymnasium environment.")
    env_options: dict[str, Any] = Field(
        default={}, description="Arguments of the environment, such as {cameras: 4}."
    )
    episodes: int = Field(default=50, ge=1, description="Number of episodes.")
    seed: int = Field(
        default=100_000, ge=0, description="Seed of the first episode's initial state."
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of steps per episode; null: the environment's limit.",
    )
    instruction: str | None = Field(
        default=None, description="Instruction for the policy; null: that of the environment."
    )
    instruction_key: str = Field(
        default="instruction", description="Observation or info key of the instruction."
    )
    success_key: str = Field(default="success", description="Info key of success.")
    cameras: dict[str, str] = Field(
        default={}, description="Camera of the policy to observation key; absent: the same name."
    )
    flipped_cameras: list[str] = Field(
        default=[], description="Cameras whose images are upside down."
    )
    camera_rotations: dict[str, int] = Field(
        default={}, description="Clockwise quarter turns of the images by camera of the policy."
    )
    channels_first_cameras: list[str] = Field(
        default=[],
        description="Cameras whose images are [3, H, W]; others are if their last axis is not 3.",
    )
    fields: dict[str, FieldMap] = Field(
        default={}, description="Observation key of each field of the policy."
    )
    action: list[ActionMap] = Field(
        default=[], description="Fields that are concatenated, in order, to the action."
    )

    @field_validator("camera_rotations")
    @classmethod
    def _quarter_turns(cls, value: dict[str, int]) -> Any:
        return quarter_turns(value)


class SuiteConfig(ConfigModel):
    """Tasks that a policy is evaluated on together."""

    tasks: dict[str, RolloutTask] = Field(
        default={},
        description="Name of each task to its keys; the others are those of the command.",
    )

    @field_validator("tasks")
    @classmethod
    def _valid_names(cls, value: dict[str, RolloutTask]) -> dict[str, RolloutTask]:
        for name in value:
            if not re.fullmatch(r"[\w.+-]+", name):
                raise ValueError(f"{name!r}: a name has letters, digits and . + - _ only")
        return value


class RolloutOptions(RolloutTask):
    """Options of rollouts of a policy in Gymnasium environments; the section `eval` of a run."""

    suite: str | None = Field(
        default=None,
        description="YAML file with `tasks: {NAME: {env: ..., episodes: ...}}` to run together.",
    )
    execute_steps: int = Field(
        default=4, ge=1, description="Steps of a chunk to execute before the next is sampled."
    )
    delay_steps: int = Field(
        default=0,
        ge=0,
        description="Steps of the last chunk that are executed until the next takes effect, as if "
        "computing took that long.",
    )
    ensemble_decay: float | None = Field(
        default=None,
        ge=-1,
        description="Average the commands of overlapping chunks, weighted exp(-decay i), i = 0 for "
        "the oldest; null: the newest counts.",
    )
    grippers: list[GripperConfig] = Field(
        default=[], description="Grippers that are opened or closed fully, with hysteresis."
    )
    compat: bool = Field(
        default=False,
        description="Published schedule: hold still for execute_steps - 1 steps, then execute as "
        "many of each chunk.",
    )
    inference_steps: int = Field(
        default=8, ge=1, description="Evaluations of the network per sampled chunk."
    )
    batch_size: int = Field(
        default=8, ge=1, description="Observations computed at once; fewer are filled up."
    )
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
    videos: int = Field(
        default=0, ge=0, description="Number of episodes of each task with a video."
    )
    contact_sheet_episodes: int = Field(
        default=8, ge=0, description="Number of episodes in the contact sheet."
    )

    @model_validator(mode="after")
    def _check_compat(self) -> Self:
        if self.compat and (self.delay_steps or self.ensemble_decay is not None):
            raise ValueError("compat, the published schedule, has neither a delay nor an ensemble")
        return self


class RolloutConfig(RolloutOptions):
    """Options of rollouts of trained weights."""

    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"output", "env_processes", "env_timeout_s"}
    )

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    output: str | None = Field(
        default=None, description="Folder for the results; null: in the run, if that is local."
    )
    weights: Weights = Field(
        default="auto", description="Averaged or raw weights; auto: averaged if any."
    )


class CompareConfig(ConfigModel):
    """Options of the comparison of two outputs of rollouts."""

    a: str = required_field("", "Output of `vlatool eval rollout`, or its report.json.")
    b: str = required_field("", "The output to compare with it.")
