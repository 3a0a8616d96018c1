"""Options that several commands share, and the output options that every command takes."""

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
    ("--progress MODE", f"Form of the progress: {', '.join(PROGRESS_MODES)}."),
    ("-q, --quiet", "Print only warnings and errors to stderr."),
    ("-v, --verbose", "Print the log; -vv its details, --debug tracebacks."),
    ("--log-file FILE", "Append the complete log to FILE."),
]
OUTPUT_OPTIONS = ("--json", "--progress", "--quiet", "--verbose", "--log-file", "--debug")
OUTPUT_WORDS: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys(OUTPUT_OPTIONS),
    "--progress": PROGRESS_MODES,
    "--log-file": (),
}
_FLAGS = {"--json", "-q", "--quiet", "-v", "-vv", "--verbose", "--debug"}
_VALUED = {"--log-file", "--progress"}


def take_output_options(args: Sequence[str], options: OutputOptions) -> list[str]:
    """Moves the output options from `args` into `options`; returns the other arguments."""
    options.json = options.json or "--json" in (args[: args.index("--")] if "--" in args else args)
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            return [*rest, word, *words]
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if word in _FLAGS:
            if word == "--json":
                options.json = True
            elif word == "--debug":
                options.debug = True
            elif word in ("-q", "--quiet"):
                options.quiet = True
            else:
                options.verbose += 2 if word == "-vv" else 1
        elif name in _VALUED:
            _set_value(name, value if equals else next(words, None), options)
        else:
            rest.append(word)
    return rest


def _set_value(name: str, value: str | None, options: OutputOptions) -> None:
    if not value:
        raise UsageError(
            f"option {name} needs a value",
            hint=f"write {name} VALUE",
            code="usage.missing_value",
            details={"option": name},
        )
    if name == "--log-file":
        options.log_file = value
    elif value in PROGRESS_MODES:
        options.progress = value
    else:
        raise UsageError(
            f"invalid value {value!r} for --progress",
            hint=f"choose one of: {', '.join(PROGRESS_MODES)}",
            code="usage.unknown_value",
            details={"option": name, "known": list(PROGRESS_MODES)},
        )


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
        "--set", metavar="KEY=VALUE", help="Set one key, after presets and files; repeatable."
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
