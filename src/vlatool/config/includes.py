"""Reading of YAML files to trees with file and line of each value; `!include`, `<<`, `!replace`.

Scalars keep their text, and no tag can run code.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from vlatool.config.coerce import Node, Plain, merge, parse_plain
from vlatool.config.presets import preset_names
from vlatool.config.problems import Problem, config_error
from vlatool.errors import ConfigError
from vlatool.storage import documents, uri
from vlatool.storage.uri import can_list

MAX_VALUES = 100_000  # of one configuration, including the values of each alias and include
MAX_FILES = 1_000  # read by one configuration, counting repeated includes

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


class _OriginLoader(_Loader):
    """Loader that marks scalars as plain or quoted, without the types of YAML 1.1."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Tag of a node without an explicit tag."""
        if kind is yaml.ScalarNode:
            return _PLAIN_TAG if implicit[0] else _TEXT_TAG
        return _MAPPING_TAG if kind is yaml.MappingNode else _SEQUENCE_TAG


@dataclass
class Budget:
    """Remaining number of values and files that a configuration may read.

    Aliases and includes multiply: a few lines could expand to more than the memory.
    """

    values: int = MAX_VALUES
    files: int = MAX_FILES

    def spend(self, origin: str, *, values: int = 0, files: int = 0) -> None:
        """Subtracts from the remaining numbers."""
        self.values -= values
        self.files -= files
        if self.files < 0:
            raise _too_large(origin, f"it includes more than {MAX_FILES:,} files")
        if self.values < 0:
            raise _too_large(origin, f"it has more than {MAX_VALUES:,} values")


def read_file(
    location: str | Path,  # local or remote file
    *,
    display: Callable[[Path], str] = str,  # returns the name of a file in origins
    budget: Budget | None = None,  # limits of values and files; by default new ones
    is_shallow: bool = False,
) -> Node:
    """Reads a YAML file with all files that it includes."""
    path = uri.location(location)
    document = _Document(
        path,
        display(path),
        display,
        (path.resolve(),),
        budget=budget or Budget(),
        is_shallow=is_shallow,
    )
    return document.tree(included_at="")


def read_text(text: str, source: str, budget: Budget) -> Node:
    """Parses YAML text of one line; its includes are relative to the working directory."""
    return _Document(Path(), source, budget=budget, has_lines=False).parse(text)


