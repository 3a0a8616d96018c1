"""Bytes of a sample to arrays; only the members and fields that are asked for are decoded."""

import io
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vlatool.artifacts.npz_bytes import read_arrays
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.config import DataConfig

_MASKS = ("past_mask", "future_mask")


@dataclass(frozen=True)
class DecodedSample:
    """One training sample.

    Attributes:
        key: Names the sample in messages.
        images: uint8 [N, H, W, 3], time outer, camera inner.
        fields: Field name to float64 [T, C], cropped to the configured window.
        past_mask: bool [T].
        future_mask: bool [T].
        instruction: One sentence.
        metadata: As stored.
    """

    key: str
    images: UInt8Array
    fields: Mapping[str, Array]
    past_mask: Array
    future_mask: Array
    instruction: str
    metadata: Mapping[str, Any]


class SampleDecoder:
    """Decodes raw samples (member suffix to bytes) as a data section asks for."""

    def __init__(self, config: DataConfig) -> None:
        assert config.lowdim_past_timesteps is not None
        assert config.lowdim_future_timesteps is not None
        # webdataset lower-cases the names of members.
        self._pictures = [f"{name}.jpg".lower() for name in config.image_names]
        self._fields = list(dict.fromkeys([*config.action_fields, *config.proprioception_fields]))
        self._kinds = config.language_instruction_types
        self._past = config.lowdim_past_timesteps
        self._future = config.lowdim_future_timesteps

    def __call__(self, raw: Mapping[str, Any], rng: random.Random) -> DecodedSample:
        """Decodes one sample; `rng` picks one of its sentences.

        Raises:
            DataError: A member or field is missing or broken; names sample and member.
        """
        key = str(raw.get("__key__", "?"))
        try:
            metadata = json.loads(raw["metadata.json"])
            anchor = int(metadata["anchor_relative_idx"])
            arrays = read_arrays(raw["lowdim.npz"], [*self._fields, *_MASKS])
            span = slice(anchor - self._past, anchor + self._future + 1)
            return DecodedSample(
                key=key,
                images=np.stack([_picture(raw[name]) for name in self._pictures]),
                fields={name: _columns(arrays[name])[span] for name in self._fields},
                past_mask=arrays["past_mask"][span],
                future_mask=arrays["future_mask"][span],
                instruction=self._sentence(raw.get("language_instructions.json"), rng),
                metadata=metadata,
            )
        except KeyError as error:
            missing = str(error.args[0])
            raise DataError(
                f"sample {key} has no {missing!r}",
                hint="leave that camera or field out, or preprocess again, for pictures with "
                "--skip-episodes-missing-cameras",
                code="data.broken_sample",
                details={"sample": key, "member": missing},
            ) from None
        except (ValueError, OSError, EOFError) as error:
            raise DataError(
                f"sample {key} cannot be decoded: {error}",
                hint="its shard is damaged; preprocess or copy it again",
                code="data.broken_sample",
                details={"sample": key},
            ) from None

    def _sentence(self, content: bytes | None, rng: random.Random) -> str:
        """One sentence of the configured kinds, drawn evenly; empty where there is none."""
        if content is None:
            return ""
        by_kind = json.loads(content) or {}
        sentences: list[str] = []
        for kind in self._kinds:
            value = by_kind.get(kind, [])
            sentences += [value] if isinstance(value, str) else value
        return rng.choice(sentences) if sentences else ""


def _columns(values: Array) -> Array:
    """Numbers as [T, C]; masks stay [T]."""
    return values[:, None] if values.ndim == 1 and values.dtype != bool else values


def _picture(data: bytes) -> UInt8Array:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))
