"""Bags of ROS 2, Foxglove and ROS 1. Source: formats/mcap 1 to 5."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import model_validator

from vlatool.config.base import ConfigModel, option
from vlatool.episode import Array, Episode, EpisodeRef, FieldSpec, StoredPart, Survey
from vlatool.errors import DataError, VlatoolError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes
from vlatool.sources import base
from vlatool.sources.inventory import left_out_findings
from vlatool.sources.language import first_text, recorded_language
from vlatool.sources.mapping import NEXT, nearest, proposal, read_mapping
from vlatool.sources.mcap.bag import TimeSpan, bag_at
from vlatool.sources.mcap.files import SUFFIXES, bags_below, parts_of_bag, stem_of
from vlatool.sources.mcap.rules import MCAP
from vlatool.sources.mcap.topics import STEM, BagMapping, Topics, is_of_bag, parts_of, proposed
from vlatool.sources.mcap.tracks import (
    MOST_ROWS,
    BagRows,
    Track,
    fill,
    fill_first,
    make_rows,
    make_tracks,
)
from vlatool.sources.plan import preferred
from vlatool.sources.rules import distinct_recordings
from vlatool.storage.uri import location

_TEXT = "texts."  # start of the keys of tracks
_FAILED = TimeSpan(0, 0)  # of a bag that could not be divided
_MARKS = {"true": True, "start": True, "begin": True, "false": False, "stop": False, "end": False}


class McapConfig(ConfigModel):
    """Options of bags. What they do not store is given here."""

    fps: float | None = option(None, "Rows per second; null: fps in the metadata of the bag.", gt=0)
    instruction: str | None = option(None, "Instruction of all episodes; null: that of the bag.")
    mapping: str | None = option(
        None,
        "YAML file that names the topics of cameras and fields; null: all images and "
        "plain numbers.",
    )
    time_source: Literal["log", "header"] = option(
        "log", "Time of a message: that of recording, or its header stamp."
    )
    max_age_s: float | None = option(
        None, "Greatest age of a value in a row, in seconds; older ones fail the episode.", gt=0
    )
    marker: str | None = option(
        None, "Topic (Bool or String) whose messages start and stop episodes."
    )
    gap_s: float | None = option(
        None, "Start an episode after this many seconds without a message.", gt=0
    )

    @model_validator(mode="after")
    def _check_division(self) -> Any:
        if self.marker is not None and self.gap_s is not None:
            raise ValueError("marker and gap_s exclude each other")
        return self


class McapReader(base.FormatReader):
    """Reader of bags; a source is a file, a folder with metadata.yaml, or a folder of these."""

    Config: ClassVar[type[ConfigModel]] = McapConfig
    findings: ClassVar[FindingCodes | None] = MCAP
    config: McapConfig
    needs_rate: ClassVar[bool] = True

    def __init__(self, config: McapConfig) -> None:
        super().__init__(config)
        self.layout = f"{config.time_source} time"

    @cached_property
    def _mapping(self) -> BagMapping | None:
        name = self.config.mapping
        return None if name is None else read_mapping(location(name), BagMapping)

    def _open(self, path: Path) -> "_OpenBag":
        topics = Topics(bag_at(path))
        given = self._mapping or BagMapping()
        mapping, left_out = given, ()
        if self._mapping is None or given.rest == "assign":
            found = proposed(topics, given)
            # Without a choice of a user, joints are sorted by name.
            mapping = found.mapping.model_copy(update={"joints": given.joints})
            left_out = found.left_out
        mapping, following = _with_policy(path, mapping)
        parts = parts_of(topics, mapping, left_out)
        return _OpenBag(topics, mapping, following, make_tracks(topics, mapping), parts)

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every bag, or the parts of it by a marker or by gaps, for which all messages are read."""
        findings: list[Finding] = []
        bags = distinct_recordings(sources, bags_below, f"files {', '.join(SUFFIXES)}", findings)
        self.source_findings = findings
        used: dict[str, int] = {}  # name of a bag to the number of its last namesake
        for path, source in bags:
            parts, spans = (path,), [(_FAILED, dict[str, str]())]
            with suppress(DataError):  # which `read` raises again
                parts = parts_of_bag(path)
                spans = self._spans(path, findings)
            stem = base.id_part(stem_of(path) if parts == (path,) else path.name)
            name = base.unused_id(stem, used)
            for number, (span, texts) in enumerate(spans):
                yield EpisodeRef(
                    id=name if span in (TimeSpan(), _FAILED) else f"{name}_{number:06d}",
                    path=path,
                    source=str(source),
                    files=() if parts == (path,) else parts,
                    extras={"span": tuple(span), "texts": texts},
                )

    def _spans(self, path: Path, findings: list[Finding]) -> list[tuple[TimeSpan, dict[str, str]]]:
        """Spans of the episodes of a bag, and the last text of each topic before each."""
        mapping, gap = self._mapping or BagMapping(), self.config.gap_s
        marker = self.config.marker or mapping.episodes
        if marker == "/" and gap is None:
            return [(TimeSpan(), {})]
        bag = self._open(path)
        topics, tracks = bag.topics, bag.tracks
        texts = {key: track for key, track in tracks.items() if key.startswith(_TEXT)}
        marks = None
        if marker != "/":
            marks = Track(path, *topics.find(marker), "text")
        used = texts if marks is None else {**texts, "marker": marks}
        times = fill(used, topics.bag, TimeSpan(), [])
        # Spans between gaps of all messages.
        gap_s = gap or 0.0
        ordered = np.sort(np.asarray(times, np.int64))
        groups = np.split(ordered, np.flatnonzero(np.diff(ordered) > gap_s * 1e9) + 1)
        spans = [TimeSpan(int(group[0]), int(group[-1]) + 1) for group in groups if len(group)]
        if marks is not None:
            marks.sort()
            spans, unused = _marked([*zip(marks.times.tolist(), marks.texts, strict=True)])
            if unused or not spans:
                episodes = counted(len(spans), "episode")
                reason = f"{marker}: {unused} of {len(marks)} messages; {episodes}"
                findings.append(MCAP.at("bad_marker", path, reason, field=marker))
        before: list[dict[str, str]] = [{} for _ in spans]
        for key, track in texts.items():
            track.sort()
            numbers = np.searchsorted(track.times, [span.start for span in spans])
            for known, number in zip(before, numbers, strict=True):
                known[key.removeprefix(_TEXT)] = ["", *track.texts][number]
        return [*zip(spans, before, strict=True)]

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras and fields by the first messages of the topics; the number of rows is unknown."""
        reasons: list[VlatoolError] = []
        survey = lru_cache(maxsize=None)(self._survey)
        surveys = base.survey_each(lambda ref: survey(ref.path), refs, reasons)
        return base.merge_surveys(surveys, reasons)

    def _survey(self, path: Path) -> Survey:
        topics, mapping, following, tracks, parts = self._open(path)
        fill_first({k: t for k, t in tracks.items() if not k.startswith(_TEXT)}, topics.bag)
        sizes: dict[str, tuple[int, int] | None] = dict.fromkeys(mapping.cameras)
        for name in mapping.cameras:
            with suppress(DataError, IndexError):  # which reading the image raises again
                sizes[name] = tracks[f"cameras.{name}"].images(topics.bag, np.zeros(1, int)).size
        fields: dict[str, FieldSpec] = {}
        for name in mapping.fields:
            track = tracks[f"fields.{name}"]
            if not len(track):
                raise _no_value(path, f"fields.{name}", track)
            fields[name] = FieldSpec(len(track.names), track.names)
        for name, source in following.items():
            fields[name] = fields[source]
        return Survey(
            1,
            sizes,
            fields,
            fps=self._fps(topics, mapping),
            action_fields=tuple(mapping.action_fields),
            proprioception_fields=tuple(mapping.proprioception_fields),
            text_kinds=tuple(kind for kind in mapping.language if kind != "original"),
            parts=parts,
        )

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; its images stay on disk. Without a rate, its rows are those of a topic."""
        span = TimeSpan(*ref.extras["span"])
        if span == _FAILED:
            self._spans(ref.path, [])
        topics, mapping, following, tracks, parts = self._open(ref.path)
        bag, findings = topics.bag, list[Finding]()
        fill(tracks, bag, span, findings, self.config.time_source)
        texts = {k.removeprefix(_TEXT): tracks.pop(k) for k in [*tracks] if k.startswith(_TEXT)}
        for track in texts.values():
            track.sort()
        fps = self._fps(topics, mapping)
        rows = self._rows(ref, tracks, fps, findings)
        count = len(rows.times) - bool(following)
        spoken = self._texts(ref, topics, mapping, texts, rows.times[:count])
        option = self.config.instruction
        language, others = recorded_language(ref, count, preferred(spoken), option)
        findings += others
        for topic, error in topics.channels.items():
            if isinstance(error, DataError):
                findings.append(MCAP.from_error(error, field=topic))
        findings += left_out_findings(ref.id, parts)
        values: dict[str, dict[str, Any]] = {"cameras": {}, "depth": {}, "labels": {}, "fields": {}}
        names: dict[str, tuple[str, ...]] = {}
        for key, track in tracks.items():
            part, _, name = key.partition(".")
            if track.is_image:
                values[part][name] = track.images(bag, rows.taken[key][:count])
                continue
            names[name] = track.names
            if track.other_joints and name not in mapping.joints:
                text = f"{ref.id}: {name}: {', '.join(track.other_joints)}"
                findings.append(MCAP("late_joints", text, episode=ref.id, field=name))
            numbers = track.rows(rows.taken[key])
            if np.isnan(numbers).all():
                hint = "leave it out of the mapping, or exclude the episode with --exclude"
                reason = f"all {len(numbers)} rows are NaN"
                raise MCAP.error("missing_field", ref.path, f"{ref.id}: {key}", reason, hint=hint)
            values[part][name] = numbers[:count]
            for other, source in following.items():
                if source == name:
                    values[part][other], names[other] = numbers[1:], track.names
        success = topics.metadata(mapping.success or "success").lower()
        return Episode(
            id=ref.id,
            task=first_text(language),
            fps=fps or 0.0,
            num_frames=count,
            cut_frames=len(rows.times) - count,
            cameras=values["cameras"],
            depth=values["depth"],
            labels=values["labels"],
            lowdim=values["fields"],
            dimension_names=names,
            language=language[0],
            language_spans=tuple(language[1]),
            success={"true": True, "1": True, "false": False, "0": False}.get(success),
            action_fields=tuple(mapping.action_fields),
            proprioception_fields=tuple(mapping.proprioception_fields),
            parts=parts,
            findings=tuple(findings),
            extras={"source_episode": ref.path.name, "start_ns": int(rows.times[0])},
        )

    def _rows(
        self, ref: EpisodeRef, tracks: dict[str, Track], fps: float | None, findings: list[Finding]
    ) -> BagRows:
        """Rows of an episode; `findings` gets the counts of each topic."""
        damages = "".join(f"; {finding.message}" for finding in findings[-1:])
        late = {key: track.sort() for key, track in tracks.items()}
        absent = [key for key, track in tracks.items() if not len(track)]
        if absent:
            raise _no_value(ref.path, f"{ref.id}: {absent[0]}", tracks[absent[0]], damages)
        max_age = self.config.max_age_s
        rows = make_rows(tracks, fps, max_age) if tracks else None
        if rows is None or not len(rows.times):
            reason = "no time with a value of each topic" if rows else "no images and no numbers"
            hint = "" if rows else "exclude it with --exclude"
            raise MCAP.error("empty_episode", ref.path, ref.id, f"{reason}{damages}", hint=hint)
        if len(rows.times) == MOST_ROWS:
            reason = f"times from {rows.times[0]} to {rows.times[-1]} ns are too far apart"
            hint = "divide the bag at the jump with --gap-s 60, or exclude it with --exclude"
            raise MCAP.error("too_large", ref.path, ref.id, reason, hint=hint)
        counts: dict[str, str] = {}
        for key, track in tracks.items():
            topic, ages = track.channel.topic, rows.ages[key] / 1e9
            if max_age is not None and ages.max() > max_age:
                row = int((ages > max_age).argmax())
                reason = f"the value in row {row} is {ages[row]:.3g} s old"
                raise MCAP.error("stale_value", ref.path, f"{ref.id}: {key}", reason, frame=row)
            text, gaps = track.timing(rows.taken[key])
            problems = {"gaps": gaps}
            numbers = {"out_of_order": late[key], "skipped": track.skipped, "joined": track.joined}
            for code, number in numbers.items():
                problems[code] = f"{number} messages" if number else ""
            if track.unordered:
                problems["color_order"] = f"{track.unordered}, read as blue, green, red"
            for code, problem in problems.items():
                if problem and topic not in counts:
                    findings.append(MCAP(code, f"{ref.id}: {topic}: {problem}", episode=ref.id))
            counts.setdefault(topic, text)
        text = "; ".join(f"{topic}: {text}" for topic, text in counts.items())
        findings.append(MCAP("clock", f"{ref.id}: {text}", episode=ref.id))
        if any(rows.dropped):
            text = f"{ref.id}: {rows.dropped[0]} at the start, {rows.dropped[1]} at the end"
            findings.append(MCAP("rows_dropped", text, episode=ref.id))
        return rows

    def _fps(self, topics: Topics, mapping: BagMapping) -> float | None:
        if self.config.fps is not None:
            return self.config.fps
        if isinstance(mapping.fps, float) and mapping.fps > 0:
            return mapping.fps
        reference = str(mapping.fps or "")
        stored, fps = topics.metadata(reference or "fps"), 0.0
        with suppress(ValueError):
            fps = float(stored or 0)
        if reference and not 0 < fps < np.inf:
            reason = f"is no rate: {stored!r}"
            hint = "give --fps, or a reference NAME@KEY in the mapping"
            raise MCAP.error("missing_field", topics.bag.path, reference, reason, hint=hint)
        return fps if 0 < fps < np.inf else None

    @staticmethod
    def _texts(
        ref: EpisodeRef,
        topics: Topics,
        mapping: BagMapping,
        tracks: Mapping[str, Track],
        times: Array,
    ) -> list[tuple[str, list[str]]]:
        """Texts of the rows, or the one of all, by kind; rows before the first have none."""

        def rows_of(reference: str) -> list[str]:
            if reference == STEM:
                return [stem_of(ref.path).replace("_", " ")]
            if not is_of_bag(reference):
                return [topics.metadata(reference)]
            track = tracks[reference]
            texts = [ref.extras["texts"].get(reference, ""), *track.texts]
            return [texts[number] for number in np.searchsorted(track.times, times, side="right")]

        texts: list[tuple[str, list[str]]] = []
        if not mapping.instructions:
            texts.append(("original", [topics.metadata("instruction")]))
        for reference in mapping.instructions:
            texts.append(("original", rows_of(reference)))
        for kind, reference in mapping.language.items():
            texts.append((kind, rows_of(reference)))
        return texts

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first bag, with questions as comments."""
        path = next(iter(bags_below(source)), None)
        if path is None:
            return None
        found = proposed(Topics(bag_at(path)))
        text = proposal(found.mapping, found.notes)
        for part in found.left_out:
            text += f"# left out: {part.path}: {part.note}\n"
        return text


class _OpenBag(NamedTuple):
    """A bag, its mapping, empty tracks of it, and all that it stores."""

    topics: Topics
    mapping: BagMapping
    following: dict[str, str]  # field to the one whose next rows it has
    tracks: dict[str, Track]
    parts: tuple[StoredPart, ...]


def _with_policy(path: Path, mapping: BagMapping) -> tuple[BagMapping, dict[str, str]]:
    """The mapping without `next(FIELD)` and patterns, and the fields that are next rows of others.

    DataError if a policy predicts or observes a field that is not there.
    """
    fields, following = dict[str, str](), dict[str, str]()
    for name, reference in mapping.fields.items():
        if match := NEXT.fullmatch(reference):
            following[name] = match["field"]
        else:
            fields[name] = reference
    actions: list[str] = []
    for name in mapping.action_fields:
        match = NEXT.fullmatch(name)
        actions.append(f"{match['field']}_next" if match else name)
        if match:
            following[actions[-1]] = match["field"]
    observed: list[str] = []
    for pattern in mapping.proprioception_fields:
        fitting = [name for name in fields if fnmatchcase(name, pattern)]
        observed += fitting if "*" in pattern else [pattern]
    for name in (*actions, *observed, *following.values()):
        if name not in fields and (name not in following or name in following.values()):
            reason = f"is no field; {nearest(name, [*fields])}"
            raise MCAP.error("missing_field", path, name, reason, field=name)
    new = {"fields": fields, "action_fields": actions, "proprioception_fields": observed}
    return mapping.model_copy(update=new), following


def _no_value(path: Path, key: str, track: Track, damages: str = "") -> DataError:
    """Error for a part of the mapping without a value."""
    place, hint = track.reference, ""
    reason = f"no message, {track.skipped} left out{damages}"
    if track.missing_joints:
        reason = f"joints without a value: {', '.join(track.missing_joints)}"
        hint = "correct joints in the mapping"
    elif track.frames.others:
        reason = f"{place}: no such frame; there are: {', '.join(track.frames.others)}"
        hint = "name one of these frames in the mapping"
    return MCAP.error("missing_topic", path, key, reason, field=place, hint=hint)


def _marked(marks: Sequence[tuple[int, str]]) -> tuple[list[TimeSpan], int]:
    """Spans from each start to the next mark, and the number of marks without effect."""
    known = [(time, _MARKS[text.lower()]) for time, text in marks if text.lower() in _MARKS]
    spans: list[TimeSpan] = []
    unused, is_open = len(marks) - len(known), False
    for (time, is_start), (following, _) in pairwise([*known, (TimeSpan().stop - 1, False)]):
        unused += is_start == is_open
        is_open = is_start
        if is_start:
            spans.append(TimeSpan(time, following + 1))
    return spans, unused
