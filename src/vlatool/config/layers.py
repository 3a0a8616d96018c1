"""What a configuration is made of: presets, files and overrides as trees, the lowest first."""

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
    """How layers are read.

    Attributes:
        preset_kinds: Folders of the presets that fit; empty for all.
        compat: Files are read as the published program reads them: what nobody knows is left out,
            and a key beside `<<` replaces a whole section that `<<` brings.
    """

    preset_kinds: tuple[str, ...] = ()
    compat: bool = False


STRICT = ReadOptions()


@dataclass(frozen=True)
class ConvertedConfig:
    """The tree of another program in our keys.

    Attributes:
        tree: What it says.
        is_record: A program wrote it, with every key it has: what nobody knows is left out.
    """

    tree: Node
    is_record: bool = False


# Of a tree, and of the files under it as they were written; None where the tree is of another kind.
Translate = Callable[[Node, Node], ConvertedConfig | None]


@dataclass(frozen=True)
class Layers:
    """Trees in the order in which they are merged.

    Attributes:
        trees: The first lies at the bottom.
        own: Files, as origins name them, whose values somebody typed for this command.
    """

    trees: Sequence[Node]
    own: frozenset[str] = frozenset()

    def is_typed(self, origin: str) -> bool:
        """Whether a value of this origin was typed, not inherited from a preset or an include."""
        return origin.startswith(TYPED_ORIGIN) or origin.rpartition(":")[0] in self.own


@dataclass(frozen=True)
class LayerReader:
    """Reads layers for one class of configurations.

    Attributes:
        sections: Folder of presets to the section that they fill, dotted.
        translations: What recognises trees of other programs.
        reading: How.
        preset_roots: Folders with presets; ours and those of plugins by default.
        keys: Top-level keys of a record. A file that has all of them was written by a program.
        budget: What may still be read.
    """

    sections: Mapping[str, str]
    translations: Registry[Any] | None
    options: ReadOptions
    preset_roots: Sequence[Path] | None = None
    keys: frozenset[str] = frozenset()
    budget: Budget = field(default_factory=Budget)

    def read(
        self, presets: Sequence[str], files: Sequence[str], overrides: Sequence[Override]
    ) -> Layers:
        """All layers.

        Raises:
            ConfigError: A file cannot be read.
            UsageError: A preset has an unknown name, or is of another kind.
        """
        trees = [self._preset(name) for name in presets]
        own: list[str] = []
        below = Node({}, TYPED_ORIGIN)
        for file in files:
            tree = self._file(file)
            translated = self._told(tree, below)
            below = merge(below, tree)
            trees.append(lenient(translated.tree) if translated.is_record else translated.tree)
            if not (translated.is_record or self._is_whole(tree)):
                own.append(self._shown(location(file)))
        typed = self._translated(overrides_tree(overrides, self.budget), below).tree
        return Layers([*trees, typed], frozenset(own))

    def _is_whole(self, tree: Node) -> bool:
        return bool(self.keys) and self.keys <= tree.value.keys()

    def _preset(self, name: str) -> Node:
        path = preset_path(name, self.preset_roots, self.options.preset_kinds)
        tree = _checked(read_file(path, show=self._shown, budget=self.budget))
        section = self.sections.get(preset_kind(path, self.preset_roots), "")
        for name in reversed(section.split(".") if section else ()):
            tree = Node({name: tree}, tree.origin)
        return tree

    def _file(self, file: str) -> Node:
        compat = self.options.compat
        tree = _checked(read_file(file, show=self._shown, budget=self.budget, is_shallow=compat))
        return self._included(tree)

    def _told(self, tree: Node, below: Node) -> ConvertedConfig:
        translated = self._translated(tree, below)
        return replace(translated, is_record=translated.is_record or self.options.compat)

    def _included(self, layer: Node) -> Node:
        """Published files may say `key: include other.yaml`, relative to the working directory."""
        top = {
            key: read_file(match.group(1), budget=self.budget)
            if isinstance(node.value, str) and (match := _INCLUDE.match(node.value))
            else node
            for key, node in layer.value.items()
        }
        return replace(layer, value=top)

    def _translated(self, tree: Node, below: Node) -> ConvertedConfig:
        """The tree in our keys, by the first translation that recognises it."""
        table = self.translations
        for name in table.names() if table is not None else ():
            translate: Translate = table.get(name)  # pyright: ignore[reportOptionalMemberAccess]
            if (translated := translate(tree, below)) is not None:
                return translated
        return ConvertedConfig(tree)

    @property
    def _shown(self) -> Callable[[Path], str]:
        return partial(display_path, roots=self.preset_roots)


def _checked(layer: Node) -> Node:
    if isinstance(layer.value, dict):
        return layer
    problem = Problem("", layer.origin, "a configuration must be a mapping", code="config.syntax")
    raise config_error([problem])
