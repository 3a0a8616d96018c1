"""Flow matching: the loss of the policy, and sampling from it. Source: lbm-training 2.3-2.8.

Legend of shapes: B batch, R noise draws per observation, T action steps, A width of an action.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, StepContext
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig

if TYPE_CHECKING:
    from vlatool.models.diffusion_policy.model import DiffusionPolicy

Clamp = tuple[float, float] | None


class FlowMatchingObjective(Objective):
    """Squared error of the velocity over real steps from the anchor on."""

    def __init__(self, config: DiffusionPolicyConfig) -> None:
        self._repeats = config.num_action_head_repeats or 1
        self._scheduler = config.noise_scheduler

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """One for everything."""
        return {"main": OptimizerSpec(("model",))}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """The masked squared error, summed over real future steps and channels.

        Only real past actions are given clean. The published loss also gives padded ones, which
        are copies of the nearest real action: a policy then learns to read the end of an episode
        off its own inputs (measured: it carries the block to the bin and never lets go).
        """
        del optimizer
        given: Tensor = batch["actions"]
        actions = given.repeat_interleave(self._repeats, dim=0)
        mask: Tensor = batch["future_mask"].repeat_interleave(self._repeats, dim=0)[..., None]
        known: Tensor = batch["past_mask"].repeat_interleave(self._repeats, dim=0)[..., None]
        num_timesteps = self._scheduler.num_timesteps
        time = ctx.draws.integers(num_timesteps, self._repeats).flatten()
        noise = ctx.draws.normal(self._repeats, *given.shape[1:]).flatten(0, 1)
        mixed = noised(actions, noise, time, num_timesteps, self._scheduler.clamp_range)
        inputs = torch.where(known, actions, mixed)
        predicted = ctx.parts["model"](
            batch["images"], batch["text"], batch["proprioception"], inputs, time
        )
        error = (predicted.float() - (noise - actions)) ** 2
        total = torch.where(mask, error, torch.zeros_like(error)).sum()
        return Loss(total=total, count=mask.sum() * actions.shape[-1])


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
