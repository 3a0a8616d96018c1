"""Lookup of data kinds by name, among those that a model type accepts."""

from collections.abc import Sequence
from typing import Any

from vlatool.errors import UsageError
from vlatool.loading.base import DataKind
from vlatool.plugins import DATA_KINDS, did_you_mean, load_data_kind


def data_kind(name: str | None, accepted: Sequence[str] = ()) -> DataKind:
    """Returns the data kind of a name, or the first accepted kind if there is no name; `accepted`:
    `kinds` of a model type; empty: all built-in kinds.
    """
    kinds = [_kind(target) for target in accepted or DATA_KINDS.names()]
    for kind in kinds:
        if name in (None, "", kind.name):
            return kind
    known = [kind.name for kind in kinds]
    raise UsageError(
        f"data.type {name!r} is not one of the accepted data kinds: {', '.join(known)}",
        hint=did_you_mean(str(name), known),
        code="usage.unknown_kind_of_data",
        details={"key": "data.type", "known": known},
    )


def _kind(target: str) -> DataKind:
    """Returns the built-in kind of a name, or an instance of `module:Kind`."""
    kind: Any = load_data_kind(target) if ":" in target else DATA_KINDS.get(target)
    return kind()
