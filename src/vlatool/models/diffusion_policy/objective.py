"""Loss of the diffusion policy, and sampling of actions. Source: reference/policy 1.2, 1.3, 2.

Legend of shapes: B batch, R noise draws per observation, T action steps, A width of an action.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, Rng, StepContext
from vlatool.models.diffusion_policy.loss_breakdown import LossBreakdown
from vlatool.models.diffusion_policy.noise import forward_process
from vlatool.models.diffusion_policy.solvers import SamplingSchedule, solve
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig

if TYPE_CHECKING:
    from vlatool.models.diffusion_policy.model import DiffusionPolicy


class DenoisingObjective(Objective):
    """Squared error of the prediction, over steps from the anchor on that are not padding."""

    def __init__(
        self, config: DiffusionPolicyConfig, breakdown: LossBreakdown | None = None
    ) -> None:
        self._breakdown = breakdown or LossBreakdown()
        self._rates = {f"{name}.": factor for name, factor in config.lr_factors.items()}
        self._repeats = config.num_action_head_repeats or 1
        self._num_timesteps = config.noise_scheduler.num_timesteps
        self._process = forward_process(config.noise_scheduler, flow=config.is_flow)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """One optimizer for all weights."""
        return {"main": OptimizerSpec(("model",), rates=self._rates)}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """The squared error, summed over future steps that are not padding and over dimensions.

        Only past actions that are not padding are clean inputs. The published loss gives padded
        actions too, which are copies of the nearest real action: a policy then learns to detect
        the end of an episode from its inputs (measured: it carries the block to the bin and never
        opens the gripper).
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
            batch["images"],
            batch["text"],
            batch["proprioception"],
            inputs,
            time,
            **image_mask_of(batch),
        )
        error = (predicted.float() - self._process.target(actions, noise)) ** 2
        counted = torch.where(mask, error, torch.zeros_like(error))
        return Loss(
            total=counted.sum(),
            count=mask.sum() * actions.shape[-1],
            sums=self._breakdown.sums(counted, mask, batch.get("dataset"), training=ctx.training),
        )

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        """Error of each action field, loss of each data set."""
        return self._breakdown.metrics(sums, count, training=phase in self.optimizers())


def image_mask_of(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The image mask of a batch as keyword argument; empty if the batch has none."""
    return {"image_mask": batch["image_mask"]} if "image_mask" in batch else {}


@torch.inference_mode()
def sample_actions(
    model: "DiffusionPolicy", batch: Mapping[str, Any], *, steps: int, rng: Rng
) -> Tensor:
    """Samples normalized actions [B, T, A]; past actions that are not padding stay unchanged."""
    actions: Tensor = batch["actions"]
    context = model.encode(batch["images"], batch["text"], **image_mask_of(batch))

    def network(x: Tensor, time: int) -> Tensor:
        times = torch.full((len(x),), time, dtype=torch.int64, device=x.device)
        return model.denoise(context, batch["proprioception"], x, times)

    noise = rng.normal(*actions.shape[1:]).to(actions)
    schedule = SamplingSchedule(
        model.config.noise_scheduler, steps, known=(actions, batch["past_mask"]), rng=rng
    )
    return solve(network, noise, schedule, model.config.chosen_solver)
