"""What an episode stores, and the one role of each thing: the same rules for every format.

A reader lists what it finds as `Stored`, whatever it is, from headers or one row. `assign` gives
each of them a role and a name. Source: formats/raw. Shapes: H, W image, C numbers of a row.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vlatool.episode import Array, Content, Role, StoredPart, UInt8Array
from vlatool.findings import Finding, FindingCodes, info, warning
from vlatool.sources.language import kind_of_name

SMALLEST_SIDE = 24  # pixels; smaller arrays are numbers
WIDEST_FIELD = 256  # numbers of a row
_MOST_LABELS = 64  # distinct values of images that are labels
_LEVELS = 255
_LABELS = re.compile(r"mask|seg|label", re.I)
_SOUND = re.compile(r"(^|[_/.])(audio|mic|microphone|sound)", re.I)
_ACTION = re.compile(r"(^|[_/.])(actions?|commands?|cmd)([_/.\d]|$)", re.I)
# Parts of a path that say nothing about which camera or field it is.
_SAYS_NOTHING = re.compile(
    r"rgb|images?|img|colors?|raw|data|depth|obs|observations?|steps|sensor_data|values?|video"
    r"|image_(raw|rect|color)|compressed|mask|segmentation|labels?",
    re.I,
)
_ORTHONORMAL = 1e-3

Kind = Literal["array", "jpeg", "png", "video", "text", "other"]

LEFT_OUT = FindingCodes(
    "left_out",
    data=info("Stored things that nothing uses."),
    wanted=warning(
        "A camera, an action or a text is not used.",
        "name it in a mapping: vlatool inspect SOURCE --propose mapping.yaml",
    ),
)


@dataclass(frozen=True)
class Stored:
    """One thing that an episode stores.

    Attributes:
        path: Path in the episode, with slashes.
        kind: Numbers or pixels (`array`), rows of encoded images, a video, text, or `other`.
        shape: Shape of one row; () for one number for each row.
        dtype: Name of its dtype, such as `float32`; of encoded images that of the decoded ones.
        rows: Number of rows; None: unknown, or one value for the whole episode.
        name: Name that the format gives it; empty: one that is made from the path.
        note: Of `other`: what it is, as `a point cloud`.
        look: A few rows [N, ...], decoded; called only where header and name do not decide.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...] = ()
    dtype: str = ""
    rows: int | None = None
    name: str = ""
    note: str = ""
    look: Callable[[], Array] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Decision:
    """Role of a stored thing before it has a name.

    Attributes:
        role: The role.
        content: What it holds.
        note: As in `StoredPart`.
        scale: Factor to levels 0 to 255 of float images of a camera, or to millimeters of depth.
        is_sampled: True if sampled rows decided: all episodes take the decision of the first one.
    """

    role: Role
    content: Content
    note: str = ""
    scale: float = 1.0
    is_sampled: bool = False


def decide(stored: Stored) -> Decision:
    """Role of a thing by its kind, shape, dtype and name; sampled rows decide the rest."""
    if stored.kind == "text":
        if kind_of_name(stored.path.rpartition("/")[2]):
            return Decision("language", "text")
        return _left_out("text", "a text that is no instruction", "language: {KIND: PATH}")
    if stored.kind == "video":
        return Decision("camera", "images")
    if stored.kind in ("jpeg", "png"):
        return _encoded_role(stored)
    if stored.kind == "other" or np.dtype(stored.dtype).kind not in "fiub":
        return _left_out("other", stored.note or f"values of {stored.dtype}")
    size = math.prod(stored.shape)
    if size == 0 or stored.rows == 0:
        return _left_out("other", "it is empty")
    if image_sides(stored.shape) is not None:
        return _image_role(stored)
    if len(stored.shape) == 2 and stored.shape[0] >= SMALLEST_SIDE and 3 <= stored.shape[1] <= 6:
        return _left_out("other", f"points {list(stored.shape)}")
    if size <= WIDEST_FIELD:
        return Decision("field", _numbers(stored.path), _pose_note(stored))
    if _SOUND.search(stored.path):
        return _left_out("other", f"sound, {size} samples a row")
    return _left_out(_numbers(stored.path), f"{size} numbers a row", "fields: {NAME: PATH}")


def _left_out(content: Content, reason: str, takes: str = "") -> Decision:
    taken = f"; a mapping takes it with {takes}" if takes else ""
    return Decision("left_out", content, reason + taken)


def _numbers(path: str) -> Content:
    return "actions" if is_action(path) else "numbers"


def is_action(path: str) -> bool:
    """True if a name says that it is a command."""
    return _ACTION.search(path) is not None


