"""Checks of Spartan episodes that `verify` alone makes: they read what nothing else needs.

Shapes: F frames.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array, EpisodeRef
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Collector, Finding
from vlatool.media.npz import NpzArchive
from vlatool.recordings.field_summary import dimension_label
from vlatool.recordings.spartan.check import (
    ACTIONS,
    CALIBRATION,
    MAP_SUFFIXES,
    OBSERVATIONS,
    SPARTAN,
    EpisodeValues,
    OpenedEpisode,
    length_error,
)
from vlatool.storage.byte_ranges import open_file, read_file

_INSTRUCTION = "language_instruction"
_CHUNK = 2**20
_ZERO_LENGTH = 1e-6
_PARALLEL = 1e-3
# Tolerance for rotations that were stored as float32 or text.
_ROUNDING = 1e-3
_EXTRINSICS_ROUNDING = 1e-4


class EpisodeLint:
    """Checks of an episode that was opened and read as far as possible."""

    def __init__(
        self,
        episode: OpenedEpisode,
        values: EpisodeValues,
        discarded: Collection[str],
        report: Collector,
    ) -> None:
        self._episode = episode
        self._values = values
        self._discarded = discarded
        self._report = report

    def check(self) -> None:
        for file, archive in self._episode.archives.items():
            self._check_unread(file, archive)
        self._check_depth_and_labels()
        self._check_calibration()
        for name, values in self._values.observed.items():
            self._check_field(OBSERVATIONS, name, values)
        for name, values in self._values.actions.items():
            self._check_field(ACTIONS, name, values)
        self._check_motion()
        self._check_actions()
        self._check_instruction()

    def _check_motion(self) -> None:
        observed = self._values.observed.items()
        poses = [values for name, values in observed if "__actual__poses__" in name]
        is_long = poses and min(map(len, poses)) > 1
        if is_long and not any(np.ptp(pose, axis=0).any() for pose in poses):
            self._note("no_motion", OBSERVATIONS, "no measured pose changes")

    def _check_actions(self) -> None:
        """Compares action[t] with desired[t + 1]."""
        differences: list[Array] = []
        for name, values in self._values.actions.items():
            desired = self._values.observed.get(name.replace("__action__", "__desired__"))
            if desired is not None and desired.shape == values.shape:
                is_equal = np.isclose(values[:-1], desired[1:], rtol=1e-5, atol=1e-6)
                differences.append(np.asarray(np.all(is_equal, axis=1) == 0))
        frames = np.any(differences, axis=0) if differences else np.zeros(0, bool)
        if frames.any():
            share = float(frames.mean())
            message = f"action differs from the next desired pose in {share:.0%} of the frames"
            location = {"field": "actions", "frame": int(frames.argmax()), "share": share}
            self._note("action_not_next_desired", ACTIONS, message, **location)

    def _note(self, code: str, file: str, message: str, **location: Any) -> None:
        path = self._episode.folder / file
        self._report.note(code, f"{path}: {message}", path=str(path), **location)

    def _check_unread(self, file: str, archive: NpzArchive) -> None:
        """Checks headers and lengths of the arrays that are not read."""
        for name in archive.names:
            if (file, name) in self._episode.examined:
                continue
            try:
                header = archive.header(name)
            except DataError as error:
                self._note("unread_array", file, error.message, field=name)
                continue
            if header.dtype.hasobject:
                self._note("ignored_objects", file, f"{name!r} holds Python objects", field=name)
            elif name not in self._discarded:
                is_static = file in CALIBRATION and len(header.shape) < 3
                problem = self._length_error(file, name, None if is_static else header.shape[:1])
                if problem is not None:
                    self._note("unread_array", file, problem.message, field=name)

    def _length_error(
        self, file: str, name: str, lengths: tuple[int, ...] | None
    ) -> DataError | None:
        """Error if the first axis of an array is not the number of frames; None matches any."""
        expected = self._episode.num_frames
        if file == ACTIONS or expected is None or lengths in (None, (expected,)):
            return None
        return length_error(self._episode, file, name, lengths[0] if lengths else None)

    def _check_depth_and_labels(self) -> None:
        archive = self._episode.archives.get(OBSERVATIONS, ())
        missing: dict[str, str] = {}  # array to its camera
        has_some = False
        for camera_id, camera in self._episode.camera_ids.items():
            if camera_id not in archive:
                continue
            for suffix in MAP_SUFFIXES:
                if camera_id + suffix in archive:
                    has_some = True
                else:
                    missing[camera_id + suffix] = camera
        for name, camera in missing.items() if has_some else ():
            message = f"camera {camera!r} has no {name}"
            location = {"camera": camera, "field": name}
            self._note("missing_depth_or_label", OBSERVATIONS, message, **location)

    def _check_calibration(self) -> None:
        ids = {name: camera_id for camera_id, name in self._episode.camera_ids.items()}
        for name, matrices in self._values.calibration.items():
            both = (matrices.intrinsics, matrices.extrinsics)
            for file, values in zip(CALIBRATION, both, strict=True):
                if values is None:
                    continue
                lengths = values.shape[:1] if values.ndim == 3 else None
                problem = self._length_error(file, ids[name], lengths)
                if problem is not None:
                    self._report.add_error(problem)
                for code, problem in _matrix_problems(values):
                    message = f"camera {name!r} ({ids[name]}) has {problem}"
                    self._note(code, file, message, camera=name, field=ids[name])

    def _check_field(self, file: str, name: str, values: Array) -> None:
        if values.dtype.kind not in "fiu":
            return
        broken = ~np.isfinite(values)
        bad = np.asarray(broken.any(axis=1))
        if bad.any():
            channel = int(broken[bad.argmax()].argmax())
            label = dimension_label(name, channel, values.shape[1], {})
            dimension = label.removeprefix(name).strip(": ")
            problem = f"is not finite ({dimension})" if dimension else "is not finite"
            self._note_frames("not_finite", file, name, bad, problem)
        elif name.endswith("rot_6d") and values.shape[1] == 6:
            self._check_rotation(file, name, values.astype(np.float64))
        elif "timestamp" in name:
            steps = np.diff(values, axis=0).min(axis=1, initial=1)
            if (steps <= 0).any():
                frame = int((steps <= 0).argmax()) + 1
                message = f"{name!r} does not ascend at frame {frame}"
                self._note("timestamps_not_ascending", file, message, field=name, frame=frame)

    def _check_rotation(self, file: str, name: str, values: Array) -> None:
        """Checks the two rows of each rotation in values [F, 6]."""
        first = values[:, :3]
        second = values[:, 3:]
        lengths = np.linalg.norm(values.reshape(-1, 2, 3), axis=2)
        area = np.linalg.norm(np.cross(first, second), axis=1)
        is_short = (lengths < _ZERO_LENGTH).any(axis=1)
        degenerate = is_short | (area <= _PARALLEL * lengths.prod(axis=1))
        skewed = np.abs((first * second).sum(axis=1)) > _ROUNDING
        odd = ~degenerate & (skewed | (np.abs(lengths - 1) > _ROUNDING).any(axis=1))
        problem = "has rows that are not unit and orthogonal"
        self._note_frames(
            "degenerate_rot_6d", file, name, np.asarray(degenerate), "is not a rotation"
        )
        self._note_frames("rot_6d_not_unit", file, name, np.asarray(odd), problem)

    def _note_frames(self, code: str, file: str, name: str, frames: Array, problem: str) -> None:
        """Reports the number of True values in a mask [F] and the first one, if there are any."""
        if frames.any():
            frame = int(frames.argmax())
            count = int(frames.sum())
            message = f"{name!r} {problem} in {counted(count, 'frame')}, first at frame {frame}"
            self._note(code, file, message, field=name, frame=frame, count=count)

    def _check_instruction(self) -> None:
        if OBSERVATIONS not in self._episode.archives:
            return
        texts = self._values.observed.get(_INSTRUCTION)
        frame = None
        if texts is None or texts.dtype.kind != "U":
            problem = f"has no {_INSTRUCTION}"
        else:
            empty = np.asarray(np.char.strip(texts) == "")
            if not empty.any():
                return
            problem = f"{_INSTRUCTION} is empty in {counted(int(empty.sum()), 'frame')}"
            frame = int(empty.argmax())
        self._note("no_instruction", OBSERVATIONS, problem, field=_INSTRUCTION, frame=frame)


def _matrix_problems(matrices: Array) -> Iterator[tuple[str, str]]:
    """(code, problem) of intrinsics [(F,) 3, 3] or extrinsics [(F,) 4, 4]."""
    if matrices.shape[-1] == 3:
        if (matrices[..., [0, 1], [0, 1]] <= 0).any():
            yield "zero_focal_length", "a focal length that is not positive"
        return
    rotation = matrices[..., :3, :3].astype(np.float64)
    product = rotation @ np.swapaxes(rotation, -1, -2)
    worst = float(np.abs(product - np.eye(3)).max(initial=0))
    if worst > _EXTRINSICS_ROUNDING or (np.linalg.det(rotation) < 0).any():
        yield "odd_extrinsics", f"a rotation with an error of {worst:.2g}"


def check_members(episode: OpenedEpisode, report: Collector) -> None:
    """Inflates all members of all archives to their end, which compares the checksum."""
    for opened in episode.archives.values():
        path = opened.path
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                try:
                    with archive.open(info) as member:
                        while member.read(_CHUNK):
                            pass
                except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
                    array = info.filename.removesuffix(".npy")
                    message = f"{path}: {array!r} is damaged: {error}"
                    is_read = (path.name, array) in episode.examined
                    code = "broken_member" if is_read else "unread_array"
                    report.note(code, message, path=str(path), field=array)


def check_siblings(refs: Sequence[EpisodeRef], sources: Sequence[Path]) -> Iterator[Finding]:
    """Findings on several episodes: equal ones, and folders that are not read."""
    first: dict[bytes, EpisodeRef] = {}
    for ref in refs:
        digest = _digest(ref.path / "processed" / ACTIONS)
        if digest is None:
            continue
        other = first.setdefault(digest, ref)
        if other is not ref:
            message = f"{ref.path}: has the same actions as {other.path}"
            yield SPARTAN("duplicate_episode", message, episode=ref.id, path=str(ref.path))
    read = {ref.path for ref in refs}
    for folder in dict.fromkeys(ref.path.parent for ref in refs if ref.path not in sources):
        # Folders beside episodes that are named like episodes or cannot be listed
        for child in sorted(folder.iterdir()):
            if child in read or not child.is_dir():
                continue
            try:
                next(iter(child.iterdir()), None)
            except OSError as error:
                yield SPARTAN.at("unlistable_folder", child, f"cannot be listed: {error.strerror}")
                continue
            if child.name.lower().startswith("episode"):
                yield SPARTAN.at("misnamed_episode", child, "is not read")


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.blake2b(read_file(path), digest_size=16).digest()
    except OSError:
        return None
