"""Resolution of configurations: defaults < presets < files < overrides, merged and validated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from vlatool.config.base import ConfigModel
from vlatool.config.layers import STRICT, LayerReader, Layers, ReadOptions
from vlatool.config.overrides import Override
from vlatool.config.problems import Problem, config_error, unknown_keys, validation_problems
from vlatool.config.rules import sections
from vlatool.config.schema import execution_keys, flat_keys, section_models
from vlatool.config.tree import (
    Node,
    find,
    leaf_origins,
    merge,
    nearest_origin,
    plain,
    to_value,
    without,
)
from vlatool.errors import UsageError
from vlatool.storage.uri import check_no_credentials

C = TypeVar("C", bound=ConfigModel)


@dataclass(frozen=True)
class Resolved(Generic[C]):
    """Configuration with the origins of its values."""

    config: C  # validated values
    # map from dotted key to origin; keys without an entry have their defaults
    origins: Mapping[str, str]
    # keys that were set explicitly for this command, by an option or in a given file. The others
    # are inherited from presets, includes or records
    typed: frozenset[str] = frozenset()
    unknown_keys: tuple[str, ...] = ()  # unknown keys that were ignored
    # published keys without a meaning here that were typed, with the reason
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])


def load_config(
    schema: type[C],
    *,
    presets: Sequence[str] = (),
    files: Sequence[str] = (),
    overrides: Sequence[Override] = (),
    preset_roots: Sequence[Path] | None = None,
    read_options: ReadOptions = STRICT,
) -> Resolved[C]:
    """Merges all layers and validates the result.

    Args:
        schema: Class of the configuration; its `specialize` may select a subclass.
        presets: Names or paths of presets.
        files: YAML files, each merged over the ones before it.
        overrides: Overrides in order.
        preset_roots: Folders with presets; by default those of vlatool and of plugins.
        read_options: Options of reading files.

    Raises:
        ConfigError: The configuration is invalid; the error lists all problems.
        UsageError: The name of a preset is unknown, or its kind is not allowed here.
    """
    read = _reader(schema, read_options, preset_roots).read(presets, files, overrides)
    problems: list[Problem] = []
    layers = [_apply_aliases(layer, schema.aliases, problems) for layer in read.trees]
    layers = [_expand_types(layer, schema) for layer in layers]
    subclass = _specialize(schema, _merge_layers(layers, schema.exclusive, []))
    layers = [_expand_virtual_keys(layer, subclass, problems) for layer in layers]
    layers = [_apply_root_aliases(layer, subclass, problems) for layer in layers]
    layers = [_nest_flat_keys(layer, subclass, problems) for layer in layers]
    merged = _merge_layers(layers, subclass.exclusive, problems)
    _check_no_credentials(merged)
    return _validate(subclass, merged, problems, read)


def _reader(
    schema: type[ConfigModel], reading: ReadOptions, preset_roots: Sequence[Path] | None = None
) -> LayerReader:
    return LayerReader(
        schema.preset_sections,
        schema.translations,
        reading,
        preset_roots,
        frozenset(schema.model_fields) - execution_keys(schema),
    )


def _check_no_credentials(node: Node) -> None:
    """Raises for locations with credentials, before the tree is printed or recorded."""
    if isinstance(node.value, str):
        for text in node.value.split(","):
            check_no_credentials(text.strip())
    elif isinstance(node.value, dict | list):
        children = node.value.values() if isinstance(node.value, dict) else node.value
        for child in children:
            _check_no_credentials(child)


def chosen_schema(
    schema: type[C],
    *,
    presets: Sequence[str] = (),
    files: Sequence[str] = (),
    overrides: Sequence[Override] = (),
    read_options: ReadOptions = STRICT,
) -> type[C]:
    """Class that would validate the same layers; their other values are not validated."""
    read = _reader(schema, read_options).read(presets, files, overrides)
    layers = [_apply_aliases(layer, schema.aliases, []) for layer in read.trees]
    layers = [_expand_types(layer, schema) for layer in layers]
    return _specialize(schema, _merge_layers(layers, schema.exclusive, []))


def _apply_aliases(layer: Node, names: Mapping[str, str], problems: list[Problem]) -> Node:
    """Renames published top-level keys of a layer to those used here."""
    top: dict[str, Node] = {}
    for key, node in layer.value.items():
        name = names.get(key, key).partition("=")[0]
        if name in top:
            problems.append(
                _conflict(node, f'"{key}" is given twice: "{name}" is the same key', key)
            )
        top[name] = node
    return replace(layer, value=top)


def _apply_root_aliases(layer: Node, schema: type[ConfigModel], problems: list[Problem]) -> Node:
    """Moves keys of sections to the root, where they stand for a key."""
    top = dict(layer.value)
    for section, info in schema.model_fields.items():
        names = getattr(info.annotation, "root_aliases", {})
        node = top.get(section)
        for key, name in names.items() if node is not None and isinstance(node.value, dict) else ():
            value = top[section].value.get(key)
            if value is None:
                continue
            rest = {k: v for k, v in top[section].value.items() if k != key}
            top[section] = replace(top[section], value=rest)
            if plain(value) and name in top:
                message = f'"{section}.{key}" is given twice: "{name}" is the same key'
                problems.append(_conflict(value, message, f"{section}.{key}"))
            top.setdefault(name, value)
    return replace(layer, value=top)


def _expand_virtual_keys(layer: Node, schema: type[ConfigModel], problems: list[Problem]) -> Node:
    """Replaces virtual keys of sections by the keys that they stand for."""
    top = dict(layer.value)
    for section, names in schema.virtual_keys.items():
        node = top.get(section)
        if node is None or not isinstance(node.value, dict):
            continue
        aliased = _apply_aliases(node, {name: keys[0] for name, keys in names.items()}, problems)
        emptied = {
            key: Node([], node.value[name].origin)
            for name, keys in names.items()
            if name in node.value
            for key in keys[1:]
        }
        top[section] = replace(aliased, value={**emptied, **aliased.value})
    return replace(layer, value=top)


def _merge_layers(
    layers: Sequence[Node], exclusive: Sequence[Sequence[str]], problems: list[Problem]
) -> Node:
    """Merges all layers, each over the ones before it.

    A key of an exclusive group removes the other keys of the group that earlier layers set.
    """
    merged = Node({}, "default")
    for layer in layers:
        for group in exclusive:
            chosen = [key for key in group if _is_set(layer, key)]
            if len(chosen) > 1:
                names = " and ".join(f'"{key}"' for key in chosen)
                message = f"{names} exclude each other; set one of them"
                problems.append(_conflict(layer.value[chosen[-1]], message, chosen[-1]))
            if chosen:
                rest = {k: v for k, v in merged.value.items() if k in chosen or k not in group}
                merged = replace(merged, value=rest)
        merged = merge(merged, layer)
    return merged


def _is_set(layer: Node, key: str) -> bool:
    return key in layer.value and plain(layer.value[key]) is not None


def _conflict(node: Node, message: str, key: str) -> Problem:
    return Problem(key, node.origin, message, code="config.conflict")


def _specialize(schema: type[C], tree: Node) -> type[C]:
    try:
        return schema.specialize(plain(tree))
    except UsageError as error:
        key = str(error.details.get("key", ""))
        if not key:
            raise
        origin = nearest_origin(tree, key.split("."))
        problem = Problem(key, origin, error.message)
        raise config_error([problem], hint=error.hint) from error


def _nest_flat_keys(layer: Node, schema: type[ConfigModel], problems: list[Problem]) -> Node:
    """Moves keys of flat sections into their sections, per layer, so that later layers win."""
    sections = flat_keys(schema)
    for section in schema.flat_sections:
        flat = {
            key: replace(node, is_flat=True)
            for key, node in layer.value.items()
            if sections.get(key) == section
        }
        if not flat:
            continue
        rest = {key: node for key, node in layer.value.items() if key not in flat}
        nested = rest.get(section, Node({}, next(iter(flat.values())).origin))
        for key in flat:
            if find(nested, [key]) is not None:
                message = f'"{key}" is given twice: also as "{section}.{key}"'
                problems.append(_conflict(flat[key], message, key))
        rest[section] = merge(nested, Node(flat, nested.origin))
        layer = replace(layer, value=rest)
    return layer


def _expand_types(layer: Node, schema: type[ConfigModel]) -> Node:
    """Expands sections of a layer that are given as their `type` alone.

    This precedes merging, because keys of a later layer would replace the text.
    """
    for section in schema.flat_sections:
        if any("type" in kind.model_fields for kind in section_models(schema, section)):
            layer = _expand_type(layer, section)
    return layer


def _expand_type(layer: Node, section: str) -> Node:
    """Replaces a section that is given as text by a section with this `type`."""
    node = layer.value.get(section)
    if node is None or isinstance(node.value, dict | list) or plain(node) is None:
        return layer
    expanded = Node({"type": node}, node.origin)
    return replace(layer, value={**layer.value, section: expanded})


def _validate(
    schema: type[C], tree: Node, problems: Sequence[Problem], layers: Layers
) -> Resolved[C]:
    unknown: list[str] = []
    while True:
        try:
            config, rules = schema.model_validate(to_value(tree)).derive_static()
            break
        except ValidationError as error:
            paths = unknown_keys(error, tree)
            if not paths:
                invalid, more = validation_problems(error, tree, schema)
                raise config_error([*problems, *invalid], more=more) from error
            for parts in paths:
                unknown += _keys_below(tree, parts)
                tree = without(tree, parts)
    if problems:
        raise config_error(problems)
    origins = dict(leaf_origins(tree))
    typed = frozenset(key for key, origin in origins.items() if layers.is_typed(origin))
    derived = {key: f"derived: {rule}" for key, rule in rules.items()}
    ignored = {
        f"{prefix}{key}": reason
        for prefix, section in sections(config)
        for key, reason in section.ignored.items()
        if any(name.startswith(f"{prefix}{key}.") or name == f"{prefix}{key}" for name in typed)
    }
    return Resolved(config, {**origins, **derived}, typed, tuple(dict.fromkeys(unknown)), ignored)


def _keys_below(tree: Node, parts: Sequence[str | int]) -> list[str]:
    """Dotted keys of the values at a path, or the path itself if there are none."""
    key = ".".join(map(str, parts))
    node = find(tree, parts)
    return [name for name, _ in leaf_origins(node, key)] if node is not None else [key]


def with_derived(resolved: Resolved[C], config: C, rules: Mapping[str, str]) -> Resolved[C]:
    """Result with a configuration that has values derived from data, by rules per key."""
    origins = {key: f"derived: {rule}" for key, rule in rules.items()}
    return replace(resolved, config=config, origins={**resolved.origins, **origins})
