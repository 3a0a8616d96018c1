"""The base of every configuration: frozen values with typed, bounded, documented keys."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field


class ConfigModel(BaseModel):
    """Plain data, validated when built; building one does no I/O and reads no environment.

    Class attributes that the loader (`vlatool.config.resolve`) obeys at the root of a tree:
        exclusive: Groups of keys of which a later layer's choice replaces an earlier layer's.
        flat_sections: Sections whose keys may also be written at the top level.
        no_effect_on_output: Keys that cannot change what is produced (workers, verbosity).
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
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def specialise(cls, tree: Mapping[str, Any]) -> type[Self]:
        """The class that validates `tree`: a subclass with concrete types where a name decides.

        A registry's name (`model.type`, `format`) stands in the tree as text; the root config
        that has such a section looks the name up here and returns a subclass.

        Raises:
            UsageError: The name is not in the registry.
        """
        del tree
        return cls


def derived_field(rule: str, description: str, **constraints: Any) -> Any:
    """A key that is null until data or other keys give it; `rule` says how, for `--explain`."""
    return Field(
        default=None,
        description=description,
        json_schema_extra={"derived": rule},
        **constraints,
    )


def needed_field(default: Any, description: str, **constraints: Any) -> Any:
    """A key that may stay unset while resolving, but not when the command runs."""
    return Field(
        default=default, description=description, json_schema_extra={"needed": True}, **constraints
    )
