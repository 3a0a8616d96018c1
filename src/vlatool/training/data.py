"""Loads the micro-batches of training and validation data of a run onto the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlatool.datasets.codes.layout import COLLAPSED
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.loading import base
from vlatool.loading.loader import LoaderPlan, build_loader, loader_exited
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.storage.uri import is_remote
from vlatool.training.config import TrainConfig
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime

# Most shards of a data set that are looked at before a run, and samples in each.
_READ_SHARDS = 8
_READ_SAMPLES = 4
# Fewer samples may be equal by chance.
_MIN_COMPARED = 4
# Effect of a content that is the same in all samples, by its name in `DataKind.contents`.
_CONSTANT = {
    "images": ("data.constant_images", "so the model sees nothing in them"),
    "actions": ("data.constant_actions", "so there is nothing to learn"),
    "codes": (COLLAPSED, "so their tokenizer has collapsed; look at them with `vlatool inspect`"),
}


@dataclass(frozen=True)
class ValidationData:
    section: base.LoadingConfig  # the data section, derived
    info: base.DatasetInfo
    order: SampleOrder
    count: int  # number of positions per validation
    chunks: SampleOrder  # the shuffled order, whose first positions get action chunks
    num_chunks: int  # number of these positions


def validation_data(config: TrainConfig, reporter: Reporter = NULL) -> ValidationData | None:
    """The validation data of a run; None if it does not validate."""
    if not config.validates:
        return None
    kind = config.data_kind
    section = kind.validation(config.data)
    if section is None:
        key = "val_every_n_steps" if config.total_val_samples is None else "total_val_samples"
        raise UsageError(
            f"{key} is set, but there are no validation data",
            hint=f"set data.val_{kind.folders_keys[0]}, or unset {key} with null",
            code="usage.missing_key",
        )
    info = kind.load_info(section, reporter)
    section, _ = kind.derive(section, info)
    seed = config.hparams.seed
    # Of episodes that are held out the first samples would be those of one task.
    order = SampleOrder(info.datasets, OrderOptions(seed, shuffle=section.is_held_out))
    count = min(config.total_val_samples or order.size, order.size)
    return ValidationData(
        section=section,
        info=info,
        order=order,
        count=count,
        chunks=SampleOrder(info.datasets, OrderOptions(seed)),
        num_chunks=min(config.num_val_chunks, count),
    )


def report_shared(info: base.DatasetInfo, validation: base.DatasetInfo, reporter: Reporter) -> None:
    """Warns if validation data are among the training data."""
    trained = {_identity(shard) for dataset in info.datasets for shard in dataset.shards}
    shared = 0
    total = 0
    for dataset in validation.datasets:
        for shard in dataset.shards:
            total += shard.size
            if _identity(shard) in trained:
                shared += shard.size
    if shared:
        reporter.warn(
            "data.validation_is_trained_on",
            f"{shared:,} of {counted(total, 'validation sample')} are also training data, so "
            "validation loss and best.json say nothing about new data; choose other episodes for "
            "one of them (data.episodes, preprocess --episodes)",
        )


def _identity(shard: base.ShardInfo) -> tuple[str, int]:
    """What identifies a sample: the digest of its file if it is known, else its location."""
    place = shard.location
    return shard.digest or str(place if is_remote(place) else place.resolve()), shard.first


def check_samples(
    config: TrainConfig, info: base.DatasetInfo, assets: Path | None, reporter: Reporter = NULL
) -> None:
    """Checks that each data set has usable samples, before anything is written.

    `assets`: folder with the assets of the model; None if there are none yet.

    Reads a few samples spread over the data set.
    """
    kind = config.data_kind
    kind.make_assets(config.data, info)
    kind.check_samples(config.data, info, reporter)
    if assets is not None:
        config.model_type.check_data(config.model, config.data, info, assets)
    for index, dataset in enumerate(info.datasets):
        samples = _some_samples(config, info, index)
        dropped = [item for item in samples if isinstance(item, base.DroppedSample)]
        if samples and len(dropped) == len(samples):
            raise DataError(
                f"{dataset.name}: {counted(len(samples), 'sample')} were read, and none can be "
                f"used: {dropped[0].message}",
                hint="`vlatool verify` lists all defects of this data set",
                code="data.no_samples",
                details={"data_set": dataset.name, "sample": dropped[0].sample},
            )
        usable = [item for item in samples if not isinstance(item, base.DroppedSample)]
        _report_constant(config, dataset.name, usable, reporter)


def _report_constant(
    config: TrainConfig, dataset: str, samples: list[Any], reporter: Reporter
) -> None:
    """Warns of images and actions that are the same in all samples read; notes a single
    instruction.
    """
    kind = config.data_kind
    if len(samples) < _MIN_COMPARED:
        return
    first, *others = [kind.contents(config.data, sample) for sample in samples]
    for name, content in first.items():
        if not all(np.array_equal(content, other[name]) for other in others):
            continue
        text = f"{dataset}: {name} are the same in all {len(samples)} samples that were read"
        if name in _CONSTANT:
            code, effect = _CONSTANT[name]
            reporter.warn(code, f"{text}, {effect}")
        elif content:
            reporter.note(f"{dataset}: all samples that were read have the same {name}: {content}")


def sample_batch(
    config: TrainConfig, info: base.DatasetInfo, assets: Path | None, size: int
) -> base.Batch:
    """A batch from the first data set; it may repeat a few samples."""
    kind = config.data_kind
    samples = _some_samples(config, info, 0)  # of which `check_samples` has found a usable one
    usable = [sample for sample in samples if not isinstance(sample, base.DroppedSample)]
    data_assets = kind.make_assets(config.data, info)
    batcher = config.model_type.batcher(
        config.model, config.data, data_assets, assets, training=True
    )
    return batcher([usable[number % len(usable)] for number in range(size)])


def _some_samples(config: TrainConfig, info: base.DatasetInfo, index: int) -> list[Any]:
    """Samples spread over a data set, or the reason why one is dropped."""
    dataset = info.datasets[index]
    shards = np.flatnonzero(dataset.sizes).tolist()
    refs: list[base.SampleRef] = []
    for position in _evenly_spaced(len(shards), _READ_SHARDS):
        shard = shards[position]
        for sample in _evenly_spaced(int(dataset.sizes[shard]), _READ_SAMPLES):
            refs.append(base.SampleRef(index, shard, sample))
    reader = config.data_kind.reader(config.data, info)
    return list(reader.read(refs, [np.random.default_rng(0) for _ in refs]))


def _evenly_spaced(count: int, limit: int) -> list[int]:
    """At most `limit` indices below `count`, the first and the last included."""
    if not count:
        return []
    return sorted({round(i * (count - 1) / max(limit - 1, 1)) for i in range(limit)})


@dataclass(frozen=True)
class DataStreams:
    """Streams of micro-batches on this rank."""

    config: TrainConfig  # the derived configuration
    info: base.DatasetInfo  # dataset info of the training data
    order: SampleOrder  # order of samples of the training data
    plan: TrainPlan  # the plan of the run
    runtime: Runtime  # this rank
    folder: Path  # the run folder, with the assets that the batcher needs
    validation: ValidationData | None = None

    @contextmanager
    def training(self, step: int) -> Iterator[Iterator[base.MicroBatch]]:
        """Endless micro-batches of this rank from a step on, on the device."""
        plan = replace(self._loader_plan(), first=step * self.plan.accumulation)
        reader = self.config.data_kind.reader(self.config.data, self.info)
        batcher = self._batcher(self.config.data, training=True)
        with build_loader(plan, self.order, reader, batcher, self._dummy()) as loader:
            try:
                yield prefetch_to_device(iter(loader), self.runtime.device)
            except RuntimeError as error:
                raise loader_exited(error) or error from None

    def validation_batches(self) -> Iterator[base.MicroBatch]:
        """One pass over the validation data; the number of micro-batches is equal on all ranks."""
        data = self.validation
        if data is not None:
            plan = replace(self._loader_plan(), count=data.count)
            plan = replace(plan, num_workers=min(plan.num_workers, plan.batches or 0))
            yield from self._validation_pass(data, data.order, plan)

    def chunk_batches(self) -> Iterator[base.MicroBatch]:
        """One pass over the validation samples that get action chunks, as above."""
        data = self.validation
        if data is not None and data.num_chunks:
            # A few samples are read faster than loader workers start.
            plan = replace(self._loader_plan(), count=data.num_chunks, num_workers=0)
            yield from self._validation_pass(data, data.chunks, plan)

    def _validation_pass(
        self, data: ValidationData, order: SampleOrder, plan: LoaderPlan
    ) -> Iterator[base.MicroBatch]:
        reader = self.config.data_kind.reader(data.section, data.info)
        batcher = self._batcher(data.section, training=False)
        with build_loader(plan, order, reader, batcher, self._dummy()) as loader:
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

    def _batcher(self, section: base.LoadingConfig, *, training: bool) -> base.Batcher:
        """The batcher; validation data are normalized with the statistics of the training data."""
        config = self.config
        assets = config.data_kind.make_assets(config.data, self.info)
        model_type = config.model_type
        folder = self.folder
        return model_type.batcher(config.model, section, assets, folder, training=training)

    def _dummy(self) -> partial[base.Batch]:
        config = self.config
        example = config.model_type.example
        return partial(example, config.model, config.data, self.plan.micro_batch)


def to_device(value: Any, device: torch.device) -> Any:
    """The value with every tensor moved to the device, also inside dicts and lists."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: to_device(item, device) for name, item in value.items()}
    return [to_device(item, device) for item in value] if isinstance(value, list) else value


def prefetch_to_device(
    batches: Iterator[base.MicroBatch], device: torch.device
) -> Iterator[base.MicroBatch]:
    """The micro-batches on the device; a GPU copies the next one while it computes the last one."""
    if device.type != "cuda":
        for micro_batch in batches:
            yield replace(micro_batch, batch=to_device(micro_batch.batch, device))
        return
    stream = torch.cuda.Stream(device)
    for micro_batch in batches:
        # Only work that is queued from here on waits for the copy; earlier work goes ahead.
        with torch.cuda.stream(stream):
            copied = replace(micro_batch, batch=to_device(micro_batch.batch, device))
        torch.cuda.current_stream(device).wait_stream(stream)
        _record_stream(copied.batch, torch.cuda.current_stream(device))
        yield copied


def _record_stream(value: Any, stream: "torch.cuda.Stream") -> None:
    """Protects memory of another stream from reuse until `stream` has read it."""
    if isinstance(value, Tensor):
        value.record_stream(stream)
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _record_stream(item, stream)
