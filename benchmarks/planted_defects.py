"""Recordings of simulated worlds in which a share of the episodes has a defect.

`defects.json` in the output has the truth, and no reader reads it. Recordings with a defect have
about the lengths of those without, so that length says nothing. Actions, states and images agree as
those of a robot would.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np

from vlatool.episode import Episode, UInt8Array
from vlatool.jobs.command import JobConfig, make_executor
from vlatool.jobs.executor import default_workers
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun, plan_digest
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_command
from vlatool.storage.atomic import write_json
from vlatool.workflows.sample import ExpertWriter, SampleConfig, SampleJob, SampleResult
from vlatool.world import scene as world_scene
from vlatool.world.metaworld import episodes as metaworld
from vlatool.world.metaworld.simulator import Simulator
from vlatool.world.recording import WorldEpisode, expert_episode
from vlatool.world.render import CAMERAS, SQUARE_SIZES, Measurement, View, cameras_for

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
_DETAIL = 12
_SHARE_OF_PAUSE = 0.2
_SHARE_OF_END = 0.25
_MOST_LATE = 3
_TREMOR_M = 0.012  # built-in world
_TREMOR = 0.6  # Meta-World, of the largest action
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


@dataclass(frozen=True)
class FaultyCameras(WorldEpisode):
    """Episode some of whose cameras show something else than they should."""

    # Camera to the one that it shows, and to the frame that it repeats; others show their own.
    shown_as: Mapping[str, str] = field(default_factory=dict[str, str])
    frozen_from: Mapping[str, int] = field(default_factory=dict[str, int])

    def images(self, view: View) -> Iterator[UInt8Array]:
        shown, scenes = self.drawn(view)
        return (shown.draw(scene) for scene in scenes)

    def measurements(self, view: View) -> Iterator[Measurement]:
        shown, scenes = self.drawn(view)
        return (shown.measure(scene) for scene in scenes)

    def drawn(self, view: View) -> tuple[View, Sequence[world_scene.Scene]]:
        """View and scene of each frame that the images of a view show."""
        name = view.camera.name
        shown = View(CAMERAS[self.shown_as[name]], view.size) if name in self.shown_as else view
        last = self.frozen_from.get(name, len(self))
        return shown, [self.scenes[min(number, last)] for number in range(len(self))]


def as_episode(episode: WorldEpisode, views: Sequence[View]) -> Episode:
    """An episode of the built-in world for the LeRobot sink."""
    from vlatool.world import record_lerobot

    converted = record_lerobot.as_episode(episode, views)
    if not isinstance(episode, FaultyCameras):
        return converted
    cameras = {v.camera.name: record_lerobot.DrawnFrames(*episode.drawn(v)) for v in views}
    return replace(converted, cameras=cameras)


def world_episode(
    seed: int,
    index: int,
    shares: Mapping[str, float],
    cameras: Sequence[str],
    *,
    has_relative_actions: bool,
) -> WorldEpisode:
    """Episode of the built-in world, with the defect that its number has, if any."""
    make = partial(expert_episode, seed)
    clean = make(index)
    defect = defect_of(shares, seed, index)
    if not defect:
        return clean
    rng = np.random.default_rng([seed, index, _DETAIL])
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
        return _faulty(clean, shown_as=dict(zip(cameras, others, strict=True)))
    if defect == "frozen-camera":
        return _faulty(clean, frozen_from={cameras[-1]: _start_of_still(len(clean), rng)})
    if defect == "late-actions":
        return _late(clean, rng, has_relative_actions=has_relative_actions)
    return _WORLD_CHANGES[defect](clean, rng)


def _faulty(episode: WorldEpisode, **cameras: Any) -> FaultyCameras:
    values = {each.name: getattr(episode, each.name) for each in fields(episode)}
    return FaultyCameras(**values, **cameras)


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


def _late(
    episode: WorldEpisode, rng: np.random.Generator, *, has_relative_actions: bool
) -> WorldEpisode:
    late = int(rng.integers(1, _MOST_LATE + 1))
    before = np.tile(episode.states[0], (late, 1))
    actions = np.concatenate([before, episode.actions])[: len(episode)]
    actions[:late, 3] = episode.actions[0, 3]
    if has_relative_actions:  # the layout stores the way from the state to the target
        executed_at = episode.states[np.maximum(np.arange(len(episode)) - late, 0)]
        actions[:, :3] += episode.states[:, :3] - executed_at[:, :3]
    return replace(episode, actions=actions)


def _paused(episode: WorldEpisode, rng: np.random.Generator) -> WorldEpisode:
    at, count = _pause_in(len(episode), rng)
    rows = [*range(at), *[at] * count, *range(at, len(episode))]
    actions = episode.actions[rows]
    actions[at : at + count] = episode.scenes[at].gripper
    actions[at : at + count, 3] = episode.actions[max(at - 1, 0), 3]
    return _with(episode, [episode.scenes[row] for row in rows], actions, success=episode.success)


def _pause_in(frames: int, rng: np.random.Generator) -> tuple[int, int]:
    """Frame and length of a pause."""
    return int(frames * rng.uniform(0.2, 0.7)), max(2, round(_SHARE_OF_PAUSE * frames))


def _cut(episode: WorldEpisode, rng: np.random.Generator) -> WorldEpisode:
    del rng
    end = max(2, round((1 - _SHARE_OF_END) * len(episode)))
    return _with(episode, episode.scenes[:end], episode.actions[:end], success=False)


def _start_of_still(frames: int, rng: np.random.Generator) -> int:
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
}


class AlteredSimulator(Simulator):
    """Meta-World whose expert has tremor, or opens the hand from a step on."""

    def __init__(
        self, task: str, size: tuple[int, int], release: int | None, rng: np.random.Generator
    ) -> None:
        super().__init__(task, size)
        self._release = release
        self._rng = rng
        self._step = 0

    def expert_action(self) -> world_scene.FloatArray:
        action = super().expert_action()
        step = self._step
        self._step += 1
        if self._release is not None:
            return np.array([*action[:3], -1.0]) if step >= self._release else action
        shake = _TREMOR * (1 if step % 2 else -1) * self._rng.uniform(0.5, 1.5, 3)
        return np.array([*(action[:3] + shake), action[3]])


def simulated_episode(
    tasks: Sequence[str],
    size: tuple[int, int],
    seed: int,
    index: int,
    shares: Mapping[str, float],
) -> metaworld.SimulatedEpisode:
    """Episode of Meta-World, with the defect that its number has, if any."""
    clean = metaworld.simulated_episode(tasks, size, seed, index)
    defect = defect_of(shares, seed, index)
    rng = np.random.default_rng([seed, index, _DETAIL])
    if defect not in ("tremor", "early-release"):
        return _changed(clean, defect, tasks, rng)
    release = None
    if defect == "early-release":
        closed = np.flatnonzero(clean.actions[:, 3] > 0)
        release = int(closed[len(closed) // 2]) if len(closed) else len(clean)
    simulator = AlteredSimulator(clean.task, size, release, rng)
    try:
        start = metaworld.start_rng(seed, index)
        altered = metaworld.SimulatedEpisode(
            index, clean.task, *metaworld.attempt(simulator, start, is_drawn=True)
        )
    finally:
        simulator.close()
    return _rows(altered, range(min(len(clean), len(altered))))


def _changed(
    episode: metaworld.SimulatedEpisode,
    defect: str,
    tasks: Sequence[str],
    rng: np.random.Generator,
) -> metaworld.SimulatedEpisode:
    """The episode with a defect that needs no other motion."""
    frames = len(episode)
    if defect == "wrong-instruction":
        others = [task for task in tasks if task != episode.task]
        return replace(episode, task=others[int(rng.integers(len(others)))])
    if defect == "late-actions":
        late = int(rng.integers(1, _MOST_LATE + 1))
        actions = np.concatenate([np.zeros((late, 4)), episode.actions])[:frames]
        return replace(episode, actions=actions)
    if defect == "pause":
        at, count = _pause_in(frames, rng)
        rows = [*range(at), *[at] * count, *range(at, frames)][:frames]
        actions = episode.actions[rows]
        actions[at : at + count, :3] = 0.0
        return replace(_rows(episode, rows), actions=actions)
    if defect == "truncated":
        return _rows(episode, range(round((1 - _SHARE_OF_END) * frames)))
    return replace(episode, images=_faulty_images(episode.images, defect, frames, rng))


def _faulty_images(
    images: Mapping[str, list[UInt8Array]], defect: str, frames: int, rng: np.random.Generator
) -> dict[str, list[UInt8Array]]:
    if defect == "swapped-cameras":
        return dict(zip(images, [*images.values()][::-1], strict=True))
    if defect == "frozen-camera":
        last = [*images][-1]
        first = _start_of_still(frames, rng)
        return {**images, last: [images[last][min(number, first)] for number in range(frames)]}
    return dict(images)


def _rows(episode: metaworld.SimulatedEpisode, rows: Sequence[int]) -> metaworld.SimulatedEpisode:
    return replace(
        episode,
        images={name: [images[row] for row in rows] for name, images in episode.images.items()},
        states=episode.states[list(rows)],
        actions=episode.actions[list(rows)],
    )


class DefectsJob(SampleJob):
    """The job of `vlatool sample` with defects in a share of its episodes."""

    def __init__(self, config: SampleConfig, shares: Mapping[str, float]) -> None:
        super().__init__(config)
        self._shares = shares
        if config.world == "metaworld":
            size = SQUARE_SIZES[config.size]
            self._expert = partial(simulated_episode, config.task, size, config.seed, shares=shares)
        else:
            self._expert = partial(
                world_episode,
                config.seed,
                shares=shares,
                cameras=[camera.name for camera in cameras_for(config.cameras)],
                has_relative_actions=config.layout == "libero",
            )
        write: Any = self._recorder.write
        if config.layout == "lerobot" and config.world == "builtin":
            write = replace(write, convert=partial(as_episode, **write.convert.keywords))
        options = {**self.spec.record.options, "defects": dict(shares)}
        self.spec = replace(
            self.spec,
            record=OutputRecord("sample", options),
            plan=plan_digest(options),
            work=ExpertWriter(write, self._expert),
            owned=(*self.spec.owned, TRUTH_FILE),
        )

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        files = super().finish(receipts, run)
        seed = self._config.seed
        planted = {
            episode.index: defect_of(self._shares, seed, episode.index)
            for episode in self._recorded
        }
        write_json(self.spec.output / TRUTH_FILE, {"shares": self._shares, "episodes": planted})
        return [*files, file_entry(self.spec.output, TRUTH_FILE)]


def record(config: SampleConfig, defects: Sequence[str]) -> SampleResult:
    """Records episodes with defects, each given as NAME:SHARE."""
    job = DefectsJob(config, shares_of(defects))
    workers = min(config.workers or default_workers(), config.episodes)
    return run_command(job, SampleResult, JobConfig(on_error="stop"), make_executor(workers))
