"""Locations as they are typed: a local path, an object in S3, or a scheme that is refused."""

import os
import re
from pathlib import Path
from typing import IO

from vlatool.errors import DataError, UsageError
from vlatool.storage.s3_path import S3Path

_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes, of usual file systems
_SHOWN = 100
_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+)://")


def local_path(location: str | Path) -> Path:
    """The path of a local location; `~` is expanded, `file://` taken away.

    Raises:
        UsageError: The location is remote, or no path can be so.
    """
    text = str(location)
    if _scheme(text) != "file":
        raise UsageError(
            f"{text}: the scheme {_scheme(text)}:// cannot be used here",
            hint="copy the data to a local folder and give its path",
            code="usage.unsupported_scheme",
        )
    try:
        path = Path(text.removeprefix("file://")).expanduser()
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    except (RuntimeError, ValueError) as error:  # ~name of nobody; half a character
        raise _bad_location(text, str(error)) from None
    if longest > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH or "\0" in text:
        raise _bad_location(text, "no file can have this name")
    return path


def location(text: str | Path) -> Path:
    """The path behind a location: local, or an object in S3.

    Raises:
        UsageError: It has any other scheme, or names no bucket.
    """
    if isinstance(text, S3Path):
        return text
    if _scheme(str(text)) != "s3":
        return local_path(text)
    path = S3Path(text)
    if not path.address.bucket:
        raise _bad_location(str(text), "no bucket is named", "write s3://bucket/key")
    return path


def _bad_location(text: str, reason: str, hint: str = "check the path") -> UsageError:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return UsageError(f"{shown!r}: {reason}", hint=hint, code="usage.bad_location")


def _scheme(text: str) -> str:
    """`file` for local paths, else the part before `://`."""
    match = _SCHEME.match(text)
    return match.group(1) if match else "file"


def existing(text: str) -> Path:
    """The path behind a location where something is.

    Raises:
        DataError: Nothing is there.
        UsageError: The scheme is unknown.
    """
    path = location(text)
    if not path.exists():
        raise DataError(
            f"{path}: does not exist",
            hint="check the path",
            code="data.no_source",
            details={"path": str(path)},
        )
    return path


def openable(path: Path) -> str | IO[bytes]:
    """What libraries of other languages can open: a local name, or an open remote file."""
    return path.open("rb") if isinstance(path, S3Path) else str(path)


def is_file_name(name: str) -> bool:
    """Whether file systems take a name that somebody else wrote."""
    try:
        return "\0" not in name and len(os.fsencode(name)) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False


def is_remote(path: Path) -> bool:
    """Whether a path is not on the local disk."""
    return isinstance(path, S3Path)
