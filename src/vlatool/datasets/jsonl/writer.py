"""The `jsonl` sink: windows of the FUTURE-VLA pipeline, one JSON lines file per episode.

Images are files. Source: reference/future-vla 1.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import field_validator, model_validator

from vlatool.config.base import option
from vlatool.datasets.codes.layout import IMAGES_NAME
from vlatool.datasets.jsonl import layout as windows_layout
from vlatool.episode import Array, Episode, EpisodeRef, PoseGroup, Survey
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.jobs.files import FileEntry, digests_below, file_entry, folder_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.media.images import PNG
from vlatool.media.lines import write_lines
from vlatool.recordings import writing
from vlatool.storage.atomic import atomic_folder, remove_empty, remove_file
from vlatool.storage.uri import is_file_name, location
from vlatool.transforms import action_tokenizer
from vlatool.transforms.relative import groups_with, relative_names, stored_from

QaMode = Literal["both", "vla", "wm", "alternate", "random"]

_LONGEST_NAME = 100
_PUBLISHED_MODES = {"1": "vla", "2": "wm"}


class JsonlConfig(writing.SinkConfig):
    """Windows of the FUTURE-VLA pipeline."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "name"),
        "Windows": ("past_steps", "future_steps", "action_width", "qa_mode", "seed"),
        "Images": (
            "resize_images_size",
            "image_resizing_method",
            "image_resizing_filter",
            "verify_pixels",
        ),
    }

    type: Literal["jsonl"] = option(
        "jsonl", "Form of the output: windows as JSON lines, and images."
    )
    name: str = option("", "Prefix of image names; empty uses the name of the source folder.")
    past_steps: int = option(16, "Number of observed steps, with the anchor.", ge=1, le=10_000)
    future_steps: int = option(
        16, "Number of actions from the anchor on, and of images after it.", ge=1, le=10_000
    )
    action_width: int | None = option(
        None, "Number of values that an action must have; null accepts any.", ge=1
    )
    qa_mode: QaMode = option(
        "both",
        "Lines to write for a frame: vla (or 1) asks for the action, wm (or 2) for the state "
        "after it, both writes two lines, alternate and random (seeded) one of them.",
    )
    seed: int = option(42, "Seed of the random lines.", ge=0)
    resize_images_size: writing.ImageSize = option(
        (256, 256),
        "Width,height of written images in pixels, or one number; null keeps the size. PNG files "
        "of this size are copied unchanged.",
    )
    image_resizing_method: writing.ResizingMethod = "center_crop"
    image_resizing_filter: writing.ResizingFilter = "lanczos_vips"
    verify_pixels: bool = option(False, "Decode images that are copied unchanged, to check them.")

    @field_validator("name")
    @classmethod
    def _part_of_file_names(cls, value: str) -> str:
        is_short = is_file_name(value) and len(value.encode()) <= _LONGEST_NAME
        if "/" in value or "\\" in value or not value.isprintable() or not is_short:
            raise ValueError("cannot be part of a file name")
        return value

    @model_validator(mode="before")
    @classmethod
    def _by_number(cls, data: Any) -> Any:
        """Converts the published numbers of `qa_mode` to names before validation."""
        if isinstance(data, dict) and str(data.get("qa_mode")) in _PUBLISHED_MODES:
            return {**data, "qa_mode": _PUBLISHED_MODES[str(data["qa_mode"])]}
        return data

    def encoding(self) -> writing.ImageEncoding:
        return writing.ImageEncoding(
            size=writing.height_and_width(self.resize_images_size),
            method=self.image_resizing_method,
            filter=self.image_resizing_filter,
            formats=(PNG,),
            verify_pixels=self.verify_pixels,
        )


