"""What a bag stores: topics, members of their messages, metadata and attachments.

A reference is `TOPIC` or `TOPIC/MEMBER.MEMBER`; `NAME@KEY` is a key of a metadata record.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from vlatool.config.base import option
from vlatool.episode import Content, Role, StoredPart
from vlatool.errors import DataError
from vlatool.recordings.base import id_part
from vlatool.recordings.inventory import Assignment, Stored, is_action
from vlatool.recordings.mapping import CameraMapping, RecordingMapping
from vlatool.recordings.mcap import images, messages
from vlatool.recordings.mcap.bag import Bag, BagChannel, BagMessage, TimeSpan
from vlatool.recordings.mcap.check import MCAP
from vlatool.recordings.plan import (
    EpisodePlan,
    Known,
    name_commands,
    plan_by_mapping,
    plan_by_structure,
)
from vlatool.recordings.propose import Clues, proposed_mapping
from vlatool.storage.tree import natural_key

STEM = "{stem}"  # as the instruction: the name of the file
JOINT_VALUES = ("position", "velocity", "effort")
_MEASURED = re.compile(r"state|joint|gripper|pose|eef|ee_|odom|transform", re.I)
_SUCCESS = re.compile(r"(^|/)(is_)?success$", re.I)
# Parts of a topic that do not tell cameras apart.
_GENERIC = re.compile(r"image(_raw|_rect|_color)?|raw|compressed|video|.*depth.*|compressedDepth")
_ROLES_OF_METADATA: dict[str, Role] = {
    "fps": "time",
    "instruction": "language",
    "success": "success",
}
# What messages are whose numbers, if they have any, are no field.
_NO_FIELD = {
    "PointCloud2": "a point cloud",
    "AudioData": "sound",
    "AudioDataStamped": "sound",
    "RawAudio": "sound",
    "Clock": "the time of a simulation",
}
_OPENING_NS = 10**9  # in which a topic shows which joints it has, and that it is not all NaN
_LARGEST_IN_OPENING = 2**14  # bytes of a message
_MOST_TIMED = 2**14  # messages that show the rates of topics


class BagMapping(RecordingMapping):
    """Parts of an episode of a bag."""

    episodes: str = option("/", "Topic whose messages start and stop episodes; /: the bag is one.")
    joints: dict[str, list[str]] = option(
        {}, "Field to its joints in order; others are sorted by name."
    )


def is_of_bag(reference: str) -> bool:
    """True if the reference of a text names a topic."""
    return reference not in ("", STEM) and "@" not in reference


class Topics:
    """Topics of a bag and what they hold, according to their messages of the first second.

    Attributes:
        channels: Kind of the messages by topic, in natural order.
        errors: Reason, by topic, why its messages cannot be read.
        counts: Number of messages by topic.
        things: Everything that can have a role, by its reference.
        joints: Joints of all publishers by the reference of their values.
        late: Topic by the reference of joint values that have no message in the first second.
        unordered: Encoding by topic of images, if neither it nor a mapping says the order of the
            colors.
    """

    def __init__(self, bag: Bag) -> None:
        self.bag = bag
        self.channels, self.errors = messages.channels_of(bag)
        self.counts = Counter[str]()
        self.things: dict[str, Stored] = {}
        self.joints: dict[str, list[str]] = {}
        self.late: dict[str, str] = {}
        self.unordered: dict[str, str] = {}
        self._decided: dict[str, Assignment] = {}  # of things that are left out
        self._metadata: dict[str, str] = {}  # `NAME@KEY` to value
        self._attachments: dict[str, int] = {}  # name to bytes
        for file in bag.files:
            self._metadata |= file.metadata
            self._attachments |= file.attachments
            for number, channel in file.channels.items():
                self.counts[channel.topic] += file.counts[number]
        for topic, error in self.errors.items():
            content: Content = "actions" if is_action(topic) else "other"
            self._leave_out(topic, content, error.message.partition(f"{topic}: ")[2])
        openings = self._openings()
        for topic, channel in self.channels.items():
            if topic in openings:
                try:
                    self._add(channel, openings[topic])
                except images.BROKEN as error:
                    self._leave_out(topic, "unusable", f"{channel.type}: {error}")
            else:
                self._leave_out(topic, "other", "no message")
        flags = [path for path, thing in self.things.items() if thing.role == "success"]
        if len(flags) > 1:
            for path in flags:
                reason = f"one of several flags; to use it, write success: {path} in a mapping"
                self._leave_out(path, "other", reason)

    def _openings(self) -> dict[str, list[BagMessage]]:
        """The first message of each topic, and the small ones of a second from it on."""
        waiting = {topic for topic in self.channels if self.counts[topic]}
        openings: dict[str, list[BagMessage]] = {}
        last_start = 0
        for message in self.bag.messages(TimeSpan(), []):
            topic = message.channel.topic
            if topic in waiting:
                waiting.discard(topic)
                openings[topic] = []
                last_start = max(last_start, message.time)
            opening = openings.get(topic, [])
            is_early = not opening or message.time < opening[0].time + _OPENING_NS
            if is_early and (not opening or len(message.data) <= _LARGEST_IN_OPENING):
                opening.append(message)
            if not waiting and message.time >= last_start + _OPENING_NS:
                break
        return openings

    # Things

    def _leave_out(self, path: str, content: Content, reason: str) -> None:
        self.things[path] = Stored(path, "other", role="left_out", note=reason)
        self._decided[path] = Assignment("left_out", content, reason)

    def _add(self, channel: BagChannel, opening: Sequence[BagMessage]) -> None:
        """Adds the things of a topic by its first messages."""
        topic = channel.topic
        try:
            first = messages.decoded(self.bag.path, channel, opening[0].data)
        except DataError as error:
            self._leave_out(topic, "unusable", error.message)
            return
        kind = re.split(r"[./]", channel.type)[-1]
        if _SUCCESS.search(topic) and messages.is_flag(first):
            self.things[topic] = Stored(topic, "other", role="success")
        elif messages.image_kind(channel):
            self._add_images(channel, first)
        elif topic.endswith("robot_description"):
            self._leave_out(topic, "other", "the description of the robot")
        elif channel.type == messages.TEXT:
            self.things[topic] = Stored(topic, "text")
        elif kind in _NO_FIELD:
            self._leave_out(topic, "other", _NO_FIELD[kind])
        elif hasattr(first, "transforms"):
            frames = ", ".join(messages.frame_of(transform) for transform in first.transforms[:6])
            taken = f"fields: {{NAME: '{topic}/transforms[CHILD].transform'}}"
            reason = f"transforms {frames}; to use one, write {taken} in a mapping"
            self._leave_out(topic, "other", reason)
        else:
            try:
                decoded = [
                    messages.decoded(self.bag.path, channel, stored.data) for stored in opening
                ]
            except DataError as error:
                self._leave_out(topic, "unusable", error.message)
                return
            is_of_joints = messages.is_of_joints(first)
            if not (is_of_joints and self._add_joints(topic, decoded)):
                self._add_numbers(channel, decoded)

    def _add_images(self, channel: BagChannel, message: Any) -> None:
        topic = channel.topic
        try:
            thing = images.image_thing(channel, message)
        except images.BROKEN as error:
            self._leave_out(topic, "images", f"images that cannot be read: {error}")
            return
        parts = [part for part in topic.split("/") if part]
        speaking = [part for part in parts if not _GENERIC.fullmatch(part)]
        self.things[topic] = replace(thing, name=id_part("_".join(speaking or parts)))
        encoding = images.unordered_encoding(message)
        if encoding:
            self.unordered[topic] = encoding

    def _add_joints(self, topic: str, opening: Sequence[Any]) -> bool:
        """Adds a field each for position, velocity and effort, if joints have such values.

        Returns False if the messages name no joints.
        """
        has_names = False
        has_values = False
        late: list[str] = []
        for member in JOINT_VALUES:
            path = f"{topic}/{member}"
            joints: dict[str, None] = {}
            reason = ""
            for message in opening:
                names = messages.joints_of(message)
                has_names = has_names or bool(names)
                count = len(getattr(message, member, ()))
                reason = reason or messages.unnamed_values(names, count)
                if count == len(names):
                    joints.update(dict.fromkeys(names))
            if has_names and reason:
                has_values = True
                taken = f"fields: {{NAME: {path}.0}}"
                reason = f"{reason}; to use a number by its place, write {taken} in a mapping"
                self._leave_out(path, "unusable", reason)
            elif joints:
                has_values = True
                self.joints[path] = [*joints]
                self._add_field(path, member, len(joints), opening)
            else:
                late.append(path)
        if has_names and not has_values:
            self._leave_out(topic, "other", "joints without values")
        elif has_names:
            self.late |= dict.fromkeys(late, topic)
        return has_names

    def _add_numbers(self, channel: BagChannel, opening: Sequence[Any]) -> None:
        topic = channel.topic
        sizes: dict[int, None] = {}
        skipped: dict[str, str] = {}
        try:
            for message in opening:
                parts = messages.numbers_of(message, skipped=skipped)
                sizes[sum(len(numbers) for _, numbers in parts)] = None
            if skipped and (not any(sizes) or "image" in channel.type.lower()):
                raise TypeError(next(iter(skipped.values())))
        except (TypeError, ValueError) as error:
            content: Content = "actions" if is_action(topic) else "other"
            if "image" in channel.type.lower():
                content = "images"
            self._leave_out(topic, content, f"{channel.type}: {error}")
            return
        if len(sizes) > 1:
            counts = ", ".join(map(str, sizes))
            content = "actions" if is_action(topic) else "numbers"
            self._leave_out(topic, content, f"its messages have different lengths: {counts}")
            return
        for name, reason in skipped.items():
            self._leave_out(f"{topic}/{name}", "other", reason)
        self._add_field(topic, "", next(iter(sizes)), opening)

    def _add_field(self, path: str, member: str, size: int, opening: Iterable[Any]) -> None:
        """Adds a field, unless its first numbers are all NaN."""
        if size and not _has_number(opening, member):
            reason = "only NaN in the first second; to use it all the same, write "
            self._leave_out(path, "unusable", f"{reason}fields: {{NAME: {path}}} in a mapping")
            return
        name = ".".join(id_part(part) for part in path.split("/") if part)
        self.things[path] = Stored(path, "array", (size,), "float64", name=name)

    # References

    def topic_of(self, reference: str) -> str:
        """The topic of a reference; empty if there is none."""
        fitting: list[str] = []
        for topic in (*self.channels, *self.errors):
            if f"{reference}/".startswith(f"{topic.rstrip('/')}/"):
                fitting.append(topic)
        return max(fitting, key=len, default="")

    def channel_of(self, reference: str) -> tuple[BagChannel, str]:
        """(topic, member) of a reference; DataError if there is none, or it cannot be read."""
        topic = self.topic_of(reference)
        if not topic:
            reason = f"no such topic; the bag has {', '.join(self.channels) or 'none'}"
            raise MCAP.error("missing_topic", self.bag.path, reference, reason, field=reference)
        if topic in self.errors:
            raise self.errors[topic]
        return self.channels[topic], reference[len(topic) :].lstrip("/")

    def find(self, reference: str) -> Stored | None:
        """The thing of a reference; None for texts that no topic has."""
        if not is_of_bag(reference):
            return Stored(reference, "other") if reference in self._metadata else None
        self.channel_of(reference)
        thing = self.things.get(reference) or Stored(reference, "array", (1,), "float64")
        left_out = self._decided.get(reference)
        if left_out is not None and left_out.content == "images":
            path = self.bag.path
            raise MCAP.error("bad_image", path, reference, thing.note, field=reference)
        return thing

    def _has(self, reference: str) -> bool:
        if is_of_bag(reference):
            return bool(self.topic_of(reference))
        return reference == STEM or reference in self._metadata

    def metadata(self, reference: str) -> str:
        """Value of `NAME@KEY`, or of `KEY` in any record; empty if there is none."""
        for name, value in self._metadata.items():
            if reference in (name, name.rpartition("@")[2]):
                return value
        return ""

    # Plans

    def plan(self, mapping: BagMapping | None, marker: str = "/") -> EpisodePlan:
        """The roles of all that the bag stores; `marker`: topic that divides it into episodes.

        Raises:
            DataError: The mapping names what is not there, or cannot have the role.
        """
        marker = self.topic_of(marker)
        things = [thing for thing in self.things.values() if thing.path != marker]
        if mapping is None:
            plan = plan_by_structure(things, Known(self._decided))
            actions: list[str] = []
            observed: list[str] = []
            for name, path in plan.fields.items():
                if is_action(path):
                    actions.append(name)
                elif _MEASURED.search(path):
                    observed.append(name)
            plan.actions = tuple(actions)
            plan.observed = tuple(observed)
            name_commands(plan, self.things)
        else:
            plan = self._plan_by_mapping(mapping, things)
        for name, planned in plan.cameras.items():
            if planned.path in self.unordered:
                plan.cameras[name] = replace(planned, bgr=True)
        plan.parts = self._all_parts(plan, marker)
        return plan

    def _plan_by_mapping(self, mapping: BagMapping, things: Sequence[Stored]) -> EpisodePlan:
        if isinstance(mapping.instruction, list):
            present = [name for name in mapping.instruction if self._has(name)]
            # Without any, reading names the first one.
            mapping = mapping.model_copy(update={"instruction": present or mapping.instruction})
        texts = [*mapping.instructions, *mapping.language.values(), mapping.success]
        named = [*mapping.fields.values(), *texts]
        # A topic of which members are named is used.
        used = {self.topic_of(reference) for reference in named}.difference(named)
        decided = {path: role for path, role in self._decided.items() if path not in named}
        others = [thing for thing in things if thing.path not in used]
        try:
            plan = plan_by_mapping(others, mapping, self.find, Known(decided))
            self._check_images(plan)
        except ValueError as error:
            raise MCAP.error("missing_field", self.bag.path, error) from error
        for camera in mapping.cameras.values():
            if "bgr" in camera.model_fields_set:
                self.unordered.pop(camera.path, None)
        return plan

    def _check_images(self, plan: EpisodePlan) -> None:
        """Raises ValueError if images are of another kind than the mapping says."""
        for planned in plan.cameras.values():
            if planned.video:
                raise ValueError(f"{planned.video}: a camera of a bag is the path of a topic")
            dtype = self.things[planned.path].dtype
            if dtype not in ("", "uint8"):
                raise ValueError(f"{planned.path} holds {dtype}; name it under depth or labels")
        for planned in (*plan.depth.values(), *plan.labels.values()):
            thing = self.things[planned.path]
            if thing.kind == "video" or len(thing.shape) == 3:
                raise ValueError(f"{planned.path} holds color images, neither depth nor labels")

    def _all_parts(self, plan: EpisodePlan, marker: str) -> tuple[StoredPart, ...]:
        """Parts of a plan, metadata and attachments, in natural order."""
        parts = {part.path: part for part in plan.parts}
        if marker in self.channels:
            note = "starts and stops episodes"
            parts.setdefault(marker, StoredPart(marker, "time", "", "other", note))
        for name in self._metadata:
            role = _ROLES_OF_METADATA.get(name.rpartition("@")[2], "left_out")
            parts.setdefault(name, StoredPart(name, role, "", "other", "metadata"))
        for name, size in self._attachments.items():
            path = f"attachment {name}"
            parts[path] = StoredPart(path, "left_out", "", "other", f"{size:,} bytes")
        return tuple(parts[path] for path in sorted(parts, key=natural_key))

    def leave_out(self, path: str, reason: str) -> None:
        """Leaves out what messages after the first second show to be unusable."""
        self._leave_out(path, "unusable", reason)

    def proposal(self) -> str:
        """A mapping of the bag as YAML, with questions as comments."""
        plan = self.plan(None)
        keys: dict[str, Any] = {"cameras": {}, "joints": {}}
        for name, planned in plan.cameras.items():
            keys["cameras"][name] = CameraMapping(path=planned.path, bgr=planned.bgr)
        for name, path in plan.fields.items():
            if path in self.joints:
                keys["joints"][name] = self.joints[path]
        stored = [name for name in self._metadata if name.endswith("@fps")]
        keys["fps"] = stored[0] if stored else self._rate(plan) or ""
        clues = Clues([*self.things.values()], self._metadata)
        return proposed_mapping(clues, BagMapping, **keys)

    def _rate(self, plan: EpisodePlan) -> float | None:
        """Rate of the slowest camera, else of the slowest field, by the first messages."""
        times: dict[str, list[int]] = {}
        for message in islice(self.bag.messages(TimeSpan(), []), _MOST_TIMED):
            times.setdefault(message.channel.topic, []).append(message.time)
        cameras = [planned.path for planned in plan.cameras.values()]
        for paths in (cameras, plan.fields.values()):
            rates: list[float] = []
            for path in paths:
                intervals = np.diff(np.sort(times.get(self.topic_of(path), [])))
                if len(intervals) and np.median(intervals) > 0:
                    rates.append(1e9 / float(np.median(intervals)))
            if rates:
                return float(f"{min(rates):.3g}")
        return None


def _has_number(opening: Iterable[Any], member: str) -> bool:
    """True if a number of these messages is not NaN."""
    for message in opening:
        for _, numbers in messages.numbers_of(messages.member_at(message, member), skipped={}):
            if not np.isnan(numbers).all():
                return True
    return False
