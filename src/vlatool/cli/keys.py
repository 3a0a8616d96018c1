"""Configuration keys on the command line: options, typed values, and the table of `--keys`.

Loaded only by commands that have a configuration.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlatool.cli.output import to_json
from vlatool.config.base import ConfigModel, Ignored
from vlatool.config.coerce import alternatives
from vlatool.config.resolve import STRICT, Override, chosen_schema, parse_override
from vlatool.config.schema import ANY_NAME, dotted_keys
from vlatool.errors import UsageError
from vlatool.results import Result

_NEGATIVE = re.compile(r"-(\.?\d|inf|nan|$)", re.IGNORECASE)
_PUBLISHED_OPTIONS = {"config_path": "config"}
_BARE_KEY = re.compile(r"([A-Za-z_]\w*(?:\.[\w-]+)*)=(.*)", re.DOTALL)
_BOOL_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "1", "0"})
# The `|` between two types, not one inside brackets.
_ALTERNATIVE = re.compile(r" \| (?![^\[]*\])")


@dataclass(frozen=True)
class Key:
    """Configuration key that can be typed as an option."""

    name: str  # option name with underscores: `samples_per_shard`
    path: str  # dotted key in the config: `source.observation_keys`
    is_switch: bool = False  # the option needs no value
    type_text: str = "str"  # type in the help: `int`, `a|b`
    default: str = ""  # default in the help; empty if there is none
    description: str = ""  # description in the help
    group: str = "Keys"  # heading in `--help`


def declared_keys(schema: type[ConfigModel]) -> dict[str, Key]:
    """All keys of a flat config class by option name, including keys of its flat sections."""
    keys: dict[str, Key] = {}
    for info in dotted_keys(schema):
        if ANY_NAME in info.key.split("."):  # inside a list, or a mapping with names of yours
            continue
        section, dot, rest = info.key.partition(".")
        name = rest if dot and section in schema.flat_sections else info.key
        if name == "type":  # the type of a section has its name: `--sink lbm`
            name = section
        group = info.group
        if not group and dot:
            group = (schema.model_fields[section].description or "").rstrip(".")
        kinds = _ALTERNATIVE.split(info.type_text)
        keys[name] = Key(
            name=name,
            path=info.key,
            is_switch="bool" in kinds,
            type_text="|".join(_typed_form(kind) for kind in kinds if kind != "null"),
            default=default_text(info.default),
            description=info.description,
            group=group or "Keys",
        )
    return keys


def _typed_form(kind: str) -> str:
    """Form in which a type is typed: `str,...`, `int,int`, `{str: int, ...}`."""
    inner = kind.partition("[")[2].removesuffix("]")
    if kind.startswith(("list[", "set[")) and "[" not in inner:
        return f"{inner.replace(' | ', '|')},..."
    if kind.startswith("tuple[") and "[" not in inner:
        return inner.replace(" ", "")
    if kind.startswith("dict[") and "[" not in inner:
        name, value = inner.split(", ")
        return f"{{{name}: {value}, ...}}"
    return kind


def default_text(value: Any) -> str:
    """Default, spelled as you would type it; empty if there is none."""
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(default_text(item) for item in value)
    return str(value)


class KeyOptions:
    """The options that are keys of a configuration, or names that other programs have for them."""

    def __init__(self, schema: type[ConfigModel], *, is_flat: bool) -> None:
        self.schema = schema
        self.is_flat = is_flat  # keys of sections are options by their name alone
        self._keys = declared_keys(schema)

    def is_switch(self, name: str) -> bool | None:
        """True for an option that needs no value; None if no key has this name."""
        key = self._keys.get(name)
        if key is not None and (self.is_flat or "." not in name):
            return key.is_switch
        row = None if "." in name else self.schema.NAMES.get(name)
        if isinstance(row, str):
            return "=" in row or bool(self.is_switch(row))
        if row is not None:
            return isinstance(row, Ignored) and row.is_switch
        # Which section it is follows from the arguments and files, which are not read yet.
        for registry in self.schema.registries.values():
            for owner in registry.names_with_key(name):
                annotation = registry.get(owner).Config.model_fields[name].annotation
                return bool in alternatives(annotation)
        return None


class CommandLine:
    """The configuration that a command line gives: presets, files and typed values.

    They are separated from everything else before Typer parses it: Typer cannot accept keys that a
    schema declares at run time, and if it ignored unknown options, it would take a misspelled
    option for a value.
    """

    def __init__(
        self,
        argv: Sequence[str],
        options: Mapping[str, bool],  # those that Typer parses; True if an option takes a value
        keys: KeyOptions,
        *,
        lenient: bool = False,  # of an incomplete command line, only the start is read
    ) -> None:
        self.rest: list[str] = []  # the arguments left for Typer
        self.words: list[str] = []  # of these, the ones that are no options
        self.typed: list[Override] = []  # values in the order typed
        self.presets: Sequence[str] = []
        self.files: Sequence[str] = []  # YAML files, applied after the presets
        self.read_options = STRICT  # options for reading presets and files
        self.unknown = ""  # the first unknown option
        self._argv = list(argv)
        self._options = options
        self._keys = keys
        self.schema = keys.schema
        self._position = 0
        try:
            self._walk()
        except UsageError:
            if not lenient:
                raise

    def overrides(self, positionals: Mapping[str, Any]) -> list[Override]:
        """Arguments, then keys as typed."""
        result: list[Override] = []
        for name, value in positionals.items():
            if value not in (None, [], ()):
                result.append(Override(name, value, f"command line, argument {name.upper()}"))
        given = {override.key for override in result}
        for override in self.typed:
            name = override.key.replace("-", "_")
            key = self.schema.NAMES.get(name, name)
            if key in given:
                by = [f"the argument {str(key).upper()}", override.origin.rpartition(" ")[2]]
                raise UsageError(
                    f"the key {key!r} is given twice: by {by[0]} and by {by[1]}",
                    hint="keep only one of them",
                    code="usage.conflict",
                    details={"key": key, "by": by},
                )
        return [*result, *self.typed]

    def chosen_schema(self, positionals: Mapping[str, Any]) -> type[ConfigModel]:
        """Class that presets, files and typed values choose."""
        return chosen_schema(
            self.schema,
            presets=self.presets,
            files=self.files,
            overrides=self.overrides(positionals),
            read_options=self.read_options,
        )

    def _walk(self) -> None:
        while self._position < len(self._argv):
            word = self._argv[self._position]
            self._position += 1
            if word == "--":
                self.rest += [word, *self._argv[self._position :]]
                return
            if word.startswith("--"):
                self._long(word)
            elif _is_option(word):
                self._short(word)
            elif not self._keys.is_flat and (match := _BARE_KEY.fullmatch(word)):
                self._bare(*match.groups())
            else:
                self.rest.append(word)
                self.words.append(word)

    def _bare(self, key: str, text: str) -> None:
        if key == "config":
            self.rest += ["--config", text]
            self._note("--config", text)
        else:
            self._add(f"{key}={text}", f"{key}=")

    def _long(self, word: str) -> None:
        option, equals, text = word.partition("=")
        value = text if equals else None
        name = option[2:].replace("-", "_")
        if name == "set":
            self._add(self._value(option, value), "")
            return
        name = _PUBLISHED_OPTIONS.get(name, name)
        declared = "--" + name.replace("_", "-")
        if declared in self._options:
            self._pass_on(declared, option, value)
        elif "." in name or self._keys.is_switch(name) is not None:
            self._key(name, option, value)
        elif name.startswith("no_") and self._keys.is_switch(name[3:]) and not equals:
            self._add(f"{name[3:]}=false", option)
        else:
            self._pass_on(declared, option, value)

    def _short(self, word: str) -> None:
        short = word[:2]
        value = word[2:].removeprefix("=") or None
        if short == "-o" and self._keys.is_switch("output") is not None:
            self._key("output", short, value)
        elif short in self._options:
            self._pass_on(short, short, value)
        else:
            self._pass_on(word, word, value)

    def _key(self, key: str, option: str, value: str | None) -> None:
        if value is None and self._keys.is_switch(key):
            # A switch; a word such as `true` behind it is its value.
            value = "true"
            for word in self._argv[self._position : self._position + 1]:
                if word.lower() in _BOOL_WORDS:
                    value = word
                    self._position += 1
        self._add(f"{key}={self._value(option, value)}", option)

    def _add(self, text: str, option: str) -> None:
        self.typed.append(parse_override(text, option))

    def _value(self, option: str, value: str | None) -> str:
        if value is not None:
            return value
        if not self._is_last_word():
            self._position += 1
            return self._argv[self._position - 1]
        raise UsageError(
            f"the option {option} needs a value",
            hint=f"write {option} VALUE, or {option}=VALUE for a value that starts with a dash",
            code="usage.missing_key",
            details={"option": option},
        )

    def _is_last_word(self) -> bool:
        """True if no value follows, but the end or an option."""
        return self._position == len(self._argv) or _is_option(self._argv[self._position])

    def _note(self, option: str, value: str) -> None:
        if option in ("--preset", "-p"):
            self.presets = [*self.presets, value]
        elif option in ("--config", "-c"):
            self.files = [*self.files, value]

    def _pass_on(self, name: str, option: str, value: str | None) -> None:
        """Leaves an option to Typer."""
        has_value = self._options.get(name)
        if has_value is None:
            self.unknown = self.unknown or option
            if value is None and not self._is_last_word():
                self._position += 1
        elif has_value:
            value = self._value(option, value)
            self.rest += [name, value]
            self._note(name, value)
        elif value is None or value.lower() in ("true", "yes", "on", "1"):
            self.rest.append(name)
        elif value.lower() not in _BOOL_WORDS:
            raise UsageError(
                f"the option {option} is a switch and takes no value, but got {value!r}",
                hint=f"write {option}",
                code="usage.bad_value",
                details={"option": option},
            )


def _is_option(word: str) -> bool:
    """True if a word is an option; `-1e-4` and `-` are values."""
    return word.startswith("-") and word != "-" and not _NEGATIVE.match(word)


@dataclass(frozen=True)
class KeyTable(Result):
    """Result of `--keys`: keys with type, default and description."""

    rows_key: ClassVar[str] = "keys"

    keys: list[Mapping[str, Any]]

    @classmethod
    def of(cls, schema: type[ConfigModel], is_used: Callable[[str], bool]) -> "KeyTable":
        """Keys of a config class, without those that `is_used` leaves out."""
        rows: list[Mapping[str, Any]] = []
        for info in dotted_keys(schema):
            if not is_used(info.key):
                continue
            row = {"key": info.key, "type": info.type_text}
            row |= {"default": info.default, "description": info.description}
            rows.append(row)
        return cls(rows)

    def lines(self) -> Iterator[str]:
        for row in self.keys:
            yield f"{row['key']}: {row['type']} = {to_json(row['default'], indent=None)}"
            if row["description"]:
                yield f"    {row['description']}"
