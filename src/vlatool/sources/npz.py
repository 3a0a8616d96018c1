"""Member-wise access to npz archives that never unpickles and inflates only what is asked for."""

import ast
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError

_LARGEST_HEADER = 10_000
_LARGEST_ARRAY = 2**34
_BROKEN = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class ArrayHeader:
    """What an npy member says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool

    @property
    def length(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize  # exact: a lying shape cannot wrap


class NpzArchive:
    """One npz file; arrays are read by name.

    Raises:
        DataError: The file is missing or not a zip archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                names = [info.filename for info in archive.infolist()]
        except _BROKEN as error:
            raise _broken(path, None, error) from None
        self.names = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def header(self, name: str) -> ArrayHeader:
        """Shape and dtype of an array, without reading its values."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as member:
                header = _read_header(member)
                expected = header.length + member.tell()
                stored = archive.getinfo(f"{name}.npy").file_size
        except KeyError:
            raise missing_array(self.path, name) from None
        except _BROKEN as error:
            raise _broken(self.path, name, error) from None
        if not header.dtype.hasobject and stored != expected:
            raise _broken(self.path, name, f"{stored} bytes stored, its header says {expected}")
        return header

    def read(self, name: str) -> Array:
        """A whole array.

        Raises:
            DataError: It is missing, broken, holds Python objects, or is absurdly large.
        """
        header = self.header(name)
        if header.dtype.hasobject:
            raise DataError(
                f"{self.path}: {name!r} holds Python objects, which are never loaded",
                hint="leave the field out, for example with --data-discard-keys",
                code="data.object_array",
                details={"path": str(self.path), "key": name},
            )
        if header.length > _LARGEST_ARRAY:
            raise _broken(self.path, name, f"{header.length} bytes; the limit is {_LARGEST_ARRAY}")
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as member:
                _read_header(member)
                data = member.read(header.length)
            order = "F" if header.fortran_order else "C"
            return np.frombuffer(data, header.dtype).reshape(header.shape, order=order)
        except _BROKEN as error:
            raise _broken(self.path, name, error) from None


class NpzFrames:
    """Pictures [F, H, W, 3] of one npz member, inflated frame by frame from the front.

    Memory is one frame, whatever the length; going backwards starts again at the front.
    """

    def __init__(self, path: Path, name: str, header: ArrayHeader) -> None:
        if len(header.shape) != 4 or header.shape[3] != 3 or header.dtype != np.uint8:
            raise DataError(
                f"{path}: {name!r} is {header.dtype}{list(header.shape)}, "
                "expected uint8 [frames, height, width, 3]",
                code="data.not_pictures",
                details={"path": str(path), "key": name},
            )
        if header.fortran_order:
            raise _broken(path, name, "pictures in Fortran order cannot be streamed")
        self._path = path
        self._name = name
        self._shape = header.shape
        self._member: IO[bytes] | None = None
        self._next = 0

    def __len__(self) -> int:
        return self._shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._shape[1], self._shape[2]

    def read(self, indices: Sequence[int]) -> UInt8Array:
        """Pictures uint8 [N, H, W, 3]."""
        frames = np.empty((len(indices), *self._shape[1:]), np.uint8)
        for position, index in enumerate(indices):
            frames[position] = self._frame(index)
        return frames

    def _frame(self, index: int) -> UInt8Array:
        if not 0 <= index < len(self):
            raise _broken(self._path, self._name, f"has no frame {index} of {len(self)}")
        try:
            if self._member is None or index < self._next:
                self._rewind()
            assert self._member is not None
            frame_bytes = int(np.prod(self._shape[1:]))
            for _ in range(self._next, index):
                self._member.read(frame_bytes)
            data = self._member.read(frame_bytes)
        except _BROKEN as error:
            raise _broken(self._path, self._name, error) from None
        if len(data) != frame_bytes:
            raise _broken(self._path, self._name, f"ends inside frame {index}")
        self._next = index + 1
        return np.frombuffer(data, np.uint8).reshape(self._shape[1:])

    def _rewind(self) -> None:
        self.close()
        archive = zipfile.ZipFile(self._path)
        self._member = archive.open(f"{self._name}.npy")
        archive.close()  # the member keeps the file open until it is closed itself
        _read_header(self._member)
        self._next = 0

    def close(self) -> None:
        """Lets go of the file."""
        if self._member is not None:
            self._member.close()
            self._member = None


def missing_array(path: Path, name: str) -> DataError:
    """The error for an array that must be there."""
    return DataError(
        f"{path}: the array {name!r} is missing",
        hint="the episode is incomplete; download or record it again",
        code="data.missing_array",
        details={"path": str(path), "key": name},
    )


def _read_header(member: IO[bytes]) -> ArrayHeader:
    """Parses an npy header without trusting it."""
    version = npy.read_magic(member)
    length_bytes = 2 if version == (1, 0) else 4
    length = int.from_bytes(member.read(length_bytes), "little")
    if length > _LARGEST_HEADER:
        raise ValueError(f"array header of {length} bytes")
    try:
        fields = ast.literal_eval(
            member.read(length).decode("latin1" if version < (3, 0) else "utf8")
        )
        shape = tuple(int(size) for size in fields["shape"])
        dtype = npy.descr_to_dtype(fields["descr"])
        fortran = bool(fields["fortran_order"])
    except (SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"array header cannot be parsed: {error}") from None
    if any(size < 0 for size in shape):
        raise ValueError(f"array shape {shape}")
    return ArrayHeader(shape, dtype, fortran)


def _broken(path: Path, name: str | None, reason: object) -> DataError:
    where = f"{path}: array {name!r}" if name else str(path)
    return DataError(
        f"{where} cannot be read: {reason}",
        hint="the file is damaged; download or record it again",
        code="data.broken_npz",
        details={"path": str(path), "key": name},
    )
