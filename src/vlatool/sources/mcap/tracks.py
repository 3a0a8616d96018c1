"""Values of the topics of an episode, and the clock of its rows.

A row takes the last value before its time. Times are in nanoseconds; F is the number of rows.
"""

import struct
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.sources.mcap import images, messages
from vlatool.sources.mcap.bag import Bag, BagChannel, TimeSpan
from vlatool.sources.mcap.rules import MCAP
from vlatool.sources.mcap.topics import JOINT_VALUES, BagMapping, Topics, is_of_bag
from vlatool.storage.tree import natural_key

_TOLERANCE = 0.01  # of an interval, by which a value may be later than its row: stamps are rounded
MOST_ROWS = 2**22  # of an episode
_GAP = 4.0  # times the median interval of a topic


@dataclass
class Track:
    """Values of one part of a mapping: numbers [C], texts, or positions of images."""

    path: Path
    channel: BagChannel
    member: str
    use: Literal["numbers", "text"] | images.ImageUse
    joints: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of the numbers
    skipped: int = 0  # messages without the joints, or before the first keyframe
    joined: int = 0  # messages with some of the joints; the others have their last value
    unordered: str = ""  # encoding of images that does not say the order of colors
    texts: list[str] = field(default_factory=list[str])
    frames: messages.FrameNames = field(default_factory=messages.FrameNames)
    _latest: dict[str, tuple[float, int]] = field(default_factory=dict[str, tuple[float, int]])
    _times: "array[int]" = field(default_factory=lambda: array("q"))
    _lag: int = 0  # nanoseconds that the oldest joint is older than the last message
    _lags: "array[int]" = field(default_factory=lambda: array("q"))
    _order: Array | slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        # Rows [C] of numbers or [7] of positions; lists of them would take ten times the memory.
        self._values = array("d" if self.use == "numbers" else "q")

    def __len__(self) -> int:
        return len(self._times)

    @property
    def is_image(self) -> bool:
        return self.use not in ("numbers", "text")

    @property
    def reference(self) -> str:
        return f"{self.channel.topic}/{self.member}".rstrip("/")

    @property
    def needs_message(self) -> bool:
        return not self.is_image or not len(self) or messages.image_kind(self.channel) == "video"

    @property
    def times(self) -> Array:
        return np.array(self._times, np.int64)[self._order]

    @property
    def lags(self) -> Array:
        """Nanoseconds that the oldest joint of a value is older than its message."""
        return np.array(self._lags, np.int64)[self._order]

    def rows(self, taken: Array) -> Array:
        """Numbers [F, C], or positions of images [F, 7], of the messages `taken`."""
        values = np.frombuffer(self._values, self._values.typecode).reshape(len(self) or 1, -1)
        return values[self._order][taken]

    def take(self, message: Any, time: int, position: tuple[int, ...]) -> None:
        """Adds a message; DataError if it has not what the mapping names."""
        code = "bad_image" if self.is_image else "missing_field"
        place = self.reference
        try:
            value = self._value(message, time, position)
        except (LookupError, TypeError, ValueError, AttributeError, struct.error) as error:
            raise MCAP.error(code, self.path, place, error, field=place) from error
        if len(self.frames.used) > 1:
            raise self._mixed_frames()
        if value is None:
            return
        if self.use == "numbers" and not 0 < len(value) == len(self.names):
            reason = f"has {len(value)} numbers, not {len(self.names)}"
            hint = "the number changes within the bag: leave the topic out of a mapping"
            raise MCAP.error("bad_message", self.path, place, reason, field=place, hint=hint)
        self._times.append(time)
        self._lags.append(self._lag)
        if self.use == "text":
            self.texts.append(value)
        else:
            self._values.extend(value)

    def _value(self, message: Any, time: int, position: tuple[int, ...]) -> Any:
        """The value of a message; None if it has none for this track."""
        if not self.is_image:
            value = messages.member_at(message, self.member, self.frames)
            if value is None:
                return None
            return self._text(value) if self.use == "text" else self._numbers(message, value, time)
        if not len(self):
            use: Any = self.use
            images.check_use(self.channel, message, use)
            if self.use == "camera":
                self.unordered = images.unordered_encoding(message)
        is_key = messages.image_kind(self.channel) != "video" or images.is_keyframe(message)
        if not is_key and not len(self):
            self.skipped += 1
            return None
        return (*position, is_key)

    def _text(self, value: Any) -> str:
        text = value if isinstance(value, str | bool) else getattr(value, "data", None)
        if not isinstance(text, str | bool):
            raise TypeError("is no text")
        return str(text).strip()

    def _numbers(self, message: Any, value: Any, time: int) -> Array | list[float] | None:
        parts = list(messages.numbers_of(value))
        numbers = np.concatenate([part for _, part in parts])
        joints = messages.joints_of(message) if self.member in JOINT_VALUES else []
        if joints or self.joints:
            return self._joint_values(joints, numbers, time)
        if not self.names:
            is_plain = all(name and len(part) == 1 for name, part in parts)
            names: list[str] = []
            for name, part in parts:
                for index in range(len(part)):
                    names.append((name if is_plain else f"{name}.{index}").lstrip("."))
            self.names = tuple(names)
        return numbers

    def _joint_values(self, joints: list[str], numbers: Array, time: int) -> list[float] | None:
        """Values of all joints, those that a message lacks from earlier ones; None if one has no
        value yet, or none is in the message.
        """
        self.names = self.names or self.joints
        if not self.names and len(numbers):
            self.names = tuple(sorted(joints, key=natural_key))
        if not len(numbers):
            return None
        if len(numbers) != len(joints):
            raise ValueError(f"has {len(numbers)} numbers of {len(joints)} joints")
        for joint, number in zip(joints, numbers, strict=True):
            self._latest[joint] = float(number), time
        if not any(joint in self.names for joint in joints):
            return None
        if self.missing_joints:
            self.skipped += 1
            return None
        latest = [self._latest[name] for name in self.names]
        self._lag = time - min(stamp for _, stamp in latest)
        if not {*joints} >= {*self.names}:
            self.joined += 1
        return [number for number, _ in latest]

    @property
    def missing_joints(self) -> list[str]:
        """Joints without a value so far."""
        return [name for name in self.joints if name not in self._latest]

    @property
    def other_joints(self) -> list[str]:
        """Joints of the topic that the field does not have."""
        return [name for name in self._latest if name not in self.names]

    def _mixed_frames(self) -> DataError:
        """Error for values of transforms between different frames."""
        used = [*self.frames.used]
        children = [name.partition(">")[2] for name in used]
        frame = children[0] if len({*children}) == len(children) else used[0]
        there = dict.fromkeys([*used, *self.frames.others])
        reference = f"{self.channel.topic}/{messages.with_frame(self.member, frame)}"
        reason = f"messages are of different frames: {', '.join(there)}"
        hint = f"name the frame, such as {reference}"
        place = self.reference
        return MCAP.error("mixed_frames", self.path, place, reason, field=place, hint=hint)

    def sort(self) -> int:
        """Sorts by time; returns the number of messages that were earlier than one before them."""
        times = self.times
        self._order = np.argsort(times, kind="stable")
        self.texts = [self.texts[index] for index in self._order] if self.texts else []
        return int((times < np.maximum.accumulate(times)).sum())

    def images(self, bag: Bag, taken: Array) -> images.BagImages:
        assert self.is_image
        use: Any = self.use
        return images.BagImages(bag, self.channel, self.rows(np.arange(len(self))), taken, use)

    def timing(self, taken: Array) -> tuple[str, str]:
        """Counts, of which the values `taken` are used, and gaps; empty: none."""
        seconds = np.diff(self.times) / 1e9
        text = f"{len(self)} messages, {len(self) - len(np.unique(taken))} unused"
        if not len(seconds):
            return text, ""
        median = float(np.median(seconds))
        is_gap = seconds > _GAP * median
        jitter = float(np.std(seconds[~is_gap])) * 1000
        gaps = f"{is_gap.sum()} gaps, the longest {seconds.max():.3g} s" if is_gap.any() else ""
        return f"{text}, every {median * 1000:.4g} ms, jitter {jitter:.1f} ms", gaps


