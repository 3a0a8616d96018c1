"""Noise on actions: what the network learns to undo, and the solvers that undo it.

A forward process mixes actions `x_0` and normal noise at a noise level `t` in [0, K):

    flow matching   x_t = (1 - t/K) x_0 + (t/K) noise             the network predicts noise - x_0
    diffusion       x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise     the network predicts noise

A policy starts from noise. At each of a few noise levels, from high to low, the solver asks the
network and takes a step toward the actions. Source: reference/policy 2.1 to 2.4.

Legend of shapes: B batch, T action steps, A width of an action, K number of noise levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vlatool.models.base import Rng
from vlatool.models.diffusion_policy.config import NoiseConfig, Solver

# Constants of the cosine schedule.
# Source: Nichol and Dhariwal, Improved Denoising Diffusion, 2021, eq. 17.
_COSINE_OFFSET = 0.008
_LARGEST_BETA = 0.999
# Largest step that guidance takes, in units of the noise that is left.
_MAX_GUIDANCE = 5.0


class FlowMatching:
    """Straight lines from data to noise; the network predicts the velocity."""

    def __init__(self, config: NoiseConfig) -> None:
        self._config = config

    def noised(self, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Noised actions [B, T, A], clamped; `time`: noise levels int64 [B]."""
        share = (time.float() / self._config.num_timesteps)[:, None, None]
        return clamped(actions + share * (noise - actions), self._config)

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        """What the network has to predict, [B, T, A]."""
        return noise - actions

    def shares(self, time: int) -> tuple[float, float]:
        """Factors of actions and noise at a noise level."""
        share = time / self._config.num_timesteps
        return 1 - share, share

    def denoised(self, x: Tensor, predicted: Tensor, time: int) -> Tensor:
        """Actions [B, T, A] that follow from a prediction of the network."""
        return x - self.shares(time)[1] * predicted

    def prediction(self, x: Tensor, denoised: Tensor, time: int) -> Tensor:
        """Inverse of `denoised`; undefined at a noise level without noise."""
        return (x - denoised) / self.shares(time)[1]


class Diffusion:
    """Variance-preserving diffusion; the network predicts the noise. Methods as `FlowMatching`.

    Noised actions are not clamped, because sampling assumes the process without clamping.
    """

    def __init__(self, config: NoiseConfig) -> None:
        self._alphas_cumprod = alphas_cumprod(config).float()

    def noised(self, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        self._alphas_cumprod = self._alphas_cumprod.to(time.device)
        share = self._alphas_cumprod[time][:, None, None]
        return share.sqrt() * actions + (1 - share).sqrt() * noise

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        return noise

    def shares(self, time: int) -> tuple[float, float]:
        share = float(self._alphas_cumprod[time])
        return share**0.5, (1 - share) ** 0.5

    def denoised(self, x: Tensor, predicted: Tensor, time: int) -> Tensor:
        of_actions, of_noise = self.shares(time)
        return (x - of_noise * predicted) / of_actions

    def prediction(self, x: Tensor, denoised: Tensor, time: int) -> Tensor:
        of_actions, of_noise = self.shares(time)
        return (x - of_actions * denoised) / of_noise


ForwardProcess = FlowMatching | Diffusion


def alphas_cumprod(config: NoiseConfig) -> Tensor:
    """Fraction `a_t` of the variance of the data at each noise level, float64 [K], descending."""
    number = config.num_timesteps
    if config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, number, dtype=torch.float64)
    else:
        steps = torch.arange(number + 1, dtype=torch.float64) / number
        curve = ((steps + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2).cos() ** 2
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=_LARGEST_BETA)
    return (1 - betas).cumprod(dim=0)


def clamped(x: Tensor, config: NoiseConfig) -> Tensor:
    """The tensor within the limits of the config, if it has limits."""
    if config.clamp_range is None:
        return x
    return x.clamp(*config.clamp_range)


# Function of noised actions [B, T, A] and their noise level to a prediction [B, T, A].
Network = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class SamplingSchedule:
    """What the solvers share: noise levels, limits, and actions that are not sampled."""

    noise: NoiseConfig
    steps: int  # number of evaluations of the network
    actions: Tensor | None = None  # known actions [B, T, A]; None: no action is known
    is_known: Tensor | None = None  # bool [B, T], true for known actions
    rng: Rng | None = None  # random numbers for solvers that add noise

    def time_at(self, share: float) -> int:
        """Integer noise level at a fraction in [0, 1] of the way from data to noise."""
        return max(round(self.noise.num_timesteps * share), 1) - 1

    def times(self) -> list[int]:
        """Noise levels of evenly spaced steps, from noise to data.

        A step covers 1 / steps of the way, so that all steps cover exactly 1 for any `steps`; the
        published sampler covers 1.162 with 6 steps of 1000 noise levels.
        """
        return [self.time_at(1 - index / self.steps) for index in range(self.steps)]

    def with_known(self, x: Tensor) -> Tensor:
        """The tensor with the known actions filled in."""
        if self.actions is None or self.is_known is None:
            return x
        return torch.where(self.is_known[..., None], self.actions, x)

    def within_limits(self, x: Tensor) -> Tensor:
        """The tensor clamped, and with the known actions filled in."""
        return self.with_known(clamped(x, self.noise))


