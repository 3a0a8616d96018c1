"""The line `next:` of every command works as it is printed."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BUDGET = ("--total-train-steps", "2")
MOST_COMMANDS = 8
SECONDS = 200


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def run(words: Sequence[str], folder: Path) -> str:
    """Output of a command; one that does not end by itself is stopped once it listens."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vlatool", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if "--port" in words:
        wait_for_port(int(words[-1]), process)
        process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, f"{shlex.join(words)}\n{output}\n{errors}"
    return output


def wait_for_port(port: int, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)


def next_of(output: str) -> list[str]:
    """Words of the printed command, without the program; empty if there is none."""
    for line in output.splitlines():
        if line.startswith("next: "):
            return shlex.split(line.removeprefix("next: "))[1:]
    return []


def follow(words: Sequence[str], folder: Path) -> list[str]:
    """Runs a command and those that follow it; returns their first words."""
    names: list[str] = []
    while words and len(names) < MOST_COMMANDS:
        names.append(" ".join(word for word in words[:2] if word.isalpha() and word.islower()))
        budget: Sequence[str] = ()
        if "train" in words[:2]:
            budget = BUDGET
        elif words[0] == "serve":
            budget = ("--port", free_port())
        words = next_of(run([*words, *budget], folder))
    return names


@pytest.mark.parametrize("name", ["folder", "lerobot", "hdf5", "spartan"])
def test_from_recordings_to_a_server(name: str, tmp_path: Path) -> None:
    steps = follow(["sample", name, "my demos", "--episodes", "3"], tmp_path)
    if name == "folder":  # which suggests to look at the recordings first
        steps += follow(["preprocess", "folder", "my demos", "--output", "data"], tmp_path)
    assert steps[-1] == "serve"


def test_from_libero_to_a_tokenizer(tmp_path: Path) -> None:
    steps = follow(["sample", "libero", "demos", "--episodes", "3"], tmp_path)
    assert "tokenizer train" in steps
    assert steps[-1] == "tokenizer eval"


def test_commands_beside_the_road(tmp_path: Path) -> None:
    run(["sample", "lerobot", "demos", "--episodes", "3"], tmp_path)
    for words in (
        ["curate", "demos", "--output", "kept"],
        ["compose", "--tiny", "--output", "weights"],
        ["preprocess", "lerobot", "demos", "--sink", "lerobot", "--output", "copy"],
        ["preprocess", "lerobot", "demos", "--action-fields", "none", "--output", "no actions"],
        ["repair", "demos", "--output", "healthy"],
        ["inspect", "demos", "--propose", "map.yaml"],
    ):
        following = next_of(run(words, tmp_path))
        if following:
            run(following, tmp_path)
