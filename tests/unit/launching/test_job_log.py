"""Log and end of a SageMaker job, with a stand-in of the account."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from tests.builders.recording import Recorder
from vlatool.errors import EnvironmentProblem, UsageError, VlatoolError
from vlatool.launching.sagemaker import Account, follow_job


class Scripted:
    """Account with one job of two machines, each with a log of two pages.

    Attributes:
        status: Status of the job.
        error: Raised by a request for its log.
    """

    region = "us-west-2"

    def __init__(self, status: str, error: BaseException | None = None) -> None:
        self.status = status
        self.error = error

    def call(self, service: str, operation: str, **request: Any) -> Mapping[str, Any]:
        """Response of a request."""
        if service == "sagemaker":
            status = {"TrainingJobStatus": self.status, "SecondaryStatus": "Training"}
            return {**status, "CreationTime": None}
        if self.error is not None:
            raise self.error
        if operation == "describe_log_streams":
            number = 2 if "nextToken" in request else 1
            more = {"nextToken": "x"} if number == 1 else {}
            return {"logStreams": [{"logStreamName": f"pick/algo-{number}"}], **more}
        # The page between the two is empty, and the last one returns the token of the request.
        page = int(request.get("nextToken", 0))
        events = [{"message": f"step {page}\n"}] if page in (0, 2) else []
        return {"events": events, "nextForwardToken": str(min(page + 1, 3))}


def followed(account: Scripted) -> tuple[str, Recorder]:
    """Last status, and what was reported."""
    recorder = Recorder()
    return follow_job(cast(Account, account), "pick", recorder), recorder


def test_log_of_each_machine_is_shown_to_its_last_page() -> None:
    status, recorder = followed(Scripted("Completed"))
    assert status == "Completed"
    lines = [f"algo-{machine}: step {page}" for machine in (1, 2) for page in (0, 2)]
    assert recorder.notes == [*lines, "pick: Training"]


def test_log_that_may_not_be_read_is_a_warning() -> None:
    status, recorder = followed(Scripted("Completed", EnvironmentProblem("no", code="x")))
    assert (status, recorder.warnings) == (
        "Completed",
        [("job_log", "the log cannot be shown: no")],
    )
    missing = UsageError("no", code="x", details={"reason": "ResourceNotFoundException"})
    assert followed(Scripted("Completed", missing))[0] == "Completed"  # there is no log yet


def test_ctrl_c_leaves_the_job_and_says_how_to_stop_it() -> None:
    with pytest.raises(VlatoolError) as caught:
        followed(Scripted("InProgress", KeyboardInterrupt()))
    assert (caught.value.exit_code, caught.value.kind) == (130, "interrupted")
    assert "launch stop pick --region us-west-2" in caught.value.hint
