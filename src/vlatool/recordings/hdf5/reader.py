"""HDF5 recordings: robomimic, Isaac Lab, LIBERO and ALOHA by structure, others by a mapping.

Source: formats/hdf5 1 to 3.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vlatool.config.base import ConfigModel, option
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource, Survey
from vlatool.errors import DataError, VlatoolError
from vlatool.findings import Finding, FindingCodes
from vlatool.media import limits
from vlatool.recordings import base
from vlatool.recordings.cuts import CutColumns, may_cut
from vlatool.recordings.hdf5 import check as rules
from vlatool.recordings.hdf5 import layout as layouts
from vlatool.recordings.inventory import Stored
from vlatool.recordings.mapping import (
    MAPPING,
    RecordingMapping,
    known_layouts,
    mapping_file,
    read_mapping,
)
from vlatool.recordings.plan import EpisodePlan, PlannedImages
from vlatool.recordings.planned import PLAIN, PlannedEpisode, PlannedFrames, PlannedReader
from vlatool.recordings.propose import Clues, proposed_mapping
from vlatool.recordings.rules import SOURCE, distinct_recordings
from vlatool.report.text import few_text
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import is_remote

# Attributes of an episode or its file that state a rate.
_RATES = tuple(f"{at}{name}" for at in ("@", "/@") for name in ("fps", "hz", "control_freq"))


class Hdf5Config(ConfigModel):
    """Options of the format `hdf5`; they add what your files do not store."""

    location_keys: ClassVar[frozenset[str]] = frozenset({"mapping"})

    fps: float | None = option(
        None,
        "Frames per second; null uses the rate that the file states.",
        ge=limits.RATES[0],
        le=limits.RATES[1],
    )
    instruction: str | None = option(
        None, "Instruction of all episodes; null uses the instruction in the file."
    )
    mapping: str | None = option(None, MAPPING)
    mask: str | None = option(
        None, "Read only the episodes that the list mask/NAME of each file names, such as train."
    )


class _OpenDataset(NamedTuple):
    file: AbstractContextManager[Any]
    dataset: Any


class Hdf5Images(PlannedFrames):
    """A dataset of images, read row by row; opened at the first read and held until `close`."""

    def __init__(
        self, path: Path, name: str, planned: PlannedImages, shape: tuple[int, int, int]
    ) -> None:
        """`name`: path of the dataset in the file; `shape`: (frames, height, width)."""
        self._path = path
        self._name = name
        self.planned = planned
        self._shape = shape
        self._open: _OpenDataset | None = None

    def __len__(self) -> int:
        return self._shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    @property
    def size(self) -> tuple[int, int]:
        return self._shape[1:]

    def close(self) -> None:
        if self._open is not None:
            self._open.file.__exit__(None, None, None)
            self._open = None

    def row(self, index: int) -> bytes | Array:
        with rules.readable(self._path, f"{self._name}: frame {index}"):
            if self._open is None:
                file = rules.opened(self._path, rules.CACHE)
                self._open = _OpenDataset(file, file.__enter__()[self._name])
            dataset = self._open.dataset
            if len(dataset.shape) > 2:
                return np.asarray(dataset[index])
            return rules.row_bytes(dataset, index)

    def image_error(self, index: int, reason: str) -> DataError:
        place = f"{self._name}: frame {index}"
        hint = "leave the episode out with --exclude"
        return rules.HDF5.error("unreadable", self._path, place, reason, frame=index, hint=hint)


class Hdf5Episode(PlannedEpisode):
    """An episode of an open file."""

    codes: ClassVar[FindingCodes] = rules.HDF5
    missing: ClassVar[str] = "missing_dataset"

    def __init__(
        self, ref: EpisodeRef, group: Any, mapping: RecordingMapping | None, config: Hdf5Config
    ) -> None:
        super().__init__(ref, mapping, config, group.name.rpartition("/")[2])
        self.group = group
        self._actions: str = ref.extras["actions"]
        self.make_plan(rules.things_of(group, ref.path))
        if mapping is None and not self.plan.actions:
            self.numbers(self._actions)
            raise self.error("empty_episode", f"{self._actions} has no rows of numbers")

    def plan_by_structure(self, stored: Sequence[Stored]) -> EpisodePlan:
        return layouts.plan_of_layout(self._actions, stored, self.known)

    def stored_fps(self) -> float | None:
        attributes = {} if self.mapping else rules.attributes_of(self.group)
        rate = next((attributes[name] for name in _RATES if name in attributes), None)
        period = attributes.get("@dt", attributes.get("/@dt"))
        if rate is None and isinstance(period, float) and period > 0:
            rate = 1 / period
        return limits.possible_rate(rate) or layouts.stored_facts(self.group.file).fps

    def find_stored(self, name: str) -> Stored:
        dataset = self._dataset(name)
        inside = dataset.name.removeprefix(f"{self.group.name.rstrip('/')}/")
        if not name.startswith("/") and inside in self.things:
            return self.things[inside]
        return rules.thing_of(dataset.name, dataset, self.ref.path)

    def _dataset(self, path: str) -> Any:
        return rules.dataset_at(self.group, path, self.ref.path)

    def open_images(self, planned: PlannedImages) -> FrameSource:
        thing = self.things[planned.path]
        dataset = self._dataset(planned.path)
        rules.check_dataset(dataset, self.ref.path)
        rules.check_written(dataset, self.ref.path)
        height, width = rules.image_size_of(thing, dataset, self.ref.path)
        return Hdf5Images(self.ref.path, dataset.name, planned, (len(dataset), height, width))

    def numbers(self, path: str) -> Array:
        return rules.columns(self._dataset(path), self.ref.path)

    def field_rows(self, path: str) -> Array:
        if self.span is None or path not in self.frame_rows:
            return super().field_rows(path)
        rows = self.frame_rows[path]
        own = slice(int(rows[0]), int(rows[-1]) + 1)
        return rules.columns(self._dataset(path), self.ref.path, own)

    def texts_of(self, name: str, count: int) -> list[str]:
        return rules.texts_at(self.group, name, self.ref.path, count)

    def value_of(self, name: str) -> Any:
        return rules.value_at(self.group, name, self.ref.path)


class Hdf5Reader(PlannedReader):
    """Reader of HDF5 recordings; a source is a file or a folder of files."""

    Config: ClassVar[type[ConfigModel]] = Hdf5Config
    findings: ClassVar[FindingCodes | None] = rules.HDF5
    config: Hdf5Config

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every group that is an episode, by file in natural order; reads names, and a few rows of
        the first episode.
        """
        findings: list[Finding] = []
        searched = f"files {', '.join(rules.SUFFIXES)}"
        files = distinct_recordings(sources, _files, searched, findings)
        self.source_findings = findings
        refs: list[EpisodeRef] = []
        used: dict[str, int] = {}
        errors: list[DataError] = []
        for path, source in files:
            try:
                refs += list(self._refs_of(path, source, used, is_only=len(files) == 1))
            except DataError as error:  # one broken episode beside others
                errors.append(error)
                identity = base.unused_id(base.id_part(path.stem), used)
                extras = {"name": "/", "actions": "", "preset": ""}
                refs.append(EpisodeRef(identity, path, str(source), extras=extras))
        if errors and len(errors) == len(files):
            raise errors[0]
        if self.mapping is None and not any(ref.extras["preset"] for ref in refs):
            beside: list[str] = []
            for folder in {path.parent for path, _ in files}:
                if not is_remote(folder):
                    beside += map(str, folder.glob("*.mp4"))
            if beside:
                text = f"videos beside your recordings are not used: {few_text(sorted(beside))}"
                self.source_findings = [*findings, SOURCE("videos_beside", text)]
        yield from self.with_decisions([*self.divided(refs)])

    def tables_of(self, ref: EpisodeRef) -> list[CutColumns]:
        """Of a file that is not divided into groups."""
        if ref.extras["name"] != "/" or (self.mapping and self.mapping.rows.index):
            return []
        columns: dict[str, Array] = {}
        rows: list[int] = []
        with suppress(DataError), rules.opened(ref.path) as file, rules.readable(ref.path):
            for name, dataset in rules.datasets_of(file):
                shape = getattr(dataset, "shape", None)
                if not shape:
                    continue
                rows.append(shape[0])
                is_column = math.prod(shape[1:]) == 1
                if not (is_column and may_cut(name)):
                    continue
                if dataset.dtype.kind in "fiub":
                    columns[name] = rules.columns(dataset, ref.path)
                elif dataset.dtype.kind in "SO" and len(shape) == 1:
                    columns[name] = np.array(rules.texts_of(dataset, ref.path), np.str_)
        if not columns:
            return []
        return [CutColumns(columns, max(rows, key=rows.count))]

    def _refs_of(
        self, path: Path, source: Path, used: dict[str, int], *, is_only: bool
    ) -> Iterator[EpisodeRef]:
        with rules.opened(path) as file:
            layout = layouts.layout_of(file, path, self.mapping)
            self.layout = self.layout or layout.name
            mask = self.config.mask
            in_mask = None if mask is None else layouts.masked(file, mask, path)
            held_out = layouts.held_out(file, path)
        for group in layout.groups:
            name = group.rpartition("/")[2]
            if in_mask is not None and name not in in_mask:
                continue
            identity = base.id_part(path.stem)
            if name:
                identity += f"_{base.id_part(name)}"
            split = ""
            if held_out:
                split = "val" if name in held_out else "train"
            digits = name.rpartition("_")[2]
            is_numbered = is_only and digits.isdecimal() and len(digits) <= 9
            yield EpisodeRef(
                id=base.unused_id(identity, used),
                path=path,
                source=str(source),
                number=int(digits) if is_numbered else None,
                extras={"name": group, "actions": layout.actions, "preset": layout.preset},
                split=split,
            )

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras, fields and lengths from shapes; no row is read."""
        reasons: list[VlatoolError] = []
        surveys: list[Survey] = []
        for path, of_file in groupby(refs, key=lambda ref: ref.path):
            with ExitStack() as held:
                with suppress(DataError):  # which each episode raises again
                    held.enter_context(rules.opened(path))  # the library shares what it has read
                surveys += base.survey_each(self.survey_episode, of_file, reasons)
        return base.merge_surveys(surveys, reasons)

    def read(self, ref: EpisodeRef) -> Episode:
        with self.opened(ref) as opened:
            facts = layouts.stored_facts(opened.group.file)
            if facts.instruction and not opened.plan.texts:
                opened.plan.texts.append(("original", f"{PLAIN}{facts.instruction}"))
            attributes = rules.attributes_of(opened.group)
            episode = opened.episode(success=attributes.get("@success"), task=facts.task)
            findings = list(episode.findings)
            counted = attributes.get("@num_samples")
            if counted is not None and not np.array_equal(counted, episode.num_frames):
                reason = f"num_samples is {counted}, but there are {episode.num_frames} frames"
                findings.append(rules.HDF5.at("not_counted", ref.path, reason, episode=ref.id))
            extras = {"source_episode": f"{ref.path.name}:{ref.extras['name']}"}
            return replace(episode, findings=tuple(findings), extras=extras)

    @contextmanager
    def opened(self, ref: EpisodeRef) -> Iterator[Hdf5Episode]:
        name = ref.extras["name"]
        preset = ref.extras["preset"]
        with rules.opened(ref.path) as file, rules.readable(ref.path, name):
            mapping = self.mapping
            if mapping is None and preset:
                mapping = _preset(preset)
            elif mapping is None and not ref.extras["actions"]:
                layouts.layout_of(file, ref.path, None)  # raises the error of the file
            group = rules.member_at(file, name)
            if group is None:
                raise rules.HDF5.error("missing_dataset", ref.path, name, "is missing")
            yield Hdf5Episode(ref, group, mapping, self.config)

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first episode that can be read, with questions as comments."""
        errors: list[DataError] = []
        for path in _files(source):
            try:
                return Hdf5Reader._proposed(path)
            except DataError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return None

    @staticmethod
    def _proposed(path: Path) -> str:
        with rules.opened(path) as file, rules.readable(path):
            for name, known in known_layouts():
                if all(layouts.has_path(file, pattern) for pattern in known.recognized_by):
                    return mapping_file(name).read_text()
            pattern, group = layouts.first_episode(file)
            clues = Clues(rules.things_of(group, path), rules.attributes_of(group))
            clues.numbers = lambda name: rules.columns(rules.dataset_at(group, name, path), path)
            if pattern == "/":
                clues.add_files_beside(path)
            return proposed_mapping(clues, fps=layouts.stored_facts(file).fps, episodes=pattern)


@lru_cache(maxsize=8)
def _preset(name: str) -> RecordingMapping:
    return read_mapping(mapping_file(name), RecordingMapping)


def _files(source: Path) -> list[Path]:
    """HDF5 files at or below a source, in natural order."""
    if source.suffix.lower() in rules.SUFFIXES and source.is_file():
        return [source]
    paths: list[Path] = []
    for folder, _, names in base.walk_source(source):
        for name in names:
            if name.lower().endswith(rules.SUFFIXES):
                paths.append(folder / name)
    return sorted(paths, key=natural_key)
