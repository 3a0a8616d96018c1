"""Samples to tensors for the policy. Source: formats/lbm 5.3, 5.4; reference/policy 1.1.

Tensors of text hold token ids + 1, padded with 0. Legend of shapes: B batch, N images, T action
steps, P proprioception steps, L token ids of a text.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.formats.base_model import read_tokenizer, read_tokenizer_asset
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.loading.shared_memory import stack_rows
from vlatool.models.base import Batch
from vlatool.models.diffusion_policy import config as diffusion_policy_config
from vlatool.models.pretrained import tokenizers

_DEFAULT_TEXT_LENGTH = 128
_TEXT_BUCKET = 32
# Lengths are multiples of it, up to the maximum of the model, so that few shapes occur.
_TOKEN_BUCKET = 16
# Values of CLIP if its config.json lacks them: maximum length, begin and end of text.
_CLIP_LENGTH = 77
_CLIP_BOS = 49406
_CLIP_EOS = 49407
# Vision-language models: maximum length, and tokens for the prompt and the instruction.
_MAX_TOKENS = 1 << 15
_TEXT_TOKENS = 64
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
    """UTF-8 bytes + 1, truncated at `length`, padded with 0: int64 [B, L]. L is the longest length,
    rounded up to a multiple of 32, so that few shapes occur.
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
    section: diffusion_policy_config.ViTBackboneConfig
    | diffusion_policy_config.KeypointBackboneConfig
    | diffusion_policy_config.TextBackboneConfig,
    most: int | None,
    folder: Path | None,
) -> TextTokenizer:
    text = section.text_encoder
    length = _DEFAULT_TEXT_LENGTH if text is None else text.max_length
    return ByteTokenizer(min(length, most or length))


def _clip(
    section: diffusion_policy_config.ClipBackboneConfig, max_length: int | None, folder: Path | None
) -> TextTokenizer:
    if section.disable_text:
        return ByteTokenizer(1)
    length = _clip_text(section).get("max_position_embeddings", _CLIP_LENGTH)
    prefix = _IMAGE_WORD * (section.num_images or 0) if section.image_words else ""
    tokenizer = _tokenizer(section, folder)
    return SubwordTokenizer(tokenizer, min(length, max_length or length), prefix)


def _tokenizer(section: diffusion_policy_config.BaseBackboneConfig, folder: Path | None) -> str:
    """The tokenizer.json of a run folder; of the base model if `folder` is None."""
    return read_tokenizer(section.base) if folder is None else read_tokenizer_asset(folder)


def _clip_text(section: diffusion_policy_config.ClipBackboneConfig) -> Mapping[str, Any]:
    return (section.architecture or {}).get("text_config") or {}


def _vlm(
    section: diffusion_policy_config.VlmBackboneConfig, max_length: int | None, folder: Path | None
) -> TextTokenizer:
    """Images and instruction in the prompt of the model; `max_length` counts both."""
    assert section.architecture is not None
    images = section.num_images or 0
    tokens = _tokens(section)
    prefix, suffix = diffusion_policy_config.vlm_prompt_of(section.architecture).prompt(
        images, tokens
    )
    needed = images * tokens + _TEXT_TOKENS
    if max_length is not None and max_length < needed:
        raise UsageError(
            f"data.max_text_seq_len {max_length} is too small for the images and an instruction",
            hint=f"set data.max_text_seq_len to at least {needed}, or leave it out",
            code="usage.bad_value",
        )
    tokenizer = _tokenizer(section, folder)
    return SubwordTokenizer(tokenizer, max_length or _MAX_TOKENS, prefix, suffix)


def _tokens(section: diffusion_policy_config.VlmBackboneConfig) -> int:
    assert section.architecture is not None
    assert section.image_size is not None
    return diffusion_policy_config.image_tokens(section.architecture, section.image_size)


_FACTORIES: Mapping[str, Callable[[Any, int | None, Path | None], TextTokenizer]] = {
    "vit_backbone": _bytes,
    "keypoint_backbone": _bytes,
    "text_backbone": _bytes,
    "clip_backbone": _clip,
    "clip_hf": _clip,
    "vlm_backbone": _vlm,
}


def make_text_tokenizer(
    section: diffusion_policy_config.Backbone, max_length: int | None, folder: Path | None
) -> TextTokenizer:
    """The text tokenizer of a backbone; `max_length`: maximum number of token ids; None: that of
    the backbone; `folder`: run folder with the tokenizer; None: use that of the base model.
    """
    return _FACTORIES[section.type](section, max_length, folder)


def example_text(section: diffusion_policy_config.Backbone, size: int) -> Tensor:
    """Empty instructions, int64 [size, L]; needs no tokenizer."""
    ids = _EXAMPLES[section.type](section) if section.type in _EXAMPLES else []
    return padded([ids] * size, _MAX_TOKENS, _TOKEN_BUCKET if ids else _TEXT_BUCKET)


