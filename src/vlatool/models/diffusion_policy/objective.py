"""The flow-matching loss of the policy. Source: lbm-training 2.3, 2.7.

Legend of shapes: B batch, R noise draws per observation, T action steps, A width of an action.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vlatool.models.base import Batch, Loss
from vlatool.models.diffusion_policy.flow import noised
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig


class FlowMatchingObjective:
    """Squared error of the velocity over real steps from the anchor on."""

    def __init__(self, config: DiffusionPolicyConfig, model: nn.Module) -> None:
        self.model = model
        self._repeats = config.num_action_head_repeats or 1
        self._scheduler = config.noise_scheduler

    def optimizers(self) -> Mapping[str, nn.Module]:
        """One optimizer for everything."""
        return {"main": self.model}

    def turns(self, step: int) -> Sequence[str]:
        """It moves at every step."""
        del step
        return ("main",)

    def loss(self, turn: str, batch: Batch, rng: torch.Generator) -> Loss:
        """The masked squared error, summed over real future steps and channels.

        Only real past actions are given clean. The published loss also gives padded ones, which
        are copies of the nearest real action: a policy then learns to read the end of an episode
        off its own inputs (measured: it carries the block to the bin and never lets go).
        """
        del turn
        actions: Tensor = batch["actions"].repeat_interleave(self._repeats, dim=0)
        mask: Tensor = batch["future_mask"].repeat_interleave(self._repeats, dim=0)[..., None]
        known: Tensor = batch["past_mask"].repeat_interleave(self._repeats, dim=0)[..., None]
        num_timesteps = self._scheduler.num_timesteps
        device = actions.device
        time = torch.randint(num_timesteps, (len(actions),), generator=rng).to(device)
        noise = torch.randn(actions.shape, generator=rng).to(device)
        mixed = noised(actions, noise, time, num_timesteps, self._scheduler.clamp_range)
        inputs = torch.where(known, actions, mixed)
        predicted = self.model(
            batch["images"], batch["text"], batch["proprioception"], inputs, time
        )
        error = (predicted.float() - (noise - actions)) ** 2
        total = torch.where(mask, error, torch.zeros_like(error)).sum()
        return Loss(total=total, count=mask.sum() * actions.shape[-1])
