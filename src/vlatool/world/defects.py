"""Defects that are planted in recordings of the built-in world, to measure what finds them.

Recordings with a defect have about the lengths of those without, so that length says nothing.
Actions, states and images agree as those of a robot would, and no reader reads the truth.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from vlatool.world import scene as world_scene
from vlatool.world.recording import WorldEpisode, expert_episode

TRUTH_FILE = "defects.json"
DEFECTS: Mapping[str, str] = {
    "early-release": "the hand opens on half of the way",
    "wrong-object": "another object is moved than the instruction names",
    "wrong-instruction": "the text is that of another task",
    "tremor": "the hand shakes from frame to frame",
    "late-actions": "actions are stored 1 to 3 frames late",
    "pause": "the hand stands still for a fifth of the episode",
    "truncated": "the last quarter is missing",
    "swapped-cameras": "the images of two cameras are exchanged",
    "frozen-camera": "from some frame on, a camera repeats its image",
}
_CHOICE = 11
DETAIL = 12
_SHARE_OF_PAUSE = 0.2
SHARE_OF_END = 0.25
MOST_LATE = 3
_TREMOR_M = 0.012
_TRIES = 8
_OTHER_START = 3_000_000


def shares_of(defects: Sequence[str]) -> dict[str, float]:
    """Map from defect to its share of the episodes, from NAME:SHARE; ValueError names a fault."""
    shares: dict[str, float] = {}
    for name, _, share in (text.partition(":") for text in defects):
        if name not in DEFECTS or name in shares:
            problem = "is given twice" if name in shares else "is no defect"
            raise ValueError(f"{name!r} {problem}; known: {', '.join(DEFECTS)}")
        shares[name] = float(share) if share.replace(".", "", 1).isdigit() else 0.0
    if not all(shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise ValueError("write shares above 0 that sum to at most 1, such as tremor:0.2,pause:0.1")
    return shares


def defect_of(shares: Mapping[str, float], seed: int, index: int) -> str:
    """Defect of an episode, by the share of each; empty for none."""
    drawn = np.random.default_rng([seed, index, _CHOICE]).random()
    for name, limit in zip(shares, np.cumsum([*shares.values()]), strict=True):
        if drawn < limit:
            return name
    return ""


def world_episode(
    seed: int,
    index: int,
    shares: Mapping[str, float],
    cameras: Sequence[str],
    frames: int | None = None,
    shared_scenes: int | None = None,
) -> WorldEpisode:
    """Episode of the built-in world, with the defect that its number has, if any."""
    make = partial(expert_episode, seed, frames=frames, shared_scenes=shared_scenes)
    clean = make(index)
    defect = defect_of(shares, seed, index)
    if not defect:
        return clean
    rng = np.random.default_rng([seed, index, DETAIL])
    if defect in ("wrong-object", "wrong-instruction"):
        shift = 1 + int(rng.integers(len(world_scene.COLORS) - 1))
        other = replace(clean, target=(clean.target + shift) % len(world_scene.COLORS))
        return replace(other, success=False)
    if defect in ("pause", "truncated"):
        change = _paused if defect == "pause" else _cut
        tries = (change(make(index + n * _OTHER_START), rng) for n in range(_TRIES))
        nearest = min(tries, key=lambda each: abs(len(each) - len(clean)))
        return replace(nearest, index=index)
    if defect == "swapped-cameras":
        others = [*cameras[1:], cameras[0]]
        return replace(clean, shown_as=dict(zip(cameras, others, strict=True)))
    if defect == "frozen-camera":
        return replace(clean, frozen_from={cameras[-1]: start_of_still(len(clean), rng)})
    return _WORLD_CHANGES[defect](clean, rng)


def _released(episode: WorldEpisode, rng: np.random.Generator) -> WorldEpisode:
    """The block falls in the middle of the way, and the hand continues."""
    del rng
    target = episode.target
    held = [number for number, each in enumerate(episode.scenes) if each.held == target]
    first = held[len(held) // 2]
    scenes = [*episode.scenes]
    actions = episode.actions.copy()
    actions[first - 1 :, 3] = world_scene.OPEN
    fallen = episode.scenes[first].blocks.copy()
    fallen[target, 2] = world_scene.BLOCK_HALF
    for number in range(first, len(scenes)):
        gripper = np.array([*scenes[number].gripper[:3], world_scene.OPEN])
        scenes[number] = replace(scenes[number], gripper=gripper, blocks=fallen, held=None)
    return _with(episode, scenes, actions, success=False)


def _shaken(episode: WorldEpisode, rng: np.random.Generator) -> WorldEpisode:
    signs = np.where(np.arange(len(episode) + 1) % 2, 1.0, -1.0)[:, None]
    offsets = signs * _TREMOR_M * rng.uniform(0.5, 1.5, (len(episode) + 1, 3))
    offsets[0] = 0.0
    scenes: list[world_scene.Scene] = []
    for each, offset in zip(episode.scenes, offsets, strict=False):
        gripper = each.gripper.copy()
        blocks = each.blocks.copy()
        gripper[:3] += offset
        if each.held is not None:
            blocks[each.held, :2] += offset[:2]
        scenes.append(replace(each, gripper=gripper, blocks=blocks))
    actions = episode.actions.copy()
    actions[:, :3] += offsets[1:]
    return _with(episode, scenes, actions, success=episode.success)


def _late(episode: WorldEpisode, rng: np.random.Generator) -> WorldEpisode:
    late = int(rng.integers(1, MOST_LATE + 1))
    before = np.tile(episode.states[0], (late, 1))
    actions = np.concatenate([before, episode.actions])[: len(episode)]
    actions[:late, 3] = episode.actions[0, 3]
    return replace(episode, actions=actions, late=late)


def _paused(episode: WorldEpisode, rng: np.random.Generator) -> WorldEpisode:
    at, count = pause_in(len(episode), rng)
    rows = [*range(at), *[at] * count, *range(at, len(episode))]
    actions = episode.actions[rows]
    actions[at : at + count] = episode.scenes[at].gripper
    actions[at : at + count, 3] = episode.actions[max(at - 1, 0), 3]
    return _with(episode, [episode.scenes[row] for row in rows], actions, success=episode.success)


def pause_in(frames: int, rng: np.random.Generator) -> tuple[int, int]:
    """Frame and length of a pause."""
    return int(frames * rng.uniform(0.2, 0.7)), max(2, round(_SHARE_OF_PAUSE * frames))


def _cut(episode: WorldEpisode, rng: np.random.Generator) -> WorldEpisode:
    del rng
    end = max(2, round((1 - SHARE_OF_END) * len(episode)))
    return _with(episode, episode.scenes[:end], episode.actions[:end], success=False)


def start_of_still(frames: int, rng: np.random.Generator) -> int:
    """Frame from which a camera repeats its image."""
    return int(frames * rng.uniform(0.1, 0.5))


def _with(
    episode: WorldEpisode,
    scenes: Sequence[world_scene.Scene],
    actions: world_scene.FloatArray,
    *,
    success: bool,
) -> WorldEpisode:
    desired = np.array([scenes[0].gripper, *actions[:-1]])
    return replace(episode, scenes=tuple(scenes), actions=actions, desired=desired, success=success)


_WORLD_CHANGES: Mapping[str, Callable[[WorldEpisode, np.random.Generator], WorldEpisode]] = {
    "early-release": _released,
    "tremor": _shaken,
    "late-actions": _late,
}
