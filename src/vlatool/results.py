"""Results of commands: the fields of a class as a JSON document, and their text."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import PurePath
from typing import Any, ClassVar

# Metadata of fields: not in the document; left out while it has its default; a mapping whose keys
# are keys of the document.
UNLISTED: Mapping[str, str] = {"document": "never"}
OPTIONAL: Mapping[str, str] = {"document": "given"}
MERGED: Mapping[str, str] = {"document": "merged"}


@dataclass(frozen=True)
class Result:
    """Result of a command. Its document has its fields in order; its text is its lines."""

    # Key of the list whose objects are printed one by one; empty for a result that is no list.
    rows_key: ClassVar[str] = ""
    # Page of the documentation on the next step, where its command needs paths of other commands.
    guide: ClassVar[str] = ""

    def document(self) -> dict[str, Any]:
        """JSON document for programs."""
        return document_of(self)

    def rows(self) -> list[Mapping[str, Any]]:
        """Objects of a result that is a list."""
        return self.document()[self.rows_key] if self.rows_key else []

    def text(self) -> str:
        """Short text for people."""
        lines = [*self.lines()]
        if self.next_command and not self.is_planned:
            lines.append(f"next: {self.next_command}")
        elif self.guide and not self.is_planned:
            lines.append(f"guide: {self.guide}")
        return "\n".join(lines)

    def lines(self) -> Iterable[str]:
        """Lines of the text, besides the command for the next step."""
        return ()

    @property
    def exit_code(self) -> int:
        """Exit code of the command: not 0 if it found what it looks for, such as a difference."""
        return 0

    @property
    def next_command(self) -> str:
        """Command for the next step: the field `next`, if any. A dry run does not show it."""
        return getattr(self, "next", "")

    @property
    def is_planned(self) -> bool:
        """True for the result of a dry run."""
        return getattr(self, "status", "") == "planned"


def document_of(value: Any) -> dict[str, Any]:
    """Fields of a dataclass as JSON values, by their metadata."""
    document: dict[str, Any] = {}
    for declared in fields(value):
        content = getattr(value, declared.name)
        kind = declared.metadata.get("document")
        if kind == "never" or (kind == "given" and content in (None, _default(declared))):
            continue
        plain = _plain(content)
        document |= plain if kind == "merged" else {declared.name: plain}
    return document


def outcome(subject: str, status: str, content: str, plan: str) -> str:
    """First line of a text by its status; `plan` begins with `would`."""
    if status == "planned":
        return f"{subject}: {plan}; nothing was written"
    done = "; already complete, nothing to do" if status == "already complete" else ""
    return f"{subject}: {content}{done}"


# Control characters, line separators, and marks that reverse the direction of writing.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Text with control characters escaped as in JSON: a name may hold commands for a terminal."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: object) -> str:
    """Text without line breaks: a name or an instruction must not look like further lines."""
    return str(text).replace("\n", "\\n")


def columns(rows: Iterable[Iterable[object]]) -> str:
    """Rows as left-aligned columns; the last column is not padded."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    if not cells:
        return "none"
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines: list[str] = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _default(declared: Field[Any]) -> object:
    factory = declared.default_factory
    return declared.default if factory is MISSING else factory()


def _plain(value: Any) -> Any:
    document = getattr(value, "document", None)
    if document is not None:
        return document()
    if is_dataclass(value):
        return document_of(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, PurePath):
        return str(value)
    return value
