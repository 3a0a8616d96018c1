"""Folders of raw windows: a file of lines and a folder of images per episode, and a manifest.

A line holds past images, actions, future images and the text of the conversation. Published
folders have no manifest.

Legend: P images up to the anchor, Q images after it, T actions, A values of an action.
Source: reference/future-vla 1.1, 1.4.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from vlatool.datasets.codes.layout import IMAGES_NAME
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.jobs.record import read_valid_record
from vlatool.media.lines import LINES_SUFFIX, first_line, lines_index_path, read_lines
from vlatool.media.tar import INDEX_SUFFIX, read_index
from vlatool.storage.documents import parse_json
from vlatool.storage.manifest import Count, ManifestType
from vlatool.transforms.geometry import ResizeFilter, ResizeMethod

Kind = Literal["vla", "wm"]

DATA_NAME = "data"
# Folder of the samples that are built from the windows, an output of its own.
SAMPLES_NAME = "samples"
EPISODE_PREFIX = "episode_"
MANIFEST_NAME = "manifest.json"

# Patterns of all files that vlatool writes there; other files are not touched.
OWNED_FILES = (
    f"{DATA_NAME}/episode_*{LINES_SUFFIX}",
    f"{DATA_NAME}/episode_*{INDEX_SUFFIX}",
    f"{IMAGES_NAME}/episode_*/*.png",
    MANIFEST_NAME,
)

IMAGE = "<image>"
ACTION = "<action>"
FUTURE_IMAGE = "<Recimage>"
# Tags that later stages search for; an instruction must not contain them.
RESERVED = (IMAGE, ACTION, FUTURE_IMAGE, "<Act>", "</Act>", "<Rec>", "</Rec>")

_TASK = "Task: "
# After the instruction; before the future images. Both answers end with a full stop.
_QUESTIONS: Mapping[Kind, str] = {
    "vla": "\n\nBased on the observation, what action should be executed?",
    "wm": "\n\nIf we execute the action<Act><action></Act>, what will be the resulting state?",
}
_ANSWERS: Mapping[Kind, str] = {
    "vla": "The robot should execute<Act><action></Act>, which will lead to the next state<Rec>",
    "wm": "After executing<Act><action></Act>, the system will transition to the state<Rec>",
}
_END = "</Rec>."
_KEYS = ("messages", "images", "Recimage", "actions")
_IMAGES_MARK = b', "images": ['
_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Window:
    """Content of one line."""

    kind: Kind  # `vla` asks for the action, `wm` (world model) for the state after the action
    task: str  # the instruction
    # Paths of P images relative to the folder, oldest frame first, cameras in order
    images: tuple[str, ...]
    future: tuple[str, ...]  # Paths of Q images, in the same order
    actions: Sequence[Sequence[float]]  # [T, A], not normalized


def render_window(window: Window) -> bytes:
    """Line of a window, UTF-8, with its newline."""
    if word := reserved_word(window.task):
        raise ValueError(f"the instruction contains the tag {word}")
    row = {
        "messages": [
            {"role": "user", "content": _question(window.kind, window.task, len(window.images))},
            {"role": "assistant", "content": _answer(window.kind, len(window.future))},
        ],
        "images": list(window.images),
        "Recimage": list(window.future),
        "actions": [list(row) for row in window.actions],
    }
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def reserved_word(task: str) -> str:
    """First tag in an instruction; empty if there is none."""
    for word in RESERVED:
        if word in task:
            return word
    return ""


def _question(kind: Kind, task: str, images: int) -> str:
    return f"{IMAGE * images}{_TASK}{task}{_QUESTIONS[kind]}"


def _answer(kind: Kind, images: int) -> str:
    return f"{_ANSWERS[kind]}{FUTURE_IMAGE * images}{_END}"


def parse_window(line: bytes) -> Window:
    row = parse_json(line)
    if not isinstance(row, Mapping) or tuple(row) != _KEYS:
        raise ValueError(f"expected an object with the keys {', '.join(_KEYS)}, in this order")
    images = _paths(row, "images")
    future = _paths(row, "Recimage")
    kind, task = _parse_conversation(row["messages"], len(images), len(future))
    return Window(kind, task, images, future, _actions(row["actions"]))


def parse_windows(lines: Iterable[bytes]) -> Iterator[Window]:
    """Window in each line; images and actions that equal the previous line are reused."""
    previous = None
    previous_rest = b""
    for line in lines:
        # Within a text the quotes of the mark have backslashes.
        messages_text, separator, rest = line.partition(_IMAGES_MARK)
        if previous is not None and separator and rest == previous_rest:
            row = parse_json(messages_text + b"}")
            if not isinstance(row, Mapping) or tuple(row) != _KEYS[:1]:
                raise ValueError("expected messages before the images")
            kind, task = _parse_conversation(
                row["messages"], len(previous.images), len(previous.future)
            )
            yield replace(previous, kind=kind, task=task)
        else:
            previous = parse_window(line)
            previous_rest = rest
            yield previous


def read_windows(path: Path) -> Iterator[Window]:
    """Windows in a file of lines; empty lines are skipped."""
    number = 0

    def numbered() -> Iterator[bytes]:
        nonlocal number
        for line in read_lines(path):
            number += 1
            if line.strip():
                yield line

    try:
        yield from parse_windows(numbered())
    except (ValueError, OSError) as error:
        reason: object = error
        details: dict[str, Any] = {}
        if number:
            reason = f"line {number}: {error}"
            details["line"] = number
        raise DataError.at(
            path,
            reason,
            hint="write the windows again with `vlatool preprocess`, or copy them again",
            code="data.broken",
            **details,
        ) from None


def _parse_conversation(messages: Any, images: int, future: int) -> tuple[Kind, str]:
    """Kind and instruction of a line; ValueError if its texts are none of the known ones."""
    texts: list[Any] = []
    roles: list[Any] = []
    for message in messages if isinstance(messages, list) else []:
        if isinstance(message, Mapping):
            roles.append(message.get("role"))
            texts.append(message.get("content"))
    if tuple(roles) != _ROLES or len(messages) != len(_ROLES):
        raise ValueError("expected one message of the user and one of the assistant")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a message has no text")
    question_text, answer_text = texts
    kind = _kind(answer_text, future)
    prefix = f"{IMAGE * images}{_TASK}"
    suffix = _QUESTIONS[kind]
    if not (question_text.startswith(prefix) and question_text.endswith(suffix)):
        raise ValueError(f"the question does not match its answer and {counted(images, 'image')}")
    return kind, question_text[len(prefix) : -len(suffix)]


def _kind(answer_text: str, images: int) -> Kind:
    kinds: tuple[Kind, ...] = ("vla", "wm")
    for kind in kinds:
        if answer_text == _answer(kind, images):
            return kind
    raise ValueError(f"the answer is none of the known ones with {counted(images, 'image')}")


def _paths(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = row[key]
    if not isinstance(value, list) or not {*map(type, value)} <= {str}:
        raise ValueError(f"{key} is not a list of paths")
    return tuple(value)


def _actions(content: Any) -> tuple[tuple[float, ...], ...]:
    """Rows of finite numbers, all of one width; ValueError for anything else."""
    rows = content if isinstance(content, list) else []
    if not rows or not all(isinstance(row, list) and row for row in rows):
        raise ValueError("actions is not a list of rows")
    if len({len(row) for row in rows}) > 1:
        raise ValueError("actions have rows of different widths")
    values = [*chain.from_iterable(rows)]
    # True is an instance of int, but not a number: exact types are compared.
    if not {*map(type, values)} <= {int, float} or not math.isfinite(_total(values)):
        raise ValueError("actions have a value that is not a finite number")
    return tuple(tuple(map(float, row)) for row in rows)


def _total(values: Sequence[float]) -> float:
    """Sum of magnitudes; not finite if a value is not finite or exceeds a float."""
    try:
        return math.fsum(map(abs, values))
    except OverflowError:
        return math.inf


def lines_name(episode: str) -> str:
    """Path of the windows of an episode, relative to the folder."""
    return f"{DATA_NAME}/{episode}{LINES_SUFFIX}"


def images_name(episode: str) -> str:
    """Folder of the images of an episode, relative to the folder of windows."""
    return f"{IMAGES_NAME}/{episode}"


def image_file(name: str, camera: str, episode: str, frame: int) -> str:
    """Name of an image in the folder of its episode."""
    return f"{name}_{camera}_{episode}_frame_{frame:06d}.png"


def image_folder(path: str) -> str | None:
    """Folder in `IMAGES_NAME` of an image path of a line; None for a path elsewhere."""
    above, *rest = path.split("/")
    if above != IMAGES_NAME or len(rest) != 2 or {*rest} & {"", ".", ".."}:
        return None
    return rest[0]


def episode_name(number: int) -> str:
    return f"{EPISODE_PREFIX}{number:06d}"


@dataclass(frozen=True)
class WindowManifest:
    names: tuple[str, ...]  # prefixes of the image names
    cameras: tuple[str, ...]  # in the order of the images of one frame
    fps: float | None  # frames per second; None if episodes differ or do not record it
    action_fields: tuple[str, ...]  # fields of the source that are concatenated to an action
    action_names: tuple[str, ...]  # names of the values of an action; empty if unknown
    action_width: Count  # number of values of an action; they are not normalized
    past_steps: Count  # observed steps, the anchor included
    future_steps: Count  # actions from the anchor on, and images of the steps after it
    qa_mode: str  # kinds of the lines of a frame
    # (width, height) of the images; None if they keep their size
    image_size: tuple[int, int] | None
    episodes: Count  # number of files of lines
    frames: Count  # number of frames in all episodes
    samples: Count  # number of lines in all files
    pictures: Count  # number of image files
    untouched: Count  # number of images that were copied unchanged
    # indices of the values of an action that are poses relative to the measured pose at the anchor;
    # padding repeats the last action of such windows
    relative_dimensions: tuple[Count, ...] = ()
    # (height, width) of the recorded images by camera, and how they got `image_size`
    recorded_sizes: Mapping[str, Sequence[tuple[int, int]]] = field(
        default_factory=dict[str, Sequence[tuple[int, int]]]
    )
    resize_method: ResizeMethod | Literal[""] = ""
    resize_filter: ResizeFilter | Literal[""] = ""


MANIFEST = ManifestType(
    MANIFEST_NAME,
    "vlatool.windows",
    1,
    WindowManifest,
    hint="run the command that wrote the folder again, or copy the folder again",
    optional=("relative_dimensions", "recorded_sizes", "resize_method", "resize_filter"),
)
# Values of the published converter. Source: reference/future-vla 1.3
PUBLISHED_CAMERAS = ("image", "wrist_image")
PUBLISHED_STEPS = 16


def write_manifest(folder: Path, manifest: WindowManifest) -> None:
    """Writes the manifest of a folder, its last file."""
    document = {**asdict(manifest), "normalisation": None}
    if not manifest.relative_dimensions:
        del document["relative_dimensions"]
    MANIFEST.write(folder, document)


def read_manifest(folder: Path) -> WindowManifest | None:
    """Manifest of a folder; None if it has none."""
    manifest = MANIFEST.read(folder)
    if manifest is None and (folder / MANIFEST_NAME).is_file():
        raise MANIFEST.error(folder, f"format is not {MANIFEST.format!r}")
    return manifest


def missing_images(
    folder: Path, manifest: WindowManifest, episode: str, present: Collection[str]
) -> list[str]:
    """Names of the images of an episode that are not there, in order.

    The number of frames is the number of lines, from their index; without it, the largest number of
    images of a camera.
    """
    prefixes = "|".join(map(re.escape, manifest.names))
    cameras = "|".join(map(re.escape, manifest.cameras))
    pattern = re.compile(rf"({prefixes})_({cameras})_{re.escape(episode)}_frame_\d{{6,12}}\.png")
    prefix = "".join(manifest.names[:1])
    images: Counter[str] = Counter()  # by camera
    for name in present:
        match = pattern.fullmatch(name)
        if match is not None:
            if not images:
                prefix = match[1]
            images[match[2]] += 1
    index = read_index(lines_index_path(folder / lines_name(episode)))
    if index is None:
        frames = max(images.values(), default=0)
    else:
        frames = len(index.lengths) // (2 if manifest.qa_mode == "both" else 1)
    missing: list[str] = []
    for frame in range(frames):
        for camera in manifest.cameras:
            name = image_file(prefix, camera, episode, frame)
            if name not in present:
                missing.append(name)
    return missing


def recognize(location: Path) -> str | None:
    """`windows` at a location of windows, else None."""
    return "windows" if is_windows(location) else None


def is_windows(location: Path) -> bool:
    """True for a folder of windows, or the output of a started run of them."""
    return MANIFEST.is_in(location) or _is_unfinished(location) or _is_published(location)


def _is_unfinished(location: Path) -> bool:
    try:
        record = read_valid_record(location)
    except DataError:
        return False
    return record is not None and set(OWNED_FILES) <= set(record.owned)


def _is_published(location: Path) -> bool:
    """True if the first line is a window."""
    try:
        first = first_line(lines_files(location))
        return first is not None and bool(parse_window(first))
    except (ValueError, OSError):
        return False


def lines_files(folder: Path) -> Sequence[Path]:
    """Files of lines of a folder, sorted by name."""
    data = folder / DATA_NAME
    return sorted(data.glob(f"episode_*{LINES_SUFFIX}")) if data.is_dir() else []


def image_folders(root: Path) -> Iterator[Path]:
    """Folders of images, sorted by name."""
    images = root / IMAGES_NAME
    yield from sorted(folder for folder in images.glob("episode_*") if folder.is_dir())
