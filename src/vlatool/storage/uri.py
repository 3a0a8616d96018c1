"""Locations as values: a local path, an object in S3, or a scheme that later backends open."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vlatool.errors import DataError, UsageError
from vlatool.storage.s3_path import S3Path

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]+)://")


@dataclass(frozen=True)
class Uri:
    """Where something is, parsed once at the edge."""

    text: str

    @property
    def scheme(self) -> str:
        """`file` for local paths, else the part before `://`."""
        match = _SCHEME.match(self.text)
        return match.group(1) if match else "file"

    def local_path(self) -> Path:
        """The path of a local location, `~` expanded.

        Raises:
            UsageError: The location is remote.
        """
        if self.scheme != "file":
            raise self._unsupported()
        return Path(self.text.removeprefix("file://")).expanduser()

    def path(self) -> Path:
        """The path of a local location or of one in S3.

        Raises:
            UsageError: The location is elsewhere, or names no bucket.
        """
        if self.scheme != "s3":
            return self.local_path()
        path = S3Path(self.text)
        if not path.address.bucket:
            raise UsageError(
                f"{self.text}: no bucket is named",
                hint="write s3://bucket/key",
                code="usage.bad_location",
            )
        return path

    def _unsupported(self) -> UsageError:
        return UsageError(
            f"{self.text}: the scheme {self.scheme}:// cannot be used here",
            hint="copy the data to a local folder and give its path",
            code="usage.unsupported_scheme",
        )

    def __str__(self) -> str:
        return self.text


def local_path(location: str | Path) -> Path:
    """The local path behind a location given as text.

    Raises:
        UsageError: The location is remote.
    """
    return Uri(str(location)).local_path()


def location(text: str | Path) -> Path:
    """The path behind a location: local (`~` and `file://` resolved), or an object in S3.

    Raises:
        UsageError: Any other scheme.
    """
    return text if isinstance(text, S3Path) else Uri(str(text)).path()


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


def is_remote(path: Path) -> bool:
    """Whether a path is not on the local disk."""
    return isinstance(path, S3Path)
