"""Decides what each stored thing of an episode is used as, by the same rules for every format.

A reader lists everything that it finds as `Stored`, from headers or from one row. `assign` gives
each thing exactly one role, and a name. Shapes: H, W image, C numbers of a row.
"""

import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg

from vlatool.episode import Array, Content, Role, StoredPart, UInt8Array
from vlatool.findings import Finding, FindingCodes, info, warning
from vlatool.media.images import image_info
from vlatool.recordings.language import kind_of_name
from vlatool.report.text import few_text

SMALLEST_SIDE = 24  # pixels; smaller arrays are numbers
WIDEST_FIELD = 256  # numbers of a row
_EMBEDDING = re.compile(r"embedding", re.I)
_WIDEST_EMBEDDING = 4096
_MOST_LABELS = 64  # distinct values of images that are labels
_LEVELS = 255
_CHANNELS = (1, 2, 3, 4)
_FARTHEST = 100.0  # meters; greater depths are millimeters
_DEPTH = re.compile(r"depth", re.I)
_LABELS = re.compile(r"mask|seg|label|semantic|instance", re.I)
# Words of a camera whose colors stand for labels.
_LABEL_WORD = re.compile(
    r"(^|[_/.-])(seg|segm|segmentation|semantics?|instances?|masks?|labels?)([_/.-]|$)", re.I
)
# Texts that a recorder writes for itself.
_METADATA = re.compile(r"(^|[_/@.])(path|folder\w*|file\w*|uuid|id|date|user|version)$", re.I)
_SOUND = re.compile(r"(^|[_/.])(audio|mic|microphone|sound)", re.I)
_ACTION = re.compile(r"(^|[_/.])(actions?|commands?|cmd)([_/.\d]|$)", re.I)
_PAST = re.compile(r"(^|[_/.])(prev|previous|last|past)_?[^/]*$", re.I)
# Names of times: a word of its own such as `t`, or an end such as `cam_timestamp_ns`.
TIME = re.compile(
    r"%?(time|t|ts|secs?|seconds|(.*[_./])?(time_?stamps?|stamps?|times?))(_?(s|secs?|ms|us|ns))?",
    re.I,
)
# Parts of a path that say nothing about which camera or field it is.
_SAYS_NOTHING = re.compile(
    r"rgb|images?|img|colors?|raw|data|depth|obs|observations?|steps|sensor_data|values?|video"
    r"|image_(raw|rect|color)|compressed|mask|segmentation|labels?",
    re.I,
)
_KIND_WORDS = re.compile(
    r"rgb|images?|img|colors?|depth|mask|seg|segmentation|labels?|instance|semantic|raw|data|obs"
    r"|observations?"
)
_ORTHONORMAL = 1e-3
_MOST_PATHS = 12  # that a line names
# Meaning of a text that says whether an episode succeeded, in lower case.
SUCCESS_TEXTS = {
    **dict.fromkeys(("true", "yes", "1", "success", "successful", "succeeded"), True),
    **dict.fromkeys(("false", "no", "0", "failure", "failed", "fail"), False),
}
JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
RIFF_START = b"RIFF"
_PNG_HEAD = struct.Struct(">8s8s2I2B")
_PNG_GRAY = (0, 4)

Kind = Literal["array", "jpeg", "png", "video", "text", "other"]

LEFT_OUT = FindingCodes(
    "left_out",
    data=info("Some stored data are not used."),
    wanted=warning(
        "A camera, an action or a text is not used.",
        "if you need it, name it in a mapping: vlatool inspect SOURCE --propose mapping.yaml",
    ),
)


