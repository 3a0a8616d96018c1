"""defaults < presets < files < overrides: layers to one validated configuration with origins."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from vlatool.config.base import ConfigModel
from vlatool.config.includes import Budget, read_file
from vlatool.config.overrides import Override, overrides_tree
from vlatool.config.presets import preset_path, shown_path
from vlatool.config.problems import Problem, config_error, validation_problems
from vlatool.config.schema import flat_keys, section_models
from vlatool.config.tree import (
    Node,
    find,
    leaf_origins,
    merge,
    nearest_origin,
    plain,
    to_value,
)
from vlatool.errors import UsageError
from vlatool.storage.uri import refuse_credentials

C = TypeVar("C", bound=ConfigModel)

_INCLUDE = re.compile(r"^include\s+(\S.*\.ya?ml)$")


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """A configuration and where its values come from.

    Attributes:
        config: The validated values.
        origins: Dotted key to origin; a key that is absent has its default.
    """

    config: C
    origins: Mapping[str, str]


def load_config(
    schema: type[C],
    *,
    presets: Sequence[str] = (),
    files: Sequence[str] = (),
    overrides: Sequence[Override] = (),
    preset_roots: Sequence[Path] | None = None,
) -> Resolved[C]:
    """Merges all layers and validates the result.

    Args:
        schema: The class; its `specialise` may choose a subclass.
        presets: Names of presets, or paths.
        files: YAML files, each over the ones before it.
        overrides: What was typed, in order.
        preset_roots: Folders with presets; ours and those of plugins by default.

    Raises:
        ConfigError: Every problem of the configuration.
        UsageError: A preset has an unknown name.
    """
    layers = _layers(presets, files, overrides, preset_roots)
    problems: list[Problem] = []
    layers = [_renamed(layer, schema.renamed, problems) for layer in layers]
    layers = [_with_types(layer, schema) for layer in layers]
    specialised = _specialise(schema, _combined(layers, schema.exclusive, []))
    layers = [_spelled_out(layer, specialised, problems) for layer in layers]
    layers = [_sectioned(layer, specialised, problems) for layer in layers]
    merged = _combined(layers, specialised.exclusive, problems)
    _refuse_credentials(merged)
    return _validate(specialised, merged, problems)


def _refuse_credentials(node: Node) -> None:
    """Refuses locations with a secret in them, before anything prints or records the tree."""
    if isinstance(node.value, str):
        for text in node.value.split(","):
            refuse_credentials(text.strip())
    elif isinstance(node.value, dict | list):
        children = node.value.values() if isinstance(node.value, dict) else node.value
        for child in children:
            _refuse_credentials(child)


def chosen_schema(
    schema: type[C],
    *,
    presets: Sequence[str] = (),
    files: Sequence[str] = (),
    overrides: Sequence[Override] = (),
) -> type[C]:
    """The class that would validate the same layers, whatever their other values are.

    Raises:
        ConfigError: A name of a registry is unknown.
        UsageError: A preset has an unknown name.
    """
    layers = [
        _renamed(layer, schema.renamed, []) for layer in _layers(presets, files, overrides, None)
    ]
    layers = [_with_types(layer, schema) for layer in layers]
    return _specialise(schema, _combined(layers, schema.exclusive, []))


def _layers(
    presets: Sequence[str],
    files: Sequence[str],
    overrides: Sequence[Override],
    preset_roots: Sequence[Path] | None,
) -> list[Node]:
    read = partial(
        read_file, show=partial(shown_path, roots=preset_roots), budget=(budget := Budget())
    )
    layers = [_checked(read(preset_path(name, preset_roots))) for name in presets]
    layers += [_included(_checked(read(file)), budget) for file in files]
    return [*layers, overrides_tree(overrides, budget)]


def _included(layer: Node, budget: Budget) -> Node:
    """Published files may say `key: include other.yaml`, relative to the working directory."""
    top = {
        key: read_file(match.group(1), budget=budget)
        if isinstance(node.value, str) and (match := _INCLUDE.match(node.value))
        else node
        for key, node in layer.value.items()
    }
    return replace(layer, value=top)


def _checked(layer: Node) -> Node:
    if isinstance(layer.value, dict):
        return layer
    problem = Problem("", layer.origin, "a configuration must be a mapping", code="config.syntax")
    raise config_error([problem])


def _renamed(layer: Node, names: Mapping[str, str], problems: list[Problem]) -> Node:
    """`layer` with published top-level keys under our names."""
    top: dict[str, Node] = {}
    for key, node in layer.value.items():
        name = names.get(key, key)
        if name in top:
            problems.append(
                _conflict(node, f'"{key}" is given twice: "{name}" means the same', key)
            )
        top[name] = node
    return replace(layer, value=top)


def _spelled_out(layer: Node, schema: type[ConfigModel], problems: list[Problem]) -> Node:
    """`layer` with the keys that stand for keys of a section put in their places."""
    top = dict(layer.value)
    for section, names in schema.stands_for.items():
        given = top.get(section)
        if given is None or not isinstance(given.value, dict):
            continue
        renamed = _renamed(given, {name: keys[0] for name, keys in names.items()}, problems)
        emptied = {
            key: Node([], given.value[name].origin)
            for name, keys in names.items()
            if name in given.value
            for key in keys[1:]
        }
        top[section] = replace(renamed, value={**emptied, **renamed.value})
    return replace(layer, value=top)


def _combined(
    layers: Sequence[Node], exclusive: Sequence[Sequence[str]], problems: list[Problem]
) -> Node:
    """All layers as one tree, the first at the bottom.

    Of a group of exclusive keys, one that a later layer sets removes the others set earlier.
    """
    merged = Node({}, "default")
    for layer in layers:
        for group in exclusive:
            chosen = [key for key in group if _is_set(layer, key)]
            if len(chosen) > 1:
                names = " and ".join(f'"{key}"' for key in chosen)
                message = f"{names} exclude each other; give one of them"
                problems.append(_conflict(layer.value[chosen[-1]], message, chosen[-1]))
            if chosen:
                kept = {k: v for k, v in merged.value.items() if k in chosen or k not in group}
                merged = replace(merged, value=kept)
        merged = merge(merged, layer)
    return merged


def _is_set(layer: Node, key: str) -> bool:
    return key in layer.value and plain(layer.value[key]) is not None


def _conflict(node: Node, message: str, key: str) -> Problem:
    return Problem(key, node.origin, message, code="config.conflict")


def _specialise(schema: type[C], tree: Node) -> type[C]:
    try:
        return schema.specialise(plain(tree))
    except UsageError as error:
        key = str(error.details.get("key", ""))
        if not key:
            raise
        origin = nearest_origin(tree, key.split("."))
        problem = Problem(key, origin, error.message)
        raise config_error([problem], hint=error.hint) from error


def _sectioned(layer: Node, schema: type[ConfigModel], problems: list[Problem]) -> Node:
    """Puts keys that belong to a flat section there; done per layer, so that later ones win."""
    places = flat_keys(schema)
    for section in schema.flat_sections:
        flat = {
            key: replace(node, is_flat=True)
            for key, node in layer.value.items()
            if places.get(key) == section
        }
        if not flat:
            continue
        kept = {key: node for key, node in layer.value.items() if key not in flat}
        given = kept.get(section, Node({}, next(iter(flat.values())).origin))
        for key in flat:
            if find(given, [key]) is not None:
                message = f'"{key}" is given twice: also as "{section}.{key}"'
                problems.append(_conflict(flat[key], message, key))
        kept[section] = merge(given, Node(flat, given.origin))
        layer = replace(layer, value=kept)
    return layer


def _with_types(layer: Node, schema: type[ConfigModel]) -> Node:
    """`layer` with each section that is given by its `type` alone as a section.

    Done before layers are merged: keys of a later one would replace the text.
    """
    for section in schema.flat_sections:
        if any("type" in kind.model_fields for kind in section_models(schema, section)):
            layer = _typed_section(layer, section)
    return layer


def _typed_section(layer: Node, section: str) -> Node:
    """A section that is given as text alone is its `type`."""
    given = layer.value.get(section)
    if given is None or isinstance(given.value, dict | list) or plain(given) is None:
        return layer
    typed = Node({"type": given}, given.origin)
    return replace(layer, value={**layer.value, section: typed})


def _validate(schema: type[C], tree: Node, problems: Sequence[Problem]) -> Resolved[C]:
    try:
        config = schema.model_validate(to_value(tree))
    except ValidationError as error:
        wrong, more = validation_problems(error, tree, schema)
        raise config_error([*problems, *wrong], more=more) from error
    if problems:
        raise config_error(problems)
    return Resolved(config, dict(leaf_origins(tree)))


def with_derived(resolved: Resolved[C], config: C, rules: Mapping[str, str]) -> Resolved[C]:
    """The configuration after data gave it values; `rules` say which key and how."""
    origins = {key: f"derived: {rule}" for key, rule in rules.items()}
    return replace(resolved, config=config, origins={**resolved.origins, **origins})
