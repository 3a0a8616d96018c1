"""Locations as values: a local path, or a scheme that later backends open."""

import re
from dataclasses import dataclass
from pathlib import Path

from vlatool.errors import UsageError

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
            raise UsageError(
                f"{self.text}: the scheme {self.scheme}:// cannot be used here",
                hint="copy the data to a local folder and give its path",
                code="usage.unsupported_scheme",
            )
        return Path(self.text.removeprefix("file://")).expanduser()

    def __str__(self) -> str:
        return self.text


def local_path(location: str | Path) -> Path:
    """The local path behind a location given as text.

    Raises:
        UsageError: The location is remote.
    """
    return Uri(str(location)).local_path()
