"""What every report of a location has in common: its shape, its problems, facts as plain text."""

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from vlatool.errors import DataError

_NUMBER = re.compile(r"^-?[\d.,e+-]*( / \d+| [%kMG]?B?)?$")
_MOST_ROWS = 60

T = TypeVar("T")


class Report(Protocol):
    """What was found at one kind of location."""

    @property
    def kind(self) -> str:
        """`source`, `shards`, `shard`, `run`, ...; says which keys to expect."""
        ...

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        ...

    def headline(self) -> str:
        """What it is, in a few words."""
        ...

    def blocks(self) -> list[str]:
        """The report for people, block by block; empty ones are left out."""
        ...


Findings = tuple[Mapping[str, str], ...]
Size = tuple[int, int]


class Problems(list[dict[str, str]]):
    """What is broken or missing, with `code` and `message`."""

    def read(self, read: Callable[..., T], *arguments: object) -> T | None:
        """What a file says; None, and a problem, where it is missing or broken."""
        with self.collecting():
            return read(*arguments)
        return None

    @contextmanager
    def collecting(self) -> Generator[None]:
        """Makes a refusal in the block a problem."""
        try:
            yield
        except DataError as error:
            self.append({"code": error.code, "message": error.message})


def branch(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under `key` of what a file says; empty where there is none."""
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def listed(tree: Mapping[str, Any], key: str) -> list[Any]:
    """The list under `key`; empty where there is none."""
    value = tree.get(key)
    return value if isinstance(value, list) else []


def findings_table(findings: Findings) -> str:
    """What is broken or missing."""
    return table("Findings", ("code", "message"), [tuple(one.values()) for one in findings])


def pairs(values: Mapping[str, object]) -> str:
    """One `name  value` line each; lists have a line per item, empty values are left out."""
    shown = {name: _lines(value) for name, value in values.items() if value not in ("", (), [])}
    width = max((len(name) for name in shown), default=0)
    return "\n".join(
        f"{name if index == 0 else '':<{width}}  {line}"
        for name, lines in shown.items()
        for index, line in enumerate(lines)
    )


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A titled table with aligned columns, numbers to the right; empty without rows."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    hidden = len(cells) - _MOST_ROWS
    cells = cells[:_MOST_ROWS]
    columns = [
        _aligned([name, *(row[index] for row in cells)]) for index, name in enumerate(header)
    ]
    lines = ["  " + "  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    if hidden > 0:
        lines.append(f"  ... and {hidden} more, all of them with --json")
    return "\n".join([title, *lines])


def pixels_text(size: Size | None, missing: str = "") -> str:
    """A (width, height)."""
    return missing if size is None else f"{size[0]} x {size[1]}"


def number_text(value: float | None) -> str:
    """A number with four digits, `-` for none."""
    return "-" if value is None else f"{value:.4g}"


def range_text(values: Sequence[float | None]) -> str:
    """The extremes of some numbers, or the one number that they are."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    low, high = number_text(min(numbers)), number_text(max(numbers))
    return low if low == high else f"{low} .. {high}"


def indices_text(indices: Sequence[int], limit: int = 6) -> str:
    """Ascending numbers as ranges, such as `0-3, 7`; cut after `limit` of them."""
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
