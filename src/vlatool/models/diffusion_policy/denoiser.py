"""The native transformer: pre-norm blocks with rotary positions. Source: lbm-training 2.6.

Legend of shapes: B batch, S tokens, D width, H heads, F width inside the feed-forward layer.
The vocabulary table, head and final norm of the published module get no gradient in a policy, so
they are not built; the last hidden state is taken before the final norm.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.diffusion_policy.spec import TransformerConfig

_ROTARY_BASE = 10_000.0
_FFN_MULTIPLE = 256


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
    """Tokens to tokens."""

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
