"""Protocols of training data: data kinds, their keys, sample readers, batches.

A `DataKind` lists the shards of its data sets, reads samples by reference, and saves with a run the
assets that inference needs besides weights. The loader and the trainer know nothing else about the
data. The order of samples is the same for all kinds: see `loading.order`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator, model_validator

from vlatool.checkpoints.contract import Contract
from vlatool.config.base import ConfigModel, Ignored, Names, derived_field, nullable_field, option
from vlatool.datasets.lbm.layout import ShardInfo, ShardTable
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.plugins import DATA_KINDS, did_you_mean, load_data_kind

if TYPE_CHECKING:
    from vlatool.episode import Array, Observation, ObservationSpec, UInt8Array


# Episodes of data that hold some out for evaluation: `val` are those, `train` the others.
Split = Literal["train", "val", "all"]


class CacheConfig(ConfigModel):
    """Local cache of remote shards."""

    NAMES: ClassVar[Names] = {
        "cache_verbose": Ignored("-v shows the log"),
    }

    enabled: bool | None = option(
        None,
        "Download whole shards and cache them; null does so if the data of the run fit in "
        "cache_size_gb (then 4 GB for a run and 16 GB in all, unless you set it).",
    )
    cache_dir: str | None = option(
        None, "Cache folder; null uses vlatool in your cache folder (XDG_CACHE_HOME)."
    )
    cache_size_gb: float | None = option(
        None, "Largest size of the cache in gigabytes; null sets no limit.", gt=0
    )


class LoadingConfig(ConfigModel):
    """Options of training data of any kind; each data kind adds its own."""

    # A key without effect on the output changes neither a sample nor its position, or is the
    # location of data whose content the fingerprint of a run covers: a run may resume with another.

    NAMES: ClassVar[Names] = {
        "shuffle_initial": Ignored("nothing is buffered"),
    }

    # Key with the data sets, and the keys with a value for each of them or none.
    weighted_key: ClassVar[str] = ""
    keys_by_set: ClassVar[tuple[str, ...]] = ("dataset_weighting",)

    type: str = option("", "Kind of the training data.")
    dataset_weighting: list[float] = option(
        [], "Weight of each data set in the mixture; empty weights by size."
    )
    allow_multiple_epochs: bool = option(
        False, "Start another epoch once all samples are read.", affects_output=False
    )
    shuffle: bool = option(True, "Shuffle shards and samples.")
    shuffle_buffer_size: int = option(
        500, "Number of consecutive samples of a lane that are shuffled together.", ge=0
    )
    lanes: int = option(
        64, "Number of places in the data that are read in turn (lanes); a power of two.", ge=1
    )
    num_workers: int | None = option(
        None,
        "Loader processes per device; null divides the CPUs among the devices.",
        ge=0,
        affects_output=False,
    )
    prefetch_factor: int = nullable_field(
        4, "Micro-batches that each loader process reads ahead.", ge=1, affects_output=False
    )
    seed: int | None = derived_field(
        "hparams.seed", "Seed of the order of samples.", affects_output=False
    )
    dataset_cache: CacheConfig = option(
        CacheConfig(), "Cache of remote data.", affects_output=False
    )
    max_dropped_share: float = option(
        0.01,
        "Share of broken samples that a run may drop; with more, it ends with an error.",
        ge=0,
        le=1,
        affects_output=False,
    )

    @property
    def is_held_out(self) -> bool:
        """True for validation data that are held-out episodes of the training data."""
        return False

    @field_validator("lanes")
    @classmethod
    def _check_lanes(cls, lanes: int) -> int:
        if lanes & (lanes - 1):
            raise ValueError(f"{lanes} is not a power of two")
        return lanes

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        count = len(getattr(self, self.weighted_key, ()))
        for key in self.keys_by_set:
            length = len(getattr(self, key))
            if self.weighted_key and length and length != count:
                raise ValueError(f"{key} has {length} entries, {self.weighted_key} has {count}")
        return self


Batch = dict[str, Any]
# Converts samples to tensors, in loader workers; picklable.
Batcher = Callable[[Sequence[Any]], Batch]
# Returns uninitialized memory uint8 [size] for the micro-batch that is being read.
Allocate = Callable[[int], "UInt8Array"]


@dataclass(frozen=True)
class DataSet:
    """The shards of one data set of a run."""

    name: str  # name in messages
    shards: Sequence[ShardInfo] | ShardTable  # in stored order

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Number of samples of each shard."""
        if isinstance(self.shards, ShardTable):
            return self.shards.sizes
        return np.array([shard.size for shard in self.shards], np.int64)

    @property
    def size(self) -> int:
        """Number of samples in all shards."""
        return int(self.sizes.sum())


