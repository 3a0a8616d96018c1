"""Values of the topics of an episode, and the clock of its rows.

A row takes the last value before its time. Times are in nanoseconds; F is the number of rows.
"""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from vlatool.episode import Array
from vlatool.findings import Finding
from vlatool.sources.mcap import messages
from vlatool.sources.mcap.bag import Bag, BagChannel, TimeSpan
from vlatool.sources.mcap.images import BagImages, is_keyframe
from vlatool.sources.mcap.rules import MCAP
from vlatool.sources.mcap.topics import JOINT_VALUES, STEM, BagMapping, Topics
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
    use: Literal["numbers", "text", "rgb", "bgr", "depth"]
    joints: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of the numbers
    skipped: int = 0  # messages without the joints, or before the first keyframe
    texts: list[str] = field(default_factory=list[str])
    _times: "array[int]" = field(default_factory=lambda: array("q"))
    _order: Array | slice = field(default_factory=lambda: slice(None))

    def __post_init__(self) -> None:
        # Rows [C] of numbers or [7] of positions; lists of them would take ten times the memory.
        self._values = array("d" if self.use == "numbers" else "q")

    def __len__(self) -> int:
        return len(self._times)

    @property
    def _is_image(self) -> bool:
        return self.use in ("rgb", "bgr", "depth")

    @property
    def needs_message(self) -> bool:
        return not self._is_image or messages.image_kind(self.channel) == "video"

    @property
    def times(self) -> Array:
        return np.array(self._times, np.int64)[self._order]

    def rows(self, taken: Array) -> Array:
        """Numbers [F, C], or positions of images [F, 7], of the messages `taken`."""
        values = np.frombuffer(self._values, self._values.typecode).reshape(len(self) or 1, -1)
        return values[self._order][taken]

    def take(self, message: Any, time: int, position: tuple[int, ...]) -> None:
        """Adds a message; DataError if it has not what the mapping names."""
        code = "bad_image" if self._is_image else "missing_field"
        place = f"{self.channel.topic}/{self.member}".rstrip("/")
        try:
            value = self._value(message, position)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise MCAP.error(code, self.path, place, error, field=place) from error
        if value is None:
            self.skipped += 1
            return
        if self.use == "numbers" and not 0 < len(value) == len(self.names):
            reason = f"has {len(value)} numbers, not {len(self.names)}"
            raise MCAP.error("bad_message", self.path, place, reason, field=place)
        self._times.append(time)
        if self.use == "text":
            self.texts.append(value)
        else:
            self._values.extend(value)

    def _value(self, message: Any, position: tuple[int, ...]) -> Any:
        if self.use == "numbers":
            return self._numbers(message)
        if not self._is_image:
            text = messages.member_at(message, self.member or "data")
            if not isinstance(text, str | bool):
                raise TypeError("is no text")
            return str(text).strip()
        is_key = messages.image_kind(self.channel) != "video" or is_keyframe(message)
        return (*position, is_key) if is_key or len(self) else None

    def _numbers(self, message: Any) -> Array | None:
        parts = list(messages.numbers_of(messages.member_at(message, self.member)))
        numbers = np.concatenate([part for _, part in parts])
        joints = messages.joints_of(message) if self.member in JOINT_VALUES else []
        if not joints:
            is_plain = all(name and len(part) == 1 for name, part in parts)
            names = ((n if is_plain else f"{n}.{i}") for n, p in parts for i in range(len(p)))
            self.names = self.names or tuple(name.lstrip(".") for name in names)
            return numbers
        self.names = self.names or self.joints or tuple(sorted(joints, key=natural_key))
        order = {name: index for index, name in enumerate(joints)}
        if not order.keys() >= {*self.names}:
            return None
        is_whole = len(numbers) == len(joints)
        return numbers[[order[name] for name in self.names]] if is_whole else numbers[:0]

    def sort(self) -> int:
        """Sorts by time; returns the number of messages that were earlier than one before them."""
        times = self.times
        self._order = np.argsort(times, kind="stable")
        self.texts = [self.texts[index] for index in self._order] if self.texts else []
        return int((times < np.maximum.accumulate(times)).sum())

    def images(self, bag: Bag, taken: Array) -> BagImages:
        return BagImages(bag, self.channel, self.rows(np.arange(len(self))), taken, self.use)

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
    """Empty tracks by the key of the mapping (`cameras.front`, `instruction`); DataError if the bag
    has not what it names.
    """
    tracks: dict[str, Track] = {}

    def add(key: str, reference: str, use: Any, joints: tuple[str, ...] = ()) -> None:
        channel, member = topics.find(reference)
        tracks[key] = Track(topics.bag.path, channel, member, use, joints)
        if use in ("rgb", "bgr", "depth") and (member or not messages.image_kind(channel)):
            reason = f"{channel.type} is no image"
            raise MCAP.error("missing_field", topics.bag.path, reference, reason, field=reference)

    for name, camera in mapping.cameras.items():
        add(f"cameras.{name}", camera.path or camera.video, "bgr" if camera.bgr else "rgb")
    for name, reference in mapping.depth.items():
        add(f"depth.{name}", reference, "depth")
    for name, reference in mapping.fields.items():
        add(f"fields.{name}", reference, "numbers", tuple(mapping.joints.get(name, ())))
    if mapping.instruction not in ("", STEM) and "@" not in mapping.instruction:
        add("instruction", mapping.instruction, "text")
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
    return BagRows(rows, taken, {n: rows - times[n][taken[n]] for n in times}, (before, after))
