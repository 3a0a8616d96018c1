"""Command classes with suggestions, examples in the help, and configuration keys as options.

Typer bundles its own Click, whose classes (contexts, formatters, parameters) are private: their
type here is `Any`.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import typer.core

from vlatool.cli import help as cli_help
from vlatool.cli import options as cli_options
from vlatool.cli.commands import COMMANDS
from vlatool.cli.completion import CompletionWords, cached, completions
from vlatool.errors import VlatoolError

if TYPE_CHECKING:
    from vlatool.cli.keys import Key, TypedConfig
    from vlatool.config.base import ConfigModel

TYPED_CONFIG = "vlatool.typed_config"
_ARGS = "vlatool.args"


@dataclass(frozen=True)
class OptionAlias:
    """Option that sets one or more keys of the configuration."""

    expand: Callable[[list[str]], Mapping[str, Any]]  # typed values → keys and their values
    metavar: str  # placeholder for the value in the help
    help: str  # description in the help
    short: str = ""  # short form, if any
    is_switch: bool = False  # the option needs no value


@dataclass(frozen=True)
class ConfigSpec:
    """Command-line form of the configuration of a command."""

    # Arguments → config class; imports it only when called.
    schema: Callable[[Sequence[str]], "type[ConfigModel]"]
    # Keys of sections are options by their name alone, too; otherwise only as `--a.b`.
    is_flat: bool = True
    # Published option names → keys or options, all with underscores.
    aliases: Mapping[str, str] = field(default_factory=dict)
    # Options of a config with sections, by name.
    option_aliases: Mapping[str, OptionAlias] = field(default_factory=dict)
    # Keys that are arguments; the list of options in the help leaves them out.
    positionals: tuple[str, ...] = ()
    note: Callable[[], str] = str  # returns the last paragraph of the help
    # Dotted keys with a name of a registry as value → these names.
    values: Mapping[str, Callable[[], Sequence[str]]] = field(default_factory=dict)
    # Keys with known values among others → these, for completion.
    suggestions: Mapping[str, Callable[[], Sequence[str]]] = field(default_factory=dict)
    presets: tuple[str, ...] = ()  # folders of presets for this command
    # Arguments → those of them that determine the config class.
    schema_words: Callable[[Sequence[str]], Sequence[str]] = lambda _: ()
    # Keys and sections without a meaning here; help, `--keys` and completion leave them out.
    unused_keys: tuple[str, ...] = ()

    def is_used(self, name: str) -> bool:
        """True if a key, or its section, has a meaning for this command."""
        return name.partition(".")[0] not in self.unused_keys


def schema_at(target: str) -> Callable[[Sequence[str]], "type[ConfigModel]"]:
    """Config class `module:Class` for any arguments; imported when it is needed."""
    module, _, name = target.partition(":")
    return lambda _: getattr(import_module(module), name)


class VlatoolCommand(typer.core.TyperCommand):
    """Command with options that may be typed with dashes or underscores."""

    examples: ClassVar[tuple[str, ...]] = ()
    arguments: ClassVar[str] = ""
    listed: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{**named, "context_settings": cli_options.CONTEXT})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_ARGS] = list(args)
        if ctx.resilient_parsing:  # completion: `shell_complete` does all the work
            return super().parse_args(ctx, [])
        lenient = cli_help.is_help(args)
        try:
            rest = self.split_args(ctx, args, lenient=lenient)
        except cli_options.UnknownOptionError as error:
            name = error.option.lstrip("-").replace("-", "_")
            error.hint = self.nearest(ctx, name) or f"`{ctx.command_path} --help` lists the options"
            raise
        return super().parse_args(ctx, rest)

    def get_params(self, ctx: Any) -> list[Any]:
        """Options of the command; none during completion, because Typer would import pydantic."""
        return [] if ctx.resilient_parsing else super().get_params(ctx)

    def split_args(self, ctx: Any, args: list[str], *, lenient: bool) -> list[str]:
        return cli_options.split_argv(
            args, cli_options.ArgvSpec(self.declared(ctx)), lenient=lenient
        ).rest

    def declared(self, ctx: Any) -> dict[str, bool]:
        """Options that Typer parses; True if an option takes a value."""
        has_value: dict[str, bool] = {}
        for param in super().get_params(ctx):
            if param.param_type_name != "option":
                continue
            for option in param.opts:
                has_value[option] = not getattr(param, "is_flag", False)
        return has_value

    def spellings(self, ctx: Any) -> list[str]:
        """All long options of this command, for suggestions and completion."""
        return [*cli_options.ArgvSpec(self.declared(ctx)).spellings(), *cli_options.OUTPUT_OPTIONS]

    def nearest(self, ctx: Any, name: str) -> str:
        """Suggestion for an unknown option: by meaning, else by spelling; empty if none is near."""
        from vlatool.config.synonyms import meant_keys, note_on

        spellings = {option[2:].replace("-", "_"): option for option in self.spellings(ctx)}
        options = [spellings[key] for key in meant_keys(name, spellings)]
        if not options:
            sentence = note_on(name) or self.owner_sentence(ctx, name)
            if sentence:
                return sentence
            options = self.options_of_sections(ctx, name) or _near_spellings(name, spellings)
        if not options:
            return ""
        return f"did you mean {', '.join(options)}?"

    def owner_sentence(self, ctx: Any, name: str) -> str:
        """Sentence on the formats and types that have an option with this name."""
        return ""

    def options_of_sections(self, ctx: Any, name: str) -> list[str]:
        """Options inside sections that end with this name."""
        return []

    def get_help(self, ctx: Any) -> str:
        return cli_help.help_text(super().get_help(ctx), ctx)

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path, f"{self.arguments} [OPTIONS]".strip())

    def format_options(self, ctx: Any, formatter: Any) -> None:
        cli_help.write_examples(formatter, self.examples)
        declared = cli_help.declared_rows(super().get_params(ctx), ctx)
        if cli_help.HELP_ALL in ctx.meta.get(_ARGS, []):
            self.write_keys(ctx, formatter)
            cli_help.write_rows(formatter, "Options", list(declared.values()))
            cli_help.write_rows(formatter, "Output options", cli_options.OUTPUT_HELP)
        else:
            rows = cli_help.listed_rows(self.listed, self.write_arguments(ctx, formatter), declared)
            cli_help.write_rows(formatter, "Options", rows)

    def write_arguments(self, ctx: Any, formatter: Any) -> dict[str, cli_help.HelpRow]:
        """Writes the arguments; returns the rows of keys by name."""
        return {}

    def write_keys(self, ctx: Any, formatter: Any) -> None:
        """Writes all keys by group."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        typed = [word for word in ctx.meta.get(_ARGS, []) if word != "="]  # of bash
        key = self.completion_key(ctx, typed)
        words = cached(key, lambda: self.completion_words(ctx, typed))
        return completions(words, typed, incomplete)

    def completion_key(self, ctx: Any, typed: Sequence[str]) -> str:
        return ctx.command_path

    def completion_words(self, ctx: Any, typed: Sequence[str]) -> CompletionWords:
        options: dict[str, Sequence[str] | None] = {}
        for name, has_value in self.declared(ctx).items():
            options[name] = [] if has_value else None
        options |= cli_options.OUTPUT_WORDS
        start = f"{ctx.command_path.partition(' ')[2]} "
        below = [words.removeprefix(start) for words in COMMANDS if words.startswith(start)]
        return CompletionWords(options, [below] if below else ())


