"""A vision-language model as a backbone: one token per sample.

The prompt has all images and the instruction. An added token follows it; the states of the last
layers at its position, concatenated, are the output.

Legend of shapes: B batch, N images of a sample, S side of an image, L token ids of images and
instruction, C token width.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.models.backbones.config import VlmBackboneConfig
from vlatool.models.backbones.images import ImageNormalizer
from vlatool.models.base import Rng
from vlatool.models.pretrained import build_network, load_base, text_width, transformers

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
        self._architecture = config.architecture
        self._prepared = ImageNormalizer(config.image_mean, config.image_std)
        network = _published(config.architecture)
        _add_token(network)
        self._model = nn.ModuleDict({"model": network})
        self.width = text_width(config.architecture) * config.num_vlm_layers_to_use
        self.img_size = config.image_size

    @property
    def _network(self) -> Any:
        return self._model["model"]

    def load_base(self) -> None:
        full_model = _published(self._architecture)
        load_base(full_model, self._config.base)
        _add_token(full_model)
        self._network.load_state_dict(full_model.state_dict())

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
        added = base.get_input_embeddings().num_embeddings - 1
        lengths = (text > 0).sum(dim=1)
        ids = torch.cat([text - 1, torch.zeros_like(text[:, :1])], dim=1).clamp(min=0)
        ids = ids.scatter(1, lengths[:, None], added)
        is_seen = torch.arange(ids.shape[1], device=ids.device) <= lengths[:, None]
        states = base(
            input_ids=ids,
            attention_mask=is_seen.long(),
            use_cache=False,
            output_hidden_states=True,
            **self._pixels(images, ids),
        ).hidden_states
        rows = torch.arange(len(text), device=text.device)
        last = states[-self._config.num_vlm_layers_to_use :]
        return torch.cat([state[rows, lengths] for state in last], dim=-1)[:, None]

    def _pixels(self, images: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Images in the form that the network takes, with its other inputs."""
        assert self._config.image_size is not None
        side = (self._config.image_size, self._config.image_size)
        pixels = self._prepared(images.flatten(0, 1), side)
        kind = self._architecture["model_type"]
        if kind == "paligemma":
            # All tokens belong to the prefix, which has full attention.
            return {"pixel_values": pixels, "token_type_ids": torch.zeros_like(ids)}
        if kind == "qwen3_vl":
            config = self._network.config
            return {
                **_patches(pixels, config.vision_config),
                "mm_token_type_ids": (ids == config.image_token_id).int(),
            }
        pixels = pixels.unflatten(0, images.shape[:2])  # smolvlm and idefics3
        mask = torch.ones_like(pixels[:, :, 0], dtype=torch.bool)
        return {"pixel_values": pixels, "pixel_attention_mask": mask}

    def blocks(self) -> list[nn.Module]:
        blocks: list[nn.Module] = []
        for name, layers in self._model.named_modules():
            if isinstance(layers, nn.ModuleList) and name.endswith(_LAYERS):
                blocks += layers
        return blocks


def _published(architecture: Mapping[str, Any]) -> Any:
    """The network of an architecture, with random weights."""
    auto = transformers().AutoModelForImageTextToText
    return build_network(architecture, partial(auto.from_config, trust_remote_code=False))


def _add_token(network: Any) -> None:
    """Adds a token embedding, the mean of all others, and removes the unused head."""
    num_tokens = network.get_input_embeddings().num_embeddings
    network.resize_token_embeddings(num_tokens + 1, mean_resizing=False)
    table: Tensor = network.get_input_embeddings().weight
    with torch.no_grad():
        table[-1] = table[:-1].mean(dim=0)
    network.lm_head = nn.Identity()


def _patches(pixels: Tensor, vision: Any) -> dict[str, Tensor]:
    """Patches of images [B * N, 3, S, S] in the order in which Qwen3-VL merges squares.

    An image counts as a video of `temporal_patch_size` equal frames.
    """
    side = vision.patch_size
    merged = vision.spatial_merge_size
    across = pixels.shape[-1] // (side * merged)
    split = pixels.unflatten(2, (across, merged, side)).unflatten(5, (across, merged, side))
    ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7)
    video = ordered.unsqueeze(6).expand(*(-1,) * 6, vision.temporal_patch_size, -1, -1)
    grid = torch.tensor([[1, across * merged, across * merged]], device=pixels.device)
    return {
        "pixel_values": video.flatten(5).flatten(0, 4),
        "image_grid_thw": grid.expand(len(pixels), -1),
    }
