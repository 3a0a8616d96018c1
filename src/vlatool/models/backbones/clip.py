"""CLIP as a backbone: one token for the instruction, one per image.

The network comes from `transformers`, but is faster in two places: its GELU stores less, and the
last layer of the vision tower computes the only token that is used. Source: reference/policy 1.4.

Legend of shapes: B batch, N images of a sample, K images of a batch, S side of an image or its
number of tokens, L token ids of an instruction, M tokens, D width of a tower, C token width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.backbones.config import ClipBackboneConfig
from vlatool.models.backbones.images import ImageNormalizer
from vlatool.models.base import Rng
from vlatool.models.pretrained import build_network, load_base, transformers

# Constant of the GELU approximation that CLIP was trained with.
_QUICK_GELU_FACTOR = 1.702


class ClipBackbone(nn.Module):
    """Backbone with both towers of CLIP; weight names below `_model.model` as published."""

    def __init__(self, config: ClipBackboneConfig) -> None:
        super().__init__()
        assert config.image_mean is not None
        assert config.image_std is not None
        self._config = config
        self._model = ClipTowers(config)
        self._prepared = ImageNormalizer(config.image_mean, config.image_std)
        self.width: int = self._model.model.config.projection_dim
        self.img_size: int = self._model.model.config.vision_config.image_size

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        rng: Rng | None = None,
    ) -> Tensor:
        """Tokens [B, M, C]."""
        pixels = self._prepared(images.flatten(0, 1), (self.img_size, self.img_size))
        tokens = self._model.encode_images(pixels).unflatten(0, images.shape[:2])
        if image_mask is not None:
            tokens = tokens * image_mask[..., None]
        if self._config.disable_text:
            return tokens
        return torch.cat([self._model.encode_text(text)[:, None], tokens], dim=1)

    def blocks(self) -> list[nn.Module]:
        """The layers of both towers; without the text tower if `disable_text` is set."""
        blocks = list(self._model.model.vision_model.encoder.layers)
        if not self._config.disable_text:
            blocks += self._model.model.text_model.encoder.layers
        return blocks

    def load_base(self) -> None:
        load_base(self._model.model, self._config.base)


class ClipTowers(nn.Module):
    """The CLIP network of transformers; the temperature is a buffer, as no policy loss uses it."""

    def __init__(self, config: ClipBackboneConfig) -> None:
        super().__init__()
        assert config.architecture is not None
        self.model: Any = build_network(config.architecture, transformers().CLIPModel)
        temperature = self.model.logit_scale.detach()
        del self.model.logit_scale
        # A buffer, because a scalar parameter cannot be sharded.
        self.model.register_buffer("logit_scale", temperature)
        for tower in (self.model.text_model, self.model.vision_model):
            if tower.config.hidden_act == "quick_gelu":
                for layer in tower.encoder.layers:
                    layer.mlp.activation_fn = QuickGelu()
        layers = self.model.vision_model.encoder.layers
        if len(layers) and self.model.vision_model.config.attention_dropout == 0:
            first_token_layer = type(
                "FirstTokenLayer", (type(layers[-1]),), {"forward": _first_token}
            )
            layers[-1].__class__ = first_token_layer
        if config.disable_text:
            self.model.text_projection.requires_grad_(requires_grad=False)
        if config.disable_text or config.freeze_text_encoder:
            self.model.text_model.requires_grad_(requires_grad=False)
        if config.freeze_image_encoder:
            self.model.vision_model.requires_grad_(requires_grad=False)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """[K, 3, S, S] to [K, C]: projected, then normalized to unit length."""
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self.model.visual_projection(pooled), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids + 1, padded with 0, int64 [B, L] to [B, C]: unit length, then projected.

        Attention is causal and only the end-of-text token is pooled, so padding has no effect.
        """
        pooled = self.model.text_model(input_ids=(text - 1).clamp(min=0)).pooler_output
        return self.model.text_projection(functional.normalize(pooled, dim=-1))


class QuickGelu(nn.Module):
    """`x sigmoid(1.702 x)`, which stores one tensor for the backward pass instead of two."""

    def forward(self, x: Tensor) -> Tensor:
        """Element-wise, for any shape."""
        return functional.silu(x * _QUICK_GELU_FACTOR) * (1 / _QUICK_GELU_FACTOR)


def _first_token(layer: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """Forward pass of the last vision layer: [K, S, D] to its first token [K, 1, D].

    No other token is pooled.
    """
    attention = layer.self_attn
    first = hidden_states[:, :1]
    normed = layer.layer_norm1(hidden_states)
    heads = (attention.num_heads, -1)
    query = attention.q_proj(normed[:, :1]).unflatten(2, heads).transpose(1, 2)
    key = attention.k_proj(normed).unflatten(2, heads).transpose(1, 2)
    value = attention.v_proj(normed).unflatten(2, heads).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    first = first + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return first + layer.mlp(layer.layer_norm2(first))
