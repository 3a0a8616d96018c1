"""defaults < presets < files < overrides: layers to one validated configuration with origins."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from vlatool.config.base import ConfigModel
from vlatool.config.includes import read_file
from vlatool.config.merge import combine, move_into_section, rename_keys
from vlatool.config.overrides import Override, overrides_tree
from vlatool.config.presets import preset_path, shown_path
from vlatool.config.problems import Problem, config_error, validation_problems
from vlatool.config.scalars import unwrap
from vlatool.config.schema import section_models
from vlatool.config.tree import Node, leaf_origins, nearest_origin, to_value
from vlatool.errors import UsageError

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
    show = partial(shown_path, roots=preset_roots)
    paths = [preset_path(name, preset_roots) for name in presets]
    layers = [_checked(read_file(path, show=show)) for path in paths]
    layers += [_included(_checked(read_file(file, show=show))) for file in files]
    layers.append(overrides_tree(overrides))

    layers, twice = _rename(layers, schema)
    merged, _ = combine(layers, schema.exclusive)
    specialised = _specialise(schema, merged)
    layers, problems = _move_flat_keys(layers, specialised)
    merged, conflicts = combine(layers, specialised.exclusive)
    return _validate(specialised, merged, [*twice, *problems, *conflicts])


def _included(layer: Node) -> Node:
    """Published files may say `key: include other.yaml`, relative to the working directory."""
    top = {
        key: read_file(match.group(1))
        if isinstance(node.value, str) and (match := _INCLUDE.match(node.value))
        else node
        for key, node in layer.value.items()
    }
    return Node(top, layer.origin, layer.replace)


def _checked(layer: Node) -> Node:
    if isinstance(layer.value, dict):
        return layer
    problem = Problem("", layer.origin, "a configuration must be a mapping", code="config.syntax")
    raise config_error([problem])


def _rename(layers: Sequence[Node], schema: type[ConfigModel]) -> tuple[list[Node], list[Problem]]:
    renamed = [rename_keys(layer, schema.renamed) for layer in layers]
    return [layer for layer, _ in renamed], [one for _, found in renamed for one in found]


def _specialise(schema: type[C], tree: Node) -> type[C]:
    try:
        return schema.specialise(unwrap(to_value(tree)))
    except UsageError as error:
        key = str(error.details.get("key", ""))
        if not key:
            raise
        origin = nearest_origin(tree, key.split("."))
        problem = Problem(key, origin, error.message)
        raise config_error([problem], hint=error.hint) from error


def _move_flat_keys(
    layers: Sequence[Node], schema: type[ConfigModel]
) -> tuple[list[Node], list[Problem]]:
    """Puts keys that belong to a flat section there; done per layer, so that later ones win."""
    moved: list[Node] = []
    problems: list[Problem] = []
    for layer in layers:
        current = layer
        for section in schema.flat_sections:
            keys = {
                name for model in section_models(schema, section) for name in model.model_fields
            }
            current = _typed_section(current, section) if "type" in keys else current
            own = [
                key
                for key in current.value
                if key in keys and key != "type" and key not in schema.model_fields
            ]
            current, conflicts = move_into_section(current, own, section)
            problems += conflicts
        moved.append(current)
    return moved, problems


def _typed_section(layer: Node, section: str) -> Node:
    """A section that is given as text alone is its `type`."""
    given = layer.value.get(section)
    if given is None or isinstance(given.value, dict | list) or unwrap(given.value) is None:
        return layer
    typed = Node({"type": given}, given.origin)
    return Node({**layer.value, section: typed}, layer.origin, layer.replace)


def _validate(schema: type[C], tree: Node, problems: Sequence[Problem]) -> Resolved[C]:
    found = list(problems)
    try:
        config = schema.model_validate(to_value(tree))
    except ValidationError as error:
        found += validation_problems(error, tree, schema)
        raise config_error(found) from error
    if found:
        raise config_error(found)
    return Resolved(config, dict(leaf_origins(tree)))


def with_derived(resolved: Resolved[C], config: C, rules: Mapping[str, str]) -> Resolved[C]:
    """The configuration after data gave it values; `rules` say which key and how."""
    origins = {key: f"derived: {rule}" for key, rule in rules.items()}
    return replace(resolved, config=config, origins={**resolved.origins, **origins})