class DatasetInfo(Protocol):
    """Metadata of all data sets of a run, read before the first sample.

    The type of a data kind adds its own attributes, such as statistics.
    """

    @property
    def datasets(self) -> Sequence[DataSet]:
        """The data sets of the run, in the order of the config."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Map from name to digest of everything that determines the samples and their order.

        A run resumes only if all values are equal. They contain no locations, so data can be moved.
        """
        ...


class SampleRef(NamedTuple):
    """Reference to a sample: data set, shard of that data set, sample of that shard; all from 0."""

    dataset: int
    shard: int
    sample: int


@dataclass(frozen=True)
class DroppedSample:
    """A sample with content that cannot be used."""

    reason: str  # one of the `drop_reasons` of the data kind
    sample: str
    message: str  # description of the problem


class SampleReader(Protocol):
    """Reader of the samples of a run.

    Readers are picklable, because each loader worker has a copy. They open no file before the first
    call of `read`.
    """

    def read(self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator]) -> list[Any]:
        """Returns one sample per reference, in order; a `DroppedSample` for an unusable one.

        Args:
            refs: Samples to read; they are fetched together.
            rngs: One generator per sample, for random choices such as augmentation.

        Raises:
            StorageError: The storage failed after all retries.
            DataError: A shard is missing or differs from its manifest.
        """
        ...

    def prefetch(self, refs: Sequence[SampleRef]) -> None:
        """Starts to download the samples of a later call `read(refs, ...)`."""

    def read_into(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator], allocate: Allocate
    ) -> list[Any]:
        """Same as `read`, with large arrays in memory that `allocate` returns.

        If the arrays of consecutive samples are adjacent, a batcher stacks them without a copy: see
        `loading.shared_memory.stack_rows`.
        """
        return self.read(refs, rngs)


@dataclass(frozen=True)
class ActionField:
    """Action field of recorded data, with its statistics over the training data."""

    names: Sequence[str]  # names of the C dimensions; numbers if they have none
    mean: "Array"  # mean of each dimension [C]
    std: "Array"  # standard deviation of each dimension [C]
    is_constant: "Array"  # bool [C], True for dimensions that never change


@dataclass(frozen=True)
class Target:
    """Recorded actions from the step of an observation on, T steps."""

    actions: Mapping[str, "Array"]  # map from action field to values [T, C]
    mask: "Array"  # bool [T], False for padded steps
    # map from action field to the action of the step before [C]; empty if it is unknown
    last: Mapping[str, "Array"]
    episode: str  # id of the episode
    frame: int  # frame of the observation in its episode


@dataclass(frozen=True)
class PairOptions:
    """Form of the pairs that a policy is evaluated on."""

    sees: "ObservationSpec"  # input of the policy
    horizon: int  # number of steps of a target, T
    seed: int = 0  # seed of the random choices per sample, such as the sentence of the instruction
    split: Split = "all"  # episodes of data that hold some out


