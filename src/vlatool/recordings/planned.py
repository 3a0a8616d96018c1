"""Base classes for formats whose episodes are read by a plan (`recordings/plan.py`).

A format writes two subclasses. Its `PlannedEpisode` lists what is stored and reads rows of it; the
base class decides roles, names, lengths and texts. Its `PlannedReader` finds and opens episodes.

Shapes: F frames, C numbers of a field.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vlatool.episode import (
    Array,
    Clip,
    Episode,
    EpisodeRef,
    FieldSpec,
    FrameSource,
    Role,
    StoredPart,
    Survey,
)
from vlatool.errors import DataError, VlatoolError
from vlatool.events import counted
from vlatool.findings import FindingCodes
from vlatool.media import limits
from vlatool.media.frames import SingleImages, VideoFrames, probe_video
from vlatool.media.images import decode_rgb, decode_values
from vlatool.recordings import base, inventory
from vlatool.recordings.cuts import CutColumns, Cuts, find_cuts, is_name
from vlatool.recordings.language import first_text, recorded_language
from vlatool.recordings.mapping import (
    RecordingMapping,
    file_beside,
    filled,
    is_beside,
    mapping_file,
    matching,
    nearest,
    read_mapping,
    value_beside,
)
from vlatool.recordings.plan import (
    EpisodePlan,
    Known,
    PlannedImages,
    name_commands,
    plan_by_mapping,
    plan_by_structure,
)
from vlatool.recordings.rules import SOURCE
from vlatool.report.text import few_text
from vlatool.transforms.rates import NearestFrames

PLAIN = "="  # before a text that is no reference
_LOST_CAMERA = (
    "copy the recording again, or leave the episode out with --exclude or, with all of its kind, "
    "--skip-episodes-missing-cameras; --camera-names names the cameras to use"
)
_NO_TEXT = "in the mapping, name the key of a single sentence, such as FILE.json@KEY.text"


class PlannedFrames(SingleImages):
    """Images of a plan; a format reads their rows, as pixels or as an encoded file."""

    planned: PlannedImages

    def row(self, index: int) -> bytes | Array:
        """A row as it is stored."""
        raise NotImplementedError(index)

    def encoded(self, index: int) -> bytes | None:
        """The stored JPEG or PNG; None for pixels, and where colors are swapped."""
        if self.planned.decision.role != "camera" or self.planned.bgr:
            return None
        row = self.row(index)
        return row if isinstance(row, bytes) else None

    def image(self, index: int) -> Array:
        """The image uint8 [H, W, 3], or depth or labels uint16 [H, W] of a frame."""
        row = self.row(index)
        decision = self.planned.decision
        try:
            if decision.role == "camera":
                if isinstance(row, bytes):
                    image = decode_rgb(row)
                else:
                    image = inventory.rgb_image(row, decision.scale)
                return image[..., ::-1] if self.planned.bgr else image
            values = decode_values(row) if isinstance(row, bytes) else row
            if decision.role == "depth":
                return inventory.depth_image(values, decision.scale)
            return inventory.label_image(values)
        except ValueError as error:
            raise self.image_error(index, str(error)) from error


class EpisodeRows(NamedTuple):
    """The rows of a recording that are one of its episodes."""

    first: int
    stop: int
    total: int  # rows of the recording
    name: str  # of the episode
    names: tuple[str, ...]  # paths of the columns that name the episodes

    @property
    def is_whole(self) -> bool:
        """True if the recording has no other episode."""
        return self.stop - self.first == self.total


class _Video(NamedTuple):
    """A video beside a recording."""

    path: Path
    frames: int


class PlannedEpisode:
    """An episode of a container: its plan, and the rows of its parts.

    A format says how things are found and read; everything else is the same for all.

    Attributes:
        codes: Its findings; they have `not_numeric`, `length_mismatch` and `empty_episode`.
        missing: Code of a thing that a mapping names and that is not there.
        most_cut: Number of rows that parts may differ; rows after the shortest part are cut.
        things: What the episode stores, by path.
        plan: The role of each.
        file: Where relative paths of a mapping start: in the folder of this file.
        frame_rows: Path of a part, or pattern of a video, to the rows that are its frames; of
            others that are all.
    """

    codes: ClassVar[FindingCodes]
    missing: ClassVar[str]
    most_cut: ClassVar[int] = 1

    def __init__(
        self, ref: EpisodeRef, mapping: RecordingMapping | None, config: Any, episode: str
    ) -> None:
        """`config`: keys of the format, `fps` and `instruction` among them; `episode`: for
        {episode}.
        """
        self.ref = ref
        self.mapping = mapping
        self.config = config
        self.things: dict[str, inventory.Stored] = {}
        self.plan = EpisodePlan()
        self.file = ref.path
        self.frame_rows: dict[str, Array] = {}
        self.span: EpisodeRows | None = ref.extras.get("episode_rows")
        self._episode = episode
        self._videos: dict[str, _Video] = {}  # by pattern

    # What a format says

    def plan_by_structure(self, stored: Sequence[inventory.Stored]) -> EpisodePlan:
        """The plan without a mapping; ValueError if a thing cannot have its role."""
        return plan_by_structure(stored, self.known)

    def find_stored(self, name: str) -> inventory.Stored:
        """The thing of a name, or the only one that fits a pattern; DataError if there is none."""
        try:
            fitting = matching(name, [*self.things])
        except ValueError as error:
            raise self.error(self.missing, f"{name}: {error}", field=name) from error
        if fitting is None:
            reason = f"{name}: is missing; {nearest(name, [*self.things])}"
            raise self.error(self.missing, reason, field=name)
        return self.things[fitting]

    def open_images(self, planned: PlannedImages) -> FrameSource:
        """The images of a thing, all its rows."""
        raise NotImplementedError(planned)

    def numbers(self, path: str) -> Array:
        """The rows of a field [N, C]."""
        raise NotImplementedError(path)

    def texts_of(self, name: str, count: int) -> list[str]:
        """One text, or one for each of `count` frames."""
        raise NotImplementedError(name, count)

    def value_of(self, name: str) -> Any:
        """A single value: an attribute, or the last row of a thing."""
        raise NotImplementedError(name)

    def name_of(self, reference: str) -> str:
        """A reference of a mapping as the format writes it."""
        return reference

    def stored_fps(self) -> float | None:
        """The rate that the recording has, in frames per second; None or 0 if it has none."""
        return None

    # What is the same for all

    @property
    def known(self) -> Known:
        """What the first episodes decided."""
        return self.ref.extras.get("known", Known())

    def error(self, code: str, reason: str, **details: Any) -> DataError:
        """An error of this episode."""
        return self.codes.error(code, self.ref.path, self.ref.id, reason, **details)

    def make_plan(self, stored: Sequence[inventory.Stored]) -> None:
        """Sets things and plan, by the mapping if there is one."""
        if "mixed" in self.ref.extras and not self.ref.extras.get("proposes"):
            raise SOURCE.error("mixed_episodes", self.ref.path, self.ref.extras["mixed"])
        if self.span is not None:
            names = self.span.names
            stored = [*stored]
            for number, thing in enumerate(stored):
                if thing.path in names:
                    stored[number] = replace(thing, role="time")
        self.things = {thing.path: thing for thing in stored}
        try:
            if self.mapping is None:
                self.plan = self.plan_by_structure(stored)
                name_commands(self.plan, self.things)
            else:
                self.plan = plan_by_mapping(stored, self.mapping, self.find, self.known)
        except ValueError as error:
            raise self.error("not_numeric", str(error)) from error
        self._find_videos()
        self._take_span()
        reference = self.mapping.rows.index if self.mapping else ""
        if not reference:
            return
        rows = self.numbers(self._filled(reference))[:, 0].astype(np.int64)
        if not len(rows) or (np.diff(rows) <= 0).any() or rows[0] < 0:
            raise self.error("length_mismatch", f"{reference}: row numbers must ascend")
        counts = {path: thing.rows or 0 for path, thing in self.things.items()}
        for pattern, video in self._videos.items():
            counts[pattern] = video.frames
        for path, count in counts.items():
            if count > int(rows[-1]):
                self.frame_rows[path] = rows

    def _take_span(self) -> None:
        """Keeps the rows of the episode, of things that have one for each row of the recording."""
        if self.span is None or self.span.is_whole:
            return
        rows = np.arange(self.span.first, self.span.stop)
        for path, thing in self.things.items():
            if thing.rows is not None and abs(thing.rows - self.span.total) <= 1:
                self.frame_rows[path] = rows[rows < thing.rows]
        for pattern, video in self._videos.items():
            if abs(video.frames - self.span.total) <= self.most_cut:
                self.frame_rows[pattern] = rows[rows < video.frames]
            elif "{episode}" not in pattern:
                reason = (
                    f"{video.frames} images, but the rows of all episodes are {self.span.total}"
                )
                raise SOURCE.error("shared_video", video.path, reason)

    def _filled(self, reference: str) -> str:
        return self.name_of(filled(reference, self.file, self._episode))

    def find(self, reference: str) -> inventory.Stored | None:
        """The thing that a reference of the mapping names; None for attributes and files beside."""
        name = self._filled(reference)
        if name in self.things:
            return self.things[name]
        if "@" in name or is_beside(name):
            return None
        thing = self.find_stored(name)
        self.things.setdefault(thing.path, thing)
        return thing

    def _find_videos(self) -> None:
        """Finds the videos of the plan, and names those beside them that it does not use."""
        folder = self.file.parent
        parts: list[StoredPart] = []
        patterns: list[str] = []
        for name, planned in list(self.plan.cameras.items()):
            if not planned.video:
                continue
            patterns.append(re.sub(r"\{[^{}]*@[^{}]*\}", "*", planned.video))  # values of any file
            try:
                path = file_beside(self._filled(planned.video), self.file)
            except DataError:
                if not planned.optional:
                    raise
                del self.plan.cameras[name]
                continue
            self._videos[planned.video] = _Video(path, probe_video(Clip(path)).num_frames)
            parts.append(StoredPart(_below(path, folder), "camera", name, "images"))
        used = {video.path for video in self._videos.values()}
        for pattern in patterns:
            # A pattern with the name of the episode stands among videos of other episodes.
            place = pattern.rpartition("/")[0]
            if "{stem}" in pattern or "{episode}" in pattern or re.search(r"[{*]", place):
                continue
            for path in sorted((folder / place).glob(f"*{Path(pattern).suffix}")):
                if path not in used:
                    used.add(path)
                    note = "not in the mapping"
                    parts.append(StoredPart(_below(path, folder), "left_out", "", "images", note))
        self.plan.parts = (*self.plan.parts, *parts)

    @property
    def lengths(self) -> dict[str, int]:
        """Number of frames of each part of the plan, without parts that have a single value."""
        paths = [*self.plan.fields.values()]
        for images in self.plan.images.values():
            paths += [planned.path for planned in images.values() if planned.path]
        lengths = {path: self.things[path].rows or 0 for path in paths}
        for pattern, video in self._videos.items():
            lengths[pattern] = video.frames
        for path in lengths:
            if path in self.frame_rows:
                lengths[path] = len(self.frame_rows[path])
        return lengths

    @property
    def count(self) -> int:
        """Number of frames; DataError if the lengths of parts differ or there are no frames.

        A part may have up to `most_cut` rows more or less than the actions, such as an observation
        after the last action. The episode ends where the shortest part ends.
        """
        lengths = self.lengths
        if not lengths:
            raise self.error(self.missing, "the mapping names no images and no fields")
        rows = [*lengths.values()]
        expected = max(rows, key=rows.count)
        for name in self.plan.actions:
            if name in self.plan.fields:
                expected = lengths[self.plan.fields[name]]
                break
        for path, length in lengths.items():
            if abs(length - expected) > self.most_cut:
                reason = f"{path} has {length} rows, the other parts have {expected}"
                raise self.error("length_mismatch", reason)
        count = min(rows)
        if self.plan.following:  # the last row has no next one
            count -= 1
        if count < 1:
            raise self.error("empty_episode", "has no frames")
        if count > limits.MOST_ROWS:
            raise self.error("too_large", f"{count:,} frames; the limit is {limits.MOST_ROWS:,}")
        return count

    def images(self, planned: PlannedImages, count: int) -> FrameSource:
        """The images of a camera, of depth or of labels, one for each frame."""
        if planned.video:
            video = self._videos[planned.video]
            source: FrameSource = VideoFrames(Clip(video.path), video.frames)
        else:
            source = self.open_images(planned)
        rows = self.frame_rows.get(planned.video or planned.path)
        if rows is not None:
            return NearestFrames(source, rows[:count])
        return source if len(source) == count else NearestFrames(source, np.arange(count))

    def texts(self, reference: str, count: int) -> list[str]:
        """One text, or one for each frame; of a list of texts the first."""
        if reference.startswith(PLAIN):
            return [reference.removeprefix(PLAIN)]
        name = self._filled(reference)
        if "@" in name:
            value = self.value(reference)
            texts = [*value] if isinstance(value, list | np.ndarray) else [value]
            if texts and isinstance(texts[0], dict | list):
                raise self.error("not_numeric", f"{name} holds no text", hint=_NO_TEXT)
            return [str(text) for text in texts[:1]]
        if name in self.frame_rows:
            texts = self.texts_of(name, self.things[name].rows or 0)
            return [texts[row] for row in self.frame_rows[name][:count]]
        return self.texts_of(name, count)

    def _all_texts(self, count: int) -> list[tuple[str, list[str]]]:
        """Texts by kind. Of several references of one kind those may be missing that another
        stands in for; none is needed if the option gives the instruction.
        """
        kinds = [kind for kind, _ in self.plan.texts]
        is_listed = self.mapping is not None and isinstance(self.mapping.instruction, list)
        has_others = is_listed or kinds.count("original") > 1
        texts: list[tuple[str, list[str]]] = []
        for kind, reference in self.plan.texts:
            try:
                texts.append((kind, self.texts(reference, count)))
            except DataError:
                if kind != "original" or not (has_others or self.config.instruction is not None):
                    raise
        return texts

    def value(self, reference: str) -> Any:
        """The single value of a reference."""
        name = self._filled(reference)
        return value_beside(name, self.file) if is_beside(name) else self.value_of(name)

    def fps(self) -> float:
        """Frames per second, 0 if unknown; the option comes before the mapping and the data."""
        stored = self.stored_fps()
        if self.config.fps:
            return float(self.config.fps)
        named = self.mapping.fps if self.mapping else ""
        if isinstance(named, str) and named:
            value = self.value(named)
            if not limits.possible_rate(value):
                reason = f"fps: {named} is {value!r:.40}, which is no number of frames per second"
                raise self.error("not_numeric", reason, hint="write the number into the mapping")
            named = value
        return float(named or stored or self._video_rate() or 0.0)

    def _video_rate(self) -> float | None:
        """The rate that a video beside the recording states."""
        for video in self._videos.values():
            rate = probe_video(Clip(video.path)).fps
            if rate:
                return float(rate)
        return None

    def success(self, stored: Any = None) -> bool | None:
        """The success flag of the plan, else the stored one."""
        value = self.value(self.plan.success) if self.plan.success else stored
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if not isinstance(value, str):
            return None if value is None else bool(value)
        meaning = inventory.SUCCESS_TEXTS.get(value.strip().lower())
        if meaning is None:
            raise self.error("not_numeric", f"success is {value!r}, neither true nor false")
        return meaning

    def survey(self) -> Survey:
        """Cameras, fields and length, from shapes."""
        plan = self.plan
        count = self.count
        names = plan.dimension_names(self.things)
        fields: dict[str, FieldSpec] = {}
        for name, path in plan.fields.items():
            width = math.prod(self.things[path].shape)
            fields[name] = FieldSpec(width, names.get(name, ()))
        for name, source in plan.following.items():
            fields[name] = fields[source]
        kinds = dict.fromkeys(kind for kind, _ in plan.texts if kind != "original")
        return Survey(
            episodes=1,
            cameras={
                name: self.images(images, count).size for name, images in plan.cameras.items()
            },
            fields=fields,
            frames=count,
            fps=self.fps() or None,
            action_fields=plan.actions,
            proprioception_fields=plan.observed,
            text_kinds=tuple(kinds),
            parts=plan.parts,
        )

    def episode(self, *, success: Any = None, task: str = "") -> Episode:
        """The episode; its images stay on disk. `success` and `task`: what the file stores."""
        plan = self.plan
        count = self.count
        episode = self.ref.id
        longest = max(self.lengths.values())
        rows = count + bool(plan.following)
        numbers = sum(math.prod(self.things[path].shape) for path in plan.fields.values())
        limits.check_numbers(self.codes, self.ref.path, episode, rows * numbers)
        fields: dict[str, Array] = {}
        for name, path in plan.fields.items():
            fields[name] = self.field_rows(path)[:rows]
            self._check_time(name, fields[name])
        for name, source in plan.following.items():
            fields[name] = fields[source][1:]
        language, findings = recorded_language(
            self.ref, count, preferred(self._all_texts(count)), self.config.instruction
        )
        if longest > count:
            frames = counted(longest - count, "frame")
            message = f"{episode}: {frames} at the end left out: an action or an image is missing"
            findings.append(SOURCE("frames_cut", message, episode=episode, frame=count))
        fps = self.fps()
        images: dict[Role, dict[str, FrameSource]] = {}
        for role, by_name in plan.images.items():
            images[role] = {name: self.images(planned, count) for name, planned in by_name.items()}
        return Episode(
            id=episode,
            task=task or first_text(language),
            fps=fps,
            num_frames=count,
            cut_frames=longest - count,
            cameras=images["camera"],
            missing_cameras=self._missing_cameras(),
            depth=images["depth"],
            labels=images["labels"],
            lowdim={name: values[:count] for name, values in fields.items()},
            dimension_names=plan.dimension_names(self.things),
            language=language[0],
            language_spans=tuple(language[1]),
            success=self.success(success),
            action_fields=plan.actions,
            proprioception_fields=plan.observed,
            parts=plan.parts,
            findings=(*findings, *inventory.left_out_findings(episode, plan.parts)),
        )

    def _missing_cameras(self) -> dict[str, DataError]:
        """Cameras that the other episodes have and this one lost, with the error."""
        damaged: dict[str, str] = {}
        for part in self.plan.parts:
            if part.role == "left_out" and part.content == "unusable":
                damaged[self.known.names.get(part.path, "")] = part.note
        missing: dict[str, DataError] = {}
        for name, is_usual in self.known.cameras.items():
            if name not in self.plan.cameras and (is_usual or name in damaged):
                reason = f"has no camera {name!r}, which other episodes have"
                if name in damaged:
                    reason += f": {damaged[name]}"
                missing[name] = self.error(self.missing, reason, camera=name, hint=_LOST_CAMERA)
        return missing

    def field_rows(self, path: str) -> Array:
        """The rows of a field that are frames [F, C]."""
        values = self.numbers(path)
        return values[self.frame_rows[path]] if path in self.frame_rows else values

    def _check_time(self, name: str, values: Array) -> None:
        """Raises DataError if a field of times runs backwards."""
        is_time = values.shape[1:] == (1,) and values.dtype.kind in "fiu"
        if not is_time or not inventory.TIME.fullmatch(name.rpartition(".")[2]):
            return
        if self.mapping is None:
            check_ascending(self.ref.path, name, values[:, 0])

    def decisions(self) -> dict[str, inventory.Assignment]:
        """What rows of this episode decide for other episodes."""
        count = self.count
        things = [thing for thing in self.things.values() if abs((thing.rows or 0) - count) <= 1]
        return inventory.sampled_decisions(things, lambda thing: self.numbers(thing.path))


def check_ascending(path: Path, name: str, times: Array) -> None:
    """Raises DataError if times [F] run backwards."""
    backwards = np.flatnonzero(np.diff(times.astype(np.float64)) < 0)
    if len(backwards):
        row = int(backwards[0])
        reason = (
            f"{name}: the time is {times[row + 1]:.10g} after {times[row]:.10g} in row {row + 1}"
        )
        raise SOURCE.error("times_backwards", path, reason, field=name)


def _below(path: Path, folder: Path) -> str:
    """Path from a folder on, if it is below."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def preferred(texts: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Texts by kind; of several instructions the first that says something, the others after it."""
    spoken: list[tuple[str, list[str]]] = []
    for kind, rows in texts:
        if any(row.strip() for row in rows):
            spoken.append((kind, rows))
    has_instruction = any(kind == "original" for kind, _ in spoken)
    ordered: list[tuple[str, list[str]]] = []
    has_first = False
    for kind, rows in spoken:
        if kind == "alternative" and not has_instruction:
            kind = "original"
            has_instruction = True
        elif kind == "original" and has_first:
            kind = "alternative"
        has_first = has_first or kind == "original"
        ordered.append((kind, rows))
    return ordered


