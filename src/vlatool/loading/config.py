"""Keys that every kind of training data has: order, loader processes, cache."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, field_validator

from vlatool.config.base import ConfigModel, derived_field, nullable_field


class CacheConfig(ConfigModel):
    """Blocks of remote data that are kept on this machine."""

    ignored: ClassVar[Mapping[str, str]] = {"cache_verbose": "-v shows the log"}

    enabled: bool | None = Field(
        default=None,
        description="Fetch whole blocks and keep them here; null: where all of the data fit in "
        "cache_size_gb, which is then 4 for one run and 16 for all unless it is set.",
    )
    cache_dir: str | None = Field(
        default=None, description="Folder; null: vlatool in the user's cache folder."
    )
    cache_size_gb: float | None = Field(
        default=None, gt=0, description="Most gigabytes that are kept; null: no limit."
    )
    cache_verbose: bool | None = Field(default=None, description="Has no effect.")


class LoadingConfig(ConfigModel):
    """Training data of any kind; the kind's own section adds what it is and where."""

    # They decide neither a sample nor its position: a run may go on with others.
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {
            "num_workers",
            "prefetch_factor",
            "dataset_cache",
            "max_dropped_share",
            "allow_multiple_epochs",
            "shuffle_initial",
            "seed",
        }
    )

    ignored: ClassVar[Mapping[str, str]] = {"shuffle_initial": "nothing is buffered"}

    type: str = Field(default="", description="Kind of data.")
    dataset_weighting: list[float] = Field(
        default=[], description="Share of each data set in the samples; empty: by size."
    )
    allow_multiple_epochs: bool = Field(default=False, description="Start again when all is read.")
    shuffle: bool = Field(default=True, description="Shuffle blocks and samples.")
    shuffle_buffer_size: int = Field(
        default=500, ge=0, description="How far a sample may travel in its lane when shuffled."
    )
    shuffle_initial: int = Field(
        default=100, ge=0, description="Published key without effect: nothing is buffered."
    )
    lanes: int = Field(
        default=64, ge=1, description="Places of the data that are read at once; a power of two."
    )
    num_workers: int | None = Field(
        default=None,
        ge=0,
        description="Loader processes per device; null: processors over devices.",
    )
    prefetch_factor: int = nullable_field(4, "Micro-batches ready per loader process.", ge=1)
    seed: int | None = derived_field("hparams.seed", "Seed of the order of samples.")
    dataset_cache: CacheConfig = Field(default=CacheConfig(), description="Cache of remote data.")
    max_dropped_share: float = Field(
        default=0.01, ge=0, le=1, description="Share of broken samples above which a run ends."
    )

    @field_validator("lanes")
    @classmethod
    def _check_lanes(cls, lanes: int) -> int:
        if lanes & (lanes - 1):
            raise ValueError(f"{lanes} is no power of two")
        return lanes
