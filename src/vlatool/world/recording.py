"""Shared types of the recorders of raw layouts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from vlatool.episode import UInt8Array
from vlatool.jobs.files import FileEntry, digests_below, file_entry, folder_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.storage.atomic import remove_file
from vlatool.world import scene as world_scene
from vlatool.world.render import Measurement, View

_HOVER = 0.16
_GRASP = 0.03
_RELEASE = 0.08
_AIMED = 0.025
_CLEAR = 0.06

_NOISE_MEMORY = 0.7
_NOISE_SCALE = 0.008
_KICK_CHANCE = 0.025
_KICK_STEPS = 3
_KICK_SCALE = np.array([0.03, 0.03, 0.015])


@dataclass(frozen=True)
class WorldEpisode:
    """Recorded episode of L frames."""

    index: int  # number of the episode, which determines the target
    target: int  # index of the block that the instruction names
    scenes: tuple[world_scene.Scene, ...]  # scene at each frame
    # Target x, y, z, opening at each frame, limited to one step, float64 [L, 4].
    actions: world_scene.FloatArray
    desired: (
        world_scene.FloatArray
    )  # target pose for each frame [L, 4]: `desired[t + 1]` is `actions[t]`
    success: bool  # True if the named block is in the bin at the last frame

    @property
    def instruction(self) -> str:
        return world_scene.instruction_for(world_scene.COLORS[self.target])

    @property
    def states(self) -> world_scene.FloatArray:
        """x, y, z, opening of the hand at each frame, float64 [L, 4]."""
        return np.array([scene.gripper for scene in self.scenes])

    def __len__(self) -> int:
        return len(self.scenes)

    def images(self, view: View) -> Iterator[UInt8Array]:
        """One image uint8 [H, W, 3] per frame."""
        return (view.draw(scene) for scene in self.scenes)

    def measurements(self, view: View) -> Iterator[Measurement]:
        """Depth and labels per frame."""
        return (view.measure(scene) for scene in self.scenes)


def expert_episode(
    seed: int, index: int, frames: int | None = None, shared_scenes: int | None = None
) -> WorldEpisode:
    """Episode number `index` of `seed`, independent of other episodes.

    `frames`: number of frames: the episode is cut, or its last frame is repeated. None: up to the
    first frame with the block in the bin; `shared_scenes`: number of shared start scenes, which
    take turns after each round of targets. None: a random one.
    """
    rng = np.random.default_rng([seed, index])
    target = index % len(world_scene.COLORS)
    if shared_scenes:
        start = world_scene.shared_scene(rng, index // len(world_scene.COLORS) % shared_scenes)
    else:
        start = world_scene.random_scene(rng)
    disturbance = Disturbance(rng)
    scenes = [start]
    actions = [expert_action(start, target)]
    limit = world_scene.MAX_STEPS if frames is None else min(frames - 1, world_scene.MAX_STEPS)
    while len(scenes) <= limit and not scenes[-1].is_in_bin(target):
        scenes.append(world_scene.step(scenes[-1], actions[-1], disturbance.sample()))
        actions.append(expert_action(scenes[-1], target))
    if frames is not None:
        missing = frames - len(scenes)
        scenes.extend([scenes[-1]] * missing)
        actions.extend([scenes[-1].gripper] * missing)
    desired = np.array([start.gripper, *actions[:-1]])
    success = scenes[-1].is_in_bin(target)
    return WorldEpisode(index, target, tuple(scenes), np.array(actions), desired, success)


def expert_action(scene: world_scene.Scene, target: int) -> world_scene.FloatArray:
    """Next action of the expert [4], limited to one step; depends on the scene only."""
    return world_scene.next_pose(scene.gripper, _waypoint(scene, target))


def _waypoint(scene: world_scene.Scene, target: int) -> world_scene.FloatArray:
    """Next target: rise, move above the block, descend, close, lift, carry, lower, open."""
    if scene.held == target:
        return _carry(scene)
    hand = scene.gripper[:3]
    if scene.held is not None or scene.is_in_bin(target):
        return np.array([*hand[:2], _HOVER, world_scene.OPEN])
    return _fetch(scene, scene.blocks[target])


def _fetch(scene: world_scene.Scene, block: world_scene.FloatArray) -> world_scene.FloatArray:
    hand = scene.gripper[:3]
    distance = float(np.linalg.norm(block[:2] - hand[:2]))
    if distance > _CLEAR and hand[2] < 2 * world_scene.BLOCK_HALF:
        return np.array([*hand[:2], _HOVER, world_scene.OPEN])
    if distance > _AIMED:
        return np.array(
            [*block[:2], max(_HOVER if distance > _CLEAR else hand[2], _GRASP), world_scene.OPEN]
        )
    is_low = hand[2] < _GRASP + 0.01
    can_close = is_low and scene.gripper[3] > world_scene.OPEN / 2
    return np.array([*block[:2], _GRASP, world_scene.CLOSED if can_close else world_scene.OPEN])


def _carry(scene: world_scene.Scene) -> world_scene.FloatArray:
    hand = scene.gripper[:3]
    distance = float(np.linalg.norm(scene.bin - hand[:2]))
    if distance > _CLEAR and hand[2] < 2 * world_scene.BLOCK_HALF:
        return np.array([*hand[:2], _HOVER, world_scene.CLOSED])
    if distance > _AIMED:
        return np.array([*scene.bin, _HOVER, world_scene.CLOSED])
    return np.array(
        [
            *scene.bin,
            _RELEASE - 0.02,
            world_scene.OPEN if hand[2] < _RELEASE else world_scene.CLOSED,
        ]
    )


class Disturbance:
    """Random pushes on the hand: a drift, and kicks; recorded actions do not have them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._drift = np.zeros(3)
        self._kick = np.zeros(3)
        self._kick_steps = 0

    def sample(self) -> world_scene.FloatArray:
        """Displacement of the hand in the next step [3]."""
        self._drift = _NOISE_MEMORY * self._drift + self._rng.normal(0.0, _NOISE_SCALE, 3)
        if self._kick_steps == 0 and self._rng.random() < _KICK_CHANCE:
            self._kick_steps = _KICK_STEPS
            self._kick = self._rng.normal(0.0, _KICK_SCALE)
        if self._kick_steps == 0:
            return self._drift
        self._kick_steps -= 1
        return self._drift + self._kick