@dataclass(frozen=True)
class RecordedFutures:
    """Recorded images of the F steps after an observation."""

    # map from camera to uint8 [F, H, W, 3]; of padded steps the last ones
    images: Mapping[str, "UInt8Array"]
    # map from camera to their codes, integers [F, K]; empty if they are not recorded
    codes: Mapping[str, "Array"]
    mask: "Array"  # bool [F], False for steps after the end of the episode


class RecordedPairs(Protocol):
    """Recorded observations, each with the actions that followed.

    Attributes:
        fields: Action fields of the targets.
        fps: Frames per second of the data.
        has_futures: True if `futures` returns the images that followed.
        contract: What the data are like, to compare with what training saw; None: unknown.
    """

    fields: Mapping[str, ActionField]
    fps: float
    has_futures: ClassVar[bool] = False
    contract: Contract | None = None

    def __len__(self) -> int:
        """Number of pairs, in the order of the episodes."""
        ...

    def read(self, indices: Sequence[int]) -> "list[tuple[Observation, Target]]":
        """Returns pairs, fetched together; the observations are preprocessed.

        Raises:
            DataError: A sample is broken.
        """
        ...

    def find(self, episode: str, frame: int) -> int | None:
        """Returns the index of a pair, without decoding an image; None: there is no look-up.

        Args:
            episode: Id of the episode, or its number in the data, from 0.
            frame: Frame of the observation.

        Raises:
            DataError: `data.unknown_field`.
        """
        return None

    def futures(self, index: int) -> RecordedFutures:
        """Returns the images that followed a pair.

        Raises:
            DataError: An image is missing or broken.
        """
        raise AssertionError("pairs with has_futures have futures")


class DataKind(Protocol):
    """A kind of training data: its config, metadata, reader and assets.

    Its methods get the section `data`, derived except in `load_info`, `derive` and
    `with_init_statistics`; `info`, the result of `load_info`; and the `folder` of the run.

    Attributes:
        name: Value of `data.type`.
        Config: Type of the section `data`.
        folders_keys: Keys of the section that locate the data. The first is a list, which
            `--data DIR` sets; the others depend on its previous value and are emptied then.
        drop_reasons: All values of `DroppedSample.reason`.
        has_statistics: True if `with_init_statistics` selects statistics.
        has_plain: True if `plain` returns dicts.
        normalizes: True if the assets have `normalized(sample)`, the sample as a policy gets it.
    """

    name: ClassVar[str]
    Config: ClassVar[type["LoadingConfig"]]
    folders_keys: ClassVar[tuple[str, ...]]
    drop_reasons: ClassVar[tuple[str, ...]]
    has_statistics: ClassVar[bool] = False
    has_plain: ClassVar[bool] = False
    normalizes: ClassVar[bool] = False

    def with_windows(self, config: Any, windows: Mapping[str, Any]) -> Any:
        """Returns the section with the windows that a model needs, as far as none are set."""
        return config

    def load_info(self, config: Any, reporter: Reporter = NULL) -> DatasetInfo:
        """Reads manifests and other metadata, but no sample.

        Args:
            reporter: Receives the progress if reading takes long.

        Raises:
            DataError: The data are missing, broken or inconsistent.
        """
        ...

    def validation(self, config: Any) -> Any | None:
        """Returns the section of validation data, without augmentation; None if there are none."""
        ...

    def derive(self, config: Any, info: Any) -> tuple[Any, dict[str, str]]:
        """Fills in the values that follow from the data.

        Returns:
            The derived section, and a mapping from each key that was filled in to the rule.
        """
        ...

    def reader(self, config: Any, info: Any) -> SampleReader:
        """Returns a reader of the samples of `info.datasets`."""
        ...

    def make_assets(self, config: Any, info: Any) -> Any:
        """Returns the assets: what batches, losses and inference need, such as normalization."""
        ...

    def save_assets(self, config: Any, info: Any, folder: Path) -> None:
        """Writes the assets to the folder of a run, once, when the run starts."""
        ...

    def load_assets(self, config: Any, folder: Path) -> Any:
        """Reads the assets that `save_assets` wrote; equal to the result of `make_assets`.

        Raises:
            DataError: They are missing or broken.
        """
        ...

    def with_init_statistics(
        self, config: Any, info: Any, folder: Path | None, reporter: Reporter = NULL
    ) -> Any:
        """Returns the info with the statistics that the section selects.

        Args:
            folder: Folder with the statistics of the initial weights; None if it is unknown.
            reporter: Receives a note on the selected statistics, and a warning if both differ much.

        Raises:
            DataError: The statistics of the weights are selected, and are missing, broken or of
                other fields.
        """
        return info

    def check_samples(self, config: Any, info: Any, reporter: Reporter = NULL) -> None:
        """Checks samples within seconds.

        Raises:
            DataError: A sample cannot be used.
        """
        del config, info, reporter

    def contents(self, config: Any, sample: Any) -> Mapping[str, Any]:
        """Arrays or texts of a sample by name: `images`, `actions`, `codes`, `instruction`.

        The run reports one that is the same in all samples that it looked at.
        """
        return {}

    def plain(self, config: Any, sample: Any, *, channels_first: bool = True) -> dict[str, Any]:
        """Returns a sample as a flat dict of tensors and texts.

        All samples of a section `data` have the same keys and shapes, so that the default collate
        function of torch stacks them.

        Args:
            sample: Sample of the reader, normalized or not.
            channels_first: Images are [..., 3, H, W]; otherwise [..., H, W, 3].
        """
        raise AssertionError("a data kind with has_plain has plain")

    def pairs(
        self, config: Any, assets: Any, location: str, options: PairOptions
    ) -> RecordedPairs | None:
        """Returns pairs of observation and target of a data set; None: the data have no actions.

        Args:
            assets: Assets of the run.
            location: Folder of the data, of any scheme.
            options: Form of the pairs.

        Raises:
            DataError: There are no data, or they lack a field, camera or step of the policy.
        """
        return None


