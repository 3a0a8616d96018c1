"""Vision-language models from the hub as backbone: one token per sample.

Source: reference/policy 1.4. An added token follows the instruction; the concatenated states of the
last layers at this position are the output. Legend of shapes: B batch, N images, L token ids of
images and instruction, S side of an image, C width of the concatenated states.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.models.diffusion_policy.config import VlmBackboneConfig
from vlatool.models.diffusion_policy.pixels import ImageNormalizer
from vlatool.models.pretrained import load_base, text_width, transformers

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
        library = transformers()
        settings = library.AutoConfig.for_model(**architecture)
        auto = library.AutoModelForImageTextToText
        return auto.from_config(settings, trust_remote_code=False)

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

    def forward(self, images: Tensor, text: Tensor, image_mask: Tensor | None = None) -> Tensor:
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

    Args:
        text: Token ids + 1, padded with 0, int64 [B, L].
        lengths: Number of token ids of each text, int64 [B].
        token_id: Id of the appended token.

    Returns:
        Token ids int64 [B, L + 1], and their attention mask bool [B, L + 1].
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
