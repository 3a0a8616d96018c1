"""Episodes at another rate."""

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.builders.errors import fails
from vlatool.episode import Array, Episode, FrameSource, LanguageSpan, PoseGroup
from vlatool.transforms.rates import at_rate
from vlatool.transforms.rotations import rot6d_from_matrix

FRAMES = 31


class Numbers(FrameSource):
    """Images that show the number of their frame."""

    def __len__(self) -> int:
        return FRAMES

    @property
    def size(self) -> tuple[int, int]:
        return 1, 1

    def read(self, indices: Any) -> Array:
        return np.array(indices).reshape(-1, 1, 1, 1)


def fields_at(times: Array) -> dict[str, Array]:
    """Fields of a hand that moves and turns evenly, at times in seconds."""
    turns = Rotation.from_rotvec(np.outer(times, [0.2, -0.4, 0.6])).as_matrix()
    return {
        "xyz": np.outer(times, [1.0, 2, 3]),
        "rot": rot6d_from_matrix(turns),
        "command": np.outer(times + 1 / 30, [1.0, 2, 3]),  # where it is at the next frame
        "count": np.arange(len(times))[:, None],
    }


def recording() -> Episode:
    times = np.arange(FRAMES) / 30
    spans = (LanguageSpan("subtask", "go", 0, 14), LanguageSpan("subtask", "short", 16, 16))
    groups = (PoseGroup("hand", "xyz", "rot"),)
    fields = fields_at(times)
    images = {"front": Numbers()}
    return Episode("e", "", 30.0, FRAMES, images, fields, language_spans=spans, pose_groups=groups)


@pytest.mark.parametrize("fps", [10.0, 20.0, 7.0, 50.0])
def test_even_motion_is_exact_at_any_rate(fps: float) -> None:
    episode, error = at_rate(recording(), fps, ["command"])

    times = np.arange(episode.num_frames) / fps
    expected = fields_at(times)
    np.testing.assert_allclose(episode.lowdim["xyz"], expected["xyz"], atol=1e-9)
    np.testing.assert_allclose(episode.lowdim["rot"], expected["rot"], atol=1e-9)
    # The last command within a step is where the robot is at the next one.
    reached = np.outer(np.clip(times + 1 / fps, 1 / 30, FRAMES / 30), [1.0, 2, 3])
    np.testing.assert_allclose(episode.lowdim["command"], reached, atol=1e-9)
    assert episode.fps == fps
    assert error is not None
    assert error.meters < 1e-9
    assert error.degrees < 1e-5


def test_images_integers_and_spans_are_those_of_the_nearest_frame() -> None:
    episode, error = at_rate(recording(), 20.0)

    rows = [0, 2, 3, 5, 6]
    assert episode.cameras["front"].read(range(5)).ravel().tolist() == rows
    assert episode.lowdim["count"][:5].ravel().tolist() == rows
    # Frames 0 to 14 are shown by rows 0 to 9; frame 16 by no row.
    assert episode.language_spans == (LanguageSpan("subtask", "go", 0, 9),)
    assert error is not None
    assert error.image_s == pytest.approx(0.5 / 30)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_rotation_that_is_none_is_an_error_of_its_episode(value: float) -> None:
    episode = recording()
    episode.lowdim["rot"][3] = value
    with fails("data.broken"):
        at_rate(episode, 20.0)


def test_episode_that_has_the_rate_stays_as_it_is() -> None:
    episode = recording()
    assert at_rate(episode, 30.0) == (episode, None)
