"""Comparisons of episodes with known nearest ones."""

import numpy as np
import pytest

from vlatool.transforms import neighbors
from vlatool.transforms.episode_images import grid, image_figures, mean_images, repeats


def test_values_at_evenly_spaced_times() -> None:
    values = np.array([[0.0], [2.0], [4.0]])
    assert neighbors.resampled(values, 5)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert neighbors.resampled(values[:1], 3)[:, 0].tolist() == [0, 0, 0]


def test_a_score_at_like_length_removes_what_length_explains() -> None:
    lengths = np.arange(1, 201)
    values = 3.0 * lengths
    values[100] += 100
    scores = neighbors.at_like_length(values, lengths)
    # Among the 40 nearest lengths the median is about its own value, and the deviations 3 x 10.
    assert scores[100] == pytest.approx(100 / (1.4826 * 30), rel=0.05)
    assert np.abs(np.delete(scores, 100)).max() < 2
    assert neighbors.at_like_length(np.ones(30), np.arange(30)).tolist() == [0] * 30
    assert np.isnan(neighbors.at_like_length(np.array([np.nan, 1.0]), np.array([1, 2]))[0])


def test_a_value_unlike_equal_ones_is_infinitely_far() -> None:
    assert neighbors.robust_score(2.0, np.array([1.0, 1.0, 1.0])) == np.inf
    assert neighbors.robust_score(0.0, np.array([1.0, 1.0, 1.0])) == -np.inf


def test_the_trajectory_of_another_task_is_far() -> None:
    rng = np.random.default_rng(0)
    paths = rng.normal(0, 0.1, (20, 6))
    paths[3] += 5
    distances = neighbors.distances(paths, ["a"] * 20)
    assert distances.argmax() == 3
    assert np.isnan(neighbors.distances(paths[:1], ["a"])).all()


def test_a_copy_has_no_distance_to_its_original() -> None:
    features = np.random.default_rng(0).normal(size=(10, 4))
    features[7] = features[2]
    distances = neighbors.distances(features, [""] * 10, 1)
    assert [*np.flatnonzero(distances == 0)] == [2, 7]


def test_an_end_among_those_of_another_instruction() -> None:
    rng = np.random.default_rng(0)
    groups = ["left"] * 10 + ["right"] * 10
    # The first number tells the instructions apart, the second varies much more and does not.
    last = np.stack([np.repeat([0.0, 1.0], 10), rng.normal(0, 50, 20)], axis=1)
    last[:, 0] += rng.normal(0, 0.05, 20)
    last[4, 0] = 1.0
    ratios = neighbors.other_group_ratios(last, groups)
    assert [*np.flatnonzero(ratios > 1)] == [4]
    assert np.isnan(neighbors.other_group_ratios(last, ["same"] * 20)).all()


def test_actions_unlike_those_at_like_states_disagree() -> None:
    states = np.tile(np.arange(8.0)[None, :, None], (6, 1, 1))
    actions = states.copy()
    actions[2] = -actions[2]
    disagreements = neighbors.disagreements(states, actions, ["a"] * 6)
    assert disagreements.argmax() == 2
    assert np.isnan(neighbors.disagreements(states[:1], actions[:1], ["a"])).all()


def test_exchanged_cameras_look_like_each_other() -> None:
    means = np.random.default_rng(0).normal(0, 0.1, (9, 2, 5))
    means[:, 1] += 3
    means[5] = means[5, ::-1]
    assert [*np.flatnonzero(neighbors.swapped_ratios(means) > 1)] == [5]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (80, 40, 48, 3)).astype(np.uint8)


def test_images_that_repeat_and_images_of_one_color(images: np.ndarray) -> None:
    images[40:60] = images[40]
    images[70:] = 7
    states = np.random.default_rng(0).normal(size=(80, 2)).cumsum(axis=0)
    grids = grid(images)
    repeated = repeats(images, grids)
    assert repeated.sum() == 19 + 9
    figures = image_figures(grids, repeated, states)
    assert figures["blank_share"] == 10 / 80
    assert 0.2 < figures["frozen_share"] < 0.4
    assert "frozen_share" not in image_figures(grids, repeated, states[:, :0])


def test_a_change_between_the_points_of_the_grid_is_one(images: np.ndarray) -> None:
    images[:] = images[0]
    images[1::2, 0, 0] ^= 128
    assert not repeats(images, grid(images)).any()


def test_mean_images_have_the_mean_of_all_and_of_the_end(images: np.ndarray) -> None:
    images[:] = 10
    images[64:] = 60
    mean, end = mean_images(grid(images))
    assert mean.shape == end.shape == (8 * 8 * 3,)
    assert mean == pytest.approx(20)
    assert end == pytest.approx(60)
