"""The `curation` sink: figures of each episode, and of each among the others.

A worker reads an episode once. What the comparison with others needs is small: states at 32 times,
mean images of 8 x 8 pixels.
"""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from vlatool.artifacts.curation.format import (
    FIGURES,
    FIGURES_NAME,
    FOLDS,
    MODEL_ERROR,
    NAME,
    OWNED_FILES,
    PAGE,
    STRIPS,
    CuratedEpisode,
    Curation,
    write_curation,
)
from vlatool.config.base import option
from vlatool.episode import Array, Episode, EpisodeRef, UInt8Array
from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.sinks import base
from vlatool.storage.atomic import remove_file, write_bytes
from vlatool.transforms import neighbors
from vlatool.transforms.episode_images import grid, image_figures, mean_images, repeats
from vlatool.transforms.motion import action_lags, lag_residuals, motion_figures, moving_dimensions
from vlatool.transforms.relative import stored_from

_TIMES = 32  # of a path
_MOMENTS = 16  # at which actions are compared
_SHOWN, _SHOWN_SIZE = 5, 96
_MOST_BLANK = 0.5  # share of the episodes in which a camera that counts has no image
_OF_IMAGES = ("blank_share", "frozen_share", "camera_lag")


class CurationConfig(base.SinkConfig):
    """Figures of episodes."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {"Output": ("type",)}

    type: Literal["curation"] = option("curation", "Form of the output: figures of each episode.")


@dataclass(frozen=True)
class EpisodeFigures:
    """Computes the figures of an episode; picklable."""

    output: Path

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        states = _columns(episode, episode.proprioception_fields)
        actions = _columns(episode, episode.action_fields)
        figures = {} if episode.success is None else {"success": float(episode.success)}
        arrays: dict[str, Array] = {}
        if np.isfinite(states).all() and np.isfinite(actions).all() and len(states):
            figures |= motion_figures(states, actions, episode.fps)
            times = np.linspace(0, len(states) - 1, _MOMENTS + 2).round().astype(int)[1:-1]
            arrays = {
                "path": neighbors.resampled(states, _TIMES).reshape(-1),
                "states": states[times].astype(np.float32),
                "actions": actions[times].astype(np.float32),
            }
            residuals = lag_residuals(states, actions)
            arrays |= {} if residuals is None else {"lags": residuals}
        changing = moving_dimensions(states) if arrays else states[:, :0]
        seen: dict[str, dict[str, float]] = {}
        strips: list[list[UInt8Array]] = []
        for name, source in episode.cameras.items():
            read = [*_read(name, source, episode.num_frames)]
            grids = np.concatenate([part[0] for part in read])
            repeated = np.concatenate([part[1] for part in read])[1:]
            seen[name] = image_figures(grids, repeated, changing)
            if seen[name]["blank_share"] < 1:
                mean, end = mean_images(grids)
                arrays |= {f"mean/{name}": mean, f"end/{name}": end}
            strips.append([image for part in read for image in part[2]])
        files: tuple[FileEntry, ...] = ()
        if strips:
            name = f"{STRIPS}/{ref.id}.jpg"
            write_bytes(self.output / name, _strip(strips), synced=False)
            files = (file_entry(self.output, name),)
        facts = {"figures": figures, "instruction": episode.instruction_at(0), "cameras": seen}
        counts = {"frames": episode.num_frames, "samples": 1}
        return Receipt(ref.id, counts=counts, files=files, facts=facts, arrays=arrays)


def _columns(episode: Episode, names: Sequence[str]) -> Array:
    """Numeric fields [F, C] side by side."""
    known = dict.fromkeys(stored_from(name, episode.lowdim) for name in names)
    fields = [episode.lowdim[name] for name in known if name in episode.lowdim]
    numbers = [values.reshape(len(values), -1) for values in fields if values.dtype.kind in "fiub"]
    empty = np.zeros((episode.num_frames, 0))
    return np.concatenate([empty, *numbers], axis=1, dtype=np.float64)


def _read(
    camera: str, source: Any, num_frames: int
) -> Iterator[tuple[UInt8Array, Array, list[UInt8Array]]]:
    """Grids [N, 32, 32, 3] of some frames, whether each repeats the one before it [N], and those
    of them that are shown.
    """
    shown = {*np.linspace(0, num_frames - 1, _SHOWN).round().astype(int).tolist()}
    before: UInt8Array | None = None
    for start in range(0, num_frames, base.FRAMES_PER_READ):
        frames = range(start, min(start + base.FRAMES_PER_READ, num_frames))
        images = base.read_rgb(camera, source, frames)
        joined = images if before is None else np.concatenate([before, images])
        grids = grid(joined)
        repeated = repeats(joined, grids)
        before = images[-1:]
        yield (
            grids[len(joined) - len(images) :],
            repeated if len(joined) > len(images) else np.concatenate([[False], repeated]),
            [image for frame, image in zip(frames, images, strict=True) if frame in shown],
        )


def _strip(rows: Sequence[Sequence[UInt8Array]]) -> bytes:
    """JPEG with a row of images per camera."""
    from PIL import Image

    images = [[Image.fromarray(pixels) for pixels in row] for row in rows]
    for image in (image for row in images for image in row):
        image.thumbnail((_SHOWN_SIZE, _SHOWN_SIZE))
    heights = [max(image.height for image in row) for row in images]
    widths = [sum(image.width for image in row) for row in images]
    sheet = Image.new("RGB", (max(widths), sum(heights)), "white")
    top = 0
    for row, height in zip(images, heights, strict=True):
        left = 0
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class CurationSink(base.Sink):
    """Writes the figures; `vlatool curate` applies rules to them."""

    Config: ClassVar[type[base.SinkConfig]] = CurationConfig
    owned: ClassVar[Sequence[str]] = OWNED_FILES
    volatile: ClassVar[Sequence[str]] = (
        NAME,
        PAGE,
        f"{FOLDS}/*/*.json",
    )  # written by `vlatool curate`, not by its job
    needs_rate: ClassVar[bool] = False
    next_step: ClassVar[str] = "vlatool inspect {output}"

    def __init__(self, config: CurationConfig, setup: base.SinkSetup) -> None:
        self._setup = setup
        self.work: base.Work = EpisodeFigures(setup.output)
        self.fields: Mapping[str, int] = {}
        self.action_fields: tuple[str, ...] = ()
        self.proprioception_fields: tuple[str, ...] = ()

    def begin(self) -> None:
        for name in (FIGURES_NAME, NAME, PAGE):
            remove_file(self._setup.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> base.SinkSummary:
        files: list[FileEntry] = []
        episodes: list[CuratedEpisode] = []
        arrays: list[Mapping[str, Array]] = []
        cameras: list[Mapping[str, Mapping[str, float]]] = []
        for receipt in receipts:
            files += receipt.files
            if "figures" not in receipt.facts:
                continue
            arrays.append(receipt.arrays)
            cameras.append(receipt.facts["cameras"])
            episodes.append(
                CuratedEpisode(
                    receipt.item,
                    receipt.counts["frames"],
                    receipt.facts["instruction"],
                    receipt.facts["figures"],
                )
            )
        if not episodes:
            raise DataError(
                "no episode could be read",
                hint="select more episodes",
                code="data.no_samples",
                details={"dropped": dict(run.dropped)},
            )
        curation = compared(with_cameras(episodes, cameras), arrays)
        write_curation(self._setup.output / FIGURES_NAME, curation)
        files.append(file_entry(self._setup.output, FIGURES_NAME))
        size = sum(file.bytes for file in files)
        return base.SinkSummary(len(episodes), size, tuple(files))

    def estimate(self) -> base.Estimate:
        return base.Estimate(self._setup.survey.episodes)


def with_cameras(
    episodes: Sequence[CuratedEpisode], cameras: Sequence[Mapping[str, Mapping[str, float]]]
) -> list[CuratedEpisode]:
    """The episodes with the figures of their worst camera.

    Cameras with images of one color in most episodes, as those that a robot lacks, do not count.
    """
    blank: dict[str, list[bool]] = {}
    for seen in cameras:
        for name, figures in seen.items():
            blank.setdefault(name, []).append(figures["blank_share"] == 1)
    used = {name for name, each in blank.items() if np.mean(each) <= _MOST_BLANK}
    result: list[CuratedEpisode] = []
    for episode, seen in zip(episodes, cameras, strict=True):
        figures, worst = dict(episode.figures), ""
        for figure in _OF_IMAGES:
            values = {
                name: each[figure] for name, each in seen.items() if name in used and figure in each
            }
            if values:
                camera = max(values, key=lambda name: abs(values[name]))
                figures[figure] = values[camera]
                worst = camera if figure == "frozen_share" else worst
        result.append(replace(episode, figures=figures, camera=worst))
    return result


def compared(episodes: Sequence[CuratedEpisode], arrays: Sequence[Mapping[str, Array]]) -> Curation:
    """The episodes with the figures that need the others, and those at like length."""
    columns = {
        name: np.array([episode.figures.get(name, np.nan) for episode in episodes])
        for name in FIGURES
    }
    texts = [episode.instruction for episode in episodes]
    for needed, figures in _comparisons(arrays, texts):
        rows = [row for row, each in enumerate(arrays) if needed <= each.keys()]
        if len(rows) > 1 and needed:
            chosen = [arrays[row] for row in rows]
            for name, values in figures(chosen, [texts[row] for row in rows]).items():
                columns[name][rows] = values
    columns["action_lag"] = np.abs(columns["action_lag"])
    lags = columns["camera_lag"]  # one that all episodes have is that of the robot
    if np.isfinite(lags).any():
        columns["camera_lag"] = np.abs(lags - np.nanmedian(lags))
    lengths = np.array([episode.frames for episode in episodes])
    scores = {
        name: neighbors.at_like_length(values, lengths)
        for name, values in columns.items()
        if name != "success"
    }
    known = {name: np.isfinite(values) for name, values in columns.items()}
    absent = {name: _reason(name, texts) for name, each in known.items() if not each.any()}
    return Curation(
        tuple(
            replace(
                episode,
                figures={name: float(columns[name][row]) for name in known if known[name][row]},
                at_length={name: float(scores[name][row]) for name in scores if known[name][row]},
            )
            for row, episode in enumerate(episodes)
        ),
        absent,
    )


def _comparisons(arrays: Sequence[Mapping[str, Array]], texts: Sequence[str]) -> Any:
    """Arrays that figures need, and the function that computes them from those of episodes."""
    counts = Counter(name[5:] for each in arrays for name in each if name.startswith("mean/"))
    cameras = sorted(name for name, count in counts.items() if count > _MOST_BLANK * len(arrays))
    means, lasts = ({f"{kind}/{name}" for name in cameras} for kind in ("mean", "end"))

    def of(chosen: Any, names: Any) -> Array:
        return np.stack([np.concatenate([each[name].ravel() for name in names]) for each in chosen])

    def of_states(chosen: Any, groups: Sequence[str]) -> dict[str, Array]:
        stacked = {
            name: np.stack([each[name] for each in chosen]) for name in ("states", "actions")
        }
        last = np.stack([each["path"].reshape(_TIMES, -1)[-1] for each in chosen])
        figures = {
            "outlier_distance": neighbors.distances(of(chosen, ["path"]), groups),
            "end_distance": neighbors.distances(last, groups),
        }
        if stacked["actions"].shape[2]:
            figures["disagreement"] = neighbors.disagreements(
                stacked["states"], stacked["actions"], groups
            )
        return figures

    def of_images(chosen: Any, groups: Sequence[str]) -> dict[str, Array]:
        seen = np.stack([np.stack([each[f"mean/{name}"] for name in cameras]) for each in chosen])
        return {"swapped_cameras": neighbors.swapped_ratios(seen)} if len(cameras) > 1 else {}

    def of_ends(chosen: Any, groups: Sequence[str]) -> dict[str, Array]:
        last = np.stack([each["path"].reshape(_TIMES, -1)[-1] for each in chosen])
        features = np.hstack([last, of(chosen, sorted(lasts))]) if lasts else last
        everything = of(chosen, ["path", *sorted(means)])
        return {
            "other_instruction": neighbors.other_group_ratios(features, groups),
            "duplicate_distance": neighbors.distances(everything, [""] * len(chosen), 1),
        }

    def of_lags(chosen: Any, groups: Sequence[str]) -> dict[str, Array]:
        return {"action_lag": action_lags(np.stack([each["lags"] for each in chosen]))}

    yield {"path"}, of_states
    yield {"lags"}, of_lags
    yield means, of_images
    yield {"path", *means, *lasts}, of_ends


def _reason(name: str, texts: Sequence[str]) -> str:
    """Reason for which no episode has a figure."""
    if name == "other_instruction" and len({*texts}) < 2:
        return "all episodes have the same instruction"
    return _REASONS.get(name, "no states or actions that it needs, or too few episodes")


_REASONS: Mapping[str, str] = {
    "success": "the recordings do not say whether the task was completed",
    "camera_lag": "no lag is clear",
    "frozen_share": "no images, or no motion",
    "blank_share": "no images",
    "swapped_cameras": "fewer than two cameras, or too few episodes",
    MODEL_ERROR: "no policy was given with --model",
}
