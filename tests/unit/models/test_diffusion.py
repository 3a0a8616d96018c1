"""DDPM and DDIM: noise schedules, and sampling as the inverse of noising."""

import pytest
import torch
from torch import Tensor

from vlatool.models.diffusion_policy.config import DdimConfig, DdpmConfig, NoiseConfig
from vlatool.models.diffusion_policy.noise import Diffusion, SamplingSchedule, alphas_cumprod, solve
from vlatool.models.rng import SeededRng

FREE = NoiseConfig(clamp_range=None)


# Source: reference/policy 2.2
def test_alphas_cumprod_golden() -> None:
    alphas = alphas_cumprod(FREE)[[0, 99, 499, 999]].tolist()
    expected = [0.9998999834, 0.8970179558, 0.0785872340, 4.0358304e-5]
    assert alphas == pytest.approx(expected, rel=2e-6)  # they were computed in float32


def test_cosine_schedule_falls_from_one_to_zero() -> None:
    shares = alphas_cumprod(NoiseConfig(beta_schedule="cosine", num_timesteps=100))
    assert bool((shares.diff() < 0).all())
    # Half of the angle, so half of the variance, offset aside.
    assert shares[49].item() == pytest.approx(0.5, abs=0.02)
    assert shares[0].item() > 0.999
    assert shares[-1].item() < 1e-5


def test_noised_preserves_the_variance() -> None:
    process = Diffusion(FREE)
    actions, noise = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), -1.0)
    alpha = alphas_cumprod(FREE)[499].item()
    mixed = process.noised(actions, noise, torch.tensor([499])).item()
    assert mixed == pytest.approx(2 * alpha**0.5 - (1 - alpha) ** 0.5, rel=1e-5)
    assert torch.equal(process.target(actions, noise), noise)


def oracle(center: float, std: float, noise: NoiseConfig = FREE):
    """The optimal noise prediction for normally distributed actions."""
    shares = alphas_cumprod(noise)

    def network(x: Tensor, time: int) -> Tensor:
        alpha = shares[time].item()
        variance = alpha * std**2 + 1 - alpha
        return (1 - alpha) ** 0.5 * (x - alpha**0.5 * center) / variance

    return network


@pytest.mark.parametrize(
    ("solver", "steps", "schedule"),
    [
        (DdimConfig(), 50, "linear"),
        (DdimConfig(), 50, "cosine"),
        (DdimConfig(eta=0.5), 50, "linear"),
        (DdpmConfig(), 200, "linear"),
        (DdpmConfig(), 200, "cosine"),
    ],
)
def test_samples_have_mean_and_std_of_the_data(
    solver: DdimConfig | DdpmConfig, steps: int, schedule: str
) -> None:
    noise = NoiseConfig.model_validate({"clamp_range": None, "beta_schedule": schedule})
    rng = SeededRng(range(2000), torch.device("cpu"))
    start = rng.normal(1, 1)
    end = solve(oracle(0.5, 0.3, noise), start, SamplingSchedule(noise, steps, rng=rng), solver)
    assert end.mean().item() == pytest.approx(0.5, abs=0.03)
    assert end.std().item() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("steps", [1, 3, 1000, 1500])
def test_one_certain_action_is_found_in_any_number_of_steps(steps: int) -> None:
    start = torch.randn(3, 2, 1, generator=torch.Generator().manual_seed(1))
    end = solve(oracle(0.5, 0.0), start, SamplingSchedule(FREE, steps), DdimConfig())
    torch.testing.assert_close(end, torch.full_like(end, 0.5), rtol=0, atol=1e-3)


def test_denoised_actions_stay_within_the_limits() -> None:
    noise = NoiseConfig(clamp_range=(-1.0, 1.0))
    start = torch.randn(100, 1, 1, generator=torch.Generator().manual_seed(1))
    end = solve(oracle(3.0, 0.1), start, SamplingSchedule(noise, 10), DdimConfig())
    torch.testing.assert_close(end, torch.ones_like(end))


def test_fresh_noise_comes_from_the_generator_alone() -> None:
    start = torch.zeros(5, 1, 1)
    results = [
        solve(
            oracle(0.0, 1.0),
            start,
            SamplingSchedule(FREE, 5, rng=SeededRng([seed] * 5, torch.device("cpu"))),
            DdpmConfig(),
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_network_gets_known_actions_at_every_step() -> None:
    actions, is_known = torch.full((1, 2, 1), 7.0), torch.tensor([[True, False]])
    schedule = SamplingSchedule(FREE, 4, actions, is_known)
    inputs: list[float] = []

    def network(x: Tensor, time: int) -> Tensor:
        del time
        inputs.append(x[0, 0, 0].item())
        return x

    end = solve(network, torch.zeros(1, 2, 1), schedule, DdimConfig())
    assert inputs == [7.0] * 4
    assert end[0, 0, 0].item() == 7.0
