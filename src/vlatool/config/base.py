"""The base of every configuration: frozen values with typed, bounded, documented keys."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from vlatool.config.coerce import coerce
from vlatool.config.scalars import unwrap
from vlatool.config.schema import flat_keys, mark, unset_required
from vlatool.errors import UsageError
from vlatool.plugins import Registry


@dataclass(frozen=True)
class Violation:
    """Values that break a rule when a command runs.

    Attributes:
        keys: Dotted, in the section that tells; the first is the one to change.
        message: What is wrong and why.
        level: An error always; where one of the keys was typed, else a warning; or a warning.
        code: Stable identifier.
    """

    keys: tuple[str, ...]
    message: str
    level: Literal["error", "typed", "warning"] = "typed"
    code: str = "config.contradiction"


class ConfigModel(BaseModel):
    """Plain data, validated when built; building one does no I/O and reads no environment.

    Text from files and the command line becomes what a field's type wants (`config.fit`), and a
    section given in part keeps the rest of its default.

    Class attributes that the loader (`vlatool.config.resolve`) obeys at the root of a tree:
        exclusive: Groups of keys of which a later layer's choice replaces an earlier layer's.
        flat_sections: Sections whose keys may also be written at the top level.
        help_groups: Heading in `--help` to the keys below it; the others stand together.
        registries: Section to the table that its kind is looked up in.
        no_effect_on_output: Keys that cannot change what is produced (workers, verbosity).
        renamed: Published key to ours, for keys that have a better name here.
        virtual_keys: Section to names that stand for keys of it: the first key gets the value, the
            others, which say more about an earlier value, are emptied.
        ignored: Published keys that are accepted and do nothing, with the reason.
        refused: Published keys that are known and cannot be used yet: the values with which nothing
            is asked for, and the reason why others are refused where they would count.
        preset_sections: Folder of presets to the section that they fill; empty for the whole.
        translations: Recognises trees of other programs, and says them in our keys.
        location_keys: Keys that hold a path or URI; records keep only its last part.
        unrecorded: Keys that a record leaves out. A file with all the others is one: what it says
            was not typed.
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
    unrecorded: ClassVar[frozenset[str]] = frozenset()
    aliases: ClassVar[Mapping[str, str]] = {}
    virtual_keys: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}
    ignored: ClassVar[Mapping[str, str]] = {}
    unsupported: ClassVar[Mapping[str, tuple[Sequence[Any], str]]] = {}
    preset_sections: ClassVar[Mapping[str, str]] = {}
    translations: ClassVar[Registry[Any] | None] = None

    def derive_static(self) -> tuple[Self, Mapping[str, str]]:
        """The configuration with what other keys decide, and dotted key to rule."""
        return self, {}

    def violations(self) -> Iterable[Violation]:
        """What is wrong with these values when a command runs, though each can be read."""
        return ()

    @classmethod
    def specialize(cls, tree: Mapping[str, Any]) -> type[Self]:
        """The class that validates `tree`: a subclass with concrete types where a name decides.

        A registry's name (`model.type`, `format`) stands in the tree as text; the root config
        that has such a section looks the name up here and returns a subclass.

        Raises:
            UsageError: The name is not in the registry; `details["key"]` says which key has it.
        """
        del tree
        return cls

    @model_validator(mode="before")
    @classmethod
    def _fit_to_types(cls, data: Any) -> Any:
        """Before all others, because a discriminator allows no field validator of its own."""
        if not isinstance(data, dict):
            return data
        sectioned = _sectioned(data, cls)
        return {key: _fitted(value, cls.model_fields.get(key)) for key, value in sectioned.items()}


def _sectioned(data: dict[str, Any], model: type[ConfigModel]) -> dict[str, Any]:
    """Keys of flat sections in their sections; a section given as text is its `type`."""
    places = flat_keys(model)
    for section in model.flat_sections:
        flat = {key: value for key, value in data.items() if places.get(key) == section}
        given = data.get(section)
        if isinstance(given, str):
            flat, given = {"type": given, **flat}, {}
        if flat and (given is None or isinstance(given, dict)):
            kept = {key: value for key, value in data.items() if key not in flat}
            data = {**kept, section: {**flat, **(given or {})}}
    return data


def _fitted(value: Any, field: FieldInfo | None) -> Any:
    if field is None:
        return value
    if unwrap(value) is None and _null_is_default(field):
        return field.default
    return coerce(_over_default(value, field), field.annotation)


def _null_is_default(field: FieldInfo) -> bool:
    """Published files write null for an empty list or mapping, and for some values."""
    is_empty = field.default in ([], {}) and field.annotation is not None
    return is_empty or bool(mark(field, "nullable"))


def _over_default(value: Any, field: FieldInfo) -> Any:
    """A section's keys over those of its default; the default's `type` when none is given."""
    if not isinstance(value, dict) or field.default_factory_takes_validated_data:
        return value
    default = field.get_default(call_default_factory=True)
    return _over(value, default) if isinstance(default, BaseModel) else value


def _over(section: dict[str, Any], default: BaseModel) -> dict[str, Any]:
    kind = getattr(default, "type", None)
    if kind is not None and section.get("type", kind) != kind:
        return section
    merged = dict(section) if kind is None else {"type": kind, **section}
    for name in default.model_fields_set:
        inherited = getattr(default, name)
        own = merged.get(name, inherited)
        if isinstance(own, dict) and isinstance(inherited, BaseModel):
            own = _over(own, inherited)
        merged[name] = own
    return merged


def derived_field(rule: str, description: str, *, default: Any = None, **constraints: Any) -> Any:
    """A key that stays empty until data or other keys give it; `rule` says how."""
    return Field(
        default=default,
        description=description,
        json_schema_extra={"derived": rule},
        **constraints,
    )


def required_field(default: Any, description: str, **constraints: Any) -> Any:
    """A key that may stay unset while resolving, but not when the command runs."""
    return Field(
        default=default, description=description, json_schema_extra={"needed": True}, **constraints
    )


def nullable_field(default: Any, description: str, **constraints: Any) -> Any:
    """A key for whose default published files write null."""
    return Field(
        default=default,
        description=description,
        json_schema_extra={"nullable": True},
        **constraints,
    )


def derivation_rule(field: FieldInfo) -> str:
    """How a derived field gets its value; empty for others."""
    return mark(field, "derived") or ""


def derivation_rules(config: ConfigModel, names: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Dotted key to rule of the derived fields named."""
    fields = type(config).model_fields
    return {f"{prefix}{name}": derivation_rule(fields[name]) for name in names}


def check_required(config: ConfigModel, usage: str) -> None:
    """Makes sure that the keys without which a command cannot run have a value.

    Args:
        config: What was typed.
        usage: How the command is written.

    Raises:
        UsageError: One has none.
    """
    for key in unset_required(config):
        raise UsageError(f"{key!r} needs a value", hint=usage, code="usage.missing_key")


def unique_items(value: Sequence[Any]) -> Sequence[Any]:
    """The values, if none stands there twice; a rule for field validators."""
    twice = [item for item in value if value.count(item) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is given twice")
    return value
