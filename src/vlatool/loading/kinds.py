"""Which kind of data a section is: by its name, among those that a model type takes."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from vlatool.errors import EnvironmentProblem, UsageError
from vlatool.loading.base import DataKind
from vlatool.plugins import DATA_KINDS, did_you_mean


def data_kind(name: str | None, accepted: Sequence[str] = ()) -> DataKind:
    """The kind that `data.type` names; the first that is taken where it names none.

    Args:
        name: `data.type`.
        taken: Kinds that a model type takes, as it names them; empty for all built-in ones.

    Raises:
        UsageError: The model type does not take that kind; `details["key"]` is `data.type`.
        EnvironmentProblem: The model type's own kind cannot be imported.
    """
    kinds = [_kind(target) for target in accepted or DATA_KINDS.names()]
    for kind in kinds:
        if name in (None, "", kind.name):
            return kind
    known = [kind.name for kind in kinds]
    raise UsageError(
        f"data.type {name!r} is not among the kinds of data taken here: {', '.join(known)}",
        hint=did_you_mean(str(name), known),
        code="usage.unknown_kind_of_data",
        details={"key": "data.type", "known": known},
    )


def _kind(target: str) -> DataKind:
    """A built-in kind by its name, another one by `module:Kind`."""
    module, _, name = target.partition(":")
    if not name:
        return DATA_KINDS.get(target)()
    try:
        kind: Any = getattr(import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise EnvironmentProblem(
            f"the kind of data {target!r} cannot be imported: {error}",
            hint="reinstall or remove the distribution that brings it",
            code="environment.broken_plugin",
        ) from error
    return kind
