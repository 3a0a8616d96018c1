"""The diffusion policy: conditioning and noised actions in, velocity or noise out.

Source: reference/policy 1.2, 1.3. Legend of shapes: B batch, R noise draws per observation, N pictures,
M conditioning tokens, C their width, P proprioception steps, T action steps, A width of an action.
"""

import math

import torch
from torch import Tensor, nn

from vlatool.models.diffusion_policy.backbones import build_backbone
from vlatool.models.diffusion_policy.denoisers import build_denoiser
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig


class DiffusionPolicy(nn.Module):
    """Token order: time, text, pictures, proprioception, actions; module names as published."""

    def __init__(self, config: DiffusionPolicyConfig) -> None:
        super().__init__()
        assert config.action_dim is not None
        self.config = config
        self.vision_language_backbone = build_backbone(config.vision_language_backbone)
        context = self.vision_language_backbone.width
        width = config.transformer.width
        self.sinusoidal_position_embeddings = SinusoidalFrequencies(context)
        self.time_encoding = nn.Embedding(config.noise_scheduler.num_timesteps, context)
        self.condition_encode = nn.Linear(context, width)
        self.action_encode = nn.Linear(config.action_dim, width)
        observed = config.proprioception_dim or 0
        self.proprioception_encode = nn.Linear(observed, width) if observed else None
        self.transformer = build_denoiser(config.transformer)
        self.output_layer = nn.Linear(width, config.action_dim)
        self._initialize()

    def _initialize(self) -> None:
        with torch.no_grad():
            steps = torch.arange(self.time_encoding.num_embeddings)
            self.time_encoding.weight.copy_(self.sinusoidal_position_embeddings(steps))
        nn.init.xavier_uniform_(self.output_layer.weight)
        if self.proprioception_encode is not None:
            nn.init.xavier_uniform_(self.proprioception_encode.weight)
        if self.config.vision_language_backbone.freeze:
            self.vision_language_backbone.requires_grad_(requires_grad=False)
        if self.config.transformer.freeze:
            self.transformer.requires_grad_(requires_grad=False)

    def blocks(self) -> list[nn.Module]:
        """The blocks of backbone and denoiser."""
        return [*self.vision_language_backbone.blocks(), *self.transformer.blocks()]

    def encode(self, images: Tensor, text: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Pictures and sentences to conditioning tokens [B, M, C].

        Args:
            images: uint8 [B, N, 3, H, W].
            text: int64 [B, L], ids + 1, 0 where there is none.
            image_mask: bool [B, N], false for pictures that are padding: their tokens are zeros.
        """
        return self.vision_language_backbone(images, text, image_mask)

    def denoise(
        self, context: Tensor, proprioception: Tensor, actions: Tensor, time: Tensor
    ) -> Tensor:
        """What is predicted, [B, T, A]: the velocity from data to noise, in diffusion the noise.

        Args:
            context: Conditioning tokens [B, M, C].
            proprioception: Normalised [B, P, d].
            actions: Noised actions [B, T, A]; clean where they are given.
            time: Noise level int64 [B] in [0, num_timesteps).
        """
        encoded_time = self.time_encoding(time)[:, None]
        if self.config.diffusion_step_conditioning == "concat":
            context = torch.cat([encoded_time, context], dim=1)
        else:
            context = context + encoded_time
        tokens = [self.condition_encode(context)]
        if self.proprioception_encode is not None:
            encoded = self.proprioception_encode(proprioception)
            tokens.append(self._noised(encoded))
        tokens.append(self.action_encode(self._noised(actions)))
        hidden = self.transformer(torch.cat(tokens, dim=1))
        return self.output_layer(hidden[:, -actions.shape[1] :])

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        proprioception: Tensor,
        actions: Tensor,
        time: Tensor,
        image_mask: Tensor | None = None,
    ) -> Tensor:
        """As `denoise`, for R noised chunks per observation: actions [B * R, T, A]."""
        repeats = actions.shape[0] // images.shape[0]
        context = self.encode(images, text, image_mask).repeat_interleave(repeats, dim=0)
        observed = proprioception.repeat_interleave(repeats, dim=0)
        return self.denoise(context, observed, actions, time)

    def _noised(self, values: Tensor) -> Tensor:
        """Input noise while training; the published code adds it while validating too."""
        if not self.training or self.config.input_noise_std == 0:
            return values
        return values + torch.randn_like(values) * self.config.input_noise_std


class SinusoidalFrequencies(nn.Module):
    """The table that time encodings start from."""

    emb: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        steps = torch.arange(half, dtype=torch.float32)
        self.register_buffer("emb", torch.exp(-steps * math.log(10_000) / max(half - 1, 1)))

    def forward(self, steps: Tensor) -> Tensor:
        """Int [K] to [K, width]: sines, then cosines."""
        angles = steps[:, None].float() * self.emb
        return torch.cat([angles.sin(), angles.cos()], dim=1)
