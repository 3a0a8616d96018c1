"""Shows facts as plain text: lines of names and values, tables, numbers."""

import re
from collections.abc import Iterable, Mapping, Sequence
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
    findings = [tuple(finding.values()) for finding in report.findings or ()]
    texts = [pairs(report.summary), text_table("Findings", ("code", "message"), findings)]
    for table in report.tables:
        texts.append(table_text(table))
    return texts


def table_text(table: "Table") -> str:
    """A table as text; empty without rows."""
    return text_table(table.title, table.header, table.rows)


def is_number(text: str) -> bool:
    """True for a number, with a unit or a total such as in `3 / 5`."""
    return _NUMBER.match(text) is not None


def pairs(values: Mapping[str, object]) -> str:
    """Lines `name  value`, one per name; lists have a line per item, empty values are left out."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        items = value if isinstance(value, list | tuple) else [value]
        if value == "" or not items:
            continue
        rows.append((one_line(name), one_line(items[0])))
        for item in items[1:]:
            rows.append(("", one_line(item)))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {line}" for name, line in rows)


def text_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Titled table with aligned columns, numbers to the right; empty without rows. Without a header
    there are as many columns as in the first row.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    if not cells:
        return ""
    names = [one_line(name) for name in header] or [""] * len(cells[0])
    columns: list[list[str]] = []
    for index, name in enumerate(names):
        column = [row[index] for row in cells[:_MAX_ROWS]]
        width = max(len(name), *map(len, column))
        if all(map(is_number, column)):
            columns.append([cell.rjust(width) for cell in (name, *column)])
        else:
            columns.append([cell.ljust(width) for cell in (name, *column)])
    lines = [f"  {'  '.join(row).rstrip()}" for row in zip(*columns, strict=True)]
    if not header:
        lines = lines[1:]
    if len(cells) > _MAX_ROWS:
        lines.append(f"  ... and {len(cells) - _MAX_ROWS} more; use --json for all")
    return "\n".join([one_line(title), *lines])


def pixels_text(size: tuple[int, int] | None, missing: str = "") -> str:
    """A (width, height) as text, `missing` for None."""
    return missing if size is None else f"{size[0]} x {size[1]}"


def number_text(value: Any) -> str:
    """A number with four digits, `-` for None; any other value of a damaged file as it is."""
    if value is None:
        return "-"
    try:
        return f"{value:.4g}"
    except (TypeError, ValueError, OverflowError):
        return str(value)[:_MAX_VALUE]


def spark_text(values: Sequence[float], width: int = 16) -> str:
    """Curve of numbers in block characters, without numbers that are not finite or huge; may be
    empty.
    """
    finite = [value for value in values if abs(value) < MAX_DRAWN]
    if not finite:
        return ""
    count = min(width, len(finite))
    means: list[float] = []
    for index in range(count):
        start = index * len(finite) // count
        end = (index + 1) * len(finite) // count
        means.append(sum(finite[start:end]) / (end - start))
    low = min(means)
    span = max(means) - low
    if span == 0:
        return _BLOCKS[0] * count
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(top * (mean - low) / span)] for mean in means)


def few_text(names: Sequence[str], limit: int = 6) -> str:
    """The first names, and the number of the others."""
    parts = list(names[:limit])
    if len(names) > limit:
        parts.append(f"and {len(names) - limit} more")
    return ", ".join(parts)


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
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:limit]]
    if len(runs) > limit:
        parts.append("...")
    return ", ".join(parts)
