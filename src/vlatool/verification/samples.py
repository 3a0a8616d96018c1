"""Checks of the content of samples: facts, numbers, pictures.

Legend of shapes: T steps, C channels. Source: formats/lbm 2.1, 2.2, 2.3, 2.5.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlatool.artifacts.dimensions import Names, dimension_label, recorded_names
from vlatool.artifacts.sample import (
    ARRAYS,
    CALIBRATION,
    LANGUAGE,
    MASKS,
    METADATA,
    StoredSample,
    image_suffix,
    parse_image,
)
from vlatool.episode import Array
from vlatool.findings import Finding
from vlatool.verification.findings import SHARDS

_REQUIRED = (ARRAYS, METADATA)


@dataclass(frozen=True)
class ExpectedSample:
    """What preprocessing_config.yaml promises; None where it says nothing.

    Attributes:
        cameras: Cameras of a complete sample.
        offsets: Pictures per camera, as frames from the anchor.
        past: Steps before the anchor.
        future: Steps after it.
        size: (width, height) of the pictures.
        has_statistics: Whether statistics were to be written.
        allows_nan: Whether NaN and infinity were to be kept.
        names: Of the dimensions of fields, where they are recorded.
    """

    cameras: tuple[str, ...] | None = None
    offsets: tuple[int, ...] | None = None
    past: int | None = None
    future: int | None = None
    size: tuple[int, int] | None = None
    has_statistics: bool = True
    allows_nan: bool = False
    names: Names = field(default_factory=dict[str, Sequence[str]])

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "ExpectedSample":
        """What the options say, as far as they are what they should be."""
        cameras, offsets = options.get("camera_names"), options.get("image_indices")
        size = options.get("resize_images_size")
        return cls(
            tuple(map(str, cameras)) if isinstance(cameras, list) and cameras else None,
            tuple(offsets) if isinstance(offsets, list) and offsets else None,
            _integer(options.get("past_lowdim_steps")),
            _integer(options.get("future_lowdim_steps")),
            (size[0], size[1]) if isinstance(size, list) and len(size) == 2 else None,
            options.get("compute_statistics") is not False,
            options.get("fail_on_nan") is False,
            recorded_names(options),
        )


@dataclass(frozen=True)
class SampleContext:
    """The sample in hand, and where it is."""

    shard: str
    sample: StoredSample

    def finding(self, code: str, message: str, **place: Any) -> Finding:
        """A finding in this sample."""
        text = f"{self.shard}, sample {self.sample.key}: {message}"
        return SHARDS(code, text, shard=self.shard, sample=self.sample.key, **place)

    def json(self, suffix: str) -> dict[str, Any] | None:
        """The object that a JSON member holds; None where it is missing or something else."""
        try:
            content = self.sample.json(suffix)
        except (KeyError, ValueError):
            return None
        return content if isinstance(content, dict) else None


def missing_members(suffixes: Iterable[str], expected: ExpectedSample) -> list[str]:
    """What a complete sample would also have."""
    there = {name.lower() for name in suffixes}
    views = [(c, o) for o in expected.offsets or () for c in expected.cameras or ()]
    images = {name[:2] for name in map(parse_image, there) if name is not None}
    absent = [name for name in _REQUIRED if name not in there]
    return absent + [image_suffix(c, o) for c, o in views if (c.lower(), o) not in images]


class SampleCheck:
    """Checks samples one by one; the first decides which fields the others shall have.

    Attributes:
        pictures: How many were decoded.
        fields: Field to (shape, kind of dtype) of the first sample; empty before.
    """

    def __init__(self, expected: ExpectedSample) -> None:
        self.expected = expected
        self.images = 0
        self.fields: dict[str, tuple[tuple[int, ...], str]] = {}

    def check(
        self, place: SampleContext, take: Callable[[SampleContext, Mapping[str, Array]], None]
    ) -> Iterator[Finding]:
        """Everything that is wrong with a sample.

        Args:
            place: The sample.
            take: Called with the arrays of a sample whose numbers are in order.
        """
        metadata = place.json(METADATA)
        yield from self._check_metadata(place, metadata)
        if LANGUAGE in place.sample.members and place.json(LANGUAGE) is None:
            yield place.finding("bad_language", f"{LANGUAGE} is no JSON object")
        yield from self._check_images(place, metadata or {})
        if ARRAYS not in place.sample.members:
            return
        arrays: dict[str, Array] = {}
        found = list(self._check_arrays(place, arrays))
        yield from found
        if arrays and not found:
            take(place, arrays)

    def _check_metadata(
        self, place: SampleContext, metadata: dict[str, Any] | None
    ) -> Iterator[Finding]:
        if METADATA not in place.sample.members:
            return
        if metadata is None:
            yield place.finding("bad_metadata", f"{METADATA} is no JSON object")
            return
        anchor, past = metadata.get("anchor_relative_idx"), self.expected.past
        if _integer(anchor) is None or (past is not None and anchor != past):
            wanted = "a number" if past is None else past
            message = f"anchor_relative_idx is {anchor!r}, expected {wanted}"
            yield place.finding("bad_metadata", message, field="anchor_relative_idx")
        cameras = metadata.get("camera_names")
        stored = {one.camera for one in place.sample.images().values() if not one.is_auxiliary}
        if not isinstance(cameras, list) or {str(name) for name in cameras} != stored:
            message = f"camera_names is {cameras!r}, there are pictures of {sorted(stored)}"
            yield place.finding("bad_metadata", message, field="camera_names")

    def _check_images(self, place: SampleContext, metadata: Mapping[str, Any]) -> Iterator[Finding]:
        sizes = metadata.get("original_image_sizes")
        for suffix, name in place.sample.images().items():
            self.images += 1
            found = place.sample.image_size(suffix, decode=True)
            camera = name.base_camera
            original = sizes.get(camera) if isinstance(sizes, dict) else None
            wanted = self.expected.size or (tuple(original) if original else None)
            if found is None:
                message = f"{suffix} cannot be decoded"
                yield place.finding("broken_picture", message, camera=camera)
            elif wanted is not None and found != wanted:
                message = f"{suffix} is {found[0]} x {found[1]}, expected {wanted[0]} x {wanted[1]}"
                yield place.finding("picture_size", message, camera=camera)

    def _check_arrays(self, place: SampleContext, arrays: dict[str, Array]) -> Iterator[Finding]:
        """Reads lowdim.npz into `arrays` and compares it with the first sample's."""
        try:
            arrays.update(place.sample.arrays())
        except (ValueError, KeyError) as error:
            code = "object_array" if "Python objects" in str(error) else "broken_npz"
            yield place.finding(code, str(error))
            return
        for name in MASKS:
            mask = arrays.get(name)
            if mask is None or mask.dtype != np.bool_ or mask.ndim != 1:
                shape = "missing" if mask is None else f"{mask.dtype}{list(mask.shape)}"
                yield place.finding("bad_mask", f"{name} is {shape}", field=name)
        yield from self._check_fields(place, arrays)
        for name, values in arrays.items():
            if values.dtype.kind in "fc" and not np.isfinite(values).all():
                step, *inner = np.argwhere(~np.isfinite(values))[0].tolist()
                code = "nan_kept" if self.expected.allows_nan else "not_finite"
                label = name
                if values.ndim == 2:
                    label = dimension_label(name, inner[0], values.shape[1], self.expected.names)
                message = f"{label!r} is not finite at step {step}"
                yield place.finding(code, message, field=name, step=step)

    def _check_fields(self, place: SampleContext, arrays: Mapping[str, Array]) -> Iterator[Finding]:
        past, future = self.expected.past, self.expected.future
        length = None if past is None or future is None else past + 1 + future
        found = {name: (values.shape, _kind(values)) for name, values in arrays.items()}
        for name, (shape, _) in found.items():
            if length is not None and shape[:1] != (length,):
                message = f"{name!r} has the shape {list(shape)}, expected {length} steps"
                yield place.finding("window_length", message, field=name)
        if not self.fields:
            self.fields = found
        for name in dict.fromkeys([*self.fields, *found]):
            is_optional = name.startswith(CALIBRATION) and (name in self.fields) != (name in found)
            if self.fields.get(name) != found.get(name) and not is_optional:
                message = (
                    f"{name!r} is {_described(found.get(name))}, "
                    f"in the first sample {_described(self.fields.get(name))}"
                )
                yield place.finding("field_mismatch", message, field=name)


def numeric_fields(fields: Mapping[str, tuple[tuple[int, ...], str]]) -> list[str]:
    """Fields that have statistics: no masks, no calibration, no text."""
    return [
        name
        for name, (_, kind) in fields.items()
        if kind != "text" and name not in MASKS and not name.startswith(CALIBRATION)
    ]


def _kind(values: Array) -> str:
    """The type as far as samples must agree in it: text may differ in length."""
    return "text" if values.dtype.kind in "US" else str(values.dtype)


def _described(field: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if field is None else f"{field[1]}{list(field[0])}"


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
