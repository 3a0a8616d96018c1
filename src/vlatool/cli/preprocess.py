"""The command line of `vlatool preprocess`; its keys depend on the format and the sink."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from vlatool.cli.commands import Command
from vlatool.cli.config_command import ConfigSpec, load
from vlatool.cli.forms import Form, run_workflow
from vlatool.cli.help import is_help
from vlatool.cli.session import Invocation
from vlatool.errors import UsageError

if TYPE_CHECKING:
    from vlatool.config.base import ConfigModel


def preprocess_form(row: Command) -> Form:
    spec = ConfigSpec(
        partial(_schema, row.schema),
        positionals=tuple(row.arguments),
        note=_NOTE,
        values={"format": "vlatool.plugins:FORMATS", "sink": "vlatool.plugins:SINKS"},
        presets=row.presets,
    )
    return Form(spec, _preprocess)


def _preprocess(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    """Runs the command; a first word that is a location is not a format."""
    from vlatool.recordings.detect import is_source

    name = values["format"]
    if name is not None and is_source(name):
        values = {**values, "format": None, "sources": [name, *(values["sources"] or ())]}
    run_workflow(run, row, values)


def _schema(target: str, args: Sequence[str]) -> "type[ConfigModel]":
    """Config class with the keys of the format and the sink that the arguments name, or that belong
    to the first source.
    """
    from vlatool.plugins import PUBLISHED_SINK
    from vlatool.workflows.preprocess import LBM_NAMES

    schema = load(target)
    typed, words = _split(args)
    tree: dict[str, Any] = {**typed, "format": _format(typed, words)}
    tree["sink"] = typed.get("sink", typed.get("sink.type", ""))
    if not tree["sink"] and typed.keys() & LBM_NAMES:
        tree["sink"] = PUBLISHED_SINK
    try:
        if not is_help(args):
            from vlatool.recordings.detect import is_source

            tree["sources"] = [word for word in words if is_source(word)]
        return schema.specialize(tree)
    except UsageError as error:
        if is_help(args):
            return schema.specialize({})
        if args and tree["format"] == args[0] and error.details.get("kind") == "format":
            error.message = f"{args[0]!r} is neither a format, nor does such a location exist"
        raise


def _split(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options with their values, and all other words, as far as the words alone tell."""
    typed: dict[str, str] = {}
    words: list[str] = []
    before = ""
    for word, following in pairwise([*args, ""]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_").removeprefix("no_").removeprefix("source.")
            before = ""
            if not equals:
                value = following
                before = word
            typed[name] = value
            continue
        if not before and not word.startswith("-"):
            words.append(word)
        before = ""
    return typed, words


def _format(typed: Mapping[str, str], words: Sequence[str]) -> str:
    from vlatool.plugins import FORMATS
    from vlatool.recordings.detect import is_source

    named = typed.get("format") or typed.get("type", "")
    formats = [word for word in words if word in FORMATS.names()]
    if named or formats or not words:
        return named or (formats or [""])[0]
    return "" if is_source(words[0]) else words[0]


_NOTE = (
    "Formats and sinks have their own options: `vlatool preprocess FORMAT --sink NAME --help-all` "
    "lists them. Without FORMAT, vlatool looks at SOURCE to know its options."
)
