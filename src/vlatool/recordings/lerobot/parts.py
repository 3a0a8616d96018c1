"""What a LeRobot episode stores: each feature and each further column has one role.

The rules for all formats are in `recordings.inventory`. Source: formats/lerobot 4.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from vlatool.episode import Content, StoredPart
from vlatool.errors import DataError
from vlatool.findings import Collector
from vlatool.recordings.inventory import Stored, decide, is_action
from vlatool.recordings.language import kind_of_name
from vlatool.recordings.lerobot.dataset import unusable_reason, wide_note
from vlatool.recordings.lerobot.folder import EpisodeFiles
from vlatool.recordings.lerobot.images import camera_of_depth
from vlatool.recordings.lerobot.language import (
    ANNOTATION,
    EVENTS,
    LABELS,
    FrameTexts,
    are_equal,
    frame_texts,
    text_columns,
)
from vlatool.recordings.lerobot.layout import AUTOMATIC, EPISODES_FILE, EPISODES_FOLDER, PERSISTENT
from vlatool.recordings.lerobot.meta import Feature
from vlatool.recordings.lerobot.tables import Rows

TASK_INDEX = "task_index"
SUCCESS = ("next.success", "success", "is_success")
NO_IMAGES = "no images in any episode"  # which a finding of the set says
_TIME = re.compile(r"(next\.)?(done|terminated|truncated)|is_(first|last|terminal)")
_TAKES_FIELD = "to use it, add --observation-keys {}; --sink lerobot copies it"
_TAKES_TEXT = "to make it the instruction, add --task-column {}; --sink lerobot copies it"


def stored_parts(
    files: EpisodeFiles,
    columns: Sequence[str],  # of the file of the episode
    known: Mapping[str, StoredPart],  # columns of texts
    lost_depth: Mapping[str, str],  # depth or labels that cannot be read to the reason
) -> tuple[StoredPart, ...]:
    """All features in the order of info.json, then columns that it does not declare."""
    dataset = files.dataset
    features = dataset.info.features
    others = [name for name in columns if name not in features and not name.startswith("__")]
    parts: list[StoredPart] = []
    content: Content
    for name in (*features, *others):
        if name in known:
            parts.append(known[name])
        elif name in (PERSISTENT, EVENTS):
            parts.append(StoredPart(name, "language", "", "text"))
        elif name in AUTOMATIC or _TIME.fullmatch(name):
            parts.append(StoredPart(name, "time"))
        elif name in SUCCESS:
            parts.append(StoredPart(name, "success"))
        elif name in dataset.field_names:
            content = "actions" if name in dataset.action_keys else "numbers"
            parts.append(StoredPart(name, "field", name, content))
        elif name not in features:
            note = "no feature of meta/info.json"
            content = "actions" if is_action(name) else "other"
            parts.append(StoredPart(name, "left_out", content=content, note=note))
        elif features[name].is_camera:
            parts.append(_images_part(files, features[name], columns, lost_depth))
        else:
            parts.append(_left_out(features[name], columns))
    return tuple(parts)


def language_parts(kinds: Mapping[str, str]) -> dict[str, StoredPart]:
    """Parts of columns of texts, whose kind of annotation is known."""
    return {name: StoredPart(name, "language", kind, "text") for name, kind in kinds.items()}


def _images_part(
    files: EpisodeFiles, feature: Feature, columns: Sequence[str], lost_depth: Mapping[str, str]
) -> StoredPart:
    name = feature.name
    if name in files.dataset.camera_names:
        return StoredPart(name, "camera", name, "images")
    if name in lost_depth:
        note = lost_depth[name]
    elif feature.is_depth:
        return StoredPart(name, "depth", name, "images", feature.found or "depth in millimeters")
    elif feature.is_labels:
        return StoredPart(name, "labels", name, "images", feature.found)
    elif name in files.clips or name in columns:
        note = "no camera of this format"
    else:
        note = NO_IMAGES
    return StoredPart(name, "left_out", content="images", note=note)


def _left_out(feature: Feature, columns: Sequence[str]) -> StoredPart:
    """A feature that is not read, with the reason and what would read it."""
    name = feature.name
    content: Content = "actions" if is_action(name) else "numbers"
    note = unusable_reason(feature, columns)
    if feature.dtype == "audio":
        content = "other"
        note = "sound"
    elif not feature.is_readable_number:
        content = "other"
    elif not note:
        note = f"{wide_note(feature) or 'not observed'}; {_TAKES_FIELD.format(name)}"
    return StoredPart(name, "left_out", content=content, note=note)


def text_part(
    files: EpisodeFiles, rows: Rows, column: str, instructions: Sequence[str], report: Collector
) -> StoredPart:
    """Returns the part for a further column of texts, or of numbers in the list of tasks (GR00T).

    It is the instruction, a quality label, or another text, which is left out.
    """
    try:
        texts = frame_texts(files, rows, column, report)
    except DataError:
        return StoredPart(column, "left_out", content="other", note="it names no texts")
    if are_equal(texts, instructions):
        return StoredPart(column, "language", "original", "text")
    if {*texts} <= LABELS | {""}:
        return StoredPart(column, "left_out", content="other", note="labels of quality, or empty")
    note = f"a text, but not the instruction; {_TAKES_TEXT.format(column)}"
    return StoredPart(column, "left_out", content="text", note=note)


# What the list of episodes says besides tasks and lengths


def listed_texts(files: EpisodeFiles) -> dict[str, FrameTexts]:
    """Instructions that the list of episodes has besides the tasks, by path."""
    texts: dict[str, FrameTexts] = {}
    for name, value in files.line.further.items():
        kind = kind_of_name(name)
        if isinstance(value, str) and value.strip() and kind in ("original", "alternative"):
            texts[_listed_path(files, name)] = kind, [value]
    return texts


def listed_success(files: EpisodeFiles) -> bool | None:
    """True if the list of episodes says that the task was completed; None if it does not say it."""
    for name in SUCCESS:
        value = files.line.further.get(name)
        if isinstance(value, bool | int | float) and math.isfinite(value):
            return value > 0
    return None


def listed_parts(
    files: EpisodeFiles,
    kinds: Mapping[str, str],  # used texts by path
    *,
    is_success: bool,  # True if the list says the success of the episode
) -> Iterator[StoredPart]:
    """What the list of episodes says of an episode besides its tasks, rows and clips."""
    texts = listed_texts(files)
    for name in files.line.further:
        path = _listed_path(files, name)
        if path in kinds:
            yield StoredPart(path, "language", kinds[path], "text")
        elif name in SUCCESS and is_success:
            yield StoredPart(path, "success")
            is_success = False
        else:
            note = "of the list of episodes; nothing uses it"
            if path in texts:
                note = "of the list of episodes; the episode has an instruction"
            yield StoredPart(path, "left_out", content="other", note=note)


def _listed_path(files: EpisodeFiles, name: str) -> str:
    folder = EPISODES_FOLDER if files.dataset.info.is_shared else EPISODES_FILE
    return f"{folder}/{name}"


def stored_things(files: EpisodeFiles, columns: Sequence[str], count: int | None) -> list[Stored]:
    """Returns what an episode of `count` rows stores, for a mapping.

    `columns` are the columns of the episode's file; they have the roles of the format.
    """
    features = files.dataset.info.features
    known = language_parts({**text_columns(files.dataset), TASK_INDEX: "original"})
    things: list[Stored] = []
    for part in stored_parts(files, columns, known, {}):
        path = part.path
        feature = features.get(path)
        dtype = feature.dtype if feature is not None else ""
        shape = (feature.shape if feature is not None else None) or ()
        if feature is not None and feature.is_camera:
            things.append(_images_thing(files, feature, part, count))
        elif path in (PERSISTENT, EVENTS):
            things.append(Stored(path, "other", rows=count, note="annotations of frames"))
        elif part.role == "language" or dtype == "string" or path.startswith(ANNOTATION):
            things.append(Stored(path, "text", rows=count))
        else:
            things.append(Stored(path, "array", shape, dtype, count, path, part.note, part.role))
    return things


def _images_thing(
    files: EpisodeFiles, feature: Feature, part: StoredPart, count: int | None
) -> Stored:
    """Images of a feature; a camera has the role of its kind, which a mapping may change."""
    path = feature.name
    is_value = part.role in ("depth", "labels")
    name = camera_of_depth(path, files) if is_value else path
    role = None if part.role == "camera" else part.role
    values = "uint8"
    if feature.found:  # its kind says it
        role = None
        if feature.is_depth:
            values = "uint16"
    shape = feature.shape or ()
    kind = "video"
    if feature.dtype != "video":
        kind = "png"
        if feature.found or shape[2:] == (1,):
            shape = shape[:2] if len(shape) > 1 else (1, 1)
    thing = Stored(path, kind, shape, values, count, name, part.note, role)
    if part.role == "camera" and decide(thing).role != "camera":
        thing = replace(thing, kind="jpeg")
    return thing
