"""`launch status` and `stop` on jobs as SageMaker describes them, and when it fails."""

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.surface.invoke import run_vlatool

pytest.importorskip("boto3")

JOB = {
    "TrainingJobName": "mine",
    "TrainingJobStatus": "Completed",
    "SecondaryStatus": "Completed",
    "CreationTime": 1.7e9,
    "ResourceConfig": {"InstanceCount": 2, "InstanceType": "ml.c5.xlarge", "VolumeSizeInGB": 1},
}
RUNNING = JOB | {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"}
DOWN = {"__type": "InternalFailure"}
BUSY = {"__type": "ThrottlingException", "message": "Rate exceeded"}
ENDED = {"__type": "ValidationException", "message": "the job is in status Completed"}

Answer = Mapping[str, Any]


class Service:
    """Answers of SageMaker by operation; each list is used up to its last answer."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {
            "DescribeTrainingJob": [JOB],
            "StopTrainingJob": [{}],
        }

    def answer(self, operation: str) -> tuple[int, Answer]:
        answers = self.answers[operation]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer is DOWN:
            return 500, answer
        return (400 if "__type" in answer else 200), answer


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            operation = self.headers["X-Amz-Target"].rpartition(".")[2]
            status, answer = service.answer(operation)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    yield service
    server.shutdown()
    server.server_close()


def launch(*words: str) -> tuple[int, dict[str, Any]]:
    code, text = run_vlatool("launch", *words, "--region", "us-east-1", "--json")
    return code, json.loads(text)


GROUPS = [{"InstanceGroupName": "a", "InstanceType": "ml.p4d", "InstanceCount": 3}]
DISK = {"FileSystemDataSource": {"FileSystemId": "fs-1", "DirectoryPath": "/data"}}
FOREIGN = {"InputDataConfig": [{"ChannelName": "train", "DataSource": DISK}]}


@pytest.mark.parametrize(
    ("job", "instances"),
    [
        (JOB | FOREIGN, "2 x ml.c5.xlarge"),
        (JOB | {"ResourceConfig": {"InstanceGroups": GROUPS}}, "3 x ml.p4d"),
        (JOB | {"ResourceConfig": {}}, "instances unknown"),
    ],
    ids=["data on a file system", "instance groups", "no resources"],
)
def test_jobs_of_other_programs_have_a_state(
    job: dict[str, Any], instances: str, service: Service
) -> None:
    service.answers["DescribeTrainingJob"] = [job]
    code, state = launch("status", "mine")
    assert (code, state["instances"], state["config_location"]) == (0, instances, "")


@pytest.mark.parametrize("answer", [DOWN, BUSY, {}], ids=["down", "busy", "another service"])
def test_a_service_that_does_not_answer_is_no_wrong_option(
    answer: Answer, service: Service
) -> None:
    service.answers["DescribeTrainingJob"] = [answer]
    code, document = launch("status", "mine")
    assert (code, document["error"]["code"]) == (5, "storage.unreachable")


def test_a_job_that_ends_before_it_is_stopped_is_no_error(service: Service) -> None:
    service.answers["DescribeTrainingJob"] = [RUNNING, JOB]
    service.answers["StopTrainingJob"] = [ENDED]
    code, state = launch("stop", "mine")
    assert (code, state["status"]) == (0, "Completed")
