"""Fields of numbers: names of their dimensions, and units.

The options of training data have `dimension_names: {field: [name, ...]}` for the fields whose
source names them; other names are implied by the field.
Source: formats/lbm 2.2; formats/spartan 2.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Names = Mapping[str, Sequence[str]]

DIMENSION_NAMES = "dimension_names"

_RELATIVE = "_relative"
_FIXED: Sequence[tuple[re.Pattern[str], Sequence[str]]] = (
    (re.compile(r"xyz$"), ("x", "y", "z")),
    (re.compile(r"rot_6d$"), ("r11", "r12", "r13", "r21", "r22", "r23")),
    (re.compile(r"^robot__.*__joint_.*::panda$"), [f"joint_{number}" for number in range(1, 8)]),
)


def recorded_names(options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Dimension names in the options of training data; malformed entries are skipped."""
    stored = options.get(DIMENSION_NAMES)
    fields = stored.items() if isinstance(stored, Mapping) else ()
    return {
        str(field): [str(name) for name in names]
        for field, names in fields
        if isinstance(names, list)
    }


def dimension_names(field: str, width: int, recorded: Names) -> list[str]:
    """Names of the `width` dimensions of a field; numbers if no names are known."""
    plain = field.removesuffix(_RELATIVE)
    for names in (recorded.get(field, ()), recorded.get(plain, ())):
        if len(names) == width:
            return list(names)
    for pattern, names in _FIXED:
        if len(names) == width and pattern.search(plain):
            return list(names)
    return [str(number) for number in range(width)]


def dimension_label(field: str, dimension: int, width: int, recorded: Names) -> str:
    """Label of a dimension: `action: left_arm.3`, or `action[3]` if it has no name."""
    name = dimension_names(field, width, recorded)[dimension]
    if name == str(dimension):
        return field if width == 1 else f"{field}[{name}]"
    return f"{field}: {name}"


def unit(field: str) -> str:
    """Unit of a field if the format defines one, else an empty string."""
    plain = field.removesuffix("_relative")
    is_length = plain.startswith("robot__") and (
        plain.endswith("__xyz") or ("__grippers__" in plain and plain.endswith("panda_hand"))
    )
    return "m" if is_length else ""
