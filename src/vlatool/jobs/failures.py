"""Failed items of a run, and the errors that it ends with."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vlatool.errors import BugError, DataError, PartialFailure, StorageError, VlatoolError
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.record import record_file

_NAMED = 5


def failure_row(item: Any, error: VlatoolError, item_name: str, name: str) -> dict[str, Any]:
    """JSON object of a failed item."""
    path = getattr(item, "path", None)
    location = {} if path is None else {"path": str(path)}
    body = {"code": error.code, "message": error.message, "hint": error.hint}
    # The error of a plugin may hold anything.
    details = json.loads(json.dumps(error.details, default=str))
    return {item_name: name, **location, **body, "details": details}


def too_many_error(
    failures: Sequence[Mapping[str, Any]], item_name: str, last: VlatoolError
) -> VlatoolError:
    """Error for more failures than `--max-failures` allows."""
    is_bug = _has_bug(failures)
    return (BugError if is_bug else DataError)(
        f"{len(failures)} {item_name}s failed, more than --max-failures allows",
        hint=last.message,
        code=BugError.unexpected if is_bug else "data.too_many_failures",
        details={"failures": failures},
    )


def _has_bug(failures: Sequence[Mapping[str, Any]]) -> bool:
    return any(failure["code"] == BugError.unexpected for failure in failures)


def all_failed_error(failures: Sequence[Mapping[str, Any]], item_name: str) -> VlatoolError:
    """Error of a run in which every item failed."""
    first = failures[0]
    is_bug = _has_bug(failures)
    error_class = BugError if is_bug else StorageError if _is_storage(failures) else DataError
    code = {BugError: BugError.unexpected, StorageError: f"storage.{item_name}s_failed"}
    message = str(first["message"])
    if len(failures) > 1:
        message = f"all {item_name}s failed; the first: {message}"
    return error_class(
        message,
        hint=str(first["hint"]),
        code=code.get(error_class, "data.all_failed"),
        details={"failures": list(failures)},
    )


def _is_storage(failures: Sequence[Mapping[str, Any]]) -> bool:
    """True if nothing failed but the storage."""
    return all(str(failure["code"]).startswith("storage.") for failure in failures)


def failure_of(run: JobRun, spec: JobSpec[Any], done: int) -> VlatoolError | None:
    """Error of a finished run with failed items; None if nothing failed."""
    if not run.failures:
        return None
    count, item_name = len(run.failures), spec.item_name
    record = record_file(spec.output)
    bugs = [failure for failure in run.failures if failure["code"] == BugError.unexpected]
    names = ", ".join(str(failure[item_name]) for failure in run.failures[:_NAMED])
    message = f"{count} of {count + done} {item_name}s failed: {names}"
    message += ", ..." if count > _NAMED else ""
    details = {"failures": list(run.failures)}
    if bugs:
        return BugError(
            f"{message}; {len(bugs)} because of a bug in vlatool or in a plugin",
            hint=f"the others are written; report the tracebacks in {record}",
            code=BugError.unexpected,
            details=details,
        )
    if _is_storage(run.failures):
        return StorageError(
            message,
            hint=f"the others are written; {record} lists the reasons; run the same command again "
            "for the rest",
            code=f"storage.{item_name}s_failed",
            details=details,
        )
    return PartialFailure(
        message,
        hint=f"the others are written; {record} lists the reasons; once they are fixed, run the "
        "same command again",
        code=f"partial.{item_name}s_failed",
        details=details,
    )
