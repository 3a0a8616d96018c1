"""A tiny FUTURE-VLA, and samples to train it on."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.builders.codes import plain_fast, published_windows, write_tree_codes
from vlatool.media.images import encode_png
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset

VOCABULARY = 320
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    "tie_word_embeddings": True,
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "patch_size": 8,
    "deepstack_visual_indexes": [0],
}
TINY_DINO: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
}


def tiny_future_vla(**changes: Any) -> FutureVlaConfig:
    """Sizes of a network that computes in milliseconds; images have 64 x 64 pixels."""
    qwen = {
        "text_config": _TEXT,
        "vision_config": _VISION,
        "image_token_id": VOCABULARY - 1,
        "tie_word_embeddings": True,
    }
    keys = {"qwen": qwen, "dino": TINY_DINO, "views": 1, "compress": [1, 1, 1], "conv_width": 32}
    return FutureVlaConfig.model_validate({**keys, **changes})


def write_samples(root: Path, episodes: int = 5, frames: int = 3, side: int = 64) -> Path:
    """Writes samples with images of side x side pixels and 4 codes of 50; returns their folder."""
    tree = published_windows(root / "A", episodes, frames)
    for number, path in enumerate(sorted(tree.rglob("*.png"))):
        path.write_bytes(encode_png(np.full((side, side, 3), 8 * number % 256, np.uint8)))
    write_tree_codes(tree, "packed", sizes=(4, 50))
    plain_fast(root / "fast")
    keys = {"data": str(root / "A"), "fast": str(root / "fast"), "output": str(root / "samples")}
    build_dataset(BuildDatasetConfig.model_validate({**keys, "workers": 1}))
    return root / "samples"
