"""What the results of all jobs have in common: they are read back, and tell what failed."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

from vlatool.jobs.job import JobRun, failure_of


class JobResult(Protocol):
    """A dataclass of JSON values, besides those below with a `status`."""

    @property
    def episodes(self) -> int:
        """How many are in the output."""
        ...


Result = TypeVar("Result", bound=JobResult)


def load_result(kind: type[Result], output: str, recorded: Mapping[str, Any] | None) -> Result:
    """The result of a complete run from its record, which another version may have written."""
    names = {one.name for one in fields(kind)}  # pyright: ignore[reportArgumentType] - a dataclass
    kept = {name: value for name, value in (recorded or {}).items() if name in names}
    return kind(**{**kept, "output": output, "status": "already complete"})


def result_or_raise(result: Result, run: JobRun, item_name: str) -> Result:
    """The result of a run in which nothing failed; of several ranks the first tells what did.

    Args:
        result: What came of it.
        run: The run.
        item_name: What an item is called.

    Raises:
        PartialFailure: An item failed; the error has the result.
        BugError: The same, and one failed by a bug.
    """
    problem = None if run.status == "shared" else failure_of(run, item_name, result.episodes)
    if problem is not None:
        problem.result = result
        raise problem
    return result


def failed_lines(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for people per episode that is not in the output."""
    return [f"failed {one['episode']}: {one['message']}" for one in failures]
