"""A policy that sees one number and no image: rollouts, `load_policy`, and the contract check."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import vlatool
from tests.builders.toy_policy import (
    BROKEN_RESET,
    BROKEN_STEP,
    LINE,
    LineEnv,
    PushPolicy,
    register_line,
)
from tests.builders.toy_runs import SITE, toy_config, toys
from vlatool.episode import Observation
from vlatool.errors import DataError, PartialFailure, UsageError
from vlatool.evaluation.config import ActionMap, FieldMap, OpenLoopConfig, RolloutConfig
from vlatool.evaluation.control import ResizeLog, act_in_batches
from vlatool.evaluation.controllers import PolicyController
from vlatool.evaluation.rollouts import Rollout, RolloutPlan, rollout_report, run_rollouts
from vlatool.events import NullProgress
from vlatool.testing import check_policy
from vlatool.workflows.evaluate import open_loop, rollout
from vlatool.workflows.train import train

KEYS = {"fields": {"x": FieldMap(key="x")}, "action": [ActionMap(field="push")]}
FIRST = 100
ERRORS = {BROKEN_RESET: "ValueError: no start", BROKEN_STEP: "RuntimeError: the motor is hot"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = toys(tmp_path_factory.mktemp("toys"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / SITE))
        config = toy_config(root, "toy_push", "run", total_train_steps=2)
        train(config)
    register_line()
    return Path(config.save_path) / config.name


@pytest.fixture(autouse=True)
def site(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(run.parent / SITE))


def config(run: Path, output: Path, **keys: Any) -> RolloutConfig:
    defaults = {"checkpoint": str(run), "env": LINE, "output": str(output), "seed": FIRST}
    return RolloutConfig(**{**defaults, "episodes": 5, "batch_size": 2, **KEYS, **keys})


def test_policy_keeps_the_contract() -> None:
    check_policy(PushPolicy())


def test_rollouts_of_a_policy_without_images(run: Path, tmp_path: Path) -> None:
    result = rollout(config(run, tmp_path))
    assert (result.figures["successes"], result.figures["errors"]) == (5, 0)


def test_loaded_policy_acts_as_in_the_rollout_of_its_seed(run: Path, tmp_path: Path) -> None:
    recorded = rollout(config(run, tmp_path, episodes=1, batch_size=1)).document()["rollouts"][0]
    policy = vlatool.load_policy(run, seed=FIRST)
    assert (policy.cameras, policy.fields, policy.actions) == ((), {"x": 1}, {"push": 1})
    env = gymnasium.make(LINE)
    observation, _ = env.reset(seed=FIRST)
    info: dict[str, Any] = {}
    for step in range(recorded["steps"]):
        if step % policy.horizon == 0:
            chunk = policy.act(observation)
        else:
            policy.observe(observation)
        observation, *_, info = env.step(np.clip(chunk["push"][step % policy.horizon], -1, 1))
    assert info == recorded["info"]


def test_data_without_recorded_actions_are_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_loop(OpenLoopConfig(checkpoint=str(run), data=str(tmp_path), output=str(tmp_path)))
    assert caught.value.code == "data.no_actions"


def test_open_loop_needs_data(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'data' needs a value"):
        open_loop(OpenLoopConfig(checkpoint=str(run), output=str(tmp_path)))


# groups and batches


def rollouts(policy: Any, parallel: int, broken: Sequence[int] = (), **keys: Any) -> list[Rollout]:
    """Rollouts of seven episodes."""
    plan = RolloutPlan(range(FIRST, FIRST + 7), lambda *_: "", "success", parallel=parallel)
    settings = RolloutConfig(**{"batch_size": 4, **KEYS, **keys})
    log = ResizeLog(policy.sees, print)
    return run_rollouts(
        lambda: LineEnv(broken=broken),
        lambda env: PolicyController(policy, settings, log),
        plan,
        NullProgress(),
    )


@pytest.mark.parametrize("parallel", [2, 3, 7])
def test_rollouts_do_not_depend_on_the_size_of_their_group(parallel: int) -> None:
    expected = rollout_report(rollouts(PushPolicy(), 1))
    assert rollout_report(rollouts(PushPolicy(), parallel)) == expected


class CountingPolicy(PushPolicy):
    """Policy that records the size of each batch."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> Any:
        self.sizes.append(len(observations))
        return super().act(observations, seeds=seeds)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_batches_are_filled_up(count: int) -> None:
    policy = CountingPolicy()
    observations = [Observation(fields={"x": np.full((2, 1), float(n))}) for n in range(count)]
    chunks = act_in_batches(policy, observations, range(count), 4)
    assert policy.sizes == [4] * -(-count // 4)
    assert chunks["push"].shape == (count, 3, 1)


# errors of environments


@pytest.mark.parametrize("parallel", [1, 3])
def test_exception_of_an_environment_ends_one_episode(parallel: int) -> None:
    quiet = rollouts(PushPolicy(), parallel)
    broken = rollouts(PushPolicy(), parallel, [BROKEN_RESET, BROKEN_STEP])
    assert {row.seed: row.error for row in broken if row.error is not None} == ERRORS
    assert [row for row in broken if row.error is None] == [
        row for row in quiet if row.seed not in ERRORS
    ]
    assert [row.steps for row in broken if row.error is not None] == [0, 2]


def test_errors_are_counted_apart_in_report_text_and_record(run: Path, tmp_path: Path) -> None:
    options = {"broken": [BROKEN_RESET, BROKEN_STEP]}
    result = rollout(config(run, tmp_path, env_options=options))
    document = json.loads((tmp_path / "report.json").read_text())
    assert (document["episodes"], document["errors"], document["success_rate"]) == (3, 2, 1.0)
    assert {row["seed"]: row["error"] for row in document["rollouts"] if row["error"]} == ERRORS
    assert "ended by an error of the environment: 2" in result.text()
    assert ERRORS[BROKEN_STEP] in result.text()


def test_errors_in_all_episodes_are_no_success_rate(run: Path, tmp_path: Path) -> None:
    options = {"broken": [BROKEN_RESET]}
    with pytest.raises(PartialFailure, match="no start"):
        rollout(config(run, tmp_path, seed=BROKEN_RESET, episodes=1, env_options=options))
    assert json.loads((tmp_path / "report.json").read_text())["errors"] == 1
