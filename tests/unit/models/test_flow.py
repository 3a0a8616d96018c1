from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vlatool.models.diffusion_policy.config import EulerConfig, HeunConfig, NoiseConfig
from vlatool.models.diffusion_policy.noise import FlowMatching, SamplingSchedule, solve

EULER, HEUN = EulerConfig(), HeunConfig()


def full(value: float) -> Tensor:
    return torch.full((1, 2, 1), value)


def constant(value: float) -> Callable[[Tensor, int], Tensor]:
    return lambda x, time: torch.full_like(x, value)


def schedule(
    steps: int, num_timesteps: int = 1000, limit: float | None = None, **keys: Tensor
) -> SamplingSchedule:
    clamp = None if limit is None else (-limit, limit)
    noise = NoiseConfig(num_timesteps=num_timesteps, clamp_range=clamp)
    return SamplingSchedule(noise, steps, **keys)


# Source: reference/policy 2.1
@pytest.mark.parametrize(
    ("time", "limit", "expected"),
    [(0, 3, 0.5), (250, 3, 0.875), (500, 3, 1.25), (999, 3, 1.9985), (999, 1.5, 1.5)],
)
def test_noised_golden(time: int, limit: float, expected: float) -> None:
    process = FlowMatching(NoiseConfig(num_timesteps=1000, clamp_range=(-limit, limit)))
    mixed = process.noised(full(0.5), full(2.0), torch.tensor([time]))
    torch.testing.assert_close(mixed, full(expected))
    assert torch.equal(process.target(full(0.5), full(2.0)), full(1.5))


@pytest.mark.parametrize("solver", [EULER, HEUN])
@pytest.mark.parametrize("steps", [1, 3, 6, 7, 8, 10, 16, 1000])
def test_constant_velocity_is_integrated_exactly(
    steps: int, solver: EulerConfig | HeunConfig
) -> None:
    end = solve(constant(1.5), full(2.0), schedule(steps), solver)
    torch.testing.assert_close(end, full(0.5), rtol=0, atol=1e-4)


# Source: reference/policy 2.4; with n that divide K the published times were right.
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
    assert schedule(steps, num_timesteps).times() == times


@pytest.mark.parametrize(("num_timesteps", "steps"), [(100, 8), (1000, 6), (100, 1000), (1, 3)])
def test_times_are_valid_and_descend(num_timesteps: int, steps: int) -> None:
    times = schedule(steps, num_timesteps).times()
    assert len(times) == steps
    assert times[0] == num_timesteps - 1
    assert times == sorted(times, reverse=True)
    assert times[-1] >= 0


@pytest.mark.parametrize(
    ("solver", "steps", "times"),
    [
        (EULER, 6, schedule(6).times()),
        (HEUN, 1, [999]),
        (HEUN, 2, [999, 0]),
        (HEUN, 4, [999, 499, 499, 0]),
        (HEUN, 3, [999, 499, 499]),
    ],
)
def test_euler_evaluates_once_per_step_and_heun_at_both_ends_of_an_interval(
    solver: EulerConfig | HeunConfig, steps: int, times: list[int]
) -> None:
    evaluated: list[int] = []

    def network(x: Tensor, time: int) -> Tensor:
        evaluated.append(time)
        return x

    solve(network, full(1.0), schedule(steps), solver)
    assert evaluated == times


def test_heun_has_a_smaller_error_than_euler_for_equal_evaluations() -> None:
    # dx/dt = x from t = 1 back to 0 ends at x / e.
    errors = [
        abs(solve(lambda x, time: x, full(1.0), schedule(8), solver)[0, 0, 0].item() - 0.36788)
        for solver in (EULER, HEUN)
    ]
    assert errors[1] < errors[0] / 5


@pytest.mark.parametrize("solver", [EULER, HEUN])
def test_known_actions_are_set_before_and_after_each_step(
    solver: EulerConfig | HeunConfig,
) -> None:
    known = {"actions": full(7.0), "is_known": torch.tensor([[True, False]])}
    inputs: list[float] = []

    def velocity(x: Tensor, time: int) -> Tensor:
        del time
        inputs.append(x[0, 0, 0].item())
        return torch.ones_like(x)

    end = solve(velocity, full(2.0), schedule(4, 10, 3, **known), solver)
    assert inputs == [7.0] * 4
    assert end.flatten().tolist() == pytest.approx([7.0, 1.0])


@pytest.mark.parametrize("solver", [EULER, HEUN])
def test_steps_and_inputs_stay_within_the_limits_of_training(
    solver: EulerConfig | HeunConfig,
) -> None:
    inputs: list[float] = []

    def velocity(x: Tensor, time: int) -> Tensor:
        del time
        inputs.append(x.abs().max().item())
        return torch.zeros_like(x)

    solve(velocity, full(9.0), schedule(4, 10, 1.5), solver)
    assert max(inputs) == 1.5
    end = solve(constant(-100.0), full(0.0), schedule(5, 10, 1.5), solver)
    torch.testing.assert_close(end, full(1.5))
