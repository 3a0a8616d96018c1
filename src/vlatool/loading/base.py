"""What a kind of training data promises; the loader and the trainer know nothing else of data.

A kind says which blocks its samples stand in, reads samples by their place, and keeps beside a run
what inference needs besides weights. Which sample comes when is `loading.order`'s, for every kind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from vlatool.events import NULL, Reporter

if TYPE_CHECKING:
    import numpy as np

    from vlatool.episode import UInt8Array
    from vlatool.loading.config import LoadingConfig

Batch = dict[str, Any]
# Samples to tensors, in loader processes; picklable.
Batcher = Callable[[Sequence[Any]], Batch]
# Memory uint8 [size] that holds anything; for the micro-batch that is being made.
Allocate = Callable[[int], "UInt8Array"]


@dataclass(frozen=True)
class ShardInfo:
    """A shard or a file whose samples can be read by ranges.

    Attributes:
        location: Where it is, of any scheme.
        size: Samples in it.
    """

    location: Path
    size: int


@dataclass(frozen=True)
class DataSet:
    """The blocks of one data set of a run.

    Attributes:
        name: What messages call it.
        blocks: In stored order.
    """

    name: str
    shards: tuple[ShardInfo, ...]

    @property
    def size(self) -> int:
        """Samples in all blocks."""
        return sum(block.size for block in self.shards)


class DatasetInfo(Protocol):
    """What a kind read about its data before the first sample; a kind's own type says more."""

    @property
    def datasets(self) -> Sequence[DataSet]:
        """The data sets of the run, in the order of the config."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """What decides samples and their order, by name: a run goes on only where all are equal.

        Holds no location: data may be moved.
        """
        ...


class SampleRef(NamedTuple):
    """Where a sample stands: data set, block of it, sample of that; all from 0."""

    dataset: int
    shard: int
    sample: int


@dataclass(frozen=True)
class DroppedSample:
    """A sample that cannot be used because of what it holds.

    Attributes:
        reason: One of the kind's `drop_reasons`.
        sample: Its name.
        message: What is wrong.
    """

    reason: str
    sample: str
    message: str


class SampleReader(Protocol):
    """Reads samples; picklable, each loader process has a copy. Opens nothing before `read`."""

    def read(self, refs: Sequence[SampleRef], rngs: Sequence["np.random.Generator"]) -> list[Any]:
        """The samples at some places, in order; a `Dropped` in place of a broken one.

        Args:
            refs: Fetched together.
            rngs: The randomness of each sample: sentence, augmentation.

        Raises:
            StorageError: The storage failed for good.
            DataError: A block is missing, or is not what the manifest says.
        """
        ...


@runtime_checkable
class Prefetching(Protocol):
    """A sample reader that can fetch what is read soon while it decodes something else."""

    def prefetch(self, refs: Sequence[SampleRef]) -> None:
        """Tells of places that `read` is going to be given together."""
        ...


@runtime_checkable
class ReadsIntoBuffer(Protocol):
    """A sample reader that can put the large arrays of samples side by side."""

    def read_into(
        self, refs: Sequence[SampleRef], rngs: Sequence["np.random.Generator"], allocate: Allocate
    ) -> list[Any]:
        """As `SampleReader.read`; arrays may lie in a room, those of neighbours one after another.

        A batcher stacks them without a copy: `loading.lending.stack_rows`.
        """
        ...


@runtime_checkable
class Normalizes(Protocol):
    """What a kind prepares or keeps, where its samples have numbers that are scaled."""

    def normalized(self, sample: Any) -> Any:
        """A sample with its numbers scaled as a policy sees them."""
        ...


class DataKind(Protocol):
    """One kind of training data: config, facts, reader."""

    name: ClassVar[str]
    Config: ClassVar[type["LoadingConfig"]]
    # The first is the list key of its section that `--data DIR` sets; the kind looks inside when it
    # reads facts. The others say more of what that key held before, and are emptied.
    folders_keys: ClassVar[tuple[str, ...]]
    drop_reasons: ClassVar[tuple[str, ...]]

    def load_info(self, config: Any, reporter: Reporter = NULL) -> DatasetInfo:
        """Reads manifests and the like, but no sample; reports progress if that takes long.

        Raises:
            DataError: The data are missing or broken, or do not fit together.
        """
        ...

    def validation(self, config: Any) -> Any | None:
        """The derived section for held-out data, not augmented; None where none is configured."""
        ...

    def derive(self, config: Any, info: Any) -> tuple[Any, dict[str, str]]:
        """The section with what the data decide, and key to rule for what was filled in."""
        ...

    def reader(self, config: Any, info: Any) -> SampleReader:
        """Reads the samples of `facts.datasets`."""
        ...

    def make_assets(self, config: Any, info: Any) -> Any:
        """What batches, losses and inference need of the training data: scales and the like."""
        ...

    def save_assets(self, config: Any, info: Any, folder: Path) -> None:
        """Writes it beside a run, once, when the run starts."""
        ...

    def load_assets(self, config: Any, folder: Path) -> Any:
        """What `keep` wrote: the same as `prepared` gave."""
        ...


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes at once.

    Attributes:
        batch: As the model type's batcher made it.
        samples: Names of the samples, in the order of the batch's rows; empty for a fake batch.
        positions: Their positions in the run.
        dropped: Counts by the kind's `drop_reasons`, in their order.
        first_drop: What is wrong with the first one that was dropped; empty where none was.
        is_dummy: Nothing of it was left: it keeps the rank in step and counts nothing.
    """

    batch: Batch
    samples: tuple[str, ...]
    positions: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    first_drop: str = ""
    is_dummy: bool = False

    def pin_memory(self) -> "MicroBatch":
        """The same in page-locked memory; the DataLoader asks for it where there is a GPU."""
        return replace(self, batch=_pinned(self.batch))


def _pinned(value: Any) -> Any:
    if hasattr(value, "pin_memory"):
        return value.pin_memory()
    if isinstance(value, dict):
        return {name: _pinned(one) for name, one in value.items()}
    return [_pinned(one) for one in value] if isinstance(value, list) else value
