"""How low-dimensional fields are called on a page: labels, channel names, units.

Source of the names: lbm-data 2.2, 3.9.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from vlatool.episode import Array
from vlatool.pages.layout import Html, escape

# A page that draws every field of a robot is not read.
MOST_FIELDS = 12
_ROTATION = ("r11", "r12", "r13", "r21", "r22", "r23")
_PREFIX = re.compile(r"^(robot__(?:action|actual|desired)__|observation\.)")
_POSE = re.compile("__(poses|grippers)__")
_NOT_FIELDS = ("original_intrinsics.", "rescaled_intrinsics.", "extrinsics.", "intrinsics.")
_MASKS = ("past_mask", "future_mask")


def channel_names(field: str, width: int) -> list[str]:
    """A name for each channel: axes of positions, elements of rotations, else numbers."""
    plain = field.removesuffix("_relative")
    if width == 3 and plain.endswith("xyz"):
        return ["x", "y", "z"]
    if width == 6 and plain.endswith("rot_6d"):
        return list(_ROTATION)
    return [str(number) for number in range(width)]


def unit(field: str) -> str:
    """The unit where the format fixes one."""
    plain = field.removesuffix("_relative")
    is_length = plain.startswith("robot__") and (
        plain.endswith("__xyz") or ("__grippers__" in plain and plain.endswith("panda_hand"))
    )
    return "m" if is_length else ""


def field_label(field: str) -> Html:
    """The name, its beginning quiet, that may break between its parts."""
    match = _PREFIX.match(field)
    start = match[0] if match else ""
    rest = _breakable(field[len(start) :])
    return Html(f'<span class="quiet">{_breakable(start)}</span>{rest}' if start else rest)


def is_lowdim(name: str, values: Array, rows: int) -> bool:
    """Whether an array of a sample is a field [rows, C], or [rows], of numbers."""
    return (
        values.dtype.kind in "fiu"
        and values.ndim in (1, 2)
        and len(values) == rows
        and values.size > 0
        and not name.startswith(_NOT_FIELDS)
        and name not in _MASKS
    )


def policy_fields(
    known: Iterable[str], actions: Sequence[str], proprioception: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The action and the proprioception fields to draw, at most twelve of each.

    Args:
        known: Fields that are there.
        actions: Configured names; a `_relative` one stands for its field where that is missing.
        proprioception: Configured names.
    """
    names = list(known)
    chosen = [
        _configured(wanted, names) or _named(prefix, names)
        for wanted, prefix in ((actions, "robot__action"), (proprioception, "robot__actual"))
    ]
    if not any(chosen):
        chosen[0] = [name for name in names if "action" in name]
        chosen[1] = [name for name in names if name not in chosen[0]]
    return chosen[0][:MOST_FIELDS], chosen[1][:MOST_FIELDS]


def as_columns(fields: Mapping[str, Array]) -> dict[str, Array]:
    """Fields as [S, C]; those of one value per row get one channel."""
    return {
        name: values[:, None] if values.ndim == 1 else values for name, values in fields.items()
    }


def _configured(wanted: Sequence[str], names: Sequence[str]) -> list[str]:
    known = set(names)
    candidates = (
        name if name in known else name.removesuffix("_relative") for name in map(str, wanted)
    )
    return [name for name in dict.fromkeys(candidates) if name in known]


def _named(prefix: str, names: Sequence[str]) -> list[str]:
    """Fields by the beginning of their name, poses and grippers first."""
    found = [name for name in names if name.startswith(prefix)]
    return sorted(found, key=lambda name: name.endswith("_relative") or not _POSE.search(name))


def _breakable(text: str) -> str:
    return escape(text).replace("__", "__<wbr>").replace("::", "::<wbr>")
