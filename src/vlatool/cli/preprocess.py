"""The command line of `vlatool preprocess`; its keys depend on the format and the sink."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vlatool.cli.commands import Command
from vlatool.cli.config_command import ConfigSpec
from vlatool.cli.forms import Form, load, run_workflow
from vlatool.cli.help import is_help
from vlatool.cli.session import Invocation
from vlatool.errors import UsageError

if TYPE_CHECKING:
    from vlatool.config.base import ConfigModel


def preprocess_form(row: Command) -> Form:
    spec = ConfigSpec(
        partial(_schema, row.schema),
        positionals=tuple(row.arguments),
        note=_note,
        values={"format": _formats, "sink": _sinks},
        presets=row.presets,
    )
    return Form(spec, _preprocess)


def _preprocess(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    """Runs the command; a first word that is a location is not a format."""
    from vlatool.formats.detect import is_source

    name = values["format"]
    if name is not None and is_source(name):
        values = {**values, "format": None, "sources": [name, *(values["sources"] or ())]}
    run_workflow(run, row, values)


def _schema(target: str, args: Sequence[str]) -> "type[ConfigModel]":
    """Config class with the keys of the format and the sink that the arguments name."""
    schema = load(target)
    name = _format_in(args)
    try:
        general = schema.specialize({"format": name, "sink": _sink_in(args)})
        if name or is_help(args) or not _has_format_option(general, args):
            return general
        name = _detected(args)
        return schema.specialize({"format": name, "sink": _sink_in(args)})
    except UsageError as error:
        if is_help(args):
            return schema.specialize({})
        if args and name == args[0] and error.details.get("kind") == "format":
            error.message = f"{name!r} is neither a format, nor does such a location exist"
        raise


def _format_in(args: Sequence[str]) -> str:
    from vlatool.plugins import FORMATS

    named = _value_of(args, "--format", "--type")
    formats = FORMATS.names()
    if named or not args or args[0].startswith("-"):
        return named or next((arg for arg in args if arg in formats), "")
    if args[0] in formats:
        return args[0]
    from vlatool.formats.detect import is_source

    return "" if is_source(args[0]) else args[0]


def _has_format_option(schema: "type[ConfigModel]", args: Sequence[str]) -> bool:
    """True if an option is one of formats only."""
    from vlatool.plugins import DEFAULT_SINK, FORMATS, SINKS

    sink = SINKS.get(_sink_in(args) or DEFAULT_SINK).Config
    for arg in args:
        key = arg.partition("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_")
        is_option = arg.startswith("--") and key not in {*schema.model_fields, *sink.model_fields}
        if is_option and FORMATS.names_with_key(key):
            return True
    return False


def _detected(args: Sequence[str]) -> str:
    """Format of the first location; it must be clear, because an option belongs to it."""
    from vlatool.formats.detect import detect_source, is_source, with_mapping
    from vlatool.jobs.ownership import require_input

    mapping = _value_of(args, "--mapping", "--source.mapping") or None
    for before, word in pairwise(["", *args]):
        is_value = before.startswith("--") and "=" not in before
        if not (word.startswith("-") or is_value) and is_source(word):
            return detect_source(require_input(word), None, with_mapping({}, mapping)).format
    return ""


def _sink_in(args: Sequence[str]) -> str:
    """The sink that the arguments name; `lbm` for a published command; else empty."""
    from vlatool.plugins import PUBLISHED_SINK
    from vlatool.workflows.preprocess import LBM_NAMES, published_keys

    if named := _value_of(args, "--sink", "--sink.type"):
        return named
    words = {arg[2:].partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--")}
    return PUBLISHED_SINK if words & (LBM_NAMES | published_keys()) else ""


def _value_of(args: Sequence[str], *options: str) -> str:
    """Value of the first of these options that is given; empty if none is."""
    for word, following in pairwise([*args, ""]):
        name, equals, value = word.partition("=")
        if name in options:
            return value if equals else following
    return ""


def _formats() -> Sequence[str]:
    from vlatool.plugins import FORMATS

    return FORMATS.names()


def _sinks() -> Sequence[str]:
    from vlatool.plugins import SINKS

    return SINKS.names()


def _note() -> str:
    return (
        "Formats and sinks have their own options: `vlatool preprocess FORMAT --sink NAME "
        "--help-all` lists them. Without FORMAT, vlatool looks at SOURCE to know its options."
    )