def _clip_example(section: diffusion_policy_config.ClipBackboneConfig) -> list[int]:
    text = _clip_text(section)
    return [text.get("bos_token_id", _CLIP_BOS), text.get("eos_token_id", _CLIP_EOS)]


def _vlm_example(section: diffusion_policy_config.VlmBackboneConfig) -> list[int]:
    assert section.architecture is not None
    # An id between images, because some models detect the end of an image by it.
    image = [diffusion_policy_config.image_token_id(section.architecture)] * _tokens(section) + [0]
    return image * (section.num_images or 0)


# Token ids of an empty instruction; other backbones have none.
_EXAMPLES: Mapping[str, Callable[[Any], list[int]]] = {
    "clip_backbone": _clip_example,
    "clip_hf": _clip_example,
    "vlm_backbone": _vlm_example,
}


# Used if the backbone takes images of any size.
_EXAMPLE_SIDE = 64


class PolicyBatcher:
    """Converts samples to a batch of normalized tensors; picklable."""

    def __init__(
        self,
        config: diffusion_policy_config.DiffusionPolicyConfig,
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

        Returns images uint8 [B, N, 3, H, W], channels last in memory; text int64 [B, L], token ids
        + 1, padded with 0; actions float32 [B, T, A] and proprioception float32 [B, P, d],
        normalized; past_mask and future_mask bool [B, T]; dataset int64 [B], index of the data set;
        keys, names of the samples; image_mask bool [B, N] if padded images are masked;
        action_mask bool [B, A], False for padded fields, if these may be padded.
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
        stacked = stack_rows([sample.images for sample in samples])
        return {
            "keys": [sample.key for sample in samples],
            "images": torch.from_numpy(stacked).permute(0, 1, 4, 2, 3),
            "text": self._text_tokenizer([sample.instruction for sample in samples]),
            "actions": self._stacked(samples, self._data.action_fields, None),
            "proprioception": self._stacked(samples, self._data.proprioception_fields, past + 1),
            "past_mask": torch.from_numpy(np.stack([sample.past_mask for sample in samples])),
            "future_mask": torch.from_numpy(np.stack([sample.future_mask for sample in samples])),
            "dataset": torch.tensor([sample.dataset for sample in samples]),
            **self._mask(samples),
            **self._action_mask(samples),
        }

    def _mask(self, samples: Sequence[DecodedSample]) -> Batch:
        if not self._data.mask_padded_images:
            return {}
        masks = [
            np.ones(len(sample.images), bool) if sample.image_mask is None else sample.image_mask
            for sample in samples
        ]
        return {"image_mask": torch.from_numpy(np.stack(masks))}

    def _action_mask(self, samples: Sequence[DecodedSample]) -> Batch:
        if not self._data.pad_missing_fields:
            return {}
        rows = [sample.is_real(self._data.action_fields) for sample in samples]
        return {"action_mask": torch.from_numpy(np.stack(rows))}

    def _stacked(
        self, samples: Sequence[DecodedSample], fields: Sequence[str], steps: int | None
    ) -> Tensor:
        """Normalized fields, concatenated, of the first `steps` steps; None: all steps."""
        length = len(samples[0].past_mask) if steps is None else steps
        parts = [
            self._normalizer.normalize(
                name, np.stack([sample.fields[name][:steps] for sample in samples])
            )
            for name in fields
        ]
        for row, sample in enumerate(samples):
            for name in sample.padded_fields.intersection(fields):
                parts[fields.index(name)][row] = 0
        if not parts:
            return torch.zeros(len(samples), length, 0)
        return torch.from_numpy(np.concatenate(parts, axis=-1))


def example_batch(
    config: diffusion_policy_config.DiffusionPolicyConfig, data: RoboticsDataConfig, size: int
) -> Batch:
    """Example batch: gray images, slow waves as actions, no padded steps, empty instructions."""
    past = data.lowdim_past_timesteps
    future = data.lowdim_future_timesteps
    assert past is not None
    assert future is not None
    backbone = config.vision_language_backbone
    side = getattr(backbone, "img_size", _EXAMPLE_SIDE)
    num_images = len(data.image_indices) * len(data.cameras)
    steps = torch.arange(past + 1 + future)
    phase = torch.arange(size)[:, None, None] + torch.arange(data.action_dim or 0)
    observed = data.proprioception_dim or 0
    masks = {"image_mask": num_images} if data.mask_padded_images else {}
    masks |= {"action_mask": data.action_dim or 0} if data.pad_missing_fields else {}
    return {
        "keys": [f"example-{index}" for index in range(size)],
        "images": torch.full((size, num_images, 3, side, side), 128, dtype=torch.uint8),
        "text": example_text(backbone, size),
        "actions": torch.sin(phase + 0.2 * steps[None, :, None]),
        "proprioception": torch.zeros(size, past + 1, observed),
        "past_mask": (steps < past).expand(size, -1).clone(),
        "future_mask": (steps >= past).expand(size, -1).clone(),
        "dataset": torch.zeros(size, dtype=torch.int64),
        **{name: torch.ones(size, width, dtype=torch.bool) for name, width in masks.items()},
    }
