"""The `curation` sink: figures of each episode, and of each among the others.

A worker reads an episode once. What the comparison with others needs is small: states at 32 times,
mean images of 8 x 8 pixels.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from vlatool.config.base import option
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.media.images import encode_jpeg
from vlatool.recordings import writing
from vlatool.recordings.curation import layout as curation_layout
from vlatool.storage.atomic import remove_file, write_bytes
from vlatool.transforms import neighbors
from vlatool.transforms.episode_images import grid, image_figures, mean_images, repeats
from vlatool.transforms.motion import action_lags, lag_residuals, motion_figures, moving_dimensions
from vlatool.transforms.relative import stored_from

_TIMES = 32  # of a path
_MOMENTS = 16  # at which actions are compared
_SHOWN = 5
_SHOWN_SIZE = 96
_MOST_BLANK = 0.5  # share of the episodes in which a camera that counts has no image


class CurationConfig(writing.SinkConfig):
    """Options of the sink `curation` (figures of episodes)."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"Output": ("type",)}

    type: Literal["curation"] = option("curation", "Form of the output: figures of each episode.")


@dataclass(frozen=True)
class EpisodeFigures:
    """Computes the figures of an episode; picklable."""

    output: Path

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Figures of the episode as facts, and what the comparison with others needs as arrays."""
        states = _columns(episode, episode.proprioception_fields)
        actions = _columns(episode, episode.action_fields)
        figures: dict[str, float] = {}
        if episode.success is not None:
            figures["success"] = float(episode.success)
        arrays: dict[str, Array] = {}
        changing = states[:, :0]
        if np.isfinite(states).all() and np.isfinite(actions).all() and len(states):
            changing = moving_dimensions(states)
            figures |= motion_figures(states, episode.fps)
            times = np.linspace(0, len(states) - 1, _MOMENTS + 2).round().astype(int)[1:-1]
            arrays = {
                "path": neighbors.resampled(states, _TIMES).reshape(-1),
                "states": states[times].astype(np.float32),
                "actions": actions[times].astype(np.float32),
            }
            residuals = lag_residuals(states, actions)
            if residuals is not None:
                arrays["lags"] = residuals

        figures_by_camera: dict[str, dict[str, float]] = {}
        rows: list[UInt8Array] = []  # of the strip, a camera each
        for name, source in episode.cameras.items():
            grids, repeated, shown = _read(name, source, episode.num_frames)
            figures_by_camera[name] = image_figures(grids, repeated, changing)
            if figures_by_camera[name]["blank_share"] < 1:
                mean, end = mean_images(grids)
                arrays[f"mean/{name}"] = mean
                arrays[f"end/{name}"] = end
            rows.append(np.hstack([_small(image) for image in shown]))
        files: tuple[FileEntry, ...] = ()
        if rows:
            name = f"{curation_layout.STRIPS}/{ref.id}.jpg"
            width = max(row.shape[1] for row in rows)
            padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
            write_bytes(self.output / name, encode_jpeg(np.vstack(padded), 85), synced=False)
            files = (file_entry(self.output, name),)
        facts = {
            "figures": figures,
            "instruction": episode.instruction_at(0),
            "cameras": figures_by_camera,
        }
        counts = {"frames": episode.num_frames, "samples": 1}
        return Receipt(ref.id, counts=counts, files=files, facts=facts, arrays=arrays)


def _columns(episode: Episode, names: Sequence[str]) -> Array:
    """Numeric fields [F, C] side by side."""
    columns = [np.zeros((episode.num_frames, 0))]
    for name in dict.fromkeys(stored_from(name, episode.lowdim) for name in names):
        values = episode.lowdim.get(name)
        if values is not None and values.dtype.kind in "fiub":
            columns.append(values.reshape(len(values), -1))
    return np.concatenate(columns, axis=1, dtype=np.float64)


def _read(
    camera: str, source: FrameSource, num_frames: int
) -> tuple[UInt8Array, Array, list[UInt8Array]]:
    """Grids [F, 32, 32, 3], whether each image repeats the one before it [F - 1], and those that
    are shown.
    """
    shown_frames = {*neighbors.spread(num_frames, _SHOWN)}
    grids: list[UInt8Array] = []
    repeated: list[Array] = []
    shown: list[UInt8Array] = []
    last: tuple[UInt8Array, ...] = ()
    last_grid: tuple[UInt8Array, ...] = ()
    for start in range(0, num_frames, writing.FRAMES_PER_READ):
        frames = range(start, min(start + writing.FRAMES_PER_READ, num_frames))
        images = writing.read_rgb(camera, source, frames)
        grids.append(grid(images))
        repeated.append(repeats([*last, *images], [*last_grid, *grids[-1]]))
        for frame, image in zip(frames, images, strict=True):
            if frame in shown_frames:
                shown.append(image)
        last = (images[-1],)
        last_grid = (grids[-1][-1],)
    return np.concatenate(grids), np.concatenate(repeated), shown


def _small(pixels: UInt8Array) -> UInt8Array:
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((_SHOWN_SIZE, _SHOWN_SIZE))
    return np.asarray(image)


class CurationSink(writing.Sink):
    """Writes the figures; `vlatool curate` applies rules to them."""

    Config: ClassVar[type[writing.SinkConfig]] = CurationConfig
    owned: ClassVar[Sequence[str]] = curation_layout.OWNED_FILES
    volatile: ClassVar[Sequence[str]] = (
        curation_layout.NAME,
        curation_layout.PAGE,
        f"{curation_layout.FOLDS}/*/*.json",
    )  # written by `vlatool curate`, not by its job
    needs_rate: ClassVar[bool] = False
    next_step: ClassVar[str] = "vlatool inspect {output}"

    def __init__(self, config: CurationConfig, setup: writing.SinkSetup) -> None:
        self._setup = setup
        self.work: writing.Work = EpisodeFigures(setup.output)
        self.fields: Mapping[str, int] = {}
        self.action_fields: tuple[str, ...] = ()
        self.proprioception_fields: tuple[str, ...] = ()

    def begin(self) -> None:
        for name in (curation_layout.FIGURES_NAME, curation_layout.NAME, curation_layout.PAGE):
            remove_file(self._setup.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> writing.SinkSummary:
        done = [receipt for receipt in receipts if "figures" in receipt.facts]
        if not done:
            raise DataError(
                "no episode is left to measure: all of them failed or were left out",
                hint="select other episodes, or drop the options that leave them out",
                code="data.no_samples",
                details={"dropped": dict(run.dropped)},
            )
        curation_layout.write_curation(
            self._setup.output / curation_layout.FIGURES_NAME, compared(done)
        )
        files: list[FileEntry] = []
        for receipt in done:
            files += receipt.files
        files.append(file_entry(self._setup.output, curation_layout.FIGURES_NAME))
        return writing.SinkSummary(len(done), sum(file.bytes for file in files), tuple(files))

    def estimate(self) -> writing.Estimate:
        return writing.Estimate(self._setup.survey.episodes)


def compared(receipts: Sequence[Receipt]) -> curation_layout.Curation:
    """The episodes with their figures, those that need the others included."""
    facts = [receipt.facts for receipt in receipts]
    instructions = np.array([row["instruction"] for row in facts])
    columns, repeating_cameras = _of_cameras([row["cameras"] for row in facts])
    names: set[str] = set()
    for row in facts:
        names.update(row["figures"])
    for name in names:
        columns[name] = np.array([row["figures"].get(name, np.nan) for row in facts])
    columns |= _among_others(receipts, instructions)

    absent = dict(_ABSENT)
    if len(set(instructions.tolist())) < 2:
        absent["other_instruction"] = _ONE_INSTRUCTION
    episodes: list[curation_layout.CuratedEpisode] = []
    for receipt, camera in zip(receipts, repeating_cameras, strict=True):
        frames = receipt.counts["frames"]
        instruction = receipt.facts["instruction"]
        episodes.append(
            curation_layout.CuratedEpisode(receipt.item, frames, instruction, camera=camera)
        )
    ordered = {name: columns[name] for name in curation_layout.FIGURES if name in columns}
    return curation_layout.Curation(tuple(episodes), absent).with_figures(ordered)


def _among_others(receipts: Sequence[Receipt], instructions: Array) -> dict[str, Array]:
    """Figures [N] by the comparison of each episode with the others."""
    counts: Counter[str] = Counter()
    for receipt in receipts:
        counts.update(receipt.arrays.keys())
    means: list[Array] = []  # of the cameras that most episodes have
    lasts: list[Array] = []
    for name, count in sorted(counts.items()):
        if count <= _MOST_BLANK * len(receipts):
            continue
        if name.startswith("mean/"):
            means.append(_stacked(receipts, name))
        if name.startswith("end/"):
            lasts.append(_stacked(receipts, name))
    paths = _stacked(receipts, "path")
    last_states = paths[:, (_TIMES - 1) * paths.shape[1] // _TIMES :]
    states = _stacked(receipts, "states")
    actions = _stacked(receipts, "actions")
    lags = _stacked(receipts, "lags")
    ends = np.hstack([last_states, *lasts])
    whole = np.hstack([paths, *means])
    columns = {
        "end_distance": _figure(neighbors.distances, instructions, last_states),
        "disagreement": _figure(neighbors.disagreements, instructions, states, actions),
        "other_instruction": _figure(neighbors.other_group_ratios, instructions, ends),
        "duplicate_distance": _figure(_duplicate_distances, instructions, whole),
        "action_lag": np.abs(_figure(_action_lags, instructions, lags)),
    }
    if len(means) > 1:
        images = np.stack(means, axis=1)
        columns["swapped_cameras"] = _figure(_swapped_ratios, instructions, images)
    return columns


def _stacked(receipts: Sequence[Receipt], name: str) -> Array:
    """An array of each episode [N, ...]; NaN for those without."""
    known = [receipt.arrays[name] for receipt in receipts if name in receipt.arrays]
    missing = np.full(known[0].shape if known else 1, np.nan)
    return np.stack([receipt.arrays.get(name, missing) for receipt in receipts])


def _figure(function: Callable[..., Array], instructions: Array, *features: Array) -> Array:
    """A figure [N] of the episodes with all features [N, ...]; NaN for others.

    `function`: features and instructions of these episodes to their figure.
    """
    values = np.full(len(instructions), np.nan)
    has_all = np.ones(len(instructions), bool)
    for feature in features:
        has_all &= ~np.isnan(feature.reshape(len(instructions), -1)).any(axis=1)
    if has_all.sum() > 1 and all(feature.size for feature in features):
        arguments = [feature[has_all] for feature in features]
        values[has_all] = function(*arguments, instructions[has_all])
    return values


def _duplicate_distances(features: Array, _instructions: Array) -> Array:
    """Distances to the nearest episode of any instruction."""
    return neighbors.distances(features, [""] * len(features), 1)


def _action_lags(residuals: Array, _instructions: Array) -> Array:
    return action_lags(residuals)


def _swapped_ratios(means: Array, _instructions: Array) -> Array:
    return neighbors.swapped_ratios(means)


def _of_cameras(
    seen: Sequence[Mapping[str, Mapping[str, float]]],
) -> tuple[dict[str, Array], list[str]]:
    """Figures of the worst camera of each episode [N], and the camera that repeats its image most.

    Cameras with images of one color in most episodes, as those that a robot lacks, do not count.
    """
    is_blank: dict[str, list[bool]] = {}
    for cameras in seen:
        for name, figures in cameras.items():
            is_blank.setdefault(name, []).append(figures["blank_share"] == 1)
    used = {name for name, flags in is_blank.items() if np.mean(flags) <= _MOST_BLANK}
    columns: dict[str, Array] = {}
    repeating: list[str] = []
    for figure in ("blank_share", "frozen_share"):
        worst: list[float] = []
        for cameras in seen:
            values: dict[str, float] = {}
            for name, figures in cameras.items():
                if name in used and figure in figures:
                    values[name] = figures[figure]
            worst.append(max(values.values(), key=abs, default=np.nan))
            if figure == "frozen_share":
                repeating.append(max(values, key=values.__getitem__, default=""))
        columns[figure] = np.array(worst)
    return columns, repeating


_ONE_INSTRUCTION = "all episodes have the same instruction"
# Reasons for which no episode has a figure.
_ABSENT: Mapping[str, str] = {
    **{
        name: "no states or actions that it needs, or too few"
        for name in curation_layout.FIGURES
        if name != curation_layout.MODEL_ERROR
    },
    "success": "the recordings do not say whether the task was completed",
    "frozen_share": "no images, or no motion",
    "blank_share": "no images",
    "swapped_cameras": "fewer than two cameras, or too few episodes",
}
