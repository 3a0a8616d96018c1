"""What evaluation does: on recorded data, or in an environment."""

from typing import Any, Literal

from pydantic import Field

from vlatool.config.base import ConfigModel, required_field

Weights = Literal["auto", "ema", "raw"]


class OpenLoopConfig(ConfigModel):
    """Predicted against recorded action chunks."""

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    data: str = required_field("", "What `vlatool preprocess` wrote, of any scheme.")
    output: str | None = Field(
        default=None, description="Folder for the results; null: in the run, if that is local."
    )
    weights: Weights = Field(
        default="auto", description="Averaged or raw weights; auto: averaged if any."
    )
    inference_steps: int = Field(default=8, ge=1, description="Evaluations per sampled chunk.")
    max_samples: int = Field(default=2000, ge=1, description="Take at most so many, evenly spread.")
    batch_size: int = Field(default=32, ge=1, description="Samples per batch.")
    seed: int = Field(default=0, ge=0, description="Seed of the sampled noise.")


class FieldMap(ConfigModel):
    """Where a field comes from in an environment's observation."""

    key: str | None = Field(default=None, description="Key of the observation; dots go deeper.")
    start: int = Field(default=0, ge=0, description="First channel.")
    stop: int | None = Field(
        default=None, ge=1, description="Channel after the last; null for all."
    )
    scale: float = Field(
        default=1.0, description="Factor from the environment's unit to the field's."
    )
    constant: list[float] | None = Field(default=None, description="A fixed value instead.")


class ActionMap(ConfigModel):
    """A part of an environment's action vector."""

    field: str = Field(description="Action field of the policy, absolute.")
    scale: float = Field(
        default=1.0, description="Factor from the field's unit to the environment's."
    )


class RolloutConfig(ConfigModel):
    """A policy acting in a Gymnasium environment."""

    checkpoint: str = required_field("", "Run folder or checkpoint, of any scheme.")
    env: str = required_field("", "Id of a Gymnasium environment.")
    env_options: dict[str, Any] = Field(
        default={}, description="What the environment is made with, such as {cameras: 4}."
    )
    output: str | None = Field(
        default=None, description="Folder for the results; null: in the run, if that is local."
    )
    episodes: int = Field(default=50, ge=1, description="Episodes.")
    seed: int = Field(default=100_000, ge=0, description="Seed of the first episode's start.")
    execute_steps: int = Field(
        default=4, ge=1, description="Steps of a chunk that are carried out."
    )
    max_steps: int | None = Field(
        default=None, ge=1, description="Cut episodes; null: the environment's."
    )
    inference_steps: int = Field(default=8, ge=1, description="Evaluations per sampled chunk.")
    weights: Weights = Field(
        default="auto", description="Averaged or raw weights; auto: averaged if any."
    )
    instruction: str | None = Field(default=None, description="Tell the policy this instead.")
    instruction_key: str = Field(
        default="instruction", description="Observation or info key of the task."
    )
    success_key: str = Field(default="success", description="Info key that tells success.")
    cameras: dict[str, str] = Field(
        default={}, description="Camera of the policy to observation key; absent: the same name."
    )
    flipped_cameras: list[str] = Field(default=[], description="Cameras that render upside down.")
    fields: dict[str, FieldMap] = Field(
        default={}, description="Where each observed field comes from."
    )
    action: list[ActionMap] = Field(default=[], description="Parts of the action vector, in order.")
    contact_sheet_episodes: int = Field(default=8, ge=0, description="Episodes in the picture.")
