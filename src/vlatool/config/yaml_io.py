"""YAML text to PyYAML nodes with exact places; no value is built here, no tag runs code."""

from typing import Any

import yaml

from vlatool.config.problems import Problem, config_error
from vlatool.config.scalars import Plain, parse_plain
from vlatool.errors import ConfigError

PLAIN_TAG = "tag:vlatool,plain"
TEXT_TAG = "tag:yaml.org,2002:str"
MAPPING_TAG = "tag:yaml.org,2002:map"
SEQUENCE_TAG = "tag:yaml.org,2002:seq"
INCLUDE_TAG = "!include"
REPLACE_TAG = "!replace"

_TYPED_BY_TAG = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _PlaceLoader(_Loader):
    """Marks scalars as plain or quoted instead of guessing types by YAML 1.1 rules."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node that has none of its own."""
        if kind is yaml.ScalarNode:
            return PLAIN_TAG if implicit[0] else TEXT_TAG
        return MAPPING_TAG if kind is yaml.MappingNode else SEQUENCE_TAG


def compose(text: str, source: str) -> yaml.Node | None:
    """The root node of one YAML document; None when the text is empty.

    Raises:
        ConfigError: The text is not YAML; the message starts with `source:line`.
    """
    try:
        return yaml.compose(text, Loader=_PlaceLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        last_line = max(1, len(text.splitlines()))
        origin = f"{source}:{min(mark.line + 1, last_line)}" if mark else source
        raise syntax_error(origin, f"not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise syntax_error(source, f"not valid YAML: {error}".partition("\n")[0]) from error


def scalar(node: yaml.ScalarNode, origin: str) -> Plain | str:
    """The value of a scalar node: unquoted text with its meaning, or quoted text.

    Raises:
        ConfigError: The node has a tag that means nothing here.
    """
    if node.tag == PLAIN_TAG or node.tag in _TYPED_BY_TAG:
        return parse_plain(node.value)
    if node.tag == TEXT_TAG:
        return node.value
    raise unknown_tag(node, origin)


def place(node: yaml.Node, source: str) -> str:
    """`source:line` of a node."""
    return f"{source}:{node.start_mark.line + 1}"


def unknown_tag(node: yaml.Node, origin: str) -> ConfigError:
    """The error for a tag that is neither YAML's own nor ours."""
    return syntax_error(
        origin,
        f"unknown tag {node.tag!r}",
        hint="the tags are !include and !replace",
        code="config.unknown_tag",
    )


def syntax_error(
    origin: str, message: str, *, hint: str = "", code: str = "config.syntax"
) -> ConfigError:
    """An error at a place in a file, found before there is a tree to validate."""
    return config_error([Problem("", origin, message, code=code)], hint=hint)
