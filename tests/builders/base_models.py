"""Base models as a hub holds them, tiny and random."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["put", "the", "red", "block", "away", "green", "<image>"]
_ENDS = ["<start>", "<end>"]
# Ids; transformers takes an end of 2 for an old mistake in published files.
FIRST, LAST = len(WORDS) + 1, len(WORDS) + 2
CLIP_VOCABULARY = LAST + 1


def clip_config(**keys: Any) -> dict[str, Any]:
    """config.json of a CLIP of width 16; `keys` go into both towers."""
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 8,
        **keys,
    }
    text = {"vocab_size": CLIP_VOCABULARY, "max_position_embeddings": 20, **tower}
    return {
        "model_type": "clip",
        "projection_dim": 8,
        "text_config": {**text, "bos_token_id": FIRST, "eos_token_id": LAST},
        "vision_config": {"image_size": 32, "patch_size": 16, **tower},
    }


def clip_base(folder: Path, **keys: Any) -> Path:
    """Config, weights, tokenizer and processor of a CLIP."""
    from transformers import AutoConfig, CLIPModel

    torch.manual_seed(7)
    CLIPModel(AutoConfig.for_model(**clip_config(**keys))).save_pretrained(folder)
    write_tokenizer(folder)
    colours = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    return folder


def write_tokenizer(folder: Path, *more: str) -> None:
    """A tokenizer of whole words that puts its ends around a sentence."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<unknown>", *WORDS, *_ENDS, *more]
    tokenizer = Tokenizer(
        models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unknown>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*_ENDS, *more])
    first, last = _ENDS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, FIRST), (last, LAST)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
