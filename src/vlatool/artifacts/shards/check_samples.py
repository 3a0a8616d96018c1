"""Checks of the contents of samples: metadata, arrays, images.

Legend of shapes: T steps, C channels. Source: formats/lbm 2.1, 2.2, 2.3, 2.5.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlatool.artifacts.fields import Names, dimension_label, recorded_names
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
from vlatool.artifacts.shards.findings import SHARDS
from vlatool.episode import Array
from vlatool.events import counted
from vlatool.findings import Finding

_REQUIRED = (ARRAYS, METADATA)


@dataclass(frozen=True)
class ExpectedSample:
    """Properties of samples according to preprocessing_config.yaml; None if not given there."""

    cameras: tuple[str, ...] | None = None  # cameras of a complete sample
    offsets: tuple[int, ...] | None = None  # images per camera, as frames from the anchor
    past: int | None = None  # steps before the anchor
    future: int | None = None  # steps after the anchor
    size: tuple[int, int] | None = None  # (width, height) of the images
    has_statistics: bool = True  # True if statistics are written
    allows_nan: bool = False  # True if NaN and infinity are kept
    # names of the dimensions of fields, if recorded
    names: Names = field(default_factory=dict[str, Sequence[str]])

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "ExpectedSample":
        """Creates the expectation from options; values of a wrong type count as not given."""
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
    """A sample and its location."""

    shard: str
    sample: StoredSample

    def finding(self, code: str, message: str, **location: Any) -> Finding:
        text = f"{self.shard}, sample {self.sample.key}: {message}"
        return SHARDS(code, text, shard=self.shard, sample=self.sample.key, **location)

    def json(self, suffix: str) -> dict[str, Any] | None:
        """Object in a JSON member; None if the member is missing or is not a JSON object."""
        try:
            content = self.sample.json(suffix)
        except (KeyError, ValueError):
            return None
        return content if isinstance(content, dict) else None


def missing_members(suffixes: Iterable[str], expected: ExpectedSample) -> list[str]:
    """Names of the members that the sample lacks."""
    present = {name.lower() for name in suffixes}
    views = [(c, o) for o in expected.offsets or () for c in expected.cameras or ()]
    images = {name[:2] for name in map(parse_image, present) if name is not None}
    missing = [name for name in _REQUIRED if name not in present]
    return missing + [image_suffix(c, o) for c, o in views if (c.lower(), o) not in images]


class SampleCheck:
    """Checks samples one by one; all must have the fields of the first one."""

    def __init__(self, expected: ExpectedSample) -> None:
        self.expected = expected
        self.images = 0  # number of decoded images
        # map from field to (shape, kind of dtype) of the first sample; empty before it
        self.fields: dict[str, tuple[tuple[int, ...], str]] = {}

    def check(
        self,
        context: SampleContext,
        add_arrays: Callable[[SampleContext, Mapping[str, Array]], None],
    ) -> Iterator[Finding]:
        """Yields the findings of a sample."""
        metadata = context.json(METADATA)
        yield from self._check_metadata(context, metadata)
        if LANGUAGE in context.sample.members and context.json(LANGUAGE) is None:
            yield context.finding("bad_language", f"{LANGUAGE} is not a JSON object")
        yield from self._check_images(context, metadata or {})
        if ARRAYS not in context.sample.members:
            return
        arrays: dict[str, Array] = {}
        problems = list(self._check_arrays(context, arrays))
        yield from problems
        if arrays and not problems:
            add_arrays(context, arrays)

    def _check_metadata(
        self, context: SampleContext, metadata: dict[str, Any] | None
    ) -> Iterator[Finding]:
        if METADATA not in context.sample.members:
            return
        if metadata is None:
            yield context.finding("bad_metadata", f"{METADATA} is not a JSON object")
            return
        anchor, past = metadata.get("anchor_relative_idx"), self.expected.past
        if _integer(anchor) is None or (past is not None and anchor != past):
            required = "an integer" if past is None else past
            message = f"anchor_relative_idx is {anchor!r}, expected {required}"
            yield context.finding("bad_metadata", message, field="anchor_relative_idx")
        cameras = metadata.get("camera_names")
        stored = {
            image.camera for image in context.sample.images().values() if not image.is_auxiliary
        }
        if not isinstance(cameras, list) or {str(name) for name in cameras} != stored:
            message = (
                f"camera_names is {cameras!r}, expected {sorted(stored)}, the cameras of the images"
            )
            yield context.finding("bad_metadata", message, field="camera_names")

    def _check_images(
        self, context: SampleContext, metadata: Mapping[str, Any]
    ) -> Iterator[Finding]:
        sizes = metadata.get("original_image_sizes")
        for suffix, name in context.sample.images().items():
            self.images += 1
            actual = context.sample.image_size(suffix, decode=True)
            camera = name.base_camera
            original = sizes.get(camera) if isinstance(sizes, dict) else None
            required = self.expected.size or (tuple(original) if original else None)
            if actual is None:
                message = f"{suffix} cannot be decoded"
                yield context.finding("broken_picture", message, camera=camera)
            elif required is not None and actual != required:
                message = (
                    f"{suffix} is {actual[0]} x {actual[1]}, expected {required[0]} x {required[1]}"
                )
                yield context.finding("picture_size", message, camera=camera)

    def _check_arrays(self, context: SampleContext, arrays: dict[str, Array]) -> Iterator[Finding]:
        """Reads lowdim.npz into `arrays` and compares it with that of the first sample."""
        try:
            arrays.update(context.sample.arrays())
        except (ValueError, KeyError) as error:
            code = "object_array" if "Python objects" in str(error) else "broken_npz"
            yield context.finding(code, str(error))
            return
        for name in MASKS:
            mask = arrays.get(name)
            if mask is None or mask.dtype != np.bool_ or mask.ndim != 1:
                shape = "missing" if mask is None else f"{mask.dtype}{list(mask.shape)}"
                yield context.finding("bad_mask", f"{name} is {shape}", field=name)
        yield from self._check_fields(context, arrays)
        for name, values in arrays.items():
            if values.dtype.kind in "fc" and not np.isfinite(values).all():
                step, *inner = np.argwhere(~np.isfinite(values))[0].tolist()
                code = "nan_kept" if self.expected.allows_nan else "not_finite"
                label = name
                if values.ndim == 2:
                    label = dimension_label(name, inner[0], values.shape[1], self.expected.names)
                message = f"{label!r} is not finite at step {step}"
                yield context.finding(code, message, field=name, step=step)

    def _check_fields(
        self, context: SampleContext, arrays: Mapping[str, Array]
    ) -> Iterator[Finding]:
        past, future = self.expected.past, self.expected.future
        length = None if past is None or future is None else past + 1 + future
        specs = {name: (values.shape, _kind(values)) for name, values in arrays.items()}
        for name, (shape, _) in specs.items():
            if length is not None and shape[:1] != (length,):
                message = (
                    f"{name!r} has the shape {list(shape)}, expected {counted(length, 'step')}"
                )
                yield context.finding("window_length", message, field=name)
        if not self.fields:
            self.fields = specs
        for name in dict.fromkeys([*self.fields, *specs]):
            is_optional = name.startswith(CALIBRATION) and (name in self.fields) != (name in specs)
            if self.fields.get(name) != specs.get(name) and not is_optional:
                message = (
                    f"{name!r} is {_described(specs.get(name))}, "
                    f"in the first sample {_described(self.fields.get(name))}"
                )
                yield context.finding("field_mismatch", message, field=name)


def numeric_fields(fields: Mapping[str, tuple[tuple[int, ...], str]]) -> list[str]:
    """Names of the fields that have statistics: no masks, no calibration, no text."""
    return [
        name
        for name, (_, kind) in fields.items()
        if kind != "text" and name not in MASKS and not name.startswith(CALIBRATION)
    ]


def _kind(values: Array) -> str:
    """Data type that must be equal in all samples; text may differ in length."""
    return "text" if values.dtype.kind in "US" else str(values.dtype)


def _described(field: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if field is None else f"{field[1]}{list(field[0])}"


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
