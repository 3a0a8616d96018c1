"""Layers over each other: mappings merge deeply, everything else replaces."""

from collections.abc import Mapping, Sequence

from vlatool.config.problems import Problem
from vlatool.config.scalars import unwrap
from vlatool.config.tree import Node, find, to_value


def merge(base: Node, over: Node) -> Node:
    """`over` on top of `base`; `!replace` and another `type` drop what `base` had."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if over.replace or _switches_type(base, over):
        return over
    merged = dict(base.value)
    for key, value in over.value.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return Node(merged, over.origin if over.value else base.origin, base.replace)


def combine(
    layers: Sequence[Node], exclusive: Sequence[Sequence[str]] = ()
) -> tuple[Node, list[Problem]]:
    """All layers as one tree, the first at the bottom.

    Args:
        layers: Trees whose roots are mappings.
        exclusive: Groups of keys; one set by a later layer removes the others set earlier.

    Returns:
        The tree, and a problem for each layer that sets two keys of a group.
    """
    merged = Node({}, "default")
    problems: list[Problem] = []
    for layer in layers:
        for group in exclusive:
            chosen = [key for key in group if _is_set(layer, key)]
            if len(chosen) > 1:
                problems.append(_conflict(layer, chosen))
            if chosen:
                merged = _without(merged, [key for key in group if key not in chosen])
        merged = merge(merged, layer)
    return merged, problems


def move_into_section(layer: Node, keys: Sequence[str], section: str) -> tuple[Node, list[Problem]]:
    """`layer` with some top-level keys moved into a section, unless they also stand there."""
    top = dict(layer.value)
    moved = {key: top.pop(key) for key in keys}
    if not moved:
        return layer, []
    inside = top.get(section)
    twice = [key for key in moved if inside is not None and find(inside, [key]) is not None]
    problems = [
        Problem(
            key,
            moved[key].origin,
            f'"{key}" is given twice: also as "{section}.{key}"',
            code="config.conflict",
        )
        for key in twice
    ]
    flat = Node(moved, next(iter(moved.values())).origin)
    top[section] = merge(inside, flat) if inside is not None else flat
    return Node(top, layer.origin, layer.replace), problems


def rename_keys(layer: Node, names: Mapping[str, str]) -> tuple[Node, list[Problem]]:
    """`layer` with published top-level keys under our names, unless both stand there."""
    top: dict[str, Node] = {}
    problems: list[Problem] = []
    for key, node in layer.value.items():
        name = names.get(key, key)
        if name in top:
            message = f'"{key}" is given twice: "{name}" means the same'
            problems.append(Problem(key, node.origin, message, code="config.conflict"))
        top[name] = node
    return Node(top, layer.origin, layer.replace), problems


def _switches_type(base: Node, over: Node) -> bool:
    old, new = base.value.get("type"), over.value.get("type")
    return old is not None and new is not None and _text(old) != _text(new)


def _text(node: Node) -> str:
    return str(unwrap(to_value(node)))


def _is_set(layer: Node, key: str) -> bool:
    node = find(layer, key.split("."))
    return node is not None and unwrap(to_value(node)) is not None


def _conflict(layer: Node, chosen: Sequence[str]) -> Problem:
    node = find(layer, chosen[-1].split("."))
    names = " and ".join(f'"{key}"' for key in chosen)
    message = f"{names} exclude each other; give one of them"
    return Problem(chosen[-1], node.origin if node else "", message, code="config.conflict")


def _without(node: Node, keys: Sequence[str]) -> Node:
    for key in keys:
        node = _drop(node, key.split("."))
    return node


def _drop(node: Node, parts: Sequence[str]) -> Node:
    if not isinstance(node.value, dict) or parts[0] not in node.value:
        return node
    kept = dict(node.value)
    if len(parts) == 1:
        del kept[parts[0]]
    else:
        kept[parts[0]] = _drop(kept[parts[0]], parts[1:])
    return Node(kept, node.origin, node.replace)
