import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.builders.errors import fails
from vlatool.world.env import LiberoPickPlaceEnv, PickPlaceEnv
from vlatool.world.recording import expert_action, expert_episode
from vlatool.world.registration import ENVIRONMENT, LIBERO_ENVIRONMENT, register_environments
from vlatool.world.scene import COLORS, MAX_STEPS, libero_actions, libero_states, random_scene, step


@pytest.mark.parametrize("cls", [PickPlaceEnv, LiberoPickPlaceEnv])
def test_environment_passes_the_gymnasium_checker(cls: type[PickPlaceEnv]) -> None:
    check_env(cls(), skip_render_check=False)


def test_environment_is_made_by_name() -> None:
    register_environments()
    register_environments()
    observation, info = gymnasium.make(ENVIRONMENT).reset(seed=1)
    assert set(observation) == {"scene_right_0", "wrist_right_minus", "proprio", "instruction"}
    assert info["placed"] is None


def test_images_that_nobody_needs_are_black_and_change_nothing_else() -> None:
    drawn, black = PickPlaceEnv(), PickPlaceEnv()
    black.draws_images = False
    seen, unseen = (env.reset(seed=4)[0] for env in (drawn, black))
    assert not unseen["scene_right_0"].any()
    assert seen["scene_right_0"].any()
    np.testing.assert_array_equal(unseen["proprio"], seen["proprio"])


def test_actions_of_libero_move_the_hand_as_the_recorded_ones() -> None:
    register_environments()
    env = gymnasium.make(LIBERO_ENVIRONMENT)
    seen, info = env.reset(seed=5)
    assert set(seen) == {"image", "wrist_image", "state", "instruction"}
    scene, target = random_scene(np.random.default_rng(5)), COLORS.index(info["target"])
    while not info["success"]:
        command = expert_action(scene, target)
        action = libero_actions(command[None], scene.gripper[None])[0]
        scene = step(scene, command)
        seen, _, _, truncated, info = env.step(action)
        np.testing.assert_allclose(seen["state"], libero_states(scene.gripper[None])[0], atol=1e-5)
        assert not truncated


def test_reset_options_decide_target_and_instruction() -> None:
    env = PickPlaceEnv()
    options = {"target": "green", "instruction": "fetch it"}
    observation, info = env.reset(seed=3, options=options)
    assert (info["target"], observation["instruction"]) == ("green", "fetch it")
    other = env.reset(seed=3, options={"target": "blue"})[0]
    np.testing.assert_array_equal(observation["proprio"], other["proprio"])
    with fails("usage.unknown_name"):
        env.reset(options={"target": "pink"})


def test_episode_without_motion_is_truncated() -> None:
    env = PickPlaceEnv()
    observation, _ = env.reset(seed=0)
    flags = [env.step(observation["proprio"])[2:4] for _ in range(MAX_STEPS)]
    assert flags[-1] == (False, True)
    assert not any(terminated or truncated for terminated, truncated in flags[:-1])


def test_shared_scenes_are_those_of_the_samples() -> None:
    starts = [LiberoPickPlaceEnv(scenes=1).reset(seed=seed)[0]["state"] for seed in (0, 1)]
    recorded = libero_states(expert_episode(0, 0, 1, shared_scenes=1).states)[0]
    assert 0 < np.abs(starts[0] - starts[1]).max() <= 0.04
    np.testing.assert_allclose(starts[0][:2], recorded[:2], atol=0.04)
