"""Parsing of locations: local paths, or URIs with one of the registered schemes."""

import difflib
import os
import re
from pathlib import Path
from typing import IO

from vlatool.errors import DataError, UsageError
from vlatool.plugins import SCHEMES, did_you_mean
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.remote import is_listable, remote_class
from vlatool.storage.remote_path import RemotePath

_LONGEST_NAME = 255
_LONGEST_PATH = 4000
_MAX_SHOWN = 100  # characters
_MOST_NAMES = 1000  # of a folder, among which a similar one is searched
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def local_path(location: str | Path) -> Path:
    """Path of a local location; `~` is expanded and `file://` removed."""
    text = str(location)
    if _scheme(text) != "file":
        raise UsageError(
            f"{text}: this must be a local path, not {_scheme(text)}://",
            hint="write to a local folder, and copy it afterwards",
            code="usage.unsupported",
        )
    try:
        path = Path(text.removeprefix("file://")).expanduser()
        longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    except (RuntimeError, ValueError) as error:  # ~name without such a user; a lone surrogate
        raise _bad_location(text, str(error)) from None
    if longest > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH or "\0" in text:
        raise _bad_location(text, "not a valid file name")
    return path


def location(text: str | Path) -> Path:
    """Path of a local or remote location."""
    if isinstance(text, RemotePath):
        return text
    scheme = _scheme(str(text))
    if scheme == "file":
        return local_path(text)
    if scheme not in SCHEMES.names():
        known = [*SCHEMES.names(), "file"]
        raise UsageError(
            f"vlatool does not know locations that start with {scheme}://",
            hint=did_you_mean(scheme, known),
            code="usage.unsupported",
            details={"known": known},
        )
    _check(str(text), scheme)
    return RemotePath(text)


def check_no_credentials(text: str) -> None:
    """Raises if a location contains credentials, which would get into logs and records."""
    scheme = _scheme(text)
    rest = text.partition("://")[2]
    if scheme in SCHEMES.names() and remote_class(scheme).form.secret.match(rest):
        host = rest.partition("/")[0]
        raise UsageError(
            f"{scheme}://{host.rpartition('@')[2].partition('?')[0]}: a location cannot have"
            " credentials, a query or a fragment",
            hint="remove them; put credentials into environment variables",
            code="usage.secret",
        )


def _check(text: str, scheme: str) -> None:
    """Raises UsageError for a location that has not the form of its scheme."""
    check_no_credentials(text)
    form = remote_class(scheme).form
    if not form.pattern.match(form.canonical(text.partition("://")[2])):
        raise _bad_location(text, "the location is incomplete", f"use the form {form.example}")


def _bad_location(text: str, reason: str, hint: str = "check the path") -> UsageError:
    shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
    return UsageError(f"{shown!r}: {reason}", hint=hint, code="usage.bad_value")


def _scheme(text: str) -> str:
    """`file` for local paths, else the part before `://`."""
    match = _SCHEME.match(text)
    return match.group(1).lower() if match else "file"


def require_existing(text: str) -> Path:
    """Path of an existing location, at its current version."""
    path = pinned(text)
    if is_missing(path):
        raise missing_error(path)
    return path


def missing_error(path: Path) -> DataError:
    """Error for a location that does not exist; its hint names a similar file beside it."""
    hint = path_hint(path) + hub_hint(path)
    return DataError(
        f"{path}: does not exist", hint=hint, code="data.no_source", details={"path": str(path)}
    )


def path_hint(path: Path) -> str:
    """Hint on a path that does not exist: where it ends, and a similar name there."""
    if isinstance(path, RemotePath):
        return "check the location and its spelling"
    folder = path.absolute()
    missing = folder.name
    while not folder.is_dir() and folder != folder.parent:
        missing = folder.name
        folder = folder.parent
    try:
        names = sorted(os.listdir(folder))[:_MOST_NAMES]
    except OSError:
        return "check the path"
    if missing in names:
        return f"{folder / missing} is a file, or a link to something that does not exist"
    near = difflib.get_close_matches(missing, names, n=1)
    if near:
        return f"did you mean {near[0]}, in {folder}?"
    return f"there is no {missing} in {folder}"


def hub_hint(text: str | Path) -> str:
    """Rest of a hint on a missing path that looks like a repository of the hub; else empty."""
    if not _REPOSITORY.fullmatch(str(text)) or Path(text).parent.exists():
        return ""
    return f"; if it is on the Hugging Face hub: hf://{text}, or a data set hf://datasets/{text}"


def is_missing(path: Path) -> bool:
    """True if the path does not exist; False if that is unknown, because it cannot be listed."""
    return not path.exists() and can_list(path)


def can_list(path: Path) -> bool:
    """True if folders can be listed."""
    return not isinstance(path, RemotePath) or is_listable(path.address)


def pinned(text: str | Path) -> Path:
    """Path of a location at its current version, if its storage has versions."""
    path = location(text)
    return path.pinned() if isinstance(path, RemotePath) else path


def pinned_text(text: str) -> str:
    """Text of a location, with its version if the storage has versions."""
    path = pinned(text)
    return str(path) if version_of(path) else text


def version_of(path: Path) -> str:
    """Version of a pinned path; empty if its storage has no versions."""
    return path.version if isinstance(path, RemotePath) else ""


def as_native_file(path: Path) -> str | IO[bytes]:
    """Returns a file for libraries in other languages: a local file name, or an open remote file.

    Only the parts of a remote file that are read are requested, once in a process.
    """
    if isinstance(path, RemotePath):
        return path.opened()
    open_file(path).close()
    return str(path)


def is_file_name(name: str) -> bool:
    """True if a name of unknown origin is valid as a file name."""
    try:
        return "\0" not in name and len(os.fsencode(name)) <= _LONGEST_NAME
    except UnicodeEncodeError:
        return False


def is_inside(name: str) -> bool:
    """True if a relative name of unknown origin, with `/`, stays inside its folder."""
    return all(part not in ("", ".", "..") and is_file_name(part) for part in name.split("/"))


def is_remote(path: Path) -> bool:
    """True if a path is not on the local disk."""
    return isinstance(path, RemotePath)
