"""Mappings: which parts of a recording are cameras, fields, the instruction and the success.

A mapping is a YAML file that comes before the roles that `formats.inventory` gives. A reference is
a path in the episode, or from the root of the file with a `/` before it; `PATH@NAME` is an
attribute, `FILE.json@KEY` a value of a file beside. `*` stands for any name, if only one fits.
"""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from vlatool.config.base import ConfigModel, option
from vlatool.config.presets import list_presets, preset_path
from vlatool.episode import LanguageKind
from vlatool.errors import DataError
from vlatool.report.text import few_text
from vlatool.storage.documents import DocumentError, read_json, read_yaml
from vlatool.storage.uri import location

KIND = "mappings"  # folder of the presets
MAPPING = (
    "YAML file, or name of a preset, that says which parts are cameras and fields; null: they are "
    "used by what they are."
)
NEXT = re.compile(r"next\(\s*(?P<field>.+?)\s*\)")
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_MOST_NAMED = 6


class CameraMapping(ConfigModel):
    """Images of a camera; one of `path` and `video` is set."""

    path: str = option("", "Reference of the images.")
    video: str = option(
        "",
        "Video beside the file: a path relative to it, with {stem} (of the file), {parent} and "
        "{grandparent} (its folders), {episode} (last part of the group) and {FILE.json@KEY}.",
    )
    bgr: bool = option(False, "Colors are stored as blue, green, red.")
    optional: bool = option(False, "Episodes may lack this video.")


class RowsMapping(ConfigModel):
    """Which rows are the frames of an episode."""

    index: str = option("", "Reference of the numbers of the rows that are frames.")


class RecordingMapping(ConfigModel):
    """Parts of an episode."""

    layout: str = option("", "Name of the layout, which inspect shows.")
    recognized_by: list[str] = option([], "Paths in a file of this layout; for presets.")
    episodes: str = option(
        "/", "Pattern of the groups or datasets that are episodes; /: the file is one."
    )
    cameras: dict[str, CameraMapping] = option({}, "Camera to its images.")
    depth: dict[str, str] = option({}, "Camera to the reference of its depth images.")
    labels: dict[str, str] = option({}, "Camera to the reference of its segmentation labels.")
    fields: dict[str, str] = option(
        {}, "Field to its reference, or to next(FIELD): the next row of another field."
    )
    action_fields: list[str] = option(
        [], "Fields that a policy predicts, or next(FIELD); * stands for any name."
    )
    proprioception_fields: list[str] = option([], "Fields that it observes; * stands for any name.")
    instruction: str | list[str] = option(
        "", "Reference of the instruction, or of texts; of a list the first that is not empty."
    )
    language: dict[LanguageKind, str] = option(
        {}, "Kind of annotation to the reference of its text, or of one for each frame."
    )
    success: str = option("", "Reference of the success flag.")
    fps: Annotated[float, Field(gt=0)] | str = option(
        "", "Frames per second, or the reference of them."
    )
    rows: RowsMapping = option(RowsMapping(), "Which rows are frames; default: all.")
    rest: Literal["leave", "assign"] = option(
        "leave", "What is not named: leave it out, or use it by what it is."
    )

    @property
    def instructions(self) -> list[str]:
        """References of the instruction, by preference."""
        names = [self.instruction] if isinstance(self.instruction, str) else self.instruction
        return [name for name in names if name]


Mapped = TypeVar("Mapped", bound=RecordingMapping)


def mapping_file(name: str) -> Path:
    """File of a mapping, by its path or by the name of a preset."""
    if name.endswith((".yaml", ".yml")) or "/" in name or location(name).exists():
        return location(name)
    return preset_path(name, kinds=(KIND,))


def read_mapping(path: Path, kind: type[Mapped]) -> Mapped:
    """The mapping in a YAML file; raises DataError with the file and the key."""
    try:
        mapping = kind.model_validate(read_yaml(path) or {})
    except DocumentError as error:
        raise broken_mapping(path, error.reason) from error
    except FileNotFoundError as error:
        raise broken_mapping(path, "does not exist") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("float", "str"))
        raise broken_mapping(path, f"{place}: {first['msg']}") from error
    for name in (*mapping.action_fields, *mapping.proprioception_fields):
        match = NEXT.fullmatch(name)
        used = match["field"] if match else name
        if used not in mapping.fields and "*" not in used and mapping.rest == "leave":
            hint = f"add it to fields, as {used}: PATH"
            raise broken_mapping(path, f"{used!r} is no key of fields", hint)
    for name, camera in mapping.cameras.items():
        if bool(camera.path) == bool(camera.video):
            raise broken_mapping(path, f"cameras.{name}: set one of path and video")
    return mapping


