"""Windows around anchor frames, and the samples of an episode.

`make_windows` chooses the anchors and the frame of each step, `moving_mask` finds windows in which
nothing moves, and `EpisodeSampler` cuts the arrays of an episode into samples.

Legend of shapes: N windows, T = past + 1 + future steps, F frames, C dimensions.
Source: formats/lbm-preprocessing 2.2, 2.3, 2.6.
"""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from pydantic import field_validator, model_validator

from vlatool.config.base import ConfigModel, option, unique_items
from vlatool.episode import Array, Calibration, Episode, PoseGroup, Sample
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.plugins import did_you_mean
from vlatool.transforms.geometry import (
    ImageGeometry,
    ResizeFilter,
    ResizeMethod,
    make_geometry,
    published_intrinsics,
)
from vlatool.transforms.relative import groups_with, reference_keys, relative_fields
from vlatool.transforms.statistics import WindowStatistics, window_statistics

# The published rule considers all fields with one of these words in their names.
_PUBLISHED_WORDS = ("action", "joint", "poses", "xyz", "actual")

Padding = Literal["copy", "zero", "reflect"]


@dataclass(frozen=True)
class WindowSpec:
    """Shape of a window; counts are frames, `past` and `future` exclude the anchor."""

    past: int
    future: int
    stride: int = 1
    max_padding_left: int = 1
    max_padding_right: int = 7
    padding: Padding = "copy"

    @property
    def length(self) -> int:
        """Number of steps T."""
        return self.past + 1 + self.future


@dataclass(frozen=True)
class Windows:
    """Windows of one episode."""

    spec: WindowSpec
    anchors: Array  # int [N], ascending
    rows: Array  # int [N, T], frame of each step after padding
    valid: Array  # bool [N, T], false for padded steps
    pad_left: Array  # int [N]
    pad_right: Array  # int [N]
    dropped_padding: int  # number of anchors dropped for too much padding

    @property
    def past_mask(self) -> Array:
        """Bool [N, T]: real steps strictly before the anchor."""
        return self.valid & (np.arange(self.spec.length) < self.spec.past)

    @property
    def future_mask(self) -> Array:
        """Bool [N, T]: real steps from the anchor on."""
        return self.valid & (np.arange(self.spec.length) >= self.spec.past)

    def select(self, mask: Array) -> "Windows":
        """Windows for which `mask` [N] is true."""
        return replace(
            self,
            anchors=self.anchors[mask],
            rows=self.rows[mask],
            valid=self.valid[mask],
            pad_left=self.pad_left[mask],
            pad_right=self.pad_right[mask],
        )

    def cut(self, values: Array) -> Array:
        """Windows [N, T, ...] of per-frame values [F, ...], padded by the spec's rule."""
        windows = values[self.rows]
        if self.spec.padding == "zero" and windows.dtype.kind != "U":
            windows[~self.valid] = 0
        return windows

    def cut_edge_padded(self, values: Array) -> Array:
        """Like `cut`, but always padded with the edge rows, for calibration."""
        steps = np.arange(self.spec.length) - self.spec.past
        return values[np.clip(self.anchors[:, None] + steps, 0, len(values) - 1)]


def make_windows(num_frames: int, spec: WindowSpec) -> Windows:
    """Windows of an episode of `num_frames` frames, in the order of their anchors."""
    candidates = np.arange(0, num_frames, spec.stride)
    pad_left = np.maximum(0, spec.past - candidates)
    pad_right = np.maximum(0, candidates + spec.future - num_frames + 1)
    is_within_limits = (pad_left <= spec.max_padding_left) & (pad_right <= spec.max_padding_right)
    anchors = candidates[is_within_limits]
    frames = anchors[:, None] + np.arange(-spec.past, spec.future + 1)
    return Windows(
        spec=spec,
        anchors=anchors,
        rows=_padded_rows(frames, num_frames, spec.padding),
        valid=(frames >= 0) & (frames < num_frames),
        pad_left=pad_left[is_within_limits],
        pad_right=pad_right[is_within_limits],
        dropped_padding=int(len(candidates) - len(anchors)),
    )


def image_frames(anchor: int, offsets: Sequence[int], num_frames: int) -> dict[int, int]:
    """Frame of each image offset, clipped to the episode."""
    return {offset: min(max(anchor + offset, 0), num_frames - 1) for offset in offsets}


def _padded_rows(frames: Array, num_frames: int, padding: Padding) -> Array:
    """Frames [N, T]; those outside the episode are replaced by the row that pads them."""
    clipped = np.clip(frames, 0, num_frames - 1)
    if padding != "reflect":
        return clipped
    first = clipped.min(axis=1, keepdims=True)
    span = clipped.max(axis=1, keepdims=True) - first
    # Positions folded into 0..span by mirroring at both ends without repeating the edge.
    period = np.maximum(2 * span, 1)
    folded = np.mod(frames - first, period)
    return first + np.where(span == 0, 0, np.minimum(folded, period - folded))


