"""Commands without a network: one answer within seconds, with the way out."""

import contextlib
import io
import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.codes import published_windows, write_tree_codes
from tests.builders.libero import libero_dataset
from tests.builders.s3_server import CREDENTIALS
from tests.builders.web_server import web_server
from vlatool.cli import app
from vlatool.storage import retry

pytest.importorskip("torch")  # its import counts for no command
NO_NAME, NO_ROUTE = "http://nohost.invalid", "http://255.255.255.255"
LOCATIONS = {"web": "{}/lab/x", "s3": "s3://lab/x", "hub": "hf://lab/x"}


@pytest.fixture(scope="module")
def closed_port() -> Iterator[str]:
    """URL of a port that nothing listens on."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with windows and their codes."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tree_codes(published_windows(folder / "A", 1, 3), "packed")
    libero_dataset(folder / "raw", (3,), size=8)
    return folder


@pytest.fixture
def endpoints(
    request: pytest.FixtureRequest,
    closed_port: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> str:
    """URL of a server that cannot be reached, for all schemes; 10 s take half a second."""
    monkeypatch.setenv(retry.SPEED_VARIABLE, "20")
    # A server of a test before this one may have had the port.
    monkeypatch.setattr(retry, "_answered", set[str]())
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    url = {"refused": closed_port, "name": NO_NAME, "route": NO_ROUTE}[
        getattr(request, "param", "name")
    ]
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "60")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return url


def run(*argv: str) -> tuple[int, dict[str, str], str, float]:
    """Exit code, error, stderr and seconds of a command."""
    stdout, stderr = io.StringIO(), io.StringIO()
    started = time.monotonic()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = app.run([*argv, "--json"])
    seconds = time.monotonic() - started
    return code, json.loads(stdout.getvalue())["error"], stderr.getvalue(), seconds


@pytest.mark.parametrize("scheme", LOCATIONS)
@pytest.mark.parametrize("endpoints", ["name", "refused", "route"], indirect=True)
def test_server_that_cannot_be_reached_is_an_error_at_once(endpoints: str, scheme: str) -> None:
    code, error, stderr, seconds = run("verify", LOCATIONS[scheme].format(endpoints))

    assert (code, error["code"]) == (5, "storage.unreachable")
    assert "local folder" in error["hint"]
    assert "Traceback" not in stderr
    assert seconds < 5


COMMANDS = {
    "inspect": "inspect {}",
    "preprocess": "preprocess spartan {} -o out",
    "detection": "preprocess {} -o out",
    "download": "download {} -o out",
    "split": "split {}",
    "stats compute": "stats compute {}",
    "stats merge": "stats merge {} A -o out",
    "fit-fast": "tokenizer fit-fast {} -o out",
    "build-dataset": "build-dataset {} --fast fast -o out",
    "fast": "build-dataset A --fast {} -o out",
    "codes": "build-dataset A --fast fast --tokens {} -o out",
    "export": "export {} -o out",
    "encode": "encode {} --tokenizer A",
    "tokenizer": "encode A --tokenizer {}",
    "decode": "decode {} --tokenizer A -o out",
    "tokenizer eval": "tokenizer eval {} A",
    "tokenizer export": "tokenizer export {} -o out",
    "data": "train -p diffusion-policy-tiny --data {} -o runs/a --dry-run",
    "base model": "train -p diffusion-policy-lbm1 --data A -o runs/a --dry-run "
    "--model.vision_language_backbone.hf_pretrained {}",
    "published base model": "train -p vla-diffusion-bellpepper-published --data A -o runs/a "
    "--dry-run --model.vision_language_backbone.hf_pretrained {}",
    "weights": "finetune --from {} -p diffusion-policy-tiny --data A -o runs/a",
    "init_from": "train -p diffusion-policy-tiny --init-from {} --data A -o runs/a",
    "open-loop": "eval open-loop {} A",
    "rollout": "eval rollout {} --env vlatool/PickPlace-v0",
    "config": "train -c {}/job.yaml --data A -o runs/a",
}


# The client of S3 takes most of the time of a test.
@pytest.mark.parametrize(
    ("command", "scheme"),
    [
        *itertools.product(COMMANDS, ["hub"]),
        *itertools.product(["preprocess", "tokenizer", "data", "weights"], ["web"]),
        *itertools.product(["preprocess", "tokenizer", "data", "weights", "output"], ["s3"]),
    ],
)
def test_location_of_every_kind_answers_at_once(
    command: str,
    scheme: str,
    endpoints: str,
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(inputs)
    words = COMMANDS.get(command, "preprocess libero raw -o {}").split()
    code, error, _, seconds = run(
        *(word.format(LOCATIONS[scheme].format(endpoints)) for word in words)
    )

    assert (code, error["code"]) == (5, "storage.unreachable")
    assert "local folder" in error["hint"]
    assert seconds < 30, "retries take a minute; some commands load their models first"


@pytest.mark.usefixtures("endpoints")
@pytest.mark.parametrize("command", ["preprocess", "weights", "base model", "tokenizer"])
def test_hub_that_is_switched_off_answers_at_once(
    command: str, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(inputs)

    words = COMMANDS[command].split()
    code, error, _, seconds = run(*(word.format(LOCATIONS["hub"]) for word in words))

    assert (code, error["code"]) == (6, "environment.offline")
    assert "local folder" in error["hint"]
    assert seconds < 30


@pytest.mark.parametrize("progress", ["plain", "json"])
def test_retries_are_warnings_of_the_reporter(
    progress: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "20")
    monkeypatch.setattr(retry, "_warnings", retry._Warnings())
    with web_server(tmp_path) as server:
        # Each reason is throttled, so the two runs see different ones.
        server.faults.fail_next, server.faults.status = 1, 503 if progress == "plain" else 504
        location = f"{server.endpoint}/data.jsonl"
        *_, stderr, _ = run("verify", location, "--progress", progress)

    reason = f"the server returns status {server.faults.status}"
    message = f"{location}: {reason}; attempt 1 failed, retrying for 20 s"
    first = stderr.splitlines()[0]
    if progress == "plain":
        assert first == f"warning: {message} [storage_retry]"
    else:
        event = {"event": "warning", "code": "storage_retry", "message": message}
        assert json.loads(first) == event


def checks_of_doctor(*locations: str) -> dict[str, str]:
    """Name and status of the checks of the network."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert app.run(["doctor", *locations, "--json"]) == 0
    names = ("hub", "s3", *(f"location {text}" for text in locations))
    rows = json.loads(stdout.getvalue())["checks"]
    return {row["name"]: row["status"] for row in rows if row["name"] in names}


@pytest.mark.usefixtures("endpoints")
def test_doctor_warns_of_servers_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert checks_of_doctor("s3://lab/x", str(tmp_path)) == {
        "hub": "warning",
        "s3": "warning",
        "location s3://lab/x": "warning",
        f"location {tmp_path}": "ok",
    }
    with web_server(tmp_path) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        folder = f"{server.endpoint}/folder"
        assert checks_of_doctor(folder) == dict.fromkeys(("hub", "s3", f"location {folder}"), "ok")