class PlannedReader(base.FormatReader):
    """Reader of a format with `PlannedEpisode`; its options have `mapping`."""

    def opened(self, ref: EpisodeRef) -> AbstractContextManager[PlannedEpisode]:
        """An open episode; DataError if it is broken."""
        raise NotImplementedError(ref)

    @cached_property
    def mapping(self) -> RecordingMapping | None:
        """The mapping of the options."""
        name = self.config.mapping
        return None if name is None else read_mapping(mapping_file(name), RecordingMapping)

    def with_decisions(self, refs: Sequence[EpisodeRef]) -> Iterator[EpisodeRef]:
        """The refs with what rows and names of the first, middle and last episode decide for all.

        They are `known` in the extras of each ref.

        Raises:
            DataError: Several episodes would use one video.
        """
        self.check_videos(refs)
        decisions: dict[str, list[inventory.Assignment]] = {}
        names: dict[str, str] = {}
        cameras: Counter[str] = Counter()
        episodes = 0
        taken: set[tuple[Role, str]] = set()
        for number in base.first_middle_last(len(refs)):
            with suppress(DataError), self.opened(refs[number]) as episode:
                for path, decision in episode.decisions().items():
                    decisions.setdefault(path, []).append(decision)
                episodes += 1
                cameras.update([*episode.plan.cameras] if self.mapping is None else [])
                for part in episode.plan.parts:
                    key = (part.role, part.name)
                    if part.name and part.path not in names and key not in taken:
                        names[part.path] = part.name
                        taken.add(key)
        known = Known(
            {path: _merged(several) for path, several in decisions.items()},
            names,
            {name: 2 * count > episodes for name, count in cameras.items()},
        )
        for ref in refs:
            yield replace(ref, extras={**ref.extras, "known": known})

    def check_videos(self, refs: Sequence[EpisodeRef]) -> None:
        """Raises DataError if a video of the mapping is of several episodes that name no rows."""
        if self.mapping is None or self.mapping.rows.index:
            return
        for camera in self.mapping.cameras.values():
            if not camera.video or "{episode}" in camera.video:
                continue
            first: dict[Path, EpisodeRef] = {}
            for ref in refs:
                place = ref.path if "{stem}" in camera.video else ref.path.parent
                other = first.setdefault(place, ref)
                if other is not ref and "episode_rows" not in ref.extras:
                    reason = f"{camera.video} would be the video of {other.id} and of {ref.id}"
                    raise SOURCE.error("shared_video", ref.path, reason)

    def tables_of(self, ref: EpisodeRef) -> list[CutColumns]:
        """The columns of a recording that may divide its rows into episodes, by table."""
        return []

    def divided(self, refs: Sequence[EpisodeRef]) -> Iterator[EpisodeRef]:
        """The refs, with one for each episode where the rows of a recording are several.

        Only recordings with a column like the first, middle or last one are read.
        """
        has_columns = False
        for number in base.first_middle_last(len(refs)):
            has_columns = has_columns or bool(self.tables_of(refs[number]))
        if not has_columns:
            yield from refs
            return
        divided: list[EpisodeRef] = []
        texts: list[str] = []
        last_name = ""  # of the recording before
        for ref in refs:
            longest: Cuts | None = None
            tables = self.tables_of(ref)
            try:
                for table in tables:
                    cuts = find_cuts(*table)
                    if cuts and (longest is None or cuts.stops[-1] > longest.stops[-1]):
                        longest = cuts
            except ValueError as error:
                ref = replace(ref, extras={**ref.extras, "mixed": str(error)})
            if longest is None:
                divided.append(_whole(ref, tables))
                last_name = ""
                continue
            goes_on = last_name != "" and longest.names[:1] == (last_name,)
            if goes_on:
                reason = f"the episode {last_name} goes on in {ref.id}: join the two tables"
                divided[-1] = replace(divided[-1], extras={**divided[-1].extras, "mixed": reason})
            last_name = longest.names[-1] if longest.names else ""
            texts.append(f"{ref.id}: {longest.text}")
            for number, (first, stop) in enumerate(longest.spans):
                name = f"{number:06d}"
                columns: tuple[str, ...] = ()
                if longest.names:
                    name = longest.names[number]
                    columns = longest.by
                rows = EpisodeRows(first, stop, longest.stops[-1], name, columns)
                extras = {**ref.extras, "episode_rows": rows}
                if goes_on and number == 0:
                    extras["mixed"] = f"the episode {name} began in the table before: join both"
                identity = f"{ref.id}_episode_{base.id_part(name)}"
                divided.append(replace(ref, id=identity, extras=extras))
        if not texts:
            yield from divided
            return
        self.source_findings = [*self.source_findings, SOURCE("divided", few_text(texts))]
        is_numbered = len(refs) == 1 or None not in {ref.number for ref in refs}
        for number, ref in enumerate(divided):
            yield replace(ref, number=number if is_numbered else None)

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras, fields and lengths, from shapes; no image is read."""
        reasons: list[VlatoolError] = []
        return base.merge_surveys(base.survey_each(self.survey_episode, refs, reasons), reasons)

    def survey_episode(self, ref: EpisodeRef) -> Survey:
        """Survey of one episode; DataError if it is broken."""
        with self.opened(ref) as episode:
            return episode.survey()


def _whole(ref: EpisodeRef, tables: Sequence[CutColumns]) -> EpisodeRef:
    """A recording of one episode, with the columns that name it: they are no fields."""
    names: list[str] = []
    rows = 0
    for table in tables:
        rows = max(rows, table.rows)
        names += filter(is_name, table.columns)
    if not names:
        return ref
    whole = EpisodeRows(0, rows, rows, "", tuple(names))
    return replace(ref, extras={**ref.extras, "episode_rows": whole})


def _merged(decisions: Sequence[inventory.Assignment]) -> inventory.Assignment:
    """The decision that holds for all of some episodes.

    A dark episode has no value above 1, a short one few values: what the others show counts.
    """
    order = ("field", "left_out", "camera", "depth", "labels")
    usable = [decision for decision in decisions if decision.content != "unusable"] or decisions
    return min(usable, key=lambda decision: (order.index(decision.role), decision.scale))
