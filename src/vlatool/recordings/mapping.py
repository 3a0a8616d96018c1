"""Mappings: which parts of a recording are cameras, fields, the instruction and the success.

A mapping is a YAML file. It takes precedence over the roles that `recordings.inventory` assigns. It
names parts by references: a path in the episode, a path from the root of the file (with a leading
`/`), an attribute (`PATH@NAME`), or a value in a JSON file in the same folder (`FILE.json@KEY`).
`*` stands for any name, as long as only one part fits.
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
    "YAML file, or name of a preset, that says what each part of your recordings is; null: vlatool "
    "decides by type, shape and name."
)
NEXT = re.compile(r"next\(\s*(?P<field>.+?)\s*\)")
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")

_MOST_NAMED = 6


class CameraMapping(ConfigModel):
    """Where the images of a camera are: either `path` or `video` is set."""

    path: str = option("", "Reference of the images in the recording.")
    video: str = option(
        "",
        "Path of a video relative to the recording, with {stem} (name of the recording), {parent}, "
        "{grandparent} (its folders), {episode} (last part of the group) and {FILE.json@KEY}.",
    )
    bgr: bool = option(False, "Swap red and blue: colors are stored as blue, green, red.")
    optional: bool = option(False, "Allow episodes without this video.")


class RowsMapping(ConfigModel):
    """Which rows of a recording are the frames of an episode."""

    index: str = option("", "Reference of an array with the numbers of the rows that are frames.")


class RecordingMapping(ConfigModel):
    """What each part of an episode is used as."""

    layout: str = option("", "Name of the layout, which `inspect` shows.")
    recognized_by: list[str] = option([], "Paths that every file of this layout has; for presets.")
    episodes: str = option(
        "/", "Pattern of the groups or datasets that are episodes; / if the whole file is one."
    )
    cameras: dict[str, CameraMapping] = option({}, "Where the images of each camera are.")
    depth: dict[str, str] = option({}, "Reference of the depth images of each camera.")
    labels: dict[str, str] = option({}, "Reference of the segmentation labels of each camera.")
    fields: dict[str, str] = option(
        {}, "Reference of each field, or next(FIELD) for the next row of another field."
    )
    action_fields: list[str] = option(
        [], "Fields that a policy predicts, or next(FIELD); * stands for any name."
    )
    proprioception_fields: list[str] = option([], "Fields that it observes; * stands for any name.")
    instruction: str | list[str] = option(
        "", "Reference of the instruction. From a list, the first text that is not empty is used."
    )
    language: dict[LanguageKind, str] = option(
        {}, "Reference of the text of each kind of annotation, for the episode or for each frame."
    )
    success: str = option("", "Reference of the success flag.")
    fps: Annotated[float, Field(gt=0)] | str = option(
        "", "Frames per second: a number, or the reference of a stored one."
    )
    usual_fps: float | None = option(
        None,
        "Rate that such recordings usually have, for the error where none is stored.",
        gt=0,
        exclude=True,  # it changes no output
    )
    rows: RowsMapping = option(RowsMapping(), "Which rows are frames; default: all.")
    rest: Literal["leave", "assign"] = option(
        "leave", "Leave out parts that are not named, or assign them roles by type and name."
    )

    @property
    def instructions(self) -> list[str]:
        """References of the instruction; the first one with a text is used."""
        names = [self.instruction] if isinstance(self.instruction, str) else self.instruction
        return [name for name in names if name]


Mapped = TypeVar("Mapped", bound=RecordingMapping)


def mapping_file(name: str) -> Path:
    """Returns the file of a mapping, given as a path or as the name of a preset."""
    if name.endswith((".yaml", ".yml")) or "/" in name or location(name).exists():
        return location(name)
    return preset_path(name, kinds=(KIND,))


def read_mapping(path: Path, kind: type[Mapped]) -> Mapped:
    """Reads a mapping from a YAML file.

    Raises:
        DataError: The file is missing or invalid. The message names the file and the key.
    """
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
            hint = f"add a line under fields: {used}: PATH"
            raise broken_mapping(path, f"{used!r} is not listed under fields", hint)
    for name, camera in mapping.cameras.items():
        if bool(camera.path) == bool(camera.video):
            raise broken_mapping(path, f"cameras.{name}: set either path or video")
    return mapping


def broken_mapping(path: Path, reason: str, hint: str = "") -> DataError:
    """Returns the error for a mapping, or for a file that it names, that cannot be used."""
    return DataError.at(
        path,
        reason,
        hint=hint or "`vlatool inspect SOURCE --propose mapping.yaml` writes a mapping to edit",
        code="data.broken",
    )


def known_layouts() -> list[tuple[str, RecordingMapping]]:
    """Returns (name, mapping) of all presets whose layout is recognized by its paths."""
    known: list[tuple[str, RecordingMapping]] = []
    for preset in list_presets():
        if preset.kind == KIND:
            mapping = read_mapping(preset.path, RecordingMapping)
            if mapping.recognized_by:
                known.append((preset.name, mapping))
    return known


def usual_rate(layout: str, mapping: str | None) -> float | None:
    """Returns the rate that recordings of a layout or mapping usually have; it is not stored."""
    if mapping is not None:
        return read_mapping(mapping_file(mapping), RecordingMapping).usual_fps
    for _, known in known_layouts():
        if known.layout == layout:
            return known.usual_fps
    return None


# References


def matching(reference: str, names: Sequence[str]) -> str | None:
    """Returns the name that a reference stands for; None if no name fits.

    Raises ValueError if several names fit.
    """
    if reference in names:
        return reference
    if "*" not in reference:
        return None
    fitting = [name for name in names if fnmatchcase(name, reference)]
    if len(fitting) > 1:
        raise ValueError(f"fits several parts, {few_text(fitting)}; name one of them")
    return fitting[0] if fitting else None


def nearest(reference: str, names: Sequence[str]) -> str:
    """Says which existing names are most like a reference, as part of a message."""
    if not names:
        return "there is nothing at all"
    close = get_close_matches(reference, names, _MOST_NAMED, 0.5)
    last = reference.rpartition("/")[2]
    for name in names:
        if name.rpartition("/")[2] == last and name not in close:
            close.append(name)
    return f"there is {few_text(close or names)}"


def filled(text: str, file: Path, episode: str) -> str:
    """Fills in {stem}, {parent}, {grandparent}, {episode} and {FILE.json@KEY} of a reference.

    Of a value that is a path, only the last part is used, so that it cannot leave the folder.

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
            file, f"{text}: {{{name}}} is unknown; use {', '.join(known)} or FILE.json@KEY"
        )

    return _PLACEHOLDER.sub(value_of, text)


def is_beside(reference: str) -> bool:
    """True if a reference names a value in a JSON file next to the recording."""
    return ".json@" in reference


def value_beside(reference: str, file: Path) -> Any:
    """Reads the value that `FILE.json@KEY.KEY` names, from a file next to a recording."""
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
            others = nearest(key, [*value]) if isinstance(value, dict) else "it has no keys here"
            raise broken_mapping(path, f"has no {key!r}; {others}", "change the mapping")
    return value


def file_beside(name: str, file: Path) -> Path:
    """Returns the only file that fits a path relative to a recording.

    Raises:
        DataError: No file fits, or several do.
    """
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
    reason = "no file fits this pattern"
    if fitting:
        reason = f"several files fit this pattern: {few_text([path.name for path in fitting])}"
    raise broken_mapping(file.parent / name, reason, f"change {name} in the mapping to one file")


def proposal(mapping: RecordingMapping, notes: Mapping[str, str]) -> str:
    """Writes a mapping as YAML; `notes` are comments by key (`cameras.front`, `fps`)."""
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
