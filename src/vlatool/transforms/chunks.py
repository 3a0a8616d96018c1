"""Windows of one length around every frame: what was seen, what is done, what is seen then.

The k-th picture of the future is what the k-th action leads to. Legend of shapes: F frames, P and Q
steps, A values of an action. Source: reference/future-vla 1.3.
"""

from collections.abc import Sequence

import numpy as np

from vlatool.episode import Array


def past_frames(at: int, steps: int) -> list[int]:
    """The last `steps` frames up to and with frame `at`, oldest first; none before the first."""
    return [max(0, frame) for frame in range(at - steps + 1, at + 1)]


def future_frames(at: int, steps: int, frames: int) -> list[int]:
    """The `steps` frames after frame `at` of `frames`; none after the last."""
    return [min(frame, frames - 1) for frame in range(at + 1, at + 1 + steps)]


def with_padding(actions: Array, steps: int) -> Array:
    """Actions [F, A] with what windows at the end need behind them [F + steps, A].

    A padded action does nothing and keeps the gripper: zeros, and at the end the last value of the
    last real action.
    """
    still = np.zeros_like(actions[-1:])
    still[:, -1] = actions[-1, -1]
    return np.concatenate([actions, np.repeat(still, steps, axis=0)])


def future_actions(padded: Array, at: int, steps: int) -> Sequence[Sequence[float]]:
    """The `steps` actions from frame `at` on, of what `with_padding` returns."""
    return padded[at : at + steps].tolist()
