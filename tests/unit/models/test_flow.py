from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vlatool.models.diffusion_policy.objective import integrate, noised, time_grid


def full(value: float) -> Tensor:
    return torch.full((1, 2, 1), value)


def constant(value: float) -> Callable[[Tensor, int], Tensor]:
    return lambda x, time: torch.full_like(x, value)


# Source: lbm-training A.5
@pytest.mark.parametrize(
    ("time", "limit", "expected"),
    [(0, 3, 0.5), (250, 3, 0.875), (500, 3, 1.25), (999, 3, 1.9985), (999, 1.5, 1.5)],
)
def test_noised_golden(time: int, limit: float, expected: float) -> None:
    mixed = noised(full(0.5), full(2.0), torch.tensor([time]), 1000, (-limit, limit))
    torch.testing.assert_close(mixed, full(expected))


@pytest.mark.parametrize("steps", [1, 3, 6, 7, 8, 10, 16, 1000])
def test_constant_velocity_goes_the_whole_way(steps: int) -> None:
    end = integrate(constant(1.5), full(2.0), num_timesteps=1000, steps=steps, clamp=None)
    torch.testing.assert_close(end, full(0.5), rtol=0, atol=1e-4)


# Source: lbm-training A.5; with n that divide K the published times were right.
@pytest.mark.parametrize(
    ("num_timesteps", "steps", "times"),
    [
        (1000, 8, [999, 874, 749, 624, 499, 374, 249, 124]),
        (1000, 10, list(range(999, 0, -100))),
        (100, 10, list(range(99, 0, -10))),
        (1000, 1000, list(range(999, -1, -1))),
    ],
)
def test_times_are_the_published_ones(num_timesteps: int, steps: int, times: list[int]) -> None:
    assert time_grid(num_timesteps, steps) == times


@pytest.mark.parametrize(("num_timesteps", "steps"), [(100, 8), (1000, 6), (100, 1000), (1, 3)])
def test_times_are_valid_and_descend(num_timesteps: int, steps: int) -> None:
    times = time_grid(num_timesteps, steps)
    assert len(times) == steps
    assert times[0] == num_timesteps - 1
    assert times == sorted(times, reverse=True)
    assert times[-1] >= 0


def test_velocity_is_asked_once_per_step_at_the_times_of_the_grid() -> None:
    asked: list[int] = []

    def velocity(x: Tensor, time: int) -> Tensor:
        asked.append(time)
        return x

    integrate(velocity, full(1.0), num_timesteps=1000, steps=6, clamp=None)
    assert asked == time_grid(1000, 6)


def test_known_actions_are_imposed_before_and_after_each_step() -> None:
    known = (full(7.0), torch.tensor([[True, False]]))
    seen: list[float] = []

    def velocity(x: Tensor, time: int) -> Tensor:
        del time
        seen.append(x[0, 0, 0].item())
        return torch.ones_like(x)

    end = integrate(velocity, full(2.0), num_timesteps=10, steps=4, clamp=(-3, 3), known=known)
    assert seen == [7.0] * 4
    assert end.flatten().tolist() == pytest.approx([7.0, 1.0])


def test_clamp_limits_every_step() -> None:
    end = integrate(constant(-100.0), full(0.0), num_timesteps=10, steps=5, clamp=(-1.5, 1.5))
    torch.testing.assert_close(end, full(1.5))
