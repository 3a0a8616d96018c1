"""The recorded interface: `python -m tests.surface.record` writes it anew.

A change of a record is a change of the interface: it needs a line in CHANGELOG.md.
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.surface import commands, results, source

FOLDER = Path(__file__).parent / "recorded"
# What is looked at together; each is a folder of records.
PARTS: Mapping[str, Callable[[], dict[str, str]]] = {
    "commands": commands.recorded,
    "results": results.recorded,
    "source": source.recorded,
}


def written(part: str) -> dict[str, str]:
    """The records of a part: file name to text."""
    return {path.name: path.read_text() for path in sorted((FOLDER / part).iterdir())}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What has changed, as a patch; empty when nothing has."""
    lines: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = (one.get(name, "").splitlines() for one in (before, now))
        lines += difflib.unified_diff(old, new, f"recorded/{name}", f"now/{name}", lineterm="")
    return "\n".join(lines)


def main() -> None:
    """Writes all records and removes those that are no more."""
    for part, current in PARTS.items():
        folder = FOLDER / part
        folder.mkdir(parents=True, exist_ok=True)
        files = current()
        for path in folder.iterdir():
            if path.name not in files:
                path.unlink()
        for name, text in files.items():
            (folder / name).write_text(text)


if __name__ == "__main__":
    main()
