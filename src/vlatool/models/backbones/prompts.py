"""Prompts of vision-language models: the text around images and an instruction. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlatool.errors import DataError


@dataclass(frozen=True)
class VlmPrompt:
    """Prompt of one kind of vision-language model."""

    before: str  # text before the images
    image: str  # text of an image, with `{}` for its tokens
    token: str  # text of one image token
    between: str  # text between the images and the instruction
    after: str  # text after the instruction
    side: int | None = None  # side of the images in pixels, if the model takes any size
    # key of config.json, or of its vision section, with the number of patches per side that are
    # merged into one token; empty: no merging
    merge: str = ""

    def prompt(self, images: int, tokens: int) -> tuple[str, str]:
        """Text before and after the instruction, for `images` images of `tokens` tokens each."""
        image_text = self.image.format(self.token * tokens) * images
        return self.before + image_text + self.between, self.after


_FRAMED = "<fake_token_around_image><global-img>{}<fake_token_around_image>"
_IDEFICS = VlmPrompt(
    "<|im_start|>User:",
    _FRAMED,
    "<image>",
    "",
    "<end_of_utterance>\nAssistant:",
    merge="scale_factor",
)
FAMILIES: Mapping[str, VlmPrompt] = {
    "paligemma": VlmPrompt("", "{}", "<image>", "<bos>", "\n"),
    "smolvlm": _IDEFICS,
    "idefics3": _IDEFICS,
    "qwen3_vl": VlmPrompt(
        "<|im_start|>user\n",
        "<|vision_start|>{}<|vision_end|>",
        "<|image_pad|>",
        "",
        "<|im_end|>\n<|im_start|>assistant\n",
        side=256,
        merge="spatial_merge_size",
    ),
}


def vlm_prompt_of(architecture: Mapping[str, Any]) -> VlmPrompt:
    kind = architecture["model_type"]
    if kind not in FAMILIES:
        raise DataError(
            f"a base model of the type {kind!r} cannot be a vision-language backbone",
            hint=f"use a base model of one of the types {', '.join(FAMILIES)}",
            code="data.missing",
            details={"model_type": kind},
        )
    return FAMILIES[kind]


def image_side(architecture: Mapping[str, Any]) -> int:
    """Side of the input images of a model in pixels."""
    return vlm_prompt_of(architecture).side or int(architecture["vision_config"]["image_size"])


def image_tokens(architecture: Mapping[str, Any], side: int) -> int:
    """Number of tokens of an image."""
    vision = architecture["vision_config"]
    patch = int(vision["patch_size"])
    merge = vlm_prompt_of(architecture).merge
    if merge:
        patch *= int({**vision, **architecture}.get(merge, 1))
    return (side // patch) ** 2


def image_token_id(architecture: Mapping[str, Any]) -> int:
    index = architecture.get("image_token_index")
    return int(architecture["image_token_id"] if index is None else index)
