"""Lag of images behind the joints, from the changes of speed in both."""

import numpy as np

from vlatool.episode import Array

_FEWEST = 60  # frames
_MOST_LAG = 6  # frames
_SIDE = 32  # pixels of a side that are compared, about
_RATIO = 1.5  # of a clear peak to the correlation at any other lag


def brightness(images: Array) -> Array:
    """Evenly spaced pixels of images uint8 [N, H, W, 3], float32 [N, h, w]."""
    step = max(1, min(images.shape[1:3]) // _SIDE)
    return images[:, ::step, ::step].astype(np.float32).mean(axis=-1)


def lag_correlations(pixels: Array, states: Array) -> Array | None:
    """Correlation at each lag from -6 to 6 frames [13]; None if too few frames move.

    Of the changes from frame to frame of two speeds: the mean absolute difference of consecutive
    images [F, h, w], and the norm of those of the states [F, C], each by its deviation.
    """
    steps = np.diff(states.astype(np.float64), axis=0)
    deviation = steps.std(axis=0)
    speed = np.linalg.norm(steps[:, deviation > 0] / deviation[deviation > 0], axis=1)
    motion = np.abs(np.diff(pixels, axis=0)).mean(axis=(1, 2))
    first = np.diff(speed)
    second = np.diff(motion)
    if len(pixels) < _FEWEST or not (first.any() and second.any()):
        return None
    first, second = (values / values.std() for values in (first, second))
    return np.array([_mean_product(first, second, lag) for lag in range(-_MOST_LAG, _MOST_LAG + 1)])


def clear_lag(correlations: Array, peak: float) -> int | None:
    """Lag of the highest of the correlations [13]; None if it is below `peak`, or no clear one."""
    *_, other, best = np.sort(correlations)
    is_clear = best >= max(peak, _RATIO * other)
    return int(np.argmax(correlations)) - _MOST_LAG if is_clear else None


def _mean_product(first: Array, second: Array, lag: int) -> float:
    """Mean product of `first` [N] and the values of `second` [N] that come `lag` later."""
    length = len(first) - abs(lag)
    earlier = max(-lag, 0)
    later = max(lag, 0)
    return float((first[earlier:][:length] * second[later:][:length]).mean())