@dataclass(frozen=True)
class MicroBatch:
    """The samples that one rank computes at once."""

    batch: Batch  # result of the batcher of the model type
    # names of the samples, one per row of the batch; empty for a dummy micro-batch
    samples: tuple[str, ...]
    positions: tuple[int, ...] = ()  # positions of these samples in the run
    # number of dropped samples for each of the `drop_reasons` of the data kind
    dropped: tuple[int, ...] = ()
    drops: tuple[DroppedSample, ...] = ()
    # True if no sample was usable. The rank computes the dummy batch to stay in step with the other
    # ranks; it counts nothing
    is_dummy: bool = False

    def pin_memory(self) -> "MicroBatch":
        """Returns a copy in page-locked memory; the DataLoader calls this if there is a GPU."""
        return replace(self, batch=_pinned(self.batch))


def _pinned(value: Any) -> Any:
    if hasattr(value, "pin_memory"):
        return value.pin_memory()
    if isinstance(value, dict):
        return {name: _pinned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_pinned(item) for item in value]
    return value


def data_kind(name: str | None, accepted: Sequence[str] = ()) -> DataKind:
    """Returns the data kind of a name, or the first accepted kind if there is no name.

    Args:
        name: Value of `data.type`.
        accepted: `kinds` of a model type, names or `module:Kind`; empty: all built-in kinds.
    """
    kinds: list[DataKind] = []
    for target in accepted or DATA_KINDS.names():
        kind: Any = load_data_kind(target) if ":" in target else DATA_KINDS.get(target)
        kinds.append(kind())
    for kind in kinds:
        if name in (None, "", kind.name):
            return kind
    names = [kind.name for kind in kinds]
    raise UsageError(
        f"data.type {name!r} is not one of the accepted data kinds: {', '.join(names)}",
        hint=did_you_mean(str(name), names),
        code="usage.unknown_name",
        details={"key": "data.type", "known": names},
    )
