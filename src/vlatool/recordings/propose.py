"""A mapping to start from: what the things of the first episode may be, with questions."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.recordings.base import unused_id, walk_source
from vlatool.recordings.commands import named_commands
from vlatool.recordings.inventory import Stored, is_action
from vlatool.recordings.language import kind_of_name
from vlatool.recordings.mapping import CameraMapping, RecordingMapping, proposal
from vlatool.recordings.plan import EpisodePlan, Known, plan_by_structure
from vlatool.storage.documents import DocumentError, read_json
from vlatool.storage.tree import natural_key

LEFT_OUT_LINE = "# left out: "
MEASURED = re.compile(
    r"state|proprio|joint|qpos|qvel|eef|ee_|tcp|cartesian|pose|gripper|agent_pos|robot\d", re.I
)
_RATE = re.compile(r"(^|[_@/.])(fps|hz|rate|frequency|freq|control_freq)$", re.I)
_OTHERS = re.compile(r"env_state|actor|object", re.I)  # of which a robot measures nothing
_TIME = re.compile(r"time|stamp", re.I)
_UNITS = (1.0, 1e3, 1e6, 1e9)  # ticks of a second: s, ms, us, ns
_EVEN = 0.1  # of the interval
_FEWEST_STEPS = 2  # of times that are rounded so that they repeat
_RATES = (0.5, 1000.0)  # of recordings, frames per second
_ROUNDED = 1.1  # rounding of times may show a higher rate
_TASK = re.compile(r"task|goal|instruction|descri|sentence|prompt|caption|language", re.I)
_VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm")
_MOST_FILES = 20
_EPOCH = (1e9, 4e9)  # seconds since 1970 that a recent clock shows
_STATES = re.compile(r"qpos|joint|eef|pose|tcp|state", re.I)


@dataclass
class Clues:
    """What a recording shows of its first episode."""

    things: Sequence[Stored]
    # reference to the value of attributes and metadata
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    numbers: Callable[[str], Array] | None = None  # rows of a field, by path
    videos: list[str] = field(default_factory=list[str])  # files beside, by relative path

    def add_files_beside(self, path: Path) -> None:
        """Adds the videos and the values of JSON files of the folder of a recording."""
        others: list[str] = []  # names of other recordings
        for folder, _, names in walk_source(path.parent):
            if folder == path.parent:
                others = [Path(name).stem for name in names if Path(name).suffix == path.suffix]
            for name in sorted(names, key=natural_key)[:_MOST_FILES]:
                file = folder / name
                if file.suffix.lower() in _VIDEOS:
                    self._add_video(file.relative_to(path.parent).as_posix(), path.stem, others)
                if file.suffix == ".json" and folder == path.parent:
                    self._add_document(file)

    def _add_video(self, video: str, stem: str, others: Sequence[str]) -> None:
        """Adds a video that every recording has, or the one of this recording as a pattern."""
        if _has_word(video, stem):
            pattern = re.sub(_word(stem), "{stem}", video)
            if pattern not in self.videos:
                self.videos.append(pattern)
        elif not any(_has_word(video, other) for other in others):
            self.videos.append(video)

    def _add_document(self, file: Path) -> None:
        try:
            document = read_json(file)
        except (DocumentError, OSError):
            return
        for key, value in document.items() if isinstance(document, dict) else ():
            self.values[f"{file.name}@{key}"] = value


def proposed_mapping(
    clues: Clues,
    kind: type[RecordingMapping] = RecordingMapping,
    *,
    fps: float | str | None = None,
    **keys: Any,
) -> str:
    """YAML of a mapping; `fps`, `keys`: what the format knows, such as `episodes`."""
    rows = [thing.rows for thing in clues.things if thing.rows and thing.kind != "text"]
    count = max(rows, key=rows.count, default=0)
    excluded: dict[str, str] = {}
    for thing in clues.things:
        is_single_text = thing.kind == "text" and thing.rows == 1
        if thing.rows is not None and abs(thing.rows - count) > 1 and not is_single_text:
            excluded[thing.path] = f"it has {thing.rows} rows, others have {count}"
    plan = plan_by_structure(clues.things, Known(), excluded)
    things = {thing.path: thing for thing in clues.things}
    notes = _notes(plan, things)
    actions = [name for name, path in plan.fields.items() if is_action(path)]
    widths = {name: math.prod(things[path].shape) for name, path in plan.fields.items()}
    actions = actions or [*named_commands(widths)]
    for name in [*actions]:
        if any(_is_variant(name, other) and widths[name] == widths[other] for other in actions):
            actions.remove(name)
            notes[f"fields.{name}"] += "; another form of the actions: take one of both"
    states: list[str] = []
    for name, path in plan.fields.items():
        if MEASURED.search(path) and not (_TIME.search(path) or _OTHERS.search(path)):
            states.append(name)
    observed = [name for name in states if name not in actions]
    if not actions:
        example = next((name for name in states if _STATES.search(name)), "FIELD")
        notes["action_fields"] = (
            f"no field is named as a command: which is one? [next({example})] takes the next state"
        )
    cameras: dict[str, CameraMapping] = {}
    for name, images in plan.cameras.items():
        cameras[name] = CameraMapping(path=images.path)
    for video in clues.videos:
        name = unused_id(_camera_of(video), dict.fromkeys(cameras, 1))
        cameras[name] = CameraMapping(video=video)
        if "{stem}" not in video:
            question = "same name in each episode? if not: {stem} or {FILE.json@KEY}"
            notes[f"cameras.{name}"] = question
    mapping: dict[str, Any] = {
        "cameras": cameras,
        "depth": {name: images.path for name, images in plan.depth.items()},
        "labels": {name: images.path for name, images in plan.labels.items()},
        "fields": plan.fields,
        "action_fields": actions,
        "proprioception_fields": observed,
    }
    mapping |= _texts(plan, clues, notes)
    mapping |= _rate(clues, notes)
    if fps:
        mapping["fps"] = fps
    success = [name for name in clues.values if name.rpartition("@")[2] in ("success", "ok")]
    if plan.success or success:
        mapping["success"] = plan.success or success[0]
    proposed = kind(**{**mapping, **keys})
    text = proposal(proposed, notes)
    for part in plan.parts:
        if part.role == "left_out" and part.path not in proposed.instructions:
            text += f"{LEFT_OUT_LINE}{part.path}: {part.note}\n"
    return text


def _is_variant(name: str, other: str) -> bool:
    """True for `actions_abs` beside `actions`."""
    return name != other and name.startswith((f"{other}_", f"{other}."))


def _word(stem: str) -> str:
    return rf"(?<![A-Za-z0-9]){re.escape(stem)}(?![A-Za-z0-9])"


def _has_word(text: str, stem: str) -> bool:
    return re.search(_word(stem), text) is not None


def _camera_of(video: str) -> str:
    """Name of the camera of a video: what its path says besides the name of the recording."""
    for part in reversed(Path(video).with_suffix("").parts):
        name = part.replace("{stem}", "").strip("_-. ")
        if name and not re.fullmatch(r"videos?|mp4", name, re.I):
            return name
    return "image"


def _notes(plan: EpisodePlan, things: Mapping[str, Stored]) -> dict[str, str]:
    """Questions by key, and the shape and the reason of what was guessed."""
    notes = {
        "episodes": "is each such group an episode? / means the whole file",
        "fps": "a number, or PATH@NAME of a stored one; or add --fps",
        "instruction": "PATH, PATH@NAME or FILE.json@KEY of the sentence; or add --instruction",
        "success": "PATH@NAME of the success flag, if there is one",
        "action_fields": "which fields are commands?",
        "proprioception_fields": "which fields does the robot measure about itself?",
    }
    roles = {"camera": "cameras", "depth": "depth", "labels": "labels", "field": "fields"}
    for part in plan.parts:
        if part.role not in roles:
            continue
        thing = things[part.path]
        shape = list(thing.shape)
        if thing.rows is not None:
            shape.insert(0, thing.rows)
        note = f"{thing.dtype if thing.kind == 'array' else thing.kind} {shape}"
        if part.note:
            note += f"; {part.note}"
        if part.role == "camera":
            note += "; red and blue swapped? then add bgr: true"
        notes[f"{roles[part.role]}.{part.name}"] = note
    return notes


def _texts(plan: EpisodePlan, clues: Clues, notes: dict[str, str]) -> dict[str, Any]:
    """Keys of the instruction and of other texts."""
    named: list[str] = []
    others: dict[str, str] = {}
    for kind, reference in plan.texts:
        if kind in ("original", "alternative"):
            named.append(reference)
        else:
            others[kind] = reference
    for reference, value in clues.values.items():
        is_text = isinstance(value, str) and value.strip()
        key = reference.rpartition("@")[2]
        says_task = kind_of_name(key) or (_TASK.search(key) and " " in str(value).strip())
        if is_text and reference not in named and says_task:
            named.append(reference)
    unnamed: list[str] = []
    for part in plan.parts:
        if part.content == "text" and not part.name:
            unnamed.append(part.path)
    notes["language"] = f"KIND: PATH of a text, or of one per frame; texts here: {unnamed}"
    if not named and len(unnamed) == 1:
        named = unnamed
    if not named:
        return {"language": others}
    return {"language": others, "instruction": named[0] if len(named) == 1 else named}


def _rate(clues: Clues, notes: dict[str, str]) -> dict[str, Any]:
    """Key of the rate: a number that is stored, or that timestamps show."""
    for reference, value in clues.values.items():
        is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if is_number and _RATE.search(reference) and _RATES[0] <= value <= _RATES[1]:
            return {"fps": reference}
    for thing in clues.things:
        is_column = thing.kind == "array" and thing.shape in ((), (1,)) and thing.dtype != "bool"
        if not (is_column and clues.numbers and _TIME.search(thing.path)):
            continue
        rate = rate_of_times(clues.numbers(thing.path).reshape(-1))
        if rate is not None:
            notes["fps"] = f"by the times of {thing.path}"
            return {"fps": rate}
    return {}


def rate_of_times(times: Array) -> float | None:
    """Frames per second of ascending times in any usual unit; None if they show none."""
    unit = unit_of_times(times)
    if unit is None:
        return None
    return float(f"{unit / _interval(times):.3g}")


def unit_of_times(times: Array) -> float | None:
    """Ticks in a second of ascending times, which show seconds, or a usual part of them.

    None if they do not ascend, or no unit gives a rate that recordings have.
    """
    intervals = np.diff(times).astype(np.float64)  # of integers without rounding
    if not len(intervals) or not np.isfinite(intervals).all() or (intervals < 0).any():
        return None
    if (intervals > 0).sum() < min(_FEWEST_STEPS, len(intervals)):  # a flag that is set once
        return None
    interval = _interval(times)
    if interval <= 0:
        return None
    fitting: list[float] = []
    for factor in _UNITS:
        if not _RATES[0] <= factor / interval <= _ROUNDED * _RATES[1]:
            continue
        if _EPOCH[0] < times[0] / factor < _EPOCH[1]:
            fitting.insert(0, factor)  # the unit in which the clock shows today
        elif times[0] < _EPOCH[0]:
            fitting.append(factor)
    return fitting[0] if fitting else None


def _interval(times: Array) -> float:
    """Typical interval of times; the mean one where they only differ by their rounding."""
    intervals = np.diff(times).astype(np.float64)  # of integers without rounding
    median = float(np.median(intervals))
    is_even = np.ptp(intervals) <= _EVEN * median
    return median if median and not is_even else float(np.mean(intervals))
