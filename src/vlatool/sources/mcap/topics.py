"""Topics of a bag, the mapping from them to cameras, fields and texts, and the role of each.

A reference is `TOPIC` or `TOPIC/MEMBER.MEMBER`; `NAME@KEY` is a key of a metadata record.
"""

import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from vlatool.config.base import option
from vlatool.episode import Content, LanguageKind, Role, StoredPart
from vlatool.errors import DataError
from vlatool.sources.base import id_part, unused_id
from vlatool.sources.inventory import Stored, decide, is_action
from vlatool.sources.language import kind_of_name
from vlatool.sources.mapping import CameraMapping, RecordingMapping
from vlatool.sources.mcap import images, messages
from vlatool.sources.mcap.bag import Bag, BagChannel, BagMessage, TimeSpan
from vlatool.sources.mcap.rules import MCAP
from vlatool.storage.tree import natural_key

STEM = "{stem}"  # as the instruction: the name of the file
JOINT_VALUES = ("position", "velocity", "effort")
_ACTION = re.compile(r"(^|[/_.])(actions?|commands?|cmd)([/_.]|$)")
_MEASURED = re.compile(r"state|joint|gripper|pose|eef|ee_|odom|transform")
_INSTRUCTION = re.compile(r"instruction|language|prompt|task")
_GENERIC = ("image", "image_raw", "image_rect", "image_color", "raw", "compressed", "video")
_GENERIC = (*_GENERIC, "compressedDepth")
_ROLES_OF_METADATA: dict[str, Role] = {
    "fps": "time",
    "instruction": "language",
    "success": "success",
}
# What messages are whose numbers, if they have any, are no field.
_NO_FIELD = {
    "PointCloud": "a point cloud",
    "PointCloud2": "a point cloud",
    "AudioData": "sound",
    "AudioDataStamped": "sound",
    "AudioStamped": "sound",
    "RawAudio": "sound",
    "CameraInfo": "the calibration of a camera",
    "Log": "the log of the nodes",
}
_OPENING_NS = 10**9  # in which a topic shows which joints it has, and that it is not all NaN
_MOST_IN_OPENING = 1024  # messages
_LARGEST_IN_OPENING = 2**14  # bytes of a message


class BagMapping(RecordingMapping):
    """Parts of an episode of a bag."""

    episodes: str = option("/", "Topic whose messages start and stop episodes; /: the bag is one.")
    joints: dict[str, list[str]] = option(
        {}, "Field to its joints in order; others are sorted by name."
    )


def is_of_bag(reference: str) -> bool:
    """True if a reference of a text is that of a topic."""
    return reference not in ("", STEM) and "@" not in reference


