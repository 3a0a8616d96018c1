"""Backbones that are trained from scratch: a vision transformer, keypoints, language alone.

Legend of shapes: B batch, N images of a sample (time outer, camera inner), I images of a camera, K
images of a batch, H and W height and width, P patches or keypoints of an image, L bytes of an
instruction, C token width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.backbones.config import (
    ByteTextConfig,
    KeypointBackboneConfig,
    TextBackboneConfig,
    ViTBackboneConfig,
)
from vlatool.models.base import Rng
from vlatool.models.rng import SampleDropout


class ByteTextEncoder(nn.Module):
    """Text encoder on bytes: one vector per instruction, from phrases at any position."""

    def __init__(self, config: ByteTextConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.embedding = nn.Embedding(257, width, padding_idx=0)
        self.words = nn.Conv1d(width, 2 * width, kernel_size=5, padding=2)
        self.out = nn.Linear(2 * width, width)

    def forward(self, text_BL: Tensor) -> Tensor:
        """Bytes + 1, 0 for padding, int64 [B, L] to [B, hidden_dim]."""
        features = functional.relu(self.words(self.embedding(text_BL).transpose(1, 2)))
        features = features.masked_fill((text_BL == 0)[:, None], 0.0)
        return self.out(features.amax(dim=2))


class PatchEmbedding(nn.Module):
    """Patch embedding of images with learned positions."""

    def __init__(self, config: ViTBackboneConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.conv = nn.Conv2d(3, config.hidden_dim, kernel_size=side, stride=side)
        patches = (config.img_size // side) ** 2
        self.position_embedding = nn.Parameter(torch.randn(1, patches, config.hidden_dim) * 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Images [K, 3, H, W] to tokens [K, P, C]."""
        return self.conv(images).flatten(2).transpose(1, 2) + self.position_embedding


class ViTAttention(nn.Module):
    """Full attention over the patches of one image."""

    def __init__(self, config: ViTBackboneConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[K, P, C] to [K, P, C]."""
        count, patches, width = x.shape
        projected = self.qkv_proj(x).view(count, patches, 3, self.n_heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).reshape(count, patches, width))


class ViTMLP(nn.Module):
    """Feed-forward layer of a block."""

    def __init__(self, config: ViTBackboneConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[K, P, C] to [K, P, C]."""
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class ViTBlock(nn.Module):
    """Pre-norm block."""

    def __init__(self, config: ViTBackboneConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_dim, eps=config.ln_eps)
        self.attn = ViTAttention(config)
        self.ln2 = nn.LayerNorm(config.hidden_dim, eps=config.ln_eps)
        self.mlp = ViTMLP(config)
        self.dropout = SampleDropout(config.dropout)

    def forward(self, x: Tensor, attention_mask: Tensor | None, mlp_mask: Tensor | None) -> Tensor:
        """[K, P, C] to [K, P, C]; the masks are for the dropout after attention and MLP."""
        x = x + self.dropout(self.attn(self.ln1(x)), attention_mask)
        return x + self.dropout(self.mlp(self.ln2(x)), mlp_mask)


class ViT(nn.Module):
    """Vision transformer, images to patch tokens; module names as published."""

    def __init__(self, config: ViTBackboneConfig) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.blocks = nn.ModuleList(ViTBlock(config) for _ in range(config.n_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_dim, eps=config.ln_eps)

    def forward(self, images: Tensor, rng: Rng | None, repeats: int) -> Tensor:
        """[K, 3, H, W] to [K, P, C]; `rng` draws a row for each `repeats` images."""
        x = self.patch_embedding(images)
        for block in self.blocks:
            assert isinstance(block, ViTBlock)
            # Drawn outside of the block, which the backward pass may compute again.
            attention_mask = block.dropout.mask(x, rng, repeats)
            mlp_mask = block.dropout.mask(x, rng, repeats)
            x = block(x, attention_mask, mlp_mask)
        return self.layer_norm(x)


class ViTBackbone(nn.Module):
    """Gives one token per patch of each image, and one for language if it is encoded."""

    def __init__(self, config: ViTBackboneConfig) -> None:
        super().__init__()
        self.width = config.hidden_dim
        self.img_size = config.img_size
        self._model = ViT(config)
        self.text = _text_token(config.text_encoder, config.hidden_dim)

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        rng: Rng | None = None,
    ) -> Tensor:
        """Tokens [B, (1 +) N * P, C]."""
        batch, count = images.shape[:2]
        side = (self.img_size, self.img_size)
        pixels = _unit_range(images).flatten(0, 1)
        if pixels.shape[-2:] != side:
            pixels = functional.interpolate(
                pixels, side, mode="bilinear", antialias=True, align_corners=False
            )
        tokens = self._model(pixels, rng, count)
        if image_mask is not None:
            tokens = tokens * image_mask.flatten()[:, None, None]
        tokens = tokens.reshape(batch, -1, self.width)
        if self.text is None:
            return tokens
        return torch.cat([self.text(text)[:, None], tokens], dim=1)

    def blocks(self) -> list[nn.Module]:
        return list(self._model.blocks)


class TextBackbone(nn.Module):
    """Gives one token for the instruction if it is encoded, and none for images."""

    def __init__(self, config: TextBackboneConfig) -> None:
        super().__init__()
        self.width = config.hidden_dim
        self.text = _text_token(config.text_encoder, config.hidden_dim)

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        rng: Rng | None = None,
    ) -> Tensor:
        """Tokens [B, 0 or 1, C]."""
        if self.text is None:
            return torch.zeros(len(text), 0, self.width, device=text.device)
        return self.text(text)[:, None]

    def blocks(self) -> list[nn.Module]:
        return []


