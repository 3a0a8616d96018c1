"""Folders of videos, images and tables, as episodes. Source: formats/folder 1 to 4.

1. `discover` lists folders and decides which files are an episode (`layout.py`). It opens a few
   episodes, by whose paths a preset is recognized.
2. A `FolderEpisode` lists what its files hold (`contents.py`). The rules of all formats give each
   thing its role (`recordings/planned.py`).
3. Where the numbers of rows differ, rows are paired by their times (`clocks.py`).
4. Images and videos stay on disk until a frame is asked for; tables are in memory.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vlatool.config.base import ConfigModel, option
from vlatool.episode import Array, Clip, Episode, EpisodeRef, FrameSource
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes
from vlatool.media import limits
from vlatool.media.frames import VideoFrames, open_video, packet_table, probe_video
from vlatool.recordings import base
from vlatool.recordings.cuts import CutColumns
from vlatool.recordings.folder.clocks import TimedPart, frame_rows, seconds_of
from vlatool.recordings.folder.contents import MOST_CUT, RATE, Contents, cut_columns, key_of
from vlatool.recordings.folder.layout import (
    EPISODE,
    FilesOfEpisode,
    find_episodes,
    is_rows,
    is_video,
)
from vlatool.recordings.folder.tables import (
    FOLDER,
    SUFFIXES,
    EncodedColumn,
    decoded,
    is_table,
    read_table,
)
from vlatool.recordings.inventory import Stored, image_size, is_action
from vlatool.recordings.mapping import (
    MAPPING,
    RecordingMapping,
    known_layouts,
    mapping_file,
    nearest,
    read_mapping,
)
from vlatool.recordings.plan import EpisodePlan, PlannedImages, plan_by_structure
from vlatool.recordings.planned import (
    PlannedEpisode,
    PlannedFrames,
    PlannedReader,
    check_ascending,
)
from vlatool.recordings.propose import MEASURED, Clues, proposed_mapping, rate_of_times
from vlatool.recordings.rules import SOURCE
from vlatool.report.text import few_text
from vlatool.storage.byte_ranges import ByteRange, read_byte_range, read_file
from vlatool.transforms.rates import NearestFrames

_LARGEST_TEXT = 2**20
# Errors of what is an episode for certain.
_OF_EPISODES = ("pickle", "mixed_episodes", "times_backwards")
# A JSON file beside the episodes, of which a mapping takes a value.
_BESIDE = re.compile(r"[^\"{}]+\.json(?=@)")
_RATES_DIFFER = 0.1  # of the written rate
_OBSERVED = re.compile(r"(^|[/.])(obs|observations?)[/._]|(^|[/._])(q|dq)$", re.I)
_OTHERS = re.compile(r"object|goal|target|world", re.I)


class FolderConfig(ConfigModel):
    """Options of the format `folder`; they add what your files do not store."""

    location_keys: ClassVar[frozenset[str]] = frozenset({"mapping"})

    fps: float | None = option(
        None,
        "Frames per second; null takes the rate from timestamps or files.",
        ge=limits.RATES[0],
        le=limits.RATES[1],
    )
    instruction: str | None = option(
        None, "Instruction of all episodes; null uses the instruction in the files."
    )
    mapping: str | None = option(None, MAPPING)


class FolderImages(PlannedFrames):
    """Images in files, or in rows of a table."""

    def __init__(
        self,
        planned: PlannedImages,
        thing: Stored,
        paths: Sequence[Path],
        table: Path | None,
        first: int = 0,
    ) -> None:
        """`paths`: of image files; `table`: the file with the rows from `first` on, if there are
        none.
        """
        self.planned = planned
        self._thing = thing
        self._paths = paths
        self._table = table
        self._first = first

    def close(self) -> None:
        if self._table is None:
            return
        column: Any = read_table(self._table).columns[_column_of(self._thing.path)]
        if isinstance(column, EncodedColumn):
            column.close()

    def __len__(self) -> int:
        return self._thing.rows or 0

    @property
    def size(self) -> tuple[int, int]:
        if self._thing.kind == "array":
            return image_size(self._thing.shape)
        return self._thing.shape[0], self._thing.shape[1]

    def row(self, index: int) -> bytes | Array:
        if self._table is not None:
            column = read_table(self._table).columns[_column_of(self._thing.path)]
            row = column[self._first + index]
            return row if isinstance(row, bytes) else np.asarray(row)
        try:
            return read_file(self._paths[index])
        except OSError as error:
            raise self.image_error(index, str(error)) from error

    def path_of(self, index: int) -> Path | None:
        return self._paths[index] if self._paths else None

    def image_error(self, index: int, reason: str) -> DataError:
        path = self._table or self._paths[index]
        return FOLDER.error("unreadable", path, f"frame {index}", reason, frame=index)


def _column_of(path: str) -> str:
    return path[len(key_of(path)) + 1 :]


class FolderEpisode(PlannedEpisode):
    """The files of an episode."""

    codes: ClassVar[FindingCodes] = FOLDER
    missing: ClassVar[str] = "missing_thing"
    most_cut: ClassVar[int] = MOST_CUT

    def __init__(
        self, ref: EpisodeRef, mapping: RecordingMapping | None, config: FolderConfig
    ) -> None:
        self.files: FilesOfEpisode = ref.extras["files"]
        if mapping is not None:  # its videos are references: the folder has them as all its files
            cameras = dict(mapping.cameras)
            for name, camera in cameras.items():
                path = camera.path or camera.video
                cameras[name] = camera.model_copy(update={"path": path, "video": ""})
            mapping = mapping.model_copy(update={"cameras": cameras})
        super().__init__(ref, mapping, config, self.files.name)
        self.file = self.files.root / self.files.name
        missing = sorted(set(ref.extras["expected"]) - self.files.parts)
        if missing:
            names = ", ".join(missing).replace(EPISODE, self.files.name)
            reason = f"has no {names}, which most other episodes have"
            raise FOLDER.error("missing_file", ref.path, reason)
        self.contents = Contents(self.files, ref.id, self.span)
        self.make_plan(self.contents.things())
        for name, error in self.contents.broken.items():
            used = {key_of(path) for path in self.known.names}
            if name in used or not (self.plan.cameras or self.plan.fields):
                raise error
        for name in self.contents.tables:
            path = self.files.files[name]
            if is_rows(path) and not self.plan.fields:
                raise FOLDER.error("bad_table", path, "has no column of numbers")
        for path in self.plan.fields.values():
            table = key_of(path)
            if not self._is_lenient and table in self.contents.restarts:
                raise SOURCE.error("times_backwards", ref.path, self.contents.restarts[table])
            if table in self.contents.moved:
                reason = f"{table}: rows are missing or moved: {self.contents.moved[table]}"
                raise self.error("missing_frames", reason)
        if not self.frame_rows:
            self._pair_by_time()

    @property
    def _is_lenient(self) -> bool:
        """True if times may run backwards: there is a mapping, or one is to be written."""
        return self.mapping is not None or self.ref.extras["proposes"]

    def plan_by_structure(self, stored: Sequence[Stored]) -> EpisodePlan:
        """Plans by names: actions are predicted, and measurements of the robot are observed."""
        plan = plan_by_structure(stored, self.known, self._of_other_length(stored))
        plan.actions = tuple(name for name, path in plan.fields.items() if is_action(path))
        observed: list[str] = []
        for name, path in plan.fields.items():
            is_own = MEASURED.search(path) or _OBSERVED.search(name)
            is_vector = len(self.things[path].names) > 0
            if name not in plan.actions and (is_own or is_vector) and not _OTHERS.search(name):
                observed.append(name)
        plan.observed = tuple(observed)
        return plan

    def _take_span(self) -> None:
        """Nothing: `Contents` has the rows of the episode alone."""

    def _of_other_length(self, stored: Sequence[Stored]) -> dict[str, str]:
        """Returns the reason, by path, for values that do not belong to frames, such as events.

        They have another length than the frames, and no times. A video, images or actions of
        another length are an error of the episode instead.
        """
        leads: list[int] = []
        with_actions: set[str] = set()
        for thing in stored:
            if thing.rows and (_is_camera(thing) or is_action(thing.path)):
                leads.append(thing.rows)
            if thing.kind == "array" and is_action(thing.path):
                with_actions.add(key_of(thing.path))
        count = max(leads, key=leads.count, default=0)
        # What stands beside actions has their length; else it may be a clip that is longer.
        most_cut = 1 if with_actions else MOST_CUT
        excluded: dict[str, str] = {}
        arrays = 0
        for thing in stored:
            table = key_of(thing.path)
            is_column = thing.kind in ("array", "text") and table not in with_actions
            if not (count and thing.rows and is_column and thing.role is None):
                continue
            arrays += thing.kind == "array"
            is_timed = self.contents.clock_of(table, thing.rows) is not None
            if abs(thing.rows - count) > most_cut and not is_timed:
                excluded[thing.path] = f"it has {thing.rows} rows, the episode has {count} frames"
        excluded_arrays = [path for path in excluded if self.things[path].kind == "array"]
        if arrays and len(excluded_arrays) == arrays and not with_actions:
            path = excluded_arrays[0]
            raise self.error("length_mismatch", f"{path}: {excluded[path]}")
        return excluded

    # Times

    def _pair_by_time(self) -> None:
        """Sets the rows that belong to the frames, where numbers of rows differ."""
        paths = [path for path in self.lengths if path in self.things]
        parts: dict[str, TimedPart] = {}
        for path in paths:
            key = self._part_of(path)
            parts[key] = self._part(key, path, parts.get(key))
        if not parts:
            return
        counts = [part.rows for part in parts.values()]
        has_other_counts = max(counts) > min(counts)
        for key, part in parts.items():
            if has_other_counts and part.seconds is None and is_video(key):
                parts[key] = replace(part, seconds=_video_seconds(self.files.files[key]))
        try:
            rows = frame_rows(parts, MOST_CUT)
        except ValueError as error:
            raise self.error("length_mismatch", str(error)) from error
        if not rows:
            if has_other_counts:
                self._check_starts(parts)
            return
        paths += [path for path, thing in self.things.items() if thing.kind == "text"]
        for path in paths:
            if self._part_of(path) in rows:
                self.frame_rows[path] = rows[self._part_of(path)]
        counts_text = ", ".join(f"{key} {part.rows}" for key, part in parts.items())
        self.contents.note("paired_by_time", f"rows are paired by time: {counts_text} rows")

    def _part_of(self, path: str) -> str:
        """What has times of its own: a video, a series of images, or a table with all columns."""
        is_series = path in self.contents.images and key_of(path) == path
        return path if is_series or path in self.files.files else key_of(path)

    def _part(self, key: str, path: str, known: TimedPart | None) -> TimedPart:
        """A part with one more of its columns; `known`: with those before."""
        thing = self.things[path]
        rows = thing.rows or 0
        is_camera = _is_camera(thing)
        if known is not None:
            rows = min(rows, known.rows)
            is_camera = is_camera or known.is_camera
        clock = self.contents.clock_of(key, thing.rows or 0)
        if clock is None:
            return known or TimedPart(rows, is_camera=is_camera)
        seconds = seconds_of(clock)
        if seconds is None and known is None and not self._is_lenient:
            check_ascending(self.ref.path, key, clock)
        if seconds is None and len(clock) > 1 and known is None:
            self.contents.note("times_backwards", f"{key}: its timestamps do not ascend")
        return TimedPart(rows, seconds, is_camera, is_measured=seconds is not None)

    def _check_starts(self, parts: dict[str, TimedPart]) -> None:
        """Raises DataError if parts start with different frame numbers: their rows are shifted."""
        starts: dict[str, float] = {}
        ends: set[float] = set()
        for key, part in parts.items():
            if key in self.contents.starts:
                starts[key] = self.contents.starts[key]
                ends.add(starts[key] + part.rows)
        firsts = set(starts.values())
        is_far = not firsts <= {0.0, 1.0}
        if len(firsts) > 1 and (is_far or len(ends) == 1):
            numbers = ", ".join(f"{key} {number:g}" for key, number in starts.items())
            raise self.error("length_mismatch", f"the numbers of the first rows differ: {numbers}")

    def stored_fps(self) -> float | None:
        """The rate that the timestamps of the frames show, else the rate that a file states."""
        written: float | None = None
        for reference, value in self.contents.facts.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            name = reference.rpartition("@")[2]
            is_rate = is_number and RATE.fullmatch(name) and value > 0
            if is_rate and (written is None or name.lower().endswith("fps")):
                written = float(value)
        measured = self._measured_rate()
        if measured is None and self.frame_rows:  # the stated rate may be the rate of a table
            return self._video_rate() or written
        if measured is None:
            return written or self._video_rate()
        is_chosen = self.config.fps is not None or (self.mapping is not None and self.mapping.fps)
        is_other = written is not None and abs(measured - written) > _RATES_DIFFER * written
        if is_other and not is_chosen:
            text = f"a file states {written:g} fps, but the timestamps show {measured:g}"
            self.contents.note("other_rate", text)
        return measured

    def _measured_rate(self) -> float | None:
        """The rate of the timestamps of the cameras, or of a table with one row per frame."""
        for path in self.lengths:
            clock = self.contents.clock_of(self._part_of(path), self.things[path].rows or 0)
            rows = self.frame_rows.get(path)
            is_thinned = rows is not None and len(rows) > 1 and np.diff(rows).max() > 1
            if clock is not None and not is_thinned:
                rate = rate_of_times(clock)
                if rate is not None:
                    return rate
        return None

    def _video_rate(self) -> float | None:
        for planned in self.plan.cameras.values():
            if self.things[planned.path].kind == "video":
                rate = probe_video(Clip(self.files.files[planned.path])).fps
                return float(rate) if rate else None
        return None

    # What the plan asks for

    def name_of(self, reference: str) -> str:
        if self.files.is_stem and "@" not in reference:
            return reference.replace(self.files.name, EPISODE, 1)
        return reference

    def open_images(self, planned: PlannedImages) -> FrameSource:
        thing = self.things[planned.path]
        key = key_of(planned.path)
        paths = self.contents.images.get(planned.path, [])
        if thing.kind == "video":
            path = self.files.files[planned.path]
            first = self.contents.rows_of(probe_video(Clip(path)).num_frames).start
            count = thing.rows or 0
            video = VideoFrames(Clip(path), first + count)
            return NearestFrames(video, np.arange(first, first + count)) if first else video
        if paths:
            return FolderImages(planned, thing, paths, None)
        return FolderImages(
            planned, thing, [], self.files.files[key], self.contents.first_rows.get(key, 0)
        )

    def numbers(self, path: str) -> Array:
        values = np.asarray(self._column(path))
        if values.dtype.kind not in "fiub":
            raise self.error("not_numeric", f"{path}: holds {values.dtype}", field=path)
        return values.reshape(len(values), math.prod(values.shape[1:]))

    def _column(self, path: str) -> Array:
        return self.contents.tables[key_of(path)].columns[_column_of(path)]

    def texts_of(self, name: str, count: int) -> list[str]:
        if name in self.files.files:
            data = read_byte_range(ByteRange(self.files.files[name], 0, _LARGEST_TEXT))
            return [decoded(data)]
        values = self._column(self.find_stored(name).path)
        return [str(value) for value in values[:count].tolist()]

    def value(self, reference: str) -> Any:
        facts = self.contents.facts
        return facts[reference] if reference in facts else super().value(reference)

    def value_of(self, name: str) -> Any:
        if "@" in name:
            reason = f"{name}: is missing; {nearest(name, [*self.contents.facts])}"
            raise self.error(self.missing, reason, field=name)
        return self.numbers(self.find_stored(name).path)[-1, 0].item()

    def episode(self, *, success: Any = None, task: str = "") -> Episode:
        episode = super().episode(success=success, task=task)
        return replace(episode, findings=(*episode.findings, *self.contents.notes))


def _is_camera(thing: Stored) -> bool:
    return thing.kind in ("video", "jpeg", "png")


def _video_seconds(path: Path) -> Array | None:
    """Times of the frames of a video in seconds; None if it has none."""
    container, stream = open_video(path)
    with container:
        tick = float(stream.time_base) if stream.time_base else 0.0
    times = np.array(packet_table(Clip(path)).times, np.float64) * tick
    return times if len(times) > 1 and tick else None


class _Found(NamedTuple):
    """Files of an episode, and the source that they are below."""

    files: FilesOfEpisode
    source: Path


class FolderReader(PlannedReader):
    """Reader of folders of files; it is asked last."""

    Config: ClassVar[type[ConfigModel]] = FolderConfig
    findings: ClassVar[FindingCodes | None] = FOLDER
    base_format: ClassVar[str] = "images"
    is_fallback: ClassVar[bool] = True
    config: FolderConfig
    _proposes: bool = False

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """All episodes, by name in natural order; lists folders, and opens a few episodes."""
        findings: list[Finding] = []
        found: list[_Found] = []
        for source in sources:
            episodes, stray = find_episodes(source)
            has_files = False  # other than images
            for files in episodes:
                has_files = has_files or any(not name.endswith("/") for name in files.parts)
                found.append(_Found(files, source))
            if not has_files:
                searched = f"folders with videos, images and tables ({', '.join(SUFFIXES)})"
                raise base.no_episodes(source, searched)
            if stray:
                reason = f"these files belong to no episode: {few_text(stray)}"
                findings.append(FOLDER.at("stray_files", source, reason))
        self.source_findings = findings
        refs = self._refs(_named_episodes(found, self.mapping), is_only=len(sources) == 1)
        refs = [*self.divided(refs)]
        if self.mapping is None:
            preset = self._preset_of(refs, sources[0])
            refs = [replace(ref, extras={**ref.extras, "preset": preset}) for ref in refs]
        yield from self.with_decisions(refs)

    def _refs(self, found: Sequence[_Found], *, is_only: bool) -> list[EpisodeRef]:
        counts: Counter[str] = Counter()
        for files, _ in found:
            counts.update(files.parts)
        episodes_at = Counter(files.root for files, _ in found)
        names_beside: set[str] = set()
        if self.mapping is not None:
            names_beside.update(_BESIDE.findall(self.mapping.model_dump_json()))
        most = max(len(found) / 2, 2)
        expected = [name for name, count in counts.items() if count >= most]
        used: dict[str, int] = {}
        refs: list[EpisodeRef] = []
        for number, (files, source) in enumerate(found):
            is_folder = files.root.name == files.name
            place = files.root.parent if is_folder or not files.is_stem else files.root
            above = place.relative_to(source).parts if place.is_relative_to(source) else ()
            identity = "_".join(base.id_part(part) for part in (*above, files.name))
            paths = [files.root, *files.files.values()]
            if episodes_at[files.root] > 1:  # the folder holds what other episodes have, too
                beside = [
                    files.root / name for name in names_beside if (files.root / name).is_file()
                ]
                paths = [*files.files.values(), *files.images.values(), *beside]
            refs.append(
                EpisodeRef(
                    id=base.unused_id(identity, used),
                    path=paths[0],
                    source=str(source),
                    number=number if is_only else None,
                    files=tuple(paths[1:]),
                    extras={"files": files, "expected": expected, "proposes": self._proposes},
                )
            )
        return refs

    def _preset_of(self, refs: Sequence[EpisodeRef], source: Path) -> str:
        """The preset whose paths an episode has, which names the layout; empty if there is none.

        Any program writes folders of JSON or npz. What has not both images and tables must have an
        episode with fields that can be read: else it is something else, and no episode.
        """
        errors: list[DataError] = []
        has_cameras = False
        for number in base.first_middle_last(len(refs)):
            try:
                episode = self._episode(refs[number])
            except DataError as error:
                errors.append(error)
                continue
            has_cameras = has_cameras or bool(episode.plan.cameras)
            if not (episode.plan.fields and episode.count > 1):
                continue
            for preset, layout in known_layouts():
                if all(_has_thing(episode, pattern) for pattern in layout.recognized_by):
                    self.layout = layout.layout
                    return preset
            return ""
        whole = [ref for ref in refs if ref.extras["files"].has_images_and_tables]
        if (errors or has_cameras) and len(whole) > len(refs) / 2:
            return ""  # each broken episode says why
        if errors and errors[0].details.get("finding") in _OF_EPISODES:
            raise errors[0]
        reason = f"; {errors[0].message}" if errors else ""
        raise base.no_episodes(source, f"folders with videos or images and tables{reason}")

    def _episode(self, ref: EpisodeRef) -> FolderEpisode:
        mapping = self.mapping
        preset = ref.extras.get("preset")
        if mapping is None and preset:
            mapping = read_mapping(mapping_file(preset), RecordingMapping)
        return FolderEpisode(ref, mapping, self.config)

    def opened(self, ref: EpisodeRef) -> AbstractContextManager[FolderEpisode]:
        return nullcontext(self._episode(ref))

    def read(self, ref: EpisodeRef) -> Episode:
        opened = self._episode(ref)
        return replace(opened.episode(), extras={"source_episode": opened.files.name})

    def check_videos(self, refs: Sequence[EpisodeRef]) -> None:
        """Nothing: a file belongs to one episode."""

    def tables_of(self, ref: EpisodeRef) -> list[CutColumns]:
        tables: list[CutColumns] = []
        for key, path in ref.extras["files"].files.items():
            if is_table(path):
                with suppress(DataError):  # reading the episode says so
                    table = cut_columns(key, read_table(path))
                    if table.columns:
                        tables.append(table)
        return tables

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first episode, with questions as comments."""
        reader = FolderReader(FolderConfig())
        reader._proposes = True  # what a mapping can mend is no error
        ref = next(reader.discover([source]), None)
        if ref is None:
            return None
        if ref.extras["preset"]:
            return mapping_file(ref.extras["preset"]).read_text()
        episode = reader._episode(ref)
        things: list[Stored] = []
        for path, thing in episode.things.items():
            rows = episode.frame_rows.get(path)
            things.append(thing if rows is None else replace(thing, rows=len(rows)))
        clues = Clues(things, episode.contents.facts, episode.numbers)
        return proposed_mapping(clues, fps=episode.stored_fps())


def _has_thing(episode: FolderEpisode, pattern: str) -> bool:
    return any(fnmatchcase(path, pattern) for path in episode.things)


def _named_episodes(found: list[_Found], mapping: RecordingMapping | None) -> list[_Found]:
    """The episodes that the pattern of a mapping names; all without one."""
    pattern = mapping.episodes.strip("/") if mapping is not None else ""
    if not pattern:
        return found
    named: list[_Found] = []
    for episode in found:
        place = episode.files.root.relative_to(episode.source).as_posix()
        if fnmatchcase(place, pattern) or fnmatchcase(episode.files.name, pattern):
            named.append(episode)
    return named
