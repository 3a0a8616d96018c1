"""Summary of a training sample, and its view for a page.

Legend of shapes: T steps of the window, C dimensions of a field.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlatool.artifacts.sample import ARRAYS, StoredSample, parse_image
from vlatool.artifacts.shards.dimensions import Names, recorded_names
from vlatool.artifacts.tar import OpenShard
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.inspection.fields import lowdim_columns, policy_fields
from vlatool.inspection.projection import (
    EndEffectorTrack,
    FrameView,
    pose_tracks,
    position_fields,
    stored_view,
)
from vlatool.inspection.report import Size, listed


@dataclass(frozen=True)
class SampleSummary:
    """Contents of a sample.

    Attributes:
        key: Key of the sample.
        members: Suffix (`lowdim.npz`) to size in bytes.
        pictures: Map from suffix of each image to its (width, height); None if it cannot be opened.
        arrays: Low-dimensional array to shape and type.
        language: Map from kind of annotation to sentences.
    """

    key: str
    members: Mapping[str, int]
    pictures: Mapping[str, Size | None]
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    language: Mapping[str, list[str]]

    def cameras(self) -> dict[str, Size | None]:
        """Map from camera to the (width, height) of its first image."""
        sizes: dict[str, Size | None] = {}
        for suffix, size in self.pictures.items():
            name = parse_image(suffix)
            if name is not None:
                sizes.setdefault(name.camera, size)
        return sizes

    def array_rows(self) -> list[tuple[str, str, str]]:
        """Name, shape and type of each array, as text."""
        return [
            (name, " x ".join(map(str, shape)) or "scalar", dtype)
            for name, (shape, dtype) in self.arrays.items()
        ]

    def document(self) -> dict[str, Any]:
        """Summary as JSON values."""
        arrays = {name: {"shape": s, "dtype": dtype} for name, (s, dtype) in self.arrays.items()}
        return {**asdict(self), "arrays": arrays}


def first_sample(shard: OpenShard) -> SampleSummary | None:
    """Summary of the first sample of a tar; None if there is none or it cannot be read."""
    if not shard.keys:
        return None
    try:
        with shard.reading(shard.keys[0]) as sample:
            return _sample_summary(sample, shard.members[sample.key])
    except DataError:
        return None


def _sample_summary(sample: StoredSample, ranges: Mapping[str, tuple[int, int]]) -> SampleSummary:
    """Summary of a sample; `ranges` maps each suffix to (offset, size)."""
    try:
        language = sample.language()
    except ValueError:
        language = {}
    sizes = {suffix: size for suffix, (_, size) in ranges.items()}
    arrays = sample.array_headers() if ARRAYS in sample.members else {}
    return SampleSummary(sample.key, sizes, sample.image_sizes(), arrays, language)


@dataclass(frozen=True)
class SampleView:
    """Contents of a sample to show.

    Attributes:
        name: Heading.
        key: Key in the tar.
        info: Map from name to value, shown as labels.
        anchor: Index of the anchor in the window.
        past_mask: Real steps before the anchor, bool [T].
        future_mask: Real steps from the anchor on, bool [T].
        fps: Frames per second; None if unknown.
        images: (camera, image offset) to the stored image.
        frames: Map from image offset to its frame in the episode.
        actions: Map from action field to values [T, C].
        proprioception: Map from proprioception field to values [T, C].
        tracks: End effectors over the window; NaN for padding.
        language: Map from kind of annotation to sentences.
        metadata: metadata.json.
        names: Recorded names of the dimensions of fields.
    """

    name: str
    key: str
    info: Mapping[str, object]
    anchor: int
    past_mask: Array
    future_mask: Array
    fps: float | None
    images: Mapping[tuple[str, int], FrameView]
    frames: Mapping[int, int]
    actions: Mapping[str, Array]
    proprioception: Mapping[str, Array]
    tracks: tuple[EndEffectorTrack, ...]
    language: Mapping[str, Sequence[str]]
    metadata: Mapping[str, Any]
    names: Names

    @property
    def length(self) -> int:
        """T."""
        return len(self.past_mask)


def view_sample(shard: OpenShard, key: str, options: Mapping[str, Any]) -> SampleView:
    """View of a sample.

    Args:
        shard: Shard of the sample.
        key: Key of the sample.
        options: preprocessing_config.yaml; empty if unknown.

    Raises:
        DataError: The sample is broken.
    """
    with shard.reading(key) as sample:
        arrays, metadata, language = sample.arrays(), sample.metadata(), sample.language()
        past, future, anchor = _masks(arrays, metadata)
        views = sample.image_suffixes()
        images = {view: stored_view(sample, view, arrays, anchor + view[1]) for view in views}
    numbers = lowdim_columns(arrays, len(past))
    actions, proprioception = chosen_fields(numbers, options)
    padding = ~(past | future)
    positions = {
        name: np.where(padding[:, None], np.nan, values)
        for name, values in numbers.items()
        if values.dtype.kind == "f"
    }
    return SampleView(
        name=_name(metadata, key),
        key=key,
        info={
            "in": shard.path.name,
            "task": metadata.get("task"),
            "episode length": metadata.get("original_episode_length"),
            "steps": len(past),
            "padded": int(padding.sum()) or None,
        },
        anchor=anchor,
        past_mask=past,
        future_mask=future,
        fps=rate(metadata, options),
        images=images,
        frames=_image_frames(metadata, [offset for _, offset in views]),
        actions=actions,
        proprioception=proprioception,
        tracks=pose_tracks(positions, position_fields(positions)),
        language=language,
        metadata=metadata,
        names=recorded_names(options),
    )


def chosen_fields(
    numbers: Mapping[str, Array], options: Mapping[str, Any]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Action and proprioception fields for charts: the configured ones, else selected by name."""
    actions, proprioception = "action_fields", "proprioception_fields"
    return policy_fields(numbers, listed(options, actions), listed(options, proprioception))


