"""Reader of samples and their past images."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from vlatool.artifacts.images import NotRgbError, decode_plain
from vlatool.artifacts.samples.lines import TokenSample
from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.loading.base import Allocate, DroppedSample, SampleRef
from vlatool.loading.shard_reader import BROKEN_SAMPLE
from vlatool.loading.vla.info import VlaFolder, VlaInfo
from vlatool.loading.vla.sample import VlaSample, VlaShape
from vlatool.storage.background import in_parallel
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.uri import is_remote

OTHER_SHAPE, MISSING_IMAGE, BROKEN_IMAGE = "other_shape", "missing_image", "broken_image"
NOT_RGB, OTHER_SIZE = "not_rgb", "other_image_size"
DROP_REASONS = (BROKEN_SAMPLE, OTHER_SHAPE, MISSING_IMAGE, BROKEN_IMAGE, NOT_RGB, OTHER_SIZE)

_MAX_REQUESTS = 32


class UnusableError(Exception):
    """Reason why a sample cannot be used, one of `DROP_REASONS`, and its description."""


class VlaReader:
    """Reads lines or packed samples, and decodes their images; picklable."""

    def __init__(self, info: VlaInfo) -> None:
        self._info = info

    def read(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[VlaSample | DroppedSample]:
        """Returns the samples in order; see `loading.base.SampleReader`."""
        return self.read_into(refs, rngs, partial(np.empty, dtype=np.uint8))

    def read_into(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator], allocate: Allocate
    ) -> list[VlaSample | DroppedSample]:
        """Returns the samples, their images in one buffer; see `loading.base.ReadsIntoBuffer`."""
        del rngs
        shape = _images_shape(self._info.first.shape)
        rows = allocate(len(refs) * math.prod(shape)).reshape(len(refs), *shape)
        results: list[VlaSample | DroppedSample] = []
        used = 0
        for ref in refs:
            folder = self._info.folders[ref.dataset]
            number = folder.spans[ref.shard].first + ref.sample
            key = sample_key(folder, number)
            try:
                sample = read_sample(folder, number)
                _fill(rows[used], folder, sample.images)
            except UnusableError as error:
                reason, message = error.args
                results.append(DroppedSample(reason, key, f"{key}: {message}"))
                continue
            results.append(VlaSample(key, sample.conversation, rows[used]))
            used += 1
        return results

    def __reduce__(self) -> tuple[type["VlaReader"], tuple[VlaInfo]]:
        return (VlaReader, (self._info,))


def _images_shape(shape: VlaShape) -> tuple[int, int, int, int]:
    return shape.past_images, *shape.image_size, 3


def sample_key(folder: VlaFolder, number: int) -> str:
    """File of a sample, and number of its line from 1."""
    name, at = folder.samples.locate(number)
    return f"{folder.samples.path / name}:{at + 1}"


def read_sample(folder: VlaFolder, number: int) -> TokenSample:
    """Sample by its number in the folder; `UnusableError` if it does not fit the others."""
    try:
        sample = folder.samples.sample(number)
    except DataError as error:
        raise UnusableError(BROKEN_SAMPLE, error.message) from None
    expected = folder.shape.past_images, folder.shape.future_images
    counts = len(sample.images), len(sample.conversation.codes)
    if counts != expected:
        raise UnusableError(
            OTHER_SHAPE,
            f"has {counted(counts[0], 'past image')} and codes of {counted(counts[1], 'image')}, "
            f"expected {expected[0]} and {expected[1]}",
        )
    return sample


def _fill(row: UInt8Array, folder: VlaFolder, names: Sequence[str]) -> None:
    """Decodes the images of a sample; an image that occurs twice is decoded once; `row`: uint8 [P,
    H, W, 3], written.
    """
    paths = {name: folder.image_path(name) for name in dict.fromkeys(names)}
    first_of: dict[str, int] = {}
    for name, data in zip(paths, _contents(paths.values()), strict=True):
        at = names.index(name)
        row[at] = _decoded(paths[name], data, folder.shape.image_size)
        first_of[name] = at
    for at, name in enumerate(names):
        if first_of[name] != at:
            row[at] = row[first_of[name]]


def _contents(paths: Iterable[Path]) -> Iterable[bytes | None]:
    """Content of each file, None for missing ones; remote files are read concurrently."""
    listed = list(paths)
    each: Callable[..., Iterable[bytes | None]] = map
    if any(map(is_remote, listed)):
        each = partial(in_parallel, max_concurrent=_MAX_REQUESTS)
    return each(_content, listed)


def _content(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _decoded(path: Path, data: bytes | None, size: tuple[int, int]) -> UInt8Array:
    """Pixels uint8 [H, W, 3] of an image; `UnusableError` if it has none of this size."""
    if data is None:
        raise UnusableError(MISSING_IMAGE, f"the image {path} is missing")
    try:
        pixels = decode_plain(data)
    except NotRgbError as error:
        raise UnusableError(NOT_RGB, f"the image {path} {error}") from None
    except ValueError as error:
        raise UnusableError(BROKEN_IMAGE, f"the image {path} cannot be decoded: {error}") from None
    if pixels.shape[:2] != size:
        actual, expected = (f"{height} x {width}" for height, width in (pixels.shape[:2], size))
        raise UnusableError(
            OTHER_SIZE, f"the image {path} has {actual} pixels, the first one has {expected}"
        )
    return pixels
