"""Results and errors of one invocation: the only file that writes to stdout."""

import json
import math
import os
import select
import sys
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Protocol, TextIO, cast, runtime_checkable

from vlatool.cli.options import OutputOptions
from vlatool.errors import StorageError, VlatoolError


class Result(Protocol):
    """What a workflow hands back."""

    def document(self) -> dict[str, Any]:
        """JSON-able facts."""
        ...

    def text(self) -> str:
        """The same, short, for people."""
        ...


@runtime_checkable
class RowsResult(Result, Protocol):
    """A result that is a list."""

    def rows(self) -> Iterable[Mapping[str, Any]]:
        """One JSON-able mapping per row."""
        ...


class JsonResult:
    """A result that is JSON by nature, such as a schema."""

    def __init__(self, value: dict[str, Any]) -> None:
        self._value = value

    def document(self) -> dict[str, Any]:
        """The value."""
        return self._value

    def text(self) -> str:
        """The value as JSON."""
        return to_json(self._value)


def is_main_process() -> bool:
    """Whether this process speaks: in a distributed run only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def open_streams() -> None:
    """Gives a process that was started with closed streams some that lead nowhere.

    A file that is opened later would otherwise become stdout for everything that is started.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def write_stdout(text: str) -> None:
    """Writes a line or more; a reader that has gone away is no error.

    Raises:
        StorageError: What stdout leads to cannot be written.
    """
    if not is_main_process():
        return
    try:
        _write(sys.stdout, text.removesuffix("\n"))
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        raise StorageError(
            f"the standard output cannot be written: {error.strerror}",
            hint="make room, or send it elsewhere",
            code="storage.stdout",
        ) from error


def flush_stdout() -> None:
    """Leaves nothing to the flush of the interpreter, whose failure is exit 120."""
    try:
        sys.stdout.flush()
    except OSError:  # it was told when it was written
        silence(sys.stdout)


def silence(stream: TextIO) -> None:
    """Points a stream at nothing, so that the interpreter's own flush at exit stays quiet too."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_stdout_closed() -> bool:
    """Whether nobody reads the pipe that stdout is."""
    try:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


class Stderr:
    """The current stderr as a stream that never fails: nobody reads one that is full or closed."""

    def write(self, text: str) -> int:
        """Writes, if that is possible."""
        try:
            sys.stderr.write(text)
        except OSError:
            silence(sys.stderr)
        return len(text)

    def flush(self) -> None:
        """Flushes, if that is possible."""
        try:
            sys.stderr.flush()
        except OSError:
            silence(sys.stderr)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's own."""
        return getattr(sys.stderr, name)


def write_stderr(text: str) -> None:
    """Writes one line or more for people."""
    _write(cast(TextIO, Stderr()), text)


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text + "\n")
        stream.flush()
    except UnicodeEncodeError:
        stream.write(text.encode("ascii", "backslashreplace").decode() + "\n")


def write_result(result: Result, options: OutputOptions) -> None:
    """The one thing that stdout is for; a list as JSON lines when asked for."""
    if options.jsonl and isinstance(result, RowsResult):
        lines = [to_json(row, indent=None) for row in result.rows()]
        if lines:
            write_stdout("\n".join(lines))
    else:
        write_stdout(to_json(result.document()) if options.json else result.text())


def write_error(error: VlatoolError, options: OutputOptions) -> None:
    """Two lines on stderr; with `--json` also the document, which holds a partial result."""
    result: Result | None = getattr(error, "result", None)
    body = {"error": error_document(error)}
    if options.json:
        write_stdout(to_json({**(result.document() if result else {}), **body}))
    elif options.jsonl:
        rows = result.rows() if isinstance(result, RowsResult) else ()
        write_stdout("\n".join(to_json(row, indent=None) for row in (*rows, body)))
    elif result is not None:
        write_stdout(result.text())
    if options.debug:
        write_stderr("".join(traceback.format_exception(error)).rstrip())
    if options.progress == "json":
        write_stderr(to_json({"event": "error", **body["error"]}, indent=None))
        return
    write_stderr(f"error: {error.message}")
    if error.hint:
        write_stderr(f"hint: {error.hint}")


def error_document(error: VlatoolError) -> dict[str, Any]:
    """An error for programs."""
    return {
        "kind": error.kind,
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "details": error.details,
    }


def to_json(value: Any, indent: int | None = 2) -> str:
    """Strict JSON: what it has no word for becomes text, what is not finite null."""
    return json.dumps(_json_value(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_json_value(item) for item in value]
    if hasattr(value, "tolist"):
        return _json_value(value.tolist())
    return str(value)