class Topics:
    """Topics of a bag, in natural order, and its metadata."""

    def __init__(self, bag: Bag) -> None:
        self.bag, self.channels, self.counts = bag, messages.channels_of(bag), Counter[str]()
        self.metadata_records: dict[str, str] = {}  # `NAME@KEY` to value
        self.attachments: dict[str, int] = {}
        self._openings: dict[str, list[BagMessage]] = {}
        for file in bag.files:
            self.metadata_records |= file.metadata
            self.attachments |= file.attachments
            for number, channel in file.channels.items():
                self.counts[channel.topic] += file.counts[number]

    def topic_of(self, reference: str) -> str:
        """The topic of a reference; empty if there is none."""
        fitting = [t for t in self.channels if f"{reference}/".startswith(f"{t.rstrip('/')}/")]
        return max(fitting, key=len, default="")

    def find(self, reference: str) -> tuple[BagChannel, str]:
        """(topic, member) of a reference; DataError if there is none, or it cannot be read."""
        topic = self.topic_of(reference)
        if not topic:
            reason = f"no such topic; there are: {', '.join(self.channels) or 'none'}"
            raise MCAP.error("missing_topic", self.bag.path, reference, reason, field=reference)
        channel = self.channels[topic]
        if isinstance(channel, DataError):
            raise channel
        return channel, reference[len(channel.topic) :].lstrip("/")

    def openings(self, topics: Iterable[str]) -> dict[str, list[BagMessage]]:
        """The first message of each topic, and those of a second from it on, unless they are large.

        Topics without a message, and those that cannot be read, have no entry.
        """
        known = [t for t in topics if self.counts[t] and isinstance(self.channels[t], BagChannel)]
        waiting = {topic for topic in known if topic not in self._openings}
        collected: dict[str, list[BagMessage]] = {topic: [] for topic in known if topic in waiting}
        last_start = 0
        for message in self.bag.messages(TimeSpan(), []) if waiting else ():
            topic = message.channel.topic
            opening = collected.get(topic, [])
            if topic in waiting:
                opening.append(message)
                waiting.discard(topic)
                last_start = max(last_start, message.time)
            elif (
                opening
                and message.time < opening[0].time + _OPENING_NS
                and len(opening) < _MOST_IN_OPENING
                and len(message.data) <= _LARGEST_IN_OPENING
            ):
                opening.append(message)
            if not waiting and message.time >= last_start + _OPENING_NS:
                break
        for topic, opening in collected.items():
            if opening:
                self._openings[topic] = opening
        return {topic: self._openings[topic] for topic in known if topic in self._openings}

    def opening(self, topic: str) -> Iterator[Any]:
        """The messages of a topic in `openings`, decoded."""
        for stored in self.openings([topic]).get(topic, ()):
            yield messages.decoded(self.bag.path, stored.channel, stored.data)

    def joints(self, channel: BagChannel, member: str) -> list[str]:
        """Joints that have a value in the first second, of all publishers of the topic."""
        names: dict[str, None] = {}
        for message in self.opening(channel.topic) if member in JOINT_VALUES else ():
            if len(messages.joints_of(message)) == len(getattr(message, member, ())):
                names.update(dict.fromkeys(messages.joints_of(message)))
        return [*names]

    def metadata(self, reference: str) -> str:
        """Value of `NAME@KEY`, or of `KEY` in any record; empty if there is none."""
        values = (
            value
            for name, value in self.metadata_records.items()
            if reference in (name, name.rpartition("@")[2])
        )
        return next(values, "")


@dataclass
class Proposal:
    """A mapping, notes on it for a user by key, and the topics that it leaves out."""

    mapping: BagMapping
    notes: dict[str, str] = field(default_factory=dict[str, str])
    left_out: list[StoredPart] = field(default_factory=list[StoredPart])

    def leave_out(self, path: str, content: Content, reason: str) -> None:
        self.left_out.append(StoredPart(path, "left_out", "", content, reason))


def proposed(topics: Topics, given: BagMapping | None = None) -> Proposal:
    """The mapping of all topics whose content is plain, besides those that a mapping names.

    Images are cameras, depth or labels; numbers are fields.
    """
    proposal = Proposal((given or BagMapping()).model_copy(deep=True))
    proposal.notes = {
        "episodes": "a topic (Bool, or String start and stop) that marks episodes? or --gap-s",
        "fps": "NAME@KEY of a metadata record, or give --fps: rows per second",
        "instruction": f'TOPIC or NAME@KEY of the sentence, or "{STEM}": the name of the file',
        "success": "NAME@KEY of the success flag, if there is one",
        "action_fields": "which fields are commands?",
        "proprioception_fields": "which fields does the robot measure of itself?",
    }
    named = {topics.topic_of(part.path) for part in _named_parts(topics, proposal.mapping)}
    others = [topic for topic in topics.channels if topic not in named]
    texts: list[str] = []
    for topic, opening in topics.openings(others).items():
        channel = opening[0].channel
        try:
            message = messages.decoded(topics.bag.path, channel, opening[0].data)
        except DataError as error:
            if channel.encoding != "json":
                raise
            # It has no schema that a message could break.
            proposal.leave_out(topic, "other", error.message)
            continue
        note = f"{channel.type}, {topics.counts[topic]} messages"
        if messages.image_kind(channel):
            _propose_images(proposal, channel, message, note)
        elif channel.type == messages.TEXT:
            texts.append(topic)
        else:
            _propose_numbers(proposal, topics, channel, message, note)
    _propose_texts(proposal, texts)
    mapping = proposal.mapping
    actions, observed = mapping.action_fields, mapping.proprioception_fields
    if not actions:
        actions = [n for n, path in mapping.fields.items() if _ACTION.search(path.lower())]
    if not observed:
        rest = [name for name in mapping.fields if name not in actions]
        observed = [name for name in rest if _MEASURED.search(name.lower())]
    fields = {"action_fields": actions, "proprioception_fields": observed}
    proposal.mapping = mapping.model_copy(update=fields)
    return proposal


