"""Facts as plain text: lines of names and values, tables, numbers."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vlatool.results import one_line

if TYPE_CHECKING:
    from vlatool.report.facts import Report, Table

_NUMBER = re.compile(r"^-?[\d.,e+-]*( / \d+| [%kMG]?B?)?$")
_MAX_VALUE = 20
MAX_DRAWN = 1e300  # sums and differences of larger numbers are not finite
_MAX_ROWS = 60
# From the lowest to the highest.
_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def blocks(report: "Report") -> list[str]:
    """A report as blocks of text; empty ones are left out."""
    rows = [tuple(finding.values()) for finding in report.findings or ()]
    findings = text_table("Findings", ("code", "message"), rows)
    return [pairs(report.summary), findings, *(table_text(table) for table in report.tables)]


def table_text(table: "Table") -> str:
    """A table as text; empty without rows."""
    return text_table(table.title, table.header, table.rows)


def is_number(text: str) -> bool:
    """True for a number, with a unit or a total such as in `3 / 5`."""
    return _NUMBER.match(text) is not None


def pairs(values: Mapping[str, object]) -> str:
    """Lines `name  value`, one per name; lists have a line per item, empty values are left out."""
    shown: dict[str, list[str]] = {}
    for name, value in values.items():
        if value not in ("", (), []):
            items = value if isinstance(value, list | tuple) else [value]
            shown[one_line(name)] = [one_line(item) for item in items]
    width = max((len(name) for name in shown), default=0)
    return "\n".join(
        f"{name if index == 0 else '':<{width}}  {line}"
        for name, lines in shown.items()
        for index, line in enumerate(lines)
    )


def text_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Titled table with aligned columns, numbers to the right; empty without rows. Without a header
    there are as many columns as in the first row.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    hidden = len(cells) - _MAX_ROWS
    cells = cells[:_MAX_ROWS]
    columns: list[list[str]] = []
    for index in range(len(header) or len(cells[0])):
        name = one_line(header[index]) if header else ""
        columns.append(_aligned([name, *(row[index] for row in cells)]))
    lines = ["  " + "  ".join(row).rstrip() for row in zip(*columns, strict=True)]
    if not header:
        lines = lines[1:]
    if hidden > 0:
        lines.append(f"  ... and {hidden} more; use --json for all")
    return "\n".join([one_line(title), *lines])


def pixels_text(size: tuple[int, int] | None, missing: str = "") -> str:
    """A (width, height) as text, `missing` for None."""
    return missing if size is None else f"{size[0]} x {size[1]}"


def number_text(value: Any) -> str:
    """A number with four digits, `-` for None; any other value of a damaged file as it is."""
    try:
        return "-" if value is None else f"{value:.4g}"
    except (TypeError, ValueError, OverflowError):
        return str(value)[:_MAX_VALUE]


def spark_text(values: Sequence[float], width: int = 16) -> str:
    """Block characters for the course of the numbers that are finite and below 1e300; or empty."""
    finite = [value for value in values if abs(value) < MAX_DRAWN]
    if not finite:
        return ""
    count = min(width, len(finite))
    edges = [index * len(finite) // count for index in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    low = min(means)
    span = max(means) - min(means)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(top * (mean - low) / span) if span else 0] for mean in means)


def few_text(names: Sequence[str], limit: int = 6) -> str:
    """The first names, and the number of the others."""
    more = len(names) - limit
    return ", ".join([*names[:limit], *([f"and {more} more"] if more > 0 else [])])


def range_text(values: Sequence[float | None]) -> str:
    """Minimum and maximum of numbers as text; one number if they are equal."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "-"
    low = number_text(min(numbers))
    high = number_text(max(numbers))
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


def _aligned(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    is_numeric = all(is_number(cell) for cell in cells[1:])
    return [cell.rjust(width) if is_numeric else cell.ljust(width) for cell in cells]
