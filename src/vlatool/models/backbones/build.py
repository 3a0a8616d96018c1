"""Backbones turn images and language into conditioning tokens. Source: reference/policy 1.4.

`build_backbone` makes the network of a section of `config.py`. CLIP (`clip.py`) gives one token per
instruction and one per image, a vision-language model (`vlm.py`) one per sample, networks that are
trained from scratch (`from_scratch.py`) one per patch or image.

A new backbone is a section in `config.py`, a text tokenizer in `text.py`, and a class with `width`
(C), `blocks()` (units of sharding and gradient checkpointing) and the same forward: `forward(images
uint8 [B, N, 3, H, W], text [B, L], image_mask bool [B, N] or None, rng)` returns tokens [B, M, C],
where `rng` draws B rows of what dropout needs. A backbone with a base model also has `load_base()`.

Legend of shapes: B batch, N images (time outer, camera inner), H and W height and width, L token
ids of an instruction, M tokens, C token width.
"""

from typing import Any

from vlatool.models.backbones import from_scratch
from vlatool.models.backbones.clip import ClipBackbone
from vlatool.models.backbones.config import (
    Backbone,
    ClipBackboneConfig,
    KeypointBackboneConfig,
    TextBackboneConfig,
    ViTBackboneConfig,
    VlmBackboneConfig,
)
from vlatool.models.backbones.vlm import VlmBackbone


def build_backbone(config: Backbone) -> Any:
    """Builds the backbone that a section describes, with random weights."""
    if isinstance(config, ClipBackboneConfig):
        return ClipBackbone(config)
    if isinstance(config, VlmBackboneConfig):
        return VlmBackbone(config)
    if isinstance(config, ViTBackboneConfig):
        return from_scratch.ViTBackbone(config)
    if isinstance(config, KeypointBackboneConfig):
        return from_scratch.KeypointBackbone(config)
    assert isinstance(config, TextBackboneConfig), "other sections are only read"
    return from_scratch.TextBackbone(config)
