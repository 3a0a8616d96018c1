"""Steps of the commands where one action chunk follows another, beside steps inside a chunk.

python benchmarks/seams.py RUN... [--delays 0,2,4] [--episodes 20] [--steps 8]

Each RUN is trained on the built-in world (`world-pick`), with a seed of its own; the interval is
over the runs. Prints the mean largest change of the commanded position from one step to the next,
in millimeters, the share of episodes that succeed, and the milliseconds of a plan.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from seeds import interval

import vlatool
from vlatool.evaluation.policy_runner import PolicyRunner
from vlatool.world.registration import register_environments

_POSITION = "robot__action__poses__right::panda__xyz"
_GRIPPER = "robot__action__grippers__right::panda_hand"
_STEPS = 100
_DOWN = np.array([1.0, 0.0, 0.0, 0.0, -1.0, 0.0])
_LEFT = "robot__actual__poses__left::panda__"


@dataclass
class Measured:
    """Figures of one run with one delay."""

    inside_mm: list[float] = field(default_factory=list[float])
    seam_mm: list[float] = field(default_factory=list[float])
    plan_ms: list[float] = field(default_factory=list[float])
    successes: list[float] = field(default_factory=list[float])


class TimedPolicy:
    """Policy that notes how long its plans take and in which step each is made."""

    def __init__(self, policy: PolicyRunner, measured: Measured) -> None:
        self._policy = policy
        self._measured = measured
        self.horizon = policy.horizon
        self.history = policy.history
        self.fps = policy.fps
        self.actions = policy.actions
        self.observe = policy.observe
        self.reset = policy.reset

    def act(self, observation: Mapping[str, Any], **options: int) -> dict[str, Any]:
        started = time.perf_counter()
        chunk = self._policy.act(observation, **options)
        self._measured.plan_ms.append(1000 * (time.perf_counter() - started))
        return chunk


def observation_of(seen: Mapping[str, Any], policy: PolicyRunner) -> dict[str, Any]:
    """Observation of the environment by the names of the policy."""
    hand = seen["proprio"]
    values = {
        "robot__actual__poses__right::panda__xyz": hand[:3],
        "robot__actual__grippers__right::panda_hand": hand[3:],
        "robot__actual__poses__right::panda__rot_6d": _DOWN,
        _LEFT + "xyz": np.array([-0.15, 0.75, 0.35]),
        _LEFT + "rot_6d": _DOWN,
        "robot__actual__grippers__left::panda_hand": np.array([0.1]),
        "instruction": seen["instruction"],
    }
    return {name: values[name] if name in values else seen[name] for name in policy.names}


def measure(run: str, delay: int, steps: int, episodes: int) -> Measured:
    policy = vlatool.load_policy(run)
    environment = gymnasium.make("vlatool/PickPlace-v0")
    assert isinstance(environment.action_space, gymnasium.spaces.Box)
    low = environment.action_space.low
    high = environment.action_space.high
    measured = Measured()
    timed: Any = TimedPolicy(policy, measured)
    with vlatool.ControlLoop(timed, execute_steps=steps, delay_steps=delay) as loop:
        for episode in range(episodes):
            seen, _ = environment.reset(seed=episode)
            loop.reset(episode)
            last = None
            info: dict[str, Any] = {}
            for step in range(_STEPS):
                command = loop.step(observation_of(seen, policy))
                position = command[_POSITION]
                if last is not None:
                    change = 1000 * float(np.abs(position - last).max())
                    is_seam = step > delay and (step - delay) % steps == 0
                    (measured.seam_mm if is_seam else measured.inside_mm).append(change)
                last = position
                action = np.clip(np.concatenate([position, command[_GRIPPER]]), low, high)
                seen, _, is_done, is_cut, info = environment.step(action)
                if is_done or is_cut:
                    break
            measured.successes.append(float(bool(info.get("is_success", info.get("success")))))
    return measured


def text(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{mean:7.2f} ± {half:5.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--delays", default="0,2,4")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    register_environments()
    print("delay  inside a chunk, mm  at a seam, mm    success, %        plan, ms")
    for delay in map(int, options.delays.split(",")):
        rows = [measure(run, delay, options.steps, options.episodes) for run in options.runs]
        inside = text([float(np.mean(row.inside_mm)) for row in rows])
        seam = text([float(np.mean(row.seam_mm)) for row in rows])
        success = text([100 * float(np.mean(row.successes)) for row in rows])
        plan = text([float(np.median(row.plan_ms)) for row in rows])
        print(f"{delay:5d}  {inside}    {seam}  {success}  {plan}", flush=True)


if __name__ == "__main__":
    main()
