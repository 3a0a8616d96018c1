"""Windows of fixed length around every frame: past frames, actions, future frames.

The k-th future frame follows the k-th action. Legend of shapes: F frames, P and Q steps, A values
of an action. Source: reference/future-vla 1.3.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vlatool.episode import Array, PoseGroup
from vlatool.transforms.relative import reference_keys, relative_fields


def past_frames(at: int, steps: int) -> list[int]:
    """The last `steps` frames up to and including frame `at`, oldest first, clipped at frame 0."""
    return [max(0, frame) for frame in range(at - steps + 1, at + 1)]


def future_frames(at: int, steps: int, frames: int) -> list[int]:
    """The `steps` frames after frame `at`, clipped at the last of `frames` frames."""
    return [min(frame, frames - 1) for frame in range(at + 1, at + 1 + steps)]


def with_padding(actions: Array, steps: int, *, is_held: bool = False) -> Array:
    """Actions [F, A] padded for windows at the end of the episode: [F + steps, A].

    `actions`: [F, A]; `is_held`: repeat the last action: absolute and relative poses of zeros would
    be motion.

    A padded action does not move and keeps the gripper: zeros, except for the last value, which is
    that of the last real action.
    """
    if is_held:
        return np.concatenate([actions, np.repeat(actions[-1:], steps, axis=0)])
    still = np.zeros_like(actions[-1:])
    still[:, -1] = actions[-1, -1]
    return np.concatenate([actions, np.repeat(still, steps, axis=0)])


def relative_chunks(
    fields: Mapping[str, Array], names: Sequence[str], groups: Sequence[PoseGroup], steps: int
) -> Array:
    """Actions [F, steps, A] from each frame on; poses are relative to the measured one at it.

    `fields`: map from field to its values [F, C]; `names`: fields of an action, in order; those of
    `groups` with the suffix of relative ones; `groups`: poses with relative fields.

    After the end of the episode the last action is repeated.
    """
    of_groups = {
        key
        for group in groups
        for key in (group.position_key, group.rotation_key, *reference_keys(group))
    }
    needed = of_groups.union(names).intersection(fields)
    frames = len(fields[min(needed)])
    indices = np.minimum(np.arange(frames)[:, None] + np.arange(steps), frames - 1)
    windows = {name: fields[name].reshape(frames, -1)[indices] for name in needed}
    windows |= relative_fields(windows, groups, 0)
    return np.concatenate([windows[name] for name in names], axis=2)


def future_actions(padded: Array, at: int, steps: int) -> Sequence[Sequence[float]]:
    """The `steps` actions from frame `at` on; `padded` is the result of `with_padding`."""
    return padded[at : at + steps].tolist()