@cache
def _config_options(*, is_flat: bool) -> list[Any]:
    """Options of every command with a configuration; `--compat` only if it has sections."""

    def declare(
        preset: cli_options.PresetOpt = None,
        config: cli_options.ConfigOpt = None,
        set_: cli_options.SetOpt = None,
        compat: cli_options.CompatOpt = False,
        keys: cli_options.KeysOpt = False,
    ) -> None: ...

    app = cli_options.command_app()
    app.command()(declare)
    options = typer.main.get_command(app).params
    return [option for option in options if not is_flat or option.name != "compat"]


class ConfigCommand(VlatoolCommand):
    """Command with a configuration; its keys are removed from argv before Typer parses it."""

    spec: ClassVar[ConfigSpec]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.params = [*_config_options(is_flat=self.spec.is_flat), *self.params]

    def split_args(self, ctx: Any, args: list[str], *, lenient: bool) -> list[str]:
        keys = self.keys(args)
        split = cli_options.split_argv(args, self.argv_spec(ctx, keys), lenient=lenient)
        if not lenient:
            ctx.meta[TYPED_CONFIG] = self._typed_config(ctx, split, keys)
        return split.rest

    def _typed_config(
        self, ctx: Any, split: cli_options.SplitArgv, keys: "Mapping[str, Key]"
    ) -> "TypedConfig":
        from vlatool.cli.keys import TypedConfig

        expand = {name: alias.expand for name, alias in self.spec.option_aliases.items()}
        rows = self.spec.schema(ctx.meta.get(_ARGS, [])).published
        published = frozenset(row.name for row in rows if row.also)
        return TypedConfig(split.typed, keys, expand, published)

    def chosen_schema(self, args: Sequence[str], ctx: Any) -> "type[ConfigModel]":
        """Config class of an unfinished command line, with its presets and local files."""
        schema = self.spec.schema(args)
        if self.spec.is_flat:
            return schema
        keys = self.keys(args)
        split = cli_options.split_argv(args, self.argv_spec(ctx, keys), lenient=True)
        presets: list[str] = []
        files: list[str] = []
        for option, value in pairwise(split.rest):
            if option in ("--preset", "-p"):
                presets.append(value)
            elif option in ("--config", "-c") and os.path.isfile(value):
                files.append(value)
        typed = self._typed_config(ctx, split, keys)
        typed.presets = presets
        typed.files = files
        try:
            return typed.chosen_schema(schema)
        except VlatoolError:  # an unknown name, or a file that cannot be read
            return schema

    def keys(self, args: Sequence[str]) -> "dict[str, Key]":
        """Keys by option name; if the config has sections, only the keys outside them."""
        from vlatool.cli.keys import declared_keys

        keys = declared_keys(self.spec.schema(args))
        if self.spec.is_flat:
            return keys
        aliases = self.spec.option_aliases
        return {name: key for name, key in keys.items() if "." not in name and name not in aliases}

    def argv_spec(self, ctx: Any, keys: "Mapping[str, Key]") -> cli_options.ArgvSpec:
        from vlatool.config.base import new_names

        schema = self.spec.schema(ctx.meta.get(_ARGS, []))
        is_switch = {name: key.is_switch for name, key in keys.items()}
        shorts: dict[str, str] = {}
        for name, alias in self.spec.option_aliases.items():
            is_switch[name] = alias.is_switch
            if alias.short:
                shorts[alias.short] = name
        return cli_options.ArgvSpec(
            self.declared(ctx),
            is_switch | _published_names(schema),
            shorts | _shorts(keys),
            {"config_path": "config", **self.spec.aliases, **new_names(schema)},
            has_bare_keys=not self.spec.is_flat,
        )

    def spellings(self, ctx: Any) -> list[str]:
        args = ctx.meta.get(_ARGS, [])
        used = {name: key for name, key in self.keys(args).items() if self.spec.is_used(name)}
        options = self.argv_spec(ctx, used).spellings()
        if not self.spec.is_flat:
            for key in self._dotted_keys(ctx):
                if "." in key and self.spec.is_used(key):
                    options.append(f"--{key}")
        return [*options, *cli_options.OUTPUT_OPTIONS]

    def _dotted_keys(self, ctx: Any) -> list[str]:
        from vlatool.config.schema import dotted_keys

        schema = self.chosen_schema(ctx.meta.get(_ARGS, []), ctx)
        return [info.key for info in dotted_keys(schema)]

    def owner_sentence(self, ctx: Any, name: str) -> str:
        from vlatool.config.problems import owners_of_key

        if not self.spec.is_flat:
            return ""
        owners = owners_of_key(name, self.spec.schema(ctx.meta.get(_ARGS, [])))
        return f"name what has it: {', '.join(owners)}" if owners else ""

    def options_of_sections(self, ctx: Any, name: str) -> list[str]:
        if self.spec.is_flat:
            return []
        keys = [key for key in self._dotted_keys(ctx) if key.endswith(f".{name}")]
        return [f"--{key}" for key in keys[:3]]

    def invoke(self, ctx: Any) -> Any:
        from vlatool.config.resolve import ReadOptions

        options = _config_options(is_flat=self.spec.is_flat)
        values = {option.name: ctx.params.pop(option.name) for option in options}
        typed: TypedConfig = ctx.meta[TYPED_CONFIG]
        typed.presets = values["preset"] or ()
        typed.files = values["config"] or ()
        typed.read_options = ReadOptions(self.spec.presets, compat=values.get("compat", False))
        if not values["keys"]:
            return super().invoke(ctx)
        from vlatool.cli.keys import KeyTable
        from vlatool.cli.output import write_result

        schema = self.spec.schema(ctx.meta[_ARGS])
        if not self.spec.is_flat:
            schema = typed.chosen_schema(schema)
        table = KeyTable.of(schema, self.spec.is_used)
        return write_result(table, ctx.ensure_object(cli_options.OutputOptions))

    def write_arguments(self, ctx: Any, formatter: Any) -> dict[str, cli_help.HelpRow]:
        keys = self._all_keys(ctx)
        arguments: list[cli_help.HelpRow] = []
        for key, name in zip(self.spec.positionals, self.arguments.split(), strict=False):
            arguments.append(cli_help.argument_row(name, keys[key], self._values(key)))
        cli_help.write_rows(formatter, "Arguments", arguments)
        rows = self._alias_rows()
        for name, key in keys.items():
            is_listed = "." not in name or name in self.listed
            if is_listed and name not in self.spec.positionals:
                rows[name] = self._key_row(key, is_short=True)
        return rows

    def write_keys(self, ctx: Any, formatter: Any) -> None:
        self.write_arguments(ctx, formatter)
        groups = {"Run": list(self._alias_rows().values())}
        for name, key in self._all_keys(ctx).items():
            if name not in self.spec.option_aliases and name not in self.spec.positionals:
                groups.setdefault(key.group, []).append(self._key_row(key, is_short=False))
        for title, rows in groups.items():
            cli_help.write_rows(formatter, title, rows)

    def _all_keys(self, ctx: Any) -> "dict[str, Key]":
        from vlatool.cli.keys import declared_keys

        keys = declared_keys(self.chosen_schema(ctx.meta.get(_ARGS, []), ctx))
        return {name: key for name, key in keys.items() if self.spec.is_used(name)}

    def _alias_rows(self) -> dict[str, cli_help.HelpRow]:
        rows: dict[str, cli_help.HelpRow] = {}
        for name, alias in self.spec.option_aliases.items():
            rows[name] = (cli_help.option_text(name, alias.short, alias.metavar), alias.help)
        return rows

    def _key_row(self, key: "Key", *, is_short: bool) -> cli_help.HelpRow:
        short = "-o" if key.name == "output" else ""
        return cli_help.key_row(key, short, self._values(key.name), is_short=is_short)

    def _values(self, name: str) -> Sequence[str]:
        """Names of a registry that are the values of a key; empty for other keys."""
        return self.spec.values[name]() if name in self.spec.values else ()

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if note := self.spec.note():
            formatter.write_paragraph()
            formatter.write_text(note)
        super().format_epilog(ctx, formatter)

    def completion_key(self, ctx: Any, typed: Sequence[str]) -> str:
        return "\n".join([ctx.command_path, *self.spec.schema_words(typed)])

    def completion_words(self, ctx: Any, typed: Sequence[str]) -> CompletionWords:
        from vlatool.config.presets import list_presets
        from vlatool.config.schema import choices

        spec = self.spec
        keys = self.keys(typed)
        schema = spec.schema(typed)
        known: dict[str, Sequence[str] | None] = {}
        for name, alias in spec.option_aliases.items():
            known[name] = None if alias.is_switch else []
        for name, key in keys.items():
            known[name] = None if key.is_switch else choices(schema, key.path)
        for name, values in {**spec.values, **spec.suggestions}.items():
            known[name] = values()
        options: dict[str, Sequence[str] | None] = {}
        for name, values in known.items():
            if spec.is_used(name) and "." not in name:
                options[f"--{name.replace('_', '-')}"] = values
        for short, name in _shorts(keys).items():
            options[short] = options[f"--{name}"]
        of_command = super().completion_words(ctx, typed)
        presets = [preset.name for preset in list_presets() if preset.kind in spec.presets]
        options |= {**of_command.options, "--preset": presets, "-p": presets}
        arguments = [known.get(name) or () for name in spec.positionals]
        return CompletionWords(options, arguments or of_command.arguments)


