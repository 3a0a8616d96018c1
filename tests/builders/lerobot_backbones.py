"""Tiny random backbones of the policies of lerobot, in folders as the hub has them."""

from pathlib import Path
from typing import Any

import torch

_WORDS = ["put", "the", "red", "green", "blue", "block", "in", "bin"]
_WORDS += ["<pad>", "<unk>", "<s>", "</s>", "\n"]
_IMAGE_TOKENS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def make_tokenizer(**special: str) -> Any:
    """A tokenizer of words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = [*_WORDS, *special.values()]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=special,
    )


def make_smolvlm(folder: Path) -> Path:
    """A SmolVLM with two layers: configuration, weights, tokenizer and processor."""
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokenizer = make_tokenizer(**_IMAGE_TOKENS)
    text = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "patch_size": 16,
        "image_size": 64,
    }
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = SmolVLMConfig(
        text_config=text, vision_config=vision, image_token_id=image_id, scale_factor=2
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(),
    )
    processor.save_pretrained(folder)
    return folder


def smolvla_keys(backbone: Path) -> dict[str, Any]:
    """Keys of a tiny SmolVLA."""
    return {
        "vlm_model_name": str(backbone),
        "load_vlm_weights": True,
        "num_vlm_layers": 2,
        "chunk_size": 4,
        "n_action_steps": 4,
        "resize_imgs_with_padding": [64, 64],
        "num_steps": 2,
        "tokenizer_max_length": 8,
    }


class _Fixed:
    """An attribute that keeps its value."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __get__(self, instance: Any, owner: Any = None) -> int:
        return self.value

    def __set__(self, instance: Any, value: Any) -> None:
        del instance, value


def shrink_gemma(patch: Any) -> None:
    """Makes the networks of pi0 and pi05 tiny; their classes stay."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi05 import modeling_pi05
    from transformers import SiglipVisionConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    patch.setattr(SiglipVisionConfig, "projection_dim", _Fixed(32), raising=False)

    for module in (modeling_pi0, modeling_pi05):
        tiny = module.GemmaConfig(
            width=32, depth=2, mlp_dim=32, num_heads=8, num_kv_heads=1, head_dim=8
        )
        patch.setattr(module, "get_gemma_config", lambda variant, tiny=tiny: tiny)

        class Small:
            """Vision tower and vocabulary of PaliGemma in a smaller size."""

            def __getitem__(self, name: str) -> Any:
                def config(**keys: Any) -> Any:
                    made = CONFIG_MAPPING[name](**{**keys, "vocab_size": 64} if keys else {})
                    if name == "paligemma":
                        vision = made.vision_config
                        vision.hidden_size, vision.num_hidden_layers = 16, 1
                        vision.num_attention_heads, vision.patch_size = 2, 112
                    return made

                return config

        patch.setattr(module, "CONFIG_MAPPING", Small())


def pi_keys() -> dict[str, Any]:
    return {"chunk_size": 4, "n_action_steps": 4, "num_inference_steps": 2, "device": "cpu"}
