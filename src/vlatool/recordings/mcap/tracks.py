"""Values of the topics of an episode, and the clock of its rows.

A row takes the last value before its time. Times are in nanoseconds; F is the number of rows.
"""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.media import limits
from vlatool.recordings.mcap import images, messages
from vlatool.recordings.mcap.bag import Bag, BagChannel, TimeSpan
from vlatool.recordings.mcap.check import MCAP
from vlatool.recordings.mcap.topics import JOINT_VALUES, Topics, is_of_bag
from vlatool.recordings.plan import EpisodePlan, PlannedImages
from vlatool.storage.tree import natural_key

TEXTS = "texts."  # start of the keys of texts
_TOLERANCE = 0.01  # of an interval: a value may be later than its row, since stamps are rounded
_GAP = 4.0  # times the median interval of a topic


class Track:
    """Values of one part of a plan, by the times of their messages."""

    code: ClassVar[str] = "missing_field"  # of a message that has no such value

    def __init__(self, path: Path, channel: BagChannel, member: str = "") -> None:
        self.path = path
        self.channel = channel
        self.member = member
        self.reference = f"{channel.topic}/{member}".rstrip("/")
        self.needs_message = True  # decoded
        self.skipped = 0  # messages before all joints have a value, or before the first keyframe
        self._times = array("q")
        self._order: Array | slice = slice(None)

    def __len__(self) -> int:
        return len(self._times)

    @property
    def times(self) -> Array:
        return np.array(self._times, np.int64)[self._order]

    @property
    def interval(self) -> float:
        """Median nanoseconds between two values; 0 of one value."""
        return float(np.median(np.diff(self.times))) if len(self) > 1 else 0.0

    def ages(self, rows: Array, taken: Array) -> Array:
        """Age of the values `taken` at the times of rows."""
        return rows - self.times[taken]

    def take(self, message: Any, time: int, position: tuple[int, ...]) -> None:
        """Adds a message; DataError if it has not what the plan names."""
        try:
            if self._add(message, time, position):
                self._times.append(time)
        except images.BROKEN as error:
            place = self.reference
            raise MCAP.error(self.code, self.path, place, error, field=place) from error

    def _add(self, message: Any, time: int, position: tuple[int, ...]) -> bool:
        """Adds the value of a message; False if it has none for this track."""
        raise NotImplementedError(message, time, position)

    def sort(self) -> int:
        """Sorts by time; returns the number of messages that were earlier than one before them."""
        times = self.times
        self._order = np.argsort(times, kind="stable")
        return int((times < np.maximum.accumulate(times)).sum())

    def timing(self, taken: Array) -> tuple[str, str]:
        """Returns texts with the counts and interval of messages, and with gaps (may be empty)."""
        text = f"{len(self)} messages, {len(self) - len(np.unique(taken))} unused"
        if len(self) < 2:
            return text, ""
        seconds = np.diff(self.times) / 1e9
        interval = self.interval / 1e9
        is_gap = seconds > _GAP * interval
        gaps = ""
        if is_gap.any():
            gaps = f"{is_gap.sum()} gaps, the longest {seconds.max():.3g} s"
        jitter = float(np.std(seconds[~is_gap])) * 1000
        return f"{text}, every {interval * 1000:.4g} ms, jitter {jitter:.1f} ms", gaps


class TextTrack(Track):
    """Texts of a String, or of a member of another message."""

    def __init__(self, path: Path, channel: BagChannel, member: str = "") -> None:
        super().__init__(path, channel, member)
        self._texts: list[str] = []

    def by_time(self) -> list[tuple[int, str]]:
        """(time, text) in their order."""
        return sorted(zip(self._times, self._texts, strict=True), key=lambda sent: sent[0])

    def at(self, times: Array, before: str = "") -> list[str]:
        """The last text at each time; `before`: the one before all."""
        sent_times: list[int] = []
        texts = [before]
        for time, text in self.by_time():
            sent_times.append(time)
            texts.append(text)
        counts = np.searchsorted(sent_times, times, side="right")
        return [texts[count] for count in counts]

    def _add(self, message: Any, time: int, position: tuple[int, ...]) -> bool:
        text = messages.member_at(message, self.member)
        if not isinstance(text, str | bool):
            text = getattr(text, "data", None)
        if not isinstance(text, str | bool):
            raise TypeError("is no text")
        self._texts.append(str(text).strip())
        return True


