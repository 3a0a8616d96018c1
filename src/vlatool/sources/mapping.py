"""Mappings: which parts of a recording are cameras, fields, the instruction and the success.

Formats that are containers, with a layout of each lab, read such a YAML file. A reference is a path
relative to the episode, or from the root with a `/` before it; `PATH@NAME` is an attribute.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from vlatool.config.base import ConfigModel, option
from vlatool.episode import LanguageKind
from vlatool.errors import DataError
from vlatool.storage.documents import DocumentError, read_yaml


class CameraMapping(ConfigModel):
    """Images of a camera; one of `path` and `video` is set."""

    path: str = option("", "Reference of the images.")
    video: str = option(
        "",
        "Video beside the file: a path relative to it, with {stem} (of the file) and "
        "{episode} (last part of the group).",
    )
    bgr: bool = option(False, "Colors are stored as blue, green, red.")


class RecordingMapping(ConfigModel):
    """Parts of an episode."""

    episodes: str = option("/", "Pattern of the groups that are episodes; /: the file is one.")
    cameras: dict[str, CameraMapping] = option({}, "Camera to its images.")
    fields: dict[str, str] = option({}, "Field to its reference.")
    action_fields: list[str] = option([], "Fields that a policy predicts.")
    proprioception_fields: list[str] = option([], "Fields that it observes.")
    instruction: str = option("", "Reference of the instruction, or of texts.")
    language: dict[LanguageKind, str] = option(
        {}, "Kind of annotation to the reference of its text, or of one for each frame."
    )
    success: str = option("", "Reference of the success flag.")
    fps: str = option("", "Reference of the frames per second.")


Mapped = TypeVar("Mapped", bound=RecordingMapping)


def read_mapping(path: Path, kind: type[Mapped]) -> Mapped:
    """The mapping in a YAML file; raises DataError with the file and the key."""
    try:
        mapping = kind.model_validate(read_yaml(path) or {})
    except DocumentError as error:
        raise _broken(path, error.reason) from error
    except FileNotFoundError as error:
        raise _broken(path, "does not exist") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise _broken(path, f"{place}: {first['msg']}") from error
    for name in (*mapping.action_fields, *mapping.proprioception_fields):
        if name not in mapping.fields:
            raise _broken(path, f"{name!r} is no key of fields")
    for name, camera in mapping.cameras.items():
        if bool(camera.path) == bool(camera.video):
            raise _broken(path, f"cameras.{name}: set one of path and video")
    return mapping


def _broken(path: Path, reason: str) -> DataError:
    return DataError.at(
        path,
        reason,
        hint="vlatool inspect FILE --propose mapping.yaml writes one to start from",
        code="data.bad_mapping",
    )


def proposal(mapping: RecordingMapping, notes: Mapping[str, str]) -> str:
    """A mapping as YAML, with a comment behind the keys (`cameras.front`, `fps`) of `notes`."""
    lines = ["# Proposed by vlatool inspect --propose: check each line with a question mark."]
    for key, value in mapping.model_dump(mode="json").items():
        note = f"  # {notes[key]}" if key in notes else ""
        if not isinstance(value, dict):
            lines.append(f"{key}: {_flow(value)}{note}")
            continue
        lines.append(f"{key}:{'' if value else ' {}'}{note}")
        for name, part in value.items():
            stored = {k: v for k, v in part.items() if v} if isinstance(part, dict) else part
            comment = notes.get(f"{key}.{name}")
            lines.append(f"  {_flow(name)}: {_flow(stored)}" + f"  # {comment}" * bool(comment))
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
