"""Weights in the published layout of a model type: exported, or composed of base models.

Experiments of the policy program are recognized by their own files, without a record.
"""

from pathlib import Path

from vlatool.jobs.record import read_record

COMPOSE = "compose"
_COMMANDS = ("tokenizer export", "export", COMPOSE)


def recognize(location: Path) -> str | None:
    record = read_record(location)
    return "export" if record is not None and record.command in _COMMANDS else None
