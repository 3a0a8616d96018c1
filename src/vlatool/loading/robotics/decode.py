"""Decoding of samples. Only the configured members and fields are decoded."""

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

# Drop reasons.
NOT_FINITE = "not_finite"
DROP_REASONS = (BROKEN_SAMPLE, NOT_FINITE)
_TIME_AND_CHANNELS = 2
# Exceptions of image decoders, numpy and json for broken content.
_DECODE_ERRORS = (
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
        key: Name of the sample in messages.
        images: uint8 [N, H, W, 3], time outer, camera inner; padded images are black.
        fields: Map from field name to float64 [T, C], cropped to the configured window.
        past_mask: bool [T], cropped likewise.
        future_mask: bool [T], cropped likewise.
        instruction: Instruction, empty if the sample has none.
        metadata: Metadata as stored.
        image_mask: bool [N], False for padded images; None: no image is padded.
        dataset: Index of the data set in the run, from 0.
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
    """Decodes the members of samples that a section `data` configures.

    Args:
        config: Section `data`, derived.
        size: (width, height) of all images; None: preprocessing did not resize them.
        widths: Map from field name to number of dimensions; None: not checked.
        number: Index of the data set in the run, from 0.
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
            key: Name of the sample.
            members: Map from suffix to content.
            rng: Generator for the choice of the instruction, then for the augmentation.
            buffer: Memory uint8 [N, H, W, 3] for the images; used if its shape fits.

        Raises:
            DataError: A member or field is missing or broken (`data.broken_sample`), a value is not
                finite (`data.not_finite`), or images differ in size (`data.image_sizes_differ`) or
                are smaller than the crop (`data.picture_too_small`).
        """
        sample = StoredSample(key, members)
        try:
            metadata: Any = sample.json(METADATA)
            anchor = int(metadata["anchor_relative_idx"])
            arrays = sample.arrays([*self._fields, *MASKS])
            span = _span(anchor - self._past, anchor + self._future + 1, arrays)
            fields = {name: self._columns(key, name, arrays[name])[span] for name in self._fields}
            _check_finite(key, fields)
            instruction = self._instruction(sample.language(), rng)
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
        except _DECODE_ERRORS as error:
            raise DataError(
                f"sample {key} cannot be decoded: {error}",
                hint="its shard is broken: preprocess or copy it again",
                code=f"data.{BROKEN_SAMPLE}",
                details={"sample": key},
            ) from None

    def _columns(self, key: str, name: str, values: Array) -> Array:
        """Returns the values of a field as [T, C]."""
        columns = values[:, None] if values.ndim == 1 else values
        width = self._widths.get(name, columns.shape[-1])
        if columns.dtype.kind not in "biuf" or columns.ndim != _TIME_AND_CHANNELS:
            raise ValueError(f"{name} is {columns.dtype} {list(columns.shape)}")
        if columns.shape[1] != width:
            raise DataError(
                f"sample {key}: {name} has {columns.shape[1]} dimensions, its statistics have "
                f"{width}",
                hint="shard and statistics are of different data: remove data.dataset_statistics, "
                "or preprocess again",
                code=f"data.{BROKEN_SAMPLE}",
                details={"sample": key, "field": name},
            )
        return columns

    def _instruction(self, by_kind: Mapping[str, Sequence[str]], rng: np.random.Generator) -> str:
        """Returns a random instruction of the configured kinds; empty if there is none."""
        texts = [text for kind in self._kinds for text in by_kind.get(kind, ())]
        instruction = texts[int(rng.integers(len(texts)))] if texts else ""
        instruction.encode()  # raises UnicodeEncodeError for lone surrogates
        return instruction


def _missing(key: str, member: str) -> DataError:
    return DataError(
        f"sample {key} has no {member!r}",
        hint="remove that camera or field from the config, or preprocess again (for a camera with "
        "--skip-episodes-missing-cameras)",
        code=f"data.{BROKEN_SAMPLE}",
        details={"sample": key, "member": member},
    )


def _check_finite(key: str, fields: Mapping[str, Array]) -> None:
    for name, values in fields.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"sample {key}: a value of {name!r} is not finite",
                hint="preprocess with --fail-on-nan to find the episode",
                code=f"data.{NOT_FINITE}",
                details={"sample": key, "field": name},
            )


def _span(start: int, stop: int, arrays: Mapping[str, Array]) -> slice:
    """Returns the steps of the window as a slice; ValueError if an array is shorter."""
    shortest = min(len(values) for values in arrays.values())
    if start < 0 or stop > shortest:
        raise ValueError(f"the window is steps {start} to {stop}, the sample has {shortest}")
    return slice(start, stop)


def _mask(values: Array) -> Array:
    if values.dtype.kind not in "biu" or values.ndim != 1:
        raise ValueError(f"a mask is {values.dtype} {list(values.shape)}")
    return values.astype(bool)
