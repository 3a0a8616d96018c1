"""Checks of the contents of samples: metadata, arrays, images.

Legend of shapes: T steps, C channels. Source: formats/lbm 2.1, 2.2, 2.3, 2.5.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlatool.datasets.lbm.layout import ShardFolder
from vlatool.datasets.stats.layout import compact, number_array, read_stats
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes, error, warning
from vlatool.media.tar_sample import (
    ARRAYS,
    CALIBRATION,
    LANGUAGE,
    MASKS,
    METADATA,
    StoredSample,
    image_suffix,
    parse_image,
)
from vlatool.recordings.field_summary import Names, dimension_label, recorded_names
from vlatool.report.facts import branch, listed
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.documents import parse_json

_WRITE_AGAIN = "copy the output again, or write it again with --overwrite"
_WRITER = "write the data with vlatool preprocess, or fix the program that wrote them"

SHARDS = FindingCodes(
    "shards",
    no_manifest=error("manifest.jsonl is missing.", _WRITE_AGAIN),
    broken_manifest=error("The manifest cannot be read or is empty.", _WRITE_AGAIN),
    no_config=warning("preprocessing_config.yaml is missing or broken.", "copy the file again"),
    missing_shard=error("A shard that the manifest lists is missing.", _WRITE_AGAIN),
    unlisted_shard=warning("A tar file is not in the manifest.", "move it away: it is never read"),
    index_mismatch=error(
        "The index of a shard does not match the shard.",
        "write the data again or remove the index",
    ),
    listed_twice=error("The manifest lists a shard twice.", _WRITE_AGAIN),
    count_mismatch=error("num_sequences is not the number of samples.", _WRITE_AGAIN),
    broken_tar=error("A tar file is cut off or damaged.", _WRITE_AGAIN),
    not_a_file=error("A tar member is a folder, a link or a device.", _WRITER),
    unsafe_name=error("The name of a tar member is an absolute path or contains `..`.", _WRITER),
    meta_name=error("The name of a tar member has the form __x__.", _WRITER),
    dotted_key=error("The key of a sample contains a dot.", _WRITER),
    upper_case_member=warning(
        "The suffix of a tar member has upper-case letters.", "rename the camera in lower case"
    ),
    duplicate_member=error("A sample has two members of the same name.", _WRITER),
    duplicate_sample=error("A sample occurs more than once.", _WRITER),
    scattered_sample=error("The members of a sample are not contiguous.", _WRITER),
    incomplete_sample=error("A sample lacks an image, its arrays or its metadata.", _WRITE_AGAIN),
    huge_sample=error("A sample is larger than 256 MiB and is not read.", _WRITER),
    broken_npz=error("lowdim.npz cannot be read.", _WRITE_AGAIN),
    object_array=error("lowdim.npz holds pickled Python objects, which are never loaded.", _WRITER),
    field_mismatch=error("Samples have different fields, shapes or data types.", _WRITER),
    window_length=error("A field does not have past + 1 + future steps.", _WRITER),
    bad_mask=error("past_mask or future_mask is missing or not bool [T].", _WRITER),
    not_finite=error(
        "A field holds NaN or infinity.", "correct your recordings and preprocess them again"
    ),
    nan_kept=warning("A field holds NaN or infinity, which --no-fail-on-nan allows."),
    bad_metadata=error("A key of metadata.json is missing or wrong.", _WRITER),
    bad_language=warning("language_instructions.json is not a JSON object.", _WRITER),
    broken_picture=error("An image cannot be decoded.", _WRITE_AGAIN),
    picture_size=warning(
        "The size of an image differs from the configured size.", "preprocess the data again"
    ),
)

STATS = FindingCodes(
    "stats",
    missing=error("stats.json is missing.", _WRITE_AGAIN),
    broken=error("stats.json is not a JSON object, or an entry is incomplete.", _WRITE_AGAIN),
    not_strict=warning(
        "stats.json holds NaN or Infinity, which is not valid JSON.",
        "nothing for vlatool, which reads them; other programs may fail",
    ),
    missing_field=error("A numeric field has no statistics.", _WRITE_AGAIN),
    extra_field=warning("A field with statistics is in no sample.", _WRITE_AGAIN),
    wrong_shape=error("The shape of a statistic does not match the field.", _WRITE_AGAIN),
    wrong_count=error("`count` does not match the number of samples.", _WRITE_AGAIN),
    out_of_range=error("A value is outside the recorded minimum and maximum.", _WRITE_AGAIN),
    copies_differ=warning("Copies of the statistics differ.", _WRITE_AGAIN),
)


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
        cameras = tuple(map(str, listed(options, "camera_names")))
        offsets = tuple(listed(options, "image_indices"))
        size = listed(options, "resize_images_size")
        return cls(
            cameras or None,
            offsets or None,
            _integer(options.get("past_lowdim_steps")),
            _integer(options.get("future_lowdim_steps")),
            (size[0], size[1]) if len(size) == 2 else None,
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
    images: set[tuple[str, int]] = set()
    for suffix in present:
        name = parse_image(suffix)
        if name is not None:
            images.add(name[:2])
    missing = [name for name in _REQUIRED if name not in present]
    for offset in expected.offsets or ():
        for camera in expected.cameras or ():
            if (camera.lower(), offset) not in images:
                missing.append(image_suffix(camera, offset))
    return missing


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
        anchor = metadata.get("anchor_relative_idx")
        past = self.expected.past
        if _integer(anchor) is None or (past is not None and anchor != past):
            required = "an integer" if past is None else past
            message = f"anchor_relative_idx is {anchor!r}, expected {required}"
            yield context.finding("bad_metadata", message, field="anchor_relative_idx")
        stored: set[str] = set()
        for image in context.sample.images().values():
            if not image.is_auxiliary:
                stored.add(image.camera)
        cameras = metadata.get("camera_names")
        if not isinstance(cameras, list) or {str(name) for name in cameras} != stored:
            expected = f"expected {sorted(stored)}, the cameras of the images"
            message = f"camera_names is {cameras!r}, {expected}"
            yield context.finding("bad_metadata", message, field="camera_names")

    def _check_images(
        self, context: SampleContext, metadata: Mapping[str, Any]
    ) -> Iterator[Finding]:
        originals = branch(metadata, "original_image_sizes")
        for suffix, name in context.sample.images().items():
            self.images += 1
            actual = context.sample.image_size(suffix, decode=True)
            camera = name.base_camera
            required = self.expected.size
            if required is None and originals.get(camera):
                required = tuple(originals[camera])
            if actual is None:
                message = f"{suffix} cannot be decoded"
                yield context.finding("broken_picture", message, camera=camera)
            elif required is not None and actual != required:
                expected = f"expected {required[0]} x {required[1]}"
                message = f"{suffix} is {actual[0]} x {actual[1]}, {expected}"
                yield context.finding("picture_size", message, camera=camera)

    def _check_arrays(self, context: SampleContext, arrays: dict[str, Array]) -> Iterator[Finding]:
        """Reads lowdim.npz into `arrays` and compares it with the first sample."""
        try:
            arrays.update(context.sample.arrays())
        except (ValueError, KeyError) as error:
            code = "broken_npz"
            if "Python objects" in str(error):
                code = "object_array"
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
        specs = {name: (values.shape, _kind(values)) for name, values in arrays.items()}
        past = self.expected.past
        future = self.expected.future
        if past is not None and future is not None:
            length = past + 1 + future
            for name, (shape, _) in specs.items():
                if shape[:1] != (length,):
                    expected = f"expected {counted(length, 'step')}"
                    message = f"{name!r} has the shape {list(shape)}, {expected}"
                    yield context.finding("window_length", message, field=name)
        if not self.fields:
            self.fields = specs
        for name in dict.fromkeys([*self.fields, *specs]):
            is_optional = name.startswith(CALIBRATION) and (name in self.fields) != (name in specs)
            if self.fields.get(name) != specs.get(name) and not is_optional:
                first = _described(self.fields.get(name))
                message = f"{name!r} is {_described(specs.get(name))}, in the first sample {first}"
                yield context.finding("field_mismatch", message, field=name)


def numeric_fields(fields: Mapping[str, tuple[tuple[int, ...], str]]) -> list[str]:
    """Names of the fields that have statistics: no masks, no calibration, no text."""
    names: list[str] = []
    for name, (_, kind) in fields.items():
        if kind != "text" and name not in MASKS and not name.startswith(CALIBRATION):
            names.append(name)
    return names


def _kind(values: Array) -> str:
    """Data type that must be equal in all samples; text may differ in length."""
    return "text" if values.dtype.kind in "US" else str(values.dtype)


def _described(field: tuple[tuple[int, ...], str] | None) -> str:
    return "absent" if field is None else f"{field[1]}{list(field[0])}"


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


_NEEDED = ("mean", "std", "min", "max", "count")
# Published bounds agree with their samples to 1e-12.
_TOLERANCE = 1e-9


class StatsCheck:
    """Compares the values of samples with the recorded statistics."""

    def __init__(self, folder: ShardFolder, expected: ExpectedSample) -> None:
        self.path = folder.statistics_file
        self._expected = expected
        self._folder = folder
        self._entries: dict[str, dict[str, Any]] = {}
        self._bounds: dict[str, tuple[Array, Array]] = {}
        self._outside: dict[str, Finding] = {}

    def read(self) -> Iterator[Finding]:
        """Reads the file and yields its findings."""
        if not self.path.is_file():
            if self._expected.has_statistics:
                yield self._finding("missing", "is missing")
            return
        try:
            self._entries = read_stats(self.path)
        except DataError as error:
            yield self._finding("broken", error.message)
            return
        constants: list[str] = []
        parse_json(read_file(self.path), constants=constants.append)
        if constants:
            yield self._finding("not_strict", "has NaN or Infinity")
        for copy in self._folder.statistics_copies():
            try:
                is_equal = compact(read_stats(copy)) == compact(self._entries)
            except DataError:
                is_equal = False
            if not is_equal:
                yield STATS.at("copies_differ", copy, f"differs from {self.path}")
        for name, entry in self._entries.items():
            low = number_array(entry.get("min_per_timestep"))
            high = number_array(entry.get("max_per_timestep"))
            if low is not None and high is not None:
                self._bounds[name] = (low, high)

    def add(self, context: SampleContext, arrays: Mapping[str, Array]) -> None:
        """Compares the fields [T, C] of a sample with the bounds; padded rows do not count."""
        valid = arrays["past_mask"] | arrays["future_mask"]
        for name, bounds in self._bounds.items():
            if name not in arrays or name in self._outside:
                continue
            array = arrays[name]
            # A field [T] has one dimension.
            values = array.reshape(len(array), int(np.prod(array.shape[1:]))).astype(np.float64)
            has_shapes = values.shape == bounds[0].shape == bounds[1].shape
            if has_shapes and len(valid) == len(values):
                self._compare(context, name, values, valid[:, None], bounds)

    def findings(
        self, fields: Mapping[str, tuple[tuple[int, ...], str]], samples: int
    ) -> Iterator[Finding]:
        """Yields the remaining findings after the last sample; `fields`: shape and data type of
        each field of the samples; empty if none was read.
        """
        yield from self._outside.values()
        numeric = numeric_fields(fields)
        if self._entries:
            for name in numeric:
                entry = self._entries.get(name)
                if entry is None:
                    yield self._finding("missing_field", f"has no entry for {name!r}", name)
                else:
                    yield from self._check_entry(name, entry, fields[name][0])
        if fields:
            for name in self._entries:
                if name not in numeric:
                    yield self._finding("extra_field", f"has {name!r}, which samples lack", name)
        yield from self._check_counts(samples)

    def _compare(
        self,
        context: SampleContext,
        name: str,
        values: Array,
        valid: Array,
        bounds: tuple[Array, Array],
    ) -> None:
        """Records the first value of a field outside `bounds`, each [T, C], as a finding."""
        low, high = bounds
        slack = _TOLERANCE * np.maximum(np.maximum(np.abs(low), np.abs(high)), 1e-30)
        outside = valid & ((values < low - slack) | (values > high + slack))
        if not outside.any():
            return
        step, dimension = np.argwhere(outside)[0].tolist()
        at = (step, dimension)
        label = dimension_label(name, dimension, values.shape[1], self._expected.names)
        message = (
            f"{label!r}, step {step}: {values[at]:.9g} in sample "
            f"{context.sample.key} is not within {low[at]:.9g} .. {high[at]:.9g}"
        )
        self._outside[name] = self._finding(
            "out_of_range", message, name, shard=context.shard, sample=context.sample.key
        )

    def _check_entry(
        self, name: str, entry: Mapping[str, Any], shape: Sequence[int]
    ) -> Iterator[Finding]:
        steps = shape[0]
        width = int(np.prod(shape[1:]))
        missing = [key for key in _NEEDED if entry.get(key) is None]
        if missing:
            yield self._finding("broken", f"{name!r} lacks {', '.join(missing)}", name)
            return
        shapes: dict[str, tuple[int, ...]] = {
            "mean": (width,),
            "min": (width,),
            "max": (width,),
            "count": (steps,),
        }
        if "mean_per_timestep" in entry:
            shapes["mean_per_timestep"] = (steps, width)
        for key, expected in shapes.items():
            numbers = number_array(entry[key])
            if numbers is None or numbers.shape != expected:
                problem = "is ragged" if numbers is None else f"has the shape {list(numbers.shape)}"
                message = f"{name!r}: {key} {problem}, expected {list(expected)}"
                yield self._finding("wrong_shape", message, name)

    def _check_counts(self, samples: int) -> Iterator[Finding]:
        """Compares `count` with the number of samples; the anchor is never padded."""
        for name, entry in self._entries.items():
            counts = entry.get("count")
            if not isinstance(counts, list) or not counts:
                continue
            if not all(isinstance(value, int) for value in counts):
                continue
            past = self._expected.past
            anchor = max(counts)
            if past is not None and past < len(counts):
                anchor = counts[past]
            if anchor != samples or max(counts) > samples:
                expected = f"expected {counted(samples, 'sample')}"
                message = f"{name!r} counts {counted(anchor, 'row')} at the anchor, {expected}"
                yield self._finding("wrong_count", message, name)

    def _finding(
        self, code: str, message: str, field: str | None = None, **location: Any
    ) -> Finding:
        return STATS(code, f"{self.path}: {message}", path=str(self.path), field=field, **location)
