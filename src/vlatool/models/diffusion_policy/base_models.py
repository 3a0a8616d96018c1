"""Backbones from base models: CLIP and vision-language models. Source: reference/policy 1.4.

CLIP gives one token per instruction and one per image. A vision-language model gives one token per
sample: an added token follows the instruction; the concatenated states of the last layers at this
position are the output.

Legend of shapes: B batch, N images (time outer, camera inner), K images of a batch, H and W height
and width, S side of an image, L token ids of images and instruction, C width of the tokens,
M = (1 +) N.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.base import Rng
from vlatool.models.diffusion_policy.backbone_config import ClipBackboneConfig, VlmBackboneConfig
from vlatool.models.pretrained import build_network, load_base, text_width, transformers


class ImageNormalizer(nn.Module):
    """Resizes images and normalizes their colors with mean and std.

    Mean and std are buffers on the device: a copy in the middle of a step would block the host.
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
        return (_resized(images, size).float() - self.shift).div_(self.scale)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic with antialiasing, rounded to integers as image libraries do."""
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
        del rng
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
        """Loads the published weights of the base model."""
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
            _simplify(tower)
        _pool_in_last_layer(self.model.vision_model)
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


def _simplify(tower: Any) -> None:
    """Replaces the activation of a tower by the equal `QuickGelu`, if it is `quick_gelu`."""
    if tower.config.hidden_act == "quick_gelu":
        for layer in tower.encoder.layers:
            layer.mlp.activation_fn = QuickGelu()


def _pool_in_last_layer(tower: Any) -> None:
    """Lets the last layer compute only its first token, because no other token is pooled."""
    if tower.config.attention_dropout == 0 and len(tower.encoder.layers):
        last = tower.encoder.layers[-1]
        last.__class__ = type("FirstTokenLayer", (type(last),), {"forward": _first_token})


def _first_token(layer: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    """Forward pass of a vision layer for its first token only: [K, S, D] to [K, 1, D]."""
    attention, normed = layer.self_attn, layer.layer_norm1(hidden_states)
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
        """Loads the published weights of the base model."""
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
        del rng
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
        """Keyword arguments of the network for images."""
        assert self._config.image_size is not None
        side = (self._config.image_size, self._config.image_size)
        pixels = self._prepared(images.flatten(0, 1), side).unflatten(0, images.shape[:2])
        assert self._config.architecture is not None
        return _PIXELS[self._config.architecture["model_type"]](pixels, ids, self._network)

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the vision and the text model."""
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
    """Patches of all images, [patches, values], in the order in which the model merges squares.

    An image counts as a video of `temporal_patch_size` equal frames.
    """
    vision = network.config.vision_config
    side, merged = vision.patch_size, vision.spatial_merge_size
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
