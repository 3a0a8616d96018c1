"""CLIP as a backbone: a token for the sentence, one for each picture. Source: lbm-training 2.4.

Legend of shapes: B batch, N pictures (time outer, camera inner), L tokens of a sentence, C width of
the common space, M = (1 +) N.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.diffusion_policy.config import ClipBackboneConfig
from vlatool.models.diffusion_policy.pixels import prepared
from vlatool.models.pretrained import load_base, transformers


class ClipBackbone(nn.Module):
    """Both towers of CLIP; names of weights as published, below `_model.model`."""

    def __init__(self, config: ClipBackboneConfig) -> None:
        super().__init__()
        self._config = config
        self._model = ClipTowers(config)
        self.width: int = self._model.model.config.projection_dim
        self.img_size: int = self._model.model.config.vision_config.image_size

    def forward(self, images: Tensor, text: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Tokens [B, M, C]."""
        assert self._config.image_mean is not None
        assert self._config.image_std is not None
        colours = (self._config.image_mean, self._config.image_std)
        pixels = prepared(images.flatten(0, 1), (self.img_size, self.img_size), *colours)
        tokens = self._model.pictures(pixels).unflatten(0, images.shape[:2])
        if image_mask is not None:
            tokens = tokens * image_mask[..., None]
        if self._config.disable_text:
            return tokens
        return torch.cat([self._model.sentences(text)[:, None], tokens], dim=1)

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of both towers, those that nothing runs through left out."""
        towers = [self._model.model.vision_model, self._model.model.text_model]
        used = towers[:1] if self._config.disable_text else towers
        return [layer for tower in used for layer in tower.encoder.layers]

    def load_base(self) -> None:
        """The published weights of its base model."""
        load_base(self._model.model, self._config.base)


class ClipTowers(nn.Module):
    """The network of transformers; its temperature, which only its own loss uses, is kept."""

    def __init__(self, config: ClipBackboneConfig) -> None:
        super().__init__()
        assert config.architecture is not None
        library = transformers()
        settings = library.AutoConfig.for_model(**config.architecture)
        self.model: Any = library.CLIPModel(settings)
        temperature = self.model.logit_scale.detach()
        del self.model.logit_scale
        # No parameter: a scalar cannot be sharded.
        self.model.register_buffer("logit_scale", temperature)
        if config.disable_text or config.freeze_text_encoder:
            self.model.text_model.requires_grad_(requires_grad=False)
        if config.disable_text:
            self.model.text_projection.requires_grad_(requires_grad=False)
        if config.freeze_image_encoder:
            self.model.vision_model.requires_grad_(requires_grad=False)

    def pictures(self, pixels: Tensor) -> Tensor:
        """[K, 3, S, S] to [K, C]: projected, then of length one."""
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return functional.normalize(self.model.visual_projection(pooled), dim=-1)

    def sentences(self, text: Tensor) -> Tensor:
        """Ids + 1, 0 for none, int64 [B, L] to [B, C]: of length one, then projected.

        Attention is causal and the token at the end of the sentence is what counts, so the filling
        behind it changes nothing.
        """
        pooled = self.model.text_model(input_ids=(text - 1).clamp(min=0)).pooler_output
        return self.model.text_projection(functional.normalize(pooled, dim=-1))