@dataclass(frozen=True)
class Stored:
    """One thing that an episode stores, as a reader lists it.

    Attributes:
        path: Path in the episode, with slashes.
        kind: `array` (numbers or pixels), `jpeg` or `png` (encoded images), `video`, `text`, or
            `other`.
        shape: Shape of one row; () if a row is a single number.
        dtype: Name of its dtype, such as `float32`; for encoded images, of the decoded pixels.
        rows: Number of rows; None if unknown, or if the episode has a single value.
        name: Name that the format gives it; empty: the name is made from the path.
        note: For the kind `other`: what it is, such as `a point cloud`.
        role: Role that the format itself gives it; None: kind, type, shape and name decide.
        names: Names of the numbers of a row; empty if it has none.
        look: Returns a few decoded rows [N, ...]. It is only called if the header and the name do
            not decide.
    """

    path: str
    kind: Kind
    shape: tuple[int, ...] = ()
    dtype: str = ""
    rows: int | None = None
    name: str = ""
    note: str = ""
    role: Role | None = None
    names: tuple[str, ...] = ()
    look: Callable[[], Array] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Assignment:
    """Role of a stored thing that has no name yet.

    Attributes:
        role: The role.
        content: What it holds.
        note: As in `StoredPart`.
        scale: Factor from float images to levels 0 to 255, or from depth to millimeters.
        is_sampled: True if values of some rows decided. All episodes then follow the first one.
    """

    role: Role
    content: Content
    note: str = ""
    scale: float = 1.0
    is_sampled: bool = False


def decide(stored: Stored) -> Assignment:
    """Decides a role by kind, shape, dtype and name, and by a few rows if these do not decide."""
    if stored.role is not None:
        return Assignment(stored.role, _content(stored), stored.note)
    if stored.kind == "text":
        if text_kind(stored.path):
            return Assignment("language", "text")
        content: Content = "other" if _METADATA.search(stored.path) else "text"
        return _left_out(content, "a text, but not an instruction", "language: {KIND: PATH}")
    if says_labels(stored.path) and _is_color(stored):
        return _left_out("images", "labels as colors", "cameras: {NAME: {path: PATH}}")
    if stored.kind == "video":
        return Assignment("camera", "images")
    if stored.kind in ("jpeg", "png"):
        return _encoded_role(stored)
    if stored.kind == "other" or np.dtype(stored.dtype).kind not in "fiub":
        return _left_out("other", stored.note or f"values of {stored.dtype}")
    shape = stored.shape
    size = math.prod(shape)
    if size == 0 or stored.rows == 0:
        return _left_out("other", "it is empty")
    if image_shape(shape) is not None and not is_action(stored.path):
        return _image_role(stored)
    if len(shape) == 4 and image_shape(shape[1:]) is not None:
        return _left_out("images", f"{shape[0]} images per row")
    if len(shape) == 2 and shape[0] >= SMALLEST_SIDE and 3 <= shape[1] <= 6:
        return _left_out("other", f"points {list(shape)}")
    widest = _WIDEST_EMBEDDING if _EMBEDDING.search(stored.path) else WIDEST_FIELD
    if size <= widest:
        is_matrix = shape in ((3, 3), (4, 4))
        note = _pose_note(stored) if is_matrix else ""
        return Assignment("field", _numbers(stored.path), note, is_sampled=is_matrix)
    if _SOUND.search(stored.path):
        return _left_out("other", f"sound, {size} samples per row")
    return _left_out(_numbers(stored.path), f"{size} numbers per row", "fields: {NAME: PATH}")


def says_labels(path: str) -> bool:
    """True if a name says that images are segmentation labels, such as `seg_instance_id`."""
    return _LABEL_WORD.search(path) is not None


def _is_color(stored: Stored) -> bool:
    """True for videos and for images with colors."""
    if stored.kind in ("jpeg", "png"):
        return len(stored.shape) == 3
    if stored.kind == "array":
        form = image_shape(stored.shape)
        return form is not None and form.channels >= 3
    return stored.kind == "video"


def text_kind(path: str) -> str:
    """Returns the kind of annotation that a path or attribute names; empty if it names none."""
    return kind_of_name(re.split("[/@]", path)[-1].removesuffix(".txt"))


def _left_out(content: Content, reason: str, takes: str = "") -> Assignment:
    if takes:
        reason += f"; to use it, write {takes} in a mapping"
    return Assignment("left_out", content, reason)


def _content(stored: Stored) -> Content:
    """What a thing holds whose role the format gives."""
    if stored.kind in ("jpeg", "png", "video") or image_shape(stored.shape) is not None:
        return "images"
    if stored.kind == "other" and stored.role == "left_out":
        return "unusable"
    return _numbers(stored.path)


