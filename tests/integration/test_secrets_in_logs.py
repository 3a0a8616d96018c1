"""No secret in any log: commands that take one, with `-vv --log-file`."""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest

import vlatool
from tests.builders.forward_proxy import forward_proxy
from tests.builders.lerobot import lerobot_dataset
from tests.builders.serving import ORIGIN, LookPolicy, look
from tests.builders.web_server import TOKEN, WebServer, web_server
from vlatool.cli.app import run
from vlatool.evaluation import policy_runner
from vlatool.storage.hub import Repository

SECRET = "open-sesame-4711"
# Name to arguments and exit code; HOST is a web server behind a proxy with a password.
COMMANDS: Mapping[str, tuple[str, int]] = {
    "upload": ("upload data hf://datasets/lab/pick", 0),
    "download": ("download hf://datasets/lab/set -o out", 0),
    "download of a lost file": ("download hf://datasets/lab/absent -o out", 6),
    "proxy": ("download HOST/lab/set/file.bin -o out", 0),
    "s3": ("verify s3://BUCKET/absent", 3),
    "failure with the secret": ("verify hf://datasets/lab/broken", 1),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "2")
    return tmp_path


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "cache"))
    (folder / "hub/lab/set").mkdir(parents=True)
    (folder / "hub/lab/set/file.bin").write_bytes(b"content")
    with web_server(folder / "hub", needs_token=True) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def logged(arguments: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code of a command, and its log."""
    argv = [*arguments.split(), "-vv", "--log-file", "log"]
    monkeypatch.setattr("sys.argv", ["vlatool", *argv])
    return run(argv), Path("log").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_secret_of_a_command_is_in_no_log(
    name: str,
    hub: WebServer,
    s3_bucket: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, code = COMMANDS[name]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    lerobot_dataset(folder / "data", lengths=(4, 3))
    if code == 1:  # a bug whose traceback has the headers

        def fail(self: Repository) -> str:
            raise RuntimeError(f"bug: {self.token} {os.environ['AWS_SECRET_ACCESS_KEY']}")

        monkeypatch.setattr(Repository, "commit", property(fail))
    login = f"robot:{SECRET}" if name == "proxy" else ""
    with forward_proxy(login) as proxy:
        if login:
            monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", f"://{login}@"))
            monkeypatch.delenv("NO_PROXY", raising=False)
        words = arguments.replace("HOST", hub.endpoint).replace("BUCKET", s3_bucket)
        exit_code, log = logged(words, monkeypatch)
    shown = log + "".join(capsys.readouterr())
    assert exit_code == code, shown
    assert all(secret not in shown for secret in (TOKEN, SECRET)), shown


def use_server(address: str) -> None:
    """Client with the key, one without it, and one with an invalid header that has it."""
    with vlatool.connect(address, api_key=SECRET) as client:
        client.act(look(1))
    with pytest.raises(vlatool.VlatoolError):
        vlatool.connect(address, api_key=f"{SECRET}0")
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname or "", parts.port or 0)) as raw:
        raw.sendall(f"GET / HTTP/1.1\r\nAuthorization : Api-Key {SECRET}\r\n\r\n".encode())
        raw.recv(1000)


def test_key_of_a_server_is_in_no_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*arguments: Any) -> Any:
        del arguments
        return LookPolicy(), SimpleNamespace(origin=ORIGIN)

    def use() -> None:
        deadline = time.monotonic() + 20
        try:
            while not (match := re.search(r"ws://\S+\d", (folder / "log").read_text())):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            use_server(match[0])
        except BaseException as error:  # noqa: BLE001 - reported by the test
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    failures: list[BaseException] = []
    monkeypatch.setattr(policy_runner, "open_policy", opened)
    (folder / "key").write_text(SECRET)
    (folder / "log").touch()
    thread = threading.Thread(target=use)
    thread.start()
    exit_code, log = logged("serve toy --port 0 --key-file key", monkeypatch)
    thread.join()
    shown = log + "".join(capsys.readouterr())
    assert (exit_code, failures) == (0, []), shown
    assert "connection open" in log
    assert SECRET not in shown
