"""Verdict of an open-loop evaluation against its baselines."""

from collections.abc import Sequence

import pytest

from vlatool.evaluation.offline import EpisodeErrors, verdicts


def episodes(differences: Sequence[float]) -> list[EpisodeErrors]:
    return [EpisodeErrors("e", 1, 0.1, {"mean_action": value}, ()) for value in differences]


@pytest.mark.parametrize(
    ("differences", "text"),
    [
        ([-0.5, -0.6, -0.7], "better than repeating the mean action: its error is 0.600 "),
        ([0.5, 0.6, 0.7], "worse than repeating the mean action: its error is 0.600 "),
        ([0.5, -0.6, 0.7], "neither better nor worse than repeating the mean action"),
        ([-0.5], "better than repeating the mean action: its error is 0.500 standard "),
    ],
)
def test_the_verdict_follows_the_interval_over_episodes(
    differences: list[float], text: str
) -> None:
    (verdict,) = verdicts(episodes(differences))
    assert verdict.text().startswith(text)


def test_the_interval_is_that_of_student() -> None:
    (verdict,) = verdicts(episodes([-0.5, -0.6, -0.7]))
    assert (verdict.low, verdict.high) == pytest.approx((-0.8484, -0.3516), abs=1e-4)