@dataclass(frozen=True)
class JsonlEpisodeWriter:
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
        """Writes images and lines; the receipt has the sizes of the recorded images."""
        name = f"episode_{ref.id}"
        if self.is_numbered and ref.number is not None:
            name = windows_layout.episode_name(ref.number)
        names = EpisodeNames(name, self.prefixes[ref.source], self.cameras)
        # Errors in instruction or actions are raised before an image is written.
        chunks = self._chunks(episode)
        tasks = [_instruction(episode, frame) for frame in range(episode.num_frames)]
        untouched = 0
        sizes: dict[str, tuple[int, int]] = {}
        with atomic_folder(self.output / names.folder) as partial:
            for camera in self.cameras:
                writer = writing.ImageWriter(self.config.encoding())
                if camera not in episode.cameras:
                    raise _episode_error(episode, f"has no camera {camera!r}", "missing")
                source = episode.cameras[camera]
                for frame, (_, data) in enumerate(
                    writer.images(camera, source, episode.num_frames)
                ):
                    _check_sizes(writer, camera, frame)
                    (partial / names.image(camera, frame)).write_bytes(data)
                untouched += writer.copied
                sizes[camera] = source.size
            files = digests_below(partial)
        lines = self._lines(names, f"{self.config.seed} {ref.id}", tasks, chunks)
        entry, index = write_lines(self.output, windows_layout.lines_name(names.episode), lines)
        return Receipt(
            ref.id,
            counts={
                "frames": episode.num_frames,
                "samples": entry.samples or 0,
                "pictures": len(files),
                "untouched": untouched,
            },
            files=(folder_entry(names.folder, files), entry, index),
            facts={writing.SIZES: sizes},
        )

    def _lines(
        self, names: "EpisodeNames", seed: str, tasks: Sequence[str], chunks: Sequence[Array]
    ) -> Iterator[bytes]:
        config = self.config
        frames = len(chunks)
        for frame in range(frames):
            images = names.paths(action_tokenizer.past_frames(frame, config.past_steps))
            future = names.paths(action_tokenizer.future_frames(frame, config.future_steps, frames))
            chunk = chunks[frame].tolist()
            for kind in kinds_at(config.qa_mode, frame, seed):
                window = windows_layout.Window(kind, tasks[frame], images, future, chunk)
                yield windows_layout.render_window(window)

    def _chunks(self, episode: Episode) -> Sequence[Array]:
        """Actions [T, A] of each window."""
        actions = self._actions(episode)
        steps = self.config.future_steps
        if not self.groups:
            padded = action_tokenizer.with_padding(actions, steps)
            return [padded[frame : frame + steps] for frame in range(len(actions))]
        chunks = action_tokenizer.relative_chunks(
            episode.lowdim, self.action_fields, self.groups, steps
        )
        _check_finite(episode, chunks)  # the measured poses that others are relative to
        return [*chunks]

    def _actions(self, episode: Episode) -> Array:
        """Actions [F, A] in their stored dtype, poses absolute; integers as float64."""
        columns: list[Array] = []
        for name in self.action_fields:
            column = episode.lowdim[stored_from(name, episode.lowdim)]
            columns.append(column.reshape(len(column), -1))
        actions = np.concatenate(columns, axis=1)
        expected = (episode.num_frames, self.action_width)
        if actions.shape != expected or not episode.num_frames:
            problem = f"actions are {list(actions.shape)}, expected {list(expected)}"
            raise _episode_error(episode, problem, "mismatch")
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
        return windows_layout.images_name(self.episode)

    def image(self, camera: str, frame: int) -> str:
        return windows_layout.image_file(self.prefix, camera, self.episode, frame)

    def paths(self, frames: Sequence[int]) -> tuple[str, ...]:
        """Images of the frames, all cameras of a frame in order, relative to the output."""
        paths: list[str] = []
        for frame in frames:
            for camera in self.cameras:
                paths.append(f"{self.folder}/{self.image(camera, frame)}")
        return tuple(paths)


def kinds_at(mode: QaMode, frame: int, seed: str) -> tuple[windows_layout.Kind, ...]:
    """Kinds of the lines of a frame, in order."""
    if mode == "both":
        return ("vla", "wm")
    if mode == "alternate":
        number = frame
    elif mode == "random":
        number = hashlib.blake2b(f"{seed} {frame}".encode(), digest_size=1).digest()[0]
    else:
        return (mode,)
    return ("wm",) if number % 2 else ("vla",)


