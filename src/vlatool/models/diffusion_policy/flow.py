"""Flow matching: noising, and sampling with steps that add up to one.

Source: lbm-training 2.5, 2.8.

Legend of shapes: B batch, T action steps, A width of an action.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vlatool.models.diffusion_policy.model import DiffusionPolicy

Clamp = tuple[float, float] | None


def noised(
    actions: Tensor, noise: Tensor, time: Tensor, num_timesteps: int, clamp: Clamp
) -> Tensor:
    """`x_t = x_0 + (t / K) (noise - x_0)`, clamped; all [B, T, A], time int64 [B]."""
    share = (time.float() / num_timesteps)[:, None, None]
    return _clamped(actions + share * (noise - actions), clamp)


def time_grid(num_timesteps: int, steps: int) -> list[int]:
    """Flow times of the sampling steps, from noise to data.

    Each step moves by 1 / steps, so the whole way is exactly one whatever `steps` is; the published
    sampler goes 1.162 times the way with 6 steps of 1000.
    """
    ends = (round(num_timesteps * (1 - index / steps)) for index in range(steps))
    return [max(end, 1) - 1 for end in ends]


def integrate(
    velocity: Any,
    start: Tensor,
    *,
    num_timesteps: int,
    steps: int,
    clamp: Clamp,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Euler integration from noise `start` to data.

    Args:
        velocity: Callable of the current actions and an integer flow time.
        start: Noise [B, T, A].
        num_timesteps: K.
        steps: How many evaluations.
        clamp: Limits of the actions after each step.
        known: Actions [B, T, A] and a mask [B, T] of those that are given, not sampled.
    """
    x = _imposed(start, known)
    for time in time_grid(num_timesteps, steps):
        x = _clamped(x - velocity(x, time) / steps, clamp)
        x = _imposed(x, known)
    return x


@torch.inference_mode()
def sample_actions(
    model: "DiffusionPolicy", batch: Mapping[str, Any], *, steps: int, rng: torch.Generator
) -> Tensor:
    """Normalised actions [B, T, A]; past actions of the batch are kept where they are real."""
    scheduler = model.config.noise_scheduler
    actions: Tensor = batch["actions"]
    context = model.encode(batch["images"], batch["text"])

    def velocity(x: Tensor, time: int) -> Tensor:
        times = torch.full((len(x),), time, dtype=torch.int64, device=x.device)
        return model.velocity(context, batch["proprioception"], x, times)

    noise = torch.randn(actions.shape, generator=rng, dtype=actions.dtype).to(actions.device)
    return integrate(
        velocity,
        noise,
        num_timesteps=scheduler.num_timesteps,
        steps=steps,
        clamp=scheduler.clamp_range,
        known=(actions, batch["past_mask"]),
    )


def _clamped(x: Tensor, clamp: Clamp) -> Tensor:
    return x if clamp is None else x.clamp(*clamp)


def _imposed(x: Tensor, known: tuple[Tensor, Tensor] | None) -> Tensor:
    if known is None:
        return x
    return torch.where(known[1][..., None], known[0], x)
