"""Training data for a training loop of one's own."""

import operator
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from vlatool.config.overrides import Override
from vlatool.config.resolve import load_config
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL
from vlatool.loading.base import DataKind, DroppedSample, Normalizes, SampleReader
from vlatool.loading.loader import read_samples
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.plugins import DATA_KINDS
from vlatool.storage.uri import pinned_text

_ORIGIN = "open_dataset"


class SampleDataset(Dataset[Any]):
    """Decoded samples in the order in which `vlatool train` reads them; picklable.

    `dataset[n]` is the n-th sample of an epoch; `dataset.epoch(1)` has the samples of the second
    one in its order.

    Attributes:
        config: The data section with what the data decide.
        info: What the kind of data read about them: statistics for normalisation, for example.
        scales: What samples are normalised with; None: they are as stored. For robotics data
            `scales.normalizer.denormalize(field, values)` is the way back.
    """

    def __init__(
        self,
        config: Any,
        info: Any,
        order: SampleOrder,
        reader: SampleReader,
        scales: Normalizes | None = None,
    ) -> None:
        self.config = config
        self.info = info
        self.scales = scales
        self._order = order
        self._reader = reader
        self._first = 0

    def __len__(self) -> int:
        """Samples of an epoch: as many as there are in all data sets."""
        return self._order.size

    def __getitem__(self, index: int) -> Any:
        """The sample at a position of this epoch; IndexError outside.

        Raises:
            DataError: It is broken; names sample and member.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several samples, read together; the DataLoader asks for a batch so."""
        count = len(self)
        indices = [operator.index(one) for one in indices]
        outside = [index for index in indices if not -count <= index < count]
        if outside:
            raise IndexError(f"sample {outside[0]} of {count}")
        positions = [self._first + int(index) % count for index in indices]
        samples = read_samples(self._order, self._reader, positions, self._order.options.seed)
        broken = next((one for one in samples if isinstance(one, DroppedSample)), None)
        if broken is not None:
            raise DataError(
                broken.message,
                hint="leave it out with a Sampler of your own, or preprocess the data again",
                code=f"data.{broken.reason}",
                details={"sample": broken.sample},
            )
        return samples if self.scales is None else [self.scales.normalized(s) for s in samples]

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def epoch(self, number: int) -> "SampleDataset":
        """The same data in the order of another epoch, from 0."""
        if operator.index(number) < 0:
            raise IndexError(f"epoch {number}: the first is 0")
        other = copy(self)
        other._first = operator.index(number) * len(self)
        return other


def open_dataset(
    *folders: str | Path,
    kind: str = "",
    seed: int = 42,
    shuffle: bool = True,
    normalize: bool = False,
    **keys: Any,
) -> SampleDataset:
    """The samples of data sets as a torch dataset, decoded.

    An epoch has each sample once, unless `dataset_weighting` says otherwise. Neighbours come from
    different places of the data, so a DataLoader needs no shuffling of its own; a loop that was
    interrupted goes on at any index.

        import vlatool
        from torch.utils.data import DataLoader

        data = vlatool.open_dataset("demo/data", image_indices=[0])
        for epoch in range(3):
            loader = DataLoader(data.epoch(epoch), batch_size=16, num_workers=2, collate_fn=list)
            for samples in loader:
                images = np.stack([sample.images for sample in samples])

    Args:
        folders: Outputs of `vlatool preprocess`, or manifests, of any scheme; several are one.
        kind: Kind of data; the first of `vlatool plugins` where empty.
        seed: Of the order, and of what is drawn per sample.
        shuffle: Else the samples come as they are stored.
        normalize: Fields scaled as `vlatool train` scales them, by `normalization` of the keys.
        keys: Keys of the data section of that kind, such as `camera_names`.

    Raises:
        ConfigError: A key is unknown or has no such value.
        UsageError: This kind of data has nothing that is normalised.
        DataError: The data are missing or broken, or lack something that was asked for.
    """
    _check_folders(folders)
    chosen = DATA_KINDS.get(kind or DATA_KINDS.names()[0])()
    given = {
        chosen.folders_keys[0]: [pinned_text(str(folder)) for folder in folders],
        "shuffle": shuffle,
        **keys,
    }
    overrides = [Override(key, value, _ORIGIN) for key, value in given.items()]
    config = load_config(chosen.Config, overrides=overrides).config
    info = chosen.load_info(config, NULL)
    config, _ = chosen.derive(config, info)
    order = SampleOrder(info.datasets, OrderOptions.of(config, seed))
    scales = _scales(chosen, config, info) if normalize else None
    return SampleDataset(config, info, order, chosen.reader(config, info), scales)


def _check_folders(folders: Sequence[object]) -> None:
    if not folders or not all(isinstance(one, str | Path) for one in folders):
        raise UsageError(
            f"open_dataset takes folders one by one, not {folders}",
            hint="write open_dataset(first, second)",
            code="usage.folders",
        )


def _scales(kind: DataKind, config: Any, info: Any) -> Normalizes:
    prepared = kind.make_assets(config, info)
    if not isinstance(prepared, Normalizes):
        raise UsageError(
            f"{kind.name} data have nothing that is normalised",
            hint="leave normalise out",
            code="usage.nothing_to_normalise",
        )
    return prepared
