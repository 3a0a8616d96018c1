"""`examples/vla_eval_server.py` against the client of vla-eval."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlatool
from tests.builders.training import CAMERAS, HAND, ROT, XYZ

anyio = pytest.importorskip("anyio")
connection = pytest.importorskip("vla_eval.connection")
serving = pytest.importorskip("vla_eval.model_servers.serve")

SCRIPT = Path(__file__).parents[2] / "examples/vla_eval_server.py"
STEPS = 6


def observation(number: int) -> dict[str, Any]:
    """Observation as benchmarks of vla-eval send it."""
    rng = np.random.default_rng(number)
    images = {f"view_{name}": rng.integers(0, 256, (64, 64, 3), np.uint8) for name in CAMERAS}
    state = np.concatenate([rng.random(3), [0.04], [1.0, 0.0, 0.0, 0.0, -1.0, 0.0]])
    return {"images": images, "state": state, "task_description": "sing"}


def as_policy_sees(sent: dict[str, Any]) -> dict[str, Any]:
    state = sent["state"]
    images = {name: sent["images"][f"view_{name}"] for name in CAMERAS}
    return {**images, XYZ: state[:3], HAND: state[3:4], ROT: state[4:], "instruction": "sing"}


async def disturb(port: int) -> None:
    """Another session tries an episode meanwhile: it is refused."""
    async with connection.Connection(f"ws://127.0.0.1:{port}") as other:
        await other.start_episode({"task": {"name": "dance"}})
        with pytest.raises(RuntimeError, match="another session"):
            await other.act(observation(99))
        await other.end_episode({"success": False})


async def episodes(server: Any) -> list[list[np.ndarray]]:
    """Actions of two episodes."""
    actions: list[list[np.ndarray]] = []
    async with anyio.create_task_group() as group:
        port = await group.start(serving.serve_async, server, "127.0.0.1", 0)
        async with connection.Connection(f"ws://127.0.0.1:{port}") as client:
            for first in (0, STEPS):
                await client.start_episode({"task": {"name": "sing"}})
                seen = [observation(number) for number in range(first, first + STEPS)]
                taken = [(await client.act(seen[0]))["actions"]]
                await disturb(port)
                taken += [(await client.act(each))["actions"] for each in seen[1:]]
                actions.append(taken)
                await client.end_episode({"success": True})
        group.cancel_scope.cancel()
    return actions


def test_actions_over_the_socket_are_those_of_load_policy(trained_policy: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    arguments = [str(trained_policy), "--execute-steps", "3"]
    arguments += [word for name in CAMERAS for word in ("--camera", f"{name}=view_{name}")]
    for name, part in ((XYZ, "state[0:3]"), (HAND, "state[3:4]"), (ROT, "state[4:]")):
        arguments += ["--field", f"{name}={part}"]
    options = script["parse"](arguments)
    names = dict(options.camera), dict(options.field)
    server = script["VlatoolServer"](options.checkpoint, *names, options.action, 3)
    with pytest.raises(ValueError, match="the policy has no 'nope'; it has"):
        script["VlatoolServer"](options.checkpoint, *names, ["nope"], 3)
    with pytest.raises(ValueError, match="no 'grip' in the observation, which has"):
        script["part_of"](observation(0), "grip[0:1]")

    sent = anyio.run(episodes, server)

    for episode, actions in enumerate(sent):
        loop = vlatool.ControlLoop(vlatool.load_policy(trained_policy), execute_steps=3)
        loop.reset(episode)
        for step, action in enumerate(actions):
            commands = loop.step(as_policy_sees(observation(episode * STEPS + step)))
            expected = np.concatenate([*commands.values()]).astype(np.float32)
            np.testing.assert_array_equal(action, expected)
