"""Bytes of a sample to arrays; only the members and fields that are asked for are decoded."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlatool.artifacts.sample import MASKS, METADATA, StoredSample
from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.images import ImageDecoder
from vlatool.loading.shard_reader import BROKEN_SAMPLE

# Why a sample is dropped.
NOT_FINITE = "not_finite"
DROP_REASONS = (BROKEN_SAMPLE, NOT_FINITE)
_TIME_AND_CHANNELS = 2
# What decoders, numpy and json say of contents that are none.
_BROKEN = (
    ValueError,
    TypeError,
    OSError,
    EOFError,
    OverflowError,
    IndexError,
    SyntaxError,
    struct.error,
)


@dataclass(frozen=True)
class DecodedSample:
    """One training sample.

    Attributes:
        key: Names the sample in messages.
        images: uint8 [N, H, W, 3], time outer, camera inner; black where there is none.
        fields: Field name to float64 [T, C], cropped to the configured window.
        past_mask: bool [T].
        future_mask: bool [T].
        instruction: One sentence.
        metadata: As stored.
        image_mask: bool [N], which of the pictures there are; None: all of them.
        dataset: Number of its data set among those of the run, from 0.
    """

    key: str
    images: UInt8Array
    fields: Mapping[str, Array]
    past_mask: Array
    future_mask: Array
    instruction: str
    metadata: Mapping[str, Any]
    image_mask: Array | None = None
    dataset: int = 0


class SampleDecoder:
    """Decodes the members of samples as a data section asks for.

    Args:
        config: Data section, derived.
        size: (width, height) that every picture was given in preprocessing; None where it was given
            none.
        widths: Channels of each field; None where any will do.
        number: Of the data set among those of the run, from 0.
    """

    def __init__(
        self,
        config: RoboticsDataConfig,
        size: tuple[int, int] | None = None,
        widths: Mapping[str, int] | None = None,
        number: int = 0,
    ) -> None:
        assert config.lowdim_past_timesteps is not None
        assert config.lowdim_future_timesteps is not None
        self._images = ImageDecoder(config, size)
        self._number = number
        self._widths = widths or {}
        self._fields = list(dict.fromkeys([*config.action_fields, *config.proprioception_fields]))
        self._kinds = config.language_instruction_types
        self._past = config.lowdim_past_timesteps
        self._future = config.lowdim_future_timesteps

    def __call__(
        self,
        key: str,
        members: Mapping[str, bytes],
        rng: np.random.Generator,
        buffer: UInt8Array | None = None,
    ) -> DecodedSample:
        """Decodes one sample.

        Args:
            key: Its name.
            members: Suffix to content.
            rng: Picks one of its sentences, then draws how its pictures vary.
            room: uint8 [N, H, W, 3] for its pictures, which is used where it fits.

        Raises:
            DataError: A member or field is missing or broken (`data.broken_sample`), a value is no
                number (`data.not_finite`), or pictures differ in size (`data.image_sizes_differ`)
                or are smaller than a crop (`data.picture_too_small`); names sample and member.
        """
        sample = StoredSample(key, members)
        try:
            metadata: Any = sample.json(METADATA)
            anchor = int(metadata["anchor_relative_idx"])
            arrays = sample.arrays([*self._fields, *MASKS])
            span = _span(anchor - self._past, anchor + self._future + 1, arrays)
            fields = {name: self._columns(key, name, arrays[name])[span] for name in self._fields}
            _check_finite(key, fields)
            instruction = self._sentence(sample.language(), rng)
            images, image_mask = self._images(key, members, rng, buffer)
            return DecodedSample(
                key=key,
                images=images,
                fields=fields,
                past_mask=_mask(arrays["past_mask"])[span],
                future_mask=_mask(arrays["future_mask"])[span],
                instruction=instruction,
                metadata=metadata,
                image_mask=image_mask,
                dataset=self._number,
            )
        except KeyError as error:
            raise _missing(key, str(error.args[0])) from None
        except _BROKEN as error:
            raise DataError(
                f"sample {key} cannot be decoded: {error}",
                hint="its shard is damaged; preprocess or copy it again",
                code=f"data.{BROKEN_SAMPLE}",
                details={"sample": key},
            ) from None

    def _columns(self, key: str, name: str, values: Array) -> Array:
        """Numbers as [T, C]."""
        columns = values[:, None] if values.ndim == 1 else values
        width = self._widths.get(name, columns.shape[-1])
        if columns.dtype.kind not in "biuf" or columns.ndim != _TIME_AND_CHANNELS:
            raise ValueError(f"{name} is {columns.dtype} {list(columns.shape)}")
        if columns.shape[1] != width:
            raise DataError(
                f"sample {key}: {name} is {columns.shape[1]} wide, in the statistics {width}",
                hint="the statistics are of other data, or the shard is: leave "
                "data.dataset_statistics out, or preprocess again",
                code=f"data.{BROKEN_SAMPLE}",
                details={"sample": key, "field": name},
            )
        return columns

    def _sentence(self, by_kind: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
        """One sentence of the configured kinds, drawn evenly; empty where there is none."""
        sentences = [text for kind in self._kinds for text in by_kind.get(kind, ())]
        chosen = sentences[int(rng.integers(len(sentences)))] if sentences else ""
        chosen.encode()  # half a character of a pair is no text
        return chosen


def _missing(key: str, member: str) -> DataError:
    return DataError(
        f"sample {key} has no {member!r}",
        hint="leave that camera or field out, or preprocess again, for pictures with "
        "--skip-episodes-missing-cameras",
        code=f"data.{BROKEN_SAMPLE}",
        details={"sample": key, "member": member},
    )


def _check_finite(key: str, fields: Mapping[str, Array]) -> None:
    for name, values in fields.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"sample {key}: a value of {name!r} is not finite",
                hint="preprocess with --fail-on-nan to find where it comes from",
                code=f"data.{NOT_FINITE}",
                details={"sample": key, "field": name},
            )


def _span(start: int, stop: int, arrays: Mapping[str, Array]) -> slice:
    """The steps of the window, which every array has."""
    shortest = min(len(values) for values in arrays.values())
    if start < 0 or stop > shortest:
        raise ValueError(f"steps {start} to {stop} are asked for, there are {shortest}")
    return slice(start, stop)


def _mask(values: Array) -> Array:
    if values.dtype.kind not in "biu" or values.ndim != 1:
        raise ValueError(f"a mask is {values.dtype} {list(values.shape)}")
    return values.astype(bool)
