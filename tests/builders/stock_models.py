"""Tiny stock Qwen3-VL and DINOv3 as on the hub, and configs of FUTURE-VLA of this size."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from vlatool.models.future_vla.compose import compose_tiny
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.token_ids import tiny_tokenizer


@cache
def _base() -> FutureVlaConfig:
    return compose_tiny({}, 0).config


def tiny_config(**keys: Any) -> FutureVlaConfig:
    """Config of the network of `vlatool compose --tiny`, with other keys."""
    return _base().model_copy(update={"views": 1, "compress": (1, 1, 1), **keys})


def stock_qwen(folder: Path) -> Path:
    """Writes a random Qwen3-VL of the tiny size with its tokenizer; returns the folder."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(5)
    config: Any = Qwen3VLConfig(**(tiny_config().qwen or {}))
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    document = json.loads(tiny_tokenizer().to_str())
    markers = ("<|A_", "<|B_")
    document["added_tokens"] = [
        token for token in document["added_tokens"] if not token["content"].startswith(markers)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "preprocessor_config.json").write_text('{"patch_size": 8}')
    return folder


def stock_dino(folder: Path) -> Path:
    """Writes a random DINOv3 of the tiny size; returns the folder."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(6)
    config: Any = DINOv3ViTConfig(**(tiny_config().dino or {}))
    DINOv3ViTModel(config).save_pretrained(folder)
    return folder
