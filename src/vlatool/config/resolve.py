"""Resolution of configurations: defaults < presets < files < overrides, merged and validated."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from vlatool.config import coerce
from vlatool.config.base import (
    ConfigModel,
    Converted,
    Ignored,
    Name,
    Names,
    Supported,
    ignored_names,
)
from vlatool.config.coerce import Node
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
# Text of an override that is no plain scalar.
_YAML_STARTS = ("[", '"', "'", "{", "!include ", "!replace ")
# Published files include others by `key: include other.yaml`, from the current folder.
_INCLUDE = re.compile(r"^include\s+(\S.*\.ya?ml)$")


@dataclass(frozen=True)
class Override:
    """Value of a key that overrides all files."""

    key: str  # dotted key; dashes and underscores are equivalent
    value: Any  # text of the command line, or a value of any type
    origin: str  # origin such as `command line, --hparams.lr`

    @property
    def path(self) -> list[str]:
        """Parts of the key."""
        return self.key.replace("-", "_").split(".")


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


def _override_layer(
    overrides: Sequence[Override], schema: type[ConfigModel], budget: Budget
) -> tuple[Node, dict[str, str]]:
    """Overrides in order, as one layer, and the names of the keys that are given by another one.

    Values of a repeated key become `Repeated`. A section that is typed as a text becomes its keys,
    so that `--lora 8` and `--lora.alpha 16` merge.
    """
    layer = Node({}, coerce.TYPED_ORIGIN)
    names: dict[str, str] = {}
    for override in overrides:
        value = _override_value(override, budget)
        name = ".".join(override.path)
        key = schema.NAMES.get(name)
        is_section = isinstance(value.value, dict)
        if isinstance(key, str) and "=" not in key and not is_section:
            override = replace(override, key=key)  # so that values of both names are one list
            names[key] = name
        first, *rest = override.path
        if not rest and first in schema.model_fields:
            value = _expand_texts(value, schema.model_fields[first].annotation)
            value = _expand_type(first, value, schema)
        earlier = coerce.find(layer, override.path)
        if earlier is not None and not is_section and not isinstance(earlier.value, dict):
            value = replace(value, value=_repeat(coerce.to_value(earlier), coerce.to_value(value)))
        layer = coerce.put(layer, ".".join(override.path), value)
    return replace(layer, origin=coerce.TYPED_ORIGIN), names


def _repeat(earlier: Any, value: Any) -> coerce.Repeated:
    values = earlier if isinstance(earlier, coerce.Repeated) else (earlier,)
    return coerce.Repeated((*values, value))


def _override_value(override: Override, budget: Budget) -> Node:
    text = override.value
    origin = override.origin
    if not isinstance(text, str):
        return coerce.from_value(text, origin)
    if text.startswith(_INCLUDE_WORD):
        return read_file(text.removeprefix(_INCLUDE_WORD).strip(), budget=budget)
    if text.startswith(_YAML_STARTS):
        return read_text(text, origin, budget)
    if not text:  # an empty text, not null
        return Node(coerce.Plain("", ""), origin)
    return Node(coerce.parse_plain(text), origin)


_NO_NAMES: Mapping[str, str] = {}


class _Renaming:
    """Replaces the names of other programs in a layer by the keys that they stand for."""

    def __init__(
        self, layer: Node, problems: list[Problem], names: Mapping[str, str] = _NO_NAMES
    ) -> None:
        self.layer = layer
        self.found = set(names.values())  # names in the layer
        self.defaults: dict[str, Any] = {}  # values below the layer
        self.presets: list[str] = []  # presets below these
        self._problems = problems
        self._made = set(names)  # keys that are given by a name

    def apply(self, names: Names, section: str = "") -> None:
        """Applies one table; a mapping is a section of that name, and stays."""
        for name, row in names.items():
            path = f"{section}.{name}".lstrip(".").split(".")
            node = coerce.find(self.layer, path)
            if node is None or isinstance(node.value, dict):
                continue
            self.found.add(name)
            if not isinstance(row, Ignored | Supported):
                self.layer = coerce.without(self.layer, path)
                self._replace(".".join(path), section, row, node)

    def _replace(self, name: str, section: str, row: Name, node: Node) -> None:
        try:
            values = _meaning(row, node)
        except ValueError as error:
            message = f'"{name}" is {coerce.plain(node)!r}, which is not supported: {error}'
            self._problems.append(Problem(name, node.origin, message, code="config.unsupported"))
            return
        if isinstance(row, Converted) and row.preset:
            self.defaults |= values
            self.presets.append(row.preset)
            return
        for key, value in values.items():
            if not key.startswith("/"):
                key = f"{section}.{key}"
            self._set(name, key.lstrip("/."), value, is_last=isinstance(row, Converted))

    def _set(self, name: str, key: str, value: Node, *, is_last: bool) -> None:
        """Sets a key; a row that stands for several keys wins over earlier rows."""
        given = coerce.find(self.layer, key.split("."))
        if given is not None and not (is_last and key in self._made):
            if coerce.plain(value) not in (None, ""):
                message = f'"{name}" is given twice: "{key}" is the same key'
                self._problems.append(_conflict(value, message, name))
            return
        self._made.add(key)
        self.layer = coerce.put(self.layer, key, value)


def _meaning(row: Name, node: Node) -> dict[str, Node]:
    """Values of keys that the value of a name stands for."""
    if isinstance(row, Converted):
        values = row.convert(coerce.plain(node))
        return {key: coerce.from_value(value, node.origin) for key, value in values.items()}
    if isinstance(row, tuple):
        first, *others = row
        return {**{key: Node([], node.origin) for key in others}, first: node}
    key, is_switch, fixed = str(row).partition("=")
    if not is_switch:
        return {key: node}
    if coerce.plain(node) is not True:
        raise ValueError("it is a switch; leave it out")
    return {key: replace(node, value=coerce.parse_plain(fixed))}


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading layers."""

    preset_kinds: tuple[str, ...] = ()  # allowed folders of presets; empty for all
    # read files like the published program: ignore unknown keys, and let a key next to `<<` replace
    # a section of `<<`
    compat: bool = False