class KeypointBackbone(nn.Module):
    """Gives one token per image: positions of learned features, conditioned on language."""

    def __init__(self, config: KeypointBackboneConfig) -> None:
        super().__init__()
        self.width = config.hidden_dim
        assert config.num_cameras is not None
        assert config.num_times is not None
        self.num_cameras = config.num_cameras
        self.text_encoder = None
        self.text_token = None
        text_width = 0
        if config.text_encoder is not None:
            text_width = config.text_encoder.hidden_dim
            self.text_encoder = ByteTextEncoder(config.text_encoder)
            self.text_token = nn.Linear(text_width, config.hidden_dim)
        self.time_marks = nn.Parameter(torch.randn(config.num_times, 1, config.hidden_dim) * 0.5)
        self.cameras = nn.ModuleList(
            KeypointEncoder(config, text_width) for _ in range(self.num_cameras)
        )

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        rng: Rng | None = None,
    ) -> Tensor:
        """Tokens [B, (1 +) N, C]."""
        batch, count = images.shape[:2]
        pixels = _unit_range(images).unflatten(1, (-1, self.num_cameras))
        sentence = None
        if self.text_encoder is not None:
            sentence = self.text_encoder(text)
        per_camera: list[Tensor] = []
        for index, encoder in enumerate(self.cameras):
            per_camera.append(encoder(pixels[:, :, index], sentence))
        tokens = torch.stack(per_camera, dim=2) + self.time_marks
        tokens = tokens.reshape(batch, count, self.width)
        if image_mask is not None:
            tokens = tokens * image_mask[..., None]
        if self.text_token is None:
            return tokens
        return torch.cat([self.text_token(sentence)[:, None], tokens], dim=1)

    def blocks(self) -> list[nn.Module]:
        """No blocks, because the network is small."""
        return []


class KeypointEncoder(nn.Module):
    """Encoder of the images of one camera; FiLM conditions the convolutions on language."""

    def __init__(self, config: KeypointBackboneConfig, text_width: int) -> None:
        super().__init__()
        first, second = config.channels
        self.conv1 = nn.Conv2d(3, first, kernel_size=5, stride=4, padding=2)
        self.norm1 = nn.Identity()
        self.conv2 = nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1)
        self.norm2 = nn.Identity()
        # Maps that are almost constant at the start give keypoints in the middle of all images.
        temperature = 1.0
        if config.group_norm:
            self.norm1 = nn.GroupNorm(math.gcd(first, 8), first)
            self.norm2 = nn.GroupNorm(math.gcd(second, 8), second)
            temperature = 4.0
        self.film = nn.Linear(text_width, 2 * second) if text_width else None
        self.conv3 = nn.Conv2d(second, config.num_keypoints, kernel_size=3, padding=1)
        self.temperature = nn.Parameter(torch.full((1,), temperature))
        self.out = nn.Linear(2 * config.num_keypoints, config.hidden_dim)

    def forward(self, images: Tensor, sentence: Tensor | None) -> Tensor:
        """[B, I, 3, H, W] and [B, text_width] to tokens [B, I, C]."""
        batch, times = images.shape[:2]
        features = functional.relu(self.norm1(self.conv1(images.flatten(0, 1))))
        features = self.norm2(self.conv2(features))
        if self.film is not None and sentence is not None:
            scale, shift = self.film(sentence).repeat_interleave(times, 0).chunk(2, dim=1)
            features = features * (1 + scale[..., None, None]) + shift[..., None, None]
        maps = self.conv3(functional.relu(features))
        return self.out(spatial_softmax(maps, self.temperature)).view(batch, times, -1)


def spatial_softmax(maps: Tensor, temperature: Tensor) -> Tensor:
    """Expected (x, y) in [-1, 1] of each map: [K, P, H, W] to [K, 2 P]."""
    height, width = maps.shape[2:]
    weights = (maps.flatten(2) * temperature).softmax(dim=2).view_as(maps)
    x = torch.linspace(-1, 1, width, device=maps.device, dtype=maps.dtype)
    y = torch.linspace(-1, 1, height, device=maps.device, dtype=maps.dtype)
    return torch.cat([(weights.sum(2) * x).sum(2), (weights.sum(3) * y).sum(2)], dim=1)


def _text_token(config: ByteTextConfig | None, width: int) -> nn.Module | None:
    if config is None:
        return None
    return nn.Sequential(ByteTextEncoder(config), nn.Linear(config.hidden_dim, width))


def _unit_range(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1.0
