"""Recognizes layouts of HDF5 files by their structure: which groups are episodes.

Source: formats/hdf5 1.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vlatool.errors import DataError
from vlatool.media import limits
from vlatool.recordings.hdf5.check import (
    BROKEN,
    HDF5,
    address_of,
    dataset_at,
    member_at,
    readable,
    texts_of,
)
from vlatool.recordings.inventory import Stored
from vlatool.recordings.mapping import RecordingMapping, known_layouts
from vlatool.recordings.plan import EpisodePlan, Known, plan_by_structure
from vlatool.report.text import few_text
from vlatool.storage.tree import natural_key
from vlatool.transforms.hold_out import split_of

# Groups whose datasets have a row per frame; others may have any length.
_PER_FRAME = ("obs/", "observations/", "states", "rewards", "dones")
_OBSERVED = ("obs", "observation", "observations", "state", "states")
_OTHER_TIMES = {
    "next_obs/": "the observations of the next frames",
    "initial_state/": "the state before the first frame",
}
# Observations that a robot measures of itself; others, such as poses of objects, are not observed.
_MEASURED = re.compile(r"eef|ee_|gripper|joint|robot\d|qpos|qvel|/(state|proprio)$")


@dataclass(frozen=True)
class FileLayout:
    """Structure of a file."""

    name: str
    groups: tuple[str, ...]  # of the episodes, in natural order
    actions: str = ""  # dataset of the actions in an episode; empty: a mapping names it
    preset: str = ""  # mapping of a known layout


def layout_of(file: Any, path: Path, mapping: RecordingMapping | None) -> FileLayout:
    """The layout of a mapping, or the one that the structure of a file shows."""
    with readable(path):
        if mapping is not None:
            return FileLayout(mapping.layout or "mapping", _episodes(file, mapping, path))
        data = member_at(file, "data")
        demos = sorted(_groups(data), key=natural_key)
        for demo in demos:
            with suppress(*BROKEN):  # a damaged group costs its episode
                if "actions" in data[demo]:
                    groups = tuple(f"data/{name}" for name in demos)
                    return FileLayout(_kind_of(data[demo]), groups, "actions")
        for name, known in known_layouts():
            if all(has_path(file, pattern) for pattern in known.recognized_by):
                return FileLayout(known.layout, _episodes(file, known, path), preset=name)
        if "action" in file and member_at(file, "observations") is not None:
            return FileLayout("ALOHA", ("/",), "action")
        for name in ("actions", "action"):
            if name in file and not hasattr(member_at(file, name), "keys"):
                return FileLayout("transitions", ("/",), name)
    raise HDF5.error("unknown_layout", path, f"unknown layout: {_names(file)}")


def _kind_of(demo: Any) -> str:
    if hasattr(member_at(demo, "states"), "keys"):
        return "Isaac Lab"
    return "robomimic" if member_at(demo, "obs/agentview_rgb") is None else "LIBERO"


def _names(file: Any) -> str:
    return f"its root has {few_text([repr(name) for name in file]) or 'nothing'}"


def _groups(group: Any) -> list[str]:
    """Names of the groups in a group, including members that are too damaged to tell."""
    names: list[str] = []
    for name in group if hasattr(group, "keys") else ():
        try:
            is_group = hasattr(member_at(group, name), "keys")
        except BROKEN:
            is_group = True
        if is_group:
            names.append(name)
    return names


def _episodes(file: Any, mapping: RecordingMapping, path: Path) -> tuple[str, ...]:
    """Paths of the groups or datasets that are episodes; DataError if the pattern fits none."""
    parts = PurePosixPath(mapping.episodes.lstrip("/")).parts
    if not parts:
        return ("/",)
    found = tuple(_matching(file, parts, "", set()))
    if not found:
        reason = f"episodes: no group or dataset fits {mapping.episodes!r}; {_names(file)}"
        raise HDF5.error("missing_dataset", path, reason)
    return found


def has_path(file: Any, pattern: str) -> bool:
    """True if a group or dataset fits a pattern."""
    return any(_matching(file, PurePosixPath(pattern.strip("/")).parts, "", set()))


def _matching(
    group: Any, parts: tuple[str, ...], at: str, seen: set[tuple[int, int]]
) -> Iterator[str]:
    """Paths of the groups and datasets that a pattern names; `*` stands for one name.

    `seen`: address and rest of the pattern of the groups that were entered.
    """
    for name in sorted(group, key=natural_key):
        member = member_at(group, name) if PurePosixPath(name).match(parts[0]) else None
        if member is None:
            continue
        place = f"{at}/{name}".lstrip("/")
        if len(parts) == 1:
            yield place
        elif hasattr(member, "keys"):
            key = (address_of(member), len(parts))
            if key not in seen:
                seen.add(key)
                yield from _matching(member, parts[1:], place, seen)


def first_episode(file: Any) -> tuple[str, Any]:
    """Pattern of the episodes, and the first of them: groups of equal names but for a number."""
    for at in ("", *(f"{name}/" for name in _groups(file))):
        numbered: dict[str, list[str]] = {}
        for name in sorted(_groups(file[at] if at else file), key=natural_key):
            stem = name.rstrip("0123456789")
            if stem != name:
                numbered.setdefault(stem, []).append(name)
        if numbered:
            stem = max(numbered, key=lambda stem: len(numbered[stem]))
            return f"{at}{stem}*", file[f"{at}{numbered[stem][0]}"]
    return "/", file


def plan_of_layout(actions: str, stored: Sequence[Stored], known: Known) -> EpisodePlan:
    """Plan of an episode of a layout found by structure: its other datasets have as many rows as
    the actions, or are left out.
    """
    count = 0
    for thing in stored:
        if thing.path == actions:
            count = thing.rows or 0
    excluded: dict[str, str] = {}
    for thing in stored:
        for prefix, reason in _OTHER_TIMES.items():
            if thing.path.startswith(prefix):
                excluded[thing.path] = reason
        is_per_frame = thing.path.startswith(_PER_FRAME)
        is_single_text = thing.kind == "text" and thing.rows == 1
        is_other = thing.rows is not None and abs(thing.rows - count) > 1
        if is_other and not (is_per_frame or is_single_text):
            excluded[thing.path] = f"{thing.rows} rows, the episode has {count}"
    plan = plan_by_structure(stored, known, excluded)
    observed: list[str] = []
    for name, path in plan.fields.items():
        is_observed = path.startswith(("obs/", "observations/")) and _MEASURED.search(path)
        if is_observed or path in _OBSERVED:
            observed.append(name)
    plan.actions = tuple(name for name, path in plan.fields.items() if path == actions)
    plan.observed = tuple(observed)
    return plan


class StoredFacts(NamedTuple):
    """What the attributes of robomimic say; None and empty where they do not."""

    fps: float | None = None
    instruction: str = ""
    task: str = ""


def stored_facts(file: Any) -> StoredFacts:
    """What the attributes of the group `data` say of all episodes."""
    data = member_at(file, "data")
    if data is None:
        return StoredFacts()
    env = _document(data, "env_args")
    fps = limits.possible_rate(_section(env, "env_kwargs").get("control_freq"))
    sim = _section(env, "sim_args")
    period = _number(sim.get("dt")) * _number(sim.get("decimation"))
    if not fps and period:
        fps = limits.possible_rate(1.0 / period)
    instruction = _document(data, "problem_info").get("language_instruction")
    return StoredFacts(
        fps or None, str(instruction or "").strip('"'), str(env.get("env_name") or "")
    )


def _document(group: Any, name: str) -> dict[str, Any]:
    try:
        document = json.loads(group.attrs.get(name) or "{}")
    except (ValueError, TypeError, OSError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    section: Any = document.get(name)
    return section if isinstance(section, dict) else {}


def _number(value: Any) -> float:
    """A positive number that is neither tiny nor huge; 0 for anything else."""
    is_number = isinstance(value, int | float) and 1e-9 < value < 1e9
    return float(value) if is_number else 0.0


def masked(file: Any, name: str, path: Path) -> frozenset[str]:
    """Names of the episodes in the list `mask/NAME`."""
    mask = member_at(file, "mask")
    known = [] if mask is None else list(mask)
    if name not in known:
        raise DataError.at(
            path,
            f"has no mask {name!r}",
            hint=f"choose from: {', '.join(known)}" if known else "leave --mask out",
            code="data.unknown_field",
            known=known,
        )
    with readable(path, f"mask/{name}"):
        dataset = dataset_at(mask, name, path)
        if not hasattr(dataset, "dtype") or dataset.dtype.kind not in "SO":
            raise HDF5.error("not_text", path, f"mask/{name}", "is not a list of names")
        return frozenset(texts_of(dataset, path))


def held_out(file: Any, path: Path) -> frozenset[str]:
    """Names of the episodes in lists for evaluation, such as robomimic's `mask/valid`."""
    mask = member_at(file, "mask")
    names: set[str] = set()
    for name in () if mask is None else mask:
        if split_of(name) == "val":
            with suppress(DataError):  # a broken list says nothing
                names |= masked(file, name, path)
    return frozenset(names)
