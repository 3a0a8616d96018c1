"""Errors of sampled action chunks in physical units."""

import numpy as np
import pytest
import torch

from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.models.policy import ActionUnits

PAST, STEPS = 1, 4
STATISTICS = {
    "xyz": {"mean": [0.0, 1.0], "std": [2.0, 0.0], "min": [-4.0, 1.0], "max": [4.0, 1.0]},
    "hand": {"mean": [0.5], "std": [0.25], "min": [0.0], "max": [1.0]},
    "fixed": {"mean": [3.0], "std": [0.0], "min": [3.0], "max": [3.0]},
}


def errors(mask: torch.Tensor) -> tuple[dict[str, float], torch.Tensor]:
    """Mean errors of 3 chunks by metric, and the differences in normalized units."""
    config = RoboticsDataConfig(
        action_fields=list(STATISTICS),
        lowdim_past_timesteps=PAST,
        lowdim_future_timesteps=STEPS - 1,
    )
    generator = torch.Generator().manual_seed(0)
    recorded = torch.randn(3, PAST + STEPS, 4, generator=generator)
    sampled = torch.randn(3, PAST + STEPS, 4, generator=generator)
    units = ActionUnits(config, Normalizer(config, STATISTICS, PAST))
    sums = units.errors(sampled, recorded, mask)
    means = {name: float(total / count) for name, (total, count) in sums.items()}
    return means, (sampled - recorded).abs()


def test_errors_are_in_physical_units_at_three_steps() -> None:
    means, differences = errors(torch.ones(3, PAST + STEPS, dtype=torch.bool))

    for label, step in {"first": 0, "middle": 2, "last": 3}.items():
        by_hand = differences[:, PAST + step].mean(0).tolist()
        assert means[f"sampled_mae/xyz/{label}"] == pytest.approx(2.0 * by_hand[0])
        assert means[f"sampled_mae/hand/{label}"] == pytest.approx(0.25 * by_hand[2])
    assert {name.split("/")[1] for name in means} == {"xyz", "hand"}  # the other never changes


def test_padded_steps_are_not_counted() -> None:
    mask = torch.ones(3, PAST + STEPS, dtype=torch.bool)
    mask[1:, -1] = False

    means, differences = errors(mask)

    assert means["sampled_mae/hand/last"] == pytest.approx(0.25 * differences[0, -1, 2].item())
    assert np.isfinite(list(means.values())).all()
