"""What several configurations ask of their values before a command runs."""

from collections.abc import Sequence
from typing import Any

from vlatool.config.base import ConfigModel
from vlatool.config.schema import unset_needed
from vlatool.errors import UsageError


def check_needed(config: ConfigModel, usage: str) -> None:
    """Makes sure that the keys without which a command cannot run have a value.

    Args:
        config: What was typed.
        usage: How the command is written.

    Raises:
        UsageError: One has none.
    """
    for key in unset_needed(config):
        raise UsageError(
            f"{usage.split()[1]} needs a value for {key!r}", hint=usage, code="usage.missing_key"
        )


def each_once(value: Sequence[Any]) -> Sequence[Any]:
    """The values, if none stands there twice; a rule for field validators."""
    twice = [item for item in value if value.count(item) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is given twice")
    return value
