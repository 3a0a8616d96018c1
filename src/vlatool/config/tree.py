"""Trees of configurations before validation: nested values with their origins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlatool.config.scalars import unwrap

DEFAULT_ORIGIN = "default"
TYPED_ORIGIN = "command line"


@dataclass(frozen=True)
class Node:
    """Value with its origin."""

    value: Any  # A scalar, a list of nodes, or a mapping from key to node
    origin: str  # origin such as `presets/runs/x.yaml:12` or `command line, --hparams.lr`
    replace: bool = False  # A mapping replaces the earlier one instead of being merged into it
    is_flat: bool = False  # the key of a section was written at the top level
    is_lenient: bool = False  # the value is ignored if its key is unknown


def from_value(value: Any, origin: str) -> Node:
    """Tree of plain data, with the same origin for all values."""
    if isinstance(value, dict):
        value = {str(key): from_value(item, origin) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        value = [from_value(item, origin) for item in value]
    return Node(value, origin)


def to_value(node: Node) -> Any:
    """Nested data of a tree, with scalars as they were written."""
    if isinstance(node.value, dict):
        return {key: to_value(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [to_value(item) for item in node.value]
    return node.value


def plain(node: Node) -> Any:
    """Nested data of a tree, with the YAML values of scalars."""
    return unwrap(to_value(node))


def merge(base: Node, over: Node) -> Node:
    """Merges `over` into `base`: mappings are merged recursively, other values are replaced.

    A mapping with `!replace` or another `type` replaces that of `base`.
    """
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if over.replace or _switches_type(base, over):
        return over
    merged = dict(base.value)
    for key, value in over.value.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    origin = over.origin if over.value else base.origin
    return replace(over, value=merged, origin=origin, replace=base.replace)


def _switches_type(base: Node, over: Node) -> bool:
    old, new = base.value.get("type"), over.value.get("type")
    return old is not None and new is not None and str(plain(old)) != str(plain(new))


def child(node: Node, part: str | int) -> Node | None:
    """Child of `node` at a key or index."""
    if isinstance(node.value, dict):
        return node.value.get(part)
    if isinstance(node.value, list) and str(part).isdecimal():
        return node.value[int(part)] if int(part) < len(node.value) else None
    return None


def find(node: Node, parts: Sequence[str | int]) -> Node | None:
    """Node at a path of keys and indices; None if there is none."""
    current: Node | None = node
    for part in parts:
        current = child(current, part) if current is not None else None
    return current


def nearest_origin(node: Node, parts: Sequence[str | int]) -> str:
    """Origin of the value at a path; of its section if the value does not exist."""
    origin = DEFAULT_ORIGIN
    current: Node | None = node
    for part in parts:
        current = child(current, part) if current is not None else None
        if current is None:
            break
        origin = current.origin
    return origin


def without(node: Node, parts: Sequence[str | int]) -> Node:
    """Copy of a tree without the key at a path."""
    name, *rest = parts
    if isinstance(node.value, list):
        items = [without(item, rest) if i == name else item for i, item in enumerate(node.value)]
        return replace(node, value=items)
    remaining = {
        key: without(item, rest) if key == name else item
        for key, item in node.value.items()
        if rest or key != name
    }
    return replace(node, value=remaining)


def lenient(node: Node) -> Node:
    """Copy of a tree in which unknown keys are ignored."""
    value = node.value
    if isinstance(value, dict):
        value = {key: lenient(item) for key, item in value.items()}
    elif isinstance(value, list):
        value = [lenient(item) for item in value]
    return replace(node, value=value, is_lenient=True)


def leaf_origins(node: Node, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted key, origin) of each value; a list of scalars is one value."""
    children: list[tuple[str, Node]] = []
    if isinstance(node.value, dict):
        children = list(node.value.items())
    elif isinstance(node.value, list):
        children = [
            (str(index), item)
            for index, item in enumerate(node.value)
            if isinstance(item.value, dict)
        ]
    if key and (not children or not isinstance(node.value, dict)):
        yield key, node.origin
    for name, item in children:
        yield from leaf_origins(item, f"{key}.{name}" if key else name)
