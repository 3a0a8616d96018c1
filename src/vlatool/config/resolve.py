"""Resolution of configurations: defaults < presets < files < overrides, merged and validated."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeGuard, TypeVar

from pydantic import ValidationError

from vlatool.config import coerce
from vlatool.config.base import ConfigModel, new_names, root_keys, unused_keys
from vlatool.config.includes import Budget, read_file, read_text
from vlatool.config.presets import display_path, preset_kind, preset_path
from vlatool.config.problems import Problem, config_error, unknown_keys, validation_problems
from vlatool.config.rules import sections
from vlatool.config.schema import execution_keys, flat_keys, section_models
from vlatool.errors import UsageError
from vlatool.plugins import Registry, is_class_in_file
from vlatool.storage.documents import MAX_DEPTH
from vlatool.storage.uri import check_no_credentials, location

_INCLUDE_WORD = "include "
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
            f"{text!r} is not of the form KEY=VALUE",
            hint="use KEY=VALUE, for example hparams.lr=1e-4",
            code="usage.bad_value",
            details={"override": text},
        )
    return Override(key, value, f"{coerce.TYPED_ORIGIN}, {option or f'--set {key}'}")


def overrides_tree(overrides: Sequence[Override], budget: Budget | None = None) -> coerce.Node:
    """All overrides as one layer; the values of a repeated key become `Repeated`."""
    layer = coerce.Node({}, coerce.TYPED_ORIGIN)
    budget = budget or Budget()
    for override in overrides:
        value = replace(_value(override, budget), is_flat=override.is_flat)
        layer = _put(layer, override.key.replace("-", "_").split("."), value)
    return layer


def _layers_of(overrides: Sequence[Override]) -> list[list[Override]]:
    """Overrides in order, in layers: a section that is typed as a text, such as `--lora 8`, is in
    another layer than its keys, such as `--lora.alpha 16`, so that they merge.
    """
    layers: list[list[Override]] = [[]]
    for override in overrides:
        if any(_is_in_text(override, other) for other in layers[-1]):
            layers.append([])
        layers[-1].append(override)
    return layers


def _is_in_text(one: Override, other: Override) -> bool:
    """True if one of both is a section that is typed as a text, and the other a key in it."""
    section, key = sorted((one, other), key=lambda each: len(each.key))
    is_text = isinstance(section.value, str) and not section.value.startswith(
        (*_YAML_STARTS, _INCLUDE_WORD)
    )
    return is_text and key.key.replace("-", "_").startswith(f"{section.key.replace('-', '_')}.")


def _value(override: Override, budget: Budget) -> coerce.Node:
    text = override.value
    origin = override.origin
    if not isinstance(text, str):
        return coerce.from_value(text, origin)
    if text.startswith(_INCLUDE_WORD):
        return read_file(text.removeprefix(_INCLUDE_WORD).strip(), budget=budget)
    if text.startswith(_YAML_STARTS):
        return _with_origin(read_text(text, origin, budget), origin)
    return coerce.Node(coerce.parse_plain(text) if text else coerce.Plain("", ""), origin)


def _with_origin(node: coerce.Node, origin: str) -> coerce.Node:
    """Sets the override as the origin of values in its text, not of those in included files."""
    if isinstance(node.value, dict):
        children = {key: _with_origin(item, origin) for key, item in node.value.items()}
        node = replace(node, value=children)
    elif isinstance(node.value, list):
        node = replace(node, value=[_with_origin(item, origin) for item in node.value])
    if node.origin.startswith(f"{origin}:"):
        node = replace(node, origin=origin)
    return node


def _put(section: coerce.Node, parts: Sequence[str], value: coerce.Node) -> coerce.Node:
    """Copy of `section` with `value` at a path, merged with values of earlier overrides."""
    children = dict(section.value) if isinstance(section.value, dict) else {}
    name, *rest = parts
    old = children.get(name)
    if rest:
        children[name] = _put(old or coerce.Node({}, value.origin), rest, value)
    elif old is None:
        children[name] = value
    elif isinstance(old.value, dict) or isinstance(value.value, dict):
        children[name] = coerce.merge(old, value)
    else:
        earlier = old.value if isinstance(old.value, coerce.Repeated) else [coerce.to_value(old)]
        repeated = coerce.Repeated([*earlier, coerce.to_value(value)])
        children[name] = replace(value, value=repeated)
    return replace(section, value=children)


_INCLUDE = re.compile(r"^include\s+(\S.*\.ya?ml)$")


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading layers."""

    preset_kinds: tuple[str, ...] = ()  # allowed folders of presets; empty for all
    # read files like the published program: ignore unknown keys, and let a key next to `<<` replace
    # a section of `<<`
    compat: bool = False


