"""Topics of a bag, and the mapping from them to cameras, fields and the instruction.

A reference is `TOPIC` or `TOPIC/MEMBER.MEMBER`; `NAME@KEY` is a key of a metadata record.
"""

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from typing import Any

from vlatool.config.base import option
from vlatool.errors import DataError
from vlatool.sources.base import id_part
from vlatool.sources.mapping import CameraMapping, RecordingMapping
from vlatool.sources.mcap import messages
from vlatool.sources.mcap.bag import Bag, BagChannel, BagMessage, TimeSpan
from vlatool.sources.mcap.rules import MCAP

STEM = "{stem}"  # as the instruction: the name of the file
JOINT_VALUES = ("position", "velocity", "effort")
_ACTION = re.compile(r"(^|[/_.])(actions?|commands?|cmd)([/_.]|$)")
_MEASURED = re.compile(r"state|joint|gripper|pose|eef|ee_|odom|transform")
_INSTRUCTION = re.compile(r"instruction|language|prompt|task")
_USED = ("fps", "instruction", "success")  # keys of metadata
_GENERIC = ("image", "image_raw", "image_rect", "image_color", "raw", "compressed", "video")


class BagMapping(RecordingMapping):
    """Parts of an episode of a bag."""

    episodes: str = option("/", "Topic whose messages start and stop episodes; /: the bag is one.")
    depth: dict[str, str] = option({}, "Camera to its depth images.")
    joints: dict[str, list[str]] = option(
        {}, "Field to its joints in order; others are sorted by name."
    )


class Topics:
    """Topics of a bag, in natural order, and its metadata."""

    def __init__(self, bag: Bag) -> None:
        self.bag, self.channels, self.counts = bag, messages.channels_of(bag), Counter[str]()
        self._metadata, self._attachments = dict[str, str](), list[str]()
        for file in bag.files:
            self._metadata |= file.metadata
            self._attachments += file.attachments
            for number, channel in file.channels.items():
                self.counts[channel.topic] += file.counts[number]

    def find(self, reference: str) -> tuple[BagChannel, str]:
        """(topic, member) of a reference; DataError if there is none, or it cannot be read."""
        fitting = [t for t in self.channels if f"{reference}/".startswith(f"{t.rstrip('/')}/")]
        if not fitting:
            reason = f"no such topic; there are: {', '.join(self.channels) or 'none'}"
            raise MCAP.error("missing_topic", self.bag.path, reference, reason, field=reference)
        channel = self.channels[max(fitting, key=len)]
        if isinstance(channel, DataError):
            raise channel
        return channel, reference[len(channel.topic) :].lstrip("/")

    def first_messages(self, topics: Iterable[str]) -> dict[str, BagMessage]:
        """The first message of each topic that has one and can be read, in natural order."""
        first: dict[str, BagMessage] = {}
        known = [t for t in topics if self.counts[t] and isinstance(self.channels[t], BagChannel)]
        for message in self.bag.messages(TimeSpan(), []) if known else ():
            if message.channel.topic in known:
                first.setdefault(message.channel.topic, message)
                if len(first) == len(known):
                    break
        return {topic: first[topic] for topic in known if topic in first}

    def metadata(self, reference: str) -> str:
        """Value of `NAME@KEY`, or of `KEY` in any record; empty if there is none."""
        values = (
            value
            for name, value in self._metadata.items()
            if reference in (name, name.rpartition("@")[2])
        )
        return next(values, "")

    @property
    def images(self) -> list[str]:
        """Topics with images."""
        known = self.channels.items()
        return [t for t, c in known if isinstance(c, BagChannel) and messages.image_kind(c)]

    def left_out(self, used: Container[str]) -> str:
        """Topics, attachments and metadata that are not used."""
        counts = {name: self.counts[name] for name in self.channels if name not in used}
        others = [f"{name} ({count} messages)" for name, count in counts.items()]
        others += [f"attachment {name}" for name in self._attachments]
        unused = (name for name in self._metadata if name.rpartition("@")[2] not in _USED)
        return ", ".join([*others, *(f"metadata {name}" for name in unused)])


def proposed(topics: Topics) -> tuple[BagMapping, dict[str, str]]:
    """The mapping of all topics whose content is plain, and notes for a user by key.

    Images are cameras, numbers are fields; everything else is left to the user.
    """
    notes = {
        "episodes": "a topic (Bool, or String start and stop) that marks episodes? or --gap-s",
        "fps": "NAME@KEY of a metadata record, or give --fps: rows per second",
        "instruction": f'TOPIC or NAME@KEY of the sentence, or "{STEM}": the name of the file',
        "success": "NAME@KEY of the success flag, if there is one",
        "depth": "camera to its topic of images in 16UC1, millimeters, or 32FC1, meters",
        "action_fields": "which fields are commands?",
        "proprioception_fields": "which fields does the robot measure of itself?",
    }
    texts: list[str] = []
    cameras, depth, fields, joints = (dict[str, Any]() for _ in range(4))
    for topic, stored in topics.first_messages(topics.channels).items():
        try:
            message = messages.decoded(topics.bag.path, stored.channel, stored.data)
        except DataError:
            if stored.channel.encoding != "json":
                raise
            continue  # it has no schema that a message could break; `left_out` names it
        note = f"{stored.channel.type}, {topics.counts[topic]} messages"
        kind = messages.image_kind(stored.channel)
        if getattr(message, "encoding", "") in ("16UC1", "32FC1"):
            depth[_camera_name(topic, depth)] = topic
        elif kind == "file" and not messages.is_encoded(message.data):
            continue  # neither an image nor numbers
        elif kind:
            name = _camera_name(topic, cameras)
            cameras[name], notes[f"cameras.{name}"] = CameraMapping(path=topic), note
        elif stored.channel.type == messages.TEXT:
            texts += [topic] * bool(_INSTRUCTION.search(topic))
        else:
            for name, reference in _fields(topic, message):
                fields[name], notes[f"fields.{name}"] = reference, note
                if names := messages.joints_of(message):
                    joints[name], notes[f"joints.{name}"] = names, "that of the policy?"
    actions = [name for name, reference in fields.items() if _ACTION.search(reference.lower())]
    observed = [name for name in fields if name not in actions and _MEASURED.search(name.lower())]
    mapping = BagMapping(
        cameras=cameras,
        fields=fields,
        action_fields=actions,
        proprioception_fields=observed,
        instruction=texts[0] if len(texts) == 1 else "",
        depth=depth,
        joints=joints,
    )
    return mapping, notes


def _fields(topic: str, message: Any) -> Iterator[tuple[str, str]]:
    """(field, reference) of the numbers of a topic; none if it has others than plain numbers."""
    name = ".".join(id_part(part) for part in topic.split("/") if part) or "topic"
    joints = messages.joints_of(message)
    for member in JOINT_VALUES if joints else ():
        if len(getattr(message, member, ())) == len(joints):
            yield f"{name}.{member}", f"{topic}/{member}"
    with suppress(TypeError, ValueError):
        if not joints and sum(part.size for _, part in messages.numbers_of(message)):
            yield name, topic


def _camera_name(topic: str, taken: dict[str, Any]) -> str:
    parts = [part for part in topic.split("/") if part]
    short = [part for part in parts if part not in _GENERIC and "depth" not in part]
    name = id_part("_".join(short or parts))
    return id_part("_".join(parts)) if name in taken else name
