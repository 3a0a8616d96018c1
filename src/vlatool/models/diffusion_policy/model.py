"""The network of the diffusion policy: conditioning and noised actions to velocity or noise.

Source: reference/policy 1.2, 1.3. Legend of shapes: B batch, R noise draws per observation, N
images, M conditioning tokens, C their width, P proprioception steps, T action steps, A width of an
action.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.models.base import Rng
from vlatool.models.diffusion_policy.backbones import build_backbone
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig
from vlatool.models.diffusion_policy.denoisers import build_denoiser
from vlatool.models.diffusion_policy.noise import SamplingSchedule, solve
from vlatool.models.rng import InputNoise


class DiffusionPolicy(nn.Module):
    """Diffusion policy network; module names as published.

    Token order: time, text, images, proprioception, actions.
    """

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
        # The published code adds it in validation too.
        self.input_noise = InputNoise(config.input_noise_std)
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
        """The blocks of the backbone and the denoiser."""
        return [*self.vision_language_backbone.blocks(), *self.transformer.blocks()]

    def encode(
        self,
        images: Tensor,  # uint8 [B, N, 3, H, W]
        text: Tensor,  # int64 [B, L], token ids + 1, padded with 0
        # bool [B, N], false for padded images, whose tokens become zeros
        image_mask: Tensor | None = None,
        rng: Rng | None = None,  # random numbers of dropout, B rows; None: outside of training
    ) -> Tensor:
        """Converts images and instructions to conditioning tokens [B, M, C]."""
        return self.vision_language_backbone(images, text, image_mask, rng)

    def denoise(
        self,
        context: Tensor,  # conditioning tokens [B, M, C]
        proprioception: Tensor,  # normalized [B, P, d]
        actions: Tensor,  # noised actions [B, T, A]; known past actions are clean
        time: Tensor,  # noise level int64 [B] in [0, num_timesteps)
        # random numbers of input noise, B / repeats rows; None: outside of training
        rng: Rng | None = None,
        repeats: int = 1,  # number of successive rows of the same sample
    ) -> Tensor:
        """Predicts the velocity (flow matching) or the noise (diffusion), [B, T, A]."""
        encoded_time = self.time_encoding(time)[:, None]
        if self.config.diffusion_step_conditioning == "concat":
            context = torch.cat([encoded_time, context], dim=1)
        else:
            context = context + encoded_time
        tokens = [self.condition_encode(context)]
        if self.proprioception_encode is not None:
            encoded = self.proprioception_encode(proprioception)
            tokens.append(self.input_noise(encoded, rng, repeats))
        tokens.append(self.action_encode(self.input_noise(actions, rng, repeats)))
        hidden = self.transformer(torch.cat(tokens, dim=1))
        return self.output_layer(hidden[:, -actions.shape[1] :])

    def forward(
        self,
        # arguments of `encode` (`images`, `text`, perhaps `image_mask`), and `proprioception`
        # [B, P, d]
        observation: Mapping[str, Tensor],
        actions: Tensor,  # [B * R, T, A]
        time: Tensor,  # int64 [B * R]
        rng: Rng | None = None,
    ) -> Tensor:
        """Like `denoise`, for R noised chunks per observation."""
        seen = dict(observation)
        proprioception = seen.pop("proprioception")
        repeats = len(actions) // len(proprioception)
        context = self.encode(**seen, rng=rng).repeat_interleave(repeats, dim=0)
        observed = proprioception.repeat_interleave(repeats, dim=0)
        return self.denoise(context, observed, actions, time, rng, repeats)

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any], *, steps: int, rng: Rng) -> Tensor:
        """Samples normalized actions [B, T, A]; past actions that are not padding stay
        unchanged.
        """
        actions: Tensor = batch["actions"]
        context = self.encode(batch["images"], batch["text"], batch.get("image_mask"))

        def network(x: Tensor, time: int) -> Tensor:
            times = torch.full((len(x),), time, dtype=torch.int64, device=x.device)
            return self.denoise(context, batch["proprioception"], x, times)

        noise = rng.normal(*actions.shape[1:]).to(actions)
        schedule = SamplingSchedule(
            self.config.noise_scheduler, steps, known=(actions, batch["past_mask"]), rng=rng
        )
        return solve(network, noise, schedule, self.config.chosen_solver)


class SinusoidalFrequencies(nn.Module):
    """Sinusoidal embedding that initializes the time encoding."""

    emb: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        steps = torch.arange(half, dtype=torch.float32)
        self.register_buffer("emb", torch.exp(-steps * math.log(10_000) / max(half - 1, 1)))

    def forward(self, steps: Tensor) -> Tensor:
        """Steps int [K] to [K, width]: sines, then cosines."""
        angles = steps[:, None].float() * self.emb
        return torch.cat([angles.sin(), angles.cos()], dim=1)
