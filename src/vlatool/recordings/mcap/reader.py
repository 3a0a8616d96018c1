"""Bags of ROS 2, Foxglove and ROS 1. Source: formats/mcap 1 to 4.

1. `discover` finds bags; each is an episode.
2. `Topics` (topics.py) says what a bag stores, and the role of each, by its first second.
3. `read` puts the messages of an episode into a `Track` for each part of the plan (tracks.py).
4. The rows of an episode are at a rate, or at the times of a topic. Each row takes the last value
   of each track. Images stay in the bag (images.py).
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

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
from vlatool.findings import Finding, FindingCodes
from vlatool.media import limits
from vlatool.recordings import base
from vlatool.recordings.inventory import left_out_findings, left_out_text
from vlatool.recordings.language import first_text, recorded_language
from vlatool.recordings.mapping import read_mapping
from vlatool.recordings.mcap import tracks as mcap_tracks
from vlatool.recordings.mcap.bag import bag_at
from vlatool.recordings.mcap.check import MCAP
from vlatool.recordings.mcap.files import SUFFIXES, bags_below, parts_of_bag, stem_of
from vlatool.recordings.mcap.messages import flag_of
from vlatool.recordings.mcap.topics import STEM, BagMapping, Topics, is_of_bag
from vlatool.recordings.plan import EpisodePlan
from vlatool.recordings.planned import preferred
from vlatool.recordings.rules import distinct_recordings
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import location
from vlatool.withdrawn import WITHDRAWN


class McapConfig(ConfigModel):
    """Options of the format `mcap`; they add what your bags do not store."""

    fps: float | None = option(
        None,
        "Rows per second to make of the messages; null uses fps in the bag's metadata.",
        ge=limits.RATES[0],
        le=limits.RATES[1],
    )
    instruction: str | None = option(
        None, "Instruction of all episodes; null uses the instruction in the bag."
    )
    mapping: str | None = option(
        None,
        "YAML file that says which topics are cameras and fields; null uses all images and plain "
        "numbers.",
    )
    time_source: Literal["log", "header"] = option(
        "log", "Time of a message: when it was recorded (log), or its header stamp (header)."
    )
    max_age_s: float | None = option(
        None, "Let an episode fail if a row needs a value that is older, in seconds.", gt=0
    )


_LOST_CAMERA = "leave the episode out with --exclude; --camera-names of the other cameras keeps it"


class _Opened(NamedTuple):
    """An open bag."""

    topics: Topics
    plan: EpisodePlan  # roles of what it stores
    tracks: dict[str, mcap_tracks.Track]  # empty ones of these, by the key of a mapping


class McapReader(base.FormatReader):
    """Reader of bags; a source is a file, a folder with metadata.yaml, or a folder of bags."""

    Config: ClassVar[type[ConfigModel]] = McapConfig
    findings: ClassVar[FindingCodes | None] = MCAP
    config: McapConfig
    needs_rate: ClassVar[bool] = True

    def __init__(self, config: McapConfig) -> None:
        super().__init__(config)
        self.layout = f"{config.time_source} time"
        self._last: tuple[object, Topics] | None = None

    @cached_property
    def _mapping(self) -> BagMapping | None:
        name = self.config.mapping
        if name is None:
            return None
        mapping = read_mapping(location(name), BagMapping)
        if mapping.episodes != "/":
            raise DataError.at(
                location(name),
                '"episodes" is withdrawn for bags, each of which is one episode',
                hint=WITHDRAWN["marker"],
                code="data.broken",
            )
        return mapping

    @property
    def _joints(self) -> dict[str, list[str]]:
        """Field to the joints that the mapping chooses."""
        return self._mapping.joints if self._mapping else {}

    def _open(self, path: Path) -> _Opened:
        bag = bag_at(path)
        key = path, tuple(part.exists() and part.stat().st_mtime_ns for part in bag.parts)
        if self._last is None or self._last[0] != key:  # a bag is surveyed, then read
            self._last = key, Topics(bag)
        topics = self._last[1]
        plan = topics.plan(self._mapping)
        return _Opened(topics, plan, mcap_tracks.make_tracks(topics, plan, self._joints))

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every bag."""
        findings: list[Finding] = []
        bags = distinct_recordings(sources, bags_below, f"files {', '.join(SUFFIXES)}", findings)
        self.source_findings = findings
        cameras = self._usual_cameras([path for path, _ in bags])
        used: dict[str, int] = {}  # name of a bag to the number of its last namesake
        for path, source in bags:
            files = (path,)
            with suppress(DataError):  # which `read` raises again
                files = parts_of_bag(path)
            stem = base.id_part(stem_of(path) if files == (path,) else path.name)
            yield EpisodeRef(
                id=base.unused_id(stem, used),
                path=path,
                source=str(source),
                files=() if files == (path,) else files,
                extras={"cameras": cameras},
            )

    def _usual_cameras(self, paths: Sequence[Path]) -> tuple[str, ...]:
        """Cameras that most of the first, middle and last bag have; the others lost them."""
        counts: Counter[str] = Counter()
        opened = 0
        for number in base.first_middle_last(len(paths)):
            with suppress(DataError):  # which `read` raises again
                counts.update([*self._open(paths[number]).plan.cameras])
                opened += 1
        return tuple(name for name, count in counts.items() if 2 * count > opened > 1)

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras and fields by the first messages of the topics; the number of rows is unknown."""
        reasons: list[VlatoolError] = []
        survey = lru_cache(maxsize=None)(self._survey)
        surveys = base.survey_each(lambda ref: survey(ref.path), refs, reasons)
        return base.merge_surveys(surveys, reasons)

    def _survey(self, path: Path) -> Survey:
        topics, plan, tracks = self._open(path)
        valued = _valued(tracks)
        mcap_tracks.fill(valued, topics.bag, [], is_first_enough=True)
        sizes: dict[str, tuple[int, int] | None] = dict.fromkeys(plan.cameras)
        fields: dict[str, FieldSpec] = {}
        for key, track in valued.items():
            kind, _, name = key.partition(".")
            if isinstance(track, mcap_tracks.NumberTrack):
                if not len(track):
                    raise self._no_value(path, path.name, key, track)
                fields[name] = FieldSpec(len(track.names), track.names)
            elif isinstance(track, mcap_tracks.ImageTrack) and kind == "cameras" and len(track):
                with suppress(DataError, IndexError):  # which reading the image raises again
                    sizes[name] = track.images(topics.bag, np.zeros(1, int)).size
        for name, source in plan.following.items():
            fields[name] = fields[source]
        return Survey(
            episodes=1,
            cameras=sizes,
            fields=fields,
            fps=self._fps(topics),
            action_fields=plan.actions,
            proprioception_fields=plan.observed,
            text_kinds=tuple(dict.fromkeys(kind for kind, _ in plan.texts if kind != "original")),
            parts=plan.parts,
        )

    def read(self, ref: EpisodeRef) -> Episode:
        """Reads an episode; its images stay on disk. Without a rate, rows follow one topic."""
        opened = self._open(ref.path)
        topics, plan, tracks = opened
        findings: list[Finding] = []
        success = self._fill(opened, findings)
        valued = _valued(tracks)
        missing = self._missing_cameras(ref, plan, valued)
        if not valued:
            left = left_out_text(part for part in plan.parts if part.role == "left_out")
            damages = "".join(f"; {finding.message}" for finding in findings[-1:])
            reason = f"no images and no numbers; left out: {left or 'nothing'}{damages}"
            hint = "exclude it with --exclude"
            raise MCAP.error("empty_episode", ref.path, ref.id, reason, hint=hint)
        fps = self._fps(topics)
        rows = self._rows(ref, valued, fps, findings)
        count = len(rows.times)
        if plan.following:  # the last row has no next one
            count -= 1
        if count < 1:
            raise MCAP.error("empty_episode", ref.path, ref.id, "one row has no next one")
        texts = _texts(ref.path, opened, rows.times[:count])
        option = self.config.instruction
        language, others = recorded_language(ref, count, preferred(texts), option)
        findings += others
        for topic, error in topics.errors.items():
            findings.append(MCAP.from_error(error, field=topic))
        for planned in plan.cameras.values():
            if planned.path in topics.unordered:
                encoding = topics.unordered[planned.path]
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
                fields[name] = self._field(ref, key, track, rows.taken[key], findings)
                names[name] = track.names
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
            missing_cameras=missing,
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

    def _missing_cameras(
        self, ref: EpisodeRef, plan: EpisodePlan, valued: dict[str, Any]
    ) -> dict[str, DataError]:
        """Cameras that other bags have or that are silent here, with the error; `valued`: tracks
        with values, from which the silent ones are removed.
        """
        missing: dict[str, DataError] = {}
        for name in ref.extras.get("cameras", ()):
            if name not in plan.cameras:
                reason = f"has no camera {name!r}, which other bags have"
                missing[name] = MCAP.error(
                    "missing_topic", ref.path, ref.id, reason, camera=name, hint=_LOST_CAMERA
                )
        for key, track in list(valued.items()):
            kind, _, name = key.partition(".")
            if kind == "cameras" and not len(track):
                missing[name] = self._no_value(ref.path, ref.id, key, track)
                del valued[key]
        return missing

    def _fill(self, opened: _Opened, findings: list[Finding]) -> bool | None:
        """Fills the tracks with the messages; returns the success of the episode."""
        topics, plan, tracks = opened
        reading = dict(tracks)
        late = mcap_tracks.late_joints(topics, tracks)
        reading.update(late)
        flag: mcap_tracks.FlagTrack | None = None
        if is_of_bag(plan.success):
            flag = mcap_tracks.FlagTrack(topics.bag.path, *topics.channel_of(plan.success))
            reading["success"] = flag
        mcap_tracks.fill(reading, topics.bag, findings, self.config.time_source)
        success = _success(topics, plan, flag)
        for reference, track in late.items():
            if track.note:
                part = StoredPart(reference, "left_out", "", "unusable", track.note)
                plan.parts = _with_part(plan.parts, part)
        return success

    def _rows(
        self,
        ref: EpisodeRef,
        tracks: Mapping[str, mcap_tracks.Track],
        fps: float | None,
        findings: list[Finding],
    ) -> mcap_tracks.BagRows:
        """Rows of an episode; `findings` gets the counts of each topic."""
        damages = "".join(f"; {finding.message}" for finding in findings[-1:])
        out_of_order: dict[str, int] = {}
        for key, track in tracks.items():
            out_of_order[key] = track.sort()
            if not len(track):
                raise self._no_value(ref.path, ref.id, key, track, damages)
        max_age = self.config.max_age_s
        rows = mcap_tracks.make_rows(tracks, fps, max_age)
        if not len(rows.times):
            reason = f"there is no time at which all topics have a value{damages}"
            raise MCAP.error("empty_episode", ref.path, ref.id, reason)
        if len(rows.times) == limits.MOST_ROWS:
            reason = f"the times jump from {rows.times[0]} to {rows.times[-1]} ns"
            hint = "divide the bag at the jump with `mcap filter`, `ros2 bag convert` or "
            hint += "`rosbag filter`, or leave it out with --exclude"
            raise MCAP.error("too_large", ref.path, ref.id, reason, hint=hint)
        timings: dict[str, str] = {}
        for key, track in tracks.items():
            topic = track.channel.topic
            ages = rows.ages[key] / 1e9
            if max_age is not None and ages.max() > max_age:
                row = int((ages > max_age).argmax())
                reason = f"the value in row {row} is {ages[row]:.3g} s old, above --max-age-s"
                raise MCAP.error("stale_value", ref.path, f"{ref.id}: {key}", reason, frame=row)
            if topic in timings:
                continue
            timings[topic], gaps = track.timing(rows.taken[key])
            if gaps:
                findings.append(MCAP("gaps", f"{ref.id}: {topic}: {gaps}", episode=ref.id))
            counts = {"out_of_order": out_of_order[key], "skipped": track.skipped}
            if isinstance(track, mcap_tracks.NumberTrack):
                counts["joined"] = track.joined
            for code, count in counts.items():
                if count:
                    text = f"{ref.id}: {topic}: {count} messages"
                    findings.append(MCAP(code, text, episode=ref.id))
        text = "; ".join(f"{topic}: {text}" for topic, text in timings.items())
        findings.append(MCAP("clock", f"{ref.id}: {text}", episode=ref.id))
        if any(rows.dropped):
            text = f"{ref.id}: {rows.dropped[0]} rows at the start, {rows.dropped[1]} at the end"
            findings.append(MCAP("rows_dropped", text, episode=ref.id))
        return rows

    def _no_value(
        self, path: Path, place: str, key: str, track: mcap_tracks.Track, damages: str = ""
    ) -> DataError:
        """Returns the error for a camera or a field without a value in an episode or a bag."""
        kind, _, name = key.partition(".")
        topic = track.reference
        reason = f"no usable message for {name!r} of {kind}"
        reason += f"; {track.skipped} are left out" if track.skipped else ""
        reason += damages
        without = "the topic with a mapping: `vlatool inspect BAG --propose mapping.yaml`, without "
        without += f"its line {name}"
        if self._mapping is not None:
            without = f"{name} from the mapping"
        elif kind == "cameras":
            without = "the camera with --camera-names, which lists those to use"
        hint = f"leave the episode out with --exclude, or {without}"
        if isinstance(track, mcap_tracks.NumberTrack):
            if track.missing_joints:
                reason = f"these joints have no value: {', '.join(track.missing_joints)}"
                hint = "remove these joints from the mapping"
            elif track.frames.others:
                reason = f"no such frame; the bag has {', '.join(track.frames.others)}"
                hint = "name one of these frames in the mapping"
        return MCAP.error(
            "missing_topic", path, f"{place}: {topic}", reason, field=topic, hint=hint
        )

    def _field(
        self,
        ref: EpisodeRef,
        key: str,
        track: mcap_tracks.NumberTrack,
        taken: Array,
        findings: list[Finding],
    ) -> Array:
        """Rows of a field [F, C]; DataError if they are all NaN."""
        values = track.rows(taken)
        if np.isnan(values).all():
            hint = "leave it out of the mapping, or leave the episode out with --exclude"
            reason = f"all {len(values)} rows are NaN"
            raise MCAP.error("missing_field", ref.path, ref.id, key, reason, hint=hint)
        name = key.partition(".")[2]
        if track.other_joints and name not in self._joints:
            text = f"{ref.id}: {name}: {', '.join(track.other_joints)}"
            findings.append(MCAP("late_joints", text, episode=ref.id, field=name))
        return values

    def _fps(self, topics: Topics) -> float | None:
        """Rows per second: by the option, the mapping or the metadata; None: unknown."""
        named = self._mapping.fps if self._mapping else ""
        stored: Any = named
        if self.config.fps is not None:
            stored = self.config.fps
        elif isinstance(named, str):
            stored = topics.metadata(named or "fps")
        fps = 0.0
        with suppress(ValueError):
            fps = limits.possible_rate(float(stored or 0))
        if not fps and (named or self.config.fps is not None):
            reason = f"is no frame rate: {stored!r:.40}"
            hint = "add --fps, or write NAME@KEY of a number in the bag's metadata into the mapping"
            raise MCAP.error("missing_field", topics.bag.path, named or "fps", reason, hint=hint)
        return fps or None

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first bag, with questions as comments."""
        path = next(iter(bags_below(source)), None)
        if path is None:
            return None
        topics = Topics(bag_at(path))
        mcap_tracks.leave_out_unusable(topics)
        return topics.proposal()


