"""The diffusion policy: conditioning and noised actions in, velocity out.

Source: lbm-training 2.3, 2.6. Legend of shapes: B batch, R noise draws per observation, N pictures,
M conditioning tokens, P proprioception steps, T action steps, A width of an action, D width,
S tokens of the transformer, H heads, F width inside its feed-forward layers.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.diffusion_policy.backbones import build_backbone
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig, TransformerConfig

_ROTARY_BASE = 10_000.0
_FFN_MULTIPLE = 256


class DiffusionPolicy(nn.Module):
    """Token order: time, text, pictures, proprioception, actions; module names as published."""

    def __init__(self, config: DiffusionPolicyConfig) -> None:
        super().__init__()
        assert config.action_dim is not None
        self.config = config
        self.vision_language_backbone = build_backbone(config.vision_language_backbone)
        context = self.vision_language_backbone.width
        width = config.transformer.hidden_dim
        self.sinusoidal_position_embeddings = SinusoidalFrequencies(context)
        self.time_encoding = nn.Embedding(config.noise_scheduler.num_timesteps, context)
        self.condition_encode = nn.Linear(context, width)
        self.action_encode = nn.Linear(config.action_dim, width)
        observed = config.proprioception_dim or 0
        self.proprioception_encode = nn.Linear(observed, width) if observed else None
        self.transformer = Denoiser(config.transformer)
        self.output_layer = nn.Linear(width, config.action_dim)
        self._initialise()

    def _initialise(self) -> None:
        with torch.no_grad():
            steps = torch.arange(self.time_encoding.num_embeddings)
            self.time_encoding.weight.copy_(self.sinusoidal_position_embeddings(steps))
        nn.init.xavier_uniform_(self.output_layer.weight)
        if self.proprioception_encode is not None:
            nn.init.xavier_uniform_(self.proprioception_encode.weight)

    def encode(self, images: Tensor, text: Tensor) -> Tensor:
        """uint8 [B, N, 3, H, W] and int64 [B, L] to conditioning tokens [B, M, C]."""
        return self.vision_language_backbone(images, text)

    def velocity(
        self, context: Tensor, proprioception: Tensor, actions: Tensor, time: Tensor
    ) -> Tensor:
        """The velocity [B, T, A] from data to noise.

        Args:
            context: Conditioning tokens [B, M, C].
            proprioception: Normalised [B, P, d].
            actions: Noised actions [B, T, A]; clean where they are given.
            time: Flow time int64 [B] in [0, num_timesteps).
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
    ) -> Tensor:
        """Velocity [B * R, T, A] for R noised chunks per observation: actions [B * R, T, A]."""
        repeats = actions.shape[0] // images.shape[0]
        context = self.encode(images, text).repeat_interleave(repeats, dim=0)
        observed = proprioception.repeat_interleave(repeats, dim=0)
        return self.velocity(context, observed, actions, time)

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


class RotaryPositions(nn.Module):
    """Rotates half-split query and key channels by their position."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", _ROTARY_BASE**-exponent)

    def forward(self, x_BHSd: Tensor) -> Tensor:
        """Rotates x [B, H, S, D/H]."""
        positions = torch.arange(x_BHSd.shape[2], device=x_BHSd.device, dtype=torch.float32)
        angle = torch.outer(positions, self.inv_freq.float())
        angle = torch.cat([angle, angle], dim=-1)
        first, second = x_BHSd.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
        return (x_BHSd * angle.cos() + rotated * angle.sin()).to(x_BHSd.dtype)


class Attention(nn.Module):
    """Self-attention with one fused projection; no biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.is_causal = config.is_causal
        self.in_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim, bias=False)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.pos_embed = RotaryPositions(config.hidden_dim // config.n_heads)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        batch, length, width = x_BSD.shape
        projected = self.in_proj(x_BSD).view(batch, length, 3, self.n_heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            self.pos_embed(query), self.pos_embed(key), value, is_causal=self.is_causal
        )
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class SwiGLU(nn.Module):
    """Gated feed-forward layer; F is 8/3 D rounded up to a multiple of 256."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _FFN_MULTIPLE * math.ceil((8 * width // 3) / _FFN_MULTIPLE)
        self.w12 = nn.Linear(width, 2 * inner, bias=False)
        self.w3 = nn.Linear(inner, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        gate, value = self.w12(x_BSD).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class GeluMLP(nn.Module):
    """Plain feed-forward layer, F = 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, 4 * width, bias=False)
        self.w3 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        return self.w3(functional.gelu(self.w1(x_BSD)))


class Block(nn.Module):
    """Attention, then feed-forward, each behind a layer norm and a residual."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.attention = Attention(config)
        self.feed_forward = SwiGLU(width) if config.ffn_type == "swiglu" else GeluMLP(width)
        self.attention_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.ffn_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self._initialise(width, index)

    def _initialise(self, width: int, index: int) -> None:
        """Truncated normal; matrices that write to the residual are smaller in deep blocks."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                residual = module is self.attention.out_proj or module is self.feed_forward.w3
                std = width**-0.5 / (math.sqrt(2 * (index + 1)) if residual else 1.0)
                nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD))
        return x_BSD + self.feed_forward(self.ffn_norm(x_BSD))


class Denoiser(nn.Module):
    """Tokens to tokens: pre-norm blocks with rotary positions.

    The vocabulary table, head and final norm of the published module get no gradient in a policy,
    so they are not built; the last hidden state is taken before the final norm.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.post_embed_norm = (
            nn.LayerNorm(width, eps=config.norm_eps) if config.post_embed_norm else None
        )
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.n_layers))

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to the hidden state [B, S, D] behind the last block."""
        if self.post_embed_norm is not None:
            x_BSD = self.post_embed_norm(x_BSD)
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        return x_BSD
