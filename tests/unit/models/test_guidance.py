"""Guidance of a chunk by the one that is being executed."""

import pytest
import torch
from torch import Tensor

from vlatool.models.diffusion_policy.config import EulerConfig, NoiseConfig
from vlatool.models.diffusion_policy.noise import (
    Diffusion,
    FlowMatching,
    ForwardProcess,
    Network,
    SamplingSchedule,
    guided,
    solve,
)

NOISE = NoiseConfig(num_timesteps=100, clamp_range=None)
PROCESSES = [FlowMatching(NOISE), Diffusion(NOISE)]
STEPS = 6


def network_of(process: ForwardProcess) -> Network:
    """A network whose denoised actions are half of what it gets: each step alone."""
    return lambda x, time: process.prediction(x, 0.5 * x, time)


def sampled(committed: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
    process = PROCESSES[0]
    network = guided(network_of(process), process, actions, committed)
    return solve(network, noise, SamplingSchedule(NOISE, 8), EulerConfig())


@pytest.mark.parametrize("process", PROCESSES)
def test_a_prediction_is_the_inverse_of_its_denoised_actions(process: ForwardProcess) -> None:
    x, denoised = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    predicted = process.prediction(x, denoised, 60)
    torch.testing.assert_close(process.denoised(x, predicted, 60), denoised)


@pytest.mark.parametrize("process", PROCESSES)
def test_guidance_moves_denoised_actions_toward_the_committed_ones(process: ForwardProcess) -> None:
    x = torch.ones(1, STEPS, 2)
    actions = torch.full_like(x, 3.0)
    committed = torch.tensor([[True, True, False, False, False, False]])
    network = network_of(process)
    plain = process.denoised(x, network(x, 40), 40)
    after = process.denoised(x, guided(network, process, actions, committed)(x, 40), 40)
    moved = (after - plain)[0, :, 0]
    assert (moved[:2] > 0).all()
    torch.testing.assert_close(moved[2:], torch.zeros(4), atol=1e-5, rtol=0)


def test_a_guided_chunk_does_not_depend_on_the_rows_beside_it() -> None:
    generator = torch.Generator().manual_seed(1)
    noise, actions = torch.randn(2, 3, STEPS, 2, generator=generator)
    committed = torch.arange(STEPS) < torch.tensor([[1], [2], [3]])
    together = sampled(committed, actions, noise)
    others = actions.clone()
    others[0] += 100
    others[2] *= -1
    assert torch.equal(sampled(committed, others, noise)[1], together[1])


def test_committed_actions_far_from_the_data_give_finite_chunks() -> None:
    actions = torch.full((1, STEPS, 2), 1e6)
    chunk = sampled(torch.ones(1, STEPS, dtype=torch.bool), actions, torch.zeros(1, STEPS, 2))
    assert torch.isfinite(chunk).all()
