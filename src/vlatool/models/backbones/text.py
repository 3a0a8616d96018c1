"""Text tokenizers of backbones: turn instructions into token ids + 1, padded with 0.

Backbones that are trained from scratch read bytes; backbones with a base model use its tokens.
Source: reference/policy 1.1.

Legend of shapes: B sentences, L token ids of a text.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlatool.datasets.base_model import read_tokenizer, read_tokenizer_asset
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.models.backbones.config import Backbone, ClipBackboneConfig, VlmBackboneConfig
from vlatool.models.backbones.prompts import image_token_id, image_tokens, vlm_prompt_of
from vlatool.models.pretrained import tokenizers

_DEFAULT_TEXT_LENGTH = 128
# Lengths are multiples of these, up to the maximum of the model, so that few shapes occur.
_BYTE_BUCKET = 32
_TOKEN_BUCKET = 16
# Values of CLIP if its config.json lacks them: maximum length, begin and end of text.
_CLIP_LENGTH = 77
_CLIP_BOS = 49406
_CLIP_EOS = 49407
# Vision-language models: maximum length, and tokens for the prompt and the instruction.
_MAX_TOKENS = 1 << 15
_TEXT_TOKENS = 64
_IMAGE_WORD = "<image> "

_log = logging.getLogger(__name__)


def make_text_tokenizer(
    section: Backbone, max_length: int | None, folder: Path | None
) -> "ByteTokenizer | SubwordTokenizer":
    """The text tokenizer of a backbone.

    Args:
        section: The backbone.
        max_length: Largest number of token ids; None: the number of the backbone. The prompt of a
            vision-language model also contains the images.
        folder: Run folder with the tokenizer; None: use the tokenizer of the base model.
    """
    if isinstance(section, VlmBackboneConfig):
        assert section.architecture is not None
        tokens = _tokens_of_image(section)
        images = section.num_images or 0
        needed = images * tokens + _TEXT_TOKENS
        if max_length is not None and max_length < needed:
            raise UsageError(
                f"data.max_text_seq_len {max_length} is too small for the images and an "
                "instruction",
                hint=f"set it to at least {needed}, or leave it out",
                code="usage.bad_value",
            )
        prefix, suffix = vlm_prompt_of(section.architecture).prompt(images, tokens)
        document = _tokenizer_json(section, folder)
        return SubwordTokenizer(document, max_length or _MAX_TOKENS, prefix, suffix)
    if isinstance(section, ClipBackboneConfig):
        if section.disable_text:
            return ByteTokenizer(1)
        length = _clip_text(section).get("max_position_embeddings", _CLIP_LENGTH)
        prefix = ""
        if section.image_words:
            prefix = _IMAGE_WORD * (section.num_images or 0)
        document = _tokenizer_json(section, folder)
        return SubwordTokenizer(document, min(length, max_length or length), prefix)
    text = getattr(section, "text_encoder", None)
    length = _DEFAULT_TEXT_LENGTH if text is None else text.max_length
    return ByteTokenizer(min(length, max_length or length))


def _tokenizer_json(section: ClipBackboneConfig | VlmBackboneConfig, folder: Path | None) -> str:
    return read_tokenizer(section.base) if folder is None else read_tokenizer_asset(folder)


def _clip_text(section: ClipBackboneConfig) -> dict[str, Any]:
    return (section.architecture or {}).get("text_config") or {}


def _tokens_of_image(section: VlmBackboneConfig) -> int:
    assert section.architecture is not None
    assert section.image_size is not None
    return image_tokens(section.architecture, section.image_size)


class ByteTokenizer:
    """Text tokenizer on UTF-8 bytes; picklable."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """int64 [B, L]."""
        return encode_text(sentences, self._length)


def encode_text(sentences: Sequence[str], length: int) -> Tensor:
    """UTF-8 bytes + 1, truncated at `length`, padded with 0: int64 [B, L]."""
    rows = [list(sentence.encode()[:length]) for sentence in sentences]
    return padded(rows, length, _BYTE_BUCKET)


class SubwordTokenizer:
    """Text tokenizer with a tokenizer.json; picklable."""

    def __init__(
        self,
        document: str,  # content of tokenizer.json
        length: int,
        prefix: str = "",
        suffix: str | None = None,  # None: the tokenizer adds its special tokens
    ) -> None:
        try:
            self._tokenizer = tokenizers().Tokenizer.from_str(document)
        except VlatoolError:
            raise
        except Exception as error:  # noqa: BLE001 - the library raises no narrower type
            raise DataError(
                f"the text tokenizer of the base model cannot be read: {error}",
                hint="copy the run, or the base model, again",
                code="data.missing",
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
        rows: list[list[int]] = []
        for encoding in encoded:
            ids = encoding.ids
            if len(ids) > self._length:
                # The last token marks the end of the text, and some models pool it.
                ids = [*ids[: self._length - 1], ids[-1]]
                self._warn_once()
            rows.append(ids)
        return padded(rows, self._length, _TOKEN_BUCKET)

    def _warn_once(self) -> None:
        if not self._has_warned:
            _log.warning("an instruction has more than %s tokens and is cut off", self._length)
        self._has_warned = True


def padded(rows: Sequence[Sequence[int]], length: int, bucket: int) -> Tensor:
    """Token ids + 1, padded with 0: int64 [B, L]; L is a multiple of `bucket`, or `length`."""
    longest = max(map(len, rows), default=0)
    width = min(length, max(bucket, -(-longest // bucket) * bucket))
    encoded = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, ids in enumerate(rows):
        encoded[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64) + 1
    return encoded


def example_text(section: Backbone, size: int) -> Tensor:
    """Empty instructions, int64 [size, L]; needs no tokenizer."""
    if isinstance(section, ClipBackboneConfig):
        text = _clip_text(section)
        ids = [text.get("bos_token_id", _CLIP_BOS), text.get("eos_token_id", _CLIP_EOS)]
        return padded([ids] * size, _MAX_TOKENS, _TOKEN_BUCKET)
    if isinstance(section, VlmBackboneConfig) and section.num_images:
        assert section.architecture is not None
        # An id between images, because some models detect the end of an image by it.
        image = [image_token_id(section.architecture)] * _tokens_of_image(section) + [0]
        return padded([image * section.num_images] * size, _MAX_TOKENS, _TOKEN_BUCKET)
    return padded([[]] * size, _MAX_TOKENS, _BYTE_BUCKET)
