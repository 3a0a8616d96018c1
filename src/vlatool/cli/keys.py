"""The configuration keys of a flat command as options."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlatool.config.base import ConfigModel
from vlatool.config.schema import ANY_NAME, KeyInfo, dotted_keys


@dataclass(frozen=True)
class Key:
    """One key that can be typed as an option.

    Attributes:
        name: Option name with underscores: `samples_per_shard`.
        path: Dotted place in the tree: `source.observation_keys`.
        is_switch: Needs no value.
        type_text: Such as `int`, `a|b`.
        default: For people; empty when there is none.
        description: What it means.
        group: Heading in `--help`.
    """

    name: str
    path: str
    is_switch: bool = False
    type_text: str = "str"
    default: str = ""
    description: str = ""
    group: str = "Keys"


def declared_keys(schema: type[ConfigModel]) -> dict[str, Key]:
    """Every key of a flat schema by option name; keys of its flat sections stand beside them."""
    infos = [info for info in dotted_keys(schema) if ANY_NAME not in info.key.split(".")]
    return {key.name: key for key in _keys(infos, schema.flat_sections)}


def _keys(infos: list[KeyInfo], flat_sections: tuple[str, ...]) -> Iterator[Key]:
    for info in infos:
        section, dot, rest = info.key.partition(".")
        name = rest if dot and section in flat_sections else info.key
        if name == "type":  # what a section is: `--sink lbm`
            name = section
        kinds = info.type_text.split(" | ")
        yield Key(
            name=name,
            path=info.key,
            is_switch="bool" in kinds,
            type_text="|".join(_typed(kind) for kind in kinds if kind != "null"),
            default=default_text(info.default),
            description=info.description,
            group=f"Keys of the {section}" if dot and name != section else "Keys",
        )


def _typed(kind: str) -> str:
    """How a value of a type is typed.

    `list[str]` is `str,...`, `tuple[int, int]` is `int,int`, `dict[str, int]` is `{str: int, ...}`.
    """
    inner = kind.partition("[")[2].removesuffix("]")
    if kind.startswith(("list[", "set[")) and "[" not in inner:
        return f"{inner},..."
    if kind.startswith("tuple[") and "[" not in inner:
        return inner.replace(" ", "")
    if kind.startswith("dict[") and "[" not in inner:
        name, value = inner.split(", ")
        return f"{{{name}: {value}, ...}}"
    return kind


def default_text(value: Any) -> str:
    """A default as one would type it; empty when there is none."""
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(default_text(item) for item in value)
    return str(value)
