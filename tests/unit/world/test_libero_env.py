"""LIBERO's protocol, on a stand-in of its package. Source: reference/environments 2."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.libero_simulator import STATES, TASKS, calls_of, write_libero
from vlatool.world.libero.env import axis_angle
from vlatool.world.libero.suites import SUITES, environment_ids, register_environments


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(write_libero(tmp_path / "packages"))
    monkeypatch.setenv("LIBERO_CALLS", str(tmp_path / "calls"))
    yield tmp_path / "calls"
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        del sys.modules[name]


def made(**options: Any) -> Any:
    register_environments()
    return gymnasium.make("libero/libero_spatial", size=8, **options)


def test_every_suite_has_an_id() -> None:
    assert environment_ids() == [f"libero/{suite}" for suite in SUITES]


def test_fifty_seeds_are_the_trials_of_a_task_and_the_next_those_of_the_next(log: Path) -> None:
    env = made()
    seeds = (0, 1, 49, 50, 50 * TASKS + 2)
    infos = [env.reset(seed=seed)[1] for seed in seeds]
    assert [(info["task"], info["trial"]) for info in infos] == [
        ("task_0", 0),
        ("task_0", 1),
        ("task_0", 49 % STATES),
        ("task_1", 0),
        ("task_0", 2),
    ]


def test_an_episode_starts_at_its_state_and_settles_for_ten_steps(log: Path) -> None:
    env = made(task=1)
    seen, info = env.reset(seed=2)
    env.close()
    ((task, calls),) = calls_of(log)
    wait = ["step", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0]
    assert (task, calls) == (1, [["seed", 7], ["reset"], ["state", 102.0], *[wait] * 10])
    assert (seen["instruction"], info["success"]) == ("do thing 1", False)
    # Images are turned, and the state is that of the data.
    assert seen["image"][7, 7].tolist() == [1, 10, 0]
    assert seen["wrist_image"][7, 7].tolist() == [2, 11, 1]
    expected = [102, 0, 0, np.pi, 0, 0, 0.04, -0.04]
    np.testing.assert_allclose(seen["state"], expected, rtol=1e-6)


def test_done_is_success_and_ends_the_episode(log: Path) -> None:
    env = made()
    env.reset(seed=0)
    action = np.array([1, 0, 0, 0, 0, 0, 1], np.float32)
    outcomes = [env.step(action)[1:] for _ in range(3)]
    assert [(reward, ended, info["success"]) for reward, ended, _, info in outcomes] == [
        (0.0, False, False),
        (0.0, False, False),
        (1.0, True, True),
    ]


def test_an_episode_is_cut_at_the_steps_of_its_suite(log: Path) -> None:
    env = made()
    env.reset(seed=0)
    cut = [env.step(np.zeros(7, np.float32))[3] for _ in range(SUITES["libero_spatial"])]
    assert cut.index(True) == len(cut) - 1 == 249


def test_a_task_that_the_suite_lacks_is_an_error(log: Path) -> None:
    with fails("usage.unknown_name"):
        made(task=TASKS)


def test_without_libero_the_error_names_the_script_for_its_own_environment() -> None:
    with fails("environment.missing_dependency") as caught:
        register_environments()
    assert "examples/libero_client.py" in caught.value.hint


def test_long_rotations_are_not_shortened() -> None:
    half = 0.75 * np.pi  # of 1.5 pi
    turned = axis_angle(np.array([np.sin(half), 0.0, 0.0, np.cos(half)]))
    np.testing.assert_allclose(turned, [1.5 * np.pi, 0.0, 0.0])
    np.testing.assert_array_equal(axis_angle(np.array([0.0, 0.0, 0.0, 1.0])), np.zeros(3))
