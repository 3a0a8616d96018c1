"""Bags of ROS 2, Foxglove and ROS 1. Source: formats/mcap 1 to 4."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from vlatool.config.base import ConfigModel, option
from vlatool.episode import (
    Array,
    Episode,
    EpisodeRef,
    FieldSpec,
    FrameSource,
    StoredPart,
    Survey,
)
from vlatool.errors import DataError, VlatoolError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes
from vlatool.formats import base, limits
from vlatool.formats.inventory import left_out_findings, left_out_text
from vlatool.formats.language import first_text, recorded_language
from vlatool.formats.mapping import read_mapping
from vlatool.formats.mcap import tracks as mcap_tracks
from vlatool.formats.mcap.bag import TimeSpan, bag_at
from vlatool.formats.mcap.check import MCAP
from vlatool.formats.mcap.files import SUFFIXES, bags_below, parts_of_bag, stem_of
from vlatool.formats.mcap.messages import flag_of
from vlatool.formats.mcap.topics import STEM, BagMapping, Topics, is_of_bag
from vlatool.formats.plan import EpisodePlan
from vlatool.formats.planned import preferred
from vlatool.formats.rules import distinct_recordings
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import location

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

    @property
    def _marker(self) -> str:
        """Topic that divides bags; /: none does."""
        return self.config.marker or (self._mapping.episodes if self._mapping else "/")

    @property
    def _joints(self) -> dict[str, list[str]]:
        """Field to the joints that the mapping chooses."""
        return self._mapping.joints if self._mapping else {}

    def _open(self, path: Path) -> tuple[Topics, EpisodePlan, dict[str, mcap_tracks.Track]]:
        """A bag, the roles of what it stores, and empty tracks of them."""
        topics = Topics(bag_at(path))
        plan = topics.plan(self._mapping, self._marker)
        return topics, plan, mcap_tracks.make_tracks(topics, plan, self._joints)

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every bag, or the parts of it by a marker or by gaps, for which all messages are read."""
        findings: list[Finding] = []
        bags = distinct_recordings(sources, bags_below, f"files {', '.join(SUFFIXES)}", findings)
        self.source_findings = findings
        used: dict[str, int] = {}  # name of a bag to the number of its last namesake
        for path, source in bags:
            parts = (path,)
            spans = [(_FAILED, dict[str, str]())]
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
        if self._marker == "/" and self.config.gap_s is None:
            return [(TimeSpan(), {})]
        topics, _, tracks = self._open(path)
        texts = _texts_of(tracks)
        if self._marker == "/":
            times = mcap_tracks.fill(texts, topics.bag, TimeSpan(), [])
            spans = _between_gaps(times, self.config.gap_s or 0.0)
        else:
            marks = mcap_tracks.TextTrack(path, *topics.channel_of(self._marker))
            mcap_tracks.fill({**texts, "marker": marks}, topics.bag, TimeSpan(), [])
            spans, unused = _marked(marks.by_time())
            if unused or not spans:
                episodes = counted(len(spans), "episode")
                reason = f"{self._marker}: {unused} of {len(marks)} messages; {episodes}"
                findings.append(MCAP.at("bad_marker", path, reason, field=self._marker))
        before: list[dict[str, str]] = [{} for _ in spans]
        starts = np.array([span.start - 1 for span in spans], np.int64)
        for key, track in texts.items():
            for known, text in zip(before, track.at(starts), strict=True):
                known[key] = text
        return [*zip(spans, before, strict=True)]

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras and fields by the first messages of the topics; the number of rows is unknown."""
        reasons: list[VlatoolError] = []
        survey = lru_cache(maxsize=None)(self._survey)
        surveys = base.survey_each(lambda ref: survey(ref.path), refs, reasons)
        return base.merge_surveys(surveys, reasons)

    def _survey(self, path: Path) -> Survey:
        topics, plan, tracks = self._open(path)
        valued = {key: t for key, t in tracks.items() if not isinstance(t, mcap_tracks.TextTrack)}
        mcap_tracks.fill(valued, topics.bag, TimeSpan(), [], is_first_enough=True)
        sizes: dict[str, tuple[int, int] | None] = dict.fromkeys(plan.cameras)
        fields: dict[str, FieldSpec] = {}
        for key, track in valued.items():
            kind, _, name = key.partition(".")
            if isinstance(track, mcap_tracks.NumberTrack):
                if not len(track):
                    raise _no_value(path, key, track)
                fields[name] = FieldSpec(len(track.names), track.names)
            elif isinstance(track, mcap_tracks.ImageTrack) and kind == "cameras":
                with suppress(DataError, IndexError):  # which reading the image raises again
                    sizes[name] = track.images(topics.bag, np.zeros(1, int)).size
        for name, source in plan.following.items():
            fields[name] = fields[source]
        return Survey(
            1,
            sizes,
            fields,
            fps=self._fps(topics),
            action_fields=plan.actions,
            proprioception_fields=plan.observed,
            text_kinds=tuple(dict.fromkeys(kind for kind, _ in plan.texts if kind != "original")),
            parts=plan.parts,
        )

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; its images stay on disk. Without a rate, its rows are those of a topic."""
        span = TimeSpan(*ref.extras["span"])
        if span == _FAILED:
            self._spans(ref.path, [])
        topics, plan, tracks = self._open(ref.path)
        findings: list[Finding] = []
        flag = self._flag(topics, plan)
        late = mcap_tracks.late_joints(topics, tracks)
        others = late if flag is None else {**late, "success": flag}
        mcap_tracks.fill({**tracks, **others}, topics.bag, span, findings, self.config.time_source)
        success, plan.parts = _success(topics, plan, flag)
        for reference, track in late.items():
            if track.note:
                part = StoredPart(reference, "left_out", "", "unusable", track.note)
                plan.parts = _with_part(plan.parts, part)
        texts = _texts_of(tracks)
        valued = {key: track for key, track in tracks.items() if key not in texts}
        if not valued:
            left = left_out_text(part for part in plan.parts if part.role == "left_out")
            damages = "".join(f"; {finding.message}" for finding in findings[-1:])
            reason = f"no images and no numbers; left out: {left or 'nothing'}{damages}"
            hint = "exclude it with --exclude"
            raise MCAP.error("empty_episode", ref.path, ref.id, reason, hint=hint)
        fps = self._fps(topics)
        rows = self._rows(ref, valued, fps, findings)
        count = len(rows.times) - bool(plan.following)
        if count < 1:
            raise MCAP.error("empty_episode", ref.path, ref.id, "one row has no next one")
        spoken = self._texts(ref, topics, plan, texts, rows.times[:count])
        option = self.config.instruction
        language, others = recorded_language(ref, count, preferred(spoken), option)
        findings += others
        for topic, error in topics.errors.items():
            findings.append(MCAP.from_error(error, field=topic))
        for planned in plan.cameras.values():
            if encoding := topics.unordered.get(planned.path):
                text = f"{ref.id}: {planned.path}: {encoding}, read as blue, green, red"
                findings.append(MCAP("color_order", text, episode=ref.id))
        findings += left_out_findings(ref.id, plan.parts)
        images: dict[str, dict[str, FrameSource]] = {"cameras": {}, "depth": {}, "labels": {}}
        fields: dict[str, Array] = {}
        names: dict[str, tuple[str, ...]] = {}
        for key, track in valued.items():
            kind, _, name = key.partition(".")
            if isinstance(track, mcap_tracks.ImageTrack):
                images[kind][name] = track.images(topics.bag, rows.taken[key][:count])
            elif isinstance(track, mcap_tracks.NumberTrack):
                fields[name] = track.rows(rows.taken[key])
                names[name] = track.names
                if np.isnan(fields[name]).all():
                    hint = "leave it out of the mapping, or exclude the episode with --exclude"
                    reason = f"all {len(rows.times)} rows are NaN"
                    raise MCAP.error("missing_field", ref.path, ref.id, key, reason, hint=hint)
                if track.other_joints and name not in self._joints:
                    text = f"{ref.id}: {name}: {', '.join(track.other_joints)}"
                    findings.append(MCAP("late_joints", text, episode=ref.id, field=name))
        for name, source in plan.following.items():
            fields[name] = fields[source][1:]
            names[name] = names[source]
        return Episode(
            id=ref.id,
            task=first_text(language),
            fps=fps or 0.0,
            num_frames=count,
            cut_frames=len(rows.times) - count,
            cameras=images["cameras"],
            depth=images["depth"],
            labels=images["labels"],
            lowdim={name: values[:count] for name, values in fields.items()},
            dimension_names=names,
            language=language[0],
            language_spans=tuple(language[1]),
            success=success,
            action_fields=plan.actions,
            proprioception_fields=plan.observed,
            parts=plan.parts,
            findings=tuple(findings),
            extras={"source_episode": ref.path.name, "start_ns": int(rows.times[0])},
        )

    def _flag(self, topics: Topics, plan: EpisodePlan) -> mcap_tracks.FlagTrack | None:
        """An empty track of the success flag; None if no topic has it."""
        if not is_of_bag(plan.success):
            return None
        return mcap_tracks.FlagTrack(topics.bag.path, *topics.channel_of(plan.success))

    def _rows(
        self,
        ref: EpisodeRef,
        tracks: Mapping[str, mcap_tracks.Track],
        fps: float | None,
        findings: list[Finding],
    ) -> mcap_tracks.BagRows:
        """Rows of an episode; `findings` gets the counts of each topic."""
        damages = "".join(f"; {finding.message}" for finding in findings[-1:])
        late: dict[str, int] = {}
        for key, track in tracks.items():
            late[key] = track.sort()
            if not len(track):
                raise _no_value(ref.path, f"{ref.id}: {key}", track, damages)
        max_age = self.config.max_age_s
        rows = mcap_tracks.make_rows(tracks, fps, max_age)
        if not len(rows.times):
            reason = f"no time with a value of each topic{damages}"
            raise MCAP.error("empty_episode", ref.path, ref.id, reason)
        if len(rows.times) == limits.MOST_ROWS:
            reason = f"times from {rows.times[0]} to {rows.times[-1]} ns are too far apart"
            hint = "divide the bag at the jump with --gap-s 60, or exclude it with --exclude"
            raise MCAP.error("too_large", ref.path, ref.id, reason, hint=hint)
        counts: dict[str, str] = {}
        for key, track in tracks.items():
            topic = track.channel.topic
            ages = rows.ages[key] / 1e9
            if max_age is not None and ages.max() > max_age:
                row = int((ages > max_age).argmax())
                reason = f"the value in row {row} is {ages[row]:.3g} s old"
                raise MCAP.error("stale_value", ref.path, f"{ref.id}: {key}", reason, frame=row)
            if topic in counts:
                continue
            counts[topic], gaps = track.timing(rows.taken[key])
            joined = track.joined if isinstance(track, mcap_tracks.NumberTrack) else 0
            if gaps:
                findings.append(MCAP("gaps", f"{ref.id}: {topic}: {gaps}", episode=ref.id))
            numbers = {"out_of_order": late[key], "skipped": track.skipped, "joined": joined}
            for code, number in numbers.items():
                if number:
                    text = f"{ref.id}: {topic}: {number} messages"
                    findings.append(MCAP(code, text, episode=ref.id))
        text = "; ".join(f"{topic}: {text}" for topic, text in counts.items())
        findings.append(MCAP("clock", f"{ref.id}: {text}", episode=ref.id))
        if any(rows.dropped):
            text = f"{ref.id}: {rows.dropped[0]} at the start, {rows.dropped[1]} at the end"
            findings.append(MCAP("rows_dropped", text, episode=ref.id))
        return rows

    def _fps(self, topics: Topics) -> float | None:
        """Rows per second: by the option, the mapping or the metadata; None: unknown."""
        named = self._mapping.fps if self._mapping else ""
        if self.config.fps is not None or not isinstance(named, str):
            stored: Any = named if self.config.fps is None else self.config.fps
            if not stored:
                return None
        else:
            stored = topics.metadata(named or "fps")
        fps = 0.0
        with suppress(ValueError):
            fps = limits.possible_rate(float(stored or 0))
        if not fps and (named or self.config.fps is not None):
            reason = f"is no rate: {stored!r:.40}"
            hint = "give --fps, or a reference NAME@KEY in the mapping"
            raise MCAP.error("missing_field", topics.bag.path, named or "fps", reason, hint=hint)
        return fps or None

    @staticmethod
    def _texts(
        ref: EpisodeRef,
        topics: Topics,
        plan: EpisodePlan,
        tracks: Mapping[str, mcap_tracks.TextTrack],
        times: Array,
    ) -> list[tuple[str, list[str]]]:
        """Texts of the rows, or the one of all, by kind; rows before the first have none."""
        texts: list[tuple[str, list[str]]] = []
        if not any(kind == "original" for kind, _ in plan.texts):
            texts.append(("original", [topics.metadata("instruction")]))
        for kind, reference in plan.texts:
            if reference == STEM:
                rows = [stem_of(ref.path).replace("_", " ")]
            elif is_of_bag(reference):
                key = f"{mcap_tracks.TEXTS}{reference}"
                rows = tracks[key].at(times, ref.extras["texts"].get(key, ""))
            else:
                rows = [topics.metadata(reference)]
            texts.append((kind, rows))
        return texts

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first bag, with questions as comments."""
        path = next(iter(bags_below(source)), None)
        if path is None:
            return None
        topics = Topics(bag_at(path))
        mcap_tracks.leave_out_unusable(topics)
        return topics.proposal()


def _success(
    topics: Topics, plan: EpisodePlan, flag: mcap_tracks.FlagTrack | None
) -> tuple[bool | None, tuple[StoredPart, ...]]:
    """Success of an episode, None if it is unknown, and the parts of the episode."""
    name = plan.success
    path = topics.bag.path
    if flag is not None and flag.last is None:
        note = "no message; the success is unknown"
        return None, _with_part(plan.parts, StoredPart(name, "left_out", "", "other", note))
    value = topics.metadata(name or "success") if flag is None else flag.last
    if name and value == "":
        hint = "give a topic, or a reference NAME@KEY in the mapping"
        raise MCAP.error("missing_field", path, name, "is not there", field=name, hint=hint)
    try:
        return flag_of(value), plan.parts
    except (ValueError, TypeError) as error:
        if name:
            raise MCAP.error("missing_field", path, name, error, field=name) from error
        parts = list(plan.parts)
        for number, part in enumerate(parts):
            if part.role == "success":
                parts[number] = replace(part, role="left_out", note=str(error))
        return None, tuple(parts)


def _with_part(parts: Sequence[StoredPart], part: StoredPart) -> tuple[StoredPart, ...]:
    """Parts with one more, or another one of its path, in natural order."""
    others = [other for other in parts if other.path != part.path]
    return tuple(sorted([*others, part], key=lambda each: natural_key(each.path)))


def _texts_of(tracks: Mapping[str, mcap_tracks.Track]) -> dict[str, mcap_tracks.TextTrack]:
    return {key: track for key, track in tracks.items() if isinstance(track, mcap_tracks.TextTrack)}


def _no_value(path: Path, key: str, track: mcap_tracks.Track, damages: str = "") -> DataError:
    """Error for a part of the mapping without a value."""
    place = track.reference
    hint = ""
    reason = f"no message, {track.skipped} left out{damages}"
    if isinstance(track, mcap_tracks.NumberTrack) and track.missing_joints:
        reason = f"joints without a value: {', '.join(track.missing_joints)}"
        hint = "correct joints in the mapping"
    elif isinstance(track, mcap_tracks.NumberTrack) and track.frames.others:
        reason = f"{place}: no such frame; there are: {', '.join(track.frames.others)}"
        hint = "name one of these frames in the mapping"
    return MCAP.error("missing_topic", path, key, reason, field=place, hint=hint)


def _between_gaps(times: Sequence[int], gap: float) -> list[TimeSpan]:
    """Spans of messages that are at most `gap` seconds apart."""
    spans: list[TimeSpan] = []
    for time in sorted(times):
        if spans and time - spans[-1].stop < gap * 1e9:
            spans[-1] = TimeSpan(spans[-1].start, time + 1)
        else:
            spans.append(TimeSpan(time, time + 1))
    return spans


def _marked(marks: Sequence[tuple[int, str]]) -> tuple[list[TimeSpan], int]:
    """Spans from each start to the next mark, and the number of marks without effect."""
    spans: list[TimeSpan] = []
    unused = 0
    start = None
    for time, text in marks:
        is_start = _MARKS.get(text.lower())
        if is_start is None or (not is_start and start is None):
            unused += 1
            continue
        if start is not None:
            spans.append(TimeSpan(start, time + 1))
        start = time if is_start else None
    if start is not None:
        spans.append(TimeSpan(start, TimeSpan().stop))
    return spans, unused
