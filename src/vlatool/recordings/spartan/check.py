"""Files of a raw Spartan episode, with the checks of reading them and all findings of the format.

`open_episode` checks files and headers, which is enough for a survey; `read_values` inflates the
arrays. Problems go to a `Collector`: `read` ends at the first error, `verify` collects all. Checks
that only `verify` makes are in `lint.py`.

Legend of shapes: F frames, C dimensions. Source: formats/spartan 1, 2, 3, 4, 5, 10;
formats/lbm-preprocessing 2.7.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vlatool.episode import Array, Calibration, FieldSpec
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Collector, FindingCodes, error, info, warning
from vlatool.media.npz import ArrayHeader, NpzArchive, NpzFrames, missing_array_error
from vlatool.recordings.spartan.config import SpartanConfig
from vlatool.storage.documents import DocumentError, read_yaml
from vlatool.storage.tree import file_names

_AGAIN = "download the episode again, or leave it out with `preprocess --exclude`"
_LOOK = "look at it with `vlatool inspect --html`; leave it out with `preprocess --exclude`"

SPARTAN = FindingCodes(
    "spartan",
    missing_file=error("A required file of the episode is missing.", _AGAIN),
    unreadable_file=error("A YAML or npz file cannot be read.", _AGAIN),
    unreadable_array=error("An array of an npz file cannot be read.", _AGAIN),
    broken_member=error("An array in an npz file is cut off or damaged (--full).", _AGAIN),
    object_array=error(
        "An observation holds pickled Python objects, which are never loaded.",
        "leave the field out with --data-discard-keys",
    ),
    ignored_objects=info("An unused array, such as skill_type, holds pickled objects."),
    unread_array=warning("An unused array is broken or has another length."),
    length_mismatch=error("An array has another number of frames than most.", _AGAIN),
    empty_episode=error("The episode has no frames.", _AGAIN),
    not_finite=error(
        "A field holds NaN or infinity.",
        "leave out the field with --data-discard-keys, or the episode with --exclude",
    ),
    no_cameras=error("metadata.yaml names no camera that has images.", _AGAIN),
    camera_without_pictures=warning(
        "metadata.yaml names a camera that has no images.",
        "nothing, if you do not need this camera",
    ),
    bad_pictures=error("Images of a camera are not uint8 [frames, height, width, 3].", _AGAIN),
    bad_camera_name=error(
        "A camera name cannot be a file name in a shard.",
        "use lower-case letters, digits, dots, dashes and underscores",
    ),
    camera_name_case=warning("A camera name has upper-case letters; it is used in lower case."),
    missing_calibration=warning(
        "A camera has no intrinsics or extrinsics.", "nothing; your samples will lack them, too"
    ),
    bad_calibration=error("A calibration matrix has another shape, NaN or infinity.", _AGAIN),
    zero_focal_length=warning("Intrinsics have a focal length that is not positive.", _LOOK),
    odd_extrinsics=warning("The rotation of extrinsics is not orthonormal.", _LOOK),
    missing_actions=error("actions.npz has no array `actions`.", _AGAIN),
    narrow_actions=error(
        "The action vector is narrower than its fields.",
        "set --action-key-fields and --action-index-fields to the fields of the vector",
    ),
    wide_actions=info("The action vector has columns without a field."),
    action_not_next_desired=warning(
        "Actions differ from the desired poses of the next frame.",
        "check that actions and observations start at the same frame",
    ),
    degenerate_rot_6d=warning("A 6D rotation has parallel rows or zeros: no rotation.", _LOOK),
    rot_6d_not_unit=warning("The rows of a 6D rotation are not unit and orthogonal.", _LOOK),
    no_motion=warning("No measured pose changes in the whole episode.", _LOOK),
    timestamps_not_ascending=warning("A timestamp does not ascend.", _LOOK),
    no_instruction=warning(
        "language_instruction is missing or empty.",
        "add --language-annotations-path; without it, the task name is the instruction",
    ),
    bad_field=error(
        "An observation holds neither numbers nor text.",
        "leave the field out with --data-discard-keys",
    ),
    success_unreadable=warning("summary.npz does not state the success of the episode.", _AGAIN),
    validation_episode_missing=warning(
        "A validation episode is not in the source.",
        "correct the file of --validation-episodes-path",
    ),
    not_successful=info("summary.npz says that the episode failed."),
    missing_depth_or_label=info("Some cameras have depth or label images and others do not."),
    duplicate_episode=warning(
        "Two episodes have equal actions.", "leave one of them out with `preprocess --exclude`"
    ),
    misnamed_episode=warning(
        "A folder beside the episodes has a similar name, but is not read.",
        "name it episode_<number>, with a folder processed in it; or move it away",
    ),
    unlistable_folder=warning(
        "A folder cannot be listed.", "grant read permission and verify again"
    ),
    error_codes={
        "broken_yaml": "unreadable_file",
        "broken_npz": "unreadable_array",
        "missing_field": "no_cameras",
        "missing_array": "missing_actions",
        "not_pictures": "bad_pictures",
    },
)


METADATA = "metadata.yaml"
OBSERVATIONS = "observations.npz"
ACTIONS = "actions.npz"
SUMMARY = "summary.npz"
# File to the size of its matrices.
CALIBRATION = {"intrinsics.npz": 3, "extrinsics.npz": 4}
ARCHIVES = (OBSERVATIONS, ACTIONS, *CALIBRATION)
MAP_SUFFIXES = ("_depth", "_label")
_CAMERA_IDS = "camera_id_to_semantic_name"
_CAMERA_NAME = re.compile(r"^[a-z0-9_.-]{1,200}\Z")
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # CBaseLoader is 10 times as fast


@dataclass
class OpenedEpisode:
    """Files and headers of an episode that can be opened."""

    folder: Path  # its `processed` folder
    present: frozenset[str]  # names of the files in it
    # readable npz files, by name
    archives: dict[str, NpzArchive] = field(default_factory=dict[str, NpzArchive])
    # map from hardware id to semantic name, in lower case
    camera_ids: Mapping[str, str] = field(default_factory=dict[str, str])
    # map from semantic name to images, in the order of metadata.yaml
    cameras: dict[str, NpzFrames] = field(default_factory=dict[str, NpzFrames])
    # observation that is a field to its header, in file order
    fields: dict[str, ArrayHeader] = field(default_factory=dict[str, ArrayHeader])
    actions: ArrayHeader | None = None  # header of the action vector [F, C]
    num_frames: int | None = None  # F; None if no array is readable
    # (file, array) of all arrays that were opened
    examined: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    def open_archive(self, name: str, report: Collector) -> NpzArchive | None:
        """An npz file; None if it is missing or broken, which is reported."""
        if name not in self.present:
            return None
        archive = report.attempt(partial(NpzArchive, self.folder / name), "unreadable_file")
        if archive is not None:
            self.archives[name] = archive
        return archive

    def field_specs(self, config: SpartanConfig) -> dict[str, FieldSpec]:
        """Fields that `read_values` returns, from headers."""
        specs: dict[str, FieldSpec] = {}
        for name, header in self.fields.items():
            is_text = header.dtype.kind in "US"
            specs[name] = FieldSpec(0 if is_text else math.prod(header.shape[1:]))
        for name, start, end in _parts(config):
            specs[name] = FieldSpec(end - start)
        return specs


@dataclass
class EpisodeValues:
    """Values of an episode that are read at once."""

    observed: dict[str, Array]  # map from observation to its values: numbers [F, C], text [F]
    actions: dict[str, Array]  # field of the action vector to its values [F, C]
    calibration: dict[str, Calibration]  # map from camera to its matrices
    success: bool | None  # True if the task succeeded; None if unknown


def open_episode(folder: Path, config: SpartanConfig, report: Collector) -> OpenedEpisode:
    """Checks files, cameras and headers of a `processed` folder; does not read values."""
    episode = OpenedEpisode(folder, file_names(folder))
    for name in (METADATA, *ARCHIVES):
        if name not in episode.present:
            report.add_error(
                DataError.at(
                    folder / name,
                    "does not exist",
                    hint="the episode is incomplete; download or record it again",
                    code="data.missing",
                    finding="missing_file",
                )
            )
    if METADATA in episode.present:
        path = folder / METADATA
        episode.camera_ids = report.attempt(partial(camera_names, path, report)) or {}
    observations = episode.open_archive(OBSERVATIONS, report)
    if observations is not None:
        _open_cameras(episode, observations, report)
        _open_fields(episode, observations, config, report)
    actions = episode.open_archive(ACTIONS, report)
    if actions is not None:
        episode.examined.add((ACTIONS, "actions"))
        episode.actions = report.attempt(partial(_action_header, actions, config, report))
    _check_lengths(episode, report)
    return episode


def _open_fields(
    episode: OpenedEpisode, archive: NpzArchive, config: SpartanConfig, report: Collector
) -> None:
    unused = set(config.data_discard_keys)
    for camera_id in episode.camera_ids:
        unused.update((camera_id, *(camera_id + suffix for suffix in MAP_SUFFIXES)))
    for name in archive.names:
        if name in unused:
            continue
        header = report.attempt(partial(archive.header, name))
        is_named = name.startswith(("robot__", "language_"))
        if header is not None and len(header.shape) > 2 and not is_named:
            continue
        episode.examined.add((OBSERVATIONS, name))
        if header is not None and report.attempt(partial(_field_header, archive, name)):
            episode.fields[name] = header


def camera_names(path: Path, report: Collector) -> dict[str, str]:
    """Map from hardware id to semantic name in lower case, from a metadata.yaml."""
    mapping = _read_yaml(path).get(_CAMERA_IDS)
    if not isinstance(mapping, Mapping) or not mapping:
        raise DataError.at(
            path,
            f"{_CAMERA_IDS} is missing or empty",
            hint="it names the cameras, for example 6CD146030E99: scene_right_0",
            code="data.unknown_field",
            finding="missing_field",
            field=_CAMERA_IDS,
        )
    names: dict[str, str] = {}
    for camera_id, stored in mapping.items():
        original = str(stored)
        name = original.lower()
        names[str(camera_id)] = name
        location = {"path": str(path), "camera": original}
        if not _CAMERA_NAME.match(name):
            problem = f"the camera name {original[:40]!r} cannot be a file name in a shard"
            hint = "use letters, digits, dots, dashes and underscores"
            report.add_error(_camera_name_error(problem, hint, location))
        elif name != original:
            message = f"{path}: the camera name {original!r} has upper-case letters"
            report.note("camera_name_case", message, **location)
    if len(set(names.values())) < len(names):
        problem = f"two cameras have the same name: {', '.join(names.values())}"
        hint = "names are compared in lower case; use a different name for each camera"
        report.add_error(_camera_name_error(problem, hint, {"path": str(path)}))
    return names


def _camera_name_error(problem: str, hint: str, location: Mapping[str, str]) -> DataError:
    message = f"{location['path']}: {problem}"
    return DataError(
        message, hint=hint, code="data.bad_name", details={"finding": "bad_camera_name", **location}
    )


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        # This loader returns only text, lists and mappings, so camera ids stay text.
        content = read_yaml(path, _Loader)
    except (OSError, DocumentError) as error:
        line = getattr(error, "line", 0)
        location = f"{path}:{line}" if line else f"{path}"
        raise DataError(
            f"{location}: cannot be read: {' '.join(str(error).split())}",
            hint="the file is damaged; download or record it again",
            code="data.broken",
            details={"finding": "broken_yaml", "path": str(path)},
        ) from None
    return content if isinstance(content, Mapping) else {}


def _open_cameras(episode: OpenedEpisode, archive: NpzArchive, report: Collector) -> None:
    ids = episode.camera_ids
    archive.load_headers(ids)
    for camera_id, name in ids.items():
        if camera_id not in archive:
            message = f"{archive.path}: camera {name!r} ({camera_id}) has no images"
            location = {"path": str(archive.path), "camera": name, "field": camera_id}
            report.note("camera_without_pictures", message, **location)
            continue
        episode.examined.add((OBSERVATIONS, camera_id))
        frames = report.attempt(partial(archive.frames, camera_id), camera=name)
        if frames is not None:
            episode.cameras[name] = frames
    if ids and not any(camera_id in archive for camera_id in ids):
        report.add_error(
            DataError.at(
                archive.path,
                f"no camera of {_CAMERA_IDS} has images",
                hint="the ids in metadata.yaml must be names of arrays in this file",
                code="data.missing",
                finding="no_cameras",
            )
        )


def _field_header(archive: NpzArchive, name: str) -> ArrayHeader:
    header = archive.readable_header(name)
    shape = header.shape
    kind = header.dtype.kind
    if shape and (kind in "US" or (kind in "biuf" and not (shape[0] and 0 in shape))):
        return header
    problem = "is a single value, expected one per frame"
    finding = "length_mismatch"
    if shape:
        problem = f"is {header.dtype}{list(shape)}, expected numbers or text"
        finding = "bad_field"
    raise DataError.at(
        archive.path,
        f"{name!r} {problem}",
        hint="leave the field out with --data-discard-keys",
        code="data.mismatch",
        finding=finding,
        field=name,
    )


def _parts(config: SpartanConfig) -> Iterator[tuple[str, int, int]]:
    """(name, start, end) of the fields of the action vector."""
    stops = config.action_index_fields
    yield from zip(config.action_key_fields, [0, *stops[:-1]], stops, strict=True)


def _action_header(archive: NpzArchive, config: SpartanConfig, report: Collector) -> ArrayHeader:
    if "actions" not in archive:
        raise missing_array_error(archive.path, "actions")
    header = archive.readable_header("actions")
    expected = config.action_index_fields[-1]
    width = header.shape[1] if len(header.shape) == 2 else 0
    problem = f"{archive.path}: actions is {header.dtype}{list(header.shape)}, expected"
    location = {"path": str(archive.path), "field": "actions"}
    if width < expected or header.dtype.kind not in "biuf":
        raise DataError(
            f"{problem} numbers [frames, {expected}]",
            hint="set the fields of the vector with --action-fields-config-path",
            code="data.mismatch",
            details={"finding": "narrow_actions", **location},
        )
    if width > expected:
        report.note("wide_actions", f"{problem} [frames, {expected}]", **location)
    return header


def _check_lengths(episode: OpenedEpisode, report: Collector) -> None:
    """Sets the number of frames, by majority, and reports arrays with another number."""
    arrays: dict[tuple[str, str], int] = {}
    for name, header in episode.fields.items():
        arrays[OBSERVATIONS, name] = header.shape[0]
    if episode.actions is not None:
        arrays[ACTIONS, "actions"] = episode.actions.shape[0]
    for camera_id, name in episode.camera_ids.items():
        if name in episode.cameras:
            arrays[OBSERVATIONS, camera_id] = len(episode.cameras[name])
    if not arrays:
        return
    expected = Counter(arrays.values()).most_common(1)[0][0]
    episode.num_frames = expected
    for (file, name), length in arrays.items():
        if length != expected:
            report.add_error(length_error(episode, file, name, length))
    if expected == 0:
        report.add_error(
            DataError.at(
                episode.folder,
                "the episode has no frames",
                hint="exclude it with `preprocess --exclude`, or record it again",
                code="data.broken",
                finding="empty_episode",
            )
        )


def length_error(episode: OpenedEpisode, file: str, name: str, length: int | None) -> DataError:
    """Error for an array without one entry per frame; `length` None is a single value."""
    path = episode.folder / file
    camera = episode.camera_ids.get(name)
    label = name if camera is None else f"camera {camera}"
    problem = "is a single value" if length is None else f"has {counted(length, 'frame')}"
    return DataError.at(
        path,
        f"{label!r} {problem}, most arrays have {episode.num_frames}",
        hint="the episode is inconsistent; record or download it again",
        code="data.mismatch",
        finding="length_mismatch",
        field=name,
        camera=camera,
    )


def read_values(episode: OpenedEpisode, config: SpartanConfig, report: Collector) -> EpisodeValues:
    """Inflates fields, actions and calibration; images stay on disk."""
    observed: dict[str, Array] = {}
    for name in episode.fields:
        archive = episode.archives[OBSERVATIONS]
        array = report.attempt(partial(archive.read, name))
        if array is not None:
            observed[name] = _flatten(array)
    actions: dict[str, Array] = {}
    if episode.actions is not None:
        vector = report.attempt(partial(episode.archives[ACTIONS].read, "actions"))
        if vector is not None:
            for name, start, end in _parts(config):
                actions[name] = vector[:, start:end]
    success = _read_success(episode, report)
    return EpisodeValues(observed, actions, _read_calibration(episode, report), success)


def _flatten(array: Array) -> Array:
    """Values as [F, C] for numbers, [F] for text."""
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind == "U":
        return array.reshape(len(array)) if array.size == len(array) else array
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _read_success(episode: OpenedEpisode, report: Collector) -> bool | None:
    """True if the episode succeeded; None if its summary does not say."""
    if SUMMARY not in episode.present:
        return None
    path = episode.folder / SUMMARY
    location = {"path": str(path), "field": "episode_success"}
    try:
        value = NpzArchive(path).read("episode_success").reshape(-1)
        problem = "" if value.dtype.kind in "biu" else f"it is {value.dtype}, not bool"
        if not len(value):
            problem = "it is empty"
    except DataError as error:
        value = np.empty(0)
        problem = error.message
    if problem:
        message = f"{path}: episode_success is unknown: {problem}"
        report.note("success_unreadable", message, **location)
        return None
    if not value[0]:
        report.note("not_successful", f"{path}: episode_success is false", **location)
    return bool(value[0])


def _read_calibration(episode: OpenedEpisode, report: Collector) -> dict[str, Calibration]:
    matrices: dict[tuple[str, str], Array] = {}  # by file and camera
    for file, size in CALIBRATION.items():
        archive = episode.open_archive(file, report)
        for camera_id, name in episode.camera_ids.items():
            if archive is None or name not in episode.cameras:
                continue
            location = {"path": str(archive.path), "camera": name, "field": camera_id}
            if camera_id not in archive:
                message = f"{archive.path}: camera {name!r} ({camera_id}) has no entry"
                report.note("missing_calibration", message, **location)
                continue
            episode.examined.add((file, camera_id))
            values = report.attempt(partial(_matrices, archive, camera_id, size), camera=name)
            if values is not None:
                matrices[file, name] = values
    calibration: dict[str, Calibration] = {}
    for name in episode.cameras:
        calibration[name] = Calibration(
            matrices.get(("intrinsics.npz", name)), matrices.get(("extrinsics.npz", name))
        )
    return calibration


def _matrices(archive: NpzArchive, camera_id: str, size: int) -> Array:
    """Static [n, n] or per-frame [F, n, n] matrices of a camera."""
    values = archive.read(camera_id)
    is_matrix = values.ndim in (2, 3) and values.shape[-2:] == (size, size)
    is_matrix = is_matrix and values.dtype.kind in "fiu"
    if not is_matrix or not np.isfinite(values).all():
        problem = "not finite" if is_matrix else f"{values.dtype}{list(values.shape)}"
        raise DataError.at(
            archive.path,
            f"{camera_id!r} is {problem}, "
            f"expected finite matrices {[size, size]}, one or one per frame",
            hint="repair the calibration of this camera, or remove its line from the file",
            code="data.broken",
            finding="bad_calibration",
            field=camera_id,
        )
    return values