STRICT = ReadOptions()


# Function of a file and the unconverted earlier files: the tree with the keys used here, None if it
# is not of that program. A tree that is lenient was written by a program, with all its keys.
Translate = Callable[[Node, Node], Node | None]

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


class _Layers(Generic[C]):
    """Layers of one class of configurations, in the order in which they are merged."""

    def __init__(
        self, schema: type[C], options: ReadOptions, preset_roots: Sequence[Path] | None
    ) -> None:
        self.schema = schema
        self.trees: list[Node] = []
        self.problems: list[Problem] = []
        self.names: set[str] = set()  # names of other programs in the trees
        # files, as named in origins, with values that the user set for this command
        self.typed_files: set[str] = set()
        self._options = options
        self._preset_roots = preset_roots
        self._display = partial(display_path, roots=preset_roots)
        self._budget = Budget()
        self._earlier = Node({}, coerce.TYPED_ORIGIN)  # the unconverted files

    def read(
        self, presets: Sequence[str], files: Sequence[str], overrides: Sequence[Override]
    ) -> None:
        for name in presets:
            self._add(self.preset(name))
        for file in files:
            self._read_file(file)
        layer, names = _override_layer(overrides, self.schema, self._budget)
        self._add(self._convert(layer), names)

    def is_typed(self, origin: str) -> bool:
        """True if a value of this origin was set explicitly, not by a preset or an include."""
        if origin.startswith(coerce.TYPED_ORIGIN):
            return True
        return origin.rpartition(":")[0] in self.typed_files

    def choose(self) -> tuple[type[C], Node]:
        """Class for the types that the layers name, and the layers merged; adds what they imply."""
        merged = _merge_layers(self.trees, self.schema.exclusive, [])
        implied = self.schema.implied(coerce.plain(merged), self.names)
        if implied:
            self.trees.insert(0, coerce.from_value(implied, coerce.DEFAULT_ORIGIN))
            merged = _merge_layers(self.trees, self.schema.exclusive, [])
        try:
            return self.schema.specialize(coerce.plain(merged)), merged
        except UsageError as error:
            key = str(error.details.get("key", ""))
            if not key:
                raise
            origin = coerce.nearest_origin(merged, key.split("."))
            raise config_error([Problem(key, origin, error.message)], hint=error.hint) from error

    def _add(self, tree: Node, names: Mapping[str, str] = _NO_NAMES) -> None:
        _check_no_code(tree)
        renaming = _Renaming(tree, self.problems, names)
        renaming.apply(self.schema.NAMES)
        self.names |= renaming.found
        if not self.trees:
            self.trees += [self.preset(name) for name in renaming.presets]
        for key, node in renaming.defaults.items():
            self.trees.append(coerce.put(Node({}, tree.origin), key, node))
        values = renaming.layer.value.items()
        top = {key: _expand_type(key, node, self.schema) for key, node in values}
        self.trees.append(replace(renaming.layer, value=top))

    def preset(self, name: str) -> Node:
        """Reads a preset, in the section that it fills."""
        path = preset_path(name, self._preset_roots, self._options.preset_kinds)
        tree = _check_mapping(read_file(path, display=self._display, budget=self._budget))
        section = self.schema.preset_sections.get(preset_kind(path, self._preset_roots))
        return coerce.put(Node({}, tree.origin), section, tree) if section else tree

    def _read_file(self, file: str) -> None:
        tree = read_file(
            file, display=self._display, budget=self._budget, is_shallow=self._options.compat
        )
        top = dict(_check_mapping(tree).value)
        for key, node in tree.value.items():
            match = _INCLUDE.match(node.value) if isinstance(node.value, str) else None
            if match:
                top[key] = read_file(match.group(1), budget=self._budget)
        tree = replace(tree, value=top)
        converted = self._convert(tree)
        self._earlier = coerce.merge(self._earlier, tree)
        if self._options.compat:
            converted = coerce.lenient(converted)
        self._add(converted)
        # A file with all top-level keys was written by a program, too.
        keys = frozenset(self.schema.model_fields) - execution_keys(self.schema)
        if not converted.is_lenient and not (keys and keys <= top.keys()):
            self.typed_files.add(self._display(location(file)))

    def _convert(self, tree: Node) -> Node:
        """Converts a tree with the first converter that recognizes it."""
        translations: Registry[Translate] | None = self.schema.translations
        if translations is not None:
            for name in translations.names():
                converted = translations.get(name)(tree, self._earlier)
                if converted is not None:
                    return converted
        return tree


