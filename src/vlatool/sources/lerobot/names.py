"""Names of the dimensions of LeRobot vectors, from features or from the groups of GR00T sets.

Source: formats/lerobot 4.2, 4.3.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vlatool.artifacts.lerobot import MODALITY_FILE
from vlatool.findings import Finding
from vlatool.sources.lerobot.findings import LEROBOT
from vlatool.sources.lerobot.meta import Feature, Info
from vlatool.storage.documents import DocumentError, read_json

# Default column of the groups of a section.
_SECTIONS = {"state": "observation.state", "action": "action"}
_NUMBERED = re.compile(r"^(.*?)\d+$")


def with_group_names(root: Path, info: Info, findings: list[Finding]) -> Info:
    """The info, with the names of groups for features whose own names are only numbered."""
    groups: dict[str, dict[int, str]] = {}
    for column, index, name in _group_names(root, findings):
        groups.setdefault(column, {})[index] = name
    named_features = {
        column: _with_names(info.features[column], names)
        for column, names in groups.items()
        if column in info.features
    }
    return replace(info, features={**info.features, **named_features})


def with_known_names(info: Info, known: Mapping[str, tuple[str, ...]]) -> Info:
    """The info, with names that the format knows for features without informative names."""
    named_features = {
        column: replace(feature, names=known[column])
        for column, feature in info.features.items()
        if column in known
        and feature.width == len(known[column])
        and not _are_informative(feature.dimension_names)
    }
    return replace(info, features={**info.features, **named_features})


def _with_names(feature: Feature, names: Mapping[int, str]) -> Feature:
    own_names, width = feature.dimension_names, feature.width
    if width is None or _are_informative(own_names):
        return feature
    default_names = own_names or [str(index) for index in range(width)]
    return replace(
        feature, names=tuple(names.get(index, default_names[index]) for index in range(width))
    )


def _are_informative(names: tuple[str, ...]) -> bool:
    """True if names say more than `motor_0`, `motor_1` and so on."""
    stems = {match[1] if (match := _NUMBERED.match(name)) else name for name in names}
    return len(stems) > 1 or (len(names) == 1 and stems == set(names))


def _group_names(root: Path, findings: list[Finding]) -> Iterator[tuple[str, int, str]]:
    """(column, index of the dimension, name) of all groups in modality.json."""
    path = root / MODALITY_FILE
    try:
        tree = read_json(path) if path.exists() else {}
    except (DocumentError, OSError) as error:
        message = f"{path} cannot be read ({error}); its names are not used"
        findings.append(LEROBOT("bad_modality", message, path=str(path)))
        return
    for section, column in _SECTIONS.items():
        for name, group in _mapping(_mapping(tree).get(section)).items():
            span = _mapping(group)
            start, end = span.get("start"), span.get("end")
            if isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= 10_000:
                group_column = str(span.get("original_key") or column)
                for index in range(start, end):
                    is_scalar = end - start == 1
                    yield group_column, index, name if is_scalar else f"{name}.{index - start}"


def _mapping(value: object) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}