@dataclass(frozen=True)
class _Document:
    """YAML document that is being read."""

    path: Path  # file of the document; includes are relative to its folder
    name: str  # name of the document in origins
    display: Callable[[Path], str] = str  # returns the name of an included file in origins
    chain: tuple[Path, ...] = ()  # files that include each other, up to this one
    depth: int = 0  # number of lists, mappings and includes around the document
    budget: Budget = field(default_factory=Budget)  # remaining number of values and files
    is_shallow: bool = False  # `<<` does not merge nested mappings
    has_lines: bool = True  # origins have the number of the line

    def tree(self, included_at: str) -> Node:
        """Reads the file; `included_at` is the origin of the include, empty without one."""
        self.budget.spend(included_at or self.name, files=1)
        try:
            text = documents.read_document(self.path)
        except documents.DocumentError as error:
            raise self._unreadable(included_at, error.reason) from error
        except OSError as error:
            hint = "" if included_at else _near_files(self.path)
            reason = error.strerror or str(error)
            raise self._unreadable(included_at, reason, hint) from error
        return self.parse(text)

    def parse(self, text: str) -> Node:
        """Parses the text; an empty text is an empty mapping."""
        try:
            values = documents.check_yaml(text, MAX_VALUES)
            self.budget.spend(self.name, values=values)
            root = yaml.compose(text, Loader=_OriginLoader)
        except documents.DocumentError as error:
            raise _error(self._line(error.line), error.reason) from error
        except yaml.YAMLError as error:  # an undefined alias
            problem = documents.yaml_error(error, text)
            raise _error(self._line(problem.line), problem.reason) from error
        return Node({}, f"{self.name}:1") if root is None else self._read(root, self.depth)

    def _read(self, node: yaml.Node, depth: int) -> Node:
        """Tree of a node inside `depth` others."""
        origin = self._origin(node)
        if depth > documents.MAX_DEPTH:
            raise _error(origin, f"nested deeper than {documents.MAX_DEPTH} levels")
        if node.tag == _INCLUDE_TAG:
            return self._include(node, depth + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth + 1)
        if isinstance(node, yaml.SequenceNode):
            _check_tag(node, origin, _SEQUENCE_TAG)
            return Node([self._read(item, depth + 1) for item in node.value], origin)
        assert isinstance(node, yaml.ScalarNode)
        return Node(_scalar(node, origin), origin)

    def _unreadable(self, included_at: str, reason: str, hint: str = "") -> ConfigError:
        message = f"cannot read {self.name}: {reason}"
        return _error(included_at, message, hint=hint, code="config.missing_file")

    def _line(self, line: int) -> str:
        return f"{self.name}:{line}" if line and self.has_lines else self.name

    def _include(self, node: yaml.Node, depth: int) -> Node:
        origin = self._origin(node)
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise _error(origin, "!include needs a path")
        target = uri.location(node.value)
        path = target if target.is_absolute() else self.path.parent / target
        if path.resolve() in self.chain:
            raise _error(
                origin,
                f"{node.value} includes itself",
                hint=" -> ".join(self.display(step) for step in self.chain),
            )
        chain = (*self.chain, path.resolve())
        included = replace(
            self, path=path, name=self.display(path), chain=chain, depth=depth, has_lines=True
        )
        return included.tree(included_at=origin)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> Node:
        origin = self._origin(node)
        _check_tag(node, origin, _MAPPING_TAG, _REPLACE_TAG)
        inherited = Node({}, origin)
        children: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key_origin = self._origin(key_node)
            key = _key(key_node, key_origin)
            value = self._read(value_node, depth)
            if key is None:
                inherited = self._merged(inherited, _mergeable(value, key_origin))
            elif key in children:
                message = f'duplicate key "{key}"'
                raise _error(key_origin, message)
            else:
                children[key] = value
        tree = self._merged(inherited, Node(children, origin))
        return replace(tree, replace=tree.replace or node.tag == _REPLACE_TAG)

    def _merged(self, base: Node, over: Node) -> Node:
        if not self.is_shallow:
            return merge(base, over)
        return replace(over, value={**base.value, **over.value}, replace=base.replace)

    def _origin(self, node: yaml.Node) -> str:
        return self._line(node.start_mark.line + 1)


def _key(node: yaml.Node, key_origin: str) -> str | None:
    """Text of a key; None for the merge key `<<`."""
    if not isinstance(node, yaml.ScalarNode):
        raise _error(key_origin, "a key must be text")
    key = _scalar(node, key_origin)
    return None if isinstance(key, Plain) and key == _MERGE_KEY else str(key)


def _mergeable(value: Node, origin: str) -> Node:
    """Value of `<<`: a mapping, or a list of mappings, of which earlier ones take precedence."""
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
    """Unquoted text with its value, or quoted text."""
    _check_tag(node, origin, _PLAIN_TAG, _TEXT_TAG, *_TYPED_BY_TAG)
    return node.value if node.tag == _TEXT_TAG else parse_plain(node.value)


def _check_tag(node: yaml.Node, origin: str, *known: str) -> None:
    if node.tag in known:
        return
    if node.tag == _REPLACE_TAG and isinstance(node, yaml.SequenceNode):
        raise _error(origin, "!replace needs a mapping; lists always replace")
    hint = "the supported tags are !include and !replace"
    raise _error(origin, f"unknown tag {node.tag!r}", hint=hint)


def _near_files(path: Path) -> str:
    """Hint with files of the folder and presets whose names are similar to a missing file."""
    try:
        children = path.parent.iterdir() if can_list(path) else ()
        names = {file.stem: f"-c {file}" for file in children if file.suffix in _SUFFIXES}
    except OSError:
        return f"the folder {path.parent} does not exist"
    names |= {name: f"--preset {name}" for name in preset_names() if name not in names}
    target = path.stem.replace("_", "-")
    near = difflib.get_close_matches(target, names, cutoff=_NEAR_NAME)
    if near:
        return f"did you mean {' or '.join(names[name] for name in near)}?"
    return "give the path of a YAML file; `vlatool presets` lists the values of --preset"


def _too_large(origin: str, message: str) -> ConfigError:
    hint = "shorten the configuration; aliases and includes count each time they are used"
    return _error(origin, message, hint=hint)


def _error(
    origin: str, message: str, *, hint: str = "", code: str = "config.syntax"
) -> ConfigError:
    """Error at a line of a file, raised before validation."""
    return config_error([Problem("", origin, message, code=code)], hint=hint)
