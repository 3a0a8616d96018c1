"""Config keys of every data kind: order of samples, loader workers, cache."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from vlatool.config.base import ConfigModel, derived_field, nullable_field


class CacheConfig(ConfigModel):
    """Local cache of remote shards."""

    ignored: ClassVar[Mapping[str, str]] = {"cache_verbose": "-v shows the log"}

    enabled: bool | None = Field(
        default=None,
        description="Download whole shards and cache them; null: if the data of the run fit in "
        "cache_size_gb (default then: 4 GB for the data of one run, 16 GB for the whole cache).",
    )
    cache_dir: str | None = Field(
        default=None, description="Cache folder; null: vlatool in the user's cache folder."
    )
    cache_size_gb: float | None = Field(
        default=None, gt=0, description="Largest size of the cache in gigabytes; null: no limit."
    )


class LoadingConfig(ConfigModel):
    """Training data of any kind; the section of each data kind adds its own keys."""

    # These keys change neither a sample nor its position: a run may resume with other values.
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {
            "num_workers",
            "prefetch_factor",
            "dataset_cache",
            "max_dropped_share",
            "allow_multiple_epochs",
            "seed",
        }
    )

    ignored: ClassVar[Mapping[str, str]] = {"shuffle_initial": "nothing is buffered"}

    # Key with the data sets that `dataset_weighting` is for.
    weighted_key: ClassVar[str] = ""

    type: str = Field(default="", description="Data kind.")
    dataset_weighting: list[float] = Field(
        default=[], description="Weight of each data set in the mixture; empty: its size."
    )
    allow_multiple_epochs: bool = Field(
        default=False, description="Start another epoch after all samples are read."
    )
    shuffle: bool = Field(default=True, description="Shuffle shards and samples.")
    shuffle_buffer_size: int = Field(
        default=500, ge=0, description="Number of consecutive samples of a lane to shuffle."
    )
    lanes: int = Field(
        default=64, ge=1, description="Number of interleaved streams (lanes); a power of two."
    )
    num_workers: int | None = Field(
        default=None,
        ge=0,
        description="Loader workers per device; null: number of CPUs over number of devices.",
    )
    prefetch_factor: int = nullable_field(
        4, "Micro-batches that each loader worker loads in advance.", ge=1
    )
    seed: int | None = derived_field("hparams.seed", "Seed of the order of samples.")
    dataset_cache: CacheConfig = Field(default=CacheConfig(), description="Cache of remote data.")
    max_dropped_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Largest share of dropped samples; a run with more ends with an error.",
    )

    @field_validator("lanes")
    @classmethod
    def _check_lanes(cls, lanes: int) -> int:
        if lanes & (lanes - 1):
            raise ValueError(f"{lanes} is not a power of two")
        return lanes

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        key, weights = self.weighted_key, len(self.dataset_weighting)
        if key and weights and weights != (count := len(getattr(self, key))):
            raise ValueError(f"dataset_weighting has {weights} entries, {key} has {count}")
        return self
