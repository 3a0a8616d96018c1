"""JSON and YAML that somebody else may have written: read within limits, or refused with a reason.

A parser alone ends in a segmentation fault, or not at all, on a few hundred bytes made for it.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import yaml

from vlatool.storage.byte_ranges import ByteRange, read_byte_range

MAX_BYTES = 64 * 2**20  # of one document
MAX_DEPTH = 100  # of lists and mappings in each other
MAX_NODES = 1_000_000  # of a YAML document, each alias as large as what it stands for
MAX_LISTS = 4_000_000  # lists and mappings of a JSON document; a second to read

_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times as fast
_yaml: Any = yaml  # its annotations are partial


class DocumentError(ValueError):
    """A document that cannot be read.

    Attributes:
        reason: Such as `not valid JSON (line 3: Expecting value)`.
        line: Where, from 1; 0 where no line is known.
    """

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


def read_document(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """The text of a file that is to be parsed.

    Raises:
        DocumentError: It is larger than `max_bytes` or not UTF-8.
        OSError: It cannot be read.
        StorageError: The same in a bucket.
    """
    data = read_byte_range(ByteRange(path, 0, max_bytes + 1))  # one request where it is remote
    if len(data) > max_bytes:
        size = path.stat().st_size
        raise DocumentError(
            f"{_mib(size)} are more than the {_mib(max_bytes)} such a file may have"
        )
    try:
        return data.decode("utf-8-sig")  # some editors begin with a byte order mark
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 text (byte {error.start})") from error


def parse_json(text: str | bytes, *, constants: Callable[[str], Any] | None = None) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8 where it is bytes.
        constants: What `NaN`, `Infinity` and `-Infinity` become; floats, if nothing is given.

    Raises:
        DocumentError: It is not JSON, nested too deep, too large, or has a number of thousands of
            digits or half a character.
    """
    brackets = _count(text, "[") + _count(text, "{")
    if brackets > MAX_LISTS:
        raise DocumentError(f"more than {MAX_LISTS:,} lists and mappings")
    try:
        value = json.loads(text, parse_constant=constants)
    except json.JSONDecodeError as error:
        reason = f"not valid JSON (line {error.lineno}: {error.msg})"
        raise DocumentError(reason, error.lineno) from error
    except RecursionError as error:
        raise _too_deep() from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 text (byte {error.start})") from error
    except ValueError as error:  # an integer that Python takes no time for
        raise DocumentError("not valid JSON (a number of thousands of digits)") from error
    if brackets > MAX_DEPTH:
        _check_depth(value)
    if _has(text, "\\u") and (_has(text, "\\ud") or _has(text, "\\uD")):
        _check_characters(value)
    return value


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON file; raises as `read_document` and `parse_json`."""
    return parse_json(read_document(path, max_bytes=max_bytes))


def parse_yaml(text: str, loader: Any = _SAFE) -> Any:
    """The value of a YAML text.

    Args:
        text: One document.
        loader: One of the safe loaders.

    Raises:
        DocumentError: It is not YAML, nested too deep, or larger than its text lets one think.
    """
    check_yaml(text)
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - one of the safe loaders
    except yaml.YAMLError as error:
        raise yaml_error(error, text) from error
    except RecursionError as error:  # an anchor that contains itself
        raise _too_deep() from error
    except ValueError as error:  # a date that no calendar has, a number of thousands of digits
        raise DocumentError(f"not valid YAML ({str(error).partition(chr(10))[0][:100]})") from error


def read_yaml(path: Path, loader: Any = _SAFE, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a YAML file; raises as `read_document` and `parse_yaml`."""
    return parse_yaml(read_document(path, max_bytes=max_bytes), loader)


def check_yaml(text: str, max_nodes: int = MAX_NODES) -> int:
    """The number of nodes of a YAML text, aliases counted as what they stand for.

    Only reads events, so no depth and no multiplication costs anything.

    Raises:
        DocumentError: It is not YAML, too deep or too large.
    """
    count = _Count()
    try:
        for event in _yaml.parse(text, Loader=_SAFE):
            count.add(event)
            if len(count.opened) > MAX_DEPTH:
                raise _too_deep(_line(event.start_mark))
            if count.nodes > max_nodes:
                reason = f"its aliases make more than {max_nodes:,} values of it"
                raise DocumentError(reason, _line(event.start_mark))
    except yaml.YAMLError as error:
        raise yaml_error(error, text) from error
    return count.nodes


class _Count:
    """Nodes of a document, told its events."""

    def __init__(self) -> None:
        self.nodes = 0
        self.opened: list[tuple[str | None, int]] = []  # anchor of each open node, nodes before
        self._sizes: dict[str, int] = {}

    def add(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self.opened.pop()
            self._remember(anchor, self.nodes - before)
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in self.opened):
                raise DocumentError("an anchor contains itself", _line(event.start_mark))
            self.nodes += self._sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            self.opened.append((event.anchor, self.nodes))
            self.nodes += 1
        elif isinstance(event, yaml.ScalarEvent):
            self.nodes += 1
            self._remember(event.anchor, 1)

    def _remember(self, anchor: str | None, size: int) -> None:
        if anchor is not None:
            self._sizes[anchor] = size


def yaml_error(error: yaml.YAMLError, text: str) -> DocumentError:
    """What PyYAML found, with the line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return DocumentError(f"not valid YAML: {error}".partition("\n")[0])
    mark: Any = error.problem_mark or error.context_mark
    line = min(_line(mark), max(1, len(text.splitlines()))) if mark else 0
    return DocumentError(f"not valid YAML: {error.problem or error.context}", line)


def _line(mark: Any) -> int:
    line: int = mark.line
    return line + 1


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]  # it has a bracket, so it is no scalar or the text of one
    for _ in range(MAX_DEPTH):
        level = [item for one in level for item in _children(one)]
        if not level:
            return
    raise _too_deep()


def _check_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DocumentError("not valid JSON (half a character)") from error


def _children(value: Any) -> list[Any]:
    """The lists and mappings directly in one."""
    items: Iterable[Any] = (
        cast("dict[str, Any]", value).values() if isinstance(value, dict) else value
    )
    return [item for item in items if isinstance(item, dict | list)]


def _count(text: str | bytes, sign: str) -> int:
    return text.count(sign) if isinstance(text, str) else text.count(sign.encode())


def _has(text: str | bytes, words: str) -> bool:
    return words in text if isinstance(text, str) else words.encode() in text


def _too_deep(line: int = 0) -> DocumentError:
    return DocumentError(f"nested deeper than {MAX_DEPTH} levels", line)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
