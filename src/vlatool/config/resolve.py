"""defaults < presets < files < overrides: layers to one validated configuration with origins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from vlatool.config.base import ConfigModel
from vlatool.config.layers import STRICT, LayerReader, Layers, ReadOptions
from vlatool.config.overrides import Override
from vlatool.config.problems import Problem, config_error, unknown_keys, validation_problems
from vlatool.config.schema import flat_keys, section_models
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
    """A configuration and where its values come from.

    Attributes:
        config: The validated values.
        origins: Dotted key to origin; a key that is absent has its default.
        typed: Keys that were typed for this command, in words or in a file that it names; the
            others are inherited, those of a whole configuration that a program wrote too.
        ignored: Keys of files read leniently that nobody knows.
    """

    config: C
    origins: Mapping[str, str]
    typed: frozenset[str] = frozenset()
    unknown_keys: tuple[str, ...] = ()


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
        schema: The class; its `specialize` may choose a subclass.
        presets: Names of presets, or paths.
        files: YAML files, each over the ones before it.
        overrides: What was typed, in order.
        preset_roots: Folders with presets; ours and those of plugins by default.
        reading: How files are read.

    Raises:
        ConfigError: Every problem of the configuration.
        UsageError: A preset has an unknown name, or is of another kind.
    """
    read = _reader(schema, read_options, preset_roots).read(presets, files, overrides)
    problems: list[Problem] = []
    layers = [_renamed(layer, schema.aliases, problems) for layer in read.trees]
    layers = [_with_types(layer, schema) for layer in layers]
    specialized = _specialize(schema, _combined(layers, schema.exclusive, []))
    layers = [_spelled_out(layer, specialized, problems) for layer in layers]
    layers = [_sectioned(layer, specialized, problems) for layer in layers]
    merged = _combined(layers, specialized.exclusive, problems)
    _check_no_credentials(merged)
    return _validate(specialized, merged, problems, read)


def _reader(
    schema: type[ConfigModel], reading: ReadOptions, preset_roots: Sequence[Path] | None = None
) -> LayerReader:
    return LayerReader(
        schema.preset_sections,
        schema.translations,
        reading,
        preset_roots,
        frozenset(schema.model_fields) - schema.unrecorded,
    )


def _check_no_credentials(node: Node) -> None:
    """Refuses locations with a secret in them, before anything prints or records the tree."""
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
    """The class that would validate the same layers, whatever their other values are.

    Raises:
        ConfigError: A name of a registry is unknown.
        UsageError: A preset has an unknown name, or is of another kind.
    """
    read = _reader(schema, read_options).read(presets, files, overrides)
    layers = [_renamed(layer, schema.aliases, []) for layer in read.trees]
    layers = [_with_types(layer, schema) for layer in layers]
    return _specialize(schema, _combined(layers, schema.exclusive, []))


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
    for section, names in schema.virtual_keys.items():
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


def _validate(
    schema: type[C], tree: Node, problems: Sequence[Problem], layers: Layers
) -> Resolved[C]:
    ignored: list[str] = []
    while True:
        try:
            config, rules = schema.model_validate(to_value(tree)).derive_static()
            break
        except ValidationError as error:
            unknown = unknown_keys(error, tree)
            if not unknown:
                wrong, more = validation_problems(error, tree, schema)
                raise config_error([*problems, *wrong], more=more) from error
            for parts in unknown:
                ignored += _keys_below(tree, parts)
                tree = without(tree, parts)
    if problems:
        raise config_error(problems)
    origins = dict(leaf_origins(tree))
    typed = frozenset(key for key, origin in origins.items() if layers.is_typed(origin))
    derived = {key: f"derived: {rule}" for key, rule in rules.items()}
    return Resolved(config, {**origins, **derived}, typed, tuple(dict.fromkeys(ignored)))


def _keys_below(tree: Node, parts: Sequence[str | int]) -> list[str]:
    """Dotted keys of the values at a place, or the place itself where there is none."""
    key = ".".join(map(str, parts))
    node = find(tree, parts)
    return [name for name, _ in leaf_origins(node, key)] if node is not None else [key]


def with_derived(resolved: Resolved[C], config: C, rules: Mapping[str, str]) -> Resolved[C]:
    """The configuration after data gave it values; `rules` say which key and how."""
    origins = {key: f"derived: {rule}" for key, rule in rules.items()}
    return replace(resolved, config=config, origins={**resolved.origins, **origins})
