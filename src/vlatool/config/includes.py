"""YAML files to trees: `!include`, `<<` and `!replace`, each value with its file and line.

No value is built here and no tag runs code: scalars keep their text.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from vlatool.config.presets import preset_names
from vlatool.config.problems import Problem, config_error
from vlatool.config.scalars import Plain, parse_plain
from vlatool.config.tree import Node, merge
from vlatool.errors import ConfigError
from vlatool.storage import uri
from vlatool.storage.documents import (
    MAX_DEPTH,
    DocumentError,
    check_yaml,
    read_document,
    yaml_error,
)
from vlatool.storage.uri import can_list

MAX_VALUES = 100_000  # of one configuration, each alias and each include as large as it is
MAX_FILES = 1_000  # that one configuration reads, a file as often as it is included

_MERGE_KEY = "<<"
_PLAIN_TAG = "tag:vlatool,plain"
_TEXT_TAG = "tag:yaml.org,2002:str"
_MAPPING_TAG = "tag:yaml.org,2002:map"
_SEQUENCE_TAG = "tag:yaml.org,2002:seq"
_INCLUDE_TAG = "!include"
_REPLACE_TAG = "!replace"
_NEAR_NAME = 0.7
_SUFFIXES = (".yaml", ".yml", ".json")

_TYPED_BY_TAG = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _PlaceLoader(_Loader):
    """Marks scalars as plain or quoted instead of guessing types by YAML 1.1 rules."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node that has none of its own."""
        if kind is yaml.ScalarNode:
            return _PLAIN_TAG if implicit[0] else _TEXT_TAG
        return _MAPPING_TAG if kind is yaml.MappingNode else _SEQUENCE_TAG


@dataclass
class Budget:
    """What one configuration may still read, over all its files and overrides.

    Aliases and includes multiply: a few lines can ask for more than any memory holds.
    """

    values: int = MAX_VALUES
    files: int = MAX_FILES

    def spend(self, origin: str, *, values: int = 0, files: int = 0) -> None:
        """Takes from what is left.

        Raises:
            ConfigError: It is used up.
        """
        self.values -= values
        self.files -= files
        if self.files < 0:
            raise _too_large(origin, f"it includes more than {MAX_FILES:,} files")
        if self.values < 0:
            raise _too_large(origin, f"it has more than {MAX_VALUES:,} values")


def read_file(
    location: str | Path,
    *,
    show: Callable[[Path], str] = str,
    budget: Budget | None = None,
    is_shallow: bool = False,
) -> Node:
    """The tree of a YAML file with everything that it includes.

    Args:
        location: A local file, or one in S3.
        show: How origins name this file and any included one.
        budget: What may be read; one of its own, if nothing is given.
        is_shallow: A key beside `<<` replaces a whole section that `<<` brings.

    Raises:
        ConfigError: A file is missing, includes itself or is not valid.
        StorageError: The storage that a file is in cannot be read.
    """
    path = uri.location(location)
    document = _Document(
        path,
        show(path),
        show,
        (path.resolve(),),
        budget=budget or Budget(),
        is_shallow=is_shallow,
    )
    return document.tree(asked_at="")


def read_text(text: str, source: str, budget: Budget | None = None) -> Node:
    """The tree of YAML text without a file; its includes are relative to the current folder."""
    return _Document(Path(), source, budget=budget or Budget()).parse(text)