def _numbers(path: str) -> Content:
    return "actions" if is_action(path) else "numbers"


def is_action(path: str) -> bool:
    """True if a name says that it is a command, and not an earlier one such as `prev_action`."""
    return _ACTION.search(path) is not None and _PAST.search(path) is None


class ImageShape(NamedTuple):
    """Form of the pixels of a row."""

    height: int
    width: int
    channels: int
    is_channels_first: bool


def image_shape(shape: Sequence[int], smallest: int = SMALLEST_SIDE) -> ImageShape | None:
    """Returns the form of an image of this shape; None if a side is too short."""
    form: ImageShape | None = None
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 2:
        form = ImageShape(shape[0], shape[1], 1, is_channels_first=False)
    elif len(shape) == 3 and shape[-1] in _CHANNELS and min(shape[:2]) >= smallest:
        form = ImageShape(shape[0], shape[1], shape[2], is_channels_first=False)
    elif len(shape) == 3 and shape[0] in _CHANNELS:
        form = ImageShape(shape[1], shape[2], shape[0], is_channels_first=True)
    if form is None or min(form.height, form.width) < smallest:
        return None
    return form


def image_size(shape: Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) of an image of any size; (0, 0) if the shape is no image."""
    form = image_shape(shape, smallest=1)
    return (form.height, form.width) if form else (0, 0)


def encoded_thing(path: str, data: bytes, rows: int | None = None) -> Stored:
    """Describes rows of encoded images by `data`, the first of them."""
    if data.startswith(RIFF_START):
        with suppress(ValueError):
            info = image_info(data)
            return Stored(path, "jpeg", (info.height, info.width, 3), "uint8", rows)
    if data.startswith(PNG_START) and len(data) >= _PNG_HEAD.size:
        *_, width, height, bits, color = _PNG_HEAD.unpack_from(data)
        shape = (height, width) if color in _PNG_GRAY else (height, width, 3)
        return Stored(path, "png", shape, f"uint{max(bits, 8)}", rows)
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # reading a frame says so
        return Stored(path, "jpeg", (0, 0, 3), "uint8", rows)
    channels = () if colors == "Gray" else (3,)
    return Stored(path, "jpeg", (int(height), int(width), *channels), "uint8", rows)


def is_encoded(data: bytes) -> bool:
    """True for the start of a JPEG, PNG or WebP file."""
    is_webp = data.startswith(RIFF_START) and data[8:12] == b"WEBP"
    return data.startswith((JPEG_START, PNG_START)) or is_webp


def _encoded_role(stored: Stored) -> Assignment:
    is_single = len(stored.shape) == 2
    if is_single and stored.dtype == "uint16":
        return Assignment("depth", "images", "depth in millimeters, 16-bit PNG")
    if is_single and stored.kind == "png" and _LABELS.search(stored.path):
        return Assignment("labels", "images", "labels, by its name")
    return Assignment("camera", "images")


def _image_role(stored: Stored) -> Assignment:
    form = image_shape(stored.shape)
    assert form is not None, "the caller has checked it"
    channels = form.channels
    dtype = np.dtype(stored.dtype)
    what = f"images {list(stored.shape)} of {dtype}"
    if channels == 2:
        return _left_out("images", f"{what}, with two channels")
    if channels >= 3:
        if dtype == np.uint8:
            return Assignment("camera", "images", "alpha is cut" if channels == 4 else "")
        if dtype.kind == "f" and channels == 3:
            return _float_camera(stored, what)
        return _left_out("images", f"{what}, which are neither uint8 nor float RGB")
    if dtype == np.uint8:
        return _one_channel(stored)
    if dtype == np.uint16:
        return Assignment("depth", "images", "depth in millimeters, by its type uint16")
    if dtype.kind == "f":
        return _float_depth(stored, dtype)
    if _DEPTH.search(stored.path) and dtype != np.bool_:
        return Assignment("depth", "images", f"depth in millimeters, by its type {dtype}")
    return _labels(stored, dtype)


def _float_depth(stored: Stored, dtype: np.dtype) -> Assignment:
    """Depth in meters, or in millimeters where sampled rows are too far for meters."""
    values = stored.look() if stored.look else np.empty(0)
    known = values[np.isfinite(values)]
    if len(known) and np.median(known) > _FARTHEST:
        note = "depth in millimeters, by its values"
        return Assignment("depth", "images", note, is_sampled=True)
    note = f"depth in meters, by its type {dtype}"
    return Assignment("depth", "images", note, scale=1000.0, is_sampled=True)


def _labels(stored: Stored, dtype: np.dtype) -> Assignment:
    """Labels, if the sampled rows fit 16 bits."""
    if dtype != np.bool_ and stored.look is not None:
        values = stored.look()
        if values.min(initial=0) < 0 or values.max(initial=0) >= 2**16:
            reason = f"labels from {values.min()} to {values.max()} do not fit 16 bits"
            return Assignment("left_out", "images", reason, is_sampled=True)
    return Assignment("labels", "images", f"labels, by its type {dtype}", is_sampled=True)


def _float_camera(stored: Stored, what: str) -> Assignment:
    values = stored.look() if stored.look else np.empty(0)
    low = -np.inf
    high = np.inf
    if values.size and np.isfinite(values).all():
        low = float(values.min())
        high = float(values.max())
    if not (low >= 0 and high <= _LEVELS):
        reason = f"{what}, with values from {low:.3g} to {high:.3g}"
        return Assignment("left_out", "images", reason, is_sampled=True)
    scale = float(_LEVELS) if 0 < high <= 1 else 1.0
    note = "float images from 0 to " + ("1" if scale > 1 else "255")
    return Assignment("camera", "images", note, scale, is_sampled=True)


def _one_channel(stored: Stored) -> Assignment:
    if _LABELS.search(stored.path):
        return Assignment("labels", "images", "labels, by its name")
    values = np.unique(stored.look()) if stored.look else np.empty(0)
    # Noise and shading of a camera fill neighboring levels.
    is_sparse = 1 < len(values) <= _MOST_LABELS and bool((np.diff(values.astype(int)) > 1).all())
    if is_sparse:
        note = f"labels, because it has only {len(values)} distinct values"
        return Assignment("labels", "images", note, is_sampled=True)
    return Assignment("camera", "images", "gray", is_sampled=True)


def _pose_note(stored: Stored) -> str:
    if stored.look is None:
        return ""
    rotations = np.asarray(stored.look(), np.float64)[:, :3, :3]
    products = rotations @ rotations.transpose(0, 2, 1)
    is_rotation = np.abs(products - np.eye(3)).max(initial=np.inf) < _ORTHONORMAL
    return "pose matrix, row by row" if is_rotation else ""


def decide_as(role: Role, stored: Stored) -> Assignment:
    """Gives a thing the role that a mapping says; ValueError if its type or shape do not fit."""
    natural = decide(stored)
    if natural.role == role or (role == "camera" and stored.kind in ("jpeg", "video")):
        return Assignment(role, "images", scale=natural.scale)
    is_array = stored.kind == "array" and np.dtype(stored.dtype).kind in "fiub"
    sides = image_shape(stored.shape, smallest=1) if is_array else None
    what = f"{stored.path} holds {stored.dtype or stored.kind} {list(stored.shape)}"
    if sides is None and stored.kind != "png":
        raise ValueError(f"{what}, which are no images")
    if role != "camera" and (stored.kind == "png" or is_array):
        is_single = sides.channels == 1 if sides is not None else len(stored.shape) == 2
        if not is_single:
            raise ValueError(f"{what}; {role} must have one channel")
    if role == "camera" and is_array:
        if sides is None or sides.channels == 2 or stored.dtype == "uint16":
            raise ValueError(f"{what}, which are no color or gray images")
        if np.dtype(stored.dtype).kind == "f":
            decision = _float_camera(stored, what)
            if decision.role != "camera":
                raise ValueError(decision.note)
            return decision
    is_meters = role == "depth" and is_array and np.dtype(stored.dtype).kind == "f"
    return Assignment(role, "images", scale=1000.0 if is_meters else 1.0)


def matrix_names(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the numbers of a pose matrix [3, 3] or [4, 4], row by row."""
    rows, columns = shape
    names: list[str] = []
    for row in range(rows):
        for column in range(columns):
            is_position = rows == 4 and column == 3 and row < 3
            names.append("xyz"[row] if is_position else f"r{row}{column}")
    return tuple(names)


