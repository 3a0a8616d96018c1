"""Configuration keys on the command line: options, typed values, and the table of `--keys`."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from vlatool.cli.options import TypedValue
from vlatool.cli.output import to_json
from vlatool.config.base import ConfigModel
from vlatool.config.resolve import STRICT, Override, ReadOptions, chosen_schema, parse_override
from vlatool.config.schema import ANY_NAME, KeyInfo, dotted_keys
from vlatool.errors import UsageError
from vlatool.results import Result

# The `|` between two types, not one inside brackets.
_ALTERNATIVE = re.compile(r" \| (?![^\[]*\])")

Expand = Callable[[list[str]], Mapping[str, Any]]


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
    for info in _typable(schema):
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


def _typable(schema: type[ConfigModel]) -> list[KeyInfo]:
    """Keys whose complete name is known, so none inside lists or mappings with names of yours."""
    return [info for info in dotted_keys(schema) if ANY_NAME not in info.key.split(".")]


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


@dataclass
class TypedConfig:
    """The configuration that a command line gives: presets, files and typed values."""

    typed: Sequence[TypedValue]  # values in the order typed
    keys: Mapping[str, Key] = field(default_factory=dict)  # flat keys by option name
    # Options that set other keys, by name.
    option_aliases: Mapping[str, Expand] = field(default_factory=dict)
    # Published names that bring other keys along: they stay as typed, for `load_config`.
    published: frozenset[str] = frozenset()
    presets: Sequence[str] = ()
    files: Sequence[str] = ()  # YAML files, applied after the presets
    read_options: ReadOptions = STRICT  # options for reading presets and files

    def overrides(self, positionals: Mapping[str, Any]) -> list[Override]:
        """Typed values as overrides: arguments, option aliases, then keys as typed."""
        result: list[Override] = []
        origins: dict[str, str] = {}  # keys that an argument or an alias has set
        for name, value in positionals.items():
            if value not in (None, [], ()):
                origins[name] = f"the argument {name.upper()}"
                result.append(Override(name, value, f"command line, argument {name.upper()}"))
        for name, texts in self._alias_texts().items():
            option = "--" + name.replace("_", "-")
            for key, value in self.option_aliases[name](texts).items():
                if key in origins:
                    raise _given_twice_error(key, origins[key], option)
                origins[key] = option
                result.append(Override(key, value, f"command line, {option}"))
        for typed in self.typed:
            if not self._is_alias(typed):
                result.append(self._typed_override(typed, origins))
        return result

    def chosen_schema(self, schema: type[ConfigModel]) -> type[ConfigModel]:
        return chosen_schema(
            schema,
            presets=self.presets,
            files=self.files,
            overrides=self.overrides({}),
            read_options=self.read_options,
        )

    def _alias_texts(self) -> dict[str, list[str]]:
        texts: dict[str, list[str]] = {}
        for typed in self.typed:
            if self._is_alias(typed):
                texts.setdefault(typed.key, []).append(typed.text)
        return texts

    def _typed_override(self, typed: TypedValue, origins: Mapping[str, str]) -> Override:
        path = typed.key
        if typed.is_flat and typed.key in self.keys:
            path = self.keys[typed.key].path
        origin = origins.get(path.replace("-", "_"))
        if origin:
            raise _given_twice_error(path, origin, typed.option)
        name = typed.option.lstrip("-").replace("-", "_")
        if name in self.published:
            path = name
        override = parse_override(f"{path}={typed.text}", typed.option)
        return replace(override, is_flat=typed.is_flat and path.endswith(f".{typed.key}"))

    def _is_alias(self, typed: TypedValue) -> bool:
        return typed.is_flat and typed.key in self.option_aliases


def _given_twice_error(key: str, first: str, second: str) -> UsageError:
    return UsageError(
        f"the key {key!r} is given twice: by {first} and by {second}",
        hint="keep only one of them",
        code="usage.conflict",
        details={"key": key, "by": [first, second]},
    )


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
