"""Options of encoding and decoding; light, no torch."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import model_validator

from vlatool.config.base import Ignored, Names, execution_field, option, required_field
from vlatool.datasets.codes.layout import CodesLayout
from vlatool.jobs.command import JOB_KEYS, JobConfig
from vlatool.models.base import Precision

_DEVICE = ("batch_size", "num_workers")


class EncodeConfig(JobConfig):
    """Options of `vlatool encode`."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("output", "layout", "check_every", *JOB_KEYS, "skip_existing"),
        "Device": ("precision", *_DEVICE, "nproc"),
    }
    NAMES: ClassVar[Names] = {
        "a_dir": "data",
        "ckpt_dir": "tokenizer",
        "skip_existing": Ignored(
            "episodes whose codes are complete are always kept; --overwrite encodes them again",
            is_switch=True,
        ),
    }

    data: str = required_field(
        "", "Folder of windows or images, image shards, or raw episodes.", affects_output=False
    )
    tokenizer: str = required_field(
        "", "Run, checkpoint or published folder of a visual tokenizer.", affects_output=False
    )
    output: str | None = option(
        None, "Folder for the codes; null: TiToken/ or tokens/ next to the images."
    )
    layout: CodesLayout = option(
        "json", "json: one file per image, as published; packed: one file per episode."
    )
    format: str | None = option(
        None, "Format of the raw episodes; null: detect it.", affects_output=False
    )
    exclude: str | None = option(None, "Numbers of episodes to exclude, such as 0:4,7.")
    precision: Precision = option(
        "fp32",
        "Precision of the encoder; with bf16, the command also measures how many codes are the "
        "same in fp32.",
    )
    batch_size: int = option(
        64, "Number of images per batch on a device.", ge=1, affects_output=False
    )
    num_workers: int = option(
        8,
        "Largest number of processes that read and decode; at most one per CPU.",
        ge=0,
        affects_output=False,
    )
    check_every: int = option(
        500, "Save every N-th image of an episode, beside its reconstruction; 0: none.", ge=0
    )
    no_amp: bool | None = option(None, "Same as --precision fp32.", affects_output=False)
    nproc: int | None = execution_field(
        None, "Number of processes on this machine, one per GPU if any; null: 1."
    )

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.no_amp and self.precision != "fp32":
            raise ValueError(f"no_amp and precision: {self.precision} contradict each other")
        return self


class DecodeConfig(JobConfig):
    """Options of `vlatool decode`."""

    NAMES: ClassVar[Names] = {
        "ckpt_dir": "tokenizer",
    }

    codes: str = required_field("", "Folder of codes, or one of its files.", affects_output=False)
    tokenizer: str = required_field(
        "", "Run, checkpoint or published folder of the tokenizer.", affects_output=False
    )
    output: str = required_field("", "Folder for the images.")
    batch_size: int = option(32, "Number of images per batch on a device.", ge=1)
