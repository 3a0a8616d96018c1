"""Backbones: images and language to conditioning tokens. Source: reference/policy 1.4.

A new backbone is a class with `width` (C), `blocks()` (units of sharding and gradient
checkpointing) and the same forward: `forward(images uint8 [B, N, 3, H, W], text [B, L], image_mask
bool [B, N] or None, rng)` returns [B, M, C], where `rng` draws what dropout needs. One with a base
model also has `load_base()`. CLIP gives one token per instruction and one per image. A
vision-language model gives one token per sample: an added token follows the instruction; the
concatenated states of the last layers at this position are the output.

Legend of shapes: B batch, N images (time outer, camera inner), K images of a batch, H and W height
and width, S side of an image, L bytes or token ids of an instruction (and of the images of a
vision-language model), M tokens, C token width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.base import Rng
from vlatool.models.diffusion_policy.config import (
    Backbone,
    ByteTextConfig,
    ClipBackboneConfig,
    KeypointBackboneConfig,
    TextBackboneConfig,
    ViTBackboneConfig,
    VlmBackboneConfig,
)
from vlatool.models.pretrained import build_network, load_base, text_width, transformers
from vlatool.models.rng import SampleDropout


class ImageNormalizer(nn.Module):
    """Resizes images and normalizes their colors with mean and std. Mean and std are buffers on the
    device: a copy in the middle of a step would block the host.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, levels in (("shift", mean), ("scale", std)):
            color = 255 * torch.tensor(levels)[:, None, None]
            self.register_buffer(name, color, persistent=False)

    def forward(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Images uint8 [K, 3, H, W] to float32 [K, 3, *size]: (image / 255 - mean) / std."""
        return (_resized_bicubic(images, size).float() - self.shift).div_(self.scale)


def _resized_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[-2:] == size:
        return images
    # Only CPUs have a uint8 kernel; its results equal those of image libraries.
    source = images if images.device.type == "cpu" else images.float()
    resized = functional.interpolate(source, size, mode="bicubic", antialias=True)
    return resized if resized.dtype == torch.uint8 else resized.clamp(0, 255).round()


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

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of both towers; without the text tower if `disable_text` is set."""
        towers = [self._model.model.vision_model, self._model.model.text_model]
        used = towers[:1] if self._config.disable_text else towers
        return [layer for tower in used for layer in tower.encoder.layers]

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
        # Lets the last layer compute only its first token, because no other token is pooled
        if self.model.vision_model.config.attention_dropout == 0 and len(
            self.model.vision_model.encoder.layers
        ):
            last = self.model.vision_model.encoder.layers[-1]
            last.__class__ = type("FirstTokenLayer", (type(last),), {"forward": _first_token})
        if config.disable_text or config.freeze_text_encoder:
            self.model.text_model.requires_grad_(requires_grad=False)
        if config.disable_text:
            self.model.text_projection.requires_grad_(requires_grad=False)
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
    """Forward pass of a vision layer for its first token only: [K, S, D] to [K, 1, D]."""
    attention = layer.self_attn
    normed = layer.layer_norm1(hidden_states)
    projected = (
        attention.q_proj(normed[:, :1]),
        attention.k_proj(normed),
        attention.v_proj(normed),
    )
    query, key, value = (
        tensor.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for tensor in projected
    )
    mixed = functional.scaled_dot_product_attention(query, key, value)
    first = hidden_states[:, :1] + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return first + layer.mlp(layer.layer_norm2(first))


# Names of the lists of layers in all supported models.
_LAYERS = ("layers", "blocks")


class VlmBackbone(nn.Module):
    """Backbone with a model of the auto class; weight names below `_model.model` as published."""

    def __init__(self, config: VlmBackboneConfig) -> None:
        super().__init__()
        assert config.architecture is not None
        assert config.image_mean is not None
        assert config.image_std is not None
        self._config = config
        self._prepared = ImageNormalizer(config.image_mean, config.image_std)
        self._model = nn.ModuleDict({"model": self._extend(self._build(config.architecture))})
        self.width = text_width(config.architecture) * config.num_vlm_layers_to_use
        self.img_size = config.image_size

    @property
    def _network(self) -> Any:
        return self._model["model"]

    @staticmethod
    def _build(architecture: Mapping[str, Any]) -> Any:
        auto = transformers().AutoModelForImageTextToText
        return build_network(architecture, partial(auto.from_config, trust_remote_code=False))

    @staticmethod
    def _extend(network: Any) -> Any:
        """Adds a token embedding, the mean of all others, and removes the unused head."""
        num_tokens = network.get_input_embeddings().num_embeddings
        network.resize_token_embeddings(num_tokens + 1, mean_resizing=False)
        table: Tensor = network.get_input_embeddings().weight
        with torch.no_grad():
            table[-1] = table[:-1].mean(dim=0)
        network.lm_head = nn.Identity()
        return network

    def load_base(self) -> None:
        assert self._config.architecture is not None
        full_model = self._build(self._config.architecture)
        load_base(full_model, self._config.base)
        self._network.load_state_dict(self._extend(full_model).state_dict())

    def forward(
        self,
        images: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        rng: Rng | None = None,
    ) -> Tensor:
        """Tokens [B, 1, C]; padded images are black."""
        if image_mask is not None:
            images = images * image_mask[..., None, None, None]
        base = self._network.model
        lengths = (text > 0).sum(dim=1)
        ids, seen = append_token(text, lengths, base.get_input_embeddings().num_embeddings - 1)
        states = base(
            input_ids=ids,
            attention_mask=seen.long(),
            use_cache=False,
            output_hidden_states=True,
            **self._pixels(images, ids),
        ).hidden_states
        rows = torch.arange(len(text), device=text.device)
        last = states[-self._config.num_vlm_layers_to_use :]
        return torch.cat([state[rows, lengths] for state in last], dim=-1)[:, None]

    def _pixels(self, images: Tensor, ids: Tensor) -> dict[str, Tensor]:
        assert self._config.image_size is not None
        side = (self._config.image_size, self._config.image_size)
        pixels = self._prepared(images.flatten(0, 1), side).unflatten(0, images.shape[:2])
        assert self._config.architecture is not None
        return _PIXELS[self._config.architecture["model_type"]](pixels, ids, self._network)

    def blocks(self) -> Sequence[nn.Module]:
        return [
            layer
            for name, layers in self._model.named_modules()
            if isinstance(layers, nn.ModuleList) and name.endswith(_LAYERS)
            for layer in layers
        ]


def append_token(text: Tensor, lengths: Tensor, token_id: int) -> tuple[Tensor, Tensor]:
    """Appends a token to each text.

    `text`: token ids + 1, padded with 0, int64 [B, L]; `lengths`: number of token ids of each text,
    int64 [B]; returns token ids int64 [B, L + 1], and their attention mask bool [B, L + 1].
    """
    ids = torch.cat([text - 1, torch.zeros_like(text[:, :1])], dim=1).clamp(min=0)
    ids = ids.scatter(1, lengths[:, None], token_id)
    return ids, torch.arange(ids.shape[1], device=ids.device) <= lengths[:, None]


def _rows(pixels: Tensor, ids: Tensor, _network: Any) -> dict[str, Tensor]:
    """Images as rows; all tokens belong to the prefix, which has full attention."""
    return {"pixel_values": pixels.flatten(0, 1), "token_type_ids": torch.zeros_like(ids)}


def _samples(pixels: Tensor, _ids: Tensor, _network: Any) -> dict[str, Tensor]:
    """Images by sample, without masked pixels."""
    mask = torch.ones_like(pixels[:, :, 0], dtype=torch.bool)
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def _patches(pixels: Tensor, ids: Tensor, network: Any) -> dict[str, Tensor]:
    """Patches of all images, [patches, values], in the order in which the model merges squares. An
    image counts as a video of `temporal_patch_size` equal frames.
    """
    vision = network.config.vision_config
    side = vision.patch_size
    merged = vision.spatial_merge_size
    flat = pixels.flatten(0, 1)
    across = flat.shape[-1] // (side * merged)
    split = flat.unflatten(2, (across, merged, side)).unflatten(5, (across, merged, side))
    ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7)
    video = ordered.unsqueeze(6).expand(*(-1,) * 6, vision.temporal_patch_size, -1, -1)
    grid = torch.tensor([[1, across * merged, across * merged]], device=ids.device)
    return {
        "pixel_values": video.flatten(5).flatten(0, 4),
        "image_grid_thw": grid.expand(len(flat), -1),
        "mm_token_type_ids": (ids == network.config.image_token_id).int(),
    }


