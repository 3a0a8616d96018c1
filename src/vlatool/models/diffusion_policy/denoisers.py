"""Denoisers: networks from tokens to tokens. Source: reference/policy 1.5.

Legend of shapes: B batch, S tokens, D width, H heads, F hidden width of the feed-forward layers. A
new denoiser is a class with `width` (D), `forward(x [B, S, D])` and `blocks()` (units of sharding
and gradient checkpointing).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.diffusion_policy.backbone_config import NormType
from vlatool.models.diffusion_policy.config import (
    CausalLMConfig,
    DenoiserSection,
    TransformerConfig,
)
from vlatool.models.pretrained import build_network, load_base, transformers

_ROTARY_BASE = 10_000.0
_FFN_MULTIPLE = 256


class RotaryPositions(nn.Module):
    """Rotary position embedding of half-split query and key channels."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", _ROTARY_BASE**-exponent)

    def cos_sin(self, length: int) -> Tensor:
        """Cosines and sines of positions, [2, length, head_dim]; equal in every layer."""
        positions = torch.arange(length, device=self.inv_freq.device, dtype=torch.float32)
        angle = torch.outer(positions, self.inv_freq.float())
        angle = torch.cat([angle, angle], dim=-1)
        return torch.stack([angle.cos(), angle.sin()])

    def forward(self, x_BHSd: Tensor, cos_sin: Tensor) -> Tensor:
        """Rotates x [B, H, S, D / H] by `cos_sin` [2, S, D / H]."""
        cosines, sines = cos_sin
        first, second = x_BHSd.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
        return (x_BHSd * cosines + rotated * sines).to(x_BHSd.dtype)


class LowPrecisionLayerNorm(nn.LayerNorm):
    """Layer norm in the autocast precision, for which autocast would use float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - name of torch
        """[..., D] to [..., D]."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        lowered = input if dtype is None else input.to(dtype)
        scale, shift = (
            None if parameter is None else parameter.to(lowered)
            for parameter in (self.weight, self.bias)
        )
        with torch.autocast(device, enabled=False):
            return functional.layer_norm(lowered, self.normalized_shape, scale, shift, self.eps)


def make_norm(kind: NormType, width: int, eps: float) -> nn.Module:
    """The norm layer that `kind` names."""
    norms: Mapping[NormType, Any] = {
        "default_layer_norm": lambda: nn.LayerNorm(width, eps=eps),
        "lp_layer_norm": lambda: LowPrecisionLayerNorm(width, eps=eps),
        "gain_only_layer_norm": lambda: nn.LayerNorm(width, eps=eps, bias=False),
        "gain_only_lp_layer_norm": lambda: LowPrecisionLayerNorm(width, eps=eps, bias=False),
        "no_wb_layer_norm": lambda: nn.LayerNorm(width, eps=eps, elementwise_affine=False),
        "rms_norm": lambda: nn.RMSNorm(width, eps=eps),
    }
    return norms[kind]()


class Attention(nn.Module):
    """Self-attention with one fused projection; no biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.n_heads = config.n_heads
        self.is_causal = config.is_causal
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        rotates = config.positional_embedding_type != "none"
        self.pos_embed = RotaryPositions(width // config.n_heads) if rotates else None
        norms = [
            make_norm(config.norm_type, width, config.norm_eps) if config.qk_norm else nn.Identity()
            for _ in range(2)
        ]
        self.q_norm, self.k_norm = norms

    def forward(self, x_BSD: Tensor, cos_sin: Tensor | None) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        query, key, value = self.in_proj(x_BSD).chunk(3, dim=-1)
        query, key, value = map(self._heads, (self.q_norm(query), self.k_norm(key), value))
        if self.pos_embed is not None and cos_sin is not None:
            query, key = self.pos_embed(query, cos_sin), self.pos_embed(key, cos_sin)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(x_BSD.shape))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, H, S, D / H]."""
        return x_BSD.unflatten(2, (self.n_heads, -1)).transpose(1, 2)


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
    """Pre-norm block: attention, then feed-forward, each with a residual connection."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.attention = Attention(config)
        self.feed_forward = SwiGLU(width) if config.ffn_type == "swiglu" else GeluMLP(width)
        self.attention_norm = make_norm(config.norm_type, width, config.norm_eps)
        self.ffn_norm = make_norm(config.norm_type, width, config.norm_eps)
        self._initialize(width, index)

    def _initialize(self, width: int, index: int) -> None:
        """Initializes matrices; output projections of deeper blocks have a smaller std."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                residual = module is self.attention.out_proj or module is self.feed_forward.w3
                std = width**-0.5 / (math.sqrt(2 * (index + 1)) if residual else 1.0)
                nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x_BSD: Tensor, cos_sin: Tensor | None) -> Tensor:
        """[B, S, D] to [B, S, D]; `cos_sin` is None without position embedding."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), cos_sin)
        return x_BSD + self.feed_forward(self.ffn_norm(x_BSD))


class NativeTransformer(nn.Module):
    """Transformer of pre-norm blocks with rotary position embedding.

    The token embedding, head and final norm of the published module get no gradient in a policy,
    so they are not built; the output is the last hidden state before the final norm.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.width = config.hidden_dim
        self.post_embed_norm = (
            make_norm(config.norm_type, self.width, config.norm_eps)
            if config.post_embed_norm
            else None
        )
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.n_layers))

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to the hidden state [B, S, D] after the last block."""
        if self.post_embed_norm is not None:
            x_BSD = self.post_embed_norm(x_BSD)
        cos_sin = self._cos_sin(x_BSD.shape[1])
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos_sin)
        return x_BSD

    def _cos_sin(self, length: int) -> Tensor | None:
        """Cosines and sines of positions, computed once for all layers."""
        rotary = next(
            (module for module in self.modules() if isinstance(module, RotaryPositions)), None
        )
        return None if rotary is None else rotary.cos_sin(length)

    def blocks(self) -> Sequence[nn.Module]:
        """The layers."""
        return list(self.layers)


class CausalLM(nn.Module):
    """A causal language model of transformers; the output is the state after its last norm.

    Token embedding and head get no gradient in a policy, so they are removed.
    """

    def __init__(self, config: CausalLMConfig) -> None:
        super().__init__()
        assert config.architecture is not None
        self._config = config
        self.model = self._build(config.architecture)
        self.width: int = self.model.config.get_text_config().hidden_size
        self._drop_embeddings()

    @staticmethod
    def _build(architecture: Mapping[str, Any]) -> Any:
        auto = transformers().AutoModelForCausalLM
        return build_network(architecture, partial(auto.from_config, trust_remote_code=False))

    def _drop_embeddings(self) -> None:
        self.model.set_input_embeddings(nn.Identity())
        self.model.set_output_embeddings(nn.Identity())

    def load_base(self) -> None:
        """Loads the published weights of the base model."""
        full_model = self._build(self.model.config.to_dict())
        load_base(full_model, self._config.base)
        self.model.load_state_dict(full_model.state_dict(), strict=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        decoder = self.model.get_decoder()
        return decoder(inputs_embeds=x_BSD, use_cache=False).last_hidden_state

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the decoder."""
        return list(self.model.get_decoder().layers)


DENOISERS: Mapping[str, Any] = {"transformer": NativeTransformer, "transformer_hf": CausalLM}


def build_denoiser(config: DenoiserSection) -> Any:
    """The denoiser that the `type` of a section names."""
    return DENOISERS[config.type](config)
