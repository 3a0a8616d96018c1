"""Sections of the configuration of a training run: optimization, averages, processes.

Source: reference/training 1.7.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, derived_field
from vlatool.config.scalars import parse_plain


class HParams(ConfigModel):
    """Optimization."""

    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"per_gpu_batch_size", "grad_checkpointing", "torchcompile", "world_size", "loss_function"}
    )
    unsupported: ClassVar[Mapping[str, tuple[Sequence[Any], str]]] = {
        "precision": (
            ("amp_bfloat16", "amp_bf16", "float32", "fp32"),
            "float16 needs a loss scaler, and bfloat16 weights lose small updates",
        ),
        "loss_function": ((None, "mse"), "each model type defines its own loss; leave it out"),
        "z_loss_coefficient": ((0.0,), "it applies only to a cross entropy over a vocabulary"),
    }

    precision: Literal["amp_bfloat16", "amp_bf16", "float32", "fp32", "amp", "pure_bf16"] = Field(
        default="amp_bfloat16", description="bfloat16 autocast with float32 weights, or float32."
    )
    global_batch_size: int = Field(default=512, ge=1, description="Samples per optimizer step.")
    per_gpu_batch_size: int | None = Field(
        default=8,
        ge=1,
        description="Samples per device and micro-batch; null: global batch / world size.",
    )
    seed: int = Field(
        default=42, ge=0, lt=2**63, description="Seed of initial weights, data order and noise."
    )
    lr: float = Field(default=1e-4, ge=0, description="Peak learning rate.")
    lr_scheduler: Literal["cosine", "const", "warmup_constant_decay"] = Field(
        default="cosine", description="Learning rate schedule after warm-up."
    )
    warmup: float = Field(
        default=0.05, ge=0, description="Warm-up in steps; below 1: fraction of all steps."
    )
    decay: float = Field(
        default=0.3,
        ge=0,
        description="Length in steps of the final decay phase of warmup_constant_decay; below 1: "
        "fraction of all steps.",
    )
    lr_cooldown_end: float = Field(default=0.0, ge=0, description="Final learning rate.")
    force_min_lr: float = Field(
        default=0.0, ge=0, description="Minimum learning rate of the cosine schedule."
    )
    optimizer: Literal["adamw"] = Field(default="adamw", description="Optimizer.")
    wd: float = Field(
        default=0.01, ge=0, description="Weight decay of linear and convolution weights."
    )
    decay_by_name: bool = Field(
        default=False,
        description="Weight decay, as published, of all weights but biases and those with norm in "
        "their name. TiTok and VQGAN always have the published rule of their own.",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="First beta of AdamW.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Second beta of AdamW.")
    eps: float = Field(default=1e-8, gt=0, description="Epsilon of AdamW.")
    loss_function: Literal["cross_entropy", "mse"] | None = Field(
        default=None, description="Loss; null: the loss of the model type."
    )
    z_loss_coefficient: float = Field(
        default=0.0, ge=0, description="Weight of the z-loss of a cross entropy."
    )
    grad_clip_norm: float | None = Field(
        default=None, gt=0, description="Maximum gradient norm; null: no clipping."
    )
    grad_checkpointing: bool = Field(
        default=False, description="Recompute blocks in the backward pass to save memory."
    )
    torchcompile: bool = Field(default=False, description="Compile the blocks of the model.")
    world_size: int | None = derived_field("distributed.world_size", "Number of processes.")

    @model_validator(mode="before")
    @classmethod
    def _published_numbers(cls, data: Any) -> Any:
        """Parses `warmup` and `decay`, which published files write as text: `warmup: "0.0"`."""
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

    enabled: bool = Field(default=False, description="Average the weights.")
    type: Literal["ema", "vanilla", "rising"] = Field(
        default="ema",
        description="Decay: ema grows with the steps by inv_gamma and power, vanilla is fixed at "
        "alpha, rising is (1 + n) / (10 + n) with n = number of updates.",
    )
    alpha: float = Field(default=0.999, ge=0, lt=1, description="Decay of type vanilla.")
    update_after_step: int = Field(default=0, ge=0, description="Steps before averaging starts.")
    inv_gamma: float = Field(default=1.0, gt=0, description="Time scale of type ema.")
    power: float = Field(default=0.75, gt=0, description="Exponent of type ema.")
    min_value: float = Field(default=0.0, ge=0, le=1, description="Minimum decay.")
    max_value: float = Field(default=0.9999, ge=0, le=1, description="Maximum decay.")

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min_value > self.max_value:
            raise ValueError(f"min_value {self.min_value} is above max_value {self.max_value}")
        return self


class DistributedConfig(ConfigModel):
    """Processes and devices."""

    ignored: ClassVar[Mapping[str, str]] = {
        "ddp_static_graph": "not needed: every parameter is used in every step"
    }
    unsupported: ClassVar[Mapping[str, tuple[Sequence[Any], str]]] = {
        "dist_url": (
            ("env://",),
            "torchrun, accelerate launch and --nproc set the rendezvous address",
        ),
        "fsdp_cpu_offload": ((False,), "weights stay on their devices; shard over more devices"),
    }

    world_size: int | None = derived_field("number of started processes", "Number of processes.")
    dist_backend: Literal["auto", "nccl", "gloo"] = Field(
        default="auto", description="Communication backend; auto: nccl with GPUs, else gloo."
    )
    fsdp: bool = Field(
        default=False, description="Shard weights and optimizer states over processes."
    )
    fsdp_reshard_after_forward: bool = Field(
        default=False,
        description="Free gathered weights also after the forward pass; they are gathered again "
        "for the backward pass.",
    )
    timeout: float = Field(
        default=7200.0,
        gt=0,
        le=2_592_000,
        description="Seconds that a process waits for another one, which may hang, before the run "
        "ends; longer than rank 0 needs to write a checkpoint.",
    )
    device_tflops: float | None = Field(
        default=None,
        gt=0,
        description="Peak of a device in TFLOP/s, for the metric mfu; null: that of its name.",
    )
    fsdp_cpu_offload: bool = Field(default=False, description="Keep sharded weights on the host.")
    dist_url: str = Field(default="env://", description="Rendezvous address of the processes.")
