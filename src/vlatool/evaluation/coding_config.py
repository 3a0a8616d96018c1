"""What encoding and decoding are asked to do; light, no torch."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.artifacts.codes import CodesLayout
from vlatool.config.base import ConfigModel, required_field
from vlatool.jobs.command import JOB_KEYS, DryRun, MaxFailures, OnError, Overwrite

Precision = Literal["fp32", "bf16"]

_DEVICE = ("batch_size", "num_workers")


class EncodeConfig(ConfigModel):
    """What `vlatool encode` does."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("output", "layout", "check_every", *JOB_KEYS, "skip_existing"),
        "Device": ("precision", *_DEVICE),
    }
    aliases: ClassVar[Mapping[str, str]] = {"a_dir": "data", "ckpt_dir": "tokenizer"}
    ignored: ClassVar[Mapping[str, str]] = {
        "skip_existing": "episodes whose codes are whole are always kept; --overwrite makes them "
        "anew",
        "no_amp": "the encoder computes in fp32 unless --precision bf16 is given",
    }
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"data", "tokenizer", "output", "format", *_DEVICE, *JOB_KEYS, *ignored}
    )

    data: str = required_field("", "Folder of windows or pictures, image shards, or recordings.")
    tokenizer: str = required_field("", "Run, checkpoint or published folder of a tokenizer.")
    output: str | None = Field(
        default=None,
        description="Folder for the codes; null for TiToken/ or tokens/ beside the pictures.",
    )
    layout: CodesLayout = Field(
        default="json", description="json: a file per picture, as published; packed: per episode."
    )
    format: str | None = Field(
        default=None, description="Format of the recordings; null for the one that fits."
    )
    precision: Precision = Field(
        default="fp32",
        description="Of the encoder; with bf16 the share of codes that stay the same is measured.",
    )
    batch_size: int = Field(default=64, ge=1, description="Most pictures on a device at once.")
    num_workers: int = Field(
        default=8, ge=0, description="Most processes that read and decode, one per processor."
    )
    check_every: int = Field(
        default=500,
        ge=0,
        description="Draw one of so many pictures of an episode again, beside itself; 0 for none.",
    )
    on_error: OnError = "skip"
    max_failures: MaxFailures = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    skip_existing: bool | None = Field(default=None, description="Does nothing.")
    no_amp: bool | None = Field(default=None, description="Does nothing.")

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.no_amp and self.precision != "fp32":
            raise ValueError(f"no_amp and precision: {self.precision} contradict each other")
        return self


class DecodeConfig(ConfigModel):
    """What `vlatool decode` does."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"Output": ("output", *JOB_KEYS)}
    aliases: ClassVar[Mapping[str, str]] = {"ckpt_dir": "tokenizer"}
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"codes", "tokenizer", "output", *JOB_KEYS}
    )

    codes: str = required_field("", "Folder of codes, or one of its files.")
    tokenizer: str = required_field("", "Run, checkpoint or published folder of the tokenizer.")
    output: str = required_field("", "Folder for the pictures.")
    batch_size: int = Field(default=32, ge=1, description="Most pictures on a device at once.")
    on_error: OnError = "skip"
    max_failures: MaxFailures = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
