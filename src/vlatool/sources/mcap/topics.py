"""Topics of a bag, and the mapping from them to cameras, fields and the instruction.

A reference is `TOPIC` or `TOPIC/MEMBER.MEMBER`; `NAME@KEY` is a key of a metadata record.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.sources.base import id_part
from vlatool.sources.mapping import CameraMapping, RecordingMapping
from vlatool.sources.mcap.bag import Bag, BagChannel, BagMessage, Span
from vlatool.sources.mcap.messages import (
    TEXT,
    channels_of,
    decoded,
    image_kind,
    is_encoded,
    joints_of,
    member_at,
    numbers_of,
)
from vlatool.sources.mcap.rules import mcap_error
from vlatool.storage.tree import natural_key

STEM = "{stem}"  # as the instruction: the name of the file
_JOINT_VALUES = ("position", "velocity", "effort")
_ACTION = re.compile(r"(^|[/_.])(actions?|commands?|cmd)([/_.]|$)")
_MEASURED = re.compile(r"state|joint|gripper|pose|eef|ee_|odom|transform")
_INSTRUCTION = re.compile(r"instruction|language|prompt|task")
_USED = ("fps", "instruction", "success")  # keys of metadata
_GENERIC = ("image", "image_raw", "image_rect", "image_color", "raw", "compressed", "video")


class BagMapping(RecordingMapping):
    """Parts of an episode of a bag."""

    episodes: str = Field(
        default="/", description="Topic whose messages start and stop episodes; /: the bag is one."
    )
    depth: dict[str, str] = Field(default={}, description="Camera to its depth images.")
    joints: dict[str, list[str]] = Field(
        default={}, description="Field to its joints in order; others are sorted by name."
    )


class Topics:
    """Topics of a bag, in natural order."""

    def __init__(self, bag: Bag) -> None:
        self.bag, self.counts = bag, Counter[str]()
        for file in bag.files:
            for number, channel in file.channels.items():
                self.counts[channel.topic] += file.counts[number]
        known = channels_of(bag)
        self.channels = {topic: known[topic] for topic in sorted(known, key=natural_key)}

    def find(self, reference: str) -> tuple[BagChannel, str]:
        """(topic, member) of a reference; DataError if there is none, or it cannot be read."""
        found = [t for t in self.channels if f"{reference}/".startswith(f"{t.rstrip('/')}/")]
        if not found:
            reason = f"no such topic; there are: {', '.join(self.channels) or 'none'}"
            raise mcap_error(self.bag.path, reference, reason, "missing_topic", field=reference)
        channel = self.channels[max(found, key=len)]
        if isinstance(channel, DataError):
            raise channel
        return channel, reference[len(channel.topic) :].lstrip("/")

    def first_messages(self, topics: Sequence[str]) -> dict[str, BagMessage]:
        """The first message of each topic that has one and can be read, in natural order."""
        found: dict[str, BagMessage] = {}
        wanted = [t for t in topics if self.counts[t] and isinstance(self.channels[t], BagChannel)]
        for message in self.bag.messages(Span(), []) if wanted else ():
            if message.channel.topic in wanted:
                found.setdefault(message.channel.topic, message)
                if len(found) == len(wanted):
                    break
        return {topic: found[topic] for topic in wanted if topic in found}

    def metadata(self, reference: str) -> str:
        """Value of `NAME@KEY`, or of `KEY` in any record; empty if there is none."""
        for file in self.bag.files:
            for name, value in file.metadata.items():
                if reference in (name, name.rpartition("@")[2]):
                    return value
        return ""

    def left_out(self, used: Sequence[str]) -> list[str]:
        """Topics, attachments and metadata that are not used."""
        others = [name for name in self.channels if name not in used]
        for file in self.bag.files:
            others += [f"attachment {name}" for name in file.attachments]
            names = {name: name.rpartition("@")[2] for name in file.metadata}
            others += [f"metadata {n}" for n, key in names.items() if key not in _USED]
        return [f"{o} ({self.counts[o]} messages)" if o in self.counts else o for o in others]


class FieldValues:
    """Numbers [C] of the messages of a field, with the joints in one order."""

    def __init__(self, path: Path, place: tuple[BagChannel, str], joints: Sequence[str]) -> None:
        self._path, (self._channel, self._member), self._joints = path, place, tuple(joints)
        self.names: tuple[str, ...] = ()

    def __call__(self, message: Any, position: tuple[int, ...]) -> Array | None:
        del position
        place = f"{self._channel.topic}/{self._member}"
        try:
            names, numbers = self._numbers(message)
        except (LookupError, TypeError, ValueError) as error:
            raise mcap_error(self._path, place, error, "missing_field", field=place) from error
        if joints := joints_of(message) if self._member in _JOINT_VALUES else []:
            self._joints = self._joints or tuple(sorted(joints, key=natural_key))
            order = {name: index for index, name in enumerate(joints)}
            if not order.keys() >= {*self._joints}:
                return None
            if len(numbers) == len(joints):
                names, numbers = self._joints, numbers[[order[name] for name in self._joints]]
        self.names = self.names or names
        if len(numbers) != len(self.names):
            reason = f"has {len(numbers)} numbers, not {len(self.names)}"
            raise mcap_error(self._path, place, reason, "bad_message", field=place)
        return numbers

    def _numbers(self, message: Any) -> tuple[tuple[str, ...], Array]:
        parts = list(numbers_of(member_at(message, self._member)))
        names = [f"{n}.{i}".lstrip(".") for n, part in parts for i in range(len(part))]
        short = [n for n, _ in parts] if all(n and len(part) == 1 for n, part in parts) else names
        return tuple(short), np.concatenate([part for _, part in parts])


def proposed(topics: Topics) -> tuple[BagMapping, dict[str, str]]:
    """The mapping of all topics whose content is plain, and notes for a user by key.

    Images are cameras, numbers are fields; everything else is left to the user.
    """
    notes = {
        "episodes": "a topic (Bool, or String start and stop) that marks episodes? or --gap-s",
        "fps": "NAME@KEY of a metadata record, or give --fps: rows per second",
        "instruction": f'TOPIC or NAME@KEY of the sentence, or "{STEM}": the name of the file',
        "success": "NAME@KEY of the success flag, if there is one",
        "depth": "camera to its topic of 16UC1 images, in millimeters",
        "action_fields": "which fields are commands?",
        "proprioception_fields": "which fields does the robot measure of itself?",
    }
    mapping, texts = BagMapping(), list[str]()
    cameras, depth, fields, joints = (dict[str, Any]() for _ in range(4))
    for topic, stored in topics.first_messages([*topics.channels]).items():
        message = decoded(topics.bag.path, stored.channel, stored.data)
        note = f"{stored.channel.type}, {topics.counts[topic]} messages"
        if getattr(message, "encoding", "") == "16UC1":
            depth[_camera_name(topic, depth)] = topic
        elif (kind := image_kind(stored.channel)) == "file" and not is_encoded(message.data):
            continue  # neither an image nor numbers
        elif kind:
            name = _camera_name(topic, cameras)
            cameras[name], notes[f"cameras.{name}"] = CameraMapping(path=topic), note
        elif stored.channel.type == TEXT:
            texts += [topic] * bool(_INSTRUCTION.search(topic))
        else:
            for name, reference in _fields(topic, message):
                fields[name], notes[f"fields.{name}"] = reference, note
                if names := joints_of(message):
                    joints[name], notes[f"joints.{name}"] = names, "that of the policy?"
    actions = [name for name, reference in fields.items() if _ACTION.search(reference.lower())]
    mapping = BagMapping(
        cameras=cameras,
        fields=fields,
        action_fields=actions,
        proprioception_fields=[
            name for name in fields if name not in actions and _MEASURED.search(name.lower())
        ],
        instruction=texts[0] if len(texts) == 1 else "",
        depth=depth,
        joints=joints,
    )
    return mapping, notes


def _fields(topic: str, message: Any) -> Iterator[tuple[str, str]]:
    """(field, reference) of the numbers of a topic; none if it has others than plain numbers."""
    name = ".".join(id_part(part) for part in topic.split("/") if part) or "topic"
    joints = joints_of(message)
    for member in _JOINT_VALUES if joints else ():
        if len(getattr(message, member, ())) == len(joints):
            yield f"{name}.{member}", f"{topic}/{member}"
    with suppress(TypeError, ValueError):
        if not joints and sum(part.size for _, part in numbers_of(message)):
            yield name, topic


def _camera_name(topic: str, taken: dict[str, Any]) -> str:
    parts = [part for part in topic.split("/") if part]
    name = id_part("_".join([part for part in parts if part not in _GENERIC] or parts))
    return id_part("_".join(parts)) if name in taken else name
