"""Text tokenizers of the backbones.

All tensors hold token ids + 1, padded with 0. Legend of shapes: B batch, L token ids.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlatool.artifacts.base_model import read_tokenizer, read_tokenizer_asset
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.models.diffusion_policy.backbone_config import (
    Backbone,
    BaseBackboneConfig,
    ClipBackboneConfig,
    KeypointBackboneConfig,
    ViTBackboneConfig,
    VlmBackboneConfig,
)
from vlatool.models.diffusion_policy.vlm_prompts import (
    image_token_id,
    image_tokens,
    vlm_prompt_of,
)
from vlatool.models.pretrained import tokenizers

_DEFAULT_TEXT_LENGTH = 128
_TEXT_BUCKET = 32
# Lengths are multiples of it, up to the maximum of the model, so that few shapes occur.
_TOKEN_BUCKET = 16
# Values of CLIP if its config.json lacks them: maximum length, begin and end of text.
_CLIP_LENGTH, _CLIP_BOS, _CLIP_EOS = 77, 49406, 49407
# Vision-language models: maximum length, and tokens for the prompt and the instruction.
_MAX_TOKENS, _TEXT_TOKENS = 1 << 15, 64
_IMAGE_WORD = "<image> "

TextTokenizer = Callable[[Sequence[str]], Tensor]

_log = logging.getLogger(__name__)


class ByteTokenizer:
    """Text tokenizer on UTF-8 bytes; picklable."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """int64 [B, L]."""
        return encode_text(sentences, self._length)


class SubwordTokenizer:
    """Text tokenizer with a tokenizer.json; picklable; `suffix`: text after it; None if the
    tokenizer adds its special tokens.
    """

    def __init__(
        self, tokenizer: str, length: int, prefix: str = "", suffix: str | None = None
    ) -> None:
        try:
            self._tokenizer = tokenizers().Tokenizer.from_str(tokenizer)
        except VlatoolError:
            raise
        except Exception as error:  # noqa: BLE001 - the library raises no narrower type
            raise DataError(
                f"the text tokenizer of the base model cannot be read: {error}",
                hint="copy the run or the base model again",
                code="data.base_model",
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._length = length
        self._prefix = prefix
        self._suffix = suffix
        self._has_warned = False

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """int64 [B, L]."""
        texts = [self._prefix + sentence + (self._suffix or "") for sentence in sentences]
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=self._suffix is None)
        rows = [encoding.ids for encoding in encoded]
        if not self._has_warned and max(map(len, rows), default=0) > self._length:
            self._has_warned = True
            _log.warning("an instruction is longer than %s tokens: it is truncated", self._length)
        # The last token marks the end of the text, and some models pool it.
        truncated = [
            ids if len(ids) <= self._length else [*ids[: self._length - 1], ids[-1]] for ids in rows
        ]
        return padded(truncated, self._length, _TOKEN_BUCKET)


def encode_text(sentences: Sequence[str], length: int) -> Tensor:
    """UTF-8 bytes + 1, truncated at `length`, padded with 0: int64 [B, L].

    L is the longest length, rounded up to a multiple of 32, so that few shapes occur.
    """
    rows = [list(sentence.encode()[:length]) for sentence in sentences]
    return padded(rows, length, _TEXT_BUCKET)


def padded(rows: Sequence[Sequence[int]], length: int, bucket: int) -> Tensor:
    """Token ids + 1, padded with 0: int64 [B, L]; L is a multiple of `bucket`, or `length`."""
    longest = max(map(len, rows), default=0)
    width = min(length, max(bucket, -(-longest // bucket) * bucket))
    encoded = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, ids in enumerate(rows):
        encoded[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64) + 1
    return encoded


def _bytes(
    section: ViTBackboneConfig | KeypointBackboneConfig, most: int | None, folder: Path | None
) -> TextTokenizer:
    del folder
    text = section.text_encoder
    length = _DEFAULT_TEXT_LENGTH if text is None else text.max_length
    return ByteTokenizer(min(length, most or length))


def _clip(
    section: ClipBackboneConfig, max_length: int | None, folder: Path | None
) -> TextTokenizer:
    if section.disable_text:
        return ByteTokenizer(1)
    length = _clip_text(section).get("max_position_embeddings", _CLIP_LENGTH)
    prefix = _IMAGE_WORD * (section.num_images or 0) if section.image_words else ""
    tokenizer = _tokenizer(section, folder)
    return SubwordTokenizer(tokenizer, min(length, max_length or length), prefix)


def _tokenizer(section: BaseBackboneConfig, folder: Path | None) -> str:
    """The tokenizer.json of a run folder; of the base model if `folder` is None."""
    return read_tokenizer(section.base) if folder is None else read_tokenizer_asset(folder)


def _clip_text(section: ClipBackboneConfig) -> Mapping[str, Any]:
    return (section.architecture or {}).get("text_config") or {}


def _vlm(section: VlmBackboneConfig, max_length: int | None, folder: Path | None) -> TextTokenizer:
    """Images and instruction in the prompt of the model; `max_length` counts both."""
    assert section.architecture is not None
    images, tokens = section.num_images or 0, _tokens(section)
    prefix, suffix = vlm_prompt_of(section.architecture).prompt(images, tokens)
    needed = images * tokens + _TEXT_TOKENS
    if max_length is not None and max_length < needed:
        raise UsageError(
            f"data.max_text_seq_len {max_length} is too small for the images and an instruction",
            hint=f"set data.max_text_seq_len to at least {needed}, or leave it out",
            code="usage.no_room_for_text",
        )
    tokenizer = _tokenizer(section, folder)
    return SubwordTokenizer(tokenizer, max_length or _MAX_TOKENS, prefix, suffix)


def _tokens(section: VlmBackboneConfig) -> int:
    """Number of tokens per image."""
    assert section.architecture is not None
    assert section.image_size is not None
    return image_tokens(section.architecture, section.image_size)


_FACTORIES: Mapping[str, Callable[[Any, int | None, Path | None], TextTokenizer]] = {
    "vit_backbone": _bytes,
    "keypoint_backbone": _bytes,
    "clip_backbone": _clip,
    "clip_hf": _clip,
    "vlm_backbone": _vlm,
}


def make_text_tokenizer(
    section: Backbone, max_length: int | None, folder: Path | None
) -> TextTokenizer:
    """The text tokenizer of a backbone; `max_length`: maximum number of token ids; None: that of
    the backbone; `folder`: run folder with the tokenizer; None: use that of the base model.
    """
    return _FACTORIES[section.type](section, max_length, folder)


def example_text(section: Backbone, size: int) -> Tensor:
    """Empty instructions, int64 [size, L]; needs no tokenizer."""
    ids = _EXAMPLES[section.type](section) if section.type in _EXAMPLES else []
    return padded([ids] * size, _MAX_TOKENS, _TOKEN_BUCKET if ids else _TEXT_BUCKET)


def _clip_example(section: ClipBackboneConfig) -> list[int]:
    text = _clip_text(section)
    return [text.get("bos_token_id", _CLIP_BOS), text.get("eos_token_id", _CLIP_EOS)]


def _vlm_example(section: VlmBackboneConfig) -> list[int]:
    assert section.architecture is not None
    # An id between images, because some models detect the end of an image by it.
    image = [image_token_id(section.architecture)] * _tokens(section) + [0]
    return image * (section.num_images or 0)


# Token ids of an empty instruction; other backbones have none.
_EXAMPLES: Mapping[str, Callable[[Any], list[int]]] = {
    "clip_backbone": _clip_example,
    "clip_hf": _clip_example,
    "vlm_backbone": _vlm_example,
}