@dataclass(frozen=True)
class _Document:
    """YAML that is being read.

    Attributes:
        path: Its file; includes are relative to the folder.
        shown: How origins name it.
        show: How origins name what it includes.
        chain: The files that led here and this one.
        depth: Lists, mappings and includes that it lies in.
        budget: What may still be read.
        is_shallow: `<<` merges no deeper than the mapping that it stands in.
    """

    path: Path
    shown: str
    show: Callable[[Path], str] = str
    chain: tuple[Path, ...] = ()
    depth: int = 0
    budget: Budget = field(default_factory=Budget)
    is_shallow: bool = False

    def tree(self, asked_at: str) -> Node:
        """What the file holds; `asked_at` is the place that includes it."""
        self.budget.spend(asked_at or self.shown, files=1)
        try:
            text = read_document(self.path)
        except DocumentError as error:
            raise self._unreadable(asked_at, error.reason) from error
        except OSError as error:
            hint = "" if asked_at else _near_files(self.path)
            reason = error.strerror or str(error)
            raise self._unreadable(asked_at, reason, hint) from error
        return self.parse(text)

    def parse(self, text: str) -> Node:
        """What `text` holds; an empty one is an empty mapping."""
        try:
            values = check_yaml(text, MAX_VALUES)
            self.budget.spend(self.shown, values=values)
            root = yaml.compose(text, Loader=_PlaceLoader)
        except DocumentError as error:
            raise _error(self._line(error.line), error.reason) from error
        except yaml.YAMLError as error:  # an alias that nothing stands for
            told = yaml_error(error, text)
            raise _error(self._line(told.line), told.reason) from error
        return Node({}, f"{self.shown}:1") if root is None else self._read(root, self.depth)

    def _read(self, node: yaml.Node, depth: int) -> Node:
        """The tree of a node that lies in `depth` others."""
        origin = self._place(node)
        if depth > MAX_DEPTH:
            raise _error(origin, f"nested deeper than {MAX_DEPTH} levels")
        if node.tag == _INCLUDE_TAG:
            return self._include(node, depth + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth + 1)
        if isinstance(node, yaml.SequenceNode):
            _check_tag(node, origin, _SEQUENCE_TAG)
            return Node([self._read(item, depth + 1) for item in node.value], origin)
        assert isinstance(node, yaml.ScalarNode)
        return Node(_scalar(node, origin), origin)

    def _unreadable(self, asked_at: str, reason: str, hint: str = "") -> ConfigError:
        message = f"cannot read {self.shown}: {reason}"
        return _error(asked_at, message, hint=hint, code="config.missing_file")

    def _line(self, line: int) -> str:
        return f"{self.shown}:{line}" if line else self.shown

    def _include(self, node: yaml.Node, depth: int) -> Node:
        origin = self._place(node)
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise _error(origin, "!include needs a path")
        wanted = uri.location(node.value)
        path = wanted if wanted.is_absolute() else self.path.parent / wanted
        if path.resolve() in self.chain:
            raise _error(
                origin,
                f"{node.value} includes itself",
                hint=" -> ".join(self.show(step) for step in self.chain),
                code="config.include_cycle",
            )
        chain = (*self.chain, path.resolve())
        included = replace(self, path=path, shown=self.show(path), chain=chain, depth=depth)
        return included.tree(asked_at=origin)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> Node:
        origin = self._place(node)
        _check_tag(node, origin, _MAPPING_TAG, _REPLACE_TAG)
        inherited = Node({}, origin)
        own: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            key = _key(key_node, place)
            value = self._read(value_node, depth)
            if key is None:
                inherited = self._merged(inherited, _mergeable(value, place))
            elif key in own:
                message = f'the key "{key}" stands here twice'
                raise _error(place, message, code="config.duplicate_key")
            else:
                own[key] = value
        tree = self._merged(inherited, Node(own, origin))
        return replace(tree, replace=tree.replace or node.tag == _REPLACE_TAG)

    def _merged(self, base: Node, over: Node) -> Node:
        if not self.is_shallow:
            return merge(base, over)
        return replace(over, value={**base.value, **over.value}, replace=base.replace)

    def _place(self, node: yaml.Node) -> str:
        return f"{self.shown}:{node.start_mark.line + 1}"


def _key(node: yaml.Node, place: str) -> str | None:
    """The text of a key; None for the merge key."""
    if not isinstance(node, yaml.ScalarNode):
        raise _error(place, "a key must be text")
    key = _scalar(node, place)
    return None if isinstance(key, Plain) and key == _MERGE_KEY else str(key)


def _mergeable(value: Node, origin: str) -> Node:
    """What `<<` brings in: a mapping, or a list of which the earlier mappings win."""
    if isinstance(value.value, dict):
        return value
    items: list[Node] = value.value if isinstance(value.value, list) else [value]
    if not all(isinstance(item.value, dict) for item in items):
        raise _error(origin, "<< needs a mapping or a list of mappings")
    merged = Node({}, value.origin)
    for item in reversed(items):
        merged = merge(merged, item)
    return merged


def _scalar(node: yaml.ScalarNode, origin: str) -> Plain | str:
    """Unquoted text with its meaning, or quoted text."""
    _check_tag(node, origin, _PLAIN_TAG, _TEXT_TAG, *_TYPED_BY_TAG)
    return node.value if node.tag == _TEXT_TAG else parse_plain(node.value)


def _check_tag(node: yaml.Node, origin: str, *known: str) -> None:
    if node.tag in known:
        return
    if node.tag == _REPLACE_TAG and isinstance(node, yaml.SequenceNode):
        raise _error(origin, "!replace needs a mapping; lists always replace")
    hint = "the tags are !include and !replace"
    raise _error(origin, f"unknown tag {node.tag!r}", hint=hint, code="config.unknown_tag")


def _near_files(path: Path) -> str:
    """Files of the same folder, and presets, whose names are near that of one that is missing."""
    try:
        there = path.parent.iterdir() if can_list(path) else ()
        files = [file for file in there if file.suffix in _SUFFIXES]
    except OSError:
        return f"there is no folder {path.parent}"
    stems = {f"-c {file}": file.stem for file in sorted(files)}
    stems |= {f"--preset {name}": name for name in preset_names()}
    wanted = path.stem.replace("_", "-")
    near = difflib.get_close_matches(wanted, stems.values(), cutoff=_NEAR_NAME)
    told = [typed for stem in near for typed, name in stems.items() if name == stem]
    if told:
        return f"did you mean {' or '.join(dict.fromkeys(told))}?"
    return "name a YAML file; `vlatool presets` lists what --preset takes"


def _too_large(origin: str, message: str) -> ConfigError:
    hint = "aliases and includes count as often as they are used; write less"
    return _error(origin, message, hint=hint, code="config.too_large")


def _error(
    origin: str, message: str, *, hint: str = "", code: str = "config.syntax"
) -> ConfigError:
    """An error at a place in a file, found before there is a tree to validate."""
    return config_error([Problem("", origin, message, code=code)], hint=hint)