@dataclass(frozen=True)
class StillnessSpec:
    """Rule for still windows."""

    # published rule: a window is still if no considered field's standard deviation over the real
    # steps exceeds it, in any unit
    threshold: float = 0.01
    # preferred rule, which replaces the published one: a window is still if every named field stays
    # within its range, in its own unit; other fields are ignored
    field_thresholds: Mapping[str, float] = field(default_factory=dict[str, float])


def moving_mask(windows: Windows, fields: Mapping[str, Array], spec: StillnessSpec) -> Array:
    """Bool [N], true for windows that are not still, from fields [F, C]; padding is ignored."""
    if spec.field_thresholds:
        return _exceeds_range(windows, fields, spec.field_thresholds)
    moves: list[Array] = []
    for name, values in fields.items():
        is_considered = any(word in name.lower() for word in _PUBLISHED_WORDS)
        if is_considered and values.dtype.kind != "U":
            moves.append(_deviation(windows, values) > spec.threshold)
    if not moves:
        return np.ones(len(windows.anchors), bool)
    return np.any(moves, axis=0) & (windows.valid.sum(axis=1) > 1)


def _deviation(windows: Windows, values: Array) -> Array:
    """Largest population standard deviation of any dimension over the real steps, [N]."""
    real = windows.valid[..., None]
    rows = np.where(real, values[windows.rows], 0.0)
    steps = np.maximum(real.sum(axis=1, keepdims=True), 1)
    mean = rows.sum(axis=1, keepdims=True) / steps
    squared = np.where(real, (rows - mean) ** 2, 0.0).sum(axis=1) / steps[:, 0]
    return np.sqrt(squared).max(axis=1, initial=0.0)


def _exceeds_range(
    windows: Windows, fields: Mapping[str, Array], thresholds: Mapping[str, float]
) -> Array:
    result = np.zeros(len(windows.anchors), bool)
    for name, threshold in thresholds.items():
        if name not in fields or fields[name].dtype.kind == "U":
            raise DataError(
                f"still_field_thresholds: no numeric field {name!r}",
                hint=did_you_mean(name, list(fields)),
                code="data.unknown_field",
                details={"field": name, "known": list(fields)},
            )
        rows = fields[name][windows.rows]
        real = windows.valid[..., None]
        highest = np.where(real, rows, -np.inf).max(axis=1)
        lowest = np.where(real, rows, np.inf).min(axis=1)
        # Not `>`: a range with NaN does not prove that the field is still.
        result |= ~((highest - lowest) <= threshold).all(axis=1)
    return result


class WindowsConfig(ConfigModel):
    """Options of windows."""

    past_lowdim_steps: int = option(
        1, "Number of frames of a window before its anchor.", ge=0, le=100_000
    )
    future_lowdim_steps: int = option(
        14, "Number of frames of a window after its anchor.", ge=0, le=100_000
    )
    stride: int = option(1, "Number of frames from one anchor to the next.", ge=1)
    max_padding_left: int = option(
        1, "Most frames of a window that may lie before the episode; they are padded.", ge=0
    )
    max_padding_right: int = option(
        7, "Most frames of a window that may lie after the episode; they are padded.", ge=0
    )
    padding_strategy: Padding = option("copy", "What padded frames contain.")
    filter_still_samples: bool = option(False, "Leave out windows in which nothing moves.")
    still_threshold: float = option(
        0.01,
        "Count a window as still if the standard deviation of each field is at most this.",
        ge=0,
    )
    still_field_thresholds: dict[str, float] = option(
        {},
        "Count a window as still if each of these fields stays within its range, in its unit; "
        "better than still_threshold.",
    )
    image_indices: list[int] = option(
        [-1, 0], "Images of a sample, as numbers of frames from the anchor.", min_length=1
    )

    @field_validator("image_indices")
    @classmethod
    def _each_once(cls, value: list[int]) -> Any:
        return unique_items(value)

    @model_validator(mode="after")
    def _still_filter_is_on(self) -> Self:
        if self.still_field_thresholds and not self.filter_still_samples:
            raise ValueError("still_field_thresholds needs filter_still_samples: true")
        if any(threshold < 0 for threshold in self.still_field_thresholds.values()):
            raise ValueError("still_field_thresholds must not be negative")
        return self

    def window_spec(self) -> WindowSpec:
        return WindowSpec(
            past=self.past_lowdim_steps,
            future=self.future_lowdim_steps,
            stride=self.stride,
            max_padding_left=self.max_padding_left,
            max_padding_right=self.max_padding_right,
            padding=self.padding_strategy,
        )

    def stillness(self) -> StillnessSpec | None:
        """Rule for windows to drop; None keeps all."""
        if not self.filter_still_samples:
            return None
        return StillnessSpec(self.still_threshold, self.still_field_thresholds)


