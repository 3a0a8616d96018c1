"""`vlatool serve` as a process, the client package of openpi, and random bytes at its socket."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

import vlatool
from tests.builders.libero_simulator import TASKS, calls_of, write_libero
from tests.builders.serving import LookPolicy, local, look, raw_client, served
from tests.builders.training import tiny_config, world_shards
from vlatool.episode import Array, CameraView, Observation, ObservationSpec
from vlatool.models.base import Policy
from vlatool.serving.messages import pack
from vlatool.workflows.train import train

FUZZ_SECONDS = float(os.environ.get("VLATOOL_TEST_FUZZ_SECONDS", "5"))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(540 + FUZZ_SECONDS)]
OPENPI_CLIENT = """
import sys
import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

policy = WebsocketClientPolicy(host="127.0.0.1", port=int(sys.argv[1]), api_key="sesame")
assert policy.get_server_metadata()["actions"] == {"actions": 3}
image = np.load(sys.argv[2])
sent = {"observation/image": image, "observation/state": np.float32([1, 1]), "prompt": "sing"}
for number in range(3):
    reply = policy.infer(sent)
    assert reply["server_timing"]["infer_ms"] >= 0
    assert ("prev_total_ms" in reply["server_timing"]) == (number > 0)
    if number == 0:
        np.save(sys.argv[3], reply["actions"])
first = np.load(sys.argv[3])
for order in [(0, 1, 2), (2, 0, 1)]:  # an episode after another one; channels first
    policy._ws.send(policy._packer.pack({"reset": True}))
    assert "actions" not in msgpack_numpy.unpackb(policy._ws.recv())
    sent["observation/image"] = image.transpose(order)
    assert (policy.infer(sent)["actions"] == first).all()
sent["observation/image"] = np.zeros((3, 4), np.float32)
try:
    policy.infer(sent)
except RuntimeError as error:
    assert "data.bad_request" in str(error), error
else:
    raise AssertionError("no error")
