"""Figures of the images of one camera, from a grid of their pixels.

Legend of shapes: F frames, G grid points of a side.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from vlatool.episode import Array, UInt8Array
from vlatool.transforms.image_lag import clear_lag, lag_correlations
from vlatool.transforms.motion import is_moving, speeds

GRID = 32
SIDE = 8
_EQUAL = 2  # levels of 255 that a repeated image may differ by
_BLANK = 2.0  # levels of the deviation of an image of one color
_PEAK = 0.6
_END = 0.2  # of the frames, from which the last mean image is


def grid(images: UInt8Array) -> UInt8Array:
    """Evenly spaced pixels uint8 [N, G, G, 3] of images [N, H, W, 3]."""
    rows, columns = (
        ((2 * np.arange(GRID) + 1) * side // (2 * GRID)).astype(int) for side in images.shape[1:3]
    )
    return images[:, rows[:, None], columns]


def repeats(images: Sequence[UInt8Array], grids: Sequence[UInt8Array]) -> Array:
    """Bool [N - 1]: an image [H, W, 3] shows the same as the one before it."""
    pairs = enumerate(itertools.pairwise(grids))
    same = [_alike(*of_grid) and _alike(images[n], images[n + 1]) for n, of_grid in pairs]
    return np.array(same, bool)


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
    correlations = lag_correlations(grids.astype(np.float32).mean(axis=-1), states)
    lag = None if correlations is None else clear_lag(correlations, _PEAK)
    return figures | ({} if lag is None else {"camera_lag": float(lag)})


def mean_images(grids: UInt8Array) -> tuple[Array, Array]:
    """Mean images of all frames and of the last fifth, float32 [8 * 8 * 3] each."""
    cells = grids.reshape(len(grids), SIDE, GRID // SIDE, SIDE, GRID // SIDE, 3)
    small = cells.mean(axis=(2, 4), dtype=np.float32).reshape(len(grids), -1)
    return small.mean(axis=0), small[-max(1, round(_END * len(small))) :].mean(axis=0)