def _check_mapping(layer: Node) -> Node:
    if isinstance(layer.value, dict):
        return layer
    problem = Problem("", layer.origin, "a configuration must be a mapping", code="config.syntax")
    raise config_error([problem])


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
    layers = _Layers(schema, read_options, preset_roots)
    layers.read(presets, files, overrides)
    subclass, merged = layers.choose()
    trees = [_nest(tree, subclass, merged, layers.problems) for tree in layers.trees]
    merged = _merge_layers(trees, subclass.exclusive, layers.problems)
    _check_no_credentials(merged)
    return _validate(subclass, merged, layers)


def config_of(schema: type[C], values: Mapping[str, Any]) -> C:
    """Configuration of plain values, as if they were typed."""
    overrides = [Override(key, value, coerce.TYPED_ORIGIN) for key, value in values.items()]
    return load_config(schema, overrides=overrides).config


def read_preset(schema: type[ConfigModel], name: str) -> Node:
    """Tree of a preset, in the section that it fills."""
    return _Layers(schema, STRICT, None).preset(name)


def chosen_schema(
    schema: type[C],
    *,
    presets: Sequence[str] = (),
    files: Sequence[str] = (),
    overrides: Sequence[Override] = (),
    read_options: ReadOptions = STRICT,
) -> type[C]:
    """Class that would validate the same layers; their other values are not validated."""
    layers = _Layers(schema, read_options, None)
    layers.read(presets, files, overrides)
    return layers.choose()[0]


def _check_no_code(tree: Node) -> None:
    """Raises for a class in a file that a file names: it would run code that nobody typed."""
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


def _check_no_credentials(node: Node) -> None:
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


def _merge_layers(
    layers: Sequence[Node], exclusive: Sequence[Sequence[str]], problems: list[Problem]
) -> Node:
    """Merges all layers, each over the ones before it.

    A key of an exclusive group removes the other keys of the group that earlier layers set.
    """
    merged = Node({}, coerce.DEFAULT_ORIGIN)
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


