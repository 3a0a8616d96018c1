"""Configuration keys on the command line: options, typed values, and the table of `--keys`."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from vlatool.cli.options import TypedValue
from vlatool.cli.output import to_json
from vlatool.config.base import ConfigModel
from vlatool.config.resolve import STRICT, Override, ReadOptions, chosen_schema, parse_override
from vlatool.config.schema import ANY_NAME, KeyInfo, choices, dotted_keys
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
    """All keys of a flat config class by option name, including those of its flat sections."""
    infos = [info for info in dotted_keys(schema) if ANY_NAME not in info.key.split(".")]
    return {key.name: key for key in _keys(infos, schema)}


def _keys(infos: list[KeyInfo], schema: type[ConfigModel]) -> Iterator[Key]:
    for info in infos:
        section, dot, rest = info.key.partition(".")
        name = rest if dot and section in schema.flat_sections else info.key
        if name == "type":  # the type of a section has its name: `--sink lbm`
            name = section
        kinds = _ALTERNATIVE.split(info.type_text)
        yield Key(
            name=name,
            path=info.key,
            is_switch="bool" in kinds,
            type_text="|".join(_typed_form(kind) for kind in kinds if kind != "null"),
            default=default_text(info.default),
            description=info.description,
            group=info.group or _heading(schema, section if dot else ""),
        )


def _heading(schema: type[ConfigModel], section: str) -> str:
    """Heading of keys without a group: the description of their section."""
    description = schema.model_fields[section].description if section else ""
    return (description or "Keys").rstrip(".")


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


def known_values(
    schema: type[ConfigModel],  # the config class
    keys: Mapping[str, Key],  # its keys that are options by their name
    registered: Mapping[str, Callable[[], Sequence[str]]],
) -> dict[str, Sequence[str] | None]:
    """Option name to its known values; empty if any value is allowed, None for a switch."""
    known: dict[str, Sequence[str] | None] = {
        key: values for key, values in _choices(schema).items() if "." in key
    }
    for name, key in keys.items():
        known[name] = None if key.is_switch else choices(schema, key.path)
    return known | {name: names() for name, names in registered.items()}


def values_to_type(
    schema: type[ConfigModel], registered: Mapping[str, Callable[[], Sequence[str]]]
) -> dict[str, Sequence[str]]:
    """Map from dotted key to values for `KEY=VALUE`: its choices, else its default and null."""
    defaults = {
        info.key: [
            *filter(None, [default_text(info.default)]),
            *(["null"] if "null" in _ALTERNATIVE.split(info.type_text) else []),
        ]
        for info in dotted_keys(schema)
    }
    known = _choices(schema) | {name: list(names()) for name, names in registered.items()}
    return {key: values or defaults.get(key, []) for key, values in known.items()}


def _choices(schema: type[ConfigModel]) -> dict[str, list[str]]:
    """Dotted key to its values, empty if there are many; without keys of indices and free names."""
    return {
        info.key: ["true", "false"]
        if "bool" in info.type_text.split(" | ")
        else choices(schema, info.key)
        for info in dotted_keys(schema)
        if ANY_NAME not in info.key.split(".")
    }


def default_text(value: Any) -> str:
    """Default in the form in which it is typed; empty if there is none."""
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(default_text(item) for item in value)
    return str(value)


@dataclass
class TypedConfig:
    """Configuration part of a command line."""

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
        arguments = {
            name: value for name, value in positionals.items() if value not in (None, [], ())
        }
        claimed = {name: f"the argument {name.upper()}" for name in arguments}
        result = [
            Override(name, value, f"command line, argument {name.upper()}")
            for name, value in arguments.items()
        ]
        for name, texts in self._alias_texts().items():
            option = "--" + name.replace("_", "-")
            for key, value in self.option_aliases[name](texts).items():
                if key in claimed:
                    raise _given_twice_error(key, claimed[key], option)
                claimed[key] = option
                result.append(Override(key, value, f"command line, {option}"))
        return result + self._plain(claimed)

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

    def _plain(self, claimed: Mapping[str, str]) -> list[Override]:
        result: list[Override] = []
        for typed in self.typed:
            if self._is_alias(typed):
                continue
            is_key = typed.is_flat and typed.key in self.keys
            path = self.keys[typed.key].path if is_key else typed.key
            if by := claimed.get(path.replace("-", "_")):
                raise _given_twice_error(path, by, typed.option)
            name = typed.option.lstrip("-").replace("-", "_")
            path = name if name in self.published else path
            override = parse_override(f"{path}={typed.text}", typed.option)
            is_flat = typed.is_flat and path.endswith(f".{typed.key}")
            result.append(replace(override, is_flat=is_flat))
        return result

    def _is_alias(self, typed: TypedValue) -> bool:
        return typed.is_flat and typed.key in self.option_aliases


def _given_twice_error(key: str, first: str, second: str) -> UsageError:
    return UsageError(
        f"the key {key!r} is given twice: by {first} and by {second}",
        hint="keep one of them",
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
        return cls(
            [
                {
                    "key": info.key,
                    "type": info.type_text,
                    "default": info.default,
                    "description": info.description,
                }
                for info in dotted_keys(schema)
                if is_used(info.key)
            ]
        )

    def lines(self) -> Iterator[str]:
        for row in self.keys:
            yield f"{row['key']}: {row['type']} = {to_json(row['default'], indent=None)}"
            if row["description"]:
                yield f"    {row['description']}"
