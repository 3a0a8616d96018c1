"""Forward processes: noised actions and prediction targets. Source: reference/policy 2.1, 2.2.

Legend of shapes: B batch, T action steps, A width of an action, K number of noise levels.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from vlatool.models.diffusion_policy.config import NoiseConfig

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
        """The noise."""
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
