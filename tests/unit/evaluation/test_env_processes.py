"""Environments in other processes that do not reply."""

from functools import partial

import pytest

from tests.builders.sleeping_env import SleepingEnv
from vlatool.errors import EnvironmentProblem
from vlatool.evaluation.environments import Call, EnvProcesses, Start

TIMEOUT_S = 1.0
SLEEPY, AWAKE = 1, 2


@pytest.mark.parametrize("at", [0, 2], ids=["reset", "step"])
def test_environment_that_hangs_is_killed_and_started_again(at: int) -> None:
    make_env = partial(SleepingEnv, at, SLEEPY)
    with EnvProcesses(2, TIMEOUT_S) as environments:
        replies = environments.call([Call(0, Start(make_env, SLEEPY)), Call(1, Start(make_env, 2))])
        for _ in range(at):
            assert {slot: reply.error for slot, reply in replies.items()} == {0: None, 1: None}
            replies = environments.call([Call(0), Call(1)])
        expected = "the process of the environment did not reply within 1 s and was killed"
        assert {slot: reply.error for slot, reply in replies.items()} == {0: expected, 1: None}
        replies = environments.call([Call(0, Start(make_env, AWAKE)), Call(1)])
        assert [replies[slot].observation["steps"] for slot in (0, 1)] == [0, at + 1]


def test_process_that_makes_no_environment_is_killed() -> None:
    with EnvProcesses(2, TIMEOUT_S) as environments, pytest.raises(EnvironmentProblem) as caught:
        environments.info(_hanging_env)
    assert caught.value.code == "environment.process_failed"


def _hanging_env() -> SleepingEnv:
    env = SleepingEnv(0, SLEEPY)
    env.reset(seed=SLEEPY)
    return env