def _conflict(node: Node, message: str, key: str) -> Problem:
    return Problem(key, node.origin, message, code="config.contradiction")


def _expand_type(key: str, node: Node, schema: type[ConfigModel]) -> Node:
    """Section with a `type`, if it is given as this type alone; any other value as it is.

    This precedes merging, because keys of a later layer would replace the text.
    """
    is_text = not isinstance(node.value, dict | list) and coerce.plain(node) is not None
    if key not in schema.flat_sections or not is_text:
        return node
    if not any("type" in kind.model_fields for kind in section_models(schema, key)):
        return node
    return Node({"type": node}, node.origin)


def _nest(layer: Node, schema: type[ConfigModel], merged: Node, problems: list[Problem]) -> Node:
    """The layer in the form of the chosen class: with the names of its sections replaced, flat keys
    in their sections, and the keys of sections that are typed as text.
    """
    renaming = _Renaming(layer, problems)
    renaming.apply(schema.NAMES)
    for name, field_info in schema.model_fields.items():
        kind = field_info.annotation
        if isinstance(kind, type) and issubclass(kind, ConfigModel):
            renaming.apply(kind.NAMES, name)
    top = dict(renaming.layer.value)
    section_of = flat_keys(schema)
    for section in schema.flat_sections:
        if _is_replaced_type(top.get(section), coerce.find(merged, [section, "type"])):
            top.pop(section)
        for key in [key for key in top if section_of.get(key) == section]:
            node = replace(top.pop(key), is_flat=True)
            nested = top.get(section, Node({}, node.origin))
            if coerce.find(nested, [key]) is not None:
                message = f'"{key}" is given twice: also as "{section}.{key}"'
                problems.append(_conflict(node, message, key))
            top[section] = coerce.put(nested, key, node)
    return _expand_texts(replace(layer, value=top), schema)


def _is_replaced_type(section: Node | None, final: Node | None) -> bool:
    """True for a section of a `type` alone that a later layer replaces; the keys which the layer
    has at the top level stay.
    """
    if section is None or final is None or not isinstance(section.value, dict):
        return False
    own = coerce.plain(section)
    return own.keys() == {"type"} and own["type"] != coerce.plain(final)


def _expand_texts(node: Node, annotation: Any) -> Node:
    """Replaces sections that are typed as text by their keys, so that layers merge."""
    kinds = [kind for kind in coerce.alternatives(annotation) if hasattr(kind, "typed_form")]
    if isinstance(node.value, list):
        return node
    if isinstance(node.value, dict):
        children = dict(node.value)
        for kind in kinds:
            for name, info in kind.model_fields.items():
                if name in node.value:
                    children[name] = _expand_texts(node.value[name], info.annotation)
        return replace(node, value=children)
    for kind in kinds:
        try:
            keys = coerce.keys_of_text(node.value, kind)
        except coerce.TypeMismatch:  # reported with its key later
            continue
        return coerce.from_value(keys, node.origin) if isinstance(keys, dict) else node
    return node


def _validate(schema: type[C], tree: Node, layers: _Layers[Any]) -> Resolved[C]:
    unknown: list[str] = []
    while True:
        try:
            config, rules = schema.model_validate(coerce.to_value(tree)).derive_static()
            break
        except ValidationError as error:
            paths = unknown_keys(error, tree)
            if not paths:
                invalid, more = validation_problems(error, tree, schema)
                raise config_error([*layers.problems, *invalid], more=more) from error
            for parts in paths:
                unknown += _keys_below(tree, parts)
                tree = coerce.without(tree, parts)
    if layers.problems:
        raise config_error(layers.problems)
    origins = dict(coerce.leaf_origins(tree))
    typed = frozenset(key for key, origin in origins.items() if layers.is_typed(origin))
    for key, rule in rules.items():
        origins[key] = f"derived: {rule}"
    ignored: dict[str, str] = {}
    for prefix, section in sections(config):
        for name, row in ignored_names(type(section)).items():
            key = f"{prefix}{name}"
            if any(other == key or other.startswith(f"{key}.") for other in typed):
                ignored[key] = row.reason
    return Resolved(config, origins, typed, tuple(dict.fromkeys(unknown)), ignored)


def _keys_below(tree: Node, parts: Sequence[str | int]) -> list[str]:
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
