"""Figures of the images of one camera, from a grid of their pixels.

Legend of shapes: F frames, G grid points of a side.
"""

from collections.abc import Sequence

import numpy as np

from vlatool.episode import Array, UInt8Array
from vlatool.transforms.motion import is_moving, speeds

GRID = 32
SIDE = 8
_EQUAL = 2  # levels of 255 that a repeated image may differ by
_BLANK = 2.0  # levels of the deviation of an image of one color
_END = 0.2  # of the frames, from which the last mean image is


def grid(images: UInt8Array) -> UInt8Array:
    """Evenly spaced pixels uint8 [N, G, G, 3] of images [N, H, W, 3]."""
    _, height, width, _ = images.shape
    middles = 2 * np.arange(GRID) + 1  # in halves of a cell
    rows = middles * height // (2 * GRID)
    columns = middles * width // (2 * GRID)
    return images[:, rows[:, None], columns]


def repeats(images: Sequence[UInt8Array], grids: Sequence[UInt8Array]) -> Array:
    """Bool [N - 1]: an image [H, W, 3] shows the same as the one before it."""
    repeated = np.zeros(max(len(grids) - 1, 0), bool)
    for index in range(len(repeated)):
        # Grids are compared first: few whole images are.
        if _alike(grids[index], grids[index + 1]):
            repeated[index] = _alike(images[index], images[index + 1])
    return repeated


def _alike(first: UInt8Array, second: UInt8Array) -> bool:
    return bool((np.maximum(first, second) - np.minimum(first, second)).max() <= _EQUAL)


def image_figures(grids: UInt8Array, repeated: Array, states: Array) -> dict[str, float]:
    """Figures of a camera: grids uint8 [F, G, G, 3], repeated bool [F - 1], states [F, S] of
    dimensions that change.
    """
    deviation = grids.reshape(len(grids), -1).std(axis=1)
    figures = {"blank_share": float((deviation < _BLANK).mean())}
    if len(states) < 2 or not states.shape[1]:
        return figures
    moves = is_moving(speeds(states))
    if moves.any():
        figures["frozen_share"] = float(repeated[moves].mean())
    return figures


def mean_images(grids: UInt8Array) -> tuple[Array, Array]:
    """Mean images of all frames and of the last fifth, float32 [8 * 8 * 3] each."""
    cells = grids.reshape(len(grids), SIDE, GRID // SIDE, SIDE, GRID // SIDE, 3)
    small = cells.mean(axis=(2, 4), dtype=np.float32).reshape(len(grids), -1)
    at_end = small[-max(1, round(_END * len(small))) :]
    return small.mean(axis=0), at_end.mean(axis=0)
