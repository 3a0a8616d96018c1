"""`vlatool preprocess [FORMAT] SOURCE...`."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import typer

from vlatool.cli.config_command import ConfigSpec, config_command
from vlatool.cli.options import TextArg, TextsArg, command_app
from vlatool.cli.session import command

if TYPE_CHECKING:
    from vlatool.config.base import ConfigModel

app = command_app()


def _schema(args: Sequence[str]) -> "type[ConfigModel]":
    """Config class with the keys of the format and the sink that the arguments name."""
    from vlatool.workflows.preprocess import PreprocessConfig

    return PreprocessConfig.specialize(
        {"format": _format_in(args), "sink": _value_of(args, "--sink", "--sink.type")}
    )


def _format_in(args: Sequence[str]) -> str:
    from vlatool.plugins import FORMATS

    named = _value_of(args, "--format", "--type")
    formats = FORMATS.names()
    if named or not args or args[0].startswith("-"):
        return named or next((arg for arg in args if arg in formats), "")
    if args[0] in formats:
        return args[0]
    from vlatool.sources.detection import is_source

    return "" if is_source(args[0]) else args[0]


def _value_of(args: Sequence[str], *options: str) -> str:
    """Value of one of the options; empty without one."""
    for word, following in pairwise([*args, ""]):
        name, equals, value = word.partition("=")
        if name in options:
            return value if equals else following
    return ""


def _format_and_sink(args: Sequence[str]) -> Sequence[str]:
    """Names of the format and the sink; empty if not given."""
    return (_format_in(args), _value_of(args, "--sink", "--sink.type"))


def _formats() -> Sequence[str]:
    from vlatool.plugins import FORMATS

    return FORMATS.names()


def _sinks() -> Sequence[str]:
    from vlatool.plugins import SINKS

    return SINKS.names()


def _note() -> str:
    from vlatool.plugins import FORMATS

    return (
        f"Formats: {', '.join(FORMATS.names())}. "
        "`vlatool preprocess FORMAT --help` lists the keys of a format. "
        "Without FORMAT, the format is detected and its keys are written --source.KEY."
    )


SPEC = ConfigSpec(
    _schema,
    short={"-o": "output"},
    positionals=("format", "sources"),
    note=_note,
    values={"format": _formats, "sink": _sinks},
    presets=("preprocess",),
    schema_words=_format_and_sink,
)


@app.command(
    cls=config_command(
        SPEC,
        "[FORMAT] SOURCE...",
        "vlatool preprocess spartan raw --preset lbm-1past-14future --output data",
        "vlatool preprocess lerobot gr1 -o out/gr1 --episodes 0:4 --resize-images-size 96,96",
    ),
)
def preprocess(
    ctx: typer.Context,
    format: TextArg = None,  # noqa: A002 - the name of the key
    sources: TextsArg = None,
) -> None:
    """Turn raw episodes into training data."""
    with command(ctx) as run:
        from vlatool.sources.detection import is_source
        from vlatool.workflows import preprocess as workflow

        if format is not None and is_source(format):
            format, sources = None, [format, *(sources or ())]  # noqa: A001
        settings = run.config(workflow.PreprocessConfig, format=format, sources=sources)
        run.finish(workflow.preprocess(settings, reporter=run.reporter))
