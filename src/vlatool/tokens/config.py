"""Options of encoding and decoding; light, no torch."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from vlatool.artifacts.codes.format import CodesLayout
from vlatool.config.base import Switch, required_field
from vlatool.jobs.command import JOB_KEYS, JobConfig
from vlatool.models.base import Precision

_DEVICE = ("batch_size", "num_workers")


class EncodeConfig(JobConfig):
    """Options of `vlatool encode`."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("output", "layout", "check_every", *JOB_KEYS, "skip_existing"),
        "Device": ("precision", *_DEVICE),
    }
    aliases: ClassVar[Mapping[str, str]] = {"a_dir": "data", "ckpt_dir": "tokenizer"}
    ignored: ClassVar[Mapping[str, str]] = {
        "skip_existing": Switch(
            "episodes whose codes are complete are always kept; --overwrite encodes them again"
        ),
    }
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"data", "tokenizer", "format", "no_amp", *_DEVICE, *JobConfig.no_effect_on_output}
    )

    data: str = required_field("", "Folder of windows or images, image shards, or raw episodes.")
    tokenizer: str = required_field("", "Run, checkpoint or published folder of a tokenizer.")
    output: str | None = Field(
        default=None,
        description="Folder for the codes; null: TiToken/ or tokens/ next to the images.",
    )
    layout: CodesLayout = Field(
        default="json", description="json: a file per image, as published; packed: per episode."
    )
    format: str | None = Field(
        default=None, description="Format of the raw episodes; null: detect it."
    )
    exclude: str | None = Field(
        default=None, description="Numbers of episodes to exclude, such as 0:4,7."
    )
    precision: Precision = Field(
        default="fp32",
        description="Precision of the encoder; with bf16 the share of codes equal to those of "
        "fp32 is measured.",
    )
    batch_size: int = Field(default=64, ge=1, description="Most images on a device at once.")
    num_workers: int = Field(
        default=8,
        ge=0,
        description="Maximum number of processes that read and decode; at most one per CPU.",
    )
    check_every: int = Field(
        default=500,
        ge=0,
        description="Save the reconstruction of every N-th image of an episode next to the "
        "original; 0: none.",
    )
    no_amp: bool | None = Field(default=None, description="Same as --precision fp32.")

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.no_amp and self.precision != "fp32":
            raise ValueError(f"no_amp and precision: {self.precision} contradict each other")
        return self


class DecodeConfig(JobConfig):
    """Options of `vlatool decode`."""

    aliases: ClassVar[Mapping[str, str]] = {"ckpt_dir": "tokenizer"}
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"codes", "tokenizer", *JobConfig.no_effect_on_output}
    )

    codes: str = required_field("", "Folder of codes, or one of its files.")
    tokenizer: str = required_field("", "Run, checkpoint or published folder of the tokenizer.")
    output: str = required_field("", "Folder for the images.")
    batch_size: int = Field(default=32, ge=1, description="Most images on a device at once.")
