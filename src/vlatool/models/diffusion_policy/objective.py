"""The loss of the diffusion policy, its parts for the log, and errors of sampled action chunks.

For each sample a noise level `t` and noise `e` are drawn. The network `f` gets the noised actions
`x_t` and what the robot observes, `o`, and predicts the target of the process (`noise.py`):

    flow matching   loss = sum |f(x_t, t, o) - (e - x_0)|^2
    diffusion       loss = sum |f(x_t, t, o) - e|^2

The sum is over steps from the current one on that are not padding, and over dimensions. Source:
reference/policy 1.2, 1.3, 2.

Legend of shapes: B batch, R noise draws per observation, T action steps, A width of an action, S
data sets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vlatool.datasets.lbm.layout import MANIFEST_NAME, SHARDS_NAME
from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, StepContext
from vlatool.models.codebook import true_float32
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig
from vlatool.models.diffusion_policy.model import forward_process
from vlatool.models.policy import DEFAULT_STEPS, ActionUnits

# Names of sums of a micro-batch.
_BY_DIMENSION = "error_by_dimension"
_DIMENSION_COUNTS = "count_by_dimension"  # where fields are padded
_BY_DATASET = "loss_by_dataset"
_COUNTS = "count_by_dataset"


class DenoisingObjective(Objective):
    """Squared error of the prediction."""

    samples_chunks: ClassVar[bool] = True

    def __init__(
        self,
        config: DiffusionPolicyConfig,
        breakdown: "LossBreakdown | None" = None,
        units: ActionUnits | None = None,
        max_delay: int = 0,  # first actions that may be given in training
        past_steps: int = 0,  # steps before the current one
    ) -> None:
        self._config = config
        self._breakdown = breakdown or LossBreakdown()
        self._units = units
        self._max_delay = max_delay
        self._past_steps = past_steps
        self._repeats = config.num_action_head_repeats or 1
        self._process = forward_process(config)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        rates = {f"{name}.": factor for name, factor in self._config.lr_factors.items()}
        return {"main": OptimizerSpec(("model",), rates=rates)}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """The squared error, see the top of the file.

        Only past actions that are not padding are clean inputs. With `clean_padded_steps` padded
        actions are too, as published. These are copies of the nearest real action: a policy then
        learns to detect the end of an episode from its inputs (measured: it carries the block to
        the bin and never opens the gripper).

        With a delay in training, the first actions are given, and not counted. Dimensions that
        never move are counted, although the policy commands them as recorded: in sampling, the
        network gets its own prediction for them, which must stay as in training.
        """
        shape = batch["actions"].shape[1:]
        actions = self._repeated(batch["actions"])
        is_counted = self._repeated(batch["future_mask"])[..., None]
        is_clean = self._repeated(batch["past_mask"])[..., None]
        if self._config.clean_padded_steps:
            is_clean = ~is_counted
        time = ctx.rng.integers(self._config.noise_scheduler.num_timesteps, self._repeats).flatten()
        noise = ctx.rng.normal(self._repeats, *shape).flatten(0, 1)
        condition: dict[str, Tensor] = {}
        if self._max_delay and ctx.training:
            given = is_counted[..., 0] & self._first_steps(ctx, shape[0])
            condition["given"] = given
            is_clean = is_clean | given[..., None]
            is_counted = is_counted & ~given[..., None]

        noised = torch.where(is_clean, actions, self._process.noised(actions, noise, time))
        predicted = ctx.parts["model"](observation_of(batch), noised, time, ctx.rng, **condition)
        error = (predicted.float() - self._process.target(actions, noise)) ** 2

        if "action_mask" in batch:  # false for dimensions of padded fields
            is_counted = is_counted & self._repeated(batch["action_mask"])[:, None]
        counted = torch.where(is_counted, error, torch.zeros_like(error))
        dimensions = actions.shape[-1] // is_counted.shape[-1]
        return Loss(
            total=counted.sum(),
            count=is_counted.sum() * dimensions,
            sums=self._breakdown.sums(
                counted, is_counted, batch.get("dataset"), training=ctx.training
            ),
        )

    def _repeated(self, values: Tensor) -> Tensor:
        """[B, ...] to [B * R, ...]: R successive rows of each sample."""
        return values.repeat_interleave(self._repeats, dim=0)

    def _first_steps(self, ctx: StepContext, steps: int) -> Tensor:
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
        return self._units.errors(
            sampled, batch["actions"], batch["future_mask"], batch.get("action_mask")
        )


def observation_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch that the network observes; `image_mask` only if the batch has one."""
    names = ("images", "text", "image_mask", "proprioception")
    return {name: batch[name] for name in names if name in batch}


@dataclass(frozen=True)
class LossBreakdown:
    """Splits a loss by action field and by data set, as sums and means."""

    # map from action field to its width, in order; empty: no breakdown
    fields: Mapping[str, int] = field(default_factory=dict[str, int])
    # locations of the training data sets; a single one has no own metric
    training: Sequence[str] = ()
    validation: Sequence[str] = ()  # locations of the validation data sets

    def sums(
        self, error: Tensor, mask: Tensor, dataset: Tensor | None, *, training: bool
    ) -> dict[str, Tensor]:
        """Sums for `models.base.Loss`, each of a fixed shape.

        Args:
            error: Squared error [B * R, T, A], zero where the mask is false.
            mask: bool [B * R, T, 1 or A], true for what is counted.
            dataset: int64 [B], index of the data set of each sample; None if the batch lacks it.
            training: False for validation data.
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
        """Means of the parts of the loss: `denoising_loss/FIELD`, and `loss/DATA SET`.

        Data sets without samples, and fields that are padded in all samples, are left out.
        """
        metrics: dict[str, float] = {}
        if _BY_DIMENSION in sums:
            steps = count / max(sum(self.fields.values()), 1)
            start = 0
            for name, width in self.fields.items():
                dimensions = slice(start, start + width)
                start += width
                number = steps * width
                if _DIMENSION_COUNTS in sums:
                    number = float(sums[_DIMENSION_COUNTS][dimensions].sum())
                if number:
                    total = float(sums[_BY_DIMENSION][dimensions].sum())
                    metrics[f"denoising_loss/{name}"] = total / number
        if _BY_DATASET in sums:
            labels = dataset_labels(self.training if training else self.validation)
            for index, label in enumerate(labels):
                number = float(sums[_COUNTS][index])
                if number:
                    metrics[f"loss/{label}"] = float(sums[_BY_DATASET][index]) / number
        return metrics


def dataset_labels(locations: Sequence[str]) -> list[str]:
    """Short unique names of data sets: the shortest distinct suffixes of their paths."""
    paths: list[list[str]] = []
    for location in locations:
        folders = location.removesuffix(MANIFEST_NAME).replace("\\", "/").split("/")
        folders = [folder for folder in folders if folder]
        if len(folders) > 1 and folders[-1] == SHARDS_NAME:
            folders.pop()
        paths.append(folders)
    deepest = max(map(len, paths), default=0)
    for depth in range(1, deepest + 1):
        labels = ["/".join(folders[-depth:]) for folders in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{'/'.join(folders[-1:])}#{number}" for number, folders in enumerate(paths, 1)]