def _check_finite(episode: Episode, values: Array) -> None:
    """Raises DataError if a value [F, ...] of an action is not finite."""
    if not np.isfinite(values).all():
        frame = int(np.argwhere(~np.isfinite(values))[0][0])
        raise _episode_error(
            episode, f"an action is NaN or infinite at frame {frame}", "not_finite"
        )


def _check_sizes(writer: writing.ImageWriter, camera: str, frame: int) -> None:
    """Raises DataError unless all images of a camera have the size of the first one."""
    if len(writer.sizes) > 1:
        first, actual = (f"{width}x{height}" for height, width in writer.sizes)
        raise DataError(
            f"camera {camera!r}, frame {frame}: has {actual} pixels, the first frame has {first}",
            hint="leave the episode out with --exclude, or copy its images again",
            code="data.broken",
            details={"camera": camera, "frame": frame},
        )


def _instruction(episode: Episode, frame: int) -> str:
    task = episode.instruction_at(frame)
    if not task:
        place = f" at frame {frame}" if episode.language_spans else ""
        raise _episode_error(episode, f"has no instruction{place}", "missing")
    word = windows_layout.reserved_word(task)
    if word:
        raise _episode_error(episode, f"the instruction contains the tag {word}", "broken")
    return task


def _episode_error(episode: Episode, problem: str, code: str) -> DataError:
    return DataError(
        f"{episode.id}: {problem}",
        hint="correct the recording, or leave the episode out with --exclude",
        code=f"data.{code}",
        details={"episode": episode.id},
    )


_NO_FILE_NAME = re.compile(r"[^A-Za-z0-9_.-]+")


