"""Prints results and errors. No other module writes to stdout."""

import json
import math
import os
import select
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

from vlatool.cli.options import OutputOptions
from vlatool.credentials import without_credentials
from vlatool.errors import StorageError, VlatoolError
from vlatool.results import MERGED, Result, one_line, printable

# Where a launcher of several processes reads the error of each.
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


@dataclass(frozen=True)
class JsonResult(Result):
    """Result that is printed as JSON in any case, such as a schema."""

    value: Mapping[str, Any] = field(metadata=MERGED)

    def lines(self) -> list[str]:
        return [to_json(self.value)]


def is_main_process() -> bool:
    """True if this process may print: in a distributed run, only rank 0."""
    return os.environ.get("RANK", "0") == "0"


def open_streams() -> None:
    """Opens `/dev/null` for closed standard streams; otherwise a file could become stdout of
    children.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def write_stdout(text: str) -> None:
    """Writes one or more lines. A reader that has closed the pipe is not an error."""
    if not is_main_process():
        return
    try:
        _write(sys.stdout, text.removesuffix("\n"))
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        raise StorageError(
            f"cannot write to the standard output: {error.strerror}",
            hint="free some space, or redirect the output elsewhere",
            code="storage.write",
        ) from error


def flush_stdout() -> None:
    """Flushes stdout now: at exit, a failure would give the exit code 120."""
    try:
        sys.stdout.flush()
    except OSError:  # it was reported when it was written
        silence(sys.stdout)


def silence(stream: TextIO) -> None:
    """Redirects a stream to `/dev/null`, so that the flush at exit cannot fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_stdout_closed() -> bool:
    """True if stdout is a pipe that its reader has closed."""
    try:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


class Stderr:
    """Stream that writes to the current stderr and ignores failures (closed pipe, full disk)."""

    def write(self, text: str) -> int:
        """Writes if possible; returns the length of the text."""
        try:
            sys.stderr.write(text)
        except OSError:
            silence(sys.stderr)
        return len(text)

    def flush(self) -> None:
        """Flushes if possible."""
        try:
            sys.stderr.flush()
        except OSError:
            silence(sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def write_stderr(text: str) -> None:
    _write(cast(TextIO, Stderr()), without_credentials(text))


def _write(stream: TextIO, text: str) -> None:
    text = printable(text)
    try:
        stream.write(text + "\n")
        stream.flush()
    except UnicodeEncodeError:
        stream.write(text.encode("ascii", "backslashreplace").decode() + "\n")


def write_result(result: Result, options: OutputOptions) -> None:
    """Writes the result to stdout: text, JSON, or JSON lines."""
    if options.jsonl and result.rows_key:
        lines = [to_json(row, indent=None) for row in result.rows()]
        if lines:
            write_stdout("\n".join(lines))
        return
    write_stdout(to_json(result.document()) if options.json else result.text())


def write_error(error: VlatoolError, options: OutputOptions) -> None:
    """Writes error and hint to stderr; with `--json` also a document with the partial result."""
    result = None
    if isinstance(error.result, Result):
        result = error.result
    body = {"error": error_document(error)}
    if options.json:
        write_stdout(to_json({**(result.document() if result else {}), **body}))
    elif options.jsonl:
        rows = () if result is None else result.rows()
        write_stdout("\n".join(to_json(row, indent=None) for row in (*rows, body)))
    elif result is not None:
        write_stdout(result.text())
    if options.debug:
        write_stderr("".join(traceback.format_exception(error)).rstrip())
    if options.progress == "json":
        write_stderr(to_json({"event": "error", **body["error"]}, indent=None))
        return
    write_stderr(f"error: {one_line(error.message)}")
    if error.hint:
        write_stderr(f"hint: {error.hint}")


def write_error_file(error: VlatoolError, file: Path) -> None:
    """Writes the error of a rank; torchrun reads `message` and `timestamp`, in seconds."""
    from vlatool.storage.atomic import write_json

    document = {**error_document(error), "timestamp": int(time.time())}
    write_json(file, json.loads(to_json(document)))


def error_document(error: VlatoolError) -> dict[str, Any]:
    return {
        "kind": error.kind,
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "details": error.details,
    }


def to_json(value: Any, indent: int | None = 2) -> str:
    """Strict JSON: values of other types become text, NaN and infinity become null."""
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
