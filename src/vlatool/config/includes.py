"""Files to trees: `!include`, `<<` and `!replace`, each value with its file and line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlatool.config import yaml_io
from vlatool.config.merge import merge
from vlatool.config.scalars import Plain
from vlatool.config.tree import Node
from vlatool.storage import uri

_MERGE_KEY = "<<"


@dataclass(frozen=True)
class _Document:
    """The text being read: where it is, how it is shown, and which files led to it."""

    path: Path
    shown: str
    chain: tuple[Path, ...]
    show: Callable[[Path], str]
    open_nodes: frozenset[int] = frozenset()

    def inside(self, node: yaml.Node) -> "_Document":
        """The same document while `node` is being read."""
        return _Document(self.path, self.shown, self.chain, self.show, self.open_nodes | {id(node)})


def read_file(location: str | Path, *, shown: str = "", show: Callable[[Path], str] = str) -> Node:
    """The tree of a YAML file with everything that it includes.

    Args:
        location: A local file, or one in S3.
        shown: How origins name this file; `show` of its path by default.
        show: How origins name any included file.

    Raises:
        ConfigError: A file is missing, includes itself or is not valid.
        StorageError: The storage that a file is in cannot be read.
    """
    path = uri.location(location)
    document = _Document(path, shown or show(path), (path.resolve(),), show)
    return _read(document, asked_at="")


def read_text(text: str, source: str) -> Node:
    """The tree of YAML text without a file; its includes are relative to the current folder."""
    document = _Document(Path(source), source, (), str)
    return _parse(text, document, Path())


def _read(document: _Document, asked_at: str) -> Node:
    try:
        text = document.path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        message = f"cannot read {document.shown}: {reason}"
        code = "config.missing_file"
        raise yaml_io.syntax_error(asked_at, message, code=code) from error
    return _parse(text, document, document.path.parent)


def _parse(text: str, document: _Document, folder: Path) -> Node:
    root = yaml_io.compose(text, document.shown)
    if root is None:
        return Node({}, f"{document.shown}:1")
    return _Reader(folder).read(root, document)


@dataclass(frozen=True)
class _Reader:
    """Turns PyYAML nodes into a tree; `folder` is what includes are relative to."""

    folder: Path

    def read(self, node: yaml.Node, document: _Document) -> Node:
        origin = yaml_io.place(node, document.shown)
        if id(node) in document.open_nodes:
            raise yaml_io.syntax_error(origin, "an anchor contains itself")
        document = document.inside(node)
        if node.tag == yaml_io.INCLUDE_TAG:
            return self._include(node, document)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, document)
        if isinstance(node, yaml.SequenceNode):
            _check_tag(node, origin, yaml_io.SEQUENCE_TAG)
            return Node([self.read(item, document) for item in node.value], origin)
        assert isinstance(node, yaml.ScalarNode)
        return Node(yaml_io.scalar(node, origin), origin)

    def _include(self, node: yaml.Node, document: _Document) -> Node:
        origin = yaml_io.place(node, document.shown)
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise yaml_io.syntax_error(origin, "!include needs a path")
        wanted = uri.location(node.value)
        path = wanted if wanted.is_absolute() else self.folder / wanted
        if path.resolve() in document.chain:
            raise yaml_io.syntax_error(
                origin,
                f"{node.value} includes itself",
                hint=" -> ".join(document.show(step) for step in document.chain),
                code="config.include_cycle",
            )
        chain = (*document.chain, path.resolve())
        included = _Document(path, document.show(path), chain, document.show)
        return _read(included, asked_at=origin)

    def _mapping(self, node: yaml.MappingNode, document: _Document) -> Node:
        origin = yaml_io.place(node, document.shown)
        _check_tag(node, origin, yaml_io.MAPPING_TAG, yaml_io.REPLACE_TAG)
        inherited: Node | None = None
        own: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key = _key(key_node, document.shown)
            value = self.read(value_node, document)
            if key is None:
                value = _mergeable(value, yaml_io.place(key_node, document.shown))
                inherited = merge(inherited, value) if inherited is not None else value
            elif key in own:
                message = f'the key "{key}" stands here twice'
                place = yaml_io.place(key_node, document.shown)
                raise yaml_io.syntax_error(place, message, code="config.duplicate_key")
            else:
                own[key] = value
        result = Node(own, origin)
        if inherited is not None:
            result = merge(inherited, result)
        replace = result.replace or node.tag == yaml_io.REPLACE_TAG
        return Node(result.value, result.origin, replace)


def _key(node: yaml.Node, source: str) -> str | None:
    """The text of a key; None for the merge key."""
    if not isinstance(node, yaml.ScalarNode):
        raise yaml_io.syntax_error(yaml_io.place(node, source), "a key must be text")
    key = yaml_io.scalar(node, yaml_io.place(node, source))
    return None if isinstance(key, Plain) and key == _MERGE_KEY else str(key)


def _mergeable(value: Node, origin: str) -> Node:
    """What `<<` brings in: a mapping, or a list of which the earlier mappings win."""
    if isinstance(value.value, dict):
        return value
    if not isinstance(value.value, list) or not all(_is_mapping(item) for item in value.value):
        raise yaml_io.syntax_error(origin, "<< needs a mapping or a list of mappings")
    merged = Node({}, value.origin)
    for item in reversed(value.value):
        merged = merge(merged, item)
    return merged


def _is_mapping(node: Any) -> bool:
    return isinstance(node.value, dict)


def _check_tag(node: yaml.Node, origin: str, *known: str) -> None:
    if node.tag == yaml_io.REPLACE_TAG and node.tag not in known:
        raise yaml_io.syntax_error(origin, "!replace needs a mapping; lists always replace")
    if node.tag not in known:
        raise yaml_io.unknown_tag(node, origin)