def image_sides(shape: Sequence[int]) -> tuple[int, int, int, bool] | None:
    """(height, width, channels, True if channels come first) of a row; None if it is no image."""
    if len(shape) == 2:
        sides, channels, is_first = tuple(shape), 1, False
    elif len(shape) == 3 and shape[-1] in (1, 2, 3, 4) and min(shape[:2]) >= SMALLEST_SIDE:
        sides, channels, is_first = tuple(shape[:2]), shape[-1], False
    elif len(shape) == 3 and shape[0] in (1, 2, 3, 4):
        sides, channels, is_first = tuple(shape[1:]), shape[0], True
    else:
        return None
    return (*sides, channels, is_first) if min(sides) >= SMALLEST_SIDE else None


def _encoded_role(stored: Stored) -> Decision:
    if stored.dtype == "uint16":
        return Decision("depth", "images", "16-bit PNG: depth in millimeters")
    if _LABELS.search(stored.path) and image_sides(stored.shape or (0, 0, 3)) is not None:
        is_single = len(stored.shape) == 2
        if is_single and stored.kind == "png":
            return Decision("labels", "images", "labels by its name")
    return Decision("camera", "images")


def _image_role(stored: Stored) -> Decision:
    sides = image_sides(stored.shape)
    assert sides is not None
    channels, dtype = sides[2], np.dtype(stored.dtype)
    what = f"images {list(stored.shape)} of {dtype}"
    if channels == 2:
        return _left_out("images", f"{what}, with two channels")
    if channels >= 3:
        if dtype == np.uint8:
            alpha = "; alpha is cut" if channels == 4 else ""
            return Decision("camera", "images", alpha.lstrip("; "))
        if dtype.kind == "f" and channels == 3:
            return _float_camera(stored, what)
        return _left_out("images", f"{what}, neither uint8 nor float with three channels")
    if dtype == np.uint8:
        return _one_channel(stored)
    if dtype == np.uint16:
        return Decision("depth", "images", "depth in millimeters, by its type uint16")
    if dtype.kind == "f":
        note = f"depth in meters, by its type {dtype}"
        return Decision("depth", "images", note, scale=1000.0)
    return Decision("labels", "images", f"labels, by its type {dtype}")


def _float_camera(stored: Stored, what: str) -> Decision:
    values = stored.look() if stored.look else np.empty(0)
    low, high = _range(values)
    if not (low >= 0 and high <= _LEVELS):
        reason = f"{what}, with values from {low:.3g} to {high:.3g}"
        return Decision("left_out", "images", reason, is_sampled=True)
    scale = float(_LEVELS) if 0 < high <= 1 else 1.0
    note = "float images from 0 to " + ("1" if scale > 1 else "255")
    return Decision("camera", "images", note, scale, is_sampled=True)


def _range(values: Array) -> tuple[float, float]:
    """Smallest and largest value; (-inf, inf) if one is not finite or there are none."""
    if not values.size or not np.isfinite(values).all():
        return -np.inf, np.inf
    return float(values.min()), float(values.max())


def _one_channel(stored: Stored) -> Decision:
    if _LABELS.search(stored.path):
        return Decision("labels", "images", "labels by its name")
    values = np.unique(stored.look()) if stored.look else np.empty(0)
    # Noise and shading of a camera fill neighboring levels.
    is_sparse = 1 < len(values) <= _MOST_LABELS and bool((np.diff(values.astype(int)) > 1).all())
    if is_sparse:
        note = f"labels by its {len(values)} distinct values"
        return Decision("labels", "images", note, is_sampled=True)
    return Decision("camera", "images", "gray", is_sampled=True)


def _pose_note(stored: Stored) -> str:
    if stored.shape not in ((3, 3), (4, 4)) or stored.look is None:
        return ""
    rotations = np.asarray(stored.look(), np.float64)[:, :3, :3]
    products = rotations @ rotations.transpose(0, 2, 1)
    is_rotation = np.abs(products - np.eye(3)).max(initial=np.inf) < _ORTHONORMAL
    return "pose matrix, row by row" if is_rotation else ""


