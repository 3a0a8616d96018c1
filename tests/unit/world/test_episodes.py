import numpy as np
import pytest

from vlatool.world.recording import expert_episode


@pytest.mark.parametrize("frames", [1, 7, 90])
def test_forced_length_is_exact(frames: int) -> None:
    episode = expert_episode(0, 0, frames)
    assert len(episode) == frames == len(episode.actions) == len(episode.desired)


def test_padding_holds_the_last_state() -> None:
    episode = expert_episode(0, 0, 90)
    np.testing.assert_array_equal(episode.states[-1], episode.states[-10])
    np.testing.assert_array_equal(episode.actions[:-1], episode.desired[1:])
    assert episode.success


def test_shared_scenes_take_turns_and_vary() -> None:
    starts = [expert_episode(0, index, shared_scenes=2).scenes[0] for index in range(0, 12, 3)]
    distances = [np.abs(starts[0].blocks - other.blocks).max() for other in starts[1:]]
    assert 0 < distances[1] <= 0.04 < distances[0]


def test_action_is_the_next_desired_pose_which_disturbances_do_not_move() -> None:
    episode = expert_episode(0, 1)
    np.testing.assert_array_equal(episode.actions[:-1], episode.desired[1:])
    assert np.abs(episode.states[1:, :3] - episode.desired[1:, :3]).max() > 0.005
    np.testing.assert_array_equal(episode.states, expert_episode(0, 1).states)
    np.testing.assert_array_equal(expert_episode(0, 1, 9).states, episode.states[:9])
    assert not np.array_equal(episode.states[0], expert_episode(5, 1).states[0])
