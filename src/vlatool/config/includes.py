"""YAML files to trees: `!include`, `<<` and `!replace`, each value with its file and line.

No value is built here and no tag runs code: scalars keep their text.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from vlatool.config.problems import Problem, config_error
from vlatool.config.scalars import Plain, parse_plain
from vlatool.config.tree import Node, merge
from vlatool.errors import ConfigError
from vlatool.storage import uri

_MERGE_KEY = "<<"
_PLAIN_TAG = "tag:vlatool,plain"
_TEXT_TAG = "tag:yaml.org,2002:str"
_MAPPING_TAG = "tag:yaml.org,2002:map"
_SEQUENCE_TAG = "tag:yaml.org,2002:seq"
_INCLUDE_TAG = "!include"
_REPLACE_TAG = "!replace"

_TYPED_BY_TAG = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _PlaceLoader(_Loader):
    """Marks scalars as plain or quoted instead of guessing types by YAML 1.1 rules."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node that has none of its own."""
        if kind is yaml.ScalarNode:
            return _PLAIN_TAG if implicit[0] else _TEXT_TAG
        return _MAPPING_TAG if kind is yaml.MappingNode else _SEQUENCE_TAG


def read_file(location: str | Path, *, show: Callable[[Path], str] = str) -> Node:
    """The tree of a YAML file with everything that it includes.

    Args:
        location: A local file, or one in S3.
        show: How origins name this file and any included one.

    Raises:
        ConfigError: A file is missing, includes itself or is not valid.
        StorageError: The storage that a file is in cannot be read.
    """
    path = uri.location(location)
    return _Document(path, show(path), show, (path.resolve(),)).tree(asked_at="")


def read_text(text: str, source: str) -> Node:
    """The tree of YAML text without a file; its includes are relative to the current folder."""
    return _Document(Path(), source).parse(text)


@dataclass(frozen=True)
class _Document:
    """YAML that is being read.

    Attributes:
        path: Its file; includes are relative to the folder.
        shown: How origins name it.
        show: How origins name what it includes.
        chain: The files that led here and this one.
    """

    path: Path
    shown: str
    show: Callable[[Path], str] = str
    chain: tuple[Path, ...] = ()

    def tree(self, asked_at: str) -> Node:
        """What the file holds; `asked_at` is the place that includes it."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            message = f"cannot read {self.shown}: {reason}"
            raise _error(asked_at, message, code="config.missing_file") from error
        return self.parse(text)

    def parse(self, text: str) -> Node:
        """What `text` holds; an empty one is an empty mapping."""
        try:
            root = yaml.compose(text, Loader=_PlaceLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            last_line = max(1, len(text.splitlines()))
            origin = f"{self.shown}:{min(mark.line + 1, last_line)}" if mark else self.shown
            raise _error(origin, f"not valid YAML: {error.problem or error.context}") from error
        except yaml.YAMLError as error:
            raise _error(self.shown, f"not valid YAML: {error}".partition("\n")[0]) from error
        return Node({}, f"{self.shown}:1") if root is None else self._read(root, frozenset())

    def _read(self, node: yaml.Node, above: frozenset[int]) -> Node:
        """The tree of a node; `above` are those it lies in, since anchors may form a circle."""
        origin = self._place(node)
        if id(node) in above:
            raise _error(origin, "an anchor contains itself")
        above |= {id(node)}
        if node.tag == _INCLUDE_TAG:
            return self._include(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, above)
        if isinstance(node, yaml.SequenceNode):
            _check_tag(node, origin, _SEQUENCE_TAG)
            return Node([self._read(item, above) for item in node.value], origin)
        assert isinstance(node, yaml.ScalarNode)
        return Node(_scalar(node, origin), origin)

    def _include(self, node: yaml.Node) -> Node:
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
        return _Document(path, self.show(path), self.show, chain).tree(asked_at=origin)

    def _mapping(self, node: yaml.MappingNode, above: frozenset[int]) -> Node:
        origin = self._place(node)
        _check_tag(node, origin, _MAPPING_TAG, _REPLACE_TAG)
        inherited = Node({}, origin)
        own: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            key = _key(key_node, place)
            value = self._read(value_node, above)
            if key is None:
                inherited = merge(inherited, _mergeable(value, place))
            elif key in own:
                message = f'the key "{key}" stands here twice'
                raise _error(place, message, code="config.duplicate_key")
            else:
                own[key] = value
        tree = merge(inherited, Node(own, origin))
        return replace(tree, replace=tree.replace or node.tag == _REPLACE_TAG)

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


def _error(
    origin: str, message: str, *, hint: str = "", code: str = "config.syntax"
) -> ConfigError:
    """An error at a place in a file, found before there is a tree to validate."""
    return config_error([Problem("", origin, message, code=code)], hint=hint)
