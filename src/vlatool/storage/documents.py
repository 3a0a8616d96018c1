"""JSON and YAML of unknown origin, read within limits on size, depth and number of values.

Without limits, a few hundred crafted bytes crash a parser or keep it busy forever.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic_core import from_json

from vlatool.storage.atomic import write_json
from vlatool.storage.byte_ranges import ByteRange, read_byte_range

MAX_BYTES = 64 * 2**20  # of one document
MAX_DEPTH = 100  # of nested lists and mappings of a YAML document; 200 of a JSON document
MAX_NODES = 1_000_000  # of a YAML document, each alias counted with the size of its anchor
MAX_LISTS = 4_000_000  # lists and mappings of a JSON document, read in about 1 s

# Python does not convert 4,301 digits, and `1:59:59` is a number to base 60, whose conversion takes
# quadratic time.
_LONG_NUMBER = re.compile(r"[-+0-9_:.]{1000,}")
_AT_LINE = re.compile(r"(.*) at line ([0-9]+) column [0-9]+", re.S)
_SAFE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader is ten times as fast
_yaml: Any = yaml  # its type annotations are incomplete


class DocumentError(ValueError):
    """Document that cannot be parsed."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason  # description such as `not valid JSON (line 3: expected value)`
        self.line = line  # line number from 1; 0 if unknown


def read_document(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Reads the text of a file."""
    data = read_byte_range(ByteRange(path, 0, max_bytes + 1))  # one request if it is remote
    if len(data) > max_bytes:
        size = path.stat().st_size
        raise DocumentError(f"its size of {_mib(size)} exceeds the limit of {_mib(max_bytes)}")
    try:
        return data.decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 text (byte {error.start})") from error


def parse_json(text: str | bytes, *, constants: Callable[[str], Any] | None = None) -> Any:
    """Parses a JSON text; `text`: text, or UTF-8 bytes; `constants`: converts `NaN`, `Infinity` and
    `-Infinity`; by default they become floats.
    """
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if data.count(b"[") + data.count(b"{") > MAX_LISTS:
        raise DocumentError(f"more than {MAX_LISTS:,} lists and mappings")
    try:
        value = from_json(data)
    except ValueError as error:
        match = _AT_LINE.fullmatch(str(error))
        reason, line = (match[1], int(match[2])) if match else (str(error), 0)
        raise DocumentError(f"not valid JSON (line {line}: {reason})", line) from error
    return value if constants is None else json.loads(data, parse_constant=constants)


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Reads a JSON file; raises as `read_document` and `parse_json`."""
    return parse_json(read_document(path, max_bytes=max_bytes))


def parse_yaml(text: str, loader: Any = _SAFE) -> Any:
    check_yaml(text)
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - one of the safe loaders
    except yaml.YAMLError as error:
        raise yaml_error(error, text) from error
    except RecursionError as error:  # an anchor that contains itself
        raise _too_deep() from error
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise DocumentError("not valid YAML: a value does not fit its type") from error


def read_yaml(path: Path, loader: Any = _SAFE) -> Any:
    """Reads a YAML file; raises as `read_document` and `parse_yaml`."""
    return parse_yaml(read_document(path), loader)


def check_yaml(text: str, max_nodes: int = MAX_NODES) -> int:
    """Number of nodes of a YAML text, each alias counted with the size of its anchor.

    Only parses events, so that neither depth nor aliases take time or memory.
    """
    nodes = 0
    open_nodes: list[tuple[str | None, int]] = []  # anchors, and the number of nodes before
    sizes: dict[str | None, int] = {}  # of anchors
    try:
        for event in _yaml.parse(text, Loader=_SAFE):
            line = _line(event.start_mark)
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                sizes[anchor] = nodes - before
            elif isinstance(event, yaml.AliasEvent):
                if any(anchor == event.anchor for anchor, _ in open_nodes):
                    raise DocumentError("an anchor contains itself", line)
                nodes += sizes.get(event.anchor, 1)
            elif isinstance(event, yaml.NodeEvent):
                if isinstance(event, yaml.CollectionStartEvent):
                    open_nodes.append((event.anchor, nodes))
                elif isinstance(event, yaml.ScalarEvent) and _LONG_NUMBER.match(event.value):
                    raise DocumentError("a number of thousands of digits", line)
                nodes += 1
                sizes[event.anchor] = 1
            if len(open_nodes) > MAX_DEPTH:
                raise _too_deep(line)
            if nodes > max_nodes:
                reason = f"with its aliases, it has more than {max_nodes:,} values"
                raise DocumentError(reason, line)
    except yaml.YAMLError as error:
        raise yaml_error(error, text) from error
    return nodes


def yaml_error(error: yaml.YAMLError, text: str) -> DocumentError:
    """Converts an error of PyYAML, with its line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return DocumentError(f"not valid YAML: {error}".partition("\n")[0])
    mark: Any = error.problem_mark or error.context_mark
    line = min(_line(mark), max(1, len(text.splitlines()))) if mark else 0
    if "nesting depth" in str(error.problem):  # libyaml reads ahead, with a limit of its own
        return _too_deep(line)
    return DocumentError(f"not valid YAML: {error.problem or error.context}", line)


def _line(mark: Any) -> int:
    line: int = mark.line
    return line + 1


def _too_deep(line: int = 0) -> DocumentError:
    return DocumentError(f"nested deeper than {MAX_DEPTH} levels", line)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


_KEY = "digest"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def write_checksummed(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON object and its digest atomically."""
    write_json(path, {**document, _KEY: _digest(document)})


def read_checksummed(path: Path) -> dict[str, Any]:
    """Reads a JSON object and checks its digest, if it has one; returns it without the digest."""
    content: object = read_json(path)
    if not isinstance(content, dict):
        raise DocumentError("no JSON object")
    document = cast("dict[str, Any]", content)
    digest = document.pop(_KEY, None)
    if digest is None:
        # The key of the digest itself may be damaged.
        is_intact = not any(isinstance(v, str) and _DIGEST.match(v) for v in document.values())
    else:
        is_intact = digest == _digest(document)
    if not is_intact:
        raise DocumentError("was changed after it was written")
    return document


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form: sorted keys, no spaces."""
    plain = json.loads(json.dumps(document))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
