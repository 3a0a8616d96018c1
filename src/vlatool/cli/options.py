"""Options that commands share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from typer.core import TyperGroup

from vlatool.errors import UsageError

PROGRESS_MODES = ("auto", "rich", "plain", "json", "none")
CONTEXT = {"help_option_names": ["--help", "-h", "--help-all"], "max_content_width": 110}


@dataclass
class OutputOptions:
    """Output options of one invocation, filled while its arguments are parsed."""

    json: bool = False  # print the result as one JSON document
    jsonl: bool = False  # print the result, a list, as one JSON document per line
    quiet: bool = False  # print only warnings and errors to stderr
    verbose: int = 0  # 1 shows the log of the library, 2 its details
    debug: bool = False  # print the traceback of an error
    log_file: str = ""  # file that receives the complete log
    progress: str = "auto"  # one of `PROGRESS_MODES`


OUTPUT_HELP = [
    ("--json", "Print the result, or the error, as JSON."),
    ("--progress MODE", f"How progress is shown: {', '.join(PROGRESS_MODES)}."),
    ("--quiet, --verbose", "Print warnings only (-q), the log (-v, -vv, --debug)."),
    ("--log-file FILE", "Append the complete log to FILE."),
]
# Output options to their known values; None for a switch.
OUTPUT_WORDS: dict[str, tuple[str, ...] | None] = {
    "--json": None,
    "--progress": PROGRESS_MODES,
    "--quiet": None,
    "--verbose": None,
    "--log-file": (),
    "--debug": None,
}
# Switches, and the fields of `OutputOptions` that they set.
_SWITCHES = {"--json": "json", "--debug": "debug", "-q": "quiet", "--quiet": "quiet"}
_VERBOSE = {"-v": 1, "--verbose": 1, "-vv": 2}
_VALUED = {"--log-file": "log_file", "--progress": "progress"}


def take_output_options(args: Sequence[str], options: OutputOptions) -> list[str]:
    """Moves the output options from `args` into `options`; returns the other arguments."""
    own = args[: args.index("--")] if "--" in args else args
    options.json = options.json or "--json" in own  # also for an error in another option
    rest: list[str] = []
    words = iter(own)
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if word in _SWITCHES:
            setattr(options, _SWITCHES[word], True)
        elif word in _VERBOSE:
            options.verbose += _VERBOSE[word]
        elif name in _VALUED:
            setattr(options, _VALUED[name], _valid(name, value if equals else next(words, "")))
        else:
            rest.append(word)
    return [*rest, *args[len(own) :]]


def _valid(name: str, value: str) -> str:
    if not value:
        raise UsageError(
            f"the option {name} needs a value",
            hint=f"write {name} VALUE",
            code="usage.missing_key",
            details={"option": name},
        )
    if name == "--progress" and value not in PROGRESS_MODES:
        raise UsageError(
            f"--progress cannot be {value!r}",
            hint=f"choose one of: {', '.join(PROGRESS_MODES)}",
            code="usage.bad_value",
            details={"option": name, "known": list(PROGRESS_MODES)},
        )
    return value


PresetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME",
        help="Preset to start from; repeatable. `vlatool presets` lists them.",
    ),
]
ConfigOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help="YAML file, applied after the presets; repeatable."
    ),
]
SetOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set one key; wins over presets and files; repeatable."
    ),
]
CompatOpt = Annotated[
    bool,
    typer.Option(
        "--compat",
        help="Read --config like the published program: ignore unknown keys and list them.",
    ),
]
KeysOpt = Annotated[
    bool, typer.Option("--keys", help="List the configuration keys of this command and exit.")
]
# Options of every command with a configuration; `--compat` only if it has sections.
CONFIG_OPTIONS = {
    "preset": (PresetOpt, None),
    "config": (ConfigOpt, None),
    "set_": (SetOpt, None),
    "compat": (CompatOpt, False),
    "keys": (KeysOpt, False),
}
NprocOpt = Annotated[
    int | None,
    typer.Option(
        "--nproc", metavar="N", help="Number of processes on this machine, one per GPU if any."
    ),
]
TextArg = Annotated[str | None, typer.Argument()]
TextsArg = Annotated[list[str] | None, typer.Argument()]
JsonLinesOpt = Annotated[
    bool, typer.Option("--jsonl", help="Print one JSON document per row of the list.")
]


def command_app(kind: type[TyperGroup] | None = None) -> typer.Typer:
    """Typer app of a command; `kind` is the class of a group of commands."""
    return typer.Typer(
        cls=kind,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT,
    )
