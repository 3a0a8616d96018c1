"""Reader of samples for a language model with images, and their check before a run.

A sample is one line of a file, with the paths of its images. `VlaReader` reads the line and decodes
the images; what does not fit is a `DroppedSample`. `check_samples` finds it without decoding.

Legend of shapes: P past images, H height, W width.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from vlatool.datasets.samples.episode import TokenSample
from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter, counted
from vlatool.loading import base
from vlatool.loading.shard_reader import BROKEN_SAMPLE
from vlatool.loading.vla.config import VlaSample
from vlatool.loading.vla.info import VlaFolder, VlaInfo
from vlatool.media.images import NotRgbError, decode_plain
from vlatool.storage.background import in_parallel
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.tree import file_names
from vlatool.storage.uri import is_remote

OTHER_SHAPE = "other_shape"
MISSING_IMAGE = "missing_image"
BROKEN_IMAGE = "broken_image"
NOT_RGB = "not_rgb"
OTHER_SIZE = "other_image_size"
DROP_REASONS = (BROKEN_SAMPLE, OTHER_SHAPE, MISSING_IMAGE, BROKEN_IMAGE, NOT_RGB, OTHER_SIZE)

_MAX_REQUESTS = 32
# Samples that are checked at most, evenly spaced; about 0.3 ms each.
_MAX_CHECKED = 20_000


class _UnusableError(Exception):
    """A sample that cannot be used."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason  # one of `DROP_REASONS`
        self.message = message


class VlaReader(base.SampleReader):
    """Reads lines or packed samples, and decodes their images; picklable."""

    def __init__(self, info: VlaInfo) -> None:
        self._info = info

    def __reduce__(self) -> tuple[type["VlaReader"], tuple[VlaInfo]]:
        return (VlaReader, (self._info,))

    def read(
        self, refs: Sequence[base.SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[VlaSample | base.DroppedSample]:
        return self.read_into(refs, rngs, partial(np.empty, dtype=np.uint8))

    def read_into(
        self,
        refs: Sequence[base.SampleRef],
        rngs: Sequence[np.random.Generator],
        allocate: base.Allocate,
    ) -> list[VlaSample | base.DroppedSample]:
        sizes = self._info.first.assets.shape
        shape = (sizes.past_images, *sizes.image_size, 3)
        rows = allocate(len(refs) * math.prod(shape)).reshape(len(refs), *shape)
        results: list[VlaSample | base.DroppedSample] = []
        used = 0
        for ref in refs:
            folder = self._info.folders[ref.dataset]
            number = folder.spans[ref.shard].first + ref.sample
            key = sample_key(folder, number)
            try:
                sample = _read_sample(folder, number)
                _decode_images(rows[used], folder, sample.images)
            except _UnusableError as error:
                results.append(base.DroppedSample(error.reason, key, f"{key}: {error.message}"))
                continue
            results.append(VlaSample(key, sample.conversation, rows[used]))
            used += 1
        return results


def sample_key(folder: VlaFolder, number: int) -> str:
    """File of a sample, and number of its line from 1."""
    name, line = folder.samples.locate(number)
    return f"{folder.samples.path / name}:{line + 1}"


def _read_sample(folder: VlaFolder, number: int) -> TokenSample:
    """Sample by its number in the folder, with as many images as the others."""
    try:
        sample = folder.samples.sample(number)
    except DataError as error:
        raise _UnusableError(BROKEN_SAMPLE, error.message) from None
    past = len(sample.images)
    future = len(sample.conversation.codes)
    shape = folder.assets.shape
    if past != shape.past_images or future != shape.future_images:
        raise _UnusableError(
            OTHER_SHAPE,
            f"has {counted(past, 'past image')} and codes of {counted(future, 'image')}, "
            f"expected {shape.past_images} and {shape.future_images}",
        )
    return sample


def _decode_images(row: UInt8Array, folder: VlaFolder, names: Sequence[str]) -> None:
    """Writes the images of a sample to a row [P, H, W, 3]; one that repeats is decoded once."""
    paths = {name: folder.image_path(name) for name in names}
    for (name, path), data in zip(paths.items(), _contents(paths.values()), strict=True):
        first = names.index(name)
        row[first] = _decoded(path, data, folder.assets.shape.image_size)
        for number in range(first + 1, len(names)):
            if names[number] == name:
                row[number] = row[first]


def _contents(paths: Collection[Path]) -> Iterable[bytes | None]:
    """Content of each file, None for missing ones; remote files are read concurrently."""
    if any(map(is_remote, paths)):
        return in_parallel(_content, paths, _MAX_REQUESTS)
    return map(_content, paths)


def _content(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _decoded(path: Path, data: bytes | None, size: tuple[int, int]) -> UInt8Array:
    """Pixels uint8 [H, W, 3] of an image of this size."""
    if data is None:
        raise _UnusableError(MISSING_IMAGE, f"the image {path} is missing")
    try:
        pixels = decode_plain(data)
    except NotRgbError as error:
        raise _UnusableError(NOT_RGB, f"the image {path} {error}") from None
    except ValueError as error:
        raise _UnusableError(BROKEN_IMAGE, f"the image {path} cannot be decoded: {error}") from None
    height, width = pixels.shape[:2]
    if (height, width) != size:
        raise _UnusableError(
            OTHER_SIZE,
            f"the image {path} has {height} x {width} pixels, the first one has "
            f"{size[0]} x {size[1]}",
        )
    return pixels


def check_samples(info: VlaInfo, reporter: Reporter = NULL) -> None:
    """Raises an error for the first sample that cannot be used; reads at most 20,000. Data on
    remote storage are not read.
    """
    local = [folder for folder in info.folders if not is_remote(folder.samples.path)]
    count = sum(folder.num_samples for folder in local)
    step = max(1, math.ceil(count / _MAX_CHECKED))
    names_in: dict[Path, frozenset[str]] = {}  # names of the files of each folder with images
    with reporter.progress("checking samples", math.ceil(count / step), "samples") as bar:
        for folder, number in islice(_numbers(local), 0, None, step):
            try:
                for name in _read_sample(folder, number).images:
                    path = folder.image_path(name)
                    if path.parent not in names_in:
                        names_in[path.parent] = file_names(path.parent)
                    if path.name not in names_in[path.parent]:
                        raise _UnusableError(MISSING_IMAGE, f"the image {path} is missing")
            except _UnusableError as error:
                key = sample_key(folder, number)
                raise DataError(
                    f"{key}: {error.message.removeprefix(f'{key}: ')}",
                    hint="run `vlatool verify` on the samples; to leave out what cannot be used, "
                    "set data.max_dropped_share",
                    code="data.broken",
                    details={"reason": error.reason, "sample": key},
                ) from None
            bar.advance()


def _numbers(folders: Sequence[VlaFolder]) -> Iterator[tuple[VlaFolder, int]]:
    for folder in folders:
        for span in folder.spans:
            for number in range(span.first, span.first + span.size):
                yield folder, number
