"""Tiny random base models in the layout of the hub."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ["put", "the", "red", "block", "away", "green", "<image>"]
_ENDS = ["<start>", "<end>"]
# Token ids. The end is not 2, which transformers treats as an error of old published files.
FIRST, LAST = len(WORDS) + 1, len(WORDS) + 2
CLIP_VOCABULARY = LAST + 1


def clip_config(**keys: Any) -> dict[str, Any]:
    """config.json of a CLIP of width 16; `keys` are set in both towers."""
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
    """Writes config, weights, tokenizer and processor of a CLIP; returns the folder."""
    from transformers import AutoConfig, CLIPModel

    torch.manual_seed(7)
    CLIPModel(AutoConfig.for_model(**clip_config(**keys))).save_pretrained(folder)
    write_tokenizer(folder)
    colors = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(colors))
    return folder


def write_tokenizer(folder: Path, *more: str) -> None:
    """Writes a tokenizer of whole words that adds a start and an end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<unknown>", *WORDS, *_ENDS, *more]
    tokenizer = Tokenizer(
        models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unknown>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*_ENDS, "<image>", *more])
    first, last = _ENDS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, FIRST), (last, LAST)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


_TEXT_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
_VISION_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
}
# Special tokens of the prompts of each model_type.
PROMPT_WORDS = {
    "paligemma": ["<bos>"],
    "smolvlm": [
        "<|im_start|>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    ],
    "qwen3_vl": [
        "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    ],
}  # fmt: skip
VLM_VOCABULARY = CLIP_VOCABULARY + 5


def vlm_config(family: str) -> dict[str, Any]:
    """config.json of a tiny vision-language model: four tokens per image of 32 x 32."""
    text = {**_TEXT_TOWER, "vocab_size": VLM_VOCABULARY}
    vision = {**_VISION_TOWER, "patch_size": 8}
    image = WORDS.index("<image>") + 1
    if family == "paligemma":
        siglip = {**vision, "model_type": "siglip_vision_model", "projection_dim": 16}
        siglip |= {"patch_size": 16, "vision_use_head": False}
        text = {**text, "model_type": "gemma"}
        sizes = {"projection_dim": 16, "hidden_size": 16, "image_token_index": image}
        return {"model_type": family, "vision_config": siglip, "text_config": text, **sizes}
    if family == "smolvlm":
        text = {**text, "model_type": "llama", "pad_token_id": 0}
        sizes = {"scale_factor": 2, "image_token_id": image}
        return {"model_type": family, "vision_config": vision, "text_config": text, **sizes}
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    qwen = {"depth": 2, "num_heads": 2, "out_hidden_size": 16, "num_position_embeddings": 16}
    qwen |= {"patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
    qwen |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "deepstack_visual_indexes": [0]}
    ids = {
        "image_token_id": CLIP_VOCABULARY + 4,
        "vision_start_token_id": CLIP_VOCABULARY + 2,
        "vision_end_token_id": CLIP_VOCABULARY + 3,
        "video_token_id": 1,
    }
    text = {**text, "rope_parameters": {**rope, "mrope_interleaved": True}}
    return {"model_type": family, "vision_config": qwen, "text_config": text, **ids}


def causal_base(folder: Path) -> Path:
    """Writes config and weights of a language model; returns the folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    settings = AutoConfig.for_model(**vlm_config("smolvlm")["text_config"])
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    return folder


def vlm_base(folder: Path, family: str) -> Path:
    """Writes config, weights and tokenizer of a vision-language model; returns the folder."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(7)
    settings = AutoConfig.for_model(**vlm_config(family))
    AutoModelForImageTextToText.from_config(settings).save_pretrained(folder)
    write_tokenizer(folder, *PROMPT_WORDS[family])
    return folder
