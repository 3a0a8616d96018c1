"""Weights that were exported in the published layout of a model type.

Experiments of the policy program are recognized by their own files, without a record.
"""

from pathlib import Path

from vlatool.jobs.record import read_record

_COMMANDS = ("tokenizer export", "export")


def recognize(location: Path) -> str | None:
    """`export` at the location of one, else None."""
    record = read_record(location)
    return "export" if record is not None and record.command in _COMMANDS else None