def make_tracks(topics: Topics, mapping: BagMapping) -> dict[str, Track]:
    """Empty tracks by the key of the mapping (`cameras.front`, `language.original`); DataError if
    the bag has not what it names.
    """
    tracks: dict[str, Track] = {}

    def add(key: str, reference: str, use: Any, joints: Sequence[str] = ()) -> None:
        channel, member = topics.find(reference)
        tracks[key] = Track(topics.bag.path, channel, member, use, tuple(joints))
        if tracks[key].is_image and (member or not messages.image_kind(channel)):
            reason = f"{channel.type} is no image"
            raise MCAP.error("missing_field", topics.bag.path, reference, reason, field=reference)

    for name, camera in mapping.cameras.items():
        use = "camera"
        if "bgr" in camera.model_fields_set:
            use = "bgr" if camera.bgr else "rgb"
        add(f"cameras.{name}", camera.path or camera.video, use)
    for name, reference in mapping.depth.items():
        add(f"depth.{name}", reference, "depth")
    for name, reference in mapping.labels.items():
        add(f"labels.{name}", reference, "labels")
    for name, reference in mapping.fields.items():
        joints = mapping.joints.get(name) or []
        if not joints:
            joints = sorted(topics.joints(*topics.find(reference)), key=natural_key)
        add(f"fields.{name}", reference, "numbers", joints)
    for reference in (*mapping.instructions, *mapping.language.values()):
        if is_of_bag(reference):
            add(f"texts.{reference}", reference, "text")
    return tracks