def _propose_images(proposal: Proposal, channel: BagChannel, message: Any, note: str) -> None:
    topic, mapping = channel.topic, proposal.mapping
    try:
        role = images.image_role(images.image_thing(channel, message)).role
    except (ValueError, TypeError, AttributeError, struct.error) as error:
        proposal.leave_out(topic, "images", f"images that cannot be decoded: {error}")
        return
    if role == "camera":
        name = _camera_name(topic, mapping.cameras)
        mapping.cameras[name] = CameraMapping(path=topic)
        if encoding := images.unordered_encoding(message):
            note += f"; {encoding} is read as blue, green, red: add bgr, true or false"
        proposal.notes[f"cameras.{name}"] = note
        return
    named = mapping.depth if role == "depth" else mapping.labels
    name = _camera_name(topic, named)
    named[name] = topic
    proposal.notes[f"{role}.{name}"] = note


def _propose_texts(proposal: Proposal, topics: list[str]) -> None:
    """The instruction is a topic named so, or the only one named like it."""
    mapping = proposal.mapping
    named = [t for t in topics if kind_of_name(t.rpartition("/")[2]) == "original"]
    alike = [t for t in topics if _INSTRUCTION.search(t)]
    if not named and len(alike) == 1:
        named = alike
    if mapping.instructions:
        named = []
    elif named:
        text = named if len(named) > 1 else named[0]
        proposal.mapping = mapping.model_copy(update={"instruction": text})
    for topic in topics:
        kind = kind_of_name(topic.rpartition("/")[2])
        if topic in named:
            continue
        if kind and kind != "original" and kind not in mapping.language:
            mapping.language[cast("LanguageKind", kind)] = topic
        elif topic.endswith("robot_description"):
            proposal.leave_out(topic, "other", "the description of the robot")
        else:
            proposal.leave_out(topic, "text", f"a text; a mapping takes it: instruction: {topic}")


def _propose_numbers(
    proposal: Proposal, topics: Topics, channel: BagChannel, message: Any, note: str
) -> None:
    """Fields of the numbers of a topic, or why there are none."""
    topic = channel.topic
    kind = re.split(r"[./]", channel.type)[-1]
    if hasattr(message, "transforms"):
        frames = ", ".join(messages.list_of_frames(message)[:6])
        taken = f"fields: {{NAME: '{topic}/transforms[CHILD].transform'}}"
        proposal.leave_out(topic, "other", f"transforms {frames}; a mapping takes one with {taken}")
        return
    name = ".".join(id_part(part) for part in topic.split("/") if part) or "topic"
    members: list[str] = []
    if hasattr(message, "position") and not isinstance(getattr(message, "name", ""), str):
        members = [member for member in JOINT_VALUES if topics.joints(channel, member)]
    if members or messages.joints_of(message):
        if not members:
            proposal.leave_out(topic, "other", "joints without values")
        for member in members:
            _propose_field(proposal, topics, f"{name}.{member}", f"{topic}/{member}", note)
        return
    try:
        size = sum(part.size for _, part in messages.numbers_of(message))
    except (TypeError, ValueError) as error:
        reason = _NO_FIELD.get(kind, f"{channel.type}: {error}")
        proposal.leave_out(topic, _content_of(channel), reason)
        return
    decision = decide(Stored(topic, "array", (size,), "float64"))
    if kind in _NO_FIELD and kind != "CameraInfo":
        proposal.leave_out(topic, "other", _NO_FIELD[kind])
    elif kind == "Clock":
        proposal.left_out.append(StoredPart(topic, "time", note="the time of a simulation"))
    elif decision.role == "left_out":
        content = _content_of(channel)
        proposal.leave_out(
            topic, decision.content if content == "other" else content, decision.note
        )
    else:
        _propose_field(proposal, topics, name, topic, note)


