"""How low-dimensional fields are called on a page: labels, channel names, units.

Source of the names: lbm-data 2.2, 3.9.
"""

import re

from vlatool.pages.layout import Html, escape

_ROTATION = ("r11", "r12", "r13", "r21", "r22", "r23")
_PREFIX = re.compile(r"^(robot__(?:action|actual|desired)__|observation\.)")


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


def _breakable(text: str) -> str:
    return escape(text).replace("__", "__<wbr>").replace("::", "::<wbr>")
