"""Turns samples into tensors for the policy. Source: formats/lbm 5.3, 5.4; reference/policy 1.1.

`PolicyBatcher` stacks and normalizes samples, and turns instructions into token ids with the text
tokenizer of the backbone. Tensors of text hold token ids + 1, padded with 0.

Legend of shapes: B batch, N images, T action steps, A width of an action, P proprioception steps, d
width of proprioception, L token ids of a text.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlatool.errors import DataError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.loading.shared_memory import stack_rows
from vlatool.models.backbones.text import example_text, make_text_tokenizer
from vlatool.models.base import Batch
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig

# Side of example images if the backbone takes images of any size.
_EXAMPLE_SIDE = 64


class PolicyBatcher:
    """Converts samples to a batch of normalized tensors; picklable."""

    def __init__(
        self,
        config: DiffusionPolicyConfig,
        data: RoboticsDataConfig,
        normalizer: Normalizer,
        folder: Path | None = None,
    ) -> None:
        self._data = data
        self._normalizer = normalizer
        max_length: int | None = getattr(data, "max_text_seq_len", None)
        self._text_tokenizer = make_text_tokenizer(
            config.vision_language_backbone, max_length, folder
        )

    def __call__(self, samples: Sequence[DecodedSample]) -> Batch:
        """Stacks and normalizes samples.

        Returns:
            images: uint8 [B, N, 3, H, W], channels last in memory.
            text: int64 [B, L], token ids + 1, padded with 0.
            actions, proprioception: float32 [B, T, A] and [B, P, d], normalized.
            past_mask, future_mask: bool [B, T].
            dataset: int64 [B], index of the data set.
            keys: Names of the samples.
            image_mask: bool [B, N], if padded images are masked.
            action_mask: bool [B, A], False for padded fields, if these may be padded.
        """
        past = self._data.lowdim_past_timesteps
        assert past is not None
        shapes = {sample.images.shape for sample in samples}
        if len(shapes) > 1:
            raise DataError(
                f"a batch has images of different sizes: {sorted(shapes)}",
                hint="preprocess all data sets with the same --resize-images-size",
                code="data.mismatch",
            )
        steps = len(samples[0].past_mask)
        stacked = stack_rows([sample.images for sample in samples])
        batch: Batch = {
            "keys": [sample.key for sample in samples],
            "images": torch.from_numpy(stacked).permute(0, 1, 4, 2, 3),
            "text": self._text_tokenizer([sample.instruction for sample in samples]),
            "actions": self._normalized(samples, self._data.action_fields, steps),
            "proprioception": self._normalized(samples, self._data.proprioception_fields, past + 1),
            "past_mask": torch.from_numpy(np.stack([sample.past_mask for sample in samples])),
            "future_mask": torch.from_numpy(np.stack([sample.future_mask for sample in samples])),
            "dataset": torch.tensor([sample.dataset for sample in samples]),
        }
        if self._data.mask_padded_images:
            masks = []
            for sample in samples:
                is_real = sample.image_mask
                masks.append(np.ones(len(sample.images), bool) if is_real is None else is_real)
            batch["image_mask"] = torch.from_numpy(np.stack(masks))
        if self._data.pad_missing_fields:
            masks = [sample.is_real(self._data.action_fields) for sample in samples]
            batch["action_mask"] = torch.from_numpy(np.stack(masks))
        return batch

    def _normalized(
        self, samples: Sequence[DecodedSample], fields: Sequence[str], steps: int
    ) -> Tensor:
        """The first steps of fields side by side, float32 [B, steps, numbers]; 0 if padded."""
        if not fields:
            return torch.zeros(len(samples), steps, 0)
        columns = []
        for name in fields:
            rows = np.stack([sample.fields[name][:steps] for sample in samples])
            values = self._normalizer.normalize(name, rows)
            for row, sample in enumerate(samples):
                if name in sample.padded_fields:
                    values[row] = 0
            columns.append(values)
        return torch.from_numpy(np.concatenate(columns, axis=-1))


def example_batch(config: DiffusionPolicyConfig, data: RoboticsDataConfig, size: int) -> Batch:
    """Example batch: gray images, slow waves as actions, no padded steps, empty instructions."""
    past = data.lowdim_past_timesteps
    future = data.lowdim_future_timesteps
    assert past is not None
    assert future is not None
    backbone = config.vision_language_backbone
    side = getattr(backbone, "img_size", _EXAMPLE_SIDE)
    num_images = len(data.image_indices) * len(data.cameras)
    width = data.action_dim or 0
    steps = torch.arange(past + 1 + future)
    phase = torch.arange(size)[:, None, None] + torch.arange(width)
    batch: Batch = {
        "keys": [f"example-{index}" for index in range(size)],
        "images": torch.full((size, num_images, 3, side, side), 128, dtype=torch.uint8),
        "text": example_text(backbone, size),
        "actions": torch.sin(phase + 0.2 * steps[None, :, None]),
        "proprioception": torch.zeros(size, past + 1, data.proprioception_dim or 0),
        "past_mask": (steps < past).expand(size, -1).clone(),
        "future_mask": (steps >= past).expand(size, -1).clone(),
        "dataset": torch.zeros(size, dtype=torch.int64),
    }
    if data.mask_padded_images:
        batch["image_mask"] = torch.ones(size, num_images, dtype=torch.bool)
    if data.pad_missing_fields:
        batch["action_mask"] = torch.ones(size, width, dtype=torch.bool)
    return batch