"""
MAP = (
    "cameras: {front: observation/image}\ninstruction_key: prompt\n"
    "fields: {pose: {key: observation/state}}\naction: [{field: move}, {field: grip}]\n"
)


def installed_openpi_client(folder: Path) -> Path:
    """Python of an environment with the package, which needs an old numpy."""
    import venv

    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    # The client imports typing_extensions, and its metadata does not say so.
    packages = ["openpi-client", "typing_extensions"]
    words = [str(python), "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"openpi-client cannot be installed: {done.stderr[-200:]}")
    return python


def test_the_client_of_openpi_gets_the_plans_of_the_policy(tmp_path: Path) -> None:

    python = installed_openpi_client(tmp_path / "environment")
    (tmp_path / "robot.yaml").write_text(MAP)
    (tmp_path / "key").write_text("sesame")
    np.save(tmp_path / "image.npy", look(1)["front"])
    options = {"map": str(tmp_path / "robot.yaml"), "key_file": str(tmp_path / "key")}
    with served(LookPolicy(), **options) as url:
        port = urlsplit(url).port
        words = [python, "-c", OPENPI_CLIENT, str(port), tmp_path / "image.npy", tmp_path / "a.npy"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    chunk = local(LookPolicy()).act(look(1))
    np.testing.assert_array_equal(
        np.load(tmp_path / "a.npy"), np.hstack([chunk["move"], chunk["grip"]])
    )


class FirstTasksPolicy(Policy):
    """Succeeds in the tasks of the stand-in of LIBERO except the last."""

    sees = ObservationSpec(
        {"image": CameraView((0,), (8, 8)), "wrist_image": CameraView((0,), (8, 8))},
        {"state": 8},
        past=0,
        instruction=True,
    )
    actions: ClassVar[Mapping[str, int]] = {"actions": 7}
    fps, horizon = 10.0, 4

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        chunks = np.zeros((len(seeds), self.horizon, 7))
        for row, observation in enumerate(observations):
            shown = observation.images["image"][-1, 7, 7, 0]  # turned; the number of the task
            is_named = observation.instruction == f"do thing {shown}"
            chunks[row, :, 0] = float(is_named and shown < TASKS - 1)
        return {"actions": chunks}


def test_the_client_of_libero_counts_the_successes_of_each_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = installed_openpi_client(tmp_path / "environment")
    monkeypatch.setenv("PYTHONPATH", str(write_libero(tmp_path / "packages")))
    monkeypatch.setenv("LIBERO_CALLS", str(tmp_path / "calls"))
    results = tmp_path / "results.json"
    script = Path(__file__).parents[2] / "examples/libero_client.py"
    with served(FirstTasksPolicy(), map="rollout-libero") as url:
        options = ["--port", str(urlsplit(url).port), "--trials", "2", "--size", "8"]
        words = [python, script, *options, "--output", results]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = {"episodes": 2, "errors": []}
    assert json.loads(results.read_text()) == {
        f"task_{number}": {**counts, "successes": 2 * (number < TASKS - 1)}
        for number in range(TASKS)
    }
    _, calls = calls_of(tmp_path / "calls")[1]
    wait, move = ["step", *[0.0] * 6, -1.0], ["step", 1.0, *[0.0] * 6]
    trials = [["seed", 7], ["reset"], ["state", 100.0], *[wait] * 10, *[move] * 3]
    assert calls[: len(trials)] == trials


def test_a_served_run_acts_like_the_loaded_one_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    train(tiny_config(world_shards(tmp_path / "world"), tmp_path / "run", total_train_steps=2))
    policy = vlatool.load_policy(tmp_path / "run")
    words = [
        sys.executable,
        "-m",
        "vlatool",
        "serve",
        str(tmp_path / "run"),
        "--port",
        "0",
        "--json",
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = next(line for line in process.stderr if "serving at" in line)
    address = re.search(r"ws://\S+\d", line)
    assert address is not None

    rng = np.random.default_rng(0)
    seen = {
        **{name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in policy.cameras},
        **{name: rng.random(width) for name, width in policy.fields.items()},
        "instruction": "sing",
    }
    with vlatool.connect(address[0]) as client:
        for name, values in policy.act(seen).items():
            np.testing.assert_array_equal(client.act(seen)[name], values)
            client.reset()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["errors"] == 0
    assert "Traceback" not in stderr


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A message with a few changed, removed or repeated bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        start = rng.randrange(len(changed) + 1)
        changed[start : start + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
    return bytes(changed) * rng.choice([1, 1, 1, 2])


def test_a_server_survives_random_bytes() -> None:
    rng = random.Random(0)
    good = [pack(look(1)), pack({**look(2), "vlatool": {"reset": True, "executed": 1}})]
    handshake = (
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    expected = local(LookPolicy()).act(look(1))
    with served(LookPolicy(), max_request_mb=1) as url:
        address = urlsplit(url)
        place = (address.hostname or "", address.port or 0)
        end, count = time.monotonic() + FUZZ_SECONDS, 0
        while time.monotonic() < end:
            count += 1
            if rng.random() < 0.5:  # messages
                with suppress(ConnectionClosed), raw_client(url) as client:
                    for _ in range(3):
                        client.send(rng.choice([mutated(rng, rng.choice(good)), rng.randbytes(50)]))
                        client.recv(30)
            else:  # handshakes and frames
                with suppress(OSError), socket.create_connection(place, 5) as raw:
                    raw.sendall(mutated(rng, handshake) if rng.random() < 0.5 else handshake)
                    raw.sendall(rng.choice([rng.randbytes(40), b"\x82\xff" + b"\x7f" * 12]))
            if count % 50 == 0:
                with vlatool.connect(url) as client:
                    assert (client.act(look(1))["move"] == expected["move"]).all()
        assert count > FUZZ_SECONDS
