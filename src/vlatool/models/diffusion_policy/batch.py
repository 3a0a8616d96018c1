"""Samples to tensors for the policy. Source: formats/lbm 5.3, 5.4; reference/policy 1.1.

`PolicyBatcher` stacks and normalizes samples, and turns instructions into token ids with the text
tokenizer of the backbone. Tensors of text hold token ids + 1, padded with 0.

Legend of shapes: B batch, N images, T action steps, A width of an action, P proprioception steps, d
width of proprioception, L token ids of a text.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.formats.base_model import read_tokenizer, read_tokenizer_asset
from vlatool.loading.loader import stack_rows
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.models.base import Batch
from vlatool.models.diffusion_policy.config import (
    Backbone,
    ClipBackboneConfig,
    DiffusionPolicyConfig,
    VlmBackboneConfig,
    image_token_id,
    image_tokens,
    vlm_prompt_of,
)
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
# Side of example images if the backbone takes images of any size.
_EXAMPLE_SIDE = 64

_log = logging.getLogger(__name__)


class PolicyBatcher:
    """Converts samples to a batch of normalized tensors; picklable."""

    def __init__(
        self,
        config: DiffusionPolicyConfig,
        data: RoboticsDataConfig,
        normalizer: Normalizer,
        folder: Path | None = None,
    ) -> None:
        self._data = data
        self._normalizer = normalizer
        max_length: int | None = getattr(data, "max_text_seq_len", None)
        self._text_tokenizer = make_text_tokenizer(
            config.vision_language_backbone, max_length, folder
        )

    def __call__(self, samples: Sequence[DecodedSample]) -> Batch:
        """Stacks and normalizes samples.

        Returns:
            images: uint8 [B, N, 3, H, W], channels last in memory.
            text: int64 [B, L], token ids + 1, padded with 0.
            actions, proprioception: float32 [B, T, A] and [B, P, d], normalized.
            past_mask, future_mask: bool [B, T].
            dataset: int64 [B], index of the data set.
            keys: Names of the samples.
            image_mask: bool [B, N], if padded images are masked.
            action_mask: bool [B, A], False for padded fields, if these may be padded.
        """
        past = self._data.lowdim_past_timesteps
        assert past is not None
        shapes = {sample.images.shape for sample in samples}
        if len(shapes) > 1:
            raise DataError(
                f"images of different sizes in one batch: {sorted(shapes)}",
                hint="preprocess all data sets with the same --resize-images-size",
                code="data.mismatch",
            )
        steps = len(samples[0].past_mask)
        stacked = stack_rows([sample.images for sample in samples])
        batch: Batch = {
            "keys": [sample.key for sample in samples],
            "images": torch.from_numpy(stacked).permute(0, 1, 4, 2, 3),
            "text": self._text_tokenizer([sample.instruction for sample in samples]),
            "actions": self._normalized(samples, self._data.action_fields, steps),
            "proprioception": self._normalized(samples, self._data.proprioception_fields, past + 1),
            "past_mask": torch.from_numpy(np.stack([sample.past_mask for sample in samples])),
            "future_mask": torch.from_numpy(np.stack([sample.future_mask for sample in samples])),
            "dataset": torch.tensor([sample.dataset for sample in samples]),
        }
        if self._data.mask_padded_images:
            masks = []
            for sample in samples:
                is_real = sample.image_mask
                masks.append(np.ones(len(sample.images), bool) if is_real is None else is_real)
            batch["image_mask"] = torch.from_numpy(np.stack(masks))
        if self._data.pad_missing_fields:
            masks = [sample.is_real(self._data.action_fields) for sample in samples]
            batch["action_mask"] = torch.from_numpy(np.stack(masks))
        return batch

    def _normalized(
        self, samples: Sequence[DecodedSample], fields: Sequence[str], steps: int
    ) -> Tensor:
        """The first steps of fields side by side, float32 [B, steps, numbers]; 0 if padded."""
        if not fields:
            return torch.zeros(len(samples), steps, 0)
        columns = []
        for name in fields:
            rows = np.stack([sample.fields[name][:steps] for sample in samples])
            values = self._normalizer.normalize(name, rows)
            for row, sample in enumerate(samples):
                if name in sample.padded_fields:
                    values[row] = 0
            columns.append(values)
        return torch.from_numpy(np.concatenate(columns, axis=-1))


# text


def make_text_tokenizer(
    section: Backbone, max_length: int | None, folder: Path | None
) -> "ByteTokenizer | SubwordTokenizer":
    """The text tokenizer of a backbone.

    Args:
        section: The backbone.
        max_length: Maximum number of token ids; None: that of the backbone. The prompt of a
            vision-language model has the images too.
        folder: Run folder with the tokenizer; None: use that of the base model.
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
                hint=f"set data.max_text_seq_len to at least {needed}, or leave it out",
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
                hint="copy the run or the base model again",
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
            _log.warning("an instruction is longer than %s tokens: it is truncated", self._length)
        self._has_warned = True


def padded(rows: Sequence[Sequence[int]], length: int, bucket: int) -> Tensor:
    """Token ids + 1, padded with 0: int64 [B, L]; L is a multiple of `bucket`, or `length`."""
    longest = max(map(len, rows), default=0)
    width = min(length, max(bucket, -(-longest // bucket) * bucket))
    encoded = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, ids in enumerate(rows):
        encoded[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64) + 1
    return encoded


# examples


def example_batch(config: DiffusionPolicyConfig, data: RoboticsDataConfig, size: int) -> Batch:
    """Example batch: gray images, slow waves as actions, no padded steps, empty instructions."""
    past = data.lowdim_past_timesteps
    future = data.lowdim_future_timesteps
    assert past is not None
    assert future is not None
    backbone = config.vision_language_backbone
    side = getattr(backbone, "img_size", _EXAMPLE_SIDE)
    num_images = len(data.image_indices) * len(data.cameras)
    width = data.action_dim or 0
    steps = torch.arange(past + 1 + future)
    phase = torch.arange(size)[:, None, None] + torch.arange(width)
    batch: Batch = {
        "keys": [f"example-{index}" for index in range(size)],
        "images": torch.full((size, num_images, 3, side, side), 128, dtype=torch.uint8),
        "text": example_text(backbone, size),
        "actions": torch.sin(phase + 0.2 * steps[None, :, None]),
        "proprioception": torch.zeros(size, past + 1, data.proprioception_dim or 0),
        "past_mask": (steps < past).expand(size, -1).clone(),
        "future_mask": (steps >= past).expand(size, -1).clone(),
        "dataset": torch.zeros(size, dtype=torch.int64),
    }
    if data.mask_padded_images:
        batch["image_mask"] = torch.ones(size, num_images, dtype=torch.bool)
    if data.pad_missing_fields:
        batch["action_mask"] = torch.ones(size, width, dtype=torch.bool)
    return batch


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
