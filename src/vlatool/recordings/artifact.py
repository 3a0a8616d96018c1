"""Kinds of things on disk: one folder per kind, with three files of one function each.

`plugins.ARTIFACTS` names the folders. A folder `formats/KIND/` has

    layout.py  def recognize(location: Path) -> str | None
    check.py   FINDINGS: tuple[FindingCodes, ...]
               def check(location: Path, options: CheckOptions) -> Iterator[Finding]
    facts.py   def inspect(location: Path) -> Report

`recognize` returns the name of the kind in results, such as `run` or `checkpoint`; it reads little
and does not raise for locations of other kinds. The folder of the first one that returns a name is
used. `check` yields the findings of `verify`, with codes of `FINDINGS`; `inspect` returns the facts
and, if there is one, the page of `inspect`. Type, version, reading and writing are in layout.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes
from vlatool.jobs.record import read_valid_record
from vlatool.plugins import ARTIFACTS
from vlatool.recordings.check import OUTPUT, CheckOptions
from vlatool.recordings.lerobot.layout import INFO_FILE
from vlatool.report.facts import Report


@dataclass(frozen=True)
class Artifact:
    """Recognized artifact."""

    kind: str  # name of the kind, from `recognize`
    folder: str  # package of the kind, such as `vlatool.checkpoints`
    location: Path

    def check(self, options: CheckOptions) -> Iterator[Finding]:
        return import_module(f"{self.folder}.check").check(self.location, options)

    def inspect(self) -> Report:
        return import_module(f"{self.folder}.facts").inspect(self.location)


def recognize(location: Path) -> Artifact | None:
    """The artifact at a location; None if there is none, as for raw episodes."""
    for folder in ARTIFACTS.values():
        kind = import_module(f"{folder}.layout").recognize(location)
        if kind is not None:
            return Artifact(kind, folder, location)
    return None


# Kinds, from `recognize`, in messages.
_CONTENTS = {
    "output": "shards of samples",
    "image-shards": "image shards",
    "windows": "windows",
    "codes": "codes of a visual tokenizer",
    "samples": "samples for a language model",
    "fast": "a FAST action tokenizer",
    "curation": "figures of episodes",
    "frames": "frames of episodes",
    "run": "a training run",
    "checkpoint": "a checkpoint",
    "experiment": "a published experiment",
    "experiment_file": "weights of a published experiment",
    "source": "raw episodes",
}


def contents_text(kind: str) -> str:
    """Returns words for a kind that `recognize` returns; empty if there are none."""
    return _CONTENTS.get(kind, "")


def other_contents_error(location: Path, needed: str, hint: str, code: str) -> DataError | None:
    """Returns an error that says what a location holds, if a command needs something else.

    None if the contents are unknown, or if they are the needed contents, but incomplete.
    """
    contents = _contents(location)
    if not contents or contents in needed:
        return None
    return DataError.at(location, f"holds {contents}, not {needed}", hint=hint, code=code)


def _contents(location: Path) -> str:
    """Words for the contents of a location; empty if they are unknown."""
    artifact = recognize(location)
    if artifact is not None:
        return contents_text(artifact.kind)
    record = read_valid_record(location)
    is_raw = record is not None and record.command == "sample"
    return "raw episodes" if is_raw or (location / INFO_FILE).is_file() else ""


def finding_codes() -> Iterator[FindingCodes]:
    """Finding codes of all artifacts, the most general kinds first."""
    yield OUTPUT
    for folder in reversed(ARTIFACTS.values()):
        yield from import_module(f"{folder}.check").FINDINGS
