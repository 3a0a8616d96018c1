"""What a run is fed with: micro-batches of its training and of its held-out data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.loading.base import (
    Batch,
    Batcher,
    DataSet,
    DatasetInfo,
    DroppedSample,
    MicroBatch,
    SampleRef,
)
from vlatool.loading.config import LoadingConfig
from vlatool.loading.loader import LoaderPlan, build_loader, loader_exited
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.training.config import TrainConfig
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
from vlatool.training.transfer import prefetch_to_device

# Blocks and samples of each that are looked at, and at most before data count as unusable.
_FEW, _MANY = (3, 2), (16, 8)


@dataclass(frozen=True)
class ValidationData:
    """Held-out data: their section, facts and order, and how many positions are measured."""

    section: LoadingConfig
    info: DatasetInfo
    order: SampleOrder
    count: int


def validation_data(config: TrainConfig, reporter: Reporter = NULL) -> ValidationData | None:
    """The held-out data of a run; None where none are asked for.

    Raises:
        UsageError: Held-out samples are asked for and there are no held-out data.
        DataError: They are missing or broken.
    """
    if config.total_val_samples is None:
        return None
    kind = config.data_kind
    section = kind.validation(config.data)
    if section is None:
        raise UsageError(
            "total_val_samples is set, but no held-out data are given",
            hint=f"give data.val_{kind.folders_keys[0]}, or leave total_val_samples out",
            code="usage.no_validation_data",
        )
    info = kind.load_info(section, reporter)
    section, _ = kind.derive(section, info)
    order = SampleOrder(info.datasets, OrderOptions(config.hparams.seed, shuffle=False))
    return ValidationData(section, info, order, min(config.total_val_samples, order.size))


def check_samples(config: TrainConfig, info: DatasetInfo) -> None:
    """Makes sure, before anything is written, that of each data set there are samples to use.

    Looks at a few of them, spread over all, and at more before it says no.

    Raises:
        DataError: None of them can be used: all lack a picture, or a field is another one; or
            their numbers cannot be scaled.
    """
    config.data_kind.make_assets(config.data, info)
    reader = config.data_kind.reader(config.data, info)
    for number, one in enumerate(info.datasets):
        for amount in (_FEW, _MANY):
            places = _sample_refs(number, one, *amount)
            found = reader.read(places, [np.random.default_rng(0) for _ in places])
            dropped = [sample for sample in found if isinstance(sample, DroppedSample)]
            if len(dropped) < len(found):
                break
        if found and len(dropped) == len(found):
            raise DataError(
                f"{one.name}: none of {len(found)} samples that were looked at can be used: "
                f"{dropped[0].message}",
                hint="`vlatool verify` names what is damaged",
                code="data.no_usable_sample",
                details={"data_set": one.name, "sample": dropped[0].sample},
            )


def _sample_refs(number: int, dataset: DataSet, blocks: int, samples: int) -> list[SampleRef]:
    """Places in so many blocks of a data set, so many in each; fewer where there are fewer."""
    full = [(block, content.size) for block, content in enumerate(dataset.shards) if content.size]
    chosen = [full[place] for place in _evenly(len(full), blocks)]
    return [
        SampleRef(number, block, one) for block, size in chosen for one in _evenly(size, samples)
    ]


def _evenly(count: int, most: int) -> list[int]:
    """Numbers below `count`, the first and the last among them."""
    return sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)} if count else ())


@dataclass(frozen=True)
class DataStreams:
    """Opens the data of a run on this process.

    Attributes:
        config: Derived.
        facts: Of the training data.
        order: Of the training data.
        plan: Of the run.
        runtime: This process among all.
        folder: The run, where the model type keeps what batches need.
        measured: Held-out data.
    """

    config: TrainConfig
    info: DatasetInfo
    order: SampleOrder
    plan: TrainPlan
    runtime: Runtime
    folder: Path
    validation: ValidationData | None = None

    @contextmanager
    def training(self, step: int) -> Iterator[Iterator[MicroBatch]]:
        """This process's endless micro-batches from a step on, on the device."""
        plan = replace(self._loader_plan(), first=step * self.plan.accumulation)
        reader = self.config.data_kind.reader(self.config.data, self.info)
        batcher = self._batcher(self.config.data, training=True)
        with build_loader(plan, self.order, reader, batcher, self._dummy()) as loader:
            try:
                yield prefetch_to_device(iter(loader), self.runtime.device)
            except RuntimeError as error:
                raise loader_exited(error) or error from None

    def validation_batches(self) -> Iterator[MicroBatch]:
        """One pass over the held-out data; every process makes the same number of micro-batches."""
        if self.validation is None:
            return
        one = self.validation
        plan = replace(self._loader_plan(), count=one.count)
        plan = replace(plan, num_workers=min(plan.num_workers, plan.batches or 0))
        reader = self.config.data_kind.reader(one.section, one.info)
        batcher = self._batcher(one.section, training=False)
        with build_loader(plan, one.order, reader, batcher, self._dummy()) as loader:
            yield from prefetch_to_device(iter(loader), self.runtime.device)

    def _loader_plan(self) -> LoaderPlan:
        data = self.config.data
        return LoaderPlan(
            batch_size=self.plan.micro_batch,
            rank=self.runtime.rank,
            world_size=self.runtime.world_size,
            seed=self.config.hparams.seed,
            num_workers=data.num_workers or 0,
            prefetch_factor=data.prefetch_factor,
            drop_reasons=self.config.data_kind.drop_reasons,
        )

    def _batcher(self, section: LoadingConfig, *, training: bool) -> Batcher:
        """Held-out data are scaled as the training data are."""
        config = self.config
        kept = config.data_kind.make_assets(config.data, self.info)
        model_type, folder = config.model_type, self.folder
        return model_type.batcher(config.model, section, kept, folder, training=training)

    def _dummy(self) -> partial[Batch]:
        config = self.config
        example = config.model_type.example
        return partial(example, config.model, config.data, self.plan.micro_batch)