def matrix_names(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the numbers of a pose matrix [3, 3] or [4, 4], row by row."""
    rows, columns = shape
    names = [f"r{row}{column}" for row in range(rows) for column in range(columns)]
    if rows == 4:
        for row, axis in enumerate("xyz"):
            names[4 * row + 3] = axis
    return tuple(names)


def assign(
    stored: Sequence[Stored], decided: Mapping[str, Decision] | None = None
) -> tuple[dict[str, Decision], tuple[StoredPart, ...]]:
    """Decision by path, and the named part, of each thing; two of a role never have one name.

    `decided`: decisions of the first episode, which later ones take.
    """
    decisions: dict[str, Decision] = {}
    for each in stored:
        known = (decided or {}).get(each.path)
        decisions[each.path] = decide(each) if known is None else known
    names: dict[str, str] = {}
    for role in ("camera", "depth", "labels", "field"):
        of_role = [each for each in stored if decisions[each.path].role == role]
        names |= part_names(of_role, is_short=role != "field")
    parts: list[StoredPart] = []
    for each in stored:
        decision = decisions[each.path]
        name = names.get(each.path, "")
        if decision.role == "language":
            name = kind_of_name(each.path.rpartition("/")[2])
        parts.append(StoredPart(each.path, decision.role, name, decision.content, decision.note))
    return decisions, tuple(parts)


def part_names(stored: Sequence[Stored], *, is_short: bool) -> dict[str, str]:
    """Path to a name that no other of them has: the shortest end of the path that says something.

    Without `is_short` the whole path, with dots for slashes.
    """
    candidates: dict[str, Iterator[str]] = {}
    names: dict[str, str] = {}
    for each in stored:
        whole = each.path.replace("/", "_" if is_short else ".")
        options = short_names(each.path) if is_short else iter(())
        first = [each.name] if each.name else []
        candidates[each.path] = iter([*first, *options, whole, each.path])
        names[each.path] = next(candidates[each.path])
    used: dict[str, int] = {}
    while doubled := _doubled(names):
        for path in doubled:
            longer = next(candidates[path], "")
            if not longer:
                used[names[path]] = number = used.get(names[path], 1) + 1
                longer = f"{names[path]}-{number}"
            names[path] = longer
    return names


def _doubled(names: Mapping[str, str]) -> list[str]:
    """Paths whose name another path has."""
    by_name: dict[str, list[str]] = {}
    for path, name in names.items():
        by_name.setdefault(name, []).append(path)
    return [path for paths in by_name.values() if len(paths) > 1 for path in paths]


def short_names(path: str) -> Iterator[str]:
    """Ends of a path that may name a camera, the shortest first: `front`, `front_rgb`, ..."""
    parts = [part for part in path.split("/") if part]
    speaking = [n for n, part in enumerate(parts) if not _SAYS_NOTHING.fullmatch(part)]
    last = len(parts) - 1
    if speaking:
        yield parts[speaking[-1]]
        last = speaking[-1]
    for first in range(last, -1, -1):
        yield "_".join(parts[first:])


def left_out_findings(episode: str, parts: Iterable[StoredPart]) -> list[Finding]:
    """One line for all that an episode stores and nothing uses; a warning if it may be wanted."""
    left = [part for part in parts if part.role == "left_out"]
    if not left:
        return []
    code = "wanted" if any(part.is_loss for part in left) else "data"
    return [LEFT_OUT(code, f"{episode}: left out: {left_out_text(left)}", episode=episode)]


def left_out_text(parts: Iterable[StoredPart]) -> str:
    """`PATH (why), ...` of parts that are left out, those that may be wanted first."""
    ordered = sorted(parts, key=lambda part: not part.is_loss)
    return ", ".join(f"{part.path} ({part.note})" if part.note else part.path for part in ordered)


# Pixels


def rgb_image(row: Array, scale: float = 1.0) -> UInt8Array:
    """uint8 [H, W, 3] of a stored row: gray, color or color with alpha, channels first or last.

    `scale` leads from float values to levels. Raises ValueError if values are not levels.
    """
    sides = image_sides(row.shape)
    if sides is None:
        raise ValueError(f"an array {list(row.shape)} is no image")
    _, _, channels, is_first = sides
    image = row.transpose(1, 2, 0) if is_first else row.reshape(*sides[:2], channels)
    if image.dtype != np.uint8:
        levels = np.round(image.astype(np.float64) * scale)
        if not ((levels >= 0) & (levels <= _LEVELS)).all():
            raise ValueError(f"values of {image.dtype} are no levels from 0 to {_LEVELS}")
        image = levels.astype(np.uint8)
    if channels == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def depth_image(row: Array, scale: float = 1.0) -> Array:
    """Depth uint16 [H, W] in millimeters; what is negative, not finite or too far is 0: unknown."""
    values = row.reshape(image_sides(row.shape)[:2] if image_sides(row.shape) else row.shape)
    if values.dtype == np.uint16 and scale == 1.0:
        return values
    millimeters = np.round(values.astype(np.float64) * scale)
    is_known = np.isfinite(millimeters) & (millimeters >= 0) & (millimeters < 2**16)
    return np.where(is_known, millimeters, 0).astype(np.uint16)


def label_image(row: Array) -> Array:
    """Labels [H, W], unsigned integers of 16 bits; ValueError if one does not fit."""
    sides = image_sides(row.shape)
    values = row.reshape(sides[:2] if sides else row.shape)
    if (
        values.dtype.kind not in "iub"
        or values.min(initial=0) < 0
        or values.max(initial=0) >= 2**16
    ):
        raise ValueError(f"labels of {values.dtype} are not from 0 to {2**16 - 1}")
    return values.astype(np.uint16)