def config_command(
    spec: ConfigSpec, arguments: str = "", examples: Sequence[str] = (), listed: Sequence[str] = ()
) -> type[ConfigCommand]:
    """Command class with a configuration; without `listed`, `--help` lists all options."""

    class Configured(ConfigCommand): ...

    Configured.spec = spec
    Configured.arguments = arguments
    Configured.examples = tuple(examples)
    Configured.listed = tuple(listed)
    return Configured


def _near_spellings(name: str, spellings: Mapping[str, str]) -> list[str]:
    """Options that are close to a misspelled name, or that have all its words."""
    names = difflib.get_close_matches(name, spellings, n=3, cutoff=0.75)
    words = set(name.split("_"))
    for other in spellings:
        if other not in names and words <= set(re.split(r"[_.]", other)):
            names.append(other)
    return [spellings[other] for other in names[:3]]


def _published_names(schema: "type[ConfigModel]") -> dict[str, bool]:
    """Published keys without a meaning, and published options; True for a switch."""
    from vlatool.config.base import unused_keys

    names = {key: row.is_switch for key, row in unused_keys(schema).items()}
    table = schema.published_options
    for name in table.names() if table is not None else ():
        names |= table.get(name)  # pyright: ignore[reportOptionalMemberAccess]
    return names


def _shorts(keys: Mapping[str, Any]) -> dict[str, str]:
    """Short forms of keys: `-o` in every command with the key `output`."""
    return {"-o": "output"} if "output" in keys else {}
