"""Writing of one episode: a folder of images and a file of windows, one or two lines per frame.

Source: reference/future-vla 1.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlatool.artifacts.lines import write_lines
from vlatool.artifacts.windows.format import (
    Kind,
    Window,
    episode_name,
    image_file,
    images_name,
    lines_name,
    render_window,
    reserved_word,
)
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource, PoseGroup
from vlatool.errors import DataError
from vlatool.jobs.files import folder_entry
from vlatool.jobs.journal import Receipt
from vlatool.sinks.images import ImageWriter
from vlatool.sinks.jsonl.config import JsonlConfig, QaMode
from vlatool.storage.bulk_folder import bulk_folder
from vlatool.transforms.chunks import future_frames, past_frames, relative_chunks, with_padding
from vlatool.transforms.relative import stored_from

_RECORDED = "original"  # kind of annotation: the instruction during recording


@dataclass(frozen=True)
class EpisodeWriter:
    """Writes the windows of an episode; picklable."""

    output: Path  # the output folder
    config: JsonlConfig  # options of the sink
    cameras: tuple[str, ...]  # in the order of the images of one frame
    action_fields: tuple[str, ...]  # fields that are concatenated to an action, in order
    action_width: int  # number of values of an action
    groups: tuple[PoseGroup, ...]  # poses of which an action has relative fields
    prefixes: Mapping[str, str]  # map from source to prefix of its image names
    is_numbered: bool  # True if episodes are named by their numbers

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Writes images, then lines, then the index of the lines."""
        names = self._names(ref)
        # Errors in instruction or actions are raised before an image is written.
        chunks, task = self._chunks(episode), _instruction(episode)
        untouched = 0
        with bulk_folder(self.output / names.folder) as folder:
            for camera in self.cameras:
                writer = ImageWriter(self.config.encoding())
                images = writer.images(camera, _images(episode, camera), episode.num_frames)
                for frame, (_, data) in enumerate(images):
                    _check_sizes(writer, camera, frame)
                    folder.write(names.image(camera, frame), data)
                untouched += writer.copied
        lines = self._lines(names, f"{self.config.seed} {ref.id}", task, chunks)
        entry, index = write_lines(self.output, lines_name(names.episode), lines)
        return Receipt(
            ref.id,
            counts={
                "frames": episode.num_frames,
                "samples": entry.samples or 0,
                "pictures": len(folder.files),
                "untouched": untouched,
            },
            files=(folder_entry(names.folder, folder.files), entry, index),
        )

    def _names(self, ref: EpisodeRef) -> "EpisodeNames":
        name = f"episode_{ref.id}"
        if self.is_numbered and ref.number is not None:
            name = episode_name(ref.number)
        return EpisodeNames(name, self.prefixes[ref.source], self.cameras)

    def _lines(
        self, names: "EpisodeNames", seed: str, task: str, chunks: Sequence[Array]
    ) -> Iterator[bytes]:
        config, frames = self.config, len(chunks)
        for frame in range(frames):
            images = names.paths(past_frames(frame, config.past_steps))
            future = names.paths(future_frames(frame, config.future_steps, frames))
            chunk = chunks[frame].tolist()
            for kind in kinds_at(config.qa_mode, frame, seed):
                yield render_window(Window(kind, task, images, future, chunk))

    def _chunks(self, episode: Episode) -> Sequence[Array]:
        """Actions [T, A] of each window."""
        actions, steps = self._actions(episode), self.config.future_steps
        if not self.groups:
            padded = with_padding(actions, steps)
            return [padded[frame : frame + steps] for frame in range(len(actions))]
        chunks = relative_chunks(episode.lowdim, self.action_fields, self.groups, steps)
        _check_finite(episode, chunks)  # the measured poses that others are relative to
        return [*chunks]

    def _actions(self, episode: Episode) -> Array:
        """Actions [F, A] in their stored dtype, poses absolute; integers as float64."""
        names = (stored_from(name, episode.lowdim) for name in self.action_fields)
        columns = [episode.lowdim[name] for name in names]
        actions = np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)
        expected = (episode.num_frames, self.action_width)
        if actions.shape != expected or not expected[0]:
            problem = f"actions are {list(actions.shape)}, expected {list(expected)}"
            raise _episode_error(episode, problem, "action_width")
        _check_finite(episode, actions)
        return actions if actions.dtype.kind == "f" else actions.astype(np.float64)


@dataclass(frozen=True)
class EpisodeNames:
    """Names of the files of an episode."""

    episode: str
    prefix: str  # prefix of image names
    cameras: tuple[str, ...]  # in order

    @property
    def folder(self) -> str:
        """Folder of its images, relative to the output."""
        return images_name(self.episode)

    def image(self, camera: str, frame: int) -> str:
        """Name of an image in that folder."""
        return image_file(self.prefix, camera, self.episode, frame)

    def paths(self, frames: Sequence[int]) -> tuple[str, ...]:
        """Images of the frames, all cameras of a frame in order, relative to the output."""
        files = (self.image(camera, frame) for frame in frames for camera in self.cameras)
        return tuple(f"{self.folder}/{file}" for file in files)


def kinds_at(mode: QaMode, frame: int, seed: str) -> tuple[Kind, ...]:
    """Kinds of the lines of a frame, in order."""
    if mode == "both":
        return ("vla", "wm")
    if mode == "alternate":
        return ("wm",) if frame % 2 else ("vla",)
    if mode == "random":
        random_byte = hashlib.blake2b(f"{seed} {frame}".encode(), digest_size=1).digest()[0]
        return ("wm",) if random_byte % 2 else ("vla",)
    return (mode,)


def _images(episode: Episode, camera: str) -> FrameSource:
    if camera not in episode.cameras:
        raise _episode_error(episode, f"has no camera {camera!r}", "missing_camera")
    return episode.cameras[camera]


def _check_finite(episode: Episode, values: Array) -> None:
    """Raises DataError if a value [F, ...] of an action is not finite."""
    if not np.isfinite(values).all():
        frame = int(np.argwhere(~np.isfinite(values))[0][0])
        raise _episode_error(episode, f"an action is not finite at frame {frame}", "not_finite")


def _check_sizes(writer: ImageWriter, camera: str, frame: int) -> None:
    """Raises DataError if a stored image differs in size from the first of its camera."""
    if len(writer.sizes) > 1:
        first, actual = (f"{width}x{height}" for height, width in writer.sizes)
        raise DataError(
            f"camera {camera!r}, frame {frame}: has {actual} pixels, the first has {first}",
            hint="the images are damaged or of several kinds; record or download the episode again",
            code="data.picture_unreadable",
            details={"camera": camera, "frame": frame},
        )


def _instruction(episode: Episode) -> str:
    """First instruction of the episode; the recorded one is preferred."""
    kinds = [episode.language.get(_RECORDED, ()), *episode.language.values()]
    task = next((text for texts in kinds for text in texts if text.strip()), "")
    if not task:
        raise _episode_error(episode, "has no instruction", "no_instruction")
    if word := reserved_word(task):
        raise _episode_error(episode, f"the instruction contains the tag {word}", "reserved_word")
    return task


def _episode_error(episode: Episode, problem: str, code: str) -> DataError:
    return DataError(
        f"{episode.id}: {problem}",
        hint="repair the episode, or leave it out with --exclude",
        code=f"data.{code}",
        details={"episode": episode.id},
    )
