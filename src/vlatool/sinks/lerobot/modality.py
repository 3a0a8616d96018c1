"""`meta/modality.json`, which names parts of vectors for GR00T. Source: formats/lerobot 4.3."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlatool.artifacts.lerobot.format import MODALITY_FILE
from vlatool.artifacts.lerobot.recording import LeRobotRecording
from vlatool.sinks.lerobot.features import SetLayout
from vlatool.storage.atomic import write_json
from vlatool.storage.documents import DocumentError, read_json

_CAMERAS = "observation.images."


def modality_of(
    layout: SetLayout, sets: Sequence[LeRobotRecording], fields: Mapping[str, Sequence[str]]
) -> Mapping[str, Any]:
    """Content of the file: that of the sources if they agree, else one of `fields`, if any.

    Args:
        layout: Columns and cameras of the set.
        sets: A recording of each data set that is copied.
        fields: Fields of the sections `state` and `action`; empty if no file is requested.
    """
    stored = [_stored(recording.root) for recording in sets]
    if stored and stored[0] and all(tree == stored[0] for tree in stored):
        return stored[0]
    return _made(layout, fields) if fields else {}


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


def _made(layout: SetLayout, fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Observed and predicted fields as groups, in the columns that hold them."""
    tree: dict[str, Any] = {section: {} for section in fields}
    for section, names in fields.items():
        for name in names:
            column, start = layout.position(name)
            width = layout.field_widths[name]
            if width:
                span = {"start": start, "end": start + width, "original_key": column}
                tree[section][name.replace(".", "_")] = span
    tree["video"] = {
        feature.removeprefix(_CAMERAS): {"original_key": feature}
        for feature in layout.cameras.values()
    }
    tree["annotation"] = {"human.task_description": {"original_key": "task_index"}}
    return tree
