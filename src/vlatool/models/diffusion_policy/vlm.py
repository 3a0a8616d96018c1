"""Vision-language models of the hub as a backbone: one token per sample. Source: reference/policy 1.4.

A word of its own stands behind the sentence; the states there of the last layers, side by side, are
the token. Legend of shapes: B batch, N pictures, L ids of pictures and sentence, S side of a
picture, C width of all states together.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.models.diffusion_policy.config import VlmBackboneConfig
from vlatool.models.diffusion_policy.pixels import ImageNormalizer
from vlatool.models.pretrained import load_base, text_width, transformers

# Lists of layers go by these names in every family.
_LAYERS = ("layers", "blocks")


class VlmBackbone(nn.Module):
    """A model of the auto class; names of weights as published, below `_model.model`."""

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
        library = transformers()
        settings = library.AutoConfig.for_model(**architecture)
        auto = library.AutoModelForImageTextToText
        return auto.from_config(settings, trust_remote_code=False)

    @staticmethod
    def _extend(network: Any) -> Any:
        """With a word more, the mean of all, and without the head, which no loss reaches."""
        words = network.get_input_embeddings().num_embeddings
        network.resize_token_embeddings(words + 1, mean_resizing=False)
        table: Tensor = network.get_input_embeddings().weight
        with torch.no_grad():
            table[-1] = table[:-1].mean(dim=0)
        network.lm_head = nn.Identity()
        return network

    def load_base(self) -> None:
        """The published weights of its base model."""
        assert self._config.architecture is not None
        whole = self._build(self._config.architecture)
        load_base(whole, self._config.base)
        self._network.load_state_dict(self._extend(whole).state_dict())

    def forward(self, images: Tensor, text: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Tokens [B, 1, C]; pictures that are padding are black."""
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
        """What the family's network takes of pictures."""
        assert self._config.image_size is not None
        side = (self._config.image_size, self._config.image_size)
        pixels = self._prepared(images.flatten(0, 1), side).unflatten(0, images.shape[:2])
        assert self._config.architecture is not None
        return _PIXELS[self._config.architecture["model_type"]](pixels, ids, self._network)

    def blocks(self) -> Sequence[nn.Module]:
        """The layers of both towers."""
        return [
            layer
            for name, layers in self._model.named_modules()
            if isinstance(layers, nn.ModuleList) and name.endswith(_LAYERS)
            for layer in layers
        ]


def append_token(text: Tensor, lengths: Tensor, token_id: int) -> tuple[Tensor, Tensor]:
    """A word behind each sentence.

    Args:
        text: Ids + 1, 0 behind them, int64 [B, L].
        lengths: Ids of each, int64 [B].
        token_id: Its id.

    Returns:
        Ids int64 [B, L + 1], and bool [B, L + 1], which of them are there.
    """
    ids = torch.cat([text - 1, torch.zeros_like(text[:, :1])], dim=1).clamp(min=0)
    ids = ids.scatter(1, lengths[:, None], token_id)
    return ids, torch.arange(ids.shape[1], device=ids.device) <= lengths[:, None]


def _rows(pixels: Tensor, ids: Tensor, _network: Any) -> dict[str, Tensor]:
    """Pictures one after the other; every id is of a prefix, whose words all see each other."""
    return {"pixel_values": pixels.flatten(0, 1), "token_type_ids": torch.zeros_like(ids)}


def _samples(pixels: Tensor, _ids: Tensor, _network: Any) -> dict[str, Tensor]:
    """Pictures by sample, each of them whole."""
    whole = torch.ones_like(pixels[:, :, 0], dtype=torch.bool)
    return {"pixel_values": pixels, "pixel_attention_mask": whole}


def _patches(pixels: Tensor, ids: Tensor, network: Any) -> dict[str, Tensor]:
    """Patches of all pictures, [patches, numbers], in the order in which squares are merged.

    A picture counts as a film of equal frames, as long as the patches are deep.
    """
    vision = network.config.vision_config
    side, merged = vision.patch_size, vision.spatial_merge_size
    flat = pixels.flatten(0, 1)
    across = flat.shape[-1] // (side * merged)
    split = flat.unflatten(2, (across, merged, side)).unflatten(5, (across, merged, side))
    ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7)
    film = ordered.unsqueeze(6).expand(*(-1,) * 6, vision.temporal_patch_size, -1, -1)
    grid = torch.tensor([[1, across * merged, across * merged]], device=ids.device)
    return {
        "pixel_values": film.flatten(5).flatten(0, 4),
        "image_grid_thw": grid.expand(len(flat), -1),
        "mm_token_type_ids": (ids == network.config.image_token_id).int(),
    }


_PIXELS: Mapping[str, Callable[[Tensor, Tensor, Any], dict[str, Tensor]]] = {
    "paligemma": _rows,
    "smolvlm": _samples,
    "idefics3": _samples,
    "qwen3_vl": _patches,
}