class JsonlSink(writing.Sink):
    """Writes raw windows and their images. Source: reference/future-vla 1."""

    Config: ClassVar[type[writing.SinkConfig]] = JsonlConfig
    owned: ClassVar[Sequence[str]] = windows_layout.OWNED_FILES
    needs_actions: ClassVar[bool] = True
    next_step: ClassVar[str] = (
        "vlatool preprocess images {output} --val-ratio 0.05 --output {output}-images"
    )
    has_arrays: ClassVar[bool] = False

    def __init__(self, config: JsonlConfig, setup: writing.SinkSetup) -> None:
        survey = setup.survey
        self._config = config
        self._setup = setup
        widths = _possible_fields(survey)
        self.action_fields: tuple[str, ...] = setup.policy_actions(widths, survey.action_fields)
        self.fields: Mapping[str, int] = {name: widths[name] for name in self.action_fields}
        self.proprioception_fields: tuple[str, ...] = ()
        prefixes: dict[str, str] = {}
        numbers: list[int | None] = []
        for ref in setup.refs:
            if ref.source not in prefixes:
                prefixes[ref.source] = config.name or _folder_name(ref.source)
            numbers.append(ref.number)
        self._work = JsonlEpisodeWriter(
            setup.output,
            config,
            tuple(survey.cameras),
            self.action_fields,
            _action_width(config, survey, self.fields),
            tuple(groups_with(self.fields, survey.pose_groups)),
            prefixes,
            is_numbered=None not in numbers and len(set(numbers)) == len(numbers),
        )
        self.work: writing.Work = self._work

    def begin(self) -> None:
        """Removes the manifest and folders that an earlier run left empty."""
        output = self._setup.output
        remove_file(output / windows_layout.MANIFEST_NAME)
        remove_empty(output / IMAGES_NAME)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> writing.SinkSummary:
        """Writes the manifest."""
        files: list[FileEntry] = []
        episodes = 0
        sizes: dict[str, set[tuple[int, int]]] = {}
        for receipt in receipts:
            for name, size in receipt.facts.get(writing.SIZES, {}).items():
                sizes.setdefault(name, set()).add((size[0], size[1]))
            files += receipt.files
            episodes += bool(receipt.files)
        if not episodes:
            raise DataError(
                "no episode was written: all of them were left out",
                hint="select other episodes, or drop the options that leave them out",
                code="data.no_samples",
                details={"dropped": dict(run.dropped)},
            )
        recorded_sizes = {name: sorted(of_camera) for name, of_camera in sizes.items()}
        manifest = replace(self._manifest(episodes, run), recorded_sizes=recorded_sizes)
        windows_layout.write_manifest(self._setup.output, manifest)
        size = sum(file.bytes for file in files)
        files.append(file_entry(self._setup.output, windows_layout.MANIFEST_NAME))
        counts = {"pictures": manifest.pictures, "untouched": manifest.untouched}
        return writing.SinkSummary(manifest.samples, size, tuple(files), counts)

    def estimate(self) -> writing.Estimate:
        frames = self._setup.survey.frames
        if frames is None:
            return writing.Estimate(None)
        lines = len(kinds_at(self._config.qa_mode, 0, ""))
        return writing.Estimate(frames * lines, {"pictures": frames * len(self._work.cameras)})

    def _manifest(self, episodes: int, run: JobRun) -> windows_layout.WindowManifest:
        survey = self._setup.survey
        config = self._config
        names: list[str] = []
        relative_dimensions: list[int] = []
        first = 0  # dimension of an action
        for name, width in self.fields.items():
            names += survey.fields[stored_from(name, survey.fields)].names
            if name not in survey.fields:
                relative_dimensions += range(first, first + width)
            first += width
        counts: dict[str, Any] = {key: run.sums.get(key, 0) for key in _COUNT_KEYS}
        size = config.resize_images_size
        is_resized = isinstance(size, tuple)
        return windows_layout.WindowManifest(
            names=tuple(sorted(set(self._work.prefixes.values()))),
            cameras=self._work.cameras,
            fps=survey.fps,
            action_fields=self.action_fields,
            action_names=tuple(names) if len(names) == self._work.action_width else (),
            action_width=self._work.action_width,
            past_steps=config.past_steps,
            future_steps=config.future_steps,
            qa_mode=config.qa_mode,
            image_size=size if isinstance(size, tuple) else None,
            relative_dimensions=tuple(relative_dimensions),
            resize_method=config.image_resizing_method if is_resized else "",
            resize_filter=config.image_resizing_filter if is_resized else "",
            episodes=episodes,
            **counts,
        )


_COUNT_KEYS = ("frames", "samples", "pictures", "untouched")


def _folder_name(source: str) -> str:
    """Name of a source's folder with all characters replaced that file names do not allow."""
    name = location(source).resolve().name.partition("@")[0]
    return _NO_FILE_NAME.sub("_", name).strip("_") or "data"


def _possible_fields(survey: Survey) -> dict[str, int]:
    """Map from the fields that an action can have to their widths: numeric ones, relative poses."""
    widths = {name: spec.width for name, spec in survey.fields.items() if spec.width}
    for group in survey.pose_groups:
        position, rotation = relative_names(group)
        if group.position_key in widths:
            widths[position] = widths[group.position_key]
        if group.rotation_key in widths:
            widths[rotation] = widths[group.rotation_key]
    return widths


def _action_width(config: JsonlConfig, survey: Survey, fields: Mapping[str, int]) -> int:
    if not survey.cameras:
        hint = "this sink needs images: use recordings with a camera, or --sink lbm"
        raise _source_error("your recordings have no camera", "missing", hint)
    width = sum(fields.values())
    if not width:
        problem = "your recordings do not say which field is the action"
        hint = "name it with --action-fields, or add --sink frames, which needs none"
        raise _source_error(problem, "missing", hint)
    if config.action_width not in (None, width):
        problem = f"an action has {counted(width, 'value')} ({', '.join(fields)}), not "
        hint = "choose other fields with --action-fields, or another --action-width"
        raise _source_error(f"{problem}{config.action_width}", "mismatch", hint)
    return width


def _source_error(problem: str, code: str, hint: str) -> DataError:
    return DataError(problem, hint=hint, code=f"data.{code}")