def _propose_field(
    proposal: Proposal, topics: Topics, name: str, reference: str, note: str
) -> None:
    channel, member = topics.find(reference)
    mapping = proposal.mapping
    if not _has_number(topics.opening(channel.topic), member):
        reason = "NaN throughout the first second; if numbers follow, a mapping takes it with "
        proposal.leave_out(reference, "unusable", f"{reason}fields: {{NAME: {reference}}}")
        return
    name = unused_id(name, dict.fromkeys(mapping.fields, 1))
    mapping.fields[name] = reference
    proposal.notes[f"fields.{name}"] = note
    if member in JOINT_VALUES:
        mapping.joints[name] = topics.joints(channel, member)
        proposal.notes[f"joints.{name}"] = "that of the policy?"


def _has_number(opening: Iterable[Any], member: str) -> bool:
    """True if a number of these messages is not NaN."""
    for message in opening:
        for _, numbers in messages.numbers_of(messages.member_at(message, member)):
            if not np.isnan(numbers).all():
                return True
    return False


def _camera_name(topic: str, taken: Collection[str]) -> str:
    parts = [part for part in topic.split("/") if part]
    short = [part for part in parts if part not in _GENERIC and "depth" not in part]
    name = id_part("_".join(short or parts))
    if name in taken:
        name = unused_id(id_part("_".join(parts)), dict.fromkeys(taken, 1))
    return name


# Roles


def parts_of(
    topics: Topics, mapping: BagMapping, left_out: Collection[StoredPart]
) -> tuple[StoredPart, ...]:
    """All that a bag stores, each with one role; `left_out`: topics whose reason is known."""
    parts = {part.path: part for part in _named_parts(topics, mapping)}
    for part in left_out:
        parts.setdefault(part.path, part)
    used = {topics.topic_of(path) for path in parts}
    for topic, channel in topics.channels.items():
        if topic not in used:
            parts[topic] = _unnamed(topic, channel, topics.counts[topic])
    for name in topics.metadata_records:
        role = _ROLES_OF_METADATA.get(name.rpartition("@")[2], "left_out")
        parts.setdefault(name, StoredPart(name, role, "", "other", "metadata"))
    for name, size in topics.attachments.items():
        path = f"attachment {name}"
        parts[path] = StoredPart(path, "left_out", "", "other", f"{size:,} bytes")
    return tuple(parts[path] for path in sorted(parts, key=natural_key))


def _named_parts(topics: Topics, mapping: BagMapping) -> Iterator[StoredPart]:
    for name, camera in mapping.cameras.items():
        yield StoredPart(camera.path or camera.video, "camera", name, "images")
    for name, path in mapping.depth.items():
        yield StoredPart(path, "depth", name, "images")
    for name, path in mapping.labels.items():
        yield StoredPart(path, "labels", name, "images")
    for name, path in mapping.fields.items():
        content = "actions" if name in mapping.action_fields else "numbers"
        yield StoredPart(path, "field", name, content)
    for path in mapping.instructions:
        if path != STEM:
            yield StoredPart(path, "language", "original", "text")
    for kind, path in mapping.language.items():
        yield StoredPart(path, "language", kind, "text")
    if mapping.success:
        yield StoredPart(mapping.success, "success", "", "other")
    if isinstance(mapping.fps, str) and mapping.fps:
        yield StoredPart(mapping.fps, "time", "", "other")
    if mapping.episodes in topics.channels:
        yield StoredPart(mapping.episodes, "time", "", "other", "starts and stops episodes")


def _unnamed(topic: str, channel: BagChannel | DataError, count: int) -> StoredPart:
    """Part of a topic that no mapping names, or that cannot be read."""
    if isinstance(channel, DataError):
        content: Content = "actions" if is_action(topic) else "other"
        return StoredPart(
            topic, "left_out", "", content, channel.message.partition(f"{topic}: ")[2]
        )
    if not count:
        return StoredPart(topic, "left_out", "", "other", "no message")
    note = "the mapping does not name it"
    return StoredPart(topic, "left_out", "", _content_of(channel), note)


def _content_of(channel: BagChannel) -> Content:
    """What the messages of a topic that is left out may be, by names."""
    if messages.image_kind(channel) or "image" in channel.type.lower():
        return "images"
    if channel.type == messages.TEXT:
        return "text"
    return "actions" if is_action(channel.topic) else "other"
