"""How families of vision-language models are asked about pictures. Light.

Source: the processors of these models as their cards describe them, one crop per picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlatool.errors import DataError


@dataclass(frozen=True)
class VlmPrompt:
    """A family of models.

    Attributes:
        before: Stands before everything.
        picture: What a picture is told with; `{}` for its tokens.
        token: One of them.
        between: Between pictures and the sentence.
        after: Behind the sentence.
        side: Of the pictures, where the model takes any.
        merge: Key of the config.json, or of its vision section, that says how many patches in a row
            become one token; none where each does.
    """

    before: str
    image: str
    token: str
    between: str
    after: str
    side: int | None = None
    merge: str = ""

    def prompt(self, images: int, tokens: int) -> tuple[str, str]:
        """What stands before and behind a sentence about pictures of so many tokens."""
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
    """The family of a base model.

    Raises:
        DataError: It is of none that is known.
    """
    kind = architecture["model_type"]
    if kind not in FAMILIES:
        raise DataError(
            f"no backbone knows how a {kind!r} is asked about pictures",
            hint=f"use a base model of one of the families {', '.join(FAMILIES)}",
            code="data.base_model",
            details={"model_type": kind},
        )
    return FAMILIES[kind]


def image_side(architecture: Mapping[str, Any]) -> int:
    """The side of the pictures that a model is shown."""
    return vlm_prompt_of(architecture).side or int(architecture["vision_config"]["image_size"])


def image_tokens(architecture: Mapping[str, Any], side: int) -> int:
    """How many tokens a square picture is."""
    family, vision = vlm_prompt_of(architecture), architecture["vision_config"]
    merged = {**vision, **architecture}.get(family.merge, 1) if family.merge else 1
    return (side // (int(vision["patch_size"]) * int(merged))) ** 2


def image_token_id(architecture: Mapping[str, Any]) -> int:
    """The id of a token that stands for a part of a picture."""
    index = architecture.get("image_token_index")
    return int(architecture["image_token_id"] if index is None else index)