STRICT = ReadOptions()


@dataclass(frozen=True)
class ConvertedConfig:
    """Configuration of another program, converted to the keys used here."""

    tree: coerce.Node
    # the file was written by a program, with all its keys: unknown ones are ignored
    is_record: bool = False
    # preset with the defaults of that program, for a command line without presets and files; empty:
    # none
    preset: str = ""


# Arguments: the tree, and the unconverted earlier files; None if the tree is not of that program.
Translate = Callable[[coerce.Node, coerce.Node], ConvertedConfig | None]


@dataclass(frozen=True)
class Layers:
    """Trees in the order in which they are merged."""

    trees: Sequence[coerce.Node]  # trees, each merged over the ones before it
    # files, as named in origins, with values that the user set for this command
    typed_files: frozenset[str] = frozenset()

    def is_typed(self, origin: str) -> bool:
        """True if a value of this origin was set explicitly, not by a preset or an include."""
        if origin.startswith(coerce.TYPED_ORIGIN):
            return True
        return origin.rpartition(":")[0] in self.typed_files


@dataclass(frozen=True)
class LayerReader:
    """Reader of the layers of one class of configurations."""

    sections: Mapping[str, str]  # folder of presets to the dotted section that they fill
    translations: Registry[Any] | None  # converters of configurations of other programs
    options: ReadOptions
    # folders with presets; by default the folders of vlatool and of plugins
    preset_roots: Sequence[Path] | None = None
    # top-level keys of a record. A file with all of them was written by a program
    keys: frozenset[str] = frozenset()
    budget: Budget = field(default_factory=Budget)  # remaining number of values and files

    def read(
        self, presets: Sequence[str], files: Sequence[str], overrides: Sequence[Override]
    ) -> Layers:
        trees = [self._preset(name) for name in presets]
        typed_files: list[str] = []
        earlier = coerce.Node({}, coerce.TYPED_ORIGIN)
        for file in files:
            tree = self._file(file)
            converted = self._convert(tree, earlier)
            earlier = coerce.merge(earlier, tree)
            is_record = converted.is_record or self.options.compat
            trees.append(coerce.lenient(converted.tree) if is_record else converted.tree)
            has_all_keys = bool(self.keys) and self.keys <= tree.value.keys()
            if not is_record and not has_all_keys:
                typed_files.append(self._display(location(file)))
        for layer in _layers_of(overrides):
            typed = self._convert(overrides_tree(layer, self.budget), earlier)
            if typed.preset and not trees:
                trees.append(self._preset(typed.preset))
            trees.append(typed.tree)
        return Layers(trees, frozenset(typed_files))

    def _preset(self, name: str) -> coerce.Node:
        path = preset_path(name, self.preset_roots, self.options.preset_kinds)
        tree = _check_mapping(read_file(path, display=self._display, budget=self.budget))
        section = self.sections.get(preset_kind(path, self.preset_roots))
        if section:
            for part in reversed(section.split(".")):
                tree = coerce.Node({part: tree}, tree.origin)
        return tree

    def _file(self, file: str) -> coerce.Node:
        compat = self.options.compat
        tree = read_file(file, display=self._display, budget=self.budget, is_shallow=compat)
        _check_mapping(tree)
        # Published files include others by `key: include other.yaml`, from the current folder.
        top = dict(tree.value)
        for key, node in tree.value.items():
            match = _INCLUDE.match(node.value) if isinstance(node.value, str) else None
            if match:
                top[key] = read_file(match.group(1), budget=self.budget)
        return replace(tree, value=top)

    def _convert(self, tree: coerce.Node, earlier: coerce.Node) -> ConvertedConfig:
        """Converts a tree with the first converter that recognizes it."""
        if self.translations is not None:
            for name in self.translations.names():
                translate: Translate = self.translations.get(name)
                converted = translate(tree, earlier)
                if converted is not None:
                    return converted
        return ConvertedConfig(tree)

    @property
    def _display(self) -> Callable[[Path], str]:
        return partial(display_path, roots=self.preset_roots)


