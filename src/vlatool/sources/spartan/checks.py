"""Checks of raw Spartan episodes: files, arrays, cameras, calibration.

Legend of shapes: F frames, C channels. Source: lbm-data 2, 7.2.
"""

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array, EpisodeRef
from vlatool.findings import Finding
from vlatool.sources.checks import check_episode
from vlatool.sources.npz import ArrayHeader
from vlatool.sources.spartan.codes import SPARTAN
from vlatool.sources.spartan.recording import Recording, open_recording
from vlatool.sources.spartan.values import check_values

_SIDES = ("_depth", "_label")
_CHUNK = 2**20
_ROUNDING = 1e-4  # extrinsics that went through float32 or text


def check_spartan_episode(reader: Any, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
    """Everything that is wrong with an episode, not only the first.

    Args:
        reader: The `SpartanReader`, whose configuration decides what is read.
        ref: The episode.
        deep: Also decode every frame and verify every checksum.
    """
    recording = Recording(ref.id, ref.path / "processed", reader.config.data_discard_keys)
    severe = False
    for finding in _check(recording, reader.config):
        severe = severe or finding.severity == "error"
        yield finding
    if deep:
        for name in recording.archives:
            yield from _check_members(recording, name)
    if not severe:  # else the reader would tell one of the errors again
        found = check_episode(reader, ref, deep=deep)
        yield from (one for one in found if not one.code.startswith("source."))


def _check(recording: Recording, config: Any) -> Iterator[Finding]:
    yield from open_recording(recording)
    yield from _check_lengths(recording)
    yield from _check_cameras(recording)
    yield from _check_calibration(recording)
    yield from check_values(recording, config)


def _check_lengths(recording: Recording) -> Iterator[Finding]:
    """Compares the first axis of everything that has one entry per frame."""
    lengths = {
        (file, name): header.shape[0] if header.shape else None
        for file in recording.archives
        for name, header in recording.arrays(file)
        if _is_per_frame(file, name, header)
    }
    if not lengths:
        return
    expected = Counter(lengths.values()).most_common(1)[0][0]
    if expected == 0:
        yield recording.finding("empty_episode", "has no frames", "observations.npz")
    for (file, name), length in lengths.items():
        if length != expected:
            found = "is a single value" if length is None else f"has {length} frames"
            message = f"{name!r} {found}, most arrays have {expected}"
            yield recording.finding("length_mismatch", message, file, field=name)


def _is_per_frame(file: str, name: str, header: ArrayHeader) -> bool:
    if header.dtype.hasobject:
        return False
    if file == "actions.npz":
        return name == "actions"
    return file == "observations.npz" or len(header.shape) == 3


def _check_cameras(recording: Recording) -> Iterator[Finding]:
    file = "observations.npz"
    headers = dict(recording.arrays(file))
    for camera_id, name in recording.cameras.items():
        place = {"camera": name, "field": camera_id}
        yield from _check_camera_name(recording, name)
        header = headers.get(camera_id)
        if header is None:
            if file in recording.archives:
                message = f"camera {name!r} ({camera_id}) has no pictures"
                yield recording.finding("camera_without_pictures", message, file, **place)
        elif len(header.shape) != 4 or header.shape[3] != 3 or header.dtype != np.uint8:
            message = f"camera {name!r} is {header.dtype}{list(header.shape)}"
            yield recording.finding("bad_pictures", message, file, **place)
    if not set(recording.cameras) & set(headers) and (recording.folder / "metadata.yaml").is_file():
        yield recording.finding("no_cameras", "no camera has pictures", "metadata.yaml")
    yield from _check_sides(recording, headers)


def _check_camera_name(recording: Recording, name: str) -> Iterator[Finding]:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789_.-")
    if not name or set(name.lower()) - allowed:
        message = f"the camera name {name!r} cannot be a file name in a shard"
        yield recording.finding("bad_camera_name", message, "metadata.yaml", camera=name)
    elif name != name.lower():
        message = f"the camera name {name!r} has capitals"
        yield recording.finding("camera_name_case", message, "metadata.yaml", camera=name)


def _check_sides(recording: Recording, headers: Mapping[str, ArrayHeader]) -> Iterator[Finding]:
    """Depth and label pictures of cameras; complete when every camera has the same ones."""
    there = {
        camera_id: [side for side in _SIDES if camera_id + side in headers]
        for camera_id in recording.cameras
        if camera_id in headers
    }
    if not any(there.values()):
        return
    for camera_id, sides in there.items():
        for side in set(_SIDES) - set(sides):
            name = recording.cameras[camera_id]
            message = f"camera {name!r} has no {camera_id + side}"
            yield recording.finding(
                "missing_depth_or_label",
                message,
                "observations.npz",
                camera=name,
                field=camera_id + side,
            )


def _check_calibration(recording: Recording) -> Iterator[Finding]:
    observed = dict(recording.arrays("observations.npz"))
    for file, size in (("intrinsics.npz", 3), ("extrinsics.npz", 4)):
        for camera_id, name in recording.cameras.items():
            if file not in recording.archives or camera_id not in observed:
                continue
            place = {"camera": name, "field": camera_id}
            if (file, camera_id) not in recording.headers:
                message = f"nothing for camera {name!r} ({camera_id})"
                yield recording.finding("missing_calibration", message, file, **place)
                continue
            matrices = recording.read(file, camera_id)
            for code, problem in _calibration_problems(matrices, size):
                message = f"camera {name!r} ({camera_id}) {problem}"
                yield recording.finding(code, message, file, **place)


def _calibration_problems(matrices: Array | None, size: int) -> Iterator[tuple[str, str]]:
    """(code, problem) of intrinsics [(F,) 3, 3] or extrinsics [(F,) 4, 4]."""
    if matrices is None or matrices.ndim not in (2, 3) or matrices.shape[-2:] != (size, size):
        found = "cannot be read" if matrices is None else f"has the shape {list(matrices.shape)}"
        yield "bad_calibration", f"{found}, expected one or [frames] of {size} x {size}"
    elif matrices.dtype.kind not in "fiu" or not np.isfinite(matrices).all():
        yield "bad_calibration", "is not finite"
    elif size == 3 and (matrices[..., [0, 1], [0, 1]] <= 0).any():
        yield "zero_focal_length", "has a focal length that is not positive"
    elif size == 4:
        rotation = matrices[..., :3, :3].astype(np.float64)
        product = rotation @ np.swapaxes(rotation, -1, -2)
        worst = float(np.abs(product - np.eye(3)).max(initial=0))
        if worst > _ROUNDING or (np.linalg.det(rotation) < 0).any():
            yield "odd_extrinsics", f"has a rotation that is off by {worst:.2g}"


def check_spartan_sources(reader: Any, sources: Sequence[Path]) -> Iterator[Finding]:
    """What concerns several episodes: equal ones, and folders that are passed by.

    Args:
        reader: The `SpartanReader`.
        sources: Folders to search.
    """
    refs = list(reader.discover(sources))
    first: dict[bytes, EpisodeRef] = {}
    for ref in refs:
        digest = _digest(ref.path / "processed" / "actions.npz")
        if digest is None:
            continue
        other = first.setdefault(digest, ref)
        if other is not ref:
            message = f"{ref.path}: has the same actions as {other.path}"
            yield SPARTAN("duplicate_episode", message, episode=ref.id, path=str(ref.path))
    read = {ref.path for ref in refs}
    given = {Path(source) for source in sources}
    for folder in dict.fromkeys(ref.path.parent for ref in refs if ref.path not in given):
        yield from _check_siblings(folder, read)


def _digest(path: Path) -> bytes | None:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError:
        return None


def _check_siblings(folder: Path, read: Collection[Path]) -> Iterator[Finding]:
    """Folders beside episodes that look like episodes or cannot be looked into."""
    for child in sorted(folder.iterdir()):
        if child in read or not child.is_dir():
            continue
        try:
            next(iter(child.iterdir()), None)
        except OSError as error:
            message = f"{child}: cannot be listed: {error.strerror}"
            yield SPARTAN("unlistable_folder", message, path=str(child))
            continue
        if child.name.lower().startswith("episode"):
            yield SPARTAN("misnamed_episode", f"{child}: is not read", path=str(child))


def _check_members(recording: Recording, name: str) -> Iterator[Finding]:
    """Inflates every member to its end, which compares the checksum."""
    with (recording.folder / name).open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            try:
                with archive.open(info) as member:
                    while member.read(_CHUNK):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
                array = info.filename.removesuffix(".npy")
                message = f"{array!r} is damaged: {error}"
                yield recording.finding("broken_member", message, name, field=array)
