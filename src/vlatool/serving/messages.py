"""Messages between clients and a policy server: msgpack maps with arrays, and texts of errors.

The protocol is in docs/reference/serving.md. Part of the client package, too: nothing newer than
Python 3.8, relative imports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgpack
import numpy as np

from ..errors import DataError, EnvironmentProblem, StorageError, UsageError, VlatoolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Version of the metadata and of the map below `CONTROL`.
PROTOCOL = 1
# Key of a request with the control of an episode; all others are of the observation.
CONTROL = "vlatool"
# Code of failures of a server that are no fault of the client.
SERVER_FAILED = "environment.server_failed"
_ARRAY = b"__ndarray__"
_SCALAR = b"__npgeneric__"
_DATA = b"data"
_DTYPE = b"dtype"
_SHAPE = b"shape"
# Booleans, integers, floats, bytes and texts; objects would need pickle.
_KINDS = "biufSU"
# Values, keys and elements of a message besides those of its arrays, and lists and maps in another.
MAX_OBJECTS = 4096
_MAX_DEPTH = 16
# Longest texts, maps, names of dtypes, and shapes. The time of some steps grows with the square of
# these lengths, and all clients wait meanwhile.
_LIMITS = {"max_str_len": 65_536, "max_map_len": 256}
_MAX_DTYPE = 16
_MAX_DIMENSIONS = 64
_HINT = "\nhint: "
_CODE = "\ncode: "


def pack(message: Mapping[str, Any]) -> bytes:
    try:
        packed = msgpack.packb(message, default=_packed_array)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"a value cannot be sent: {error}",
            hint="give numpy arrays of numbers, numbers and strings",
            code="data.missing",
        ) from error
    assert isinstance(packed, bytes)
    return packed


def unpack(data: bytes, max_objects: int = MAX_OBJECTS) -> dict[str, Any]:
    """Decodes a message from bytes; its arrays are read-only."""
    left = max_objects

    def count(number: int) -> None:
        nonlocal left
        left -= number
        if left < 0:
            raise _bad_message(f"the message has more than {max_objects:,} values")

    def unpacked_map(pairs: list[tuple[Any, Any]]) -> Any:
        count(2 * len(pairs))
        value = dict(pairs)
        if _ARRAY in value:
            return _array(value)
        if _SCALAR in value:
            return _scalar(value)
        return value

    def unpacked_list(values: list[Any]) -> list[Any]:
        count(len(values))
        return values

    hooks = {"object_pairs_hook": unpacked_map, "list_hook": unpacked_list}
    try:
        message = msgpack.unpackb(data, max_array_len=max_objects, **hooks, **_LIMITS)
        is_deep = _depth(message) > _MAX_DEPTH
    except DataError:
        raise
    except Exception as error:
        raise _bad_message(f"the message is not msgpack: {type(error).__name__} {error}") from error
    if is_deep or not isinstance(message, dict):
        raise _bad_message(f"the message is a {type(message).__name__}, not a map of values")
    return message


def _depth(value: Any) -> int:
    values = value.values() if isinstance(value, dict) else value
    is_nested = isinstance(value, (dict, list))
    return 1 + max(map(_depth, values), default=0) if is_nested else 0


def error_text(error: VlatoolError) -> str:
    """Text frame that carries an error."""
    hint = f"{_HINT}{error.hint}" if error.hint else ""
    return f"{error.message}{hint}{_CODE}{error.code}"


def error_of(text: str) -> VlatoolError:
    """Error that a text frame carries; text of a foreign server becomes an `EnvironmentProblem`."""
    rest, _, code = text.rpartition(_CODE)
    message, _, hint = rest.partition(_HINT)
    kinds = {kind.kind: kind for kind in (DataError, UsageError, StorageError)}
    if not message or "\n" in code:
        message = text
        hint = ""
        code = SERVER_FAILED
    return kinds.get(code.partition(".")[0], EnvironmentProblem)(message, hint=hint, code=code)


def _packed_array(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in _KINDS:
            raise TypeError(f"numpy values of type {value.dtype}")
        dtype = value.dtype.str
        if isinstance(value, np.ndarray):
            return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: dtype, _SHAPE: value.shape}
        return {_SCALAR: True, _DATA: value.item(), _DTYPE: dtype}
    raise TypeError(f"values of type {type(value).__name__}")


def _lengths(shape: Any) -> tuple[int, ...] | None:
    """Lengths of the dimensions; None if they are not numbers from 0, or too many."""
    if not isinstance(shape, Sequence) or len(cast("Sequence[object]", shape)) > _MAX_DIMENSIONS:
        return None
    lengths = tuple(cast("Sequence[object]", shape))
    are_numbers = all(type(length) is int and length >= 0 for length in lengths)
    return cast("tuple[int, ...]", lengths) if are_numbers else None


def _array(value: Mapping[Any, Any]) -> NDArray[Any]:
    dtype = _dtype(value)
    data = value.get(_DATA)
    shape = _lengths(value.get(_SHAPE))
    if shape is None or not isinstance(data, bytes):
        raise _bad_message("an array has no data or no valid shape")
    # An array without values may have lengths that no copy of it can have.
    if math.prod(max(length, 1) for length in shape) > max(len(data), 1):
        raise _bad_message(f"{list(shape)} has more values than bytes")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise _bad_message(f"{dtype} {list(shape)} does not have {len(data):,} bytes")
    try:
        return np.ndarray(buffer=data, dtype=dtype, shape=shape)
    except (ValueError, TypeError) as error:  # more dimensions than numpy has
        raise _bad_message(f"an array cannot be read: {error}") from error


def _scalar(value: Mapping[Any, Any]) -> Any:
    data = value.get(_DATA)
    dtype = _dtype(value)
    # The types of texts make as many zero bytes as a number says.
    if not isinstance(data, {"S": bytes, "U": str}.get(dtype.kind, (bool, int, float))):
        raise _bad_message("a numpy scalar has no data of its type")
    try:
        return dtype.type(data)
    except (ValueError, TypeError, OverflowError) as error:
        raise _bad_message(f"a numpy scalar cannot be read: {error}") from error


def _dtype(value: Mapping[Any, Any]) -> np.dtype[Any]:
    name = value.get(_DTYPE)
    try:
        dtype = np.dtype(name) if isinstance(name, str) and len(name) <= _MAX_DTYPE else None
    except Exception as error:
        raise _bad_message(f"{name!r} is no dtype") from error
    if dtype is None or dtype.kind not in _KINDS or not dtype.itemsize:
        raise _bad_message(f"arrays of dtype {name!r} are not accepted")
    return dtype


def _bad_message(reason: str) -> DataError:
    return DataError(
        reason,
        hint="send one msgpack map per request, as docs/reference/serving.md describes",
        code="data.broken",
    )
