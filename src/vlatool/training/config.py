"""The configuration of a training run; key names are the published ones (lbm-training 1.11)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, create_model, model_validator

from vlatool.config.base import ConfigModel, derivation_rule, derived_field, needed_field
from vlatool.config.scalars import parse_plain
from vlatool.errors import UsageError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.facts import DatasetFacts, derive_data, read_facts
from vlatool.plugins import MODELS


class HParams(ConfigModel):
    """Optimisation."""

    precision: Literal["amp_bfloat16", "amp_bf16", "float32", "fp32"] = Field(
        default="amp_bfloat16", description="bfloat16 autocast over float32 weights, or float32."
    )
    global_batch_size: int = Field(default=512, ge=1, description="Samples per optimizer step.")
    per_gpu_batch_size: int = Field(
        default=8, ge=1, description="Samples per device and micro-batch."
    )
    seed: int = Field(default=42, ge=0, description="Seed of weights, data order and noise.")
    lr: float = Field(default=1e-4, ge=0, description="Peak learning rate.")
    lr_scheduler: Literal["cosine", "const", "warmup_constant_decay"] = Field(
        default="cosine", description="How the rate falls after warm-up."
    )
    warmup: float = Field(
        default=0.05, ge=0, description="Warm-up in steps, or below 1 as a share of all steps."
    )
    decay: float = Field(
        default=0.3, ge=0, description="Decay of warmup_constant_decay, in steps or as a share."
    )
    lr_cooldown_end: float = Field(default=0.0, ge=0, description="Last learning rate.")
    force_min_lr: float = Field(default=0.0, ge=0, description="Floor of the cosine.")
    optimizer: Literal["adamw"] = Field(default="adamw", description="Optimizer.")
    wd: float = Field(default=0.01, ge=0, description="Weight decay of matrices.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="First momentum.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Second momentum.")
    eps: float = Field(default=1e-8, gt=0, description="Epsilon of AdamW.")
    grad_clip_norm: float | None = Field(default=None, gt=0, description="Largest gradient norm.")

    @model_validator(mode="before")
    @classmethod
    def _published_numbers(cls, data: Any) -> Any:
        """`warmup: "0.0"`: the published files write these two as text."""
        if not isinstance(data, dict):
            return data
        quoted = {key: data[key] for key in ("warmup", "decay") if isinstance(data.get(key), str)}
        return {**data, **{key: parse_plain(text) for key, text in quoted.items()}}

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        if self.lr_cooldown_end > self.lr:
            raise ValueError(f"lr_cooldown_end {self.lr_cooldown_end} is above lr {self.lr}")
        return self


class EmaConfig(ConfigModel):
    """Exponential moving average of the weights."""

    enabled: bool = Field(default=False, description="Keep an average.")
    type: Literal["ema", "vanilla"] = Field(
        default="ema", description="A decay that grows with the steps, or a fixed one."
    )
    alpha: float = Field(default=0.999, ge=0, lt=1, description="Decay of the vanilla type.")
    update_after_step: int = Field(default=0, ge=0, description="Steps before averaging starts.")
    inv_gamma: float = Field(default=1.0, gt=0, description="Time scale of the growing decay.")
    power: float = Field(default=0.75, gt=0, description="How fast the decay grows.")
    min_value: float = Field(default=0.0, ge=0, le=1, description="Smallest decay.")
    max_value: float = Field(default=0.9999, ge=0, le=1, description="Largest decay.")


class DistributedConfig(ConfigModel):
    """Processes and devices."""

    world_size: int | None = derived_field("processes that are started", "Processes of the run.")
    dist_backend: Literal["auto", "nccl", "gloo"] = Field(
        default="auto", description="How processes talk; auto is nccl with GPUs, else gloo."
    )


class TrainConfig(ConfigModel):
    """A whole training run."""

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("total_train_samples", "num_epochs", "total_train_steps"),
    )
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"name", "save_path", "log_every_n_steps", "overwrite", "dry_run"}
    )

    name: str | None = derived_field("time, model type and rate", "Name of the run's folder.")
    save_path: str = Field(default="runs", description="Folder that holds run folders.")
    total_train_samples: int | None = Field(default=None, ge=1, description="Budget in samples.")
    num_epochs: int | None = Field(
        default=None, ge=1, description="Budget in passes over the data."
    )
    total_train_steps: int | None = Field(
        default=None, ge=1, description="Budget in optimizer steps."
    )
    num_checkpoints: int = Field(
        default=5, ge=1, description="Checkpoints, evenly spread over the run."
    )
    save_every_n_steps: int | None = Field(
        default=None, ge=1, description="A checkpoint every so many steps instead."
    )
    max_checkpoint_limit: int | None = Field(
        default=None, ge=1, description="Keep the latest so many checkpoints."
    )
    log_every_n_steps: int = Field(default=20, ge=1, description="Steps between lines of metrics.")
    overwrite: bool = Field(default=False, description="Replace a run made with other options.")
    dry_run: bool = Field(default=False, description="Say what would be done and write nothing.")
    data: RoboticsDataConfig = Field(
        default=RoboticsDataConfig(), description="What is learned from."
    )
    model: SerializeAsAny[ConfigModel] = needed_field(ConfigModel(), "What learns.")
    hparams: HParams = Field(default=HParams(), description="Optimisation.")
    distributed: DistributedConfig = Field(default=DistributedConfig(), description="Processes.")
    ema: EmaConfig = Field(default=EmaConfig(), description="Average of the weights.")

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        h = self.hparams
        if h.global_batch_size % h.per_gpu_batch_size:
            raise ValueError(
                f"hparams.global_batch_size {h.global_batch_size} is no multiple of "
                f"hparams.per_gpu_batch_size {h.per_gpu_batch_size}"
            )
        return self

    @classmethod
    def specialise(cls, tree: Mapping[str, Any]) -> type[Self]:
        """The class whose `model` section is the model type's."""
        model = tree.get("model")
        name = model.get("type") if isinstance(model, Mapping) else None
        if not name:
            return cls
        try:
            section = MODELS.get(str(name)).Config
        except UsageError as error:
            error.details["key"] = "model.type"
            raise
        return create_model(
            cls.__name__, __base__=cls, model=(section, Field(description="What learns."))
        )

    def derive_from_data(self) -> tuple["TrainConfig", dict[str, str]]:
        """The config with what the data decide, and dotted key to rule.

        Raises:
            DataError: The data are missing, broken, or lack something that is configured.
        """
        return self.derive(read_facts(self.data))

    def derive(self, facts: DatasetFacts) -> tuple["TrainConfig", dict[str, str]]:
        """As `derive_from_data`, from facts that were read already."""
        data = derive_data(self.data, facts)
        rules = {
            f"data.{name}": derivation_rule(field)
            for name, field in RoboticsDataConfig.model_fields.items()
            if getattr(data, name) != getattr(self.data, name)
        }
        model_type = MODELS.get(getattr(self.model, "type", ""))()
        model, model_rules = model_type.derive(self.model, data, facts)
        rules |= {f"model.{key}": rule for key, rule in model_rules.items()}
        return self.model_copy(update={"data": data, "model": model}), rules
