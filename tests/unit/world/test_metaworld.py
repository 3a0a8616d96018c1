"""Meta-World with its real physics. Source: reference/environments 1."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.builders.metaworld import simulator_or_skip
from vlatool.world.metaworld.episodes import SimulatedEpisode, simulated_episode
from vlatool.world.metaworld.simulator import (
    INSTRUCTIONS,
    Simulator,
    environment_ids,
    load_simulator,
    register_environments,
)

try:
    load_simulator()
except ModuleNotFoundError:
    pytest.skip("the extra sim is not installed", allow_module_level=True)

SIZE = (32, 32)


@pytest.fixture(scope="module")
def reach() -> Iterator[Simulator]:
    simulator = simulator_or_skip("reach-v3", SIZE)
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def recorded(reach: Simulator) -> SimulatedEpisode:
    return simulated_episode(["reach-v3", "push-v3"], SIZE, seed=1, index=0)


def started(simulator: Simulator, seed: Any) -> tuple[Any, ...]:
    """Proprioception, images and first action of the expert, which knows the goal, at a start."""
    proprio = simulator.start(np.random.default_rng(seed))
    return proprio, *simulator.images().values(), simulator.expert_action()


def test_every_task_of_metaworld_has_an_instruction_of_its_own() -> None:
    from metaworld.env_dict import ENV_CLS_MAP
    from metaworld.policies import ENV_POLICY_MAP

    assert set(INSTRUCTIONS) == set(ENV_CLS_MAP) == set(ENV_POLICY_MAP)
    assert len({*INSTRUCTIONS.values()}) == len(INSTRUCTIONS)


def test_a_start_depends_on_the_seed_only_and_its_images_show_it(reach: Simulator) -> None:
    fresh = Simulator("reach-v3", SIZE)
    expected = started(fresh, 5)
    fresh.close()
    started(reach, 6)
    for _ in range(20):
        reach.step(np.array([1.0, 1.0, -1.0, 1.0]))
    for value, other in zip(started(reach, 5), expected, strict=True):
        np.testing.assert_array_equal(value, other)


def test_the_expert_sees_objects_where_they_are_at_the_start() -> None:
    drawer = simulator_or_skip("drawer-open-v3", SIZE)
    drawer.start(np.random.default_rng(0))
    first = drawer.expert_action()
    drawer.step(np.array([0.0, 0.0, 0.0, -1.0]))
    np.testing.assert_allclose(drawer.expert_action(), first, atol=0.05)
    drawer.close()


def test_images_at_the_start_are_those_after_the_next_update(reach: Simulator) -> None:
    import mujoco

    _, *images, _ = started(reach, 9)
    mujoco.mj_forward(reach._env.model, reach._env.data)
    np.testing.assert_array_equal(images, [*reach.images().values()])
    actions = {started(reach, seed)[-1].tobytes() for seed in range(20)}
    assert len(actions) == 20  # other seeds give other starts


def test_the_camera_of_the_wrist_moves_with_the_hand(reach: Simulator) -> None:
    _, *before, _ = started(reach, 9)
    for _ in range(20):
        reach.step(np.array([1.0, 0.0, 0.0, 0.0]))
    changed = {
        name: (image != first).any(-1).mean()
        for (name, image), first in zip(reach.images().items(), before, strict=True)
    }
    assert changed["wrist"] > 0.5 > 3 * changed["front"]


def test_the_recorded_expert_succeeds_from_a_start_that_no_rollout_has(
    reach: Simulator, recorded: SimulatedEpisode
) -> None:
    assert (recorded.images["front"][0] != started(reach, 1)[1]).any()
    assert (recorded.task, recorded.success) == ("reach-v3", True)
    assert 20 < len(recorded) < 200
    assert np.abs(recorded.actions).max() <= 1.0
    assert len(recorded.images["side"]) == len(recorded.actions) == len(recorded)


def test_the_environment_passes_the_gymnasium_checker(reach: Simulator) -> None:
    env = gymnasium.make(_id("button-press-topdown-v3"), size="small").unwrapped
    check_env(env, skip_render_check=True)
    env.close()


def test_the_environment_shows_images_and_proprioception_only(reach: Simulator) -> None:
    env = gymnasium.make(_id("reach-v3"), size="small")
    seen, info = env.reset(seed=1)
    assert set(seen) == {"front", "side", "wrist", "proprio", "instruction"}
    assert (seen["proprio"].shape, seen["front"].shape) == ((4,), (64, 64, 3))
    assert (seen["instruction"], info["success"]) == ("reach the goal", False)
    assert env.render().shape == (64, 192, 3)
    env.close()


def test_a_machine_that_cannot_render_is_a_problem_of_the_environment() -> None:
    code = "from vlatool.world.metaworld.simulator import load_simulator as load; load()"
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "MUJOCO_GL": "nonsense"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert "EnvironmentProblem: MuJoCo cannot render with MUJOCO_GL=nonsense" in done.stderr


def _id(task: str) -> str:
    register_environments()
    register_environments()
    name = f"metaworld/{task}"
    assert name in environment_ids()
    return name
