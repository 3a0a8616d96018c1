"""Recorded interface; `python -m tests.surface.record` rewrites it and the page of findings.

A changed record is a changed interface and needs a line in CHANGELOG.md.
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.surface import commands, results, source

FOLDER = Path(__file__).parent / "recorded"
# Folder of records to the function that returns them.
PARTS: Mapping[str, Callable[[], dict[str, str]]] = {
    "commands": commands.recorded,
    "results": results.recorded,
    "source": source.recorded,
}


def read_records(part: str) -> dict[str, str]:
    """Records of a part: file name to text."""
    return {path.name: path.read_text() for path in sorted((FOLDER / part).iterdir())}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Differences as a patch; empty without any."""
    lines: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = (records.get(name, "").splitlines() for records in (before, now))
        lines += difflib.unified_diff(old, new, f"recorded/{name}", f"now/{name}", lineterm="")
    return "\n".join(lines)


def main() -> None:
    """Writes all records and the page of findings, and removes obsolete records."""
    for part, current in PARTS.items():
        folder = FOLDER / part
        folder.mkdir(parents=True, exist_ok=True)
        files = current()
        for path in folder.iterdir():
            if path.name not in files:
                path.unlink()
        for name, text in files.items():
            (folder / name).write_text(text)
    source.FINDINGS_PAGE.write_text(source.findings_page())


if __name__ == "__main__":
    main()