@dataclass(frozen=True)
class SampleSpec:
    """Options that turn an episode into samples."""

    windows: WindowSpec  # shape of the windows
    image_offsets: tuple[int, ...]  # images of a sample, as frame offsets from the anchor
    image_size: tuple[int, int] | None  # (height, width) of the images; None keeps their size
    resize_method: ResizeMethod
    resize_filter: ResizeFilter = "lanczos_vips"
    # map from camera to quarter turns clockwise, before the resize
    rotations: Mapping[str, int] = field(default_factory=dict[str, int])
    # rule for windows to drop because nothing moves; None keeps all
    still: StillnessSpec | None = None
    compat: bool = False  # adjust calibration by the published rule

    def geometry(self, camera: str, size: tuple[int, int]) -> ImageGeometry:
        """Geometry for images of `size` (height, width) of a camera."""
        turns = self.rotations.get(camera, 0) % 4
        return make_geometry(size, self.image_size, self.resize_method, turns, self.resize_filter)


class EpisodeSampler:
    """Iterator over the samples of an episode, with `cameras` in this order."""

    def __init__(self, episode: Episode, cameras: Sequence[str], spec: SampleSpec) -> None:
        self.episode = episode
        self.cameras = tuple(cameras)
        self.spec = spec
        self.windows = make_windows(episode.num_frames, spec.windows)
        self.dropped: dict[str, int] = {}  # number of windows that are left out, by reason
        if self.windows.dropped_padding:
            self.dropped["padding"] = self.windows.dropped_padding
        if spec.still is not None and len(self.windows.anchors):
            moves = moving_mask(self.windows, episode.lowdim, spec.still)
            if not moves.all():
                self.dropped["still"] = int((~moves).sum())
            self.windows = self.windows.select(moves)
        self.geometries: dict[str, ImageGeometry] = {
            name: spec.geometry(name, episode.cameras[name].size) for name in cameras
        }
        self._relative: dict[str, dict[str, Array]] = {}  # relative fields by pose group

    @cached_property
    def fields(self) -> dict[str, Array]:
        """Windows [N, T, C] of all fields, relative poses included; text [N, T]."""
        fields = {name: self.windows.cut(values) for name, values in self.episode.lowdim.items()}
        return fields | relative_fields(fields, self.episode.pose_groups, self.spec.windows.past)

    def __len__(self) -> int:
        return len(self.windows.anchors)

    def __iter__(self) -> Iterator[Sample]:
        arrays = self._arrays_of_samples()
        for index, anchor in enumerate(self.windows.anchors.tolist()):
            yield Sample(
                key=self.key(index),
                anchor=anchor,
                image_frames=self.image_frames(index, self.spec.image_offsets),
                lowdim={name: values[index] for name, values in arrays.items()},
                language=self.episode.texts(anchor),
                metadata=self.metadata(index),
            )

    def _arrays_of_samples(self) -> dict[str, Array]:
        """Windows [N, T, ...] of fields, calibration and masks, in the order of their files."""
        arrays = dict(self.fields)
        rescaled: dict[str, Array] = {}
        calibrations = {
            name: self.episode.calibration.get(name, Calibration()) for name in self.cameras
        }
        cut = self.windows.cut_edge_padded
        for name, calibration in calibrations.items():
            if calibration.intrinsics is None:
                continue
            geometry = self.geometries[name]
            matrix = self._per_frame(calibration.intrinsics, name)
            if self.spec.compat:
                target = published_intrinsics(matrix, geometry, self.spec.resize_method)
            else:
                matrix = geometry.rotated_intrinsics(matrix)
                target = geometry.intrinsics(matrix)
            arrays[f"original_intrinsics.{name}"] = cut(matrix)
            rescaled[f"rescaled_intrinsics.{name}"] = cut(target)
        for name, calibration in calibrations.items():
            if calibration.extrinsics is None:
                continue
            matrix = self._per_frame(calibration.extrinsics, name)
            if not self.spec.compat:
                matrix = self.geometries[name].rotated_extrinsics(matrix)
            arrays[f"extrinsics.{name}"] = cut(matrix)
        arrays["past_mask"] = self.windows.past_mask
        arrays["future_mask"] = self.windows.future_mask
        return arrays | rescaled

    def _per_frame(self, values: Array, camera: str) -> Array:
        """Static calibration repeated for every frame."""
        if values.ndim == 2:
            return np.broadcast_to(values, (self.episode.num_frames, *values.shape))
        if len(values) != self.episode.num_frames:
            raise DataError(
                f"{self.episode.id}: calibration of camera {camera!r} has "
                f"{counted(len(values), 'frame')}, "
                f"the episode {self.episode.num_frames}",
                hint="leave the episode out with --exclude, or download it again",
                code="data.mismatch",
                details={"camera": camera},
            )
        return values

    def arrays(self, index: int, names: Collection[str]) -> dict[str, Array]:
        """Those of some fields [T, C] that a window has, and its masks [T], as in its sample."""
        window = self.windows.select(np.array([index]))
        arrays: dict[str, Array] = {}
        for name in names:
            if name in self.episode.lowdim:
                arrays[name] = window.cut(self.episode.lowdim[name])[0]
        for group in groups_with(names, self.episode.pose_groups):
            for name, values in self._relative_to(group).items():
                arrays[name] = values[index]
        arrays["past_mask"] = window.past_mask[0]
        arrays["future_mask"] = window.future_mask[0]
        return arrays

    def _relative_to(self, group: PoseGroup) -> dict[str, Array]:
        """Relative fields of a group in all windows, which costs little more than in one."""
        if group.name not in self._relative:
            keys = {group.position_key, group.rotation_key, *reference_keys(group)}
            fields = {key: self.windows.cut(self.episode.lowdim[key]) for key in keys}
            past = self.spec.windows.past
            self._relative[group.name] = relative_fields(fields, [group], past)
        return self._relative[group.name]

    def key(self, index: int) -> str:
        """Key of the sample of a window."""
        return sample_key(self.episode.id, int(self.windows.anchors[index]))

    def image_frames(self, index: int, offsets: Sequence[int]) -> dict[int, int]:
        """Frame of each image offset of a window."""
        return image_frames(int(self.windows.anchors[index]), offsets, self.episode.num_frames)

    def metadata(self, index: int) -> dict[str, Any]:
        """Metadata of the sample of a window."""
        spec = self.spec.windows
        episode = self.episode
        anchor = int(self.windows.anchors[index])
        past = int(self.windows.pad_left[index])
        future = int(self.windows.pad_right[index])
        image_sizes = {
            name: list(geometry.original[::-1]) for name, geometry in self.geometries.items()
        }
        metadata: dict[str, Any] = {
            "episode_id": episode.id,
            "sample_id": f"{self.key(index)}_{episode.id}_t{anchor:04d}",
            "anchor_timestep": anchor,
            "anchor_relative_idx": spec.past,
            "image_timesteps": [*self.image_frames(index, self.spec.image_offsets).values()],
            "lowdim_start_timestep": anchor - spec.past,
            "lowdim_end_timestep": anchor + spec.future,
            "past_padding": past,
            "future_padding": future,
            "camera_names": list(self.cameras),
            "original_episode_length": episode.num_frames,
            "original_image_sizes": image_sizes,
            "is_padded": past + future > 0,
            "task": episode.task,
            "fps": episode.fps,
        }
        spans = episode.spans_at(anchor)
        if spans:
            metadata["language_spans"] = [asdict(span) for span in spans]
        metadata |= episode.extras
        for name, values in episode.frame_metadata.items():
            metadata[name] = values[anchor]
        return metadata

    def needed_frames(self) -> set[int]:
        """Frames of all images of all samples."""
        frames: set[int] = set()
        for index in range(len(self)):
            frames.update(self.image_frames(index, self.spec.image_offsets).values())
        return frames

    def statistics(self, names: Collection[str] | None = None) -> WindowStatistics:
        """Statistics of numeric fields, concatenated, over the real rows of all samples.

        Args:
            names: The fields; those that the episode lacks are left out. None: all fields.
        """
        return window_statistics([*self._numeric(names).values()], self.windows.valid)

    def widths(self, names: Collection[str] | None = None) -> dict[str, int]:
        """Number of dimensions of each numeric field, in the order of the statistics."""
        widths: dict[str, int] = {}
        for name, values in self._numeric(names).items():
            widths[name] = 1 if values.ndim == 2 else values.shape[2]
        return widths

    def _numeric(self, names: Collection[str] | None) -> dict[str, Array]:
        """Windows [N, T, C] of numeric fields."""
        if names is None:
            fields = self.fields
        else:
            lowdim = self.episode.lowdim
            fields = {name: self.windows.cut(lowdim[name]) for name in names if name in lowdim}
            for group in groups_with(names, self.episode.pose_groups):
                fields |= self._relative_to(group)
        return {name: values for name, values in fields.items() if values.dtype.kind != "U"}


def sample_key(episode_id: str, anchor: int) -> str:
    """Key of 36 characters that depends only on episode and anchor."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"vlatool/{episode_id}/{anchor}"))