class FlagTrack(Track):
    """The last Bool, number or text that is not empty, as the success of an episode."""

    def __init__(self, path: Path, channel: BagChannel, member: str = "") -> None:
        super().__init__(path, channel, member)
        self.last: Any = None  # value; None without one
        self._last_time = 0

    def _add(self, message: Any, time: int, position: tuple[int, ...]) -> bool:
        value = messages.member_at(message, self.member)
        value = getattr(value, "data", value)
        if isinstance(value, str) and not value.strip():
            return False
        if time >= self._last_time:
            self._last_time = time
            self.last = value
        return True


class LateJoints(Track):
    """Finds out whether joint values come later that the first second does not have."""

    def __init__(self, path: Path, channel: BagChannel, member: str) -> None:
        super().__init__(path, channel, member)
        self._first = 0
        self._found = ""

    @property
    def note(self) -> str:
        """Why these values are left out; empty if none come later."""
        if not self._found:
            return ""
        return f"{self._found}; to use it, write fields: {{NAME: {self.reference}}} in a mapping"

    def _add(self, message: Any, time: int, position: tuple[int, ...]) -> bool:
        self._first = self._first or time
        count = len(getattr(message, self.member, ()))
        if count and not self._found:
            reason = messages.unnamed_values(messages.joints_of(message), count)
            place = f"{(time - self._first) / 1e9:.3g} s after the first message"
            self._found = f"{reason or 'has its first numbers'} {place}"
        return False


class ImageTrack(Track):
    """Images of a topic, as the positions of their messages."""

    code: ClassVar[str] = "bad_image"

    def __init__(self, path: Path, channel: BagChannel, planned: PlannedImages) -> None:
        super().__init__(path, channel)
        self._planned = planned
        self.needs_message = messages.image_kind(channel) == "video"
        self._positions = array("q")  # [7] each: position, and 1 for a keyframe

    def _add(self, message: Any, time: int, position: tuple[int, ...]) -> bool:
        is_key = not self.needs_message or images.is_keyframe(message)
        if not is_key and not len(self):
            self.skipped += 1
            return False
        self._positions.extend((*position, is_key))
        return True

    def images(self, bag: Bag, taken: Array) -> images.BagImages:
        positions = np.frombuffer(self._positions, np.int64).reshape(len(self), -1)[self._order]
        return images.BagImages(bag, self.channel, self._planned, positions, taken)


