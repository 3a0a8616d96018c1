"""Windows of fixed length around every frame: past frames, actions, future frames.

The k-th future frame follows the k-th action. Legend of shapes: F frames, P and Q steps, A values
of an action. Source: reference/future-vla 1.3.
"""

from collections.abc import Sequence

import numpy as np

from vlatool.episode import Array


def past_frames(at: int, steps: int) -> list[int]:
    """The last `steps` frames up to and including frame `at`, oldest first, clipped at frame 0."""
    return [max(0, frame) for frame in range(at - steps + 1, at + 1)]


def future_frames(at: int, steps: int, frames: int) -> list[int]:
    """The `steps` frames after frame `at`, clipped at the last of `frames` frames."""
    return [min(frame, frames - 1) for frame in range(at + 1, at + 1 + steps)]


def with_padding(actions: Array, steps: int) -> Array:
    """Actions [F, A] padded for windows at the end of the episode: [F + steps, A].

    A padded action does not move and keeps the gripper: zeros, except for the last value, which is
    that of the last real action.
    """
    still = np.zeros_like(actions[-1:])
    still[:, -1] = actions[-1, -1]
    return np.concatenate([actions, np.repeat(still, steps, axis=0)])


def future_actions(padded: Array, at: int, steps: int) -> Sequence[Sequence[float]]:
    """The `steps` actions from frame `at` on; `padded` is the result of `with_padding`."""
    return padded[at : at + steps].tolist()
