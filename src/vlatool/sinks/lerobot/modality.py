"""`meta/modality.json`, which names parts of vectors for GR00T. Source: formats/lerobot 4.3."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlatool.artifacts.lerobot.format import MODALITY_FILE
from vlatool.artifacts.lerobot.output import numeric_width
from vlatool.artifacts.lerobot.recording import LeRobotRecording
from vlatool.sinks.lerobot.features import SetLayout
from vlatool.storage.atomic import write_json
from vlatool.storage.documents import DocumentError, read_json

_SECTIONS = {"state": "observation.state", "action": "action"}
_CAMERAS = "observation.images."


def modality_of(
    layout: SetLayout, sets: Sequence[LeRobotRecording], *, is_requested: bool
) -> Mapping[str, Any]:
    """Content of the file: that of the sources if they agree, a made one if it is requested."""
    stored = [_stored(recording.root) for recording in sets]
    if stored and stored[0] and all(tree == stored[0] for tree in stored):
        return stored[0]
    return _made(layout) if is_requested else {}


def write_modality(output: Path, tree: Mapping[str, Any]) -> str:
    """Writes the file; returns its name."""
    write_json(output / MODALITY_FILE, dict(tree), indent=4)
    return MODALITY_FILE


def _stored(root: Path) -> Mapping[str, Any]:
    path = root / MODALITY_FILE
    try:
        tree = read_json(path) if path.exists() else {}
    except (DocumentError, OSError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _made(layout: SetLayout) -> dict[str, Any]:
    tree: dict[str, Any] = {"state": {}, "action": {}}
    for section, column in _SECTIONS.items():
        for name, declared in layout.columns.items():
            width = numeric_width(declared)
            if width and (name == column or name.startswith(f"{section}.")):
                tree[section] |= _groups(layout, section, name, width)
    tree["video"] = {
        feature.removeprefix(_CAMERAS): {"original_key": feature}
        for feature in layout.cameras.values()
    }
    tree["annotation"] = {"human.task_description": {"original_key": "task_index"}}
    return tree


def _groups(layout: SetLayout, section: str, column: str, width: int) -> dict[str, Any]:
    """Groups of a column: the fields that it joins, else the column itself."""
    fields = layout.sources.get(column, ())
    if len(fields) < 2:
        return {section: {"start": 0, "end": width, "original_key": column}}
    groups: dict[str, Any] = {}
    start = 0
    for name in fields:
        stop = start + layout.field_widths[name]
        groups[name] = {"start": start, "end": stop, "original_key": column}
        start = stop
    return groups