def fill(
    tracks: Mapping[str, Track], bag: Bag, span: TimeSpan, findings: list[Finding], by: str = "log"
) -> "array[int]":
    """Adds the messages of a span; `findings` gets damages, and topics without stamps.

    Returns the log times of all messages of the bag.
    """
    by_topic: dict[str, list[Track]] = {}
    for track in tracks.values():
        by_topic.setdefault(track.channel.topic, []).append(track)
    without, times = Counter[str](), array("q")
    for stored in bag.messages(span, findings):
        times.append(stored.time)
        taking, message, time = by_topic.get(stored.channel.topic, ()), None, stored.time
        if taking and (by == "header" or any(track.needs_message for track in taking)):
            message = messages.decoded(bag.path, stored.channel, stored.data)
        if taking and by == "header":
            stamp = messages.stamp_of(message)
            without[stored.channel.topic] += stamp is None
            time = time if stamp is None else stamp
        for track in taking:
            track.take(message, time, stored.position)
    for topic, count in without.items():
        if count:
            findings.append(MCAP.at("no_stamp", bag.path, f"{topic}: {count} messages"))
    return times


def fill_first(tracks: Mapping[str, Track], bag: Bag) -> None:
    """Adds the first value of each track, up to the message at which all have one."""
    empty = {*tracks}
    for stored in bag.messages(TimeSpan(), []) if empty else ():
        taking = [key for key in empty if tracks[key].channel == stored.channel]
        message = messages.decoded(bag.path, stored.channel, stored.data) if taking else None
        for key in taking:
            tracks[key].take(message, stored.time, stored.position)
            if len(tracks[key]):
                empty.discard(key)
        if not empty:
            break


class BagRows(NamedTuple):
    """Rows of an episode."""

    times: Array  # int64 [F]
    taken: Mapping[str, Array]  # track to the index of its value, int64 [F]
    ages: Mapping[str, Array]  # track to the age of its value, int64 [F]
    dropped: tuple[int, int]  # rows left out at the start and at the end


def make_rows(tracks: Mapping[str, Track], fps: float | None, max_age: float | None) -> BagRows:
    """Rows from the time at which all tracks have a value to that at which one of them ends.

    A track ends one of its intervals, or `max_age` seconds, after its last value; a track of one
    value does not end. Without `fps`, rows are at the values of the longest track.
    """
    times = {name: track.times for name, track in tracks.items()}
    first, start = (pick(int(t[0]) for t in times.values()) for pick in (min, max))
    last = max(int(t[-1]) for t in times.values())
    ages = {n: float(np.median(np.diff(t))) for n, t in times.items() if len(t) > 1}
    if max_age is not None:
        ages = dict.fromkeys(times, max_age * 1e9)
    stop = min((times[name][-1] + age for name, age in ages.items()), default=np.inf)
    clock, slack = max(times.values(), key=len), 0.0
    if fps is not None:
        slack = _TOLERANCE * 1e9 / fps
        count = min(int((last - start) * fps / 1e9 + _TOLERANCE) + 1, MOST_ROWS)
        clock = start + np.round(np.arange(count) * (1e9 / fps)).astype(np.int64)
    rows = clock[(clock >= start) & (clock <= start + max(0.0, stop - start - slack))]
    taken = {n: np.searchsorted(t, rows + int(slack), side="right") - 1 for n, t in times.items()}
    before = int((start - first) * fps / 1e9) if fps else int((clock < start).sum())
    after = int((clock > rows[-1]).sum()) if len(rows) else 0
    age_of_rows = {n: rows - times[n][taken[n]] + tracks[n].lags[taken[n]] for n in times}
    return BagRows(rows, taken, age_of_rows, (before, after))
