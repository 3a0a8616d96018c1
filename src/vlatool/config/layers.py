"""Layers of a configuration: presets, files and overrides as trees, the lowest one first."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.config.includes import Budget, read_file
from vlatool.config.overrides import Override, overrides_tree
from vlatool.config.presets import display_path, preset_kind, preset_path
from vlatool.config.problems import Problem, config_error
from vlatool.config.tree import TYPED_ORIGIN, Node, lenient, merge
from vlatool.plugins import Registry
from vlatool.storage.uri import location

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

    tree: Node
    # the file was written by a program, with all its keys: unknown ones are ignored
    is_record: bool = False
    # preset with the defaults of that program, for a command line without presets and files; empty:
    # none
    preset: str = ""


# Arguments: the tree, and the unconverted earlier files; None if the tree is not of that program.
Translate = Callable[[Node, Node], ConvertedConfig | None]


@dataclass(frozen=True)
class Layers:
    """Trees in the order in which they are merged."""

    trees: Sequence[Node]  # trees, each merged over the ones before it
    # files, as named in origins, with values that the user set for this command
    typed_files: frozenset[str] = frozenset()

    def is_typed(self, origin: str) -> bool:
        """True if a value of this origin was set explicitly, not by a preset or an include."""
        return origin.startswith(TYPED_ORIGIN) or origin.rpartition(":")[0] in self.typed_files


@dataclass(frozen=True)
class LayerReader:
    """Reader of the layers of one class of configurations."""

    sections: Mapping[str, str]  # folder of presets to the dotted section that they fill
    translations: Registry[Any] | None  # converters of configurations of other programs
    options: ReadOptions
    # folders with presets; by default those of vlatool and of plugins
    preset_roots: Sequence[Path] | None = None
    # top-level keys of a record. A file with all of them was written by a program
    keys: frozenset[str] = frozenset()
    budget: Budget = field(default_factory=Budget)  # remaining number of values and files

    def read(
        self, presets: Sequence[str], files: Sequence[str], overrides: Sequence[Override]
    ) -> Layers:
        trees = [self._preset(name) for name in presets]
        typed_files: list[str] = []
        earlier = Node({}, TYPED_ORIGIN)
        for file in files:
            tree = self._file(file)
            converted = self._convert_file(tree, earlier)
            earlier = merge(earlier, tree)
            trees.append(lenient(converted.tree) if converted.is_record else converted.tree)
            if not (converted.is_record or self._is_complete_record(tree)):
                typed_files.append(self._display(location(file)))
        typed = self._convert(overrides_tree(overrides, self.budget), earlier)
        if typed.preset and not trees:
            trees.append(self._preset(typed.preset))
        return Layers([*trees, typed.tree], frozenset(typed_files))

    def _is_complete_record(self, tree: Node) -> bool:
        return bool(self.keys) and self.keys <= tree.value.keys()

    def _preset(self, name: str) -> Node:
        path = preset_path(name, self.preset_roots, self.options.preset_kinds)
        tree = _check_mapping(read_file(path, display=self._display, budget=self.budget))
        section = self.sections.get(preset_kind(path, self.preset_roots), "")
        for name in reversed(section.split(".") if section else ()):
            tree = Node({name: tree}, tree.origin)
        return tree

    def _file(self, file: str) -> Node:
        compat = self.options.compat
        tree = read_file(file, display=self._display, budget=self.budget, is_shallow=compat)
        return self._resolve_includes(_check_mapping(tree))

    def _convert_file(self, tree: Node, earlier: Node) -> ConvertedConfig:
        converted = self._convert(tree, earlier)
        return replace(converted, is_record=converted.is_record or self.options.compat)

    def _resolve_includes(self, layer: Node) -> Node:
        """Reads includes of published files: `key: include other.yaml`, from the current folder."""
        top = {
            key: read_file(match.group(1), budget=self.budget)
            if isinstance(node.value, str) and (match := _INCLUDE.match(node.value))
            else node
            for key, node in layer.value.items()
        }
        return replace(layer, value=top)

    def _convert(self, tree: Node, earlier: Node) -> ConvertedConfig:
        """Converts a tree with the first converter that recognizes it."""
        table = self.translations
        for name in table.names() if table is not None else ():
            translate: Translate = table.get(name)  # pyright: ignore[reportOptionalMemberAccess]
            if (converted := translate(tree, earlier)) is not None:
                return converted
        return ConvertedConfig(tree)

    @property
    def _display(self) -> Callable[[Path], str]:
        return partial(display_path, roots=self.preset_roots)


def _check_mapping(layer: Node) -> Node:
    if isinstance(layer.value, dict):
        return layer
    problem = Problem("", layer.origin, "a configuration must be a mapping", code="config.syntax")
    raise config_error([problem])