@dataclass(frozen=True)
class RecordingSetup:
    output: Path  # folder of the recordings
    views: tuple[View, ...]  # cameras with their image sizes, in order
    depth: bool = False  # True to record depth and label maps
    episodes: int = 0  # number of episodes


@dataclass(frozen=True)
class RecordedEpisode:
    """Result of a worker for one episode."""

    index: int
    frames: int
    instruction: str
    success: bool  # True if the expert succeeded
    # Statistics for the meta files of the layout.
    stats: dict[str, Any] = field(default_factory=dict[str, Any])
    files: Sequence[str] = ()  # files or the folder of the episode, relative to the output


class RecordableEpisode(Protocol):
    """Episode of any world."""

    @property
    def index(self) -> int:
        """Number of the episode."""
        ...

    @property
    def instruction(self) -> str: ...

    @property
    def success(self) -> bool:
        """True if the expert succeeded."""
        ...

    def __len__(self) -> int: ...


class LayoutWriter(Protocol):
    """Writer of one raw layout; picklable, so that several processes can write episodes."""

    owned: ClassVar[Sequence[str]]  # patterns of all files it writes
    closing: ClassVar[Sequence[str]]  # files for the whole data set, written last

    @property
    def setup(self) -> RecordingSetup: ...

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        """Writes the files of one episode; `first_row` is the number of frames before it."""
        ...

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Writes the files for the whole data set, last."""
        ...


class Recorder(Protocol):
    owned: Sequence[str]  # patterns of all files it writes
    temporary: Sequence[str]  # those of them that are removed once the data set is complete
    # Writes an episode, given the number of frames before it; picklable. `recorded_of` gives the
    # episode of the receipt.
    write: Callable[[Any, int], Receipt]

    def begin(self) -> None:
        """Removes the files that describe the whole data set."""
        ...

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes the files that describe the whole data set; returns the entries of all files."""
        ...


@dataclass(frozen=True)
class _EpisodeFiles:
    """Writes an episode of a layout; picklable."""

    writer: LayoutWriter

    def __call__(self, episode: WorldEpisode, first_row: int) -> Receipt:
        recorded = self.writer.write(episode, first_row)
        files = tuple(map(self._entry, recorded.files))
        facts = asdict(recorded)
        return Receipt("", counts={"frames": recorded.frames}, files=files, facts=facts)

    def _entry(self, name: str) -> FileEntry:
        output = self.writer.setup.output
        if (output / name).is_dir():
            return folder_entry(name, digests_below(output / name))
        return file_entry(output, name)


class LayoutRecorder:
    """Recorder of a layout in which each episode has its own files."""

    def __init__(self, writer: LayoutWriter) -> None:
        self._writer = writer
        self.owned: Sequence[str] = writer.owned
        self.temporary: Sequence[str] = ()
        self.write: Callable[[Any, int], Receipt] = _EpisodeFiles(writer)

    def begin(self) -> None:
        for name in self._writer.closing:
            remove_file(self._writer.setup.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        files: list[FileEntry] = []
        recorded: list[RecordedEpisode] = []
        for receipt in receipts:
            files += receipt.files
            recorded.append(recorded_of(receipt))
        self._writer.finish(recorded)
        output = self._writer.setup.output
        closing = (name for name in self._writer.closing if (output / name).is_file())
        return [*files, *(file_entry(output, name) for name in closing)]


def recorded_of(receipt: Receipt) -> RecordedEpisode:
    """The recorded episode of a receipt; other facts of it are left out."""
    return RecordedEpisode(**{field.name: receipt.facts[field.name] for field in _FIELDS})


def with_recorded(receipt: Receipt, recorded: RecordedEpisode) -> Receipt:
    """Turns the receipt of a sink into the receipt of a recorder."""
    facts = {key: value for key, value in asdict(recorded).items() if key not in receipt.facts}
    return replace(receipt, item="", facts={**receipt.facts, **facts})


_FIELDS = fields(RecordedEpisode)


def recorded_episode(
    episode: RecordableEpisode, files: Sequence[str], stats: dict[str, Any] | None = None
) -> RecordedEpisode:
    summary = (episode.index, len(episode), episode.instruction, episode.success)
    return RecordedEpisode(*summary, stats or {}, files)
