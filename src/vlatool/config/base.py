"""Base class of configurations: frozen values with typed, bounded, documented keys."""

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from vlatool.config.coerce import coerce, unwrap
from vlatool.config.schema import mark, unset_required
from vlatool.errors import UsageError
from vlatool.plugins import Registry


@dataclass(frozen=True)
class Ignored:
    """A name without a meaning here: its value is dropped, and a typed one is reported."""

    reason: str  # why it has no meaning
    is_switch: bool = False  # an option without a value


@dataclass(frozen=True)
class Supported:
    """A field of which only some values are supported; all others are errors."""

    values: Sequence[Any]
    reason: str  # why there are no other values


@dataclass(frozen=True)
class Converted:
    """A name that stands for several keys."""

    # Values of keys for a value of the name; ValueError with the reason if it is not supported.
    convert: Callable[[Any], Mapping[str, Any]]
    # A preset with the defaults of that program, for a command line without presets and files. The
    # values of the keys are then defaults, too: other keys of the command line win.
    preset: str = ""


# What a name of another program stands for: a key; `/KEY` at the root; `KEY=VALUE` for a switch;
# or keys of which the first gets the value, and the others, which describe an earlier one, are
# emptied.
Name = str | tuple[str, ...] | Ignored | Supported | Converted
Names = Mapping[str, Name]


@dataclass(frozen=True)
class Violation:
    """A violated rule; rules are checked when a command runs."""

    # dotted keys, relative to the section that reports it; change the first one
    keys: tuple[str, ...]
    message: str  # description of the error and its reason
    # `error`: always an error; `typed`: an error if one of the keys was set explicitly, else a
    # warning; `warning`: always a warning
    level: Literal["error", "typed", "warning"] = "typed"
    code: str = "config.contradiction"  # stable identifier


