"""Loss of the diffusion policy, its breakdown, and errors of sampled action chunks.

Source: reference/policy 1.2, 1.3, 2. Legend of shapes: B batch, R noise draws per observation, T
action steps, A width of an action, S data sets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vlatool.formats.shards.layout import MANIFEST_NAME, SHARDS_NAME
from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, StepContext
from vlatool.models.codebook import true_float32
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig
from vlatool.models.diffusion_policy.model import forward_process
from vlatool.models.policy import DEFAULT_STEPS, ActionUnits

_BY_DIMENSION = "error_by_dimension"
_BY_DATASET = "loss_by_dataset"
_COUNTS = "count_by_dataset"
_DIMENSION_COUNTS = "count_by_dimension"  # where fields are padded


@dataclass(frozen=True)
class LossBreakdown:
    """Sums of a loss by action field and by data set, and their means."""

    # map from action field to its width, in order; empty: no breakdown
    fields: Mapping[str, int] = field(default_factory=dict[str, int])
    # locations of the training data sets; a single one has no own metric
    training: Sequence[str] = ()
    validation: Sequence[str] = ()  # locations of the validation data sets

    def sums(
        self, error: Tensor, mask: Tensor, dataset: Tensor | None, *, training: bool
    ) -> dict[str, Tensor]:
        """Sums for `models.base.Loss`, each of a fixed shape.

        `error`: squared error [B * R, T, A], zero where the mask is false; `mask`: bool [B * R, T,
        1 or A], true for what is counted; `dataset`: int64 [B], index of the data set of each
        sample; None if the batch lacks it.
        """
        if not self.fields:
            return {}
        error = error.detach()
        sums = {_BY_DIMENSION: error.sum(dim=(0, 1))}
        if mask.shape[-1] > 1:
            sums[_DIMENSION_COUNTS] = mask.sum(dim=(0, 1)).to(error.dtype)
        size = len(self.training if training else self.validation)
        if size > 1 and dataset is not None:
            rows = dataset.repeat_interleave(len(error) // len(dataset))
            zeros = torch.zeros(size, dtype=error.dtype, device=error.device)
            width = error.shape[-1] // mask.shape[-1]
            counts = mask.sum(dim=(1, 2)).to(error.dtype) * width
            sums[_BY_DATASET] = zeros.index_add(0, rows, error.sum(dim=(1, 2)))
            sums[_COUNTS] = zeros.index_add(0, rows, counts)
        return sums

    def metrics(
        self, sums: Mapping[str, Tensor], count: float, *, training: bool
    ) -> dict[str, float]:
        """Parts of the loss: `denoising_loss/FIELD`, and `loss/DATA SET` of data sets with
        samples.
        """
        metrics: dict[str, float] = {}
        if _BY_DIMENSION in sums:
            widths = list(self.fields.values())
            steps = count / max(sum(widths), 1)
            counts = [steps * width for width in widths]
            if _DIMENSION_COUNTS in sums:
                counts = [float(part.sum()) for part in sums[_DIMENSION_COUNTS].split(widths)]
            parts = sums[_BY_DIMENSION].split(widths)
            for name, part, number in zip(self.fields, parts, counts, strict=True):
                if number:
                    metrics[f"denoising_loss/{name}"] = float(part.sum()) / number
        if _BY_DATASET in sums:
            labels = dataset_labels(self.training if training else self.validation)
            rows = zip(labels, sums[_BY_DATASET].tolist(), sums[_COUNTS].tolist(), strict=True)
            metrics |= {f"loss/{label}": total / number for label, total, number in rows if number}
        return metrics


def dataset_labels(locations: Sequence[str]) -> list[str]:
    """Short unique names of data sets: the shortest distinct suffixes of their paths."""
    parts = [list(_parts(location)) for location in locations]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{'/'.join(part[-1:])}#{number}" for number, part in enumerate(parts, 1)]


def _parts(location: str) -> Iterator[str]:
    folders = location.removesuffix(MANIFEST_NAME).replace("\\", "/").split("/")
    names = [folder for folder in folders if folder]
    return iter(names[:-1] if len(names) > 1 and names[-1] == SHARDS_NAME else names)


class DenoisingObjective(Objective):
    """Squared error of the prediction, over steps from the anchor on that are not padding."""

    samples_chunks: ClassVar[bool] = True

    def __init__(
        self,
        config: DiffusionPolicyConfig,
        breakdown: LossBreakdown | None = None,
        units: ActionUnits | None = None,
        max_delay: int = 0,  # first actions that may be given in training
        past_steps: int = 0,  # steps before the current one
    ) -> None:
        self._breakdown = breakdown or LossBreakdown()
        self._units = units
        self._max_delay = max_delay
        self._past_steps = past_steps
        self._rates = {f"{name}.": factor for name, factor in config.lr_factors.items()}
        self._repeats = config.num_action_head_repeats or 1
        self._cleans_padding = config.clean_padded_steps
        self._num_timesteps = config.noise_scheduler.num_timesteps
        self._process = forward_process(config.noise_scheduler, flow=config.is_flow)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",), rates=self._rates)}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """The squared error, summed over future steps that are not padding and over dimensions.
        With a delay in training the first actions are given, and not counted. Dimensions that never
        move are counted, though the policy commands them as recorded: in sampling the network gets
        what it predicted for them, which must stay as in training.

        Only past actions that are not padding are clean inputs. With `clean_padded_steps` padded
        actions are too, as published. These are copies of the nearest real action: a policy then
        learns to detect the end of an episode from its inputs (measured: it carries the block to
        the bin and never opens the gripper).
        """
        batch_actions: Tensor = batch["actions"]
        actions = batch_actions.repeat_interleave(self._repeats, dim=0)
        mask: Tensor = batch["future_mask"].repeat_interleave(self._repeats, dim=0)[..., None]
        past: Tensor = batch["past_mask"].repeat_interleave(self._repeats, dim=0)[..., None]
        is_known = ~mask if self._cleans_padding else past
        time = ctx.rng.integers(self._num_timesteps, self._repeats).flatten()
        noise = ctx.rng.normal(self._repeats, *batch_actions.shape[1:]).flatten(0, 1)
        conditions: dict[str, Tensor] = {}
        if self._max_delay and ctx.training:
            given = mask[..., 0] & self._given(ctx, actions.shape[1])
            conditions["given"] = given
            is_known = is_known | given[..., None]
            mask = mask & ~given[..., None]
        inputs = torch.where(is_known, actions, self._process.noised(actions, noise, time))
        predicted = ctx.parts["model"](observation_of(batch), inputs, time, ctx.rng, **conditions)
        error = (predicted.float() - self._process.target(actions, noise)) ** 2
        if "action_mask" in batch:
            real: Tensor = batch["action_mask"].repeat_interleave(self._repeats, dim=0)
            mask = mask & real[:, None]
        counted = torch.where(mask, error, torch.zeros_like(error))
        return Loss(
            total=counted.sum(),
            count=mask.sum() * (actions.shape[-1] // mask.shape[-1]),
            sums=self._breakdown.sums(counted, mask, batch.get("dataset"), training=ctx.training),
        )

    def _given(self, ctx: StepContext, steps: int) -> Tensor:
        """Mask bool [B * R, T] of the first actions, as many as a random delay has steps.

        Source: Black et al., Training-Time Action Conditioning for Efficient Real-Time Chunking,
        2025 (arXiv 2512.05964), figure 1.
        """
        delay = ctx.rng.integers(self._max_delay + 1, self._repeats).flatten()
        step = torch.arange(steps, device=delay.device) - self._past_steps
        return (step >= 0) & (step < delay[:, None])

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        return self._breakdown.metrics(sums, count, training=phase in self.optimizers())

    def chunk_errors(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        if self._units is None:
            return {}
        with true_float32(batch["actions"].device):
            sampled = ctx.parts["model"].sample(batch, steps=DEFAULT_STEPS, rng=ctx.rng)
        masks = batch["future_mask"], batch.get("action_mask")
        return self._units.errors(sampled, batch["actions"], *masks)


def observation_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch that the network observes; `image_mask` only if the batch has one."""
    names = ("images", "text", "image_mask", "proprioception")
    return {name: batch[name] for name in names if name in batch}
