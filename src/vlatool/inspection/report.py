"""Common parts of reports of a location: protocol, findings, values and tables as plain text."""

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from vlatool.errors import DataError

_NUMBER = re.compile(r"^-?[\d.,e+-]*( / \d+| [%kMG]?B?)?$")
_MAX_ROWS = 60

T = TypeVar("T")


class Report(Protocol):
    """Report of an artifact or a source."""

    @property
    def kind(self) -> str:
        """`source`, `shards`, `shard`, `run`, ...; determines the keys of the document."""
        ...

    def document(self) -> dict[str, Any]:
        """Report as JSON values."""
        ...

    def headline(self) -> str:
        """Summary in one line."""
        ...

    def blocks(self) -> list[str]:
        """Report as blocks of text; empty ones are left out."""
        ...


Findings = tuple[Mapping[str, str], ...]
Size = tuple[int, int]


class Problems(list[dict[str, str]]):
    """List of findings, each with `code` and `message`."""

    def read(self, read: Callable[..., T], *arguments: object) -> T | None:
        """Result of `read`; None, and a finding, if it raises DataError."""
        with self.collecting():
            return read(*arguments)
        return None

    @contextmanager
    def collecting(self) -> Generator[None]:
        """Adds a DataError of the block as a finding."""
        try:
            yield
        except DataError as error:
            self.append({"code": error.code, "message": error.message})


def branch(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Mapping under `key`; empty if there is none."""
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def listed(tree: Mapping[str, Any], key: str) -> list[Any]:
    """List under `key`; empty if there is none."""
    value = tree.get(key)
    return value if isinstance(value, list) else []


def findings_table(findings: Findings) -> str:
    """Table of findings."""
    rows = [tuple(finding.values()) for finding in findings]
    return table("Findings", ("code", "message"), rows)


def pairs(values: Mapping[str, object]) -> str:
    """Lines `name  value`, one per name; lists have a line per item, empty values are left out."""
    shown = {name: _lines(value) for name, value in values.items() if value not in ("", (), [])}
    width = max((len(name) for name in shown), default=0)
    return "\n".join(
        f"{name if index == 0 else '':<{width}}  {line}"
        for name, lines in shown.items()
        for index, line in enumerate(lines)
    )


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Titled table with aligned columns, numbers to the right; empty without rows."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    hidden = len(cells) - _MAX_ROWS
    cells = cells[:_MAX_ROWS]
    columns = [
        _aligned([name, *(row[index] for row in cells)]) for index, name in enumerate(header)
    ]
    lines = ["  " + "  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    if hidden > 0:
        lines.append(f"  ... and {hidden} more; use --json for all")
    return "\n".join([title, *lines])


def pixels_text(size: Size | None, missing: str = "") -> str:
    """A (width, height) as text, `missing` for None."""
    return missing if size is None else f"{size[0]} x {size[1]}"


def number_text(value: float | None) -> str:
    """A number with four digits, `-` for None."""
    return "-" if value is None else f"{value:.4g}"


def range_text(values: Sequence[float | None]) -> str:
    """Minimum and maximum of numbers as text; one number if they are equal."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    low, high = number_text(min(numbers)), number_text(max(numbers))
    return low if low == high else f"{low} .. {high}"


def indices_text(indices: Sequence[int], limit: int = 6) -> str:
    """Ascending numbers as ranges, such as `0-3, 7`; cut after `limit` ranges."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(parts if len(parts) <= limit else [*parts[:limit], "..."])


def _lines(value: object) -> Sequence[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]


def _aligned(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    is_number = all(_NUMBER.match(cell) for cell in cells[1:])
    return [cell.rjust(width) if is_number else cell.ljust(width) for cell in cells]
