"""HDF5 recordings: robomimic, Isaac Lab, LIBERO and ALOHA by structure, others by a mapping.

Source: formats/hdf5 1 to 3.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlatool.config.base import ConfigModel, option
from vlatool.episode import (
    Array,
    Clip,
    Episode,
    EpisodeRef,
    FieldSpec,
    FrameSource,
    StoredPart,
    Survey,
)
from vlatool.errors import DataError, VlatoolError
from vlatool.findings import Finding, FindingCodes
from vlatool.sources import base
from vlatool.sources.frames import VideoFrames, probe_video
from vlatool.sources.hdf5 import rules
from vlatool.sources.inventory import Decision, Stored, sampled_decisions
from vlatool.sources.mapping import (
    MAPPING,
    RecordingMapping,
    file_beside,
    filled,
    is_beside,
    mapping_file,
    read_mapping,
)
from vlatool.sources.plan import (
    PLAIN,
    PlannedFrames,
    PlannedImages,
    frame_count,
    plan_by_mapping,
    planned_parts,
)
from vlatool.sources.propose import Clues, proposed_mapping
from vlatool.sources.rules import distinct_recordings
from vlatool.storage.tree import natural_key, walk
from vlatool.storage.uri import can_list
from vlatool.transforms.rates import NearestFrames


class Hdf5Config(ConfigModel):
    """Options of HDF5 recordings. What files do not store is given here."""

    location_keys: ClassVar[frozenset[str]] = frozenset({"mapping"})

    fps: float | None = option(None, "Frames per second; null: that of the file.", gt=0)
    instruction: str | None = option(None, "Instruction of all episodes; null: that of the file.")
    mapping: str | None = option(None, MAPPING)
    mask: str | None = option(
        None, "Read the episodes that mask/NAME of each file lists, as train."
    )


class Hdf5Images(PlannedFrames):
    """A dataset of images, read row by row; opened at the first read and held until `close`."""

    def __init__(
        self, path: Path, name: str, planned: PlannedImages, shape: tuple[int, int, int]
    ) -> None:
        """`name`: path of the dataset in the file; `shape`: (frames, height, width)."""
        self._path, self._name = path, name
        self.planned = planned
        self._shape = shape
        self._open: tuple[Any, Any] | None = None

    def __len__(self) -> int:
        return self._shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    @property
    def size(self) -> tuple[int, int]:
        return self._shape[1:]

    def close(self) -> None:
        if self._open is not None:
            self._open[0].__exit__(None, None, None)
            self._open = None

    def row(self, index: int) -> bytes | Array:
        with rules.readable(self._path, f"{self._name}: frame {index}"):
            if self._open is None:
                context = rules.opened(self._path, rules.CACHE)
                self._open = context, context.__enter__()[self._name]
            dataset = self._open[1]
            if len(dataset.shape) > 2:
                return np.asarray(dataset[index])
            return rules.row_bytes(dataset, index)

    def image_error(self, index: int, reason: str) -> DataError:
        place = f"{self._name}: frame {index}"
        hint = "exclude the episode with --exclude"
        return rules.HDF5.error("unreadable", self._path, place, reason, frame=index, hint=hint)


class OpenEpisode:
    """An episode of an open file: its plan, and the rows of its parts."""

    def __init__(
        self, ref: EpisodeRef, group: Any, mapping: RecordingMapping | None, config: Hdf5Config
    ) -> None:
        self.ref, self.group, self._mapping, self._config = ref, group, mapping, config
        self._episode = group.name.rpartition("/")[2]
        stored = rules.things_of(group, ref.path)
        self.things = {each.path: each for each in stored}
        decided: Mapping[str, Decision] = ref.extras.get("decided", {})
        actions = ref.extras["actions"]
        try:
            if mapping is None:
                self.plan = rules.plan_of_layout(actions, stored, decided)
            else:
                self.plan = plan_by_mapping(stored, mapping, self.find, decided)
        except ValueError as error:
            raise self._error("not_numeric", str(error)) from error
        if mapping is None and not self.plan.actions:
            rules.columns(rules.dataset_at(group, actions, ref.path), ref.path)
            raise self._error("empty_episode", f"{actions} has no rows of numbers")
        self.index = self._frame_rows()
        self._videos = dict(self._found_videos())
        self.plan.parts = (*self.plan.parts, *self._video_parts())

    def _error(self, code: str, reason: str) -> DataError:
        return rules.HDF5.error(code, self.ref.path, self.group.name.strip("/"), reason)

    def _filled(self, reference: str) -> str:
        return filled(reference, self.ref.path, self._episode)

    def find(self, reference: str) -> Stored | None:
        """The thing that a reference of the mapping names; None for attributes and files beside."""
        name = self._filled(reference)
        if name not in self.things and ("@" in name or is_beside(name)):
            return None
        if name not in self.things:
            dataset = rules.dataset_at(self.group, name, self.ref.path)
            prefix = f"{self.group.name.rstrip('/')}/"
            inside = dataset.name.removeprefix(prefix) if not name.startswith("/") else name
            name = inside if inside in self.things else dataset.name
            self.things.setdefault(name, rules.thing_of(name, dataset, self.ref.path))
        return self.things[name]

    def _dataset(self, path: str) -> Any:
        return rules.dataset_at(self.group, path, self.ref.path)

    def _frame_rows(self) -> Array | None:
        """Numbers of the rows that are frames; None: all."""
        reference = self._mapping.rows.index if self._mapping else ""
        if not reference:
            return None
        dataset = self._dataset(self._filled(reference))
        rows = rules.columns(dataset, self.ref.path)[:, 0].astype(np.int64)
        if not len(rows) or (np.diff(rows) <= 0).any() or rows[0] < 0:
            raise self._error("length_mismatch", f"{reference} holds no ascending numbers of rows")
        return rows

    def _found_videos(self) -> Iterator[tuple[str, tuple[Path, int]]]:
        """(pattern, (file, frames)) of the videos beside the file."""
        for name, planned in list(self.plan.cameras.items()):
            if not planned.video:
                continue
            try:
                path = file_beside(self._filled(planned.video), self.ref.path)
            except DataError:
                if not planned.optional:
                    raise
                del self.plan.cameras[name]
                continue
            yield planned.video, (path, probe_video(Clip(path)).num_frames)

    def _video_parts(self) -> Iterator[StoredPart]:
        """The videos of the mapping, and those beside them that it does not name.

        A pattern with the name of the file or the episode stands among videos of other episodes.
        """
        folder = self.ref.path.parent
        used = {path for path, _ in self._videos.values()}
        for name, planned in self.plan.cameras.items():
            if planned.video:
                path = self._videos[planned.video][0]
                yield StoredPart(_below(path, folder), "camera", name, "images")
                is_of_all = "{stem}" in planned.video or "{episode}" in planned.video
                others = [] if is_of_all else sorted(path.parent.glob(f"*{path.suffix}"))
                for other in others:
                    if other not in used:
                        used.add(other)
                        note = "the mapping does not name it"
                        yield StoredPart(_below(other, folder), "left_out", "", "images", note)

    @property
    def lengths(self) -> dict[str, int]:
        """Rows of each part that has some; those that `rows` chooses count as one each."""
        paths = [*self.plan.fields.values()]
        for images in (self.plan.cameras, self.plan.depth, self.plan.labels):
            paths += [planned.path for planned in images.values() if planned.path]
        lengths = {path: self.things[path].rows or 0 for path in paths}
        lengths |= {pattern: frames for pattern, (_, frames) in self._videos.items()}
        if self.index is not None:
            for path, rows in lengths.items():
                if rows > self.index[-1]:
                    lengths[path] = len(self.index)
        return lengths

    @property
    def count(self) -> int:
        """Number of frames; DataError if parts differ or there are none."""
        if not self.lengths:
            raise self._error("missing_dataset", "the mapping names no dataset")
        try:
            count = frame_count(self.plan, self.lengths) - bool(self.plan.following)
        except ValueError as error:
            raise self._error("length_mismatch", str(error)) from error
        if count < 1:
            raise self._error("empty_episode", "has no frames")
        return count

    def images(self, planned: PlannedImages, count: int) -> FrameSource:
        if planned.video:
            path, frames = self._videos[planned.video]
            return self._chosen(VideoFrames(Clip(path), frames), count)
        thing, dataset = self.things[planned.path], self._dataset(planned.path)
        rules.check_dataset(dataset, self.ref.path)
        rules.check_written(dataset, self.ref.path)
        height, width = rules.image_size(thing, dataset, self.ref.path)
        shape = (thing.rows or 0, height, width)
        return self._chosen(Hdf5Images(self.ref.path, dataset.name, planned, shape), count)

    def _chosen(self, source: FrameSource, count: int) -> FrameSource:
        if self.index is not None and len(source) > self.index[-1]:
            return NearestFrames(source, self.index[:count])
        return source if len(source) == count else NearestFrames(source, np.arange(count))

    def numbers(self, path: str, count: int) -> Array:
        is_chosen = self.index is not None and (self.things[path].rows or 0) > self.index[-1]
        rows = self.index if is_chosen else None
        return rules.columns(self._dataset(path), self.ref.path, rows)[:count]

    def texts(self, reference: str, count: int) -> list[str]:
        if reference.startswith(PLAIN):
            return [reference.removeprefix(PLAIN)]
        return rules.texts_at(self.group, self._filled(reference), self.ref.path, count)

    def value(self, reference: str) -> Any:
        """The single value of a reference, the last one of several."""
        return rules.value_at(self.group, self._filled(reference), self.ref.path)

    def fps(self, stored: float | None) -> float:
        """Frames per second, 0 if unknown; the option comes before the mapping and the file."""
        if self._config.fps:
            return self._config.fps
        named = self._mapping.fps if self._mapping else ""
        if isinstance(named, str) and named:
            named = rules.rate_of(self.value(named), self.ref.path, named)
        return float(named or stored or 0.0)

    def success(self) -> bool | None:
        if self.plan.success:
            return bool(self.value(self.plan.success))
        stored = self.group.attrs.get("success")
        return None if stored is None else bool(stored)


class Hdf5Reader(base.FormatReader):
    """Reader of HDF5 recordings; a source is a file or a folder of files."""

    Config: ClassVar[type[ConfigModel]] = Hdf5Config
    findings: ClassVar[FindingCodes | None] = rules.HDF5
    config: Hdf5Config

    @cached_property
    def _mapping(self) -> RecordingMapping | None:
        name = self.config.mapping
        return None if name is None else read_mapping(mapping_file(name), RecordingMapping)

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every group that is an episode, by file in natural order; reads names, and a few rows of
        the first episode.
        """
        findings: list[Finding] = []
        searched = f"files {', '.join(rules.SUFFIXES)}"
        files = distinct_recordings(sources, _files, searched, findings)
        self.source_findings = findings
        yield from self._refs(files)

    def _refs(self, files: Sequence[tuple[Path, Path]]) -> Iterator[EpisodeRef]:
        """Refs of all files; a file that cannot be opened is one broken episode beside others."""
        refs: list[EpisodeRef] = []
        used: dict[str, int] = {}
        first_error: DataError | None = None
        is_readable = False
        for path, source in files:
            try:
                refs_of_file = list(self._refs_of(path, source, used, is_only=len(files) == 1))
            except DataError as error:
                first_error = first_error or error
                identity = base.unused_id(base.id_part(path.stem), used)
                extras = {"name": "/", "actions": "", "preset": ""}
                refs_of_file = [EpisodeRef(identity, path, str(source), extras=extras)]
            else:
                is_readable = True
            refs += refs_of_file
        if first_error is not None and not is_readable:
            raise first_error
        yield from self._with_decisions(refs)

    def _refs_of(
        self, path: Path, source: Path, used: dict[str, int], *, is_only: bool
    ) -> Iterator[EpisodeRef]:
        with rules.opened(path) as file:
            layout = rules.layout_of(file, path, self._mapping)
            self.layout = self.layout or layout.name
            mask = self.config.mask
            chosen = None if mask is None else rules.masked(file, mask, path)
        for group in layout.groups:
            name = group.rpartition("/")[2]
            if chosen is not None and name not in chosen:
                continue
            identity = "_".join(base.id_part(part) for part in (path.stem, name) if part)
            yield EpisodeRef(
                id=base.unused_id(identity, used),
                path=path,
                source=str(source),
                number=_number(name) if is_only else None,
                extras={"name": group, "actions": layout.actions, "preset": layout.preset},
            )

    def _with_decisions(self, refs: Sequence[EpisodeRef]) -> Iterator[EpisodeRef]:
        """The refs with the decisions that rows of the first readable episode make."""
        decided: dict[str, Decision] = {}
        for ref in refs:
            with suppress(DataError):
                with self._opened(ref) as episode:
                    used = {*episode.plan.fields.values()}
                    things = [
                        each
                        for path, each in episode.things.items()
                        if path in used or not path.startswith("/")
                    ]
                    decided = sampled_decisions(
                        things, lambda thing: episode.numbers(thing.path, thing.rows or 0)
                    )
                break
        for ref in refs:
            if decided:
                ref.extras["decided"] = decided  # pyright: ignore[reportIndexIssue]
            yield ref

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras, fields and lengths from shapes; no row is read."""
        reasons: list[VlatoolError] = []
        surveys: list[Survey] = []
        for path, of_file in groupby(refs, key=lambda ref: ref.path):
            with ExitStack() as held:
                with suppress(DataError):  # which each episode raises again
                    held.enter_context(rules.opened(path))  # the library shares what it has read
                surveys += base.survey_each(self._survey, of_file, reasons)
        return base.merge_surveys(surveys, reasons)

    def _survey(self, ref: EpisodeRef) -> Survey:
        with self._opened(ref) as episode:
            plan, things, count = episode.plan, episode.things, episode.count
            names = plan.dimension_names(things)
            fields: dict[str, FieldSpec] = {}
            for name, path in plan.fields.items():
                width = int(np.prod(things[path].shape, dtype=np.int64))
                fields[name] = FieldSpec(width, names.get(name, ()))
            for name, source in plan.following.items():
                fields[name] = fields[source]
            cameras = {
                name: episode.images(planned, count).size for name, planned in plan.cameras.items()
            }
            fps = episode.fps(rules.stored_facts(episode.group.file)[0])
            kinds = dict.fromkeys(kind for kind, _ in plan.texts if kind != "original")
            return Survey(
                1,
                cameras,
                fields,
                count,
                fps or None,
                plan.actions,
                plan.observed,
                text_kinds=tuple(kinds),
                parts=plan.parts,
            )

    def read(self, ref: EpisodeRef) -> Episode:
        with self._opened(ref) as episode:
            stored, instruction, task = rules.stored_facts(episode.group.file)
            if instruction and not episode.plan.texts:
                episode.plan.texts.append(("original", f"{PLAIN}{instruction}"))
            parts = planned_parts(ref, episode.plan, episode, self.config.instruction)
            counted = episode.group.attrs.get("num_samples")
            if counted is not None and int(counted) != parts["num_frames"]:
                reason = f"num_samples is {counted}, the episode has {parts['num_frames']} frames"
                finding = rules.HDF5.at("not_counted", ref.path, reason, episode=ref.id)
                parts["findings"] = (finding, *parts["findings"])
            return Episode(
                **{**parts, "task": task or parts["task"]},
                fps=episode.fps(stored),
                dimension_names=episode.plan.dimension_names(episode.things),
                success=episode.success(),
                extras={"source_episode": f"{ref.path.name}:{ref.extras['name']}"},
            )

    @contextmanager
    def _opened(self, ref: EpisodeRef) -> Iterator[OpenEpisode]:
        name, preset = ref.extras["name"], ref.extras["preset"]
        with rules.opened(ref.path) as file, rules.readable(ref.path, name):
            mapping = self._mapping
            if mapping is None and preset:
                mapping = _preset(preset)
            elif mapping is None and not ref.extras["actions"]:
                rules.layout_of(file, ref.path, None)  # raises the error of the file
            group = rules.member_at(file, name)
            if group is None:
                raise rules.HDF5.error("missing_dataset", ref.path, name, "is missing")
            yield OpenEpisode(ref, group, mapping, self.config)

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first episode, with questions as comments."""
        path = next(iter(_files(source)), None)
        if path is None:
            return None
        with rules.opened(path) as file, rules.readable(path):
            pattern, group = rules.first_episode(file)
            clues = Clues(rules.things_of(group, path), rules.attributes_of(group))
            clues.numbers = lambda name: rules.columns(rules.dataset_at(group, name, path), path)
            return proposed_mapping(clues, episodes=pattern)


@lru_cache(maxsize=8)
def _preset(name: str) -> RecordingMapping:
    return read_mapping(mapping_file(name), RecordingMapping)


def _below(path: Path, folder: Path) -> str:
    """Path from a folder on, if it is below."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _number(name: str) -> int | None:
    digits = name.rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) <= 9 else None


def _files(source: Path) -> list[Path]:
    """HDF5 files at or below a source, in natural order."""
    if source.suffix.lower() in rules.SUFFIXES and source.is_file():
        return [source]
    names = [
        folder / name
        for folder, _, files in (walk(source) if can_list(source) else ())
        for name in files
        if name.lower().endswith(rules.SUFFIXES)
    ]
    return sorted(names, key=natural_key)
