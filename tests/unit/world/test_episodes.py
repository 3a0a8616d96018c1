import numpy as np
import pytest

from vlatool.world.recording import expert_episode


def test_action_is_the_next_desired_pose() -> None:
    episode = expert_episode(0, 1)
    np.testing.assert_array_equal(episode.actions[:-1], episode.desired[1:])


def test_disturbance_moves_the_hand_and_not_the_label() -> None:
    episode = expert_episode(0, 1)
    assert np.abs(episode.states[1:, :3] - episode.desired[1:, :3]).max() > 0.005


def test_same_seed_and_number_give_the_same_episode() -> None:
    first, again = expert_episode(4, 2), expert_episode(4, 2)
    np.testing.assert_array_equal(first.states, again.states)
    assert not np.array_equal(first.states[0], expert_episode(5, 2).states[0])


@pytest.mark.parametrize("frames", [1, 7, 90])
def test_forced_length_is_exact(frames: int) -> None:
    episode = expert_episode(0, 0, frames)
    assert len(episode) == frames == len(episode.actions) == len(episode.desired)


def test_padding_holds_the_last_state() -> None:
    episode = expert_episode(0, 0, 90)
    np.testing.assert_array_equal(episode.states[-1], episode.states[-10])
    np.testing.assert_array_equal(episode.actions[:-1], episode.desired[1:])
    assert episode.success


def test_cut_episode_starts_like_the_complete_one() -> None:
    np.testing.assert_array_equal(expert_episode(0, 0, 9).states, expert_episode(0, 0).states[:9])


def test_shared_scenes_take_turns_and_vary() -> None:
    starts = [expert_episode(0, index, shared_scenes=2).scenes[0] for index in range(0, 12, 3)]
    distances = [np.abs(starts[0].blocks - other.blocks).max() for other in starts[1:]]
    assert 0 < distances[1] <= 0.04 < distances[0]
