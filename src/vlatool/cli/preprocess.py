"""The command line of `vlatool preprocess` and `curate`; keys depend on format and sink."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlatool.cli.commands import Command
from vlatool.cli.config_command import Form
from vlatool.cli.forms import run_workflow
from vlatool.cli.session import Invocation
from vlatool.errors import UsageError

_NOTE = (
    "Formats and sinks have their own options: `vlatool preprocess FORMAT --sink NAME --help-all` "
    "lists them. Without FORMAT, vlatool looks at SOURCE to know its options."
)


def preprocess_form(row: Command) -> Form:
    return Form(
        _preprocess,
        choose=_format_of,
        note=_NOTE,
        values={"format": "vlatool.plugins:FORMATS.names", "sink": "vlatool.plugins:SINKS.names"},
    )


def _format_of(words: Sequence[str]) -> Mapping[str, Any]:
    """The format that a command line names, or the sources that tell it."""
    from vlatool.recordings.detect import is_source

    if not words or is_source(words[0]):
        return {"sources": words}
    return {"format": words[0]}


def _preprocess(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    """Runs the command; a first word that is a location is not a format."""
    from vlatool.plugins import FORMATS
    from vlatool.recordings.detect import is_source

    name = values["format"]
    if name is not None and is_source(name):
        values = {**values, "format": None, "sources": [name, *(values["sources"] or ())]}
    elif name is not None:
        try:
            FORMATS.get(name)
        except UsageError as error:
            error.message = f"{name!r} is neither a format, nor does such a location exist"
            raise
    run_workflow(run, row, values)
