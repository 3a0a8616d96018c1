"""Single arrays of a Spartan episode: fields and camera matrices. Source: lbm-data 2.2, 2.4."""

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.sources.npz import NpzArchive


def field_values(archive: NpzArchive, name: str) -> Array:
    """[F, C] for numbers, [F] for text."""
    array = archive.read(name)
    if not array.shape:
        raise _refused(
            archive, name, "is a single value, expected one per frame", "length_mismatch"
        )
    if array.dtype.kind in "US":
        text = array if array.dtype.kind == "U" else np.char.decode(array, "utf-8", "replace")
        return text.reshape(len(array)) if array.size == len(array) else text
    if array.dtype.kind not in "biuf" or (len(array) and not array.size):
        found = f"is {array.dtype}{list(array.shape)}, expected numbers or texts"
        raise _refused(archive, name, found, "bad_field")
    return array.reshape(len(array), int(np.prod(array.shape[1:])))


def _refused(archive: NpzArchive, name: str, problem: str, code: str) -> DataError:
    return DataError(
        f"{archive.path}: {name!r} {problem}",
        hint="leave the field out with --data-discard-keys",
        code=f"data.{code}",
        details={"path": str(archive.path), "key": name},
    )


def camera_matrices(archive: NpzArchive, camera_id: str, shape: tuple[int, int]) -> Array | None:
    """Static [n, n] or per-frame [F, n, n] matrices of a camera; None where it has none."""
    if camera_id not in archive:
        return None
    values = archive.read(camera_id)
    is_matrix = values.ndim in (2, 3) and values.shape[-2:] == shape and values.dtype.kind in "fiu"
    if not is_matrix or not np.isfinite(values).all():
        found = "not finite" if is_matrix else f"{values.dtype}{list(values.shape)}"
        raise DataError(
            f"{archive.path}: {camera_id!r} is {found}, "
            f"expected finite matrices {list(shape)}, one or one per frame",
            hint="repair the calibration of this camera, or leave its line out of the file",
            code="data.bad_calibration",
            details={"path": str(archive.path), "key": camera_id},
        )
    return values