def _texts_of(tracks: Mapping[str, mcap_tracks.Track]) -> dict[str, mcap_tracks.TextTrack]:
    return {key: track for key, track in tracks.items() if isinstance(track, mcap_tracks.TextTrack)}


def _valued(tracks: Mapping[str, mcap_tracks.Track]) -> dict[str, mcap_tracks.Track]:
    """Tracks of images and numbers."""
    texts = _texts_of(tracks)
    return {key: track for key, track in tracks.items() if key not in texts}


def _texts(path: Path, opened: _Opened, times: Array) -> list[tuple[str, list[str]]]:
    """Texts of the rows, or the one of all, by kind; rows before the first have none."""
    topics, plan, tracks = opened
    spoken = _texts_of(tracks)
    texts: list[tuple[str, list[str]]] = []
    if not any(kind == "original" for kind, _ in plan.texts):
        texts.append(("original", [topics.metadata("instruction")]))
    for kind, reference in plan.texts:
        if reference == STEM:
            rows = [stem_of(path).replace("_", " ")]
        elif is_of_bag(reference):
            rows = spoken[f"{mcap_tracks.TEXTS}{reference}"].at(times)
        else:
            rows = [topics.metadata(reference)]
        texts.append((kind, rows))
    return texts


def _success(topics: Topics, plan: EpisodePlan, flag: mcap_tracks.FlagTrack | None) -> bool | None:
    """Success of an episode, None if it is unknown; a flag without meaning is left out."""
    name = plan.success
    path = topics.bag.path
    if flag is not None and flag.last is None:
        note = "it has no message, so the success is unknown"
        part = StoredPart(name, "left_out", "", "other", note)
        plan.parts = _with_part(plan.parts, part)
        return None
    value = topics.metadata(name or "success") if flag is None else flag.last
    if name and value == "":
        hint = "name a topic, or NAME@KEY in the bag's metadata, under success in the mapping"
        raise MCAP.error("missing_field", path, name, "is missing", field=name, hint=hint)
    try:
        return flag_of(value)
    except (ValueError, TypeError) as error:
        if name:
            raise MCAP.error("missing_field", path, name, error, field=name) from error
        parts = list(plan.parts)
        for number, part in enumerate(parts):
            if part.role == "success":
                parts[number] = replace(part, role="left_out", note=str(error))
        plan.parts = tuple(parts)
        return None


def _with_part(parts: Sequence[StoredPart], part: StoredPart) -> tuple[StoredPart, ...]:
    """Parts with one more, or another one of its path, in natural order."""
    others = [other for other in parts if other.path != part.path]
    return tuple(sorted([*others, part], key=lambda part: natural_key(part.path)))
