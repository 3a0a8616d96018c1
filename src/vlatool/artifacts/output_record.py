"""`.vlatool/run.json`: what made an output, with which options, and whether it is whole."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatool import __version__
from vlatool.errors import UsageError
from vlatool.storage.atomic import write_json


@dataclass(frozen=True)
class OutputRecord:
    """Options that shape an output, its inputs, and its result once it is complete."""

    command: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    result: Mapping[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Writes the record atomically."""
        document = {
            "command": self.command,
            "version": __version__,
            "options": dict(self.options),
            "inputs": dict(self.inputs),
            "complete": self.result is not None,
            "result": None if self.result is None else dict(self.result),
        }
        write_json(_path(folder), document)


def read_record(folder: Path) -> OutputRecord | None:
    """The record of an output; None where there is none."""
    try:
        document = json.loads(_path(folder).read_text())
        return OutputRecord(
            document["command"], document["options"], document["inputs"], document["result"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def claim_output(
    folder: Path, record: OutputRecord, *, overwrite: bool, parts: Sequence[str]
) -> OutputRecord | None:
    """Makes `folder` ready for a run; returns the record of an equal, complete run if any.

    Args:
        folder: The output.
        record: What is about to run.
        overwrite: Replace what an earlier run with other options left.
        parts: Folders and files the command writes; they are removed before it starts afresh.

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
    if before is not None and not overwrite and _holds_something(folder):
        differences = _differences(before, record)
        if differences:
            raise UsageError(
                f"{folder}: was made with other options: {'; '.join(differences)}",
                hint="choose another --output, or replace it with --overwrite",
                code="usage.output_differs",
                details={"differences": differences},
            )
        if before.result is not None and all((folder / part).exists() for part in parts):
            return before
    # The record goes first: a run killed while it removes must not look complete.
    record.save(folder)
    for part in parts:
        shutil.rmtree(folder / part, ignore_errors=True)
    return None


def _differences(before: OutputRecord, now: OutputRecord) -> list[str]:
    if before.command != now.command:
        return [f"command {before.command} (now {now.command})"]
    old = json.loads(json.dumps({**before.options, **_prefixed(before.inputs)}))
    new = json.loads(json.dumps({**now.options, **_prefixed(now.inputs)}))
    return [
        f"{key} {old.get(key)!r} (now {new.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _prefixed(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {f"input {key}": value for key, value in inputs.items()}


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(child.name != ".vlatool" for child in folder.iterdir())


def _path(folder: Path) -> Path:
    return folder / ".vlatool" / "run.json"
