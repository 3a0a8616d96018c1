"""Random actions as a baseline."""

import gymnasium
import numpy as np

from vlatool.evaluation.controllers import RandomController


def test_actions_of_an_episode_depend_on_its_seed_and_not_on_other_episodes() -> None:
    space = gymnasium.spaces.Box(-1, 1, (2,))
    first, second = (RandomController(space, 0) for _ in range(2))
    both, single = first.act({1: {}, 2: {}}, {}), second.act({2: {}}, {})
    assert np.array_equal(both[2], single[2])
    assert not np.array_equal(both[1], both[2])
