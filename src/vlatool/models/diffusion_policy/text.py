"""Sentences to numbers, as each backbone reads them.

Everywhere a number is an id + 1, and 0 is where there is none. Legend of shapes: B batch, L ids.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlatool.artifacts.base_model import read_tokenizer, read_tokenizer_asset
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.models.diffusion_policy.config import (
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
# Few shapes for compilers: lengths are multiples of it, up to what a model reads.
_TOKEN_BUCKET = 16
# Of CLIP where its config.json does not say.
_CLIP_LENGTH, _CLIP_FIRST, _CLIP_LAST = 77, 49406, 49407
# Of vision-language models: all that they read, and what stands around pictures and a sentence.
_MOST_TOKENS, _ROOM = 1 << 15, 64
_IMAGE_WORD = "<image> "

TextTokenizer = Callable[[Sequence[str]], Tensor]

_log = logging.getLogger(__name__)


class ByteTokenizer:
    """UTF-8 bytes; picklable."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """int64 [B, L]."""
        return encode_text(sentences, self._length)


class SubwordTokenizer:
    """Ids of a tokenizer; picklable.

    Args:
        tokenizer: Text of its tokenizer.json.
        length: Most ids; further ones are cut, told once.
        before: Stands in front of every sentence.
        after: Stands behind it; None where the tokenizer adds what belongs around a text.

    Raises:
        DataError: It is no tokenizer.
    """

    def __init__(
        self, tokenizer: str, length: int, prefix: str = "", suffix: str | None = None
    ) -> None:
        try:
            self._tokenizer = tokenizers().Tokenizer.from_str(tokenizer)
        except VlatoolError:
            raise
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            raise DataError(
                f"the base model's tokenizer cannot be read: {error}",
                hint="copy the run or the base model again",
                code="data.base_model",
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._length = length
        self._before = prefix
        self._after = suffix
        self._told = False

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """int64 [B, L]."""
        texts = [self._before + sentence + (self._after or "") for sentence in sentences]
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=self._after is None)
        rows = [encoding.ids for encoding in encoded]
        if not self._told and max(map(len, rows), default=0) > self._length:
            self._told = True
            _log.warning("a sentence is longer than %s tokens: its end is cut", self._length)
        # The last token says that the sentence ends, and is what some models read.
        cut = [
            ids if len(ids) <= self._length else [*ids[: self._length - 1], ids[-1]] for ids in rows
        ]
        return padded(cut, self._length, _TOKEN_BUCKET)


def encode_text(sentences: Sequence[str], length: int) -> Tensor:
    """UTF-8 bytes + 1, cut at `length`, padded with 0: int64 [B, L].

    L is the longest sentence rounded up to a multiple of 32, so that few shapes occur.
    """
    rows = [list(sentence.encode()[:length]) for sentence in sentences]
    return padded(rows, length, _TEXT_BUCKET)


def padded(rows: Sequence[Sequence[int]], length: int, bucket: int) -> Tensor:
    """Ids + 1, 0 behind them: int64 [B, L], L a multiple of `bucket` or `length`."""
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


def _clip(section: ClipBackboneConfig, max_length: int | None, folder: Path | None) -> TextTokenizer:
    if section.disable_text:
        return ByteTokenizer(1)
    length = _clip_text(section).get("max_position_embeddings", _CLIP_LENGTH)
    prefix = _IMAGE_WORD * (section.num_images or 0) if section.image_words else ""
    tokenizer = _tokenizer(section, folder)
    return SubwordTokenizer(tokenizer, min(length, max_length or length), prefix)


def _tokenizer(section: BaseBackboneConfig, folder: Path | None) -> str:
    """The tokenizer that was kept in a folder; where nothing was, the base model's."""
    return read_tokenizer(section.base) if folder is None else read_tokenizer_asset(folder)


def _clip_text(section: ClipBackboneConfig) -> Mapping[str, Any]:
    return (section.architecture or {}).get("text_config") or {}


def _vlm(section: VlmBackboneConfig, max_length: int | None, folder: Path | None) -> TextTokenizer:
    """Pictures and sentence as the family is asked; `max_length` counts both."""
    assert section.architecture is not None
    images, tokens = section.num_images or 0, _tokens(section)
    prefix, suffix = vlm_prompt_of(section.architecture).prompt(images, tokens)
    needed = images * tokens + _ROOM
    if max_length is not None and max_length < needed:
        raise UsageError(
            f"data.max_text_seq_len {max_length} leaves no room for a sentence beside the pictures",
            hint=f"set it to at least {needed}, or leave it out",
            code="usage.no_room_for_text",
        )
    tokenizer = _tokenizer(section, folder)
    return SubwordTokenizer(tokenizer, max_length or _MOST_TOKENS, prefix, suffix)


def _tokens(section: VlmBackboneConfig) -> int:
    """Of a picture."""
    assert section.architecture is not None
    assert section.image_size is not None
    return image_tokens(section.architecture, section.image_size)


_MAKERS: Mapping[str, Callable[[Any, int | None, Path | None], TextTokenizer]] = {
    "vit_backbone": _bytes,
    "keypoint_backbone": _bytes,
    "clip_backbone": _clip,
    "clip_hf": _clip,
    "vlm_backbone": _vlm,
}


def make_text_tokenizer(section: Backbone, max_length: int | None, folder: Path | None) -> TextTokenizer:
    """What makes numbers of sentences for a backbone.

    Args:
        section: Of the backbone, derived.
        max_length: Most numbers of a sentence; None for what the backbone reads.
        folder: Where the tokenizer was kept; None where nothing was.
    """
    return _MAKERS[section.type](section, max_length, folder)


def example_text(section: Backbone, size: int) -> Tensor:
    """Sentences without a word, int64 [size, L]; needs no tokenizer."""
    ids = _EXAMPLES[section.type](section) if section.type in _EXAMPLES else []
    return padded([ids] * size, _MOST_TOKENS, _TOKEN_BUCKET if ids else _TEXT_BUCKET)


def _clip_example(section: ClipBackboneConfig) -> list[int]:
    text = _clip_text(section)
    return [text.get("bos_token_id", _CLIP_FIRST), text.get("eos_token_id", _CLIP_LAST)]


def _vlm_example(section: VlmBackboneConfig) -> list[int]:
    assert section.architecture is not None
    # Something between pictures: some families see by it where one ends.
    image = [image_token_id(section.architecture)] * _tokens(section) + [0]
    return image * (section.num_images or 0)


# Ids of a sentence without a word; other backbones are given none.
_EXAMPLES: Mapping[str, Callable[[Any], list[int]]] = {
    "clip_backbone": _clip_example,
    "clip_hf": _clip_example,
    "vlm_backbone": _vlm_example,
}
