"""Samples to tensors for the policy. Source: formats/lbm 5.3, 5.4; reference/policy 1.1.

Legend of shapes: B batch, N images, T action steps, P proprioception steps, L token ids of a text.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlatool.errors import DataError
from vlatool.loading.loader import stack_rows
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.models.base import Batch
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig
from vlatool.models.diffusion_policy.text import example_text, make_text_tokenizer

# Used if the backbone takes images of any size.
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

        Returns images uint8 [B, N, 3, H, W], channels last in memory; text int64 [B, L], token ids
        + 1, padded with 0; actions float32 [B, T, A] and proprioception float32 [B, P, d],
        normalized; past_mask and future_mask bool [B, T]; dataset int64 [B], index of the data set;
        keys, names of the samples; image_mask bool [B, N] if padded images are masked.
        """
        past = self._data.lowdim_past_timesteps
        assert past is not None
        return {
            "keys": [sample.key for sample in samples],
            "images": _images(samples),
            "text": self._text_tokenizer([sample.instruction for sample in samples]),
            "actions": self._stacked(samples, self._data.action_fields, None),
            "proprioception": self._stacked(samples, self._data.proprioception_fields, past + 1),
            "past_mask": torch.from_numpy(np.stack([sample.past_mask for sample in samples])),
            "future_mask": torch.from_numpy(np.stack([sample.future_mask for sample in samples])),
            "dataset": torch.tensor([sample.dataset for sample in samples]),
            **self._mask(samples),
        }

    def _mask(self, samples: Sequence[DecodedSample]) -> Batch:
        if not self._data.mask_padded_images:
            return {}
        masks = [
            np.ones(len(sample.images), bool) if sample.image_mask is None else sample.image_mask
            for sample in samples
        ]
        return {"image_mask": torch.from_numpy(np.stack(masks))}

    def _stacked(
        self, samples: Sequence[DecodedSample], fields: Sequence[str], steps: int | None
    ) -> Tensor:
        """Normalized fields, concatenated, of the first `steps` steps; None: all steps."""
        length = len(samples[0].past_mask) if steps is None else steps
        parts = [
            self._normalizer.normalize(
                name, np.stack([sample.fields[name][:steps] for sample in samples])
            )
            for name in fields
        ]
        if not parts:
            return torch.zeros(len(samples), length, 0)
        return torch.from_numpy(np.concatenate(parts, axis=-1))


def example_batch(config: DiffusionPolicyConfig, data: RoboticsDataConfig, size: int) -> Batch:
    """Example batch: gray images, slow waves as actions, no padded steps, empty instructions."""
    past, future = data.lowdim_past_timesteps, data.lowdim_future_timesteps
    assert past is not None
    assert future is not None
    backbone = config.vision_language_backbone
    side = getattr(backbone, "img_size", _EXAMPLE_SIDE)
    num_images = len(data.image_indices) * len(data.camera_names)
    steps = torch.arange(past + 1 + future)
    phase = torch.arange(size)[:, None, None] + torch.arange(data.action_dim or 0)
    observed = data.proprioception_dim or 0
    has_mask = data.mask_padded_images
    return {
        "keys": [f"example-{index}" for index in range(size)],
        "images": torch.full((size, num_images, 3, side, side), 128, dtype=torch.uint8),
        "text": example_text(backbone, size),
        "actions": torch.sin(phase + 0.2 * steps[None, :, None]),
        "proprioception": torch.zeros(size, past + 1, observed),
        "past_mask": (steps < past).expand(size, -1).clone(),
        "future_mask": (steps >= past).expand(size, -1).clone(),
        "dataset": torch.zeros(size, dtype=torch.int64),
        **({"image_mask": torch.ones(size, num_images, dtype=torch.bool)} if has_mask else {}),
    }


def _images(samples: Sequence[DecodedSample]) -> Tensor:
    shapes = {sample.images.shape for sample in samples}
    if len(shapes) > 1:
        raise DataError(
            f"images of different sizes in one batch: {sorted(shapes)}",
            hint="preprocess all data sets with the same --resize-images-size",
            code="data.image_sizes_differ",
        )
    stacked = stack_rows([sample.images for sample in samples])
    return torch.from_numpy(stacked).permute(0, 1, 4, 2, 3)