def _check_mapping(layer: coerce.Node) -> coerce.Node:
    if isinstance(layer.value, dict):
        return layer
    problem = Problem("", layer.origin, "a configuration must be a mapping", code="config.syntax")
    raise config_error([problem])


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
        preset_roots: Folders with presets; by default the folders of vlatool and of plugins.
        read_options: Options of reading files.

    Raises:
        ConfigError: The configuration is invalid; the error lists all problems.
        UsageError: The name of a preset is unknown, or its kind is not allowed here.
    """
    read = _reader(schema, read_options, preset_roots).read(presets, files, overrides)
    for tree in read.trees:
        _check_no_code(tree)
    problems: list[Problem] = []
    trees = [*_implied(read.trees, schema), *read.trees]
    layers = [_apply_names(layer, new_names(schema), problems) for layer in trees]
    layers = [_expand_types(layer, schema) for layer in layers]
    layers, merged = _with_implied(layers, schema)
    subclass = _specialize(schema, merged)
    layers = [_without_replaced_types(layer, merged, schema.flat_sections) for layer in layers]
    layers = [_expand_virtual_keys(layer, subclass, problems) for layer in layers]
    layers = [_apply_root_keys(layer, subclass, problems) for layer in layers]
    layers = [_nest_flat_keys(layer, subclass, problems) for layer in layers]
    layers = [_expand_texts(layer, subclass) for layer in layers]
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


def _check_no_code(tree: coerce.Node) -> None:
    """Raises for a class in a file that a file names: it would run code that nobody typed."""
    if not isinstance(tree.value, dict):
        return
    for node in tree.value.values():
        value = node.value
        if not isinstance(value, str) or not is_class_in_file(value):
            continue
        if not node.origin.startswith(coerce.TYPED_ORIGIN):
            raise UsageError(
                f"{node.origin}: {value}: a reader in a file is run only when it is typed on the "
                "command line or in Python",
                hint=f"type it: vlatool preprocess {value} SOURCE",
                code="usage.unsupported",
            )


def _check_no_credentials(node: coerce.Node) -> None:
    """Raises for locations with credentials, before the tree is printed or recorded."""
    if isinstance(node.value, str):
        for text in node.value.split(","):
            check_no_credentials(text.strip())
    elif isinstance(node.value, dict):
        for child in node.value.values():
            _check_no_credentials(child)
    elif isinstance(node.value, list):
        for child in node.value:
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
    trees = [*_implied(read.trees, schema), *read.trees]
    layers = [_apply_names(layer, new_names(schema), []) for layer in trees]
    layers = [_expand_types(layer, schema) for layer in layers]
    return _specialize(schema, _with_implied(layers, schema)[1])


def _with_implied(
    layers: list[coerce.Node], schema: type[ConfigModel]
) -> tuple[list[coerce.Node], coerce.Node]:
    """The layers above what they imply, and all of them merged."""
    merged = _merge_layers(layers, schema.exclusive, [])
    implied = schema.implied(coerce.plain(merged))
    if implied:
        layers = [coerce.from_value(implied, "default"), *layers]
        merged = _merge_layers(layers, schema.exclusive, [])
    return layers, merged


def _implied(layers: Sequence[coerce.Node], schema: type[ConfigModel]) -> list[coerce.Node]:
    """A first layer with what published keys bring along; none without such keys."""
    values: dict[str, coerce.Node] = {}
    for row in schema.published:
        if not row.also:
            continue
        key, _, value = row.also.partition("=")
        for layer in layers:
            if row.name in layer.value:
                values[key] = coerce.Node(value, layer.value[row.name].origin)
    return [coerce.Node(values, "default")] if values else []


def _apply_names(
    layer: coerce.Node, names: Mapping[str, str], problems: list[Problem]
) -> coerce.Node:
    """Renames published top-level keys of a layer to those used here."""
    top: dict[str, coerce.Node] = {}
    for key, node in layer.value.items():
        name = names.get(key, key).partition("=")[0]
        if name in top:
            message = f'"{key}" is given twice: "{name}" is the same key'
            problems.append(_conflict(node, message, key))
        top[name] = node
    return replace(layer, value=top)


def _apply_root_keys(
    layer: coerce.Node, schema: type[ConfigModel], problems: list[Problem]
) -> coerce.Node:
    """Moves keys of sections to the root, where they stand for a key."""
    top = dict(layer.value)
    for section, info in schema.model_fields.items():
        node = top.get(section)
        if node is None or not isinstance(node.value, dict) or not _is_section(info.annotation):
            continue
        for key, name in root_keys(info.annotation).items():
            children = dict(top[section].value)
            value = children.pop(key, None)
            if value is None:
                continue
            top[section] = replace(top[section], value=children)
            if coerce.plain(value) and name in top:
                message = f'"{section}.{key}" is given twice: "{name}" is the same key'
                problems.append(_conflict(value, message, f"{section}.{key}"))
            top.setdefault(name, value)
    return replace(layer, value=top)


def _is_section(annotation: Any) -> TypeGuard[type[ConfigModel]]:
    return isinstance(annotation, type) and issubclass(annotation, ConfigModel)


def _expand_virtual_keys(
    layer: coerce.Node, schema: type[ConfigModel], problems: list[Problem]
) -> coerce.Node:
    """Replaces virtual keys of sections by the keys that they stand for."""
    top = dict(layer.value)
    for section, names in schema.virtual_keys.items():
        node = top.get(section)
        if node is None or not isinstance(node.value, dict):
            continue
        children: dict[str, coerce.Node] = {}
        first_keys: dict[str, str] = {}
        for name, keys in names.items():
            first_keys[name] = keys[0]
            if name in node.value:
                for key in keys[1:]:
                    children[key] = coerce.Node([], node.value[name].origin)
        renamed = _apply_names(node, first_keys, problems)
        children.update(renamed.value)
        top[section] = replace(renamed, value=children)
    return replace(layer, value=top)


def _merge_layers(
    layers: Sequence[coerce.Node], exclusive: Sequence[Sequence[str]], problems: list[Problem]
) -> coerce.Node:
    """Merges all layers, each over the ones before it.

    A key of an exclusive group removes the other keys of the group that earlier layers set.
    """
    merged = coerce.Node({}, "default")
    for layer in layers:
        for group in exclusive:
            keys_set: list[str] = []
            for key in group:
                if key in layer.value and coerce.plain(layer.value[key]) is not None:
                    keys_set.append(key)
            if len(keys_set) > 1:
                names = " and ".join(f'"{key}"' for key in keys_set)
                message = f"{names} exclude each other; set one of them"
                problems.append(_conflict(layer.value[keys_set[-1]], message, keys_set[-1]))
            if keys_set:
                replaced = set(group) - set(keys_set)
                rest = {key: node for key, node in merged.value.items() if key not in replaced}
                merged = replace(merged, value=rest)
        merged = coerce.merge(merged, layer)
    return merged


def _conflict(node: coerce.Node, message: str, key: str) -> Problem:
    return Problem(key, node.origin, message, code="config.contradiction")


def _specialize(schema: type[C], tree: coerce.Node) -> type[C]:
    try:
        return schema.specialize(coerce.plain(tree))
    except UsageError as error:
        key = str(error.details.get("key", ""))
        if not key:
            raise
        origin = coerce.nearest_origin(tree, key.split("."))
        problem = Problem(key, origin, error.message)
        raise config_error([problem], hint=error.hint) from error


def _nest_flat_keys(
    layer: coerce.Node, schema: type[ConfigModel], problems: list[Problem]
) -> coerce.Node:
    """Moves keys of flat sections into their sections, per layer, so that later layers win."""
    section_of = flat_keys(schema)
    for section in schema.flat_sections:
        flat: dict[str, coerce.Node] = {}
        top: dict[str, coerce.Node] = {}
        for key, node in layer.value.items():
            if section_of.get(key) == section:
                flat[key] = replace(node, is_flat=True)
            else:
                top[key] = node
        if not flat:
            continue
        first = next(iter(flat.values()))
        nested = top.get(section, coerce.Node({}, first.origin))
        for key, node in flat.items():
            if coerce.find(nested, [key]) is not None:
                message = f'"{key}" is given twice: also as "{section}.{key}"'
                problems.append(_conflict(node, message, key))
        top[section] = coerce.merge(nested, coerce.Node(flat, nested.origin))
        layer = replace(layer, value=top)
    return layer


def _expand_types(layer: coerce.Node, schema: type[ConfigModel]) -> coerce.Node:
    """Expands sections of a layer that are given as their `type` alone.

    This precedes merging, because keys of a later layer would replace the text.
    """
    for section in schema.flat_sections:
        node = layer.value.get(section)
        if node is None or isinstance(node.value, dict | list) or coerce.plain(node) is None:
            continue
        if any("type" in kind.model_fields for kind in section_models(schema, section)):
            expanded = coerce.Node({"type": node}, node.origin)
            layer = replace(layer, value={**layer.value, section: expanded})
    return layer


def _without_replaced_types(
    layer: coerce.Node, merged: coerce.Node, sections: Sequence[str]
) -> coerce.Node:
    """Leaves out sections of a `type` alone that a later layer replaces, so that the keys which the
    layer has at the top level stay.
    """
    top = dict(layer.value)
    for section in sections:
        final = coerce.find(merged, [section, "type"])
        if final is None or section not in top:
            continue
        own = coerce.plain(top[section])
        if isinstance(own, dict) and own.keys() == {"type"} and own["type"] != coerce.plain(final):
            top.pop(section)
    return replace(layer, value=top)


def _expand_texts(node: coerce.Node, annotation: Any) -> coerce.Node:
    """Replaces sections that are typed as text by their keys, so that layers merge."""
    sections = [kind for kind in coerce.alternatives(annotation) if hasattr(kind, "typed_form")]
    if isinstance(node.value, list):
        return node
    if isinstance(node.value, dict):
        children = dict(node.value)
        for section in sections:
            for name, info in section.model_fields.items():
                if name in node.value:
                    children[name] = _expand_texts(node.value[name], info.annotation)
        return replace(node, value=children)
    for section in sections:
        try:
            keys = coerce.keys_of_text(node.value, section)
        except coerce.TypeMismatch:  # reported with its key later
            continue
        return coerce.from_value(keys, node.origin) if isinstance(keys, dict) else node
    return node


def _validate(
    schema: type[C], tree: coerce.Node, problems: Sequence[Problem], layers: Layers
) -> Resolved[C]:
    unknown: list[str] = []
    while True:
        try:
            config, rules = schema.model_validate(coerce.to_value(tree)).derive_static()
            break
        except ValidationError as error:
            paths = unknown_keys(error, tree)
            if not paths:
                invalid, more = validation_problems(error, tree, schema)
                raise config_error([*problems, *invalid], more=more) from error
            for parts in paths:
                unknown += _keys_below(tree, parts)
                tree = coerce.without(tree, parts)
    if problems:
        raise config_error(problems)
    origins = dict(coerce.leaf_origins(tree))
    typed = frozenset(key for key, origin in origins.items() if layers.is_typed(origin))
    for key, rule in rules.items():
        origins[key] = f"derived: {rule}"
    ignored: dict[str, str] = {}
    for prefix, section in sections(config):
        for name, row in unused_keys(type(section)).items():
            key = f"{prefix}{name}"
            if any(other == key or other.startswith(f"{key}.") for other in typed):
                ignored[key] = row.reason
    return Resolved(config, origins, typed, tuple(dict.fromkeys(unknown)), ignored)


def _keys_below(tree: coerce.Node, parts: Sequence[str | int]) -> list[str]:
    """Dotted keys of the values at a path, or the path itself if there are none."""
    key = ".".join(map(str, parts))
    node = coerce.find(tree, parts)
    if node is None:
        return [key]
    return [name for name, _ in coerce.leaf_origins(node, key)]


def with_derived(resolved: Resolved[C], config: C, rules: Mapping[str, str]) -> Resolved[C]:
    """Result with a configuration that has values derived from data, by rules per key."""
    origins = dict(resolved.origins)
    for key, rule in rules.items():
        origins[key] = f"derived: {rule}"
    return replace(resolved, config=config, origins=origins)