def solve(network: Network, start: Tensor, schedule: SamplingSchedule, solver: Solver) -> Tensor:
    """Actions [B, T, A] from the noise `start`."""
    if solver.type == "euler":
        return _euler(network, start, schedule)
    if solver.type == "heun":
        return _heun(network, start, schedule)
    # DDPM adds the noise of the exact posterior at every step, which is DDIM with eta 1.
    return _ddim(network, start, schedule, 1.0 if solver.type == "ddpm" else solver.eta)


def _euler(network: Network, start: Tensor, schedule: SamplingSchedule) -> Tensor:
    """Euler solver for flow matching, first order.

    The network gets clamped actions as in training, including the initial noise, which the
    published sampler does not clamp.
    """
    x = schedule.with_known(start)
    for time in schedule.times():
        velocity = network(schedule.within_limits(x), time)
        x = schedule.within_limits(x - velocity / schedule.steps)
    return x


def _heun(network: Network, start: Tensor, schedule: SamplingSchedule) -> Tensor:
    """Heun solver for flow matching, second order.

    Each interval takes two evaluations; with an odd number of steps the last one takes one.
    """
    intervals = math.ceil(schedule.steps / 2)
    x = schedule.with_known(start)
    for index in range(intervals):
        before = schedule.time_at(1 - index / intervals)
        after = schedule.time_at(1 - (index + 1) / intervals)
        first = network(schedule.within_limits(x), before)
        end = schedule.within_limits(x - first / intervals)
        if 2 * (index + 1) > schedule.steps:
            return end
        second = network(end, after)
        x = schedule.within_limits(x - (first + second) / (2 * intervals))
    return x


def _ddim(network: Network, start: Tensor, schedule: SamplingSchedule, eta: float) -> Tensor:
    """DDIM solver for diffusion, equal to DDPM with eta 1 and all steps. Clamps denoised actions.

    Source: Song et al., Denoising Diffusion Implicit Models, 2021, eq. 12 and 16.
    """
    shares = alphas_cumprod(schedule.noise).tolist()
    times = schedule.times()
    x = schedule.with_known(start)
    for index, time in enumerate(times):
        share = shares[time]
        next_share = 1.0
        if index + 1 < len(times):
            next_share = shares[times[index + 1]]
        noise = network(x, time)
        clean = clamped((x - (1 - share) ** 0.5 * noise) / share**0.5, schedule.noise)
        noise = (x - share**0.5 * clean) / (1 - share) ** 0.5
        variance = (1 - next_share) / (1 - share) * max(1 - share / next_share, 0.0)
        fresh = eta * variance**0.5
        x = next_share**0.5 * clean + max(1 - next_share - fresh**2, 0.0) ** 0.5 * noise
        if fresh > 0:
            assert schedule.rng is not None
            x = x + fresh * schedule.rng.normal(*x.shape[1:]).to(x)
        x = schedule.with_known(x)
    return x


def guided(
    network: Network, process: ForwardProcess, actions: Tensor, committed: Tensor
) -> Network:
    """A network whose chunks begin with the actions that the robot executes while it computes.

    At each noise level the denoised actions move toward the committed ones, along the gradient of
    the squared error with respect to the noised actions, so that the later actions follow. Rows do
    not influence each other. Source: Black et al., Real-Time Execution of Action Chunking Flow
    Policies, 2025 (arXiv 2506.07339), eq. 2 and 3, written for denoised actions, so that it serves
    diffusion too. Later actions of the previous chunk do not guide: see `RoboticsPolicy`.

    Args:
        network: Network to guide; differentiable.
        process: Forward process that it was trained with.
        actions: Normalized actions [B, T, A]; where none is committed, any values.
        committed: bool [B, T], true for committed actions.
    """

    def guided_network(x: Tensor, time: int) -> Tensor:
        of_actions, of_noise = process.shares(time)
        if of_noise == 0:
            return network(x, time)
        with torch.enable_grad():
            noised = x.detach().requires_grad_()
            denoised = process.denoised(noised, network(noised, time), time)
            error = committed[..., None] * (actions - denoised.detach())
            (toward,) = torch.autograd.grad(denoised, noised, error)
        largest = _MAX_GUIDANCE * of_noise
        strength = min(largest, (of_actions**2 + of_noise**2) / max(of_actions, 1e-6))
        return process.prediction(x, denoised.detach() + strength * toward, time)

    return guided_network
