"""Log and end of a SageMaker job."""

import re
from collections.abc import Mapping
from typing import Any

from vlatool.errors import (
    BugError,
    DataError,
    EnvironmentProblem,
    PartialFailure,
    StorageError,
    UsageError,
    VlatoolError,
)
from vlatool.events import Reporter
from vlatool.launching.aws_account import Account
from vlatool.storage.retry import ProcessClock

_LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_POLL_S = 10.0
_ENDS = {"Completed", "Failed", "Stopped"}
_EXIT_CODE = re.compile(r"exit code:? (\d+)", re.IGNORECASE)
_ERRORS: Mapping[int, type[VlatoolError]] = {
    error.exit_code: error
    for error in (
        *(BugError, UsageError, DataError, PartialFailure, StorageError, EnvironmentProblem),
    )
}


class FollowingInterrupted(VlatoolError):
    """Error for Ctrl-C while the log of a job is shown; the job continues."""

    exit_code = 130
    kind = "interrupted"


def follow_job(account: Account, name: str, reporter: Reporter) -> str:
    """Passes the log of a job to a reporter until the job ends; returns its last status."""
    log, clock, before = _Log(account, name, reporter), ProcessClock(), ""
    try:
        while True:
            job = account.call("sagemaker", "describe_training_job", TrainingJobName=name)
            log.show_new()
            status = str(job["TrainingJobStatus"])
            now = str(job.get("SecondaryStatus", status))
            if now != before:
                reporter.note(f"{name}: {now}")
                before = now
            if status in _ENDS:
                break
            clock.sleep(_POLL_S)
    except KeyboardInterrupt:
        raise FollowingInterrupted(
            f"interrupted; the job {name} continues",
            hint="the same command shows its log again; to stop it: aws sagemaker "
            f"stop-training-job --region {account.region} --training-job-name {name}",
            details={"job": name},
        ) from None
    if status != "Completed":
        raise job_error(name, job)
    return status


def job_error(name: str, job: Mapping[str, Any]) -> VlatoolError:
    """Error of a job that did not complete, with the exit code of its command if it is known."""
    status, reason = str(job["TrainingJobStatus"]), str(job.get("FailureReason", "")).strip()
    match = _EXIT_CODE.search(reason)
    error = _ERRORS.get(int(match[1]) if match else 6, EnvironmentProblem)
    return error(
        f"the job {name} is {status.lower()}: {reason or 'without a reason'}",
        hint="its log has the error; the same command then starts a job that continues the run "
        "from its last checkpoint",
        code="environment.job_failed" if status == "Failed" else "environment.job_stopped",
        details={"job": name, "status": status, "reason": reason},
    )


class _Log:
    """Log of a job; each machine of the job has its stream."""

    def __init__(self, account: Account, name: str, reporter: Reporter) -> None:
        self._account, self._name, self._reporter = account, name, reporter
        self._tokens: dict[str, str] = {}
        self._is_readable = True

    def show_new(self) -> None:
        """Reports the lines that are new since the last call; warns once if it may not read."""
        if not self._is_readable:
            return
        try:
            for stream in self._streams():
                self._show(stream)
        except UsageError as error:
            if error.details.get("reason") != "ResourceNotFoundException":  # nothing logged yet
                raise
        except EnvironmentProblem as error:
            self._is_readable = False
            self._reporter.warn("job_log", f"the log is not shown: {error.message}")

    def _streams(self) -> list[str]:
        request = {"logGroupName": _LOG_GROUP, "logStreamNamePrefix": f"{self._name}/"}
        names: list[str] = []
        while True:  # 50 at once
            page = self._account.call("logs", "describe_log_streams", **request)
            names += (stream["logStreamName"] for stream in page["logStreams"])
            if not page.get("nextToken"):
                return sorted(names)
            request["nextToken"] = page["nextToken"]

    def _show(self, stream: str) -> None:
        request = {"logGroupName": _LOG_GROUP, "logStreamName": stream, "startFromHead": True}
        while True:
            token = self._tokens.get(stream)
            more = {} if token is None else {"nextToken": token}
            page = self._account.call("logs", "get_log_events", **request, **more)
            for event in page["events"]:
                self._reporter.note(f"{stream.rpartition('/')[2]}: {event['message'].rstrip()}")
            self._tokens[stream] = page["nextForwardToken"]
            if not page["events"]:
                return