class ConfigModel(BaseModel):
    """Configuration: plain data, validated on construction, without I/O or environment.

    Text from files and the command line is converted to the types of the fields (`config.coerce`).
    Keys that a section does not set keep the values of its default.

    Class attributes that the loader (`vlatool.config.resolve`) uses at the root of a tree:
        exclusive: Groups of keys that exclude each other. A key in a later layer replaces the keys
            of its group in earlier layers.
        flat_sections: Sections whose keys may also be written at the top level.
        help_groups: Headings in `--help` with the keys below them; all other keys are listed
            together.
        registries: Map from section to the registry of its types.
        no_effect_on_output: Keys that do not change what is produced: the output, keys of the
            execution, and keys with `affects_output=False`.
        NAMES: Names of other programs, and what they stand for; dotted ones are inside sections.
            `Resolved.ignored` lists the typed ones that mean nothing here.
        preset_sections: Map from folder of presets to the section that they fill; empty for the
            whole tree.
        translations: Functions that convert files of other programs.
        location_keys: Keys with a path or URI. Records keep only the last part of such a value.
        newer: Keys that version 0.3 lacks, and the value that does what it did. Records and digests
            leave such a value out, so that outputs of 0.3 are continued.

    A section with a classmethod `from_texts(texts) -> keys` may be typed as text. With a
    `typed_form`, which describes the text, it is one option that may be repeated.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    exclusive: ClassVar[tuple[tuple[str, ...], ...]] = ()
    flat_sections: ClassVar[tuple[str, ...]] = ()
    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    registries: ClassVar[Mapping[str, Registry[Any]]] = {}
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset()
    location_keys: ClassVar[frozenset[str]] = frozenset()
    newer: ClassVar[Mapping[str, Any]] = {}
    typed_form: ClassVar[str] = ""
    NAMES: ClassVar[Names] = {}
    preset_sections: ClassVar[Mapping[str, str]] = {}
    translations: ClassVar[Registry[Any] | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        # A section that a subclass replaces keeps its mark.
        unused = {"output", *cls.no_effect_on_output}
        for name, field in cls.model_fields.items():
            if mark(field, "execution") or mark(field, "affects_output") is False:
                unused.add(name)
        cls.no_effect_on_output = frozenset(unused)

    def recorded(self, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """JSON values of the keys that records and digests have."""
        unchanged = {key for key, value in self.newer.items() if getattr(self, key) == value}
        return self.model_dump(mode="json", exclude={*exclude, *unchanged})

    def derive_static(self) -> tuple[Self, Mapping[str, str]]:
        """Fills in values that follow from other keys; returns the rule of each by dotted key."""
        return self, {}

    def violations(self) -> Iterable[Violation]:
        """Yields violated rules between valid values; they are checked when a command runs."""
        return ()

    @classmethod
    def implied(cls, tree: Mapping[str, Any], names: Set[str]) -> Mapping[str, Any]:
        """Returns values below all layers, which follow from keys in `tree`, and from the names of
        other programs in it.
        """
        return {}

    @classmethod
    def specialize(cls, tree: Mapping[str, Any]) -> type[Self]:
        """Returns the class that validates `tree`.

        In the tree, a registered name (`model.type`, `format`) is text. A root config with such a
        section looks the name up here, and returns a subclass with the section that it selects. A
        name that is not given may be found in what the tree names, such as the first source.
        """
        return cls

    @model_validator(mode="before")
    @classmethod
    def _coerce_fields(cls, data: Any) -> Any:
        """Converts all values first, because a discriminator allows no field validator."""
        if not isinstance(data, dict):
            return data
        unused = ignored_names(cls)
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in unused:
                values[key] = _coerce_field(value, cls.model_fields.get(key))
        return values


def ignored_names(schema: type[ConfigModel]) -> dict[str, Ignored]:
    """Names without a meaning here."""
    return {name: row for name, row in schema.NAMES.items() if isinstance(row, Ignored)}


def _coerce_field(value: Any, field: FieldInfo | None) -> Any:
    if field is None:
        return value
    if unwrap(value) is None and _null_is_default(field):
        return field.default
    return coerce(_merge_default(value, field), field.annotation)


def _null_is_default(field: FieldInfo) -> bool:
    """True if published files write null for the default: an empty list, and marked fields."""
    is_empty = field.default in ([], {}) and field.annotation is not None
    return is_empty or bool(mark(field, "nullable"))


def _merge_default(value: Any, field: FieldInfo) -> Any:
    """Merges a section over its default; without a `type`, it takes the type of the default."""
    if not isinstance(value, dict) or field.default_factory_takes_validated_data:
        return value
    default = field.get_default(call_default_factory=True)
    if not isinstance(default, BaseModel):
        return value
    return _merge_section(value, default)


def _merge_section(section: dict[str, Any], default: BaseModel) -> dict[str, Any]:
    kind = getattr(default, "type", None)
    if kind is not None and section.get("type", kind) != kind:
        return section
    merged = dict(section) if kind is None else {"type": kind, **section}
    for name in default.model_fields_set:
        inherited = getattr(default, name)
        own = merged.get(name, inherited)
        if isinstance(own, dict) and isinstance(inherited, BaseModel):
            own = _merge_section(own, inherited)
        merged[name] = own
    return merged


def derived_field(
    rule: str,
    description: str,
    *,
    default: Any = None,
    may_be_null: bool = False,
    **constraints: Any,
) -> Any:
    """Declares a field that is empty until it is derived from data or other keys.

    `rule` describes how it is derived. With `may_be_null`, it may stay empty.
    """
    marks: dict[str, Any] = {"derived": rule}
    if may_be_null:
        marks["may_be_null"] = True
    return _field(default, description, marks, constraints)


def option(default: Any, description: str, **constraints: Any) -> Any:
    """Declares a field with a default; `description` is its help.

    `affects_output=False` says that the key does not change what is produced, such as a number of
    workers: a command may then be continued with another value. All functions for fields take it.
    """
    return _field(default, description, {}, constraints)


def required_field(default: Any, description: str, **constraints: Any) -> Any:
    """Declares a field that must have a value when a command runs."""
    return _field(default, description, {"needed": True}, constraints)


def nullable_field(default: Any, description: str, **constraints: Any) -> Any:
    """Declares a field with a default that published files write as null."""
    return _field(default, description, {"nullable": True}, constraints)


def execution_field(default: Any, description: str, **constraints: Any) -> Any:
    """Declares a field that controls how a command works, and not what it writes.

    It is listed after the others, and is not part of `config.yaml`.
    """
    return _field(default, description, {"execution": True}, constraints)


def _field(
    default: Any, description: str, marks: dict[str, Any], constraints: dict[str, Any]
) -> Any:
    if not constraints.pop("affects_output", True):
        marks["affects_output"] = False
    return Field(
        default=default, description=description, json_schema_extra=marks or None, **constraints
    )


def derivation_rules(config: ConfigModel, names: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Map from dotted key to rule, for the named derived fields."""
    rules: dict[str, str] = {}
    for name in names:
        rules[f"{prefix}{name}"] = mark(type(config).model_fields[name], "derived") or ""
    return rules


def typed_command(words: str, config: ConfigModel, arguments: Sequence[str] = ()) -> str:
    """Returns a command line that gives the same results.

    It has the arguments, then all options that differ from their defaults. It leaves out the
    output, and options that do not change its content.
    """
    unused = set(config.no_effect_on_output)
    values = config.model_dump(mode="json", exclude_defaults=True, exclude=unused)
    line = ["vlatool", *words.split()]
    for key in arguments:
        line.append(str(values.pop(key)))
    for key, value in values.items():
        option = f"--{key.replace('_', '-')}"
        if value is True:
            line.append(option)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            line += [option, str(value)]
        else:
            line += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join(line)


def check_required(config: ConfigModel, usage: str) -> None:
    """Raises if a required key has no value."""
    for key in unset_required(config):
        option = f"--{key.replace('_', '-')}"
        name = option if option in usage else key.upper()
        raise UsageError(f"{name} is missing", hint=usage, code="usage.missing_key")


def unique_items(value: Sequence[Any]) -> Sequence[Any]:
    """Returns the values; a field validator."""
    for item in value:
        if value.count(item) > 1:
            raise ValueError(f"{item!r} is given twice")
    return value
