"""`.vlatool/run.json`: what made an output, with which options, and whether it is whole."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatool import __version__
from vlatool.errors import UsageError
from vlatool.storage.atomic import remove_tree, write_json


@dataclass(frozen=True)
class OutputRecord:
    """What made an output.

    Attributes:
        command: Subcommand that wrote it.
        options: Options that shape it.
        inputs: What it was made from, as far as it is known.
        result: What came of it; None while a run is under way.
        complete: Whether nothing is left to do; a run whose items failed in part is not complete.
        version: Version of vlatool.
    """

    command: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    result: Mapping[str, Any] | None = None
    complete: bool = False
    version: str = __version__

    def save(self, folder: Path) -> None:
        """Writes the record atomically."""
        document = {
            "command": self.command,
            "version": self.version,
            "options": dict(self.options),
            "inputs": dict(self.inputs),
            "complete": self.complete,
            "result": None if self.result is None else dict(self.result),
        }
        write_json(_path(folder), document)


def read_record(folder: Path) -> OutputRecord | None:
    """The record of an output; None where there is none."""
    try:
        document = json.loads(_path(folder).read_bytes())
        return OutputRecord(
            document["command"],
            document["options"],
            document["inputs"],
            document["result"],
            bool(document["complete"]),
            str(document["version"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def claim_output(
    folder: Path,
    record: OutputRecord,
    inputs: Callable[[], Mapping[str, Any]],
    *,
    overwrite: bool,
    parts: Sequence[str],
) -> OutputRecord | None:
    """Makes `folder` ready for a run; returns the record of an equal, complete run if any.

    What an unfinished run with the same options left stays where it is: the run goes on.

    Args:
        folder: The output.
        record: What is about to run.
        inputs: Finds out what it is made from; asked only where that decides something.
        overwrite: Replace what a complete run or one with other options left.
        parts: Folders the command writes; they are removed before it starts afresh.

    Raises:
        UsageError: The folder holds something else, or was made with other options or inputs.
    """
    before = read_record(folder)
    if before is None and _holds_something(folder):
        raise UsageError(
            f"{folder}: exists and was not made by vlatool {record.command}",
            hint="choose another --output",
            code="usage.output_exists",
        )
    differences = [] if before is None else _differences(before, record)
    goes_on = before is not None and not before.complete and not differences
    if before is not None and (goes_on or not overwrite) and _holds_something(folder):
        _refuse_differences(folder, differences)
        if before.complete and all((folder / part).exists() for part in parts):
            _refuse_differences(folder, _compared(before.inputs, inputs(), "input "))
            return before
        record.save(folder)
        return None
    # The journal goes before the record changes, the data after it: a run killed in between must
    # neither look complete nor trust what was made with other options.
    remove_tree(folder / ".vlatool/journal")
    record.save(folder)
    for part in parts:
        remove_tree(folder / part)
    return None


def _refuse_differences(folder: Path, differences: Sequence[str]) -> None:
    if differences:
        raise UsageError(
            f"{folder}: was made with other options: {'; '.join(differences)}",
            hint="choose another --output, or replace it with --overwrite",
            code="usage.output_differs",
            details={"differences": list(differences)},
        )


def _differences(before: OutputRecord, now: OutputRecord) -> list[str]:
    if before.command != now.command:
        return [f"command {before.command} (now {now.command})"]
    options = _compared(before.options, now.options)
    if not options and not before.complete and before.version != now.version:
        return [f"begun by vlatool {before.version} (now {now.version})"]
    return options


def _compared(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    old, new = json.loads(json.dumps(dict(before))), json.loads(json.dumps(dict(now)))
    return [
        f"{prefix}{key} {old.get(key)!r} (now {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(child.name != ".vlatool" for child in folder.iterdir())


def _path(folder: Path) -> Path:
    return folder / ".vlatool" / "run.json"
