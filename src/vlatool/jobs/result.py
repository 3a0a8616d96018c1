"""Results of jobs: reading them from the record, errors and text about failed items."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeVar

from vlatool.jobs.job import JobRun, failure_of


class JobResult(Protocol):
    """Result of a job: a dataclass of JSON values with the fields `output` and `status`."""

    @property
    def episodes(self) -> int:
        """Number of episodes in the output."""
        ...


Result = TypeVar("Result", bound=JobResult)


def load_result(
    result_type: type[Result], output: str, recorded: Mapping[str, Any] | None
) -> Result:
    """Result of a complete run, from its record. Keys of other versions are ignored."""
    names = {
        field.name
        for field in fields(result_type)  # pyright: ignore[reportArgumentType] - a dataclass
    }
    values = {name: value for name, value in (recorded or {}).items() if name in names}
    return result_type(**{**values, "output": output, "status": "already complete"})


def result_or_raise(result: Result, run: JobRun, item_name: str) -> Result:
    """Returns the result of a run without failures. Of several ranks, only rank 0 raises.

    Args:
        result: Result of the run.
        run: The run.
        item_name: Noun for an item, such as `episode`.

    Raises:
        PartialFailure: An item failed; the attribute `result` of the error holds the result.
        BugError: The same, and an item failed because of a bug.
    """
    problem = None if run.status == "shared" else failure_of(run, item_name, result.episodes)
    if problem is not None:
        problem.result = result
        raise problem
    return result


def failed_lines(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line of text for each failed episode."""
    return [f"failed {failure['episode']}: {failure['message']}" for failure in failures]
