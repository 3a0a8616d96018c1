"""Reader of the samples of robotics data: decoding of the configured members, crop, color jitter.

`RoboticsReader` fetches the bytes of samples, from shards (`ShardReader`) or from frames
(`WindowReader`). The `SampleDecoder` of their data set makes arrays of them, and its `ImageDecoder`
images.

Source: formats/lbm 5.1; reference/order 11.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlatool.config.coerce import value_text
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.loading.base import Allocate, DroppedSample, SampleReader, SampleRef
from vlatool.loading.robotics.config import ImageAugmentationConfig, RoboticsDataConfig
from vlatool.loading.robotics.frames import WindowReader, WindowSample
from vlatool.loading.robotics.mixture import RoboticsDataSet, RoboticsInfo
from vlatool.loading.shard_reader import BROKEN_SAMPLE, BlockReader, ShardCache, ShardReader
from vlatool.media.images import decode_rgb
from vlatool.media.tar_sample import MASKS, METADATA, StoredSample, image_suffix
from vlatool.transforms.augmentation import (
    Box,
    ColorJitter,
    apply_color_jitter,
    central_box,
    random_box,
)
from vlatool.transforms.names import NameMap

# Drop reasons.
NOT_FINITE = "not_finite"
DROP_REASONS = (BROKEN_SAMPLE, NOT_FINITE)
_REASONS = {"data.broken": BROKEN_SAMPLE, "data.not_finite": NOT_FINITE}  # by the code of an error
_TIME_AND_CHANNELS = 2
# Exceptions of image decoders, numpy and json for broken content.
_DECODE_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    OverflowError,
    IndexError,
    SyntaxError,
    struct.error,
)
_Size = tuple[int, int]


@dataclass(frozen=True)
class _Augmentation:
    """Crop and color factors of all images of a sample that have the same size; None: no change."""

    box: Box | None = None
    colors: Mapping[str, float] | None = None


class ImageDecoder:
    """Decodes and augments the images of a data set that a section `data` configures."""

    def __init__(
        self,
        config: RoboticsDataConfig,
        size: _Size | None,  # (height, width) of all images; None: they may differ
        cameras: Mapping[str, str],  # names of cameras to those in the data set, if they differ
    ) -> None:
        # Time outer, camera inner; suffixes of members are read in lower case.
        self._names: list[str] = []
        for index in config.image_indices:
            for camera in config.cameras:
                suffix = image_suffix(cameras.get(camera, camera), index)
                self._names.append(suffix.lower())
        self._size = size
        self._pads = config.pad_missing_images
        augmentation = config.augmentation
        self._section = augmentation.image if augmentation.enabled else ImageAugmentationConfig()
        jitter = self._section.color_jitter
        self._jitter = ColorJitter(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        # Memory of one decoded image; the next image overwrites it.
        self._scratch: UInt8Array = np.empty(0, np.uint8)

    def __call__(
        self,
        key: str,  # name of the sample
        members: Mapping[str, bytes],  # map from suffix to content
        rng: np.random.Generator,  # generator for the augmentation
        # memory uint8 [N, H', W', 3] for the images; used if its shape fits
        buffer: UInt8Array | None = None,
    ) -> tuple[UInt8Array, Array]:
        """Returns the images of a sample, uint8 [N, H, W, 3], and their mask, bool [N].

        Missing images are black, and False in the mask.
        """
        if not self._names:
            return np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, bool)
        mask = np.array([not self._pads or name in members for name in self._names], bool)
        images = buffer
        by_size: dict[_Size, _Augmentation] = {}
        for number, index in enumerate(np.flatnonzero(mask).tolist()):
            name = self._names[index]
            target = None if images is None else images[index]
            pixels = self._decode(name, members[name], target)
            size = (pixels.shape[0], pixels.shape[1])
            if size not in by_size:
                by_size[size] = self._drawn(size, rng)
            augmentation = by_size[size]
            if augmentation.box is not None:
                pixels = augmentation.box.of(pixels)
            # The first image decides the shape; a buffer of another shape is not used.
            if images is None or (number == 0 and images.shape[1:] != pixels.shape):
                images = np.empty((len(self._names), *pixels.shape), np.uint8)
            if images.shape[1:] != pixels.shape:
                # The sample is not dropped, because all samples have these sizes.
                raise DataError(
                    f"sample {key} has images of different sizes (height, width): "
                    + ", ".join(map(value_text, by_size)),
                    hint="preprocess with --resize-images-size, crop with "
                    "data.augmentation.image.crop, or choose cameras with data.camera_names",
                    code="data.mismatch",
                    details={"sample": key},
                )
            if not np.may_share_memory(images, pixels):
                images[index] = pixels
            if augmentation.colors:
                apply_color_jitter(images[index], augmentation.colors)
        if images is None or not mask.any():
            raise KeyError(self._names[0])
        images[~mask] = 0
        return images, mask

    def _decode(self, name: str, data: bytes, target: UInt8Array | None) -> UInt8Array:
        """Returns pixels [H, W, 3], in `target` if they fit, else in memory of the decoder."""
        memory = self._scratch if target is None or self._section.crop.enabled else target
        pixels = decode_rgb(data, memory.reshape(-1))
        if self._size not in (None, pixels.shape[:2]):
            raise ValueError(f"{name} has size {pixels.shape[:2]}, not {self._size}")
        if pixels.size > self._scratch.size:
            self._scratch = np.empty(pixels.size, np.uint8)
        return pixels

    def _drawn(self, size: _Size, rng: np.random.Generator) -> _Augmentation:
        """Random crop and colors of the images of a size."""
        crop = self._section.crop
        box = None
        colors = None
        if crop.enabled and crop.mode == "random":
            box = random_box(size, crop.shape, rng)
        elif crop.enabled:
            box = central_box(size, crop.shape)
        if self._section.color_jitter.enabled:
            colors = self._jitter.draw(rng)
        return _Augmentation(box, colors)


@dataclass(frozen=True)
class DecodedSample:
    """One training sample."""

    key: str  # name of the sample in messages
    images: UInt8Array  # uint8 [N, H, W, 3], time outer, camera inner; padded images are black
    # map from field name to float64 [T, C], cropped to the configured window
    fields: Mapping[str, Array]
    past_mask: Array  # bool [T], cropped likewise
    future_mask: Array  # bool [T], cropped likewise
    instruction: str  # instruction, empty if the sample has none
    metadata: Mapping[str, Any]  # metadata as stored
    image_mask: Array | None = None  # bool [N], False for padded images; None: no image is padded
    dataset: int = 0  # index of the data set in the run, from 0
    padded_fields: frozenset[str] = frozenset()  # fields that the data set lacks: zeros

    def is_real(self, fields: Sequence[str]) -> Array:
        """Mask bool [sum of widths], False for the dimensions of padded fields."""
        mask: list[bool] = []
        for name in fields:
            mask += [name not in self.padded_fields] * self.fields[name].shape[1]
        return np.array(mask, bool)


class SampleDecoder:
    """Decodes the members of samples that a section `data` configures."""

    def __init__(
        self,
        config: RoboticsDataConfig,  # section `data`, derived
        # data set of the samples; None: with the names of the config, and images of any size
        dataset: RoboticsDataSet | None = None,
        number: int = 0,  # index of the data set in the run, from 0
        # map from field name to number of dimensions; None: not checked
        widths: Mapping[str, int] | None = None,
    ) -> None:
        assert config.lowdim_past_timesteps is not None
        assert config.lowdim_future_timesteps is not None
        rename = NameMap()
        size = None
        lacking: frozenset[str] = frozenset()
        if dataset is not None:
            rename = dataset.rename
            size = dataset.options.images.size
            lacking = dataset.padded
        self._images = ImageDecoder(config, size, rename.cameras)
        self._number = number
        self._widths = widths or {}
        fields = dict.fromkeys([*config.action_fields, *config.proprioception_fields])
        self._padded = lacking.intersection(fields)
        # Map from field to its name in the data set.
        self._fields = {name: rename.source_of(name) for name in fields if name not in lacking}
        self._kinds = config.language_instruction_types
        self._past = config.lowdim_past_timesteps
        self._future = config.lowdim_future_timesteps

    def __call__(
        self,
        sample: StoredSample | WindowSample,
        rng: np.random.Generator,
        # memory uint8 [N, H, W, 3] for the images; used if its shape fits
        buffer: UInt8Array | None = None,
    ) -> DecodedSample:
        key = sample.key
        try:
            metadata: Any = sample.json(METADATA)
            anchor = int(metadata["anchor_relative_idx"])
            arrays = sample.arrays([*self._fields.values(), *MASKS])
            start = anchor - self._past
            stop = anchor + self._future + 1
            shortest = min(len(values) for values in arrays.values())
            if start < 0 or stop > shortest:
                raise ValueError(
                    f"the window has steps {start} to {stop}, but the sample has {shortest}"
                )
            span = slice(start, stop)
            fields: dict[str, Array] = {}
            for name, source in self._fields.items():
                fields[name] = self._columns(key, name, arrays[source])[span]
            for name, values in fields.items():
                if not np.isfinite(values).all():
                    raise DataError(
                        f"sample {key}: {name!r} has NaN or an infinite value",
                        hint="preprocess again with --fail-on-nan, which names the episode",
                        code="data.not_finite",
                        details={"sample": key, "field": name},
                    )
            for name in self._padded:
                fields[name] = np.zeros((stop - start, self._widths[name]))
            instruction = self._instruction(sample.language(), rng)
            images, image_mask = self._images(key, sample.members, rng, buffer)
            return DecodedSample(
                key=key,
                images=images,
                fields=fields,
                past_mask=_mask(arrays["past_mask"])[span],
                future_mask=_mask(arrays["future_mask"])[span],
                instruction=instruction,
                metadata=metadata,
                image_mask=image_mask,
                dataset=self._number,
                padded_fields=self._padded,
            )
        except KeyError as error:
            member = str(error.args[0])
            raise DataError(
                f"sample {key} has no {member!r}",
                hint="remove that camera or field from the config, or preprocess again (for a "
                "camera with --skip-episodes-missing-cameras)",
                code="data.broken",
                details={"sample": key, "member": member},
            ) from None
        except _DECODE_ERRORS as error:
            raise DataError(
                f"sample {key} cannot be decoded: {error}",
                hint="its shard is damaged: copy it again, or preprocess again",
                code="data.broken",
                details={"sample": key},
            ) from None

    def _columns(self, key: str, name: str, values: Array) -> Array:
        """Returns the values of a field as [T, C]."""
        columns = values[:, None] if values.ndim == 1 else values
        width = self._widths.get(name, columns.shape[-1])
        if columns.dtype.kind not in "biuf" or columns.ndim != _TIME_AND_CHANNELS:
            raise ValueError(f"{name} is {columns.dtype} {list(columns.shape)}")
        if columns.shape[1] != width:
            raise DataError(
                f"sample {key}: {name} has {counted(columns.shape[1], 'dimension')}, its "
                f"statistics have {width}",
                hint="these statistics belong to other data: remove data.dataset_statistics, or "
                "preprocess again",
                code="data.broken",
                details={"sample": key, "field": name},
            )
        return columns

    def _instruction(self, by_kind: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
        """Returns a random instruction of the configured kinds; empty if there is none."""
        texts: list[str] = []
        for kind in self._kinds:
            texts += by_kind.get(kind, ())
        if not texts:
            return ""
        instruction = texts[int(rng.integers(len(texts)))]
        instruction.encode()  # raises UnicodeEncodeError for lone surrogates
        return instruction


def _mask(values: Array) -> Array:
    if values.dtype.kind not in "biu" or values.ndim != 1:
        raise ValueError(f"a mask is {values.dtype} {list(values.shape)}")
    return values.astype(bool)


class RoboticsReader(SampleReader):
    """Reads and decodes samples; picklable."""

    def __init__(self, config: RoboticsDataConfig, info: RoboticsInfo) -> None:
        self._arguments = (config, info)
        cache = ShardCache.of(config, info.datasets)
        self._shards = ShardReader(info.datasets, cache)
        fields = list(dict.fromkeys([*config.action_fields, *config.proprioception_fields]))
        widths = dict(zip(fields, info.widths(fields), strict=True))
        self._decoders: list[SampleDecoder] = []
        self._frames: dict[int, WindowReader] = {}
        for number, dataset in enumerate(info.sets):
            self._decoders.append(SampleDecoder(config, dataset, number, widths))
            if dataset.windows is not None:
                stored_names = dataset.rename.cameras
                self._frames[number] = WindowReader(
                    dataset.windows,
                    info.datasets,
                    [stored_names.get(name, name) for name in config.cameras],
                    config.image_indices,
                    cache,
                )
        # Shape of the images of a sample.
        self._shape: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return (RoboticsReader, self._arguments)

    def read(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator]
    ) -> list[DecodedSample | DroppedSample]:
        return self._read(refs, rngs, [None] * len(refs))

    def read_into(
        self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator], allocate: Allocate
    ) -> list[DecodedSample | DroppedSample]:
        """Returns the samples, their images in one buffer; see `SampleReader`. The buffer has the
        image shape of the previous call; the first call uses none.
        """
        rows: Sequence[UInt8Array | None] = [None] * len(refs)
        if self._shape:
            rows = [*allocate(len(refs) * math.prod(self._shape)).reshape(len(refs), *self._shape)]
        samples = self._read(refs, rngs, rows)
        for sample in samples:
            if not isinstance(sample, DroppedSample):
                self._shape = sample.images.shape
        return samples

    def prefetch(self, refs: Sequence[SampleRef]) -> None:
        for reader, positions in self._parts(refs):
            reader.prefetch([refs[position] for position in positions])

    def stored(
        self, refs: Sequence[SampleRef]
    ) -> list[StoredSample | WindowSample | DroppedSample]:
        """The samples before they are decoded; a `DroppedSample` if the bytes are broken."""
        samples: dict[int, StoredSample | WindowSample | DroppedSample] = {}
        for reader, positions in self._parts(refs):
            part = [refs[position] for position in positions]
            samples.update(zip(positions, reader.samples(part), strict=True))
        return [samples[position] for position in range(len(refs))]

    def _parts(self, refs: Sequence[SampleRef]) -> list[tuple[BlockReader[Any], list[int]]]:
        """Readers with the positions of their samples: one for each data set of frames, one for
        all shards.
        """
        parts: dict[int, tuple[BlockReader[Any], list[int]]] = {}
        for position, ref in enumerate(refs):
            number = ref.dataset if ref.dataset in self._frames else -1
            reader = self._frames.get(number, self._shards)
            parts.setdefault(number, (reader, []))[1].append(position)
        return [parts[number] for number in sorted(parts)]

    def _read(
        self,
        refs: Sequence[SampleRef],
        rngs: Sequence[np.random.Generator],
        rows: Sequence[UInt8Array | None],
    ) -> list[DecodedSample | DroppedSample]:
        """Returns the samples; images are written to `rows`, which dropped samples do not use."""
        results: list[DecodedSample | DroppedSample] = []
        row = 0
        for ref, sample, rng in zip(refs, self.stored(refs), rngs, strict=True):
            if isinstance(sample, DroppedSample):
                results.append(sample)
                continue
            try:
                results.append(self._decoders[ref.dataset](sample, rng, rows[row]))
                row += 1
            except DataError as error:
                if error.code not in _REASONS:
                    raise
                message = f"{error.message} ({error.hint})"
                results.append(DroppedSample(_REASONS[error.code], sample.key, message))
        return results
