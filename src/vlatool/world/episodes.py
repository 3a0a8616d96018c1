"""Episodes of the expert: everything that a recording layout needs, pictures drawn when asked."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlatool.episode import UInt8Array
from vlatool.world.expert import Disturbance, expert_action
from vlatool.world.render import Measurement, View
from vlatool.world.scene import (
    COLOURS,
    MAX_STEPS,
    FloatArray,
    Scene,
    instruction_for,
    random_scene,
    step,
)


@dataclass(frozen=True)
class WorldEpisode:
    """One recording of L frames.

    Attributes:
        index: Its number; the colour of the block follows from it.
        target: Which block the instruction names.
        scenes: The world at each frame.
        actions: Commanded x, y, z, opening at each frame, limited to one step, float64 [L, 4].
        desired: What was commanded for each frame [L, 4]: `desired[t + 1]` is `actions[t]`.
        success: Whether the named block lies in the bin at the last frame.
    """

    index: int
    target: int
    scenes: tuple[Scene, ...]
    actions: FloatArray
    desired: FloatArray
    success: bool

    @property
    def instruction(self) -> str:
        """What the robot is told."""
        return instruction_for(COLOURS[self.target])

    @property
    def states(self) -> FloatArray:
        """x, y, z, opening of the hand at each frame, float64 [L, 4]."""
        return np.array([scene.gripper for scene in self.scenes])

    def __len__(self) -> int:
        return len(self.scenes)

    def pictures(self, view: View) -> Iterator[UInt8Array]:
        """One picture uint8 [H, W, 3] per frame."""
        return (view.draw(scene) for scene in self.scenes)

    def measurements(self, view: View) -> Iterator[Measurement]:
        """Depth and labels per frame."""
        return (view.measure(scene) for scene in self.scenes)


def expert_episode(seed: int, index: int, frames: int | None = None) -> WorldEpisode:
    """The episode number `index` of `seed`; the same whatever else is made.

    Args:
        seed: Seed of the data set.
        index: Number of the episode.
        frames: Exactly this many frames: cut, or the end held. Default: until the block is in
            the bin, the frame that shows it included.
    """
    rng = np.random.default_rng([seed, index])
    target = index % len(COLOURS)
    start = random_scene(rng)
    disturbance = Disturbance(rng)
    scenes, actions = [start], [expert_action(start, target)]
    limit = MAX_STEPS if frames is None else min(frames - 1, MAX_STEPS)
    while len(scenes) <= limit and not scenes[-1].is_in_bin(target):
        scenes.append(step(scenes[-1], actions[-1], disturbance.sample()))
        actions.append(expert_action(scenes[-1], target))
    if frames is not None:
        missing = frames - len(scenes)
        scenes.extend([scenes[-1]] * missing)
        actions.extend([scenes[-1].gripper] * missing)
    desired = np.array([start.gripper, *actions[:-1]])
    success = scenes[-1].is_in_bin(target)
    return WorldEpisode(index, target, tuple(scenes), np.array(actions), desired, success)