class NumberTrack(Track):
    """Numbers [C] of a message or of a member of it.

    Joints that a message lacks keep their last value.
    """

    def __init__(self, path: Path, channel: BagChannel, member: str, joints: Sequence[str]) -> None:
        """`joints`: joints of the field in their order; empty if the field has no joints."""
        super().__init__(path, channel, member)
        self.joints = tuple(joints)
        self.names = self.joints
        self.joined = 0  # messages with some of the joints
        self.frames = messages.FrameNames()
        self._latest: dict[str, tuple[float, int]] = {}  # joint to its last value and its time
        # Lists of numbers would take ten times the memory.
        self._values = array("d")
        self._lags = array("q")  # that the oldest joint of a value is older than its message

    def ages(self, rows: Array, taken: Array) -> Array:
        lags = np.array(self._lags, np.int64)[self._order]
        return super().ages(rows, taken) + lags[taken]

    def rows(self, taken: Array) -> Array:
        """Numbers [F, C] of the messages `taken`."""
        return np.frombuffer(self._values).reshape(len(self), -1)[self._order][taken]

    def _add(self, message: Any, time: int, position: tuple[int, ...]) -> bool:
        value = messages.member_at(message, self.member, self.frames)
        if len(self.frames.used) > 1:
            raise self._mixed_frames()
        if value is None:
            return False
        parts = list(messages.numbers_of(value, skipped={}))
        if not parts:
            raise ValueError("it has no numbers")
        numbers = np.concatenate([part for _, part in parts])
        lag = 0
        joints = messages.joints_of(message) if self.member in JOINT_VALUES else []
        if joints or self.joints:
            reason = messages.unnamed_values(joints, len(numbers))
            if reason:
                raise ValueError(reason)
            if not self._has_all_joints(dict(zip(joints, numbers, strict=False)), time):
                return False
            lag = time - min(self._latest[name][1] for name in self.names)
            numbers = [self._latest[name][0] for name in self.names]
        elif not self.names:
            self.names = _names(parts)
        if not 0 < len(numbers) == len(self.names):
            reason = "its messages are empty"
            if len(self):
                counts = f"{len(self.names)} numbers, then {len(numbers)}"
                reason = f"its messages have different lengths: {counts}"
            place = self.reference
            raise MCAP.error("bad_message", self.path, place, reason, field=place)
        self._values.extend(numbers)
        self._lags.append(lag)
        return True

    def _has_all_joints(self, values: Mapping[str, float], time: int) -> bool:
        """Takes the values of joints; False if one has none yet, or none is in the message."""
        for joint, value in values.items():
            self._latest[joint] = float(value), time
        if not self.names:
            self.names = tuple(sorted(values, key=natural_key))
        count = sum(name in values for name in self.names)
        if not count:
            return False
        if self.missing_joints:
            self.skipped += 1
            return False
        self.joined += count < len(self.names)
        return True

    @property
    def missing_joints(self) -> list[str]:
        """Joints without a value so far."""
        return [name for name in self.joints if name not in self._latest]

    @property
    def other_joints(self) -> list[str]:
        """Joints of the topic that the field does not have."""
        return [name for name in self._latest if name not in self.names]

    def _mixed_frames(self) -> DataError:
        """Returns the error for a field whose transforms are between different frames."""
        used = [*self.frames.used]
        children = [name.partition(">")[2] for name in used]
        frame = children[0] if len({*children}) == len(children) else used[0]
        reference = f"{self.channel.topic}/{messages.with_frame(self.member, frame)}"
        known = dict.fromkeys([*used, *self.frames.others])
        reason = f"its transforms are between different frames: {', '.join(known)}"
        hint = f"name the frame in the mapping, such as {reference}"
        place = self.reference
        return MCAP.error("mixed_frames", self.path, place, reason, field=place, hint=hint)


def _names(parts: Sequence[tuple[str, Array]]) -> tuple[str, ...]:
    """Names the numbers of a message after its members, with an index in arrays."""
    is_plain = all(name and len(part) == 1 for name, part in parts)
    names: list[str] = []
    for name, part in parts:
        for index in range(len(part)):
            names.append((name if is_plain else f"{name}.{index}").lstrip("."))
    return tuple(names)


def make_tracks(
    topics: Topics, plan: EpisodePlan, joints: Mapping[str, Sequence[str]]
) -> dict[str, Track]:
    """Empty tracks of a plan, by the key of a mapping (`cameras.front`, `fields.q`).

    `joints`: field to its joints; others have all joints of their topic, sorted by name.
    """
    tracks: dict[str, Track] = {}
    path = topics.bag.path
    for role, planned_images in plan.images.items():
        kind = "cameras" if role == "camera" else role
        for name, planned in planned_images.items():
            channel, _ = topics.channel_of(planned.path)
            tracks[f"{kind}.{name}"] = ImageTrack(path, channel, planned)
    for name, reference in plan.fields.items():
        names = joints.get(name) or sorted(topics.joints.get(reference, ()), key=natural_key)
        tracks[f"fields.{name}"] = NumberTrack(path, *topics.channel_of(reference), names)
    for _, reference in plan.texts:
        if is_of_bag(reference):
            tracks[f"{TEXTS}{reference}"] = TextTrack(path, *topics.channel_of(reference))
    return tracks


def late_joints(topics: Topics, tracks: Mapping[str, Track]) -> dict[str, LateJoints]:
    """Tracks, by reference, of the late joint values of topics that are read anyway."""
    read = {track.channel.topic for track in tracks.values()}
    named = {track.reference for track in tracks.values()}
    late: dict[str, LateJoints] = {}
    for reference, topic in topics.late.items():
        if topic in read and reference not in named:
            late[reference] = LateJoints(topics.bag.path, *topics.channel_of(reference))
    return late


