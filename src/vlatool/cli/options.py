"""Options that commands share, and the separation of configuration keys from argv before Typer.

Typer cannot accept keys that a schema declares at run time, and if it ignored unknown options, it
would take a misspelled option for a value.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from typer.core import TyperGroup

from vlatool.errors import UsageError

_NEGATIVE = re.compile(r"-(\.?\d|inf|nan|$)", re.IGNORECASE)
_CONFIG = "--config"
_PUBLISHED_OPTIONS = {"config_path": "config"}
_BARE_KEY = re.compile(r"([A-Za-z_]\w*(?:\.[\w-]+)*)=(.*)", re.DOTALL)
_BOOL_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0"})


@dataclass(frozen=True)
class TypedValue:
    """Configuration value as typed."""

    key: str  # dotted key, or name of a key
    text: str
    option: str  # the option as typed, for messages


@dataclass(frozen=True)
class ArgvSpec:
    """Options and keys of one command line."""

    # Options that Typer parses, as typed; True if an option takes a value.
    options: Mapping[str, bool]
    # Names (with underscores) of configuration keys; True for a switch.
    keys: Mapping[str, bool] = field(default_factory=dict)
    short: Mapping[str, str] = field(default_factory=dict)  # short forms of keys: `-o` for `output`
    # `a.b=c` without dashes sets a key, and `config=FILE` is `--config FILE`.
    has_bare_keys: bool = False


@dataclass
class SplitArgv:
    """Configuration values of a command line, and the arguments left for Typer."""

    rest: list[str] = field(default_factory=list)
    typed: list[TypedValue] = field(default_factory=list)


def split_argv(argv: Sequence[str], spec: ArgvSpec, *, lenient: bool = False) -> SplitArgv:
    """Separates configuration values from everything else, in the order typed."""
    walker = _ArgvWalker(list(argv), spec, lenient)
    walker.walk()
    return walker.result


class _ArgvWalker:
    def __init__(self, argv: list[str], grammar: ArgvSpec, lenient: bool) -> None:
        self.argv = argv
        self.spec = grammar
        self.lenient = lenient
        self.position = 0
        self.result = SplitArgv()

    def walk(self) -> None:
        while self.position < len(self.argv):
            word = self.argv[self.position]
            self.position += 1
            if word == "--":
                self.result.rest += [word, *self.argv[self.position :]]
                return
            if word.startswith("--"):
                self._long(word)
            elif is_option(word):
                self._short(word)
            elif self.spec.has_bare_keys and (match := _BARE_KEY.fullmatch(word)):
                self._word(*match.groups())
            else:
                self.result.rest.append(word)

    def _word(self, key: str, text: str) -> None:
        if f"--{key}" == _CONFIG:
            self.result.rest += [_CONFIG, text]
        else:
            self._add(key, text, f"{key}=")

    def _long(self, word: str) -> None:
        option, equals, text = word.partition("=")
        value = text if equals else None
        name = option[2:].replace("-", "_")
        if name == "set":
            self._set(option, value)
        elif name in self.spec.keys or "." in name:
            self._key(name, option, value)
        elif name.startswith("no_") and self.spec.keys.get(name[3:]) and not equals:
            self._add(name[3:], "false", option)
        else:
            name = _PUBLISHED_OPTIONS.get(name, name)
            self._pass_on("--" + name.replace("_", "-"), option, value)

    def _short(self, word: str) -> None:
        short = word[:2]
        value = word[2:].removeprefix("=")
        if short in self.spec.short:
            self._key(self.spec.short[short], short, value or None)
        elif short in self.spec.options:
            self._pass_on(short, short, value or None)
        else:
            self._unknown(word, value or None)

    def _set(self, option: str, value: str | None) -> None:
        text = self._value(option, value)
        if text is None:
            return
        key, equals, right = text.partition("=")
        if not equals and not self.lenient:
            raise UsageError(
                f"--set {text!r} has no '='",
                hint="write --set key=value",
                code="usage.bad_value",
                details={"option": "--set", "value": text},
            )
        self._add(key.strip(), right, f"--set {key}")

    def _key(self, key: str, option: str, value: str | None) -> None:
        if self.spec.keys.get(key) and value is None:
            # A switch; a word such as `true` behind it is its value.
            words = self.argv[self.position : self.position + 1]
            is_value = bool(words) and words[0].lower() in _BOOL_WORDS
            self.position += is_value
            value = words[0] if is_value else "true"
        text = self._value(option, value)
        if text is not None:
            self._add(key, text, option)

    def _add(self, key: str, text: str, option: str) -> None:
        self.result.typed.append(TypedValue(key, text, option))

    def _value(self, option: str, value: str | None) -> str | None:
        if value is not None:
            return value
        if self.position < len(self.argv) and not is_option(self.argv[self.position]):
            self.position += 1
            return self.argv[self.position - 1]
        if self.lenient:
            return None
        raise UsageError(
            f"the option {option} needs a value",
            hint=f"write {option} VALUE, or {option}=VALUE for a value that starts with a dash",
            code="usage.missing_key",
            details={"option": option},
        )

    def _pass_on(self, name: str, option: str, value: str | None) -> None:
        if name not in self.spec.options:
            self._unknown(option, value)
        elif self.spec.options[name]:
            value = self._value(option, value)
            self.result.rest += [name] if value is None else [name, value]
        elif value is None or value.lower() in ("true", "yes", "on", "1"):
            self.result.rest.append(name)
        elif not self.lenient and value.lower() not in _BOOL_WORDS:
            raise UsageError(
                f"the option {option} is a switch and takes no value, but got {value!r}",
                hint=f"write {option}",
                code="usage.bad_value",
                details={"option": option},
            )

    def _unknown(self, option: str, value: str | None) -> None:
        if not self.lenient:
            raise UnknownOptionError(option)
        self._value(option, value)


class UnknownOptionError(UsageError):
    """Unknown option. The command adds the nearest names as the hint."""

    def __init__(self, option: str) -> None:
        super().__init__(
            f"unknown option {option}", code="usage.unknown_option", details={"option": option}
        )
        self.option = option


def is_option(word: str) -> bool:
    """True if a word is an option; `-1e-4` and `-` are values."""
    return word.startswith("-") and word != "-" and not _NEGATIVE.match(word)


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
OUTPUT_OPTIONS = ("--json", "--progress", "--quiet", "--verbose", "--log-file", "--debug")
OUTPUT_WORDS: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys(OUTPUT_OPTIONS),
    "--progress": PROGRESS_MODES,
    "--log-file": (),
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
