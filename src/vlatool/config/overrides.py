"""Overrides `a.b=c` of the command line as a tree, with the origin of each value."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlatool.config.includes import Budget, read_file, read_text
from vlatool.config.scalars import Plain, Repeated, parse_plain
from vlatool.config.tree import TYPED_ORIGIN, Node, from_value, merge, to_value
from vlatool.errors import UsageError
from vlatool.storage.documents import MAX_DEPTH

_INCLUDE = "include "
_YAML_STARTS = ("[", "{", '"', "'", "!include ", "!replace ")


@dataclass(frozen=True)
class Override:
    """Value of a key that overrides all files."""

    key: str  # dotted key; dashes and underscores are equivalent
    value: Any  # text of the command line, or a value of any type
    origin: str  # origin such as `command line, --hparams.lr`
    is_flat: bool = False  # the key was written without its section


def parse_override(text: str, option: str = "") -> Override:
    """Parses an override `a.b=c`."""
    key, equals, value = text.partition("=")
    key = key.strip().removeprefix("--")
    parts = key.split(".")
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise UsageError(
            f"{text!r}: not of the form KEY=VALUE",
            hint="use KEY=VALUE, for example hparams.lr=1e-4",
            code="usage.override",
            details={"override": text},
        )
    return Override(key, value, f"{TYPED_ORIGIN}, {option or f'--set {key}'}")


def overrides_tree(overrides: Sequence[Override], budget: Budget | None = None) -> Node:
    """All overrides as one layer; the values of a repeated key become `Repeated`."""
    layer = Node({}, TYPED_ORIGIN)
    budget = budget or Budget()
    for override in overrides:
        value = replace(_value(override, budget), is_flat=override.is_flat)
        layer = _put(layer, override.key.replace("-", "_").split("."), value)
    return layer


def _value(override: Override, budget: Budget) -> Node:
    text, origin = override.value, override.origin
    if not isinstance(text, str):
        return from_value(text, origin)
    if text.startswith(_INCLUDE):
        return read_file(text.removeprefix(_INCLUDE).strip(), budget=budget)
    if text.startswith(_YAML_STARTS):
        return _with_origin(read_text(text, origin, budget), origin)
    return Node(parse_plain(text) if text else Plain("", ""), origin)


def _with_origin(node: Node, origin: str) -> Node:
    """Sets the override as the origin of values in its text, not of those in included files."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _with_origin(item, origin) for key, item in value.items()}
    elif isinstance(value, list):
        value = [_with_origin(item, origin) for item in value]
    is_in_text = node.origin.startswith(f"{origin}:")
    return replace(node, value=value, origin=origin if is_in_text else node.origin)


def _put(section: Node, parts: Sequence[str], value: Node) -> Node:
    """Copy of `section` with `value` at a path, merged with values of earlier overrides."""
    children = dict(section.value) if isinstance(section.value, dict) else {}
    name, *rest = parts
    old = children.get(name)
    if rest:
        children[name] = _put(old or Node({}, value.origin), rest, value)
    elif old is None:
        children[name] = value
    elif isinstance(old.value, dict) or isinstance(value.value, dict):
        children[name] = merge(old, value)
    else:
        earlier = old.value if isinstance(old.value, Repeated) else (to_value(old),)
        children[name] = replace(value, value=Repeated((*earlier, to_value(value))))
    return replace(section, value=children)
