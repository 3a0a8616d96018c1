"""Forward processes, and solvers from noise to actions. Source: reference/policy 2.1 to 2.4.

Legend of shapes: B batch, T action steps, A width of an action, K number of noise levels.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vlatool.config.base import ConfigModel
from vlatool.models.base import Rng
from vlatool.models.diffusion_policy.config import DdimConfig, DdpmConfig, NoiseConfig, Solver

# Constants of the cosine schedule.
# Source: Nichol and Dhariwal, Improved Denoising Diffusion, 2021, eq. 17.
_COSINE_OFFSET, _LARGEST_BETA = 0.008, 0.999

Clamp = tuple[float, float] | None


class ForwardProcess(Protocol):
    """Forward process that adds noise to actions."""

    def noised(self, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Noised actions, the input of the network; all [B, T, A], time int64 [B] in [0, K)."""
        ...

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        """Target of the network, [B, T, A]."""
        ...


class FlowMatching:
    """Straight lines from data to noise; the network predicts the velocity."""

    def __init__(self, config: NoiseConfig) -> None:
        self._num_timesteps = config.num_timesteps
        self._clamp = config.clamp_range

    def noised(self, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """`x_t = x_0 + (t / K) (noise - x_0)`, clamped."""
        share = (time.float() / self._num_timesteps)[:, None, None]
        return clamped(actions + share * (noise - actions), self._clamp)

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        """`noise - x_0`."""
        return noise - actions


class Diffusion:
    """Variance-preserving diffusion; the network predicts the noise.

    Noised actions are not clamped, because sampling assumes the process without clamping.
    """

    def __init__(self, config: NoiseConfig) -> None:
        self._alphas_cumprod = alphas_cumprod(config).float()

    def noised(self, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """`sqrt(a_t) x_0 + sqrt(1 - a_t) noise`."""
        self._alphas_cumprod = self._alphas_cumprod.to(time.device)
        share = self._alphas_cumprod[time][:, None, None]
        return share.sqrt() * actions + (1 - share).sqrt() * noise

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        del actions
        return noise


def forward_process(config: NoiseConfig, *, flow: bool) -> ForwardProcess:
    """The forward process: flow matching if `flow`, else diffusion."""
    return FlowMatching(config) if flow else Diffusion(config)


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


def clamped(x: Tensor, clamp: Clamp) -> Tensor:
    """The tensor clamped to limits; None: no limits."""
    return x if clamp is None else x.clamp(*clamp)


# Function of current actions [B, T, A] and an integer noise level.
Network = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class SamplingSchedule:
    """Settings of a sampling run."""

    noise: NoiseConfig  # the noise section
    steps: int  # number of network evaluations
    # actions [B, T, A] and a mask bool [B, T] of the known ones, which are not sampled
    known: tuple[Tensor, Tensor] | None = None
    rng: Rng | None = None  # random numbers for solvers that add noise

    def clamped(self, x: Tensor) -> Tensor:
        """The tensor clamped to the limits of the noise section."""
        return clamped(x, self.noise.clamp_range)

    def with_known_actions(self, x: Tensor) -> Tensor:
        """The tensor with the known actions filled in."""
        if self.known is None:
            return x
        return torch.where(self.known[1][..., None], self.known[0], x)

    def time_at(self, share: float) -> int:
        """Integer noise level at a fraction in [0, 1] of the way from data to noise."""
        return max(round(self.noise.num_timesteps * share), 1) - 1

    def times(self) -> list[int]:
        """Noise levels of evenly spaced steps, from noise to data.

        A step covers 1 / steps of the way, so that all steps cover exactly 1 for any `steps`; the
        published sampler covers 1.162 with 6 steps of 1000 noise levels.
        """
        return [self.time_at(1 - index / self.steps) for index in range(self.steps)]


def euler(network: Network, start: Tensor, schedule: SamplingSchedule, _: ConfigModel) -> Tensor:
    """Euler solver for flow matching, first order.

    The network gets clamped actions as in training, including the initial noise, which the
    published sampler does not clamp.
    """
    x = schedule.with_known_actions(start)
    for time in schedule.times():
        velocity = network(schedule.with_known_actions(schedule.clamped(x)), time)
        x = schedule.with_known_actions(schedule.clamped(x - velocity / schedule.steps))
    return x


def heun(network: Network, start: Tensor, schedule: SamplingSchedule, _: ConfigModel) -> Tensor:
    """Heun solver for flow matching, second order.

    Each interval takes two evaluations; with an odd number of steps the last interval takes one.
    """
    intervals = -(-schedule.steps // 2)
    x = schedule.with_known_actions(start)
    for index in range(intervals):
        before, after = 1 - index / intervals, 1 - (index + 1) / intervals
        first = network(schedule.with_known_actions(schedule.clamped(x)), schedule.time_at(before))
        end = schedule.with_known_actions(schedule.clamped(x - first / intervals))
        if 2 * (index + 1) > schedule.steps:
            return end
        second = network(end, schedule.time_at(after))
        x = schedule.with_known_actions(schedule.clamped(x - (first + second) / (2 * intervals)))
    return x


def ddim(
    network: Network, start: Tensor, schedule: SamplingSchedule, section: DdimConfig
) -> Tensor:
    """DDIM solver for diffusion, equal to DDPM with eta 1 and all steps. Clamps denoised actions.

    Source: Song et al., Denoising Diffusion Implicit Models, 2021, eq. 12 and 16.
    """
    shares = alphas_cumprod(schedule.noise).tolist()
    times = schedule.times()
    x = schedule.with_known_actions(start)
    for index, time in enumerate(times):
        share = shares[time]
        next_share = shares[times[index + 1]] if index + 1 < len(times) else 1.0
        noise = network(x, time)
        clean = schedule.clamped((x - (1 - share) ** 0.5 * noise) / share**0.5)
        noise = (x - share**0.5 * clean) / (1 - share) ** 0.5
        fresh = (
            section.eta * ((1 - next_share) / (1 - share) * max(1 - share / next_share, 0.0)) ** 0.5
        )
        x = next_share**0.5 * clean + max(1 - next_share - fresh**2, 0.0) ** 0.5 * noise
        if fresh > 0:
            assert schedule.rng is not None
            x = x + fresh * schedule.rng.normal(*x.shape[1:]).to(x)
        x = schedule.with_known_actions(x)
    return x


def ddpm(network: Network, start: Tensor, schedule: SamplingSchedule, _: DdpmConfig) -> Tensor:
    """DDPM solver for diffusion, which adds the noise of the exact posterior at every step."""
    return ddim(network, start, schedule, DdimConfig(eta=1.0))


SOLVERS: Mapping[str, Any] = {"euler": euler, "heun": heun, "ddim": ddim, "ddpm": ddpm}


def solve(network: Network, start: Tensor, schedule: SamplingSchedule, section: Solver) -> Tensor:
    """Actions [B, T, A] from noise `start`, by the solver that the `type` of a section names."""
    return SOLVERS[section.type](network, start, schedule, section)