def rate(metadata: Mapping[str, Any], options: Mapping[str, Any]) -> float | None:
    """Frames per second from the sample or the data set; None if neither has a valid value."""
    for tree in (metadata, options):
        value = tree.get("fps")
        if isinstance(value, int | float) and 0 < value < np.inf:
            return float(value)
    return None


def _name(metadata: Mapping[str, Any], key: str) -> str:
    """Episode and anchor of a sample, else its key."""
    episode, anchor = metadata.get("episode_id"), metadata.get("anchor_timestep")
    return key if episode is None or anchor is None else f"{episode}, frame {anchor}"


def _image_frames(metadata: Mapping[str, Any], offsets: Sequence[int]) -> dict[int, int]:
    """Map from image offset to its frame; empty if the frames are not recorded."""
    frames = metadata.get("image_timesteps")
    if not isinstance(frames, list):
        return {}
    return dict(zip(dict.fromkeys(offsets), frames, strict=False))


def _masks(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> tuple[Array, Array, int]:
    """past_mask and future_mask, bool [T], and the anchor; without masks no step is padding.

    Raises:
        DataError: The sample has neither masks nor fields.
    """
    anchor = metadata.get("anchor_relative_idx")
    anchor = anchor if isinstance(anchor, int) else 0
    past, future = arrays.get("past_mask"), arrays.get("future_mask")
    if past is not None and future is not None and past.ndim == 1 and past.shape == future.shape:
        length = len(past)
        past, future = past.astype(bool), future.astype(bool)
    else:
        length = max((len(values) for values in arrays.values() if values.ndim), default=0)
        past, future = np.arange(length) < anchor, np.arange(length) >= anchor
    if not length:
        raise DataError("the sample has no rows", code="data.broken_sample")
    return past, future, min(max(anchor, 0), length - 1)
