"""Quality of an action tokenizer: lengths of its ids and error of the decoded action chunks.

Legend of shapes: N chunks, H steps, D action dimensions.
"""

from dataclasses import dataclass

import numpy as np

from vlatool.episode import Array
from vlatool.transforms.action_tokenizer import ActionTokenizer

_AT_ONCE = 4096  # chunks


@dataclass(frozen=True)
class ActionQuality:
    """Measurements on action chunks.

    Attributes:
        lengths: int64 [N], number of ids of each chunk.
        exact: Share of chunks whose rounded coefficients are decoded exactly.
        in_range: Share of coefficients that were not clamped.
        rms: float64 [D], root mean square error of normalized actions.
        largest: float64 [D], largest absolute error.
    """

    lengths: Array
    exact: float
    in_range: float
    rms: Array
    largest: Array


def action_quality(tokenizer: ActionTokenizer, chunks: Array) -> ActionQuality:
    """Encodes and decodes chunks [N, H, D] of normalized actions and compares them.

    Raises:
        DataError: As `ActionTokenizer.encode_counted`.
    """
    lengths: list[int] = []
    exact, clamped = 0, 0
    squares, largest = np.zeros(chunks.shape[2]), np.zeros(chunks.shape[2])
    for start in range(0, len(chunks), _AT_ONCE):
        part = chunks[start : start + _AT_ONCE]
        encoded = tokenizer.encode_counted(part)
        decoded, problems = tokenizer.decode(encoded.ids, *part.shape[1:])
        assert not any(problems), problems
        lengths += map(len, encoded.ids)
        clamped += int(encoded.clamped.sum())
        is_equal = tokenizer.coefficients(decoded) == tokenizer.coefficients(part)
        exact += int(is_equal.all(axis=(1, 2)).sum())
        change = np.abs(decoded.astype(np.float64) - part)
        squares += (change**2).sum(axis=(0, 1))
        largest = np.maximum(largest, change.max(axis=(0, 1)))
    rms = np.sqrt(squares / (len(chunks) * chunks.shape[1]))
    shares = exact / len(chunks), 1 - clamped / chunks.size
    return ActionQuality(np.array(lengths), *shares, rms, largest)


def coefficient_range(scale: float, chunks: Array) -> tuple[int, int]:
    """(lowest, highest) coefficient of chunks [N, H, D]; raises as `coefficients`."""
    rounding = ActionTokenizer("", scale)
    parts = (
        rounding.coefficients(chunks[start : start + _AT_ONCE])
        for start in range(0, len(chunks), _AT_ONCE)
    )
    ranges = [(int(part.min()), int(part.max())) for part in parts]
    return min(low for low, _ in ranges), max(high for _, high in ranges)
