"""Samples to batches, the loss, and chunks for a policy.

Legend of shapes: B samples, N images, T steps of a chunk, A numbers of an action, S measured
numbers, P past steps.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.plugin import (
    Array,
    Batch,
    DecodedSample,
    Loss,
    Objective,
    OptimizerSpec,
    RoboticsAssets,
    StepContext,
)

if TYPE_CHECKING:
    from vlatool_act.spec import ActConfig

_EXAMPLE_SIDE = 64


class ActBatcher:
    """Converts samples to a batch; picklable, for loader workers."""

    def __init__(self, assets: RoboticsAssets) -> None:
        self._data = assets.data
        self._normalizer = assets.normalizer

    def __call__(self, samples: Sequence[DecodedSample]) -> Batch:
        """Images uint8 [B, N, 3, H, W], state [B, S], actions [B, T, A], is_real bool [B, T]."""
        past = self._data.lowdim_past_timesteps or 0
        images = np.stack([sample.images for sample in samples])
        # An observation has measured values up to now only, a training sample of all steps.
        state = self._normalized(samples, self._data.proprioception_fields, past + 1)
        actions = self._normalized(samples, self._data.action_fields, None)
        is_real = np.stack([sample.future_mask for sample in samples])
        return {
            "images": torch.from_numpy(images).permute(0, 1, 4, 2, 3),
            "state": state[:, past],
            "actions": actions[:, past:],
            "is_real": torch.from_numpy(is_real[:, past:]),
        }

    def _normalized(
        self, samples: Sequence[DecodedSample], fields: Sequence[str], steps: int | None
    ) -> Tensor:
        """The first steps of fields side by side, float32 [B, steps, numbers]; None: all steps."""
        count = len(samples[0].future_mask) if steps is None else steps
        parts: list[Array] = [np.zeros((len(samples), count, 0), np.float32)]
        for name in fields:
            values = np.stack([sample.fields[name][:steps] for sample in samples])
            parts.append(self._normalizer.normalize(name, values))
        return torch.from_numpy(np.concatenate(parts, axis=-1))


def example_batch(config: "ActConfig", size: int) -> Batch:
    """Gray images and slow waves as actions."""
    assert config.chunk_size is not None
    assert config.action_dim is not None
    assert config.state_dim is not None
    assert config.num_images is not None
    shape = (size, config.num_images, 3, _EXAMPLE_SIDE, _EXAMPLE_SIDE)
    steps = torch.arange(config.chunk_size)[:, None]
    phases = torch.arange(size)[:, None, None] + torch.arange(config.action_dim)
    return {
        "images": torch.full(shape, 128, dtype=torch.uint8),
        "state": torch.sin(torch.arange(size)[:, None] + torch.arange(config.state_dim)),
        "actions": torch.sin(phases + 0.2 * steps),
        "is_real": torch.ones(size, config.chunk_size, dtype=torch.bool),
    }


class ActObjective(Objective):
    """Absolute error of the chunk, and in training the KL divergence of the latent."""

    def __init__(self, config: "ActConfig") -> None:
        self._rates = {"backbone.": config.backbone_lr_factor}
        self._kl_weight = config.kl_weight
        self._latent_dim = config.latent_dim

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",), rates=self._rates)}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        noise = ctx.rng.normal(self._latent_dim)
        chunk, mean, log_variance = ctx.parts["model"](
            batch["images"], batch["state"], batch["actions"], batch["is_real"], noise
        )
        error = self._errors(chunk, batch)
        kl = torch.zeros_like(error)
        if mean is not None:
            kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
        total = (error + self._kl_weight * kl).sum()
        sums = {"l1": error.detach().sum(), "kl": kl.detach().sum()}
        return Loss(total, torch.tensor(len(error)), sums)

    def validate(self, batch: Batch, ctx: StepContext) -> Loss:
        """The error of what a policy does: it does not know the recorded actions."""
        chunk, _, _ = ctx.parts["model"](batch["images"], batch["state"])
        error = self._errors(chunk, batch)
        return Loss(error.sum(), torch.tensor(len(error)), {"l1": error.sum()})

    def _errors(self, chunk: Tensor, batch: Batch) -> Tensor:
        """Mean absolute error of each sample [B]; as published, steps after the end count as 0."""
        error = (chunk.float() - batch["actions"]).abs() * batch["is_real"][..., None]
        return error.mean(dim=(1, 2))

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        return {name: float(total) / count for name, total in sums.items() if count}


class ActSampler:
    """Chunks of a policy. ACT needs one evaluation of its network, and no random number."""

    def __init__(self, network: nn.Module, past: int) -> None:
        self._network = network
        self._past = past

    def __call__(self, batch: Mapping[str, Any], *, steps: int, rng: Any) -> Tensor:
        """Normalized actions [B, P + T, A]; those of past steps are not predicted: 0."""
        chunk, _, _ = self._network(batch["images"], batch["state"])
        return functional.pad(chunk, (0, 0, self._past, 0))
