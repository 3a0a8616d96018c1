"""Samples of an episode: windows of its fields, calibration, masks, metadata.

Legend of shapes: N samples, T steps, C dimensions.
Source: formats/lbm-preprocessing 2.1, 2.7; formats/lbm 2.1, 2.2, 2.3.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlatool.episode import Array, Calibration, Episode, Sample
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.transforms.geometry import (
    ImageGeometry,
    ResizeMethod,
    make_geometry,
    published_intrinsics,
)
from vlatool.transforms.relative import relative_fields
from vlatool.transforms.resampling import ResizeFilter
from vlatool.transforms.statistics import WindowStatistics, window_statistics
from vlatool.transforms.windows import (
    StillnessSpec,
    Windows,
    WindowSpec,
    image_frames,
    make_windows,
    moving_mask,
)


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
        windows = make_windows(episode.num_frames, spec.windows)
        self.dropped = {"padding": windows.dropped_padding} if windows.dropped_padding else {}
        self.windows: Windows = self._without_still(windows)
        self.geometries: dict[str, ImageGeometry] = {
            name: spec.geometry(name, episode.cameras[name].size) for name in cameras
        }
        fields = {name: self.windows.cut(values) for name, values in episode.lowdim.items()}
        self.fields = fields | relative_fields(fields, episode.pose_groups, spec.windows.past)

    def __len__(self) -> int:
        return len(self.windows.anchors)

    def __iter__(self) -> Iterator[Sample]:
        calibration, rescaled = self._calibration()
        arrays = {
            **self.fields,
            **calibration,
            "past_mask": self.windows.past_mask,
            "future_mask": self.windows.future_mask,
            **rescaled,
        }
        for index, anchor in enumerate(self.windows.anchors.tolist()):
            frames = self._frames(anchor)
            key = sample_key(self.episode.id, anchor)
            yield Sample(
                key=key,
                anchor=anchor,
                image_frames=frames,
                lowdim={name: values[index] for name, values in arrays.items()},
                language=self.episode.language,
                metadata=self._metadata(index, anchor, key, list(frames.values())),
            )

    def needed_frames(self) -> set[int]:
        """Frames of all images of all samples."""
        anchors = self.windows.anchors.tolist()
        return {frame for anchor in anchors for frame in self._frames(anchor).values()}

    def _frames(self, anchor: int) -> dict[int, int]:
        return image_frames(anchor, self.spec.image_offsets, self.episode.num_frames)

    def statistics(self) -> WindowStatistics:
        """Statistics of all numeric fields, concatenated, over the real rows of all samples."""
        numeric = [values for values in self.fields.values() if values.dtype.kind != "U"]
        return window_statistics(numeric, self.windows.valid)

    def widths(self) -> dict[str, int]:
        """Number of dimensions of each numeric field, in the order of the statistics."""
        return {
            name: 1 if values.ndim == 2 else values.shape[2]
            for name, values in self.fields.items()
            if values.dtype.kind != "U"
        }

    def _without_still(self, windows: Windows) -> Windows:
        if self.spec.still is None or not len(windows.anchors):
            return windows
        moves = moving_mask(windows, self.episode.lowdim, self.spec.still)
        if not moves.all():
            self.dropped["still"] = int((~moves).sum())
        return windows.select(moves)

    def _calibration(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """(windows of original intrinsics and of extrinsics, windows of rescaled intrinsics)."""
        intrinsics: dict[str, Array] = {}
        extrinsics: dict[str, Array] = {}
        rescaled: dict[str, Array] = {}
        cut = self.windows.cut_edge_padded
        for name in self.cameras:
            known = self.episode.calibration.get(name, Calibration())
            geometry = self.geometries[name]
            if known.intrinsics is not None:
                matrix = self._per_frame(known.intrinsics, name)
                if not self.spec.compat:
                    matrix = geometry.rotated_intrinsics(matrix)
                intrinsics[f"original_intrinsics.{name}"] = cut(matrix)
                rescaled[f"rescaled_intrinsics.{name}"] = cut(self._rescale(matrix, geometry))
            if known.extrinsics is not None:
                matrix = self._per_frame(known.extrinsics, name)
                if not self.spec.compat:
                    matrix = geometry.rotated_extrinsics(matrix)
                extrinsics[f"extrinsics.{name}"] = cut(matrix)
        return {**intrinsics, **extrinsics}, rescaled

    def _rescale(self, matrix: Array, geometry: ImageGeometry) -> Array:
        if self.spec.compat:
            return published_intrinsics(matrix, geometry, self.spec.resize_method)
        return geometry.intrinsics(matrix)

    def _per_frame(self, values: Array, camera: str) -> Array:
        """Static calibration repeated for every frame."""
        if values.ndim == 2:
            return np.broadcast_to(values, (self.episode.num_frames, *values.shape))
        if len(values) != self.episode.num_frames:
            raise DataError(
                f"{self.episode.id}: calibration of camera {camera!r} has "
                f"{counted(len(values), 'frame')}, "
                f"the episode {self.episode.num_frames}",
                hint="the episode is inconsistent; record or download it again",
                code="data.length_mismatch",
                details={"camera": camera},
            )
        return values

    def _metadata(
        self, index: int, anchor: int, key: str, image_timesteps: list[int]
    ) -> dict[str, Any]:
        spec, windows = self.spec.windows, self.windows
        past, future = int(windows.pad_left[index]), int(windows.pad_right[index])
        return {
            "episode_id": self.episode.id,
            "sample_id": f"{key}_{self.episode.id}_t{anchor:04d}",
            "anchor_timestep": anchor,
            "anchor_relative_idx": spec.past,
            "image_timesteps": image_timesteps,
            "lowdim_start_timestep": anchor - spec.past,
            "lowdim_end_timestep": anchor + spec.future,
            "past_padding": past,
            "future_padding": future,
            "camera_names": list(self.cameras),
            "original_episode_length": self.episode.num_frames,
            "original_image_sizes": {
                name: list(self.geometries[name].original[::-1]) for name in self.cameras
            },
            "is_padded": past + future > 0,
            "task": self.episode.task,
            "fps": self.episode.fps,
            **self.episode.extras,
            **{name: values[anchor] for name, values in self.episode.frame_metadata.items()},
        }


def sample_key(episode_id: str, anchor: int) -> str:
    """Key of 36 characters that depends only on episode and anchor."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"vlatool/{episode_id}/{anchor}"))