def assign(
    stored: Sequence[Stored],
    decided: Mapping[str, Assignment],
    known_names: Mapping[str, str],
) -> tuple[dict[str, Assignment], tuple[StoredPart, ...]]:
    """Gives each thing a role and a name; two things of one role never get the same name.

    Returns the assignments by path, and the named parts. `decided` and `known_names` are the
    assignments and names of the first episodes by path, which later episodes follow.
    """
    decisions: dict[str, Assignment] = {}
    for thing in stored:
        decisions[thing.path] = decided.get(thing.path) or decide(thing)
    names: dict[str, str] = {}
    for role in ("camera", "depth", "labels", "field"):
        of_role = [thing for thing in stored if decisions[thing.path].role == role]
        names |= part_names(of_role, known_names, is_short=role != "field")
    _pair_with_cameras(stored, decisions, names)
    parts: list[StoredPart] = []
    for thing in stored:
        decision = decisions[thing.path]
        name = names.get(thing.path, "")
        if decision.role == "language":
            name = text_kind(thing.path) or "original"
        parts.append(StoredPart(thing.path, decision.role, name, decision.content, decision.note))
    return decisions, tuple(parts)


def sampled_decisions(
    stored: Sequence[Stored], numbers: Callable[[Stored], Array]
) -> dict[str, Assignment]:
    """Returns the assignments that depend on values of one episode; all episodes follow them.

    `numbers` reads all rows of a field, to find fields that are NaN throughout.
    """
    sampled: dict[str, Assignment] = {}
    for thing in stored:
        decision = decide(thing)
        is_float = decision.role == "field" and np.dtype(thing.dtype).kind == "f"
        may_be_nan = is_float and thing.look is not None and np.isnan(thing.look()).all()
        if may_be_nan and np.isnan(numbers(thing)).all():
            decision = Assignment("left_out", "unusable", "NaN throughout", is_sampled=True)
        if decision.is_sampled:
            sampled[thing.path] = decision
    return sampled


