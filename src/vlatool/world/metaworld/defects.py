"""The defects of `world.defects` in recordings of Meta-World."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vlatool.episode import UInt8Array
from vlatool.world.defects import (
    DETAIL,
    MOST_LATE,
    SHARE_OF_END,
    defect_of,
    pause_in,
    start_of_still,
)
from vlatool.world.metaworld.episodes import SimulatedEpisode, simulated_episode
from vlatool.world.metaworld.simulator import FloatArray

_TREMOR = 0.6  # of the largest action


def simulated_episode_with(
    tasks: Sequence[str],
    size: tuple[int, int],
    seed: int,
    index: int,
    shares: Mapping[str, float],
) -> SimulatedEpisode:
    """Episode of Meta-World, with the defect that its number has, if any."""
    clean = simulated_episode(tasks, size, seed, index)
    defect = defect_of(shares, seed, index)
    rng = np.random.default_rng([seed, index, DETAIL])
    if defect not in ("tremor", "early-release"):
        return _changed(clean, defect, tasks, rng)
    closed = np.flatnonzero(clean.actions[:, 3] > 0)
    release = int(closed[len(closed) // 2]) if len(closed) else len(clean)

    def alter(action: FloatArray, step: int) -> FloatArray:
        if defect == "early-release":
            return np.array([*action[:3], -1.0]) if step >= release else action
        shake = _TREMOR * (1 if step % 2 else -1) * rng.uniform(0.5, 1.5, 3)
        return np.array([*(action[:3] + shake), action[3]])

    return simulated_episode(tasks, size, seed, index, alter=alter, frames=len(clean))


def _changed(
    episode: SimulatedEpisode, defect: str, tasks: Sequence[str], rng: np.random.Generator
) -> SimulatedEpisode:
    """The episode with a defect that needs no other motion."""
    frames = len(episode)
    if defect == "wrong-instruction":
        others = [task for task in tasks if task != episode.task]
        return replace(episode, task=others[int(rng.integers(len(others)))])
    if defect == "late-actions":
        late = int(rng.integers(1, MOST_LATE + 1))
        actions = np.concatenate([np.zeros((late, 4)), episode.actions])[:frames]
        return replace(episode, actions=actions)
    if defect == "pause":
        at, count = pause_in(frames, rng)
        rows = [*range(at), *[at] * count, *range(at, frames)][:frames]
        actions = episode.actions[rows]
        actions[at : at + count, :3] = 0.0
        return replace(_rows(episode, rows), actions=actions)
    if defect == "truncated":
        return _rows(episode, range(round((1 - SHARE_OF_END) * frames)))
    return replace(episode, images=_faulty_images(episode.images, defect, frames, rng))


def _faulty_images(
    images: Mapping[str, list[UInt8Array]], defect: str, frames: int, rng: np.random.Generator
) -> dict[str, list[UInt8Array]]:
    if defect == "swapped-cameras":
        return dict(zip(images, [*images.values()][::-1], strict=True))
    if defect == "frozen-camera":
        last = [*images][-1]
        first = start_of_still(frames, rng)
        return {**images, last: [images[last][min(number, first)] for number in range(frames)]}
    return dict(images)


def _rows(episode: SimulatedEpisode, rows: Sequence[int]) -> SimulatedEpisode:
    return replace(
        episode,
        images={name: [images[row] for row in rows] for name, images in episode.images.items()},
        states=episode.states[list(rows)],
        actions=episode.actions[list(rows)],
    )
