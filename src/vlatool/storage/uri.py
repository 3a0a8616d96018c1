"""Locations as they are typed: a local path, or one of a scheme of the table."""

import os
import re
from pathlib import Path
from typing import IO

from vlatool.errors import DataError, UsageError
from vlatool.plugins import SCHEMES, did_you_mean
from vlatool.storage.remote import is_listable
from vlatool.storage.remote_path import RemotePath

_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes, of usual file systems
_SHOWN = 100
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_SHAPES = {
    "s3": (re.compile(r"[^/]+"), "s3://bucket/key"),
    "http": (re.compile(r"[^/]+"), "http://host/path"),
    "https": (re.compile(r"[^/]+"), "https://host/path"),
    "hf": (
        re.compile(r"(datasets|models)/[^/@]+/[^/@]+(@[^/]+)?(/|$)"),
        "hf://datasets/owner/name/path or hf://models/owner/name@revision/path",
    ),
}


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
    """The path behind a location, local or remote.

    Raises:
        UsageError: Nothing knows its scheme, or it lacks what the scheme needs.
    """
    if isinstance(text, RemotePath):
        return text
    scheme = _scheme(str(text))
    if scheme == "file":
        return local_path(text)
    if scheme not in SCHEMES.names():
        known = [*SCHEMES.names(), "file"]
        raise UsageError(
            f"{scheme}://: no such scheme",
            hint=did_you_mean(scheme, known),
            code="usage.unsupported_scheme",
            details={"known": known},
        )
    _check(str(text), scheme)
    return RemotePath(text)


def check_no_credentials(text: str) -> None:
    """Refuses a location that would put a secret into logs and records.

    Raises:
        UsageError: It holds a name and a password, or a query.
    """
    scheme, rest = _scheme(text), text.partition("://")[2]
    host = rest.partition("/")[0]
    is_web = scheme in ("http", "https")
    if scheme in _SHAPES and ("@" in host or (is_web and re.search("[?#]", rest))):
        raise UsageError(
            f"{scheme}://{host.rpartition('@')[2].partition('?')[0]}: credentials, queries and"
            " fragments cannot be part of a location",
            hint="give the plain location; credentials belong into the environment",
            code="usage.credentials_in_location",
        )


def _check(text: str, scheme: str) -> None:
    """Refuses what the scheme cannot mean."""
    check_no_credentials(text)
    rest = text.partition("://")[2]
    shape, example = _SHAPES.get(scheme, (re.compile(""), ""))
    if not shape.match(rest):
        raise _bad_location(text, "the location is not complete", f"write {example}")


def _bad_location(text: str, reason: str, hint: str = "check the path") -> UsageError:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return UsageError(f"{shown!r}: {reason}", hint=hint, code="usage.bad_location")


def _scheme(text: str) -> str:
    """`file` for local paths, else the part before `://`."""
    match = _SCHEME.match(text)
    return match.group(1).lower() if match else "file"


def require_existing(text: str) -> Path:
    """The path behind a location where something is, at the version it has now.

    Raises:
        DataError: Nothing is there.
        UsageError: The scheme is unknown.
    """
    path = pinned(text)
    if is_missing(path):
        raise DataError(
            f"{text}: does not exist",
            hint="check the path",
            code="data.no_source",
            details={"path": str(path)},
        )
    return path


def is_missing(path: Path) -> bool:
    """Whether nothing is there; never where folders cannot be told from nothing."""
    return not path.exists() and can_list(path)


def can_list(path: Path) -> bool:
    """Whether a folder can be asked what is in it."""
    return not isinstance(path, RemotePath) or is_listable(path.address)


def pinned(text: str | Path) -> Path:
    """The path of a location at the version it has now, where its storage names versions.

    Raises:
        DataError: It has not the version that the location names.
        EnvironmentProblem: It is not open to this user.
        UsageError: The scheme is unknown.
    """
    path = location(text)
    return path.pinned() if isinstance(path, RemotePath) else path


def pinned_text(text: str) -> str:
    """A location as it was typed; with its version where the storage names versions."""
    path = pinned(text)
    return str(path) if version_of(path) else text


def version_of(path: Path) -> str:
    """The version that a pinned path names; empty where its storage names none."""
    return path.version if isinstance(path, RemotePath) else ""


def as_native_file(path: Path) -> str | IO[bytes]:
    """What libraries of other languages can open: a local name, or an open remote file."""
    return path.open("rb") if isinstance(path, RemotePath) else str(path)


def is_file_name(name: str) -> bool:
    """Whether file systems take a name that somebody else wrote."""
    try:
        return "\0" not in name and len(os.fsencode(name)) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False


def is_remote(path: Path) -> bool:
    """Whether a path is not on the local disk."""
    return isinstance(path, RemotePath)