_PIXELS: Mapping[str, Callable[[Tensor, Tensor, Any], dict[str, Tensor]]] = {
    "paligemma": _rows,
    "smolvlm": _samples,
    "idefics3": _samples,
    "qwen3_vl": _patches,
}


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

    def forward(self, x: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        """[K, P, C] to [K, P, C]; `masks` of the dropout after attention and MLP."""
        x = x + self.dropout(self.attn(self.ln1(x)), masks[0])
        return x + self.dropout(self.mlp(self.ln2(x)), masks[1])


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
            x = block(x, [block.dropout.mask(x, rng, repeats) for _ in range(2)])
        return self.layer_norm(x)


class ViTBackbone(nn.Module):
    """One token per patch of each image, and one for language if it is encoded."""

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
        batch = images.shape[0]
        resized = _resized(_unit_range(images).flatten(0, 1), self.img_size)
        tokens = self._model(resized, rng, images.shape[1])
        if image_mask is not None:
            tokens = tokens * image_mask.flatten()[:, None, None]
        tokens = tokens.reshape(batch, -1, self.width)
        if self.text is None:
            return tokens
        return torch.cat([self.text(text)[:, None], tokens], dim=1)

    def blocks(self) -> Sequence[nn.Module]:
        return list(self._model.blocks)


class TextBackbone(nn.Module):
    """One token of the instruction if it is encoded, and none of images."""

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

    def blocks(self) -> Sequence[nn.Module]:
        return []


class KeypointBackbone(nn.Module):
    """One token per image with the positions of learned features, conditioned on language."""

    def __init__(self, config: KeypointBackboneConfig) -> None:
        super().__init__()
        self.width = config.hidden_dim
        assert config.num_cameras is not None
        assert config.num_times is not None
        self.num_cameras = config.num_cameras
        text = config.text_encoder
        self.text_encoder = None if text is None else ByteTextEncoder(text)
        text_width = 0 if text is None else text.hidden_dim
        self.text_token = nn.Linear(text_width, config.hidden_dim) if text_width else None
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
        sentence = None if self.text_encoder is None else self.text_encoder(text)
        per_camera = [
            encoder(pixels[:, :, index], sentence) for index, encoder in enumerate(self.cameras)
        ]
        tokens = torch.stack(per_camera, dim=2) + self.time_marks
        tokens = tokens.reshape(batch, count, self.width)
        if image_mask is not None:
            tokens = tokens * image_mask[..., None]
        if self.text_token is None:
            return tokens
        return torch.cat([self.text_token(sentence)[:, None], tokens], dim=1)

    def blocks(self) -> Sequence[nn.Module]:
        """No blocks, because the network is small."""
        return []


class KeypointEncoder(nn.Module):
    """Encoder of the images of one camera; FiLM conditions the convolutions on language."""

    def __init__(self, config: KeypointBackboneConfig, text_width: int) -> None:
        super().__init__()
        first, second = config.channels
        self.conv1 = nn.Conv2d(3, first, kernel_size=5, stride=4, padding=2)
        self.norm1 = _group_norm(first) if config.group_norm else nn.Identity()
        self.conv2 = nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1)
        self.norm2 = _group_norm(second) if config.group_norm else nn.Identity()
        self.film = nn.Linear(text_width, 2 * second) if text_width else None
        self.conv3 = nn.Conv2d(second, config.num_keypoints, kernel_size=3, padding=1)
        # Maps that are almost constant at the start give keypoints in the middle of all images.
        self.temperature = nn.Parameter(torch.full((1,), 4.0 if config.group_norm else 1.0))
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


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def _text_token(config: ByteTextConfig | None, width: int) -> nn.Module | None:
    if config is None:
        return None
    return nn.Sequential(ByteTextEncoder(config), nn.Linear(config.hidden_dim, width))


def _unit_range(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1.0


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
    return functional.interpolate(images, (size, size), **options)


BACKBONES: Mapping[str, Any] = {
    "vit_backbone": ViTBackbone,
    "keypoint_backbone": KeypointBackbone,
    "text_backbone": TextBackbone,
    "clip_backbone": ClipBackbone,
    "clip_hf": ClipBackbone,
    "vlm_backbone": VlmBackbone,
}


def build_backbone(config: Backbone) -> Any:
    """The backbone that the `type` of a section names."""
    return BACKBONES[config.type](config)
