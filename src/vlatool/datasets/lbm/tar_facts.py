"""Report of one shard, or of the tar of one episode, with a page of some samples.

Legend of shapes: T steps of a window.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.datasets.lbm.layout import MANIFEST_NAME, ShardFolder
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.media.images import visible_image
from vlatool.media.tar import OpenShard, open_shard
from vlatool.media.tar_sample import ARRAYS, StoredSample, parse_image
from vlatool.recordings import field_summary
from vlatool.report.charts import field_charts
from vlatool.report.episodes import FrameView, step_text
from vlatool.report.facts import (
    Axis,
    Code,
    Figure,
    Figures,
    Fold,
    PageRequest,
    Part,
    Problems,
    Quotes,
    Report,
    Section,
    Table,
    Tags,
    Text,
    Tiles,
    Titled,
    card,
    evenly_spaced,
    listed,
    status_text,
    under_heading,
)
from vlatool.report.poses import (
    CameraModel,
    EndEffectorTrack,
    draw_poses,
    pose_legend,
)
from vlatool.report.text import pixels_text
from vlatool.storage.tree import size_text

# Most images of a camera that leave room for the next camera beside them.
_BESIDE = 2


@dataclass(frozen=True)
class SampleWindow:
    anchor: int  # index of the anchor
    past_mask: Array  # real steps before the anchor, bool [T]
    future_mask: Array  # real steps from the anchor on, bool [T]

    @property
    def length(self) -> int:
        """T."""
        return len(self.past_mask)

    @property
    def is_padded(self) -> Array:
        """Steps that are padding, bool [T]."""
        return ~(self.past_mask | self.future_mask)

    @property
    def steps(self) -> Array:
        """Steps from the anchor, int [T]."""
        return np.arange(self.length) - self.anchor


def sample_card(tar: OpenShard, position: int, options: Mapping[str, Any]) -> Section:
    """Card of the sample at a position of a tar, or a card with the error; `options`:
    preprocessing_config.yaml; empty if unknown.
    """
    name = tar.path.name
    if position >= len(tar.keys):
        reason = tar.damage or f"the shard has {counted(len(tar.keys), 'sample')}"
        text = f"{name}: there is no sample {position}: {reason}"
        return Section(f"{name}, sample {position}", [Text(text, "note")], is_under=True)
    key = tar.keys[position]
    return card(key, lambda: _section(tar, key, options))


def frame_rate(metadata: Mapping[str, Any], options: Mapping[str, Any]) -> float | None:
    """Frames per second from the sample or the data set; None if neither has a valid value."""
    for tree in (metadata, options):
        value = tree.get("fps")
        if isinstance(value, int | float) and 0 < value < np.inf:
            return float(value)
    return None


def stored_view(
    sample: StoredSample, view: tuple[str, int], arrays: Mapping[str, Array], row: int
) -> FrameView:
    """Stored image with the camera model at a row of the window."""
    suffix = sample.image_suffixes().get(view)
    if suffix is None:
        return FrameView(None, problem="not in the sample")
    try:
        image = visible_image(sample.members[suffix])
    except (OSError, ValueError):
        return FrameView(None, problem=f"{suffix} cannot be decoded")
    intrinsics = arrays.get(f"rescaled_intrinsics.{view[0]}")
    extrinsics = arrays.get(f"extrinsics.{view[0]}")
    return FrameView(image, CameraModel.at(intrinsics, extrinsics, max(row, 0), image.size))


def _section(shard: OpenShard, key: str, options: Mapping[str, Any]) -> Section:
    """Card of a sample; raises DataError if the sample is broken."""
    with shard.reading(key) as sample:
        arrays = sample.arrays()
        metadata = sample.metadata()
        language = sample.language()
        window = _read_window(arrays, metadata)
        images: dict[tuple[str, int], FrameView] = {}
        for view in sample.image_suffixes():
            images[view] = stored_view(sample, view, arrays, window.anchor + view[1])
    numbers = field_summary.lowdim_columns(arrays, window.length)
    positions: dict[str, Array] = {}
    for name, values in numbers.items():
        if values.dtype.kind == "f":
            positions[name] = np.where(window.is_padded[:, None], np.nan, values)
    tracks = field_summary.pose_tracks(positions, field_summary.position_fields(positions))
    actions, proprioception = field_summary.policy_fields(
        numbers,
        listed(options, "action_fields"),
        listed(options, "proprioception_fields"),
        field_summary.recorded_names(options),
    )
    info = {
        "in": shard.path.name,
        "task": metadata.get("task"),
        "episode length": metadata.get("original_episode_length"),
        "steps": window.length,
        "padded": int(window.is_padded.sum()) or None,
    }
    frames = _image_frames(metadata, [offset for _, offset in images])
    is_calibrated = any(image.camera for image in images.values())
    axis = _axis(window, frame_rate(metadata, options))
    stored: list[tuple[str, Code]] = []
    for name, value in metadata.items():
        if isinstance(value, dict | list):
            value = json.dumps(value, ensure_ascii=False)
        stored.append((name, Code(value)))
    episode = metadata.get("episode_id")
    anchor = metadata.get("anchor_timestep")
    title = key if episode is None or anchor is None else f"{episode}, frame {anchor}"
    parts: list[Part] = [
        Tags(info),
        Text(key, "code"),
        Titled("Language", [Quotes(language)]),
        Titled("Images", _images(window, images, frames, tracks)),
        Text(pose_legend(tracks) if is_calibrated else "", "quiet"),
        Titled("Actions", field_charts(axis, window.steps, actions, has_dots=True)),
        Titled("Proprioception", field_charts(axis, window.steps, proprioception, has_dots=True)),
        Fold("Metadata", [Table(("key", "value"), stored)]),
    ]
    return Section(title, parts, is_under=True)


def _image_frames(metadata: Mapping[str, Any], offsets: Sequence[int]) -> dict[int, int]:
    """Map from image offset to its frame; empty if the frames are not recorded."""
    frames = metadata.get("image_timesteps")
    if not isinstance(frames, list):
        return {}
    return dict(zip(dict.fromkeys(offsets), frames, strict=False))


def _read_window(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> SampleWindow:
    """Window of a sample; without masks no step is padding."""
    anchor = metadata.get("anchor_relative_idx")
    if not isinstance(anchor, int):
        anchor = 0
    past = arrays.get("past_mask")
    future = arrays.get("future_mask")
    if past is not None and future is not None and past.ndim == 1 and past.shape == future.shape:
        length = len(past)
        past = past.astype(bool)
        future = future.astype(bool)
    else:
        length = 0
        for values in arrays.values():
            if values.ndim:
                length = max(length, len(values))
        past = np.arange(length) < anchor
        future = np.arange(length) >= anchor
    if not length:
        raise DataError("the sample has no rows", code="data.broken")
    return SampleWindow(min(max(anchor, 0), length - 1), past, future)


def _images(
    window: SampleWindow,
    images: Mapping[tuple[str, int], FrameView],  # (camera, image offset) to the stored image
    frames: Mapping[int, int],  # map from image offset to its frame in the episode
    tracks: Sequence[EndEffectorTrack],  # end effectors over the window; NaN for padding
) -> list[Part]:
    """Cameras in rows of equal length, with the images of each side by side."""
    cameras = list(dict.fromkeys(camera for camera, _ in images))
    offsets = sorted({offset for _, offset in images})
    rows: list[Part] = []
    beside: list[Figure] = []
    for camera in cameras:
        figures: list[Figure] = []
        for offset in offsets:
            caption = step_text(offset)
            if offset in frames:
                caption += f", frame {frames[offset]}"
            missing = FrameView(None, problem="not in the sample")
            image = images.get((camera, offset), missing)
            drawing = ""
            if image.camera is not None:
                step = _shown_step(window, offset)
                drawing = draw_poses(tracks, step, image.camera, window.length)
            shown = caption if len(offsets) > _BESIDE else f"{camera} {caption}"
            figures.append(image.figure(shown, f"{camera}, {caption}", drawing))
        rows.append(Figures(figures, camera))
        beside += figures
    return rows if len(offsets) > _BESIDE else [Figures(beside)]


def _shown_step(window: SampleWindow, offset: int) -> int:
    """Step of an image; a padded step shows the first or last frame."""
    real = np.flatnonzero(~window.is_padded)
    if not len(real):
        return window.anchor
    return int(np.clip(window.anchor + offset, real[0], real[-1]))


def _axis(window: SampleWindow, fps: float | None) -> Axis:
    """Axis of the steps of a window, on which padding is shaded."""
    steps = window.steps
    return Axis(
        float(steps[0]) - 0.5,
        float(steps[-1]) + 0.5,
        f"steps of {1 / fps:.3g} s" if fps else "steps",
        whole=True,
        anchor=0.0,
        shaded=tuple((step - 0.5, step + 0.5) for step in steps[window.is_padded].tolist()),
    )


@dataclass(frozen=True)
class SampleSummary:
    """Contents of a sample."""

    key: str
    members: Mapping[str, int]  # suffix (`lowdim.npz`) to size in bytes
    # map from suffix of each image to its (width, height); None if it cannot be opened
    pictures: Mapping[str, tuple[int, int] | None]
    arrays: Mapping[str, Mapping[str, Any]]  # low-dimensional array to its `shape` and `dtype`
    language: Mapping[str, list[str]]  # map from kind of annotation to sentences

    def cameras(self) -> dict[str, tuple[int, int] | None]:
        """Map from camera to the (width, height) of its first image."""
        sizes: dict[str, tuple[int, int] | None] = {}
        for suffix, size in self.pictures.items():
            name = parse_image(suffix)
            if name is not None:
                sizes.setdefault(name.camera, size)
        return sizes

    def array_rows(self) -> list[tuple[str, str, str]]:
        """Name, shape and type of each array, as text."""
        rows: list[tuple[str, str, str]] = []
        for name, array in self.arrays.items():
            shape = " x ".join(map(str, array["shape"]))
            rows.append((name, shape or "scalar", array["dtype"]))
        return rows


@dataclass(frozen=True)
class ShardFacts:
    """Contents of a shard."""

    samples: int  # number of keys with at least one member
    members: int  # number of files in the tar
    bytes: int  # size of the tar
    # map from number of members to number of samples that have that many
    members_per_sample: Mapping[int, int]
    first: SampleSummary | None  # first sample; None in an empty tar
    problem: str = ""  # reason why the tar could not be read to its end; empty if it could


def inspect_shard(path: Path) -> Report:
    """Reads the headers of a tar and its first sample."""
    facts = _read_facts(path)
    counts: list[str] = []
    for members, samples in facts.members_per_sample.items():
        if len(facts.members_per_sample) > 1:
            counts.append(f"{members} in {counted(samples, 'sample')}")
        else:
            counts.append(str(members))
    return Report(
        kind="shard",
        headline=f"shard, {counted(facts.samples, 'sample')}",
        facts=asdict(facts),
        summary={
            "status": facts.problem or status_text("whole"),
            "on disk": size_text(facts.bytes),
            "members per sample": ", ".join(counts),
            "first sample": facts.first.key if facts.first else "none",
        },
        tables=_tables(facts.first) if facts.first else (),
        page=partial(_page, path, facts),
    )


def first_sample(shard: OpenShard) -> SampleSummary | None:
    """Summary of the first sample of a tar; None if there is none or it cannot be read."""
    if not shard.keys:
        return None
    try:
        with shard.reading(shard.keys[0]) as sample:
            return _sample_summary(sample, shard.members[sample.key])
    except DataError:
        return None


def _read_facts(path: Path) -> ShardFacts:
    with open_shard(path) as shard:
        counts = Counter[str]()
        for sample in shard.scan.samples:
            counts[sample.key] += len(sample.members)
        problem = shard.damage
        others = sum(found.code == "not_a_file" for found in shard.scan.problems)
        if others and not problem:
            problem = f"{counted(others, 'member is', 'members are')} not plain files"
        return ShardFacts(
            samples=len(counts),
            members=counts.total(),
            bytes=path.stat().st_size,
            members_per_sample=dict(Counter(counts.values()).most_common()),
            first=first_sample(shard),
            problem=problem,
        )


def _sample_summary(sample: StoredSample, ranges: Mapping[str, tuple[int, int]]) -> SampleSummary:
    """Summary of a sample; `ranges` maps each suffix to (offset, size)."""
    try:
        language = sample.language()
    except ValueError:
        language = {}
    sizes = {suffix: size for suffix, (_, size) in ranges.items()}
    arrays: dict[str, Mapping[str, Any]] = {}
    if ARRAYS in sample.members:
        for name, (shape, dtype) in sample.array_headers().items():
            arrays[name] = {"shape": shape, "dtype": dtype}
    return SampleSummary(sample.key, sizes, sample.image_sizes(), arrays, language)


def _tables(first: SampleSummary) -> list[Table]:
    members: list[tuple[str, str, str]] = []
    for name, size in first.members.items():
        pixels = ""
        if name in first.pictures:
            pixels = pixels_text(first.pictures[name], "unreadable")
        members.append((name, size_text(size), pixels))
    language = [(kind, f'"{texts[0]}"') for kind, texts in first.language.items()]
    return [
        Table(("name", "size", "width x height"), members, "Members of the first sample"),
        Table(("name", "shape", "dtype"), first.array_rows(), f"Arrays of {ARRAYS}"),
        Table(("kind", "example"), language, "Language"),
    ]


def _page(path: Path, facts: ShardFacts, request: PageRequest) -> list[Section]:
    # A shard without its folder has no options.
    options = Problems().read(ShardFolder(path.parent / MANIFEST_NAME).options) or {}
    with open_shard(path) as tar:
        total = len(tar.keys)
        samples = [sample_card(tar, i, options) for i in evenly_spaced(total, request.samples)]
    return [_overview(facts), *under_heading(f"Samples ({len(samples)} of {total})", samples)]


def _overview(facts: ShardFacts) -> Section:
    info = {
        "samples": f"{facts.samples:,}",
        "members": f"{facts.members:,}",
        "status": "broken" if facts.problem else status_text("whole"),
        "on disk": size_text(facts.bytes),
    }
    parts: list[Part] = [Tiles(info), Text(facts.problem, "note")]
    if facts.first is not None:
        sizes = [(Code(name), f"{size:,}") for name, size in facts.first.members.items()]
        members = Table(("member", "bytes"), sizes)
        parts.append(Fold("Members of the first sample", [members]))
        rows = [(Code(name), shape, dtype) for name, shape, dtype in facts.first.array_rows()]
        arrays = Table(("array", "shape", "type"), rows)
        parts.append(Fold("Arrays of the first sample", [arrays]))
    return Section("Overview", parts)
