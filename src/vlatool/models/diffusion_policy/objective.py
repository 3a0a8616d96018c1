"""The loss of the policy, and sampling from it. Source: reference/policy 1.2, 1.3, 2.

Legend of shapes: B batch, R noise draws per observation, T action steps, A width of an action.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, StepContext
from vlatool.models.diffusion_policy.loss_breakdown import LossBreakdown
from vlatool.models.diffusion_policy.noise import forward_process
from vlatool.models.diffusion_policy.solvers import SamplingSchedule, solve
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig

if TYPE_CHECKING:
    from vlatool.models.diffusion_policy.model import DiffusionPolicy


class DenoisingObjective(Objective):
    """Squared error of what is predicted, over real steps from the anchor on."""

    def __init__(self, config: DiffusionPolicyConfig, breakdown: LossBreakdown | None = None) -> None:
        self._shares = breakdown or LossBreakdown()
        self._rates = {f"{name}.": factor for name, factor in config.lr_factors.items()}
        self._repeats = config.num_action_head_repeats or 1
        self._num_timesteps = config.noise_scheduler.num_timesteps
        self._process = forward_process(config.noise_scheduler, flow=config.is_flow)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """One for everything."""
        return {"main": OptimizerSpec(("model",), rates=self._rates)}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """The masked squared error, summed over real future steps and channels.

        Only real past actions are given clean. The published loss also gives padded ones, which
        are copies of the nearest real action: a policy then learns to read the end of an episode
        off its own inputs (measured: it carries the block to the bin and never lets go).
        """
        del optimizer
        batch_actions: Tensor = batch["actions"]
        actions = batch_actions.repeat_interleave(self._repeats, dim=0)
        mask: Tensor = batch["future_mask"].repeat_interleave(self._repeats, dim=0)[..., None]
        is_known: Tensor = batch["past_mask"].repeat_interleave(self._repeats, dim=0)[..., None]
        time = ctx.rng.integers(self._num_timesteps, self._repeats).flatten()
        noise = ctx.rng.normal(self._repeats, *batch_actions.shape[1:]).flatten(0, 1)
        inputs = torch.where(is_known, actions, self._process.noised(actions, noise, time))
        predicted = ctx.parts["model"](
            batch["images"], batch["text"], batch["proprioception"], inputs, time, **image_mask_of(batch)
        )
        error = (predicted.float() - self._process.target(actions, noise)) ** 2
        counted = torch.where(mask, error, torch.zeros_like(error))
        return Loss(
            total=counted.sum(),
            count=mask.sum() * actions.shape[-1],
            sums=self._shares.sums(counted, mask, batch.get("dataset"), training=ctx.training),
        )

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        """Errors of each action field, losses of each data set."""
        return self._shares.metrics(sums, count, training=phase in self.optimizers())


def image_mask_of(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Which pictures of a batch are real, where it says."""
    return {"image_mask": batch["image_mask"]} if "image_mask" in batch else {}


@torch.inference_mode()
def sample_actions(
    model: "DiffusionPolicy", batch: Mapping[str, Any], *, steps: int, rng: torch.Generator
) -> Tensor:
    """Normalised actions [B, T, A]; past actions of the batch are kept where they are real."""
    actions: Tensor = batch["actions"]
    context = model.encode(batch["images"], batch["text"], **image_mask_of(batch))

    def network(x: Tensor, time: int) -> Tensor:
        times = torch.full((len(x),), time, dtype=torch.int64, device=x.device)
        return model.denoise(context, batch["proprioception"], x, times)

    noise = torch.randn(actions.shape, generator=rng, dtype=actions.dtype).to(actions.device)
    schedule = SamplingSchedule(
        model.config.noise_scheduler, steps, known=(actions, batch["past_mask"]), rng=rng
    )
    return solve(network, noise, schedule, model.config.chosen_solver)
