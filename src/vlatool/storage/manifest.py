"""Manifests and other small JSON documents: one typed reader and writer.

A manifest is a JSON object with `format`, `version` and the values of a frozen dataclass. Its
annotations are checked by pydantic, so a value has the declared type and is within its bounds, or
a `DataError` names the file, the key and the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from vlatool.errors import DataError
from vlatool.storage.atomic import write_json
from vlatool.storage.documents import DocumentError, read_json
from vlatool.storage.uri import is_file_name

T = TypeVar("T")

_SHOWN = 200
MAX_MANIFEST_BYTES = 2**29  # room for the rows of three million episodes


def _relative(name: str) -> str:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or not parts or not all(map(is_file_name, parts)):
        raise ValueError(f"{name[:_SHOWN]!r} is not the path of a file in the folder")
    return name


def _plain(name: str) -> str:
    if "/" in _relative(name):
        raise ValueError(f"{name[:_SHOWN]!r} is not the name of a file in the folder")
    return name


# Types of values; of other types, only int becomes float.
Count = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, Field(strict=True)]
FileName = Annotated[str, AfterValidator(_plain)]
RelativePath = Annotated[str, AfterValidator(_relative)]


@cache
def _adapter(content: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(content)


def parse_values(content: type[T], values: object) -> T:
    """Checks the values of a document; keys that `content` does not declare are ignored."""
    try:
        return _adapter(content).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key}: {reason}" if key else reason) from None


@dataclass(frozen=True)
class ManifestType(Generic[T]):
    name: str  # name of the file
    format: str  # value of its key `format`
    version: int  # value of its key `version`; others are not read
    content: type[T]  # frozen dataclass of the other values
    hint: str  # action after an error
    optional: tuple[str, ...] = ()  # keys that may be missing; the dataclass has defaults for them
    code: str = "data.broken"  # code of errors

    def is_in(self, folder: Path) -> bool:
        """True if a folder has a manifest of this format, possibly broken."""
        try:
            document = read_json(folder / self.name, max_bytes=MAX_MANIFEST_BYTES)
        except (DocumentError, OSError):
            return False
        if not isinstance(document, dict):
            return False
        return cast("dict[str, Any]", document).get("format") == self.format

    def document(self, folder: Path) -> dict[str, Any] | None:
        """JSON object of the manifest; None if it is missing or has another format."""
        try:
            content: object = read_json(folder / self.name, max_bytes=MAX_MANIFEST_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DocumentError as error:
            raise self.error(folder, error.reason) from None
        except OSError as error:
            raise self.error(folder, error) from None
        if not isinstance(content, dict):
            return None
        document = cast("dict[str, Any]", content)
        if document.get("format") != self.format:
            return None
        if document.get("version") != self.version:
            version = str(document.get("version"))[:_SHOWN]
            reason = f"has version {version}; this vlatool supports {self.version}"
            raise self.error(folder, reason)
        return document

    def read(self, folder: Path) -> T | None:
        """The manifest of a folder; None if it is missing or has another format."""
        document = self.document(folder)
        return None if document is None else self.parse(folder, document)

    def parse(self, folder: Path, document: Mapping[str, Any]) -> T:
        """The values of a document; raises DataError if one is missing or invalid."""
        names = [entry.name for entry in fields(self.content)]  # pyright: ignore[reportArgumentType] - a dataclass
        for name in names:
            if name not in document and name not in self.optional:
                raise self.error(folder, f"{name}: is missing")
        try:
            return parse_values(self.content, document)
        except ValueError as error:
            raise self.error(folder, error) from None

    def write(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Writes the manifest atomically; as the last file, it marks the folder as complete."""
        document = {"format": self.format, "version": self.version, **values}
        write_json(folder / self.name, document)

    def error(self, folder: Path, reason: object) -> DataError:
        return DataError.at(folder / self.name, reason, hint=self.hint, code=self.code)