def _pair_with_cameras(
    stored: Sequence[Stored], decisions: Mapping[str, Assignment], names: dict[str, str]
) -> None:
    """Gives depth and labels the name of the only camera that is called as they are."""
    paths: dict[tuple[Role, str], list[str]] = {}  # by role and stem
    for thing in stored:
        key = (decisions[thing.path].role, _stem(thing.path))
        paths.setdefault(key, []).append(thing.path)
    for (role, stem), same in paths.items():
        cameras = paths.get(("camera", stem), [])
        if role in ("depth", "labels") and len(same) == 1 and len(cameras) == 1:
            names[same[0]] = names[cameras[0]]


def _stem(path: str) -> str:
    """What a path says besides the kind of its images."""
    words = re.split(r"[_/.\-]+", path.lower())
    return " ".join(word for word in words if not _KIND_WORDS.fullmatch(word))


def part_names(
    stored: Sequence[Stored], known: Mapping[str, str], *, is_short: bool
) -> dict[str, str]:
    """Gives each path a unique name: the shortest end of the path that says what it is.

    Without `is_short`, the name is the whole path with dots for slashes. Short names are unique in
    lower case, too, because loaders compare names in shards in lower case.
    """
    names: dict[str, str] = {}
    candidates: dict[str, Iterator[str]] = {}
    for thing in stored:
        if thing.path in known:
            names[thing.path] = known[thing.path]
        else:
            candidates[thing.path] = _candidates(thing, is_short=is_short)
            names[thing.path] = next(candidates[thing.path])
    key = str.lower if is_short else str
    used: dict[str, int] = {}
    while True:
        by_name: dict[str, list[str]] = {}
        for path, name in names.items():
            by_name.setdefault(key(name), []).append(path)
        is_done = True
        for name, paths in by_name.items():
            if len(paths) == 1:
                continue
            for path in paths:
                if path not in candidates:
                    continue
                is_done = False
                longer = next(candidates[path], "")
                if not longer:
                    used[name] = used.get(name, 1) + 1
                    longer = f"{names[path]}-{used[name]}"
                names[path] = longer
        if is_done:
            return names


