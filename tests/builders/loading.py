"""Small shards and loaders over them."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.config.resolve import config_of
from vlatool.loading.base import DroppedSample, MicroBatch, SampleReader, SampleRef
from vlatool.loading.loader import BatchLoader, LoaderPlan, build_loader
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.loading.robotics.mixture import RoboticsInfo
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

SAMPLES = 12
PAST, FUTURE = 1, 2
FIELD = "robot__action__poses__left::panda__xyz"
OBSERVED = "robot__actual__poses__left::panda__xyz"


def names_and_instructions(samples: Sequence[DecodedSample]) -> dict[str, Any]:
    """A minimal batcher: keys and instructions."""
    return {
        "keys": [sample.key for sample in samples],
        "instructions": [sample.instruction for sample in samples],
    }


def dummy_batch() -> dict[str, Any]:
    return {"keys": [], "instructions": []}


def write_shards(raw: Path, output: Path, per_shard: int, **options: Any) -> Path:
    """Preprocesses a raw task; returns the folder of shards."""
    tree = {
        "format": "spartan",
        "sources": [str(raw)],
        "output": str(output),
        "past_lowdim_steps": PAST,
        "future_lowdim_steps": FUTURE,
        "max_padding_right": FUTURE,
        "samples_per_shard": per_shard,
        "workers": 1,
        **options,
    }
    preprocess(config_of(PreprocessConfig, tree))
    return output / "shards"


def opened(*folders: Path, **keys: Any) -> tuple[RoboticsDataConfig, RoboticsInfo]:
    """Derived config and metadata of data sets."""
    config = RoboticsDataConfig(
        dataset_manifest=[str(folder) for folder in folders],
        **{"action_fields": [FIELD], **keys},
    )
    info = RoboticsKind().load_info(config)
    return RoboticsKind().derive(config, info)[0], info


def loader_of(
    data: tuple[RoboticsDataConfig, RoboticsInfo], plan: LoaderPlan, seed: int = 1
) -> BatchLoader:
    """Loader of micro-batches with keys and instructions."""
    config, info = data
    order = SampleOrder(info.datasets, OrderOptions.of(config, seed))
    reader = RoboticsKind().reader(config, info)
    return build_loader(plan, order, reader, names_and_instructions, dummy_batch)


def batches(
    data: tuple[RoboticsDataConfig, RoboticsInfo], plan: LoaderPlan, count: int, seed: int = 1
) -> list[MicroBatch]:
    """The first `count` micro-batches."""
    with loader_of(data, plan, seed) as loader:
        return list(itertools.islice(loader, count))


def names(micro_batches: Sequence[MicroBatch]) -> list[str]:
    """Names of the samples of micro-batches."""
    return [name for batch in micro_batches for name in batch.samples]


class Named(str):
    """A sample that is equal to its name."""

    __slots__ = ()

    @property
    def key(self) -> str:
        return str(self)


class RefsReader(SampleReader):
    """A reader without files, whose samples are named after their references; `broken`: drop every
    N-th sample; 0: none.
    """

    def __init__(self, broken: int = 0) -> None:
        self.requested: list[SampleRef] = []  # all references that were read
        self._broken = broken

    def read(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[Named | DroppedSample]:
        """See `loading.base.SampleReader`."""
        self.requested += refs
        return [self._read(ref, rng) for ref, rng in zip(refs, rngs, strict=True)]

    def _read(self, ref: SampleRef, rng: np.random.Generator) -> Named | DroppedSample:
        name = f"{ref.dataset}/{ref.shard}/{ref.sample}/{rng.integers(1 << 30)}"
        if self._broken and ref.sample % self._broken == 0:
            return DroppedSample("broken", name, f"{name} is broken")
        return Named(name)
