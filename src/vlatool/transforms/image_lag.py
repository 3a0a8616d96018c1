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
    images [F, h, w], and the norm of the change of the states [F, C], each by its deviation.
    """
    steps = np.diff(states.astype(np.float64), axis=0)
    deviation = steps.std(axis=0)
    state_speed = np.linalg.norm(steps[:, deviation > 0] / deviation[deviation > 0], axis=1)
    image_speed = np.abs(np.diff(pixels, axis=0)).mean(axis=(1, 2))
    of_states = np.diff(state_speed)
    of_images = np.diff(image_speed)
    if len(pixels) < _FEWEST or not of_states.any() or not of_images.any():
        return None
    of_states = of_states / of_states.std()
    of_images = of_images / of_images.std()
    correlations: list[float] = []
    for lag in range(-_MOST_LAG, _MOST_LAG + 1):
        length = len(of_states) - abs(lag)
        earlier = of_states[max(-lag, 0) :][:length]
        later = of_images[max(lag, 0) :][:length]
        correlations.append(float((earlier * later).mean()))
    return np.array(correlations)


def clear_lag(correlations: Array, peak: float) -> int | None:
    """Lag of the highest of the correlations [13]; None if it is below `peak`, or no clear one."""
    *_, second, best = np.sort(correlations)
    if best < max(peak, _RATIO * second):
        return None
    return int(np.argmax(correlations)) - _MOST_LAG
