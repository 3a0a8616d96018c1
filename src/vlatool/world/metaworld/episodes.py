"""Episodes of the scripted experts of Meta-World, with the fields of LeRobot data sets.

Legend of shapes: L frames. Source: reference/environments 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlatool.episode import Episode, FieldSpec, FrameSource, Survey, UInt8Array
from vlatool.world.metaworld.simulator import (
    FPS,
    INSTRUCTIONS,
    MAX_STEPS,
    PROPRIO_WIDTH,
    VIEWS,
    FloatArray,
    Simulator,
)
from vlatool.world.record_lerobot import ACTION, STATE

ROBOT_TYPE = "sawyer"
_NAMES = ("x", "y", "z", "gripper")
# Third number of a seed: no start of a recording is one of a rollout, which has one number.
_RECORDING = 1
_TRIES = 10
_AFTER_SUCCESS = 50
_NOISE_MEMORY = 0.9
_NOISE_SCALE = 0.15


@dataclass(frozen=True)
class StoredFrames(FrameSource):
    """Images in memory as a `FrameSource`."""

    images: Sequence[UInt8Array]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        height, width, _ = self.images[0].shape
        return height, width

    def read(self, indices: Sequence[int]) -> UInt8Array:
        return np.stack([self.images[index] for index in indices])


@dataclass(frozen=True)
class SimulatedEpisode:
    """Recorded episode of L frames."""

    index: int
    task: str  # task of Meta-World
    images: dict[str, list[UInt8Array]]  # map from view to L images uint8 [H, W, 3]
    states: FloatArray  # `proprio` at each frame, float64 [L, 4]
    actions: FloatArray  # actions of the expert, float64 [L, 4]
    success: bool  # True if a frame counts as success

    @property
    def instruction(self) -> str:
        return INSTRUCTIONS[self.task]

    def __len__(self) -> int:
        return len(self.states)


def start_rng(seed: int, index: int) -> np.random.Generator:
    """Random numbers of episode number `index` of `seed`."""
    return np.random.default_rng([seed, index, _RECORDING])


def simulated_episode(
    tasks: Sequence[str], size: tuple[int, int], seed: int, index: int
) -> SimulatedEpisode:
    """Episode number `index` of `seed`, independent of other episodes; tasks take turns.

    The recorded actions come from the expert. A disturbance changes what is executed, so episodes
    show how to recover. If the expert fails, the next start is tried, 10 at most. Images take most
    of the time, so an attempt is drawn only once it is known to be kept.
    """
    rng = start_rng(seed, index)
    task = tasks[index % len(tasks)]
    simulator = Simulator(task, size)
    try:
        start = rng.bit_generator.state
        for _ in range(_TRIES):
            start = rng.bit_generator.state
            *_, is_success = attempt(simulator, rng, is_drawn=False)
            if is_success:
                break
        rng.bit_generator.state = start
        return SimulatedEpisode(index, task, *attempt(simulator, rng, is_drawn=True))
    finally:
        simulator.close()


def attempt(
    simulator: Simulator, rng: np.random.Generator, *, is_drawn: bool
) -> tuple[dict[str, list[UInt8Array]], FloatArray, FloatArray, bool]:
    """Images, states, actions and success of the expert, until some frames after its first success;
    `is_drawn`: make images.
    """
    state = simulator.start(rng)
    images: dict[str, list[UInt8Array]] = {name: [] for name in VIEWS}
    states: list[FloatArray] = []
    actions: list[FloatArray] = []
    disturbance = np.zeros(3)
    left = MAX_STEPS
    is_success = False
    while left:
        for name, image in simulator.images().items() if is_drawn else ():
            images[name].append(image)
        action = simulator.expert_action()
        states.append(state)
        actions.append(action)
        disturbance = _NOISE_MEMORY * disturbance + rng.normal(0.0, _NOISE_SCALE, 3)
        executed = np.clip([*(action[:3] + disturbance), action[3]], -1.0, 1.0)
        step = simulator.step(executed)
        state = step.proprio
        left = left - 1
        if step.success and not is_success:
            is_success = True
            left = min(left, _AFTER_SUCCESS)
    return images, np.array(states), np.array(actions), is_success


def simulator_survey(size: tuple[int, int], episodes: int) -> Survey:
    """Survey of episodes with the columns of a LeRobot data set."""
    spec = FieldSpec(PROPRIO_WIDTH, _NAMES)
    return Survey(
        episodes=episodes,
        cameras=dict.fromkeys(VIEWS, size),
        fields={STATE: spec, ACTION: spec},
        fps=FPS,
        action_fields=(ACTION,),
        proprioception_fields=(STATE,),
    )


def as_episode(episode: SimulatedEpisode) -> Episode:
    """An episode with the fields of `simulator_survey`."""
    return Episode(
        id=f"episode_{episode.index:06d}",
        task=episode.task,
        fps=FPS,
        num_frames=len(episode),
        cameras={name: StoredFrames(images) for name, images in episode.images.items()},
        lowdim={STATE: episode.states, ACTION: episode.actions},
        language={"original": [episode.instruction]},
        action_fields=(ACTION,),
        proprioception_fields=(STATE,),
    )
