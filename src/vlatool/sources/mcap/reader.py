"""Bags of ROS 2, Foxglove and ROS 1. Source: formats/mcap 1 to 5."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np
from pydantic import Field

from vlatool.config.base import ConfigModel
from vlatool.episode import Array, Episode, EpisodeRef, FieldSpec, FrameSource, Survey
from vlatool.errors import DataError, VlatoolError
from vlatool.findings import Finding, FindingCodes
from vlatool.sources import base
from vlatool.sources.mapping import proposal, read_mapping
from vlatool.sources.mcap import clock
from vlatool.sources.mcap.bag import SUFFIXES, BagChannel, BagMessage, Span, bag_at, bags_below
from vlatool.sources.mcap.images import BagImages, is_keyframe
from vlatool.sources.mcap.messages import decoded, image_kind, stamp_of
from vlatool.sources.mcap.rules import MCAP, mcap_error
from vlatool.sources.mcap.topics import STEM, BagMapping, FieldValues, Topics, proposed
from vlatool.sources.rules import distinct_recordings, no_instruction
from vlatool.storage.uri import location

_MARKS = {"true": True, "start": True, "begin": True, "false": False, "stop": False, "end": False}


class McapConfig(ConfigModel):
    """Options of bags. What they do not store is given here."""

    fps: float | None = Field(
        default=None, gt=0, description="Rows per second; null: fps in the metadata of the bag."
    )
    instruction: str | None = Field(
        default=None, description="Instruction of all episodes; null: that of the bag."
    )
    mapping: str | None = Field(
        default=None,
        description="YAML file that names the topics of cameras and fields; null: all images and "
        "plain numbers.",
    )
    time_source: Literal["log", "header"] = Field(
        default="log", description="Time of a message: that of recording, or its header stamp."
    )
    max_age_s: float | None = Field(
        default=None,
        gt=0,
        description="Greatest age of a value in a row, in seconds; older ones fail the episode.",
    )
    marker: str | None = Field(
        default=None, description="Topic (Bool or String) whose messages start and stop episodes."
    )
    gap_s: float | None = Field(
        default=None, gt=0, description="Start an episode after so many seconds without a message."
    )


class _Tracks:
    """Tracks of the parts of a mapping, filled in one pass over the messages."""

    def __init__(self, topics: Topics, mapping: BagMapping) -> None:
        """Raises DataError if the bag has not what the mapping names."""
        self.topics, self.path = topics, topics.bag.path
        self.rows: dict[str, clock.Track] = {}  # by key of the mapping: `cameras.front`, ...
        self.fields: dict[str, FieldValues] = {}
        self.channels: dict[str, BagChannel] = {}  # of the images
        self.texts = clock.Track("", _position)
        self.taking: dict[str, list[clock.Track]] = {}  # by topic
        self._read: set[str] = set()  # topics of which more than positions is needed
        images = {f"cameras.{n}": c.path or c.video for n, c in mapping.cameras.items()}
        images |= {f"depth.{name}": reference for name, reference in mapping.depth.items()}
        for key, reference in images.items():
            channel, member = topics.find(reference)
            kind = image_kind(channel)
            if kind is None or member:
                self._no_field(reference, f"{channel.type} is no image")
            self.channels[key] = channel
            value = self._packets(channel) if kind == "video" else _position
            self._add(key, channel, value)
        for name, reference in mapping.fields.items():
            place = topics.find(reference)
            values = FieldValues(self.path, place, mapping.joints.get(name, ()))
            self.fields[name] = values
            self._add(f"fields.{name}", place[0], values)
        if mapping.instruction not in ("", STEM) and "@" not in mapping.instruction:
            channel, member = topics.find(mapping.instruction)
            self.texts = self._add("", channel, partial(self._text, channel, member or "data"))

    def _add(self, key: str, channel: BagChannel, value: Any) -> clock.Track:
        track = clock.Track(channel.topic, value)
        self.taking.setdefault(channel.topic, []).append(track)
        if value is not _position:
            self._read.add(channel.topic)
        if key:
            self.rows[key] = track
        return track

    def _no_field(self, reference: str, reason: str) -> NoReturn:
        raise mcap_error(self.path, reference, reason, "missing_field", field=reference)

    def _text(self, channel: BagChannel, member: str, message: Any, position: Sequence[int]) -> str:
        del position
        text = getattr(message, member, None)
        if not isinstance(text, str):
            self._no_field(f"{channel.topic}/{member}", "is no text")
        return text.strip()

    def _packets(self, channel: BagChannel) -> Any:
        has_key = False

        def value(message: Any, position: tuple[int, ...]) -> Any:
            nonlocal has_key
            try:
                is_key = is_keyframe(message)
            except ValueError as error:
                raise mcap_error(self.path, channel.topic, error, "bad_image") from error
            has_key = has_key or is_key
            return (*position, is_key) if has_key else None

        return value

    def take(self, stored: BagMessage, time: int | None = None, message: Any = None) -> None:
        topic = stored.channel.topic
        if message is None and topic in self._read:
            message = decoded(self.path, stored.channel, stored.data)
        for track in self.taking.get(topic, ()):
            track.take(message, stored.time if time is None else time, stored.position)

    def fill(self, span: Span, findings: list[Finding], *, by_header: bool) -> None:
        """Adds the messages of a span; `findings` gets damages, and topics without stamps."""
        without: Counter[str] = Counter()
        for stored in self.topics.bag.messages(span, findings):
            if stored.channel.topic in self.taking:
                message = time = None
                if by_header:
                    message = decoded(self.path, stored.channel, stored.data)
                    time = stamp_of(message)
                    without[stored.channel.topic] += time is None
                self.take(stored, time, message)
        for topic, count in without.items():
            if count:
                findings.append(MCAP.at("no_stamp", self.path, f"{topic}: {count} messages"))

    def frames(self, key: str, taken: Array, use: str = "rgb") -> FrameSource:
        messages = np.array(self.rows[key].values, np.int64)
        return BagImages(self.topics.bag, self.channels[key], messages, taken, use)


def _position(message: Any, position: tuple[int, ...]) -> tuple[int, ...]:
    del message
    return (*position, 1)


class McapReader(base.FormatReader):
    """Reader of bags; a source is a file, a folder with metadata.yaml, or a folder of these."""

    Config: ClassVar[type[ConfigModel]] = McapConfig
    findings: ClassVar[FindingCodes | None] = MCAP
    needs_rate: ClassVar[bool] = True

    def __init__(self, config: McapConfig) -> None:
        self.config = config
        self.layout = f"{config.time_source} time"
        self.source_findings: Sequence[Finding] = ()

    @cached_property
    def _mapping(self) -> BagMapping | None:
        name = self.config.mapping
        return None if name is None else read_mapping(location(name), BagMapping)

    def _tracks(self, path: Path) -> tuple[_Tracks, BagMapping]:
        topics = Topics(bag_at(path))
        mapping = self._mapping or proposed(topics)[0].model_copy(update={"joints": {}})
        return _Tracks(topics, mapping), mapping

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every bag, or the parts of it by a marker or by gaps, for which all messages are read."""
        findings: list[Finding] = []
        bags = distinct_recordings(sources, bags_below, f"files {', '.join(SUFFIXES)}", findings)
        self.source_findings = findings
        used: Counter[str] = Counter()
        for path, source in bags:
            parts, spans = (path,), [(Span(), "")]
            with suppress(DataError):  # which `read` raises again
                parts = bag_at(path).parts
                spans = self._spans(path, findings)
            name = base.id_part(path.stem if parts == (path,) else path.name)
            used[name] += 1
            name = name if used[name] == 1 else f"{name}-{used[name]}"
            for number, (span, text) in enumerate(spans):
                yield EpisodeRef(
                    id=name if span == Span() else f"{name}_{number:06d}",
                    path=path,
                    source=str(source),
                    files=() if parts == (path,) else parts,
                    extras={"span": tuple(span), "text": text},
                )

    def _spans(self, path: Path, findings: list[Finding]) -> list[tuple[Span, str]]:
        """Spans of the episodes of a bag, and the last text of the instruction before each."""
        mapping, gap = self._mapping or BagMapping(), self.config.gap_s
        marker = self.config.marker or mapping.episodes
        if marker == "/" and gap is None:
            return [(Span(), "")]
        topics = Topics(bag_at(path))
        tracks = _Tracks(topics, BagMapping(instruction=self._tracks(path)[1].instruction))
        channel, member = (None, "") if marker == "/" else topics.find(marker)
        times: list[int] = []
        marks: list[tuple[int, bool | None]] = []
        for stored in topics.bag.messages(Span(), []):
            times.append(stored.time)
            tracks.take(stored)
            if stored.channel == channel:
                message = decoded(path, stored.channel, stored.data)
                text = str(getattr(message, member or "data", "")).strip().lower()
                marks.append((stored.time, _MARKS.get(text)))
        if channel is None:
            spans = _divided(times, gap or 0.0)
        else:
            spans, unused = _marked(sorted(marks, key=lambda mark: mark[0]))
            if unused:
                reason = f"{marker}: {unused} of {len(marks)} messages"
                findings.append(MCAP.at("bad_marker", path, reason, field=marker))
        tracks.texts.sort()
        before = np.searchsorted(tracks.texts.times, [span.start for span in spans])
        texts = ["", *tracks.texts.values]
        return [(span, texts[index]) for span, index in zip(spans, before, strict=True)]

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras and fields by the first messages of the topics; the number of rows is unknown."""
        reasons: list[VlatoolError] = []
        known: dict[Path, Survey] = {}

        def survey(ref: EpisodeRef) -> Survey:
            if ref.path not in known:
                known[ref.path] = self._survey(ref.path)
            return known[ref.path]

        return base.merge_surveys(base.survey_each(survey, refs, reasons), reasons)

    def _survey(self, path: Path) -> Survey:
        tracks, mapping = self._tracks(path)
        for stored in tracks.topics.first_messages([*tracks.taking]).values():
            tracks.take(stored)
        sizes: dict[str, tuple[int, int] | None] = dict.fromkeys(mapping.cameras)
        for name in mapping.cameras:
            with suppress(DataError, IndexError):  # which reading the image raises again
                sizes[name] = tracks.frames(f"cameras.{name}", np.zeros(1, np.int64)).size
        return Survey(
            1,
            sizes,
            {
                name: FieldSpec(len(field.names), field.names)
                for name, field in tracks.fields.items()
            },
            None,
            self._fps(tracks.topics, mapping),
            tuple(mapping.action_fields),
            tuple(mapping.proprioception_fields),
        )

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; its images stay on disk. Without a rate, its rows are those of a topic."""
        tracks, mapping = self._tracks(ref.path)
        topics, findings = tracks.topics, list[Finding]()
        by_header = self.config.time_source == "header"
        tracks.fill(Span(*ref.extras["span"]), findings, by_header=by_header)
        fps = self._fps(topics, mapping)
        rows = self._rows(ref, tracks, fps, findings)
        instruction = self._instruction(ref, tracks, mapping, findings)
        findings += [
            MCAP.from_error(error, field=topic)
            for topic, error in topics.channels.items()
            if isinstance(error, DataError)
        ]
        left = topics.left_out([*tracks.taking])
        if left:
            findings.append(MCAP.at("left_out", ref.path, ", ".join(left)))
        success = topics.metadata(mapping.success or "success").lower()
        taken = rows.taken
        return Episode(
            id=ref.id,
            task=instruction,
            fps=fps or 0.0,
            num_frames=len(rows.times),
            cameras={
                name: tracks.frames(
                    f"cameras.{name}", taken[f"cameras.{name}"], "bgr" if camera.bgr else "rgb"
                )
                for name, camera in mapping.cameras.items()
            },
            depth={
                name: tracks.frames(f"depth.{name}", taken[f"depth.{name}"], "depth")
                for name in mapping.depth
            },
            lowdim={
                name: np.stack([tracks.rows[key].values[index] for index in taken[key]])
                for name, key in ((name, f"fields.{name}") for name in tracks.fields)
            },
            dimension_names={name: values.names for name, values in tracks.fields.items()},
            language={"original": [instruction]} if instruction else {},
            success={"true": True, "1": True, "false": False, "0": False}.get(success),
            action_fields=tuple(mapping.action_fields),
            proprioception_fields=tuple(mapping.proprioception_fields),
            findings=tuple(findings),
            extras={"source_episode": ref.path.name, "start_ns": int(rows.times[0])},
        )

    def _rows(
        self, ref: EpisodeRef, tracks: _Tracks, fps: float | None, findings: list[Finding]
    ) -> clock.Rows:
        """Rows of an episode; `findings` gets the counts of each topic."""
        damages = "".join(f"; {finding.message}" for finding in findings[:1])
        for key, track in tracks.rows.items():
            if not track.values:
                reason = f"no message, {track.skipped} left out{damages}"
                raise mcap_error(ref.path, f"{ref.id}: {key}", reason, "missing_topic")
        late = {key: track.sort() for key, track in tracks.rows.items()}
        max_age = self.config.max_age_s
        rows = clock.make_rows(tracks.rows, fps, max_age) if late else None
        if rows is None or not len(rows.times):
            reason = (
                "no time with a value of each topic" if late else "no topic of images or numbers"
            )
            raise mcap_error(ref.path, ref.id, f"{reason}{damages}", "empty_episode")
        counts: dict[str, str] = {}
        for key, track in tracks.rows.items():
            place = f"{ref.id}: {key}"
            if max_age is not None and (old := rows.ages[key] > max_age * 1e9).any():
                row = int(old.argmax())
                reason = f"the value in row {row} is {rows.ages[key][row] / 1e9:.3g} s old"
                raise mcap_error(ref.path, place, reason, "stale_value", frame=row)
            text, gaps = clock.timing(track, rows.taken[key])
            problems = {
                "gaps": gaps,
                "out_of_order": f"{late[key]} messages" * bool(late[key]),
                "skipped": f"{track.skipped} messages" * bool(track.skipped),
            }
            for code, problem in problems.items() if track.topic not in counts else ():
                if problem:
                    message = f"{ref.id}: {track.topic}: {problem}"
                    findings.append(MCAP(code, message, episode=ref.id, field=key))
            counts.setdefault(track.topic, text)
        text = "; ".join(f"{topic}: {text}" for topic, text in counts.items())
        findings.append(MCAP("clock", f"{ref.id}: {text}", episode=ref.id))
        if any(rows.dropped):
            text = f"{ref.id}: {rows.dropped[0]} at the start, {rows.dropped[1]} at the end"
            findings.append(MCAP("rows_dropped", text, episode=ref.id))
        return rows

    def _fps(self, topics: Topics, mapping: BagMapping) -> float | None:
        if self.config.fps is not None:
            return self.config.fps
        stored, fps = topics.metadata(mapping.fps or "fps"), 0.0
        with suppress(ValueError):
            fps = float(stored or 0)
        if mapping.fps and not 0 < fps < np.inf:
            reason = f"is no rate: {stored!r}"
            raise mcap_error(topics.bag.path, mapping.fps, reason, "missing_field")
        return fps if 0 < fps < np.inf else None

    def _instruction(
        self, ref: EpisodeRef, tracks: _Tracks, mapping: BagMapping, findings: list[Finding]
    ) -> str:
        texts = [tracks.topics.metadata(mapping.instruction or "instruction")]
        if self.config.instruction is not None:
            return self.config.instruction
        if mapping.instruction == STEM:
            texts = [ref.path.stem.replace("_", " ")]
        elif mapping.instruction and "@" not in mapping.instruction:
            tracks.texts.sort()
            texts = tracks.texts.values or [ref.extras["text"]]
        distinct = [text for text in dict.fromkeys(texts) if text]
        if len(distinct) > 1:
            message = f"{ref.id}: {len(distinct)} instructions"
            findings.append(MCAP("changing_text", message, episode=ref.id))
        if not distinct:
            findings.append(no_instruction(ref))
        return distinct[0] if distinct else ""

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first bag, with questions as comments."""
        path = next(iter(bags_below(source)), None)
        return None if path is None else proposal(*proposed(Topics(bag_at(path))))


def _marked(marks: Sequence[tuple[int, bool | None]]) -> tuple[list[Span], int]:
    """Spans from each start to the next mark, and the number of marks without effect."""
    known = [(time, is_start) for time, is_start in marks if is_start is not None]
    spans: list[Span] = []
    unused, is_open = len(marks) - len(known), False
    for (time, is_start), (following, _) in pairwise([*known, (Span().stop - 1, False)]):
        unused += is_start == is_open
        is_open = is_start
        if is_start:
            spans.append(Span(time, following + 1))
    return spans, unused


def _divided(times: Sequence[int], gap_s: float) -> list[Span]:
    """Spans between gaps of all messages."""
    ordered = np.sort(np.asarray(times, np.int64))
    groups = np.split(ordered, np.flatnonzero(np.diff(ordered) > gap_s * 1e9) + 1)
    return [Span(int(group[0]), int(group[-1]) + 1) for group in groups if len(group)]