def broken_mapping(path: Path, reason: str, hint: str = "") -> DataError:
    return DataError.at(
        path,
        reason,
        hint=hint or "vlatool inspect SOURCE --propose mapping.yaml writes one to start from",
        code="data.broken",
    )


def known_layouts() -> list[tuple[str, RecordingMapping]]:
    """(name, mapping) of the presets that say by which paths their layout is recognized."""
    known: list[tuple[str, RecordingMapping]] = []
    for preset in list_presets():
        if preset.kind == KIND:
            mapping = read_mapping(preset.path, RecordingMapping)
            if mapping.recognized_by:
                known.append((preset.name, mapping))
    return known


# References


def matching(reference: str, names: Sequence[str]) -> str | None:
    """The name that a reference is or fits; None if none does.

    Raises ValueError if several fit.
    """
    if reference in names:
        return reference
    if "*" not in reference:
        return None
    fitting = [name for name in names if fnmatchcase(name, reference)]
    if len(fitting) > 1:
        raise ValueError(f"fits {few_text(fitting)}; name one of them")
    return fitting[0] if fitting else None


def nearest(reference: str, names: Sequence[str]) -> str:
    """Text with the names that are there and most like a reference."""
    if not names:
        return "there is nothing here"
    close = get_close_matches(reference, names, _MOST_NAMED, 0.5)
    last = reference.rpartition("/")[2]
    for name in names:
        if name.rpartition("/")[2] == last and name not in close:
            close.append(name)
    return f"there is {few_text(close or names)}"


def filled(text: str, file: Path, episode: str) -> str:
    """A reference with the values of {stem}, {parent}, {grandparent}, {episode}, {FILE.json@KEY}.

    A value that is a path is replaced by its last part: no file can lead out of the folder.

    Raises:
        DataError: A file, a key or a placeholder does not exist.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        known = {
            "stem": file.stem,
            "parent": file.parent.name,
            "grandparent": file.parent.parent.name,
            "episode": episode,
        }
        if name in known:
            return known[name]
        if "@" in name:
            return str(value_beside(name, file)).rpartition("/")[2]
        raise broken_mapping(
            file, f"{text}: {{{name}}} is none of {', '.join(known)}, FILE.json@KEY"
        )

    return _PLACEHOLDER.sub(value_of, text)


def is_beside(reference: str) -> bool:
    """True if a reference leads to a value in a JSON file beside the recording."""
    return ".json@" in reference


def value_beside(reference: str, file: Path) -> Any:
    """The value of `FILE.json@KEY.KEY` in a file beside a recording."""
    name, _, keys = reference.partition("@")
    path = file_beside(name, file)
    try:
        value: Any = read_json(path)
    except (DocumentError, OSError) as error:
        raise broken_mapping(path, f"cannot be read: {error}", "correct the file") from error
    for key in filter(None, keys.split(".")):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        else:
            others = nearest(key, [*value]) if isinstance(value, dict) else "it is no such table"
            raise broken_mapping(path, f"has no {key!r}; {others}", "change the mapping")
    return value


def file_beside(name: str, file: Path) -> Path:
    """The only file that a path relative to a recording fits."""
    if "*" not in name:
        path = file.parent / name
        if path.is_file():
            return path
        folder = path.parent
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        raise broken_mapping(path, f"is missing; {nearest(path.name, names)}", "change the mapping")
    fitting = sorted(file.parent.glob(name))
    if len(fitting) == 1:
        return fitting[0]
    reason = "fits no file"
    if fitting:
        reason = f"fits {few_text([path.name for path in fitting])}"
    raise broken_mapping(file.parent / name, reason, "name one file in the mapping")


def proposal(mapping: RecordingMapping, notes: Mapping[str, str]) -> str:
    """A mapping as YAML, with a comment behind the keys (`cameras.front`, `fps`) of `notes`."""
    lines = ["# Proposed by vlatool inspect --propose: check each line with a question mark."]
    defaults = type(mapping)().model_dump(mode="json")
    for key, value in mapping.model_dump(mode="json").items():
        if value == defaults[key] and key not in notes:
            continue
        if not value or not isinstance(value, dict):
            lines.append(f"{key}: {_flow(value)}{_comment(notes, key)}")
            continue
        lines.append(f"{key}:{_comment(notes, key)}")
        for name, part in value.items():
            if isinstance(part, dict):
                part = {option: setting for option, setting in part.items() if setting}
            comment = _comment(notes, f"{key}.{name}")
            lines.append(f"  {_flow(name)}: {_flow(part)}{comment}")
    return "\n".join(lines) + "\n"


def _comment(notes: Mapping[str, str], key: str) -> str:
    return f"  # {notes[key]}" if notes.get(key) else ""


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_flow(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