def leave_out_unusable(topics: Topics) -> None:
    """Leaves out the fields that a message after the first second makes unusable."""
    tracks = make_tracks(topics, topics.plan(None), {})
    fields = {key: track for key, track in tracks.items() if isinstance(track, NumberTrack)}
    late = late_joints(topics, fields)
    by_topic: dict[str, dict[str, Track]] = {}
    for key, track in [*fields.items(), *late.items()]:
        by_topic.setdefault(track.channel.topic, {})[key] = track
    for stored in topics.bag.messages(TimeSpan(), []):
        taking = by_topic.get(stored.channel.topic)
        if not taking:
            continue
        try:
            message = messages.decoded(topics.bag.path, stored.channel, stored.data)
        except DataError as error:
            for key, track in list(taking.items()):
                if isinstance(track, NumberTrack):
                    topics.leave_out(track.reference, error.message)
                    del taking[key]
            continue
        for key, track in list(taking.items()):
            try:
                track.take(message, stored.time, stored.position)
            except DataError as error:
                del taking[key]
                reason = error.message.rpartition(f"{track.reference}: ")[2]
                topics.leave_out(track.reference, reason)
    for reference, track in late.items():
        if track.note:
            topics.leave_out(reference, track.note)


def fill(
    tracks: Mapping[str, Track],
    bag: Bag,
    span: TimeSpan,
    findings: list[Finding],
    by: str = "log",
    *,
    is_first_enough: bool = False,
) -> "array[int]":
    """Adds the messages of a span; `findings` gets damages, and topics without stamps.

    Returns the log times of the messages. With `is_first_enough`, ends when each track has a value.
    """
    by_topic: dict[str, list[Track]] = {}
    for track in tracks.values():
        by_topic.setdefault(track.channel.topic, []).append(track)
    without = Counter[str]()
    times = array("q")
    for stored in bag.messages(span, findings):
        times.append(stored.time)
        taking = by_topic.get(stored.channel.topic)
        if taking is None:
            continue
        message = None
        time = stored.time
        if by == "header" or any(track.needs_message for track in taking):
            message = messages.decoded(bag.path, stored.channel, stored.data)
        if by == "header":
            stamp = messages.stamp_of(message)
            if stamp is None:
                without[stored.channel.topic] += 1
            else:
                time = stamp
        for track in taking:
            track.take(message, time, stored.position)
        if is_first_enough and all(len(track) for track in tracks.values()):
            break
    for topic, count in without.items():
        findings.append(MCAP.at("no_stamp", bag.path, f"{topic}: {count} messages"))
    return times


class BagRows(NamedTuple):
    """Rows of an episode."""

    times: Array  # int64 [F]
    taken: Mapping[str, Array]  # track to the index of its value, int64 [F]
    ages: Mapping[str, Array]  # track to the age of its value, int64 [F]
    dropped: tuple[int, int]  # rows left out at the start and at the end


def make_rows(tracks: Mapping[str, Track], fps: float | None, max_age: float | None) -> BagRows:
    """Makes rows from the time at which all tracks have a value until one of them ends.

    A track ends one of its intervals, or `max_age` seconds, after its last value; a track of one
    value does not end. Without `fps`, rows are at the values of the longest track.
    """
    times = {name: track.times for name, track in tracks.items()}
    starts = [int(stamps[0]) for stamps in times.values()]
    start = max(starts)
    stop = np.inf
    for name, track in tracks.items():
        if max_age is not None:
            stop = min(stop, times[name][-1] + max_age * 1e9)
        elif len(track) > 1:
            stop = min(stop, times[name][-1] + track.interval)
    clock = max(times.values(), key=len)
    slack = 0.0
    if fps is not None:
        slack = _TOLERANCE * 1e9 / fps
        last = max(int(stamps[-1]) for stamps in times.values())
        count = min(int((last - start) * fps / 1e9 + _TOLERANCE) + 1, limits.MOST_ROWS)
        clock = start + np.round(np.arange(count) * (1e9 / fps)).astype(np.int64)
    rows = clock[(clock >= start) & (clock <= start + max(0.0, stop - start - slack))]
    taken: dict[str, Array] = {}
    ages: dict[str, Array] = {}
    for name, track in tracks.items():
        taken[name] = np.searchsorted(times[name], rows + int(slack), side="right") - 1
        ages[name] = track.ages(rows, taken[name])
    before = int((start - min(starts)) * fps / 1e9) if fps else int((clock < start).sum())
    after = int((clock > rows[-1]).sum()) if len(rows) else 0
    return BagRows(rows, taken, ages, (before, after))
