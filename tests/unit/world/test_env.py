import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from vlatool.errors import UsageError
from vlatool.world.env import PickPlaceEnv
from vlatool.world.registration import ENVIRONMENT, register_environments
from vlatool.world.scene import MAX_STEPS


def test_environment_passes_the_gymnasium_checker() -> None:
    check_env(PickPlaceEnv(), skip_render_check=False)


def test_environment_is_made_by_name() -> None:
    register_environments()
    register_environments()
    observation, info = gymnasium.make(ENVIRONMENT).reset(seed=1)
    assert set(observation) == {"scene_right_0", "wrist_right_minus", "proprio", "instruction"}
    assert info["placed"] is None


def test_reset_options_decide_target_and_instruction() -> None:
    observation, info = PickPlaceEnv().reset(
        seed=0, options={"target": "green", "instruction": "fetch it"}
    )
    assert (info["target"], observation["instruction"]) == ("green", "fetch it")


def test_target_does_not_change_the_start() -> None:
    env = PickPlaceEnv()
    starts = [env.reset(seed=3, options={"target": c})[0]["proprio"] for c in ("red", "blue")]
    np.testing.assert_array_equal(*starts)


def test_unknown_target_is_rejected() -> None:
    with pytest.raises(UsageError) as caught:
        PickPlaceEnv().reset(options={"target": "pink"})
    assert caught.value.code == "usage.unknown_target"


def test_episode_without_motion_is_truncated() -> None:
    env = PickPlaceEnv()
    observation, _ = env.reset(seed=0)
    flags = [env.step(observation["proprio"])[2:4] for _ in range(MAX_STEPS)]
    assert flags[-1] == (False, True)
    assert not any(terminated or truncated for terminated, truncated in flags[:-1])
