"""Training data as a torch dataset, for custom training loops: `vlatool.open_dataset`."""

import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from vlatool.config.resolve import Override, load_config
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, NullReporter
from vlatool.loading.base import Batch, DroppedSample, SampleReader
from vlatool.loading.base import data_kind as find_kind
from vlatool.loading.loader import read_samples
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.shared_memory import is_numpy_compatible
from vlatool.storage.uri import pinned_text


class _LoggedNotes(NullReporter):
    """Writes notes to the log, where Python code sees them."""

    def note(self, message: str) -> None:
        logging.getLogger(__name__).warning(message)


class _Sample(Batch):
    """A sample as a dict. A DataLoader makes batches of them by `_stack`."""


def _stack(samples: Sequence[_Sample], **_options: Any) -> Batch:
    """Returns the batch of torch's `default_collate`, stacked by the calling thread alone.

    Torch splits the copy of each image between its threads, which then spin until the next copy.
    With 4 images of 256 x 256 and other programs on the 2 cores, that took 7 to 30 ms per sample,
    and this 0.2 ms. Loader workers have one thread, and torch stacks in their shared memory.
    """
    batch: Batch = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if get_worker_info() is None and is_numpy_compatible(first):
            rows = torch.empty((len(values), *first.shape), dtype=first.dtype)
            np.stack(values, out=rows.numpy())
            batch[name] = rows
        else:
            batch[name] = default_collate(values)
    return batch


# A worker that is spawned imports this module with the data set.
default_collate_fn_map[_Sample] = _stack


class SampleDataset(Dataset[Any]):
    """Samples in the order of `vlatool train`; picklable. `dataset[n]` is the n-th sample of an
    epoch. `dataset.epoch(1)` has the samples in the order of the second epoch.
    """

    def __init__(
        self,
        config: Any,
        info: Any,
        order: SampleOrder,
        reader: SampleReader,
        scales: Any = None,
        form: Callable[[Any], Any] | None = None,
    ) -> None:
        self.config = config  # section `data`, derived
        self.info = info  # metadata that the data kind read, for example statistics
        # assets that normalize the samples; None: fields are unchanged. For robotics data,
        # `scales.normalizer.denormalize(field, values)` is the inverse
        self.scales = scales
        self._form = form
        self._order = order
        self._reader = reader
        self._first = 0

    def __len__(self) -> int:
        """Number of samples in an epoch, over all data sets."""
        return self._order.size

    def __getitem__(self, index: int) -> Any:
        """Returns the sample at an index of this epoch; negative indices count from the end."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Returns several samples, fetched together; the DataLoader calls this for a batch."""
        count = len(self)
        positions: list[int] = []
        for index in map(operator.index, indices):
            if not -count <= index < count:
                raise IndexError(f"sample {index} of {count}")
            positions.append(self._first + index % count)
        samples = read_samples(self._order, self._reader, positions, self._order.options.seed)
        for sample in samples:
            if isinstance(sample, DroppedSample):
                raise DataError(
                    sample.message,
                    hint="`vlatool verify` lists such samples; preprocess the data again, or skip "
                    "it with a custom Sampler",
                    code="data.broken",
                    details={"reason": sample.reason, "sample": sample.sample},
                )
        if self.scales is not None:
            samples = [self.scales.normalized(sample) for sample in samples]
        if self._form is not None:
            samples = [_Sample(self._form(sample)) for sample in samples]
        return samples

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def epoch(self, number: int) -> "SampleDataset":
        """Returns the same data in the order of epoch `number`, from 0."""
        if number < 0:
            raise IndexError(f"epoch {number}: the first is 0")
        dataset = copy(self)
        dataset._first = operator.index(number) * len(self)
        return dataset


def open_dataset(
    *folders: str | Path,
    kind: str = "",
    seed: int = 42,
    shuffle: bool = True,
    normalize: bool = False,
    channels_first: bool = True,
    raw: bool = False,
    **keys: Any,
) -> SampleDataset:
    """Opens data sets as a torch dataset of dicts, which a DataLoader stacks to batches.

    An epoch has each sample once, unless `dataset_weighting` is set. Samples are shuffled, so a
    DataLoader needs no `shuffle`. An interrupted loop can resume at any index.

        data = vlatool.open_dataset("demo/data", image_indices=[0])
        for epoch in range(3):
            for batch in DataLoader(data.epoch(epoch), batch_size=16, num_workers=2):
                batch["action"]  # float32 [16, T, A]

    `loading.robotics.kind` has the keys of robotics data.

    Args:
        folders: Outputs of `vlatool preprocess` or their manifests; several are read as one.
        kind: Data kind, `module:Kind` of a plugin; empty: the first of `vlatool plugins`.
        seed: Seed of the order of samples and of random choices per sample.
        shuffle: Shuffle the samples; if False, they are in stored order.
        normalize: Normalize fields as `vlatool train` does, by the key `normalization`.
        channels_first: Images are [..., 3, H, W]; otherwise [..., H, W, 3].
        raw: Return the samples of the reader; for robotics data `DecodedSample`.
        keys: Keys of the section `data` of that kind, such as `camera_names`, or `split`: `train`,
            `val` or `all` of data that hold episodes out. Without it `train`, and a warning in the
            log says how many are left out.

    Raises:
        ConfigError: A key is unknown or its value is invalid.
        UsageError: The data kind has no fields to normalize, or, without `raw`, no dicts.
        DataError: The data are missing or broken, or lack a configured camera or field.
    """
    if not folders or not all(isinstance(folder, str | Path) for folder in folders):
        raise UsageError(
            f"open_dataset expects each folder as an argument of its own, got {folders}",
            hint="call open_dataset(first, second)",
            code="usage.bad_value",
        )
    data_kind = find_kind(None, [kind] if kind else ())
    if not raw and not data_kind.has_plain:
        raise UsageError(
            f"the data kind {data_kind.name} has no method `plain`, which returns dicts",
            hint="pass raw=True and a collate_fn of your own",
            code="usage.unsupported",
        )
    locations = [pinned_text(str(folder)) for folder in folders]
    values = {data_kind.folders_keys[0]: locations, "shuffle": shuffle, **keys}
    overrides = [Override(key, value, "open_dataset") for key, value in values.items()]
    config = load_config(data_kind.Config, overrides=overrides).config
    info = data_kind.load_info(config, NULL if "split" in keys else _LoggedNotes())
    config, _ = data_kind.derive(config, info)
    scales = None
    if normalize:
        if not data_kind.normalizes:
            raise UsageError(
                f"normalize is True, but {data_kind.name} data have no fields to normalize",
                hint="omit normalize",
                code="usage.unsupported",
            )
        scales = data_kind.make_assets(config, info)
    form = None if raw else partial(data_kind.plain, config, channels_first=channels_first)
    order = SampleOrder(info.datasets, OrderOptions.of(config, seed))
    return SampleDataset(config, info, order, data_kind.reader(config, info), scales, form)
