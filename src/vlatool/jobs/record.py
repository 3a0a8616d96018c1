"""`.vlatool/run.json`: what made an output, with which options, and whether it is whole."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatool import __version__
from vlatool.errors import UsageError
from vlatool.storage.atomic import remove_file, remove_tree, write_json


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


def known_output(
    folder: Path,
    record: OutputRecord,
    inputs: Callable[[], Mapping[str, Any]],
    *,
    overwrite: bool,
) -> OutputRecord | None:
    """The record of an equal run that may go on, or is complete; None to start afresh.

    Nothing is written.

    Args:
        folder: The output.
        record: What is about to run.
        inputs: Finds out what it is made from; asked only where that decides something.
        overwrite: Replace what a complete run or one with other options left.

    Raises:
        UsageError: The folder holds something else, or was made with other options or inputs.
    """
    before = read_record(folder)
    if not _holds_something(folder):
        return None
    if before is None:
        _refuse_strangers(folder, record, overwrite=overwrite)
        return None
    differences = _differences(before, record)
    if overwrite and (before.complete or differences):
        return None
    _refuse_differences(folder, "with other options", differences)
    if before.complete:
        changed = _compared(before.inputs, inputs())
        _refuse_differences(folder, "from other input", changed)
    return before


def claim_output(folder: Path, record: OutputRecord, owned: Sequence[str]) -> None:
    """Removes what an earlier run left in `folder` and enters the run that begins.

    Args:
        folder: The output.
        record: What is about to run.
        owned: Patterns of the files the command writes; what others put beside them stays.
    """
    # The journal goes before the record changes, the data after it: a run killed in between must
    # neither look complete nor trust what was made with other options.
    remove_tree(folder / ".vlatool/journal")
    record.save(folder)
    remove_owned(folder, owned)


def remove_owned(folder: Path, owned: Sequence[str]) -> None:
    """Removes the files of `folder` that match a pattern."""
    for pattern in owned:
        for path in list(folder.glob(pattern)):
            remove_file(path)


def _refuse_strangers(folder: Path, record: OutputRecord, *, overwrite: bool) -> None:
    has_list = (folder / ".vlatool/files.jsonl").is_file()
    if has_list and overwrite:
        return
    hint = "its record .vlatool/run.json is lost: replace it with --overwrite" if has_list else ""
    raise UsageError(
        f"{folder}: exists and was not made by vlatool {record.command}",
        hint=hint or "choose another --output",
        code="usage.output_exists",
    )


def _refuse_differences(folder: Path, how: str, differences: Sequence[str]) -> None:
    if differences:
        raise UsageError(
            f"{folder}: was made {how}: {'; '.join(differences)}",
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


def _compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    old, new = json.loads(json.dumps(dict(before))), json.loads(json.dumps(dict(now)))
    return [
        f"{key} {old.get(key)!r} (now {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(child.name != ".vlatool" for child in folder.iterdir())


def _path(folder: Path) -> Path:
    return folder / ".vlatool" / "run.json"
