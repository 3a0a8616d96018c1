"""The network of a small ACT, samples to batches, the loss, and chunks for a policy.

Zhao et al., Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware, 2023 (arXiv
2304.13705). Shapes: B samples, N images, T steps of a chunk, A numbers of an action, S measured
numbers, L width of the latent, D width of a token, P past steps.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.plugin import (
    Batch,
    DecodedSample,
    Loss,
    Objective,
    OptimizerSpec,
    RoboticsAssets,
    RoboticsDataConfig,
    StepContext,
)

if TYPE_CHECKING:
    from vlatool_act.spec import ActConfig

_SIDE = 4  # regions of an image along each axis


class Act(nn.Module):
    """Images and measured values to a chunk of actions."""

    def __init__(self, config: "ActConfig") -> None:
        super().__init__()
        assert config.chunk_size is not None
        assert config.action_dim is not None
        width = config.width
        layers: list[nn.Module] = []
        channels = 3
        for stage in (width // 4, width // 2, width):
            layers += [nn.Conv2d(channels, stage, 5, stride=2, padding=2), nn.GELU()]
            channels = stage
        self.backbone = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_SIDE))
        self.places = nn.Parameter(torch.randn(_SIDE**2, width) * 0.02)
        self.state = nn.Linear(config.state_dim or 0, width)
        self.latent = nn.Linear(config.latent_dim, width)
        self.encoder = self._layers(config, width)
        # The style that recorded actions have and the observation does not tell.
        self.action = nn.Linear(config.action_dim, width)
        self.steps = nn.Parameter(torch.randn(config.chunk_size, width) * 0.02)
        self.style = self._layers(config, width)
        self.style_head = nn.Linear(width, 2 * config.latent_dim)
        self.queries = nn.Parameter(torch.randn(config.chunk_size, width) * 0.02)
        self.decoder = nn.MultiheadAttention(width, config.n_heads, batch_first=True)
        self.head = nn.Linear(width, config.action_dim)

    def _layers(self, config: "ActConfig", width: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(
            width, config.n_heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        return nn.TransformerEncoder(layer, config.n_layers, enable_nested_tensor=False)

    def forward(
        self,
        images: Tensor,  # uint8 [B, N, 3, H, W]
        state: Tensor,  # normalized [B, S]
        actions: Tensor | None = None,  # recorded chunk, normalized [B, T, A]; None: latent of 0
        noise: Tensor | None = None,  # standard normal [B, L], with `actions`
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A chunk of normalized actions [B, T, A], mean and log variance of the latent [B, L]."""
        mean = log_variance = torch.zeros(len(images), self.latent.in_features, device=state.device)
        if actions is not None:
            assert noise is not None
            seen = self.style(self.action(actions) + self.steps).mean(1)
            mean, log_variance = self.style_head(seen).float().chunk(2, dim=-1)
        latent = mean if noise is None else mean + (log_variance / 2).exp() * noise
        features = self.backbone(images.flatten(0, 1).float() / 255 - 0.5)
        regions = features.flatten(2).transpose(1, 2) + self.places  # [B * N, regions, D]
        tokens = regions.reshape(len(images), -1, regions.shape[-1])
        extra = torch.stack([self.state(state), self.latent(latent)], dim=1)
        tokens = self.encoder(torch.cat([tokens, extra], dim=1))
        queries = self.queries.expand(len(images), -1, -1)
        attended, _ = self.decoder(queries, tokens, tokens, need_weights=False)
        return self.head(queries + attended), mean, log_variance


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
        parts = [np.zeros((len(samples), count, 0), np.float32)]
        for name in fields:
            values = np.stack([sample.fields[name][:steps] for sample in samples])
            parts.append(self._normalizer.normalize(name, values))
        return torch.from_numpy(np.concatenate(parts, axis=-1))


def example_batch(config: "ActConfig", data: RoboticsDataConfig, size: int) -> Batch:
    """Gray images and slow waves as actions."""
    assert config.chunk_size is not None
    count = len(data.cameras) * len(data.image_indices)
    steps = torch.arange(config.chunk_size)[:, None]
    phases = torch.arange(size)[:, None, None] + torch.arange(config.action_dim or 0)
    return {
        "images": torch.full((size, count, 3, 64, 64), 128, dtype=torch.uint8),
        "state": torch.sin(torch.arange(size)[:, None] + torch.arange(config.state_dim or 0)),
        "actions": torch.sin(phases + 0.2 * steps),
        "is_real": torch.ones(size, config.chunk_size, dtype=torch.bool),
    }


class ActObjective(Objective):
    """Absolute error of the chunk, and in training the KL divergence of the latent."""

    def __init__(self, config: "ActConfig") -> None:
        self._kl_weight = config.kl_weight
        self._latent_dim = config.latent_dim

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",))}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """A sum over samples, with their number: vlatool divides, over all devices."""
        noise = ctx.rng.normal(self._latent_dim)
        chunk, mean, log_variance = ctx.parts["model"](
            batch["images"], batch["state"], batch["actions"], noise
        )
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
        total = self._errors(chunk, batch) + self._kl_weight * kl
        return Loss(total.sum(), torch.tensor(len(total)))

    def _errors(self, chunk: Tensor, batch: Batch) -> Tensor:
        """Mean absolute error of each sample [B]; steps after the end of an episode count as 0."""
        error = (chunk.float() - batch["actions"]).abs() * batch["is_real"][..., None]
        return error.mean(dim=(1, 2))


class ActSampler:
    """Chunks of a policy. ACT needs one evaluation of its network, and no random number."""

    def __init__(self, network: nn.Module, past: int) -> None:
        self._network = network
        self._past = past

    def __call__(self, batch: Mapping[str, Any], *, steps: int, rng: Any) -> Tensor:
        """Normalized actions [B, P + T, A]; those of past steps are not predicted: 0."""
        chunk, _, _ = self._network(batch["images"], batch["state"])
        return functional.pad(chunk, (0, 0, self._past, 0))