def _candidates(thing: Stored, *, is_short: bool) -> Iterator[str]:
    """Names of a thing, by preference."""
    if thing.name:
        yield thing.name
    if is_short:
        yield from short_names(thing.path)
        yield thing.path.replace("/", "_")
    else:
        yield thing.path.replace("/", ".")
        yield thing.path


def short_names(path: str) -> Iterator[str]:
    """Yields names that a path may give a camera: `front`, `obs_front`, `front_rgb`, ..."""
    parts = [part for part in path.split("/") if part]
    start = len(parts) - 1  # the last part that says something
    for number, part in enumerate(parts):
        if not _SAYS_NOTHING.fullmatch(part):
            start = number
    for last in (start, len(parts) - 1):
        for first in range(start, -1, -1):
            yield "_".join(parts[first : last + 1])


def left_out_findings(episode: str, parts: Iterable[StoredPart]) -> list[Finding]:
    """Returns one finding for everything that is left out; a warning if you may need it."""
    left = [part for part in parts if part.role == "left_out"]
    if not left:
        return []
    code = "wanted" if any(part.is_loss for part in left) else "data"
    return [LEFT_OUT(code, f"{episode}: left out: {left_out_text(left)}", episode=episode)]


def left_out_text(parts: Iterable[StoredPart]) -> str:
    """Lists left-out parts as `PATH, PATH (why), ...`; parts that you may need come first."""
    by_reason: dict[tuple[bool, str], list[str]] = {}
    for part in sorted(parts, key=lambda part: not part.is_loss):
        by_reason.setdefault((part.is_loss, part.note), []).append(part.path)
    texts: list[str] = []
    for (_, note), paths in by_reason.items():
        texts.append(f"{few_text(paths, _MOST_PATHS)} ({note})")
    return "; ".join(texts)


# Pixels


def rgb_image(row: Array, scale: float = 1.0) -> UInt8Array:
    """Turns a stored row into an image uint8 [H, W, 3].

    The row may be gray, color or color with alpha, with channels first or last. Values times
    `scale` are levels; raises ValueError if they are not from 0 to 255.
    """
    while row.ndim > 3 and row.shape[0] == 1:
        row = row[0]
    form = image_shape(row.shape, smallest=1)
    if form is None:
        raise ValueError(f"an array of shape {list(row.shape)} is no image")
    if form.is_channels_first:
        image = row.transpose(1, 2, 0)
    else:
        image = row.reshape(form.height, form.width, form.channels)
    if image.dtype != np.uint8:
        levels = np.round(image.astype(np.float64) * scale)
        if not ((levels >= 0) & (levels <= _LEVELS)).all():
            raise ValueError(f"some values ({image.dtype}) are not from 0 to {_LEVELS}")
        image = levels.astype(np.uint8)
    if form.channels == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[..., :3])


def depth_image(row: Array, scale: float = 1.0) -> Array:
    """Turns a stored row into depth uint16 [H, W] in millimeters.

    Values that are negative, not finite or above 65.5 m become 0, which means unknown.
    """
    sides = image_shape(row.shape, smallest=1)
    values = row if sides is None else row.reshape(sides.height, sides.width)
    if values.dtype == np.uint16 and scale == 1.0:
        return values
    millimeters = np.round(values.astype(np.float64) * scale)
    is_known = np.isfinite(millimeters) & (millimeters >= 0) & (millimeters < 2**16)
    return np.where(is_known, millimeters, 0).astype(np.uint16)


def label_image(row: Array) -> Array:
    """Turns a stored row into labels uint16 [H, W]; ValueError if a label does not fit."""
    sides = image_shape(row.shape)
    values = row if sides is None else row.reshape(sides.height, sides.width)
    is_whole = values.dtype.kind in "iub"
    if not is_whole or values.min(initial=0) < 0 or values.max(initial=0) >= 2**16:
        raise ValueError(f"some labels ({values.dtype}) are not from 0 to {2**16 - 1}")
    return values.astype(np.uint16)
