"""Input of a policy at one frame of an episode, and the actions that were recorded there.

Legend of shapes: K images of a camera, P = past + 1 steps, T action steps, C dimensions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from vlatool.artifacts.fields import dimension_names
from vlatool.episode import Array, Episode, Observation, ObservationSpec
from vlatool.errors import DataError
from vlatool.evaluation.control import EpisodeControl, ResizeLog, RobotState
from vlatool.loading.base import RecordedFutures, Target
from vlatool.loading.frames import check_frame
from vlatool.models.policy import Policy
from vlatool.plugins import did_you_mean

# Annotation that a policy reads unless its data say otherwise.
_ORIGINAL = "original"


@dataclass(frozen=True)
class RecordedFrame:
    """One frame of recorded data."""

    observation: Observation  # input of the policy
    target: Target  # recorded actions from the frame on; without any field if none are recorded
    names: Mapping[str, Sequence[str]]  # map from action field to the names of its dimensions
    seed: int = 0  # number of the chunk for `chunk_seed`
    # Function that returns the images of the next steps, given their number; None: they are not
    # recorded.
    futures: Callable[[int], RecordedFutures] | None = None


def frame_of_episode(
    episode: Episode, frame: int, policy: Policy, instruction: str | None = None
) -> RecordedFrame:
    """Returns the input of a policy at a frame of a raw episode; `frame`: frame, from 0;
    `instruction`: instruction for the policy; None: the one of the episode.
    """
    check_frame(frame, range(episode.num_frames), episode.id)
    names = policy.actions
    recorded = _recorded_actions(episode, names)
    control = replay(episode, frame, policy)
    observation, _ = control.observation(
        _instruction(episode) if instruction is None else instruction
    )
    steps = _clipped(episode, frame, frame + policy.horizon)
    target = Target(
        actions={name: values[steps] for name, values in recorded.items()},
        mask=np.arange(frame, frame + policy.horizon) < episode.num_frames,
        last={name: values[frame - 1] for name, values in recorded.items()} if frame else {},
        episode=episode.id,
        frame=frame,
    )
    widths = {name: dimension_names(name, n, episode.dimension_names) for name, n in names.items()}
    futures = partial(_futures, episode, frame, list(policy.sees.cameras))
    return RecordedFrame(observation, target, widths, futures=futures)


def replay(episode: Episode, frame: int, policy: Policy) -> EpisodeControl:
    """Returns the control loop of a policy that has seen an episode up to a frame.

    Its commands are the recorded ones. Frames before the first equal it, and those after the last
    equal that.
    """
    offsets = [step for view in policy.sees.cameras.values() for step in view.offsets]
    lookahead = max(0, *offsets) if offsets else 0
    log = ResizeLog(policy.sees, lambda _: None)
    control = EpisodeControl(policy, 0, log, lookahead=lookahead)
    recorded = _recorded_actions(episode, policy.actions)
    first = max(0, frame - control.history)
    steps = _clipped(episode, first, frame + lookahead + 1)
    states = _states(episode, policy.sees, steps)
    for step, state in zip(range(first, frame + lookahead + 1), states, strict=True):
        if first < step <= frame and len(recorded) == len(policy.actions):
            control.remember({name: values[step - 1] for name, values in recorded.items()})
        control.observe(state)
    return control


def _states(episode: Episode, sees: ObservationSpec, frames: Array) -> Iterator[RobotState]:
    """Yields images and fields of frames."""
    images = {name: _images(episode, name, frames.tolist()) for name in sees.cameras}
    fields = {name: _field(episode, name, width) for name, width in sees.fields.items()}
    for row, frame in enumerate(frames):
        yield RobotState(
            {name: values[row] for name, values in images.items()},
            {name: values[frame] for name, values in fields.items()},
        )


def _futures(episode: Episode, frame: int, cameras: Sequence[str], steps: int) -> RecordedFutures:
    """Images of the frames after one, and no codes."""
    after = frame + 1 + np.arange(steps)
    images = {camera: _images(episode, camera, after.tolist()) for camera in cameras}
    return RecordedFutures(images, {}, after < episode.num_frames)


def _recorded_actions(episode: Episode, widths: Mapping[str, int]) -> dict[str, Array]:
    """Fields [F, C] of the episode that have the names and widths of actions."""
    shapes = {name: (episode.num_frames, width) for name, width in widths.items()}
    return {
        name: values
        for name, values in episode.lowdim.items()
        if values.shape == shapes.get(name) and values.dtype.kind in "fiu"
    }


def _clipped(episode: Episode, start: int, stop: int) -> Array:
    """Frames [stop - start], those outside the episode replaced by its first or last."""
    return np.clip(np.arange(start, stop), 0, episode.num_frames - 1)


def _images(episode: Episode, camera: str, frames: Sequence[int]) -> Array:
    """Images of a camera, uint8 [K, H, W, 3]; each frame is decoded once."""
    if camera in episode.missing_cameras:
        raise episode.missing_cameras[camera]
    if camera not in episode.cameras:
        raise _lacks(episode, "camera", camera, list(episode.cameras))
    inside = [min(max(frame, 0), episode.num_frames - 1) for frame in frames]
    distinct = sorted(set(inside))
    images = episode.cameras[camera].read(distinct)
    return images[[distinct.index(frame) for frame in inside]]


def _field(episode: Episode, name: str, width: int) -> Array:
    """Values of a measured field [F, C]."""
    values = episode.lowdim.get(name)
    if values is None or values.dtype.kind not in "fiu":
        raise _lacks(episode, "field", name, list(episode.lowdim))
    if values.shape != (episode.num_frames, width):
        raise DataError(
            f"{episode.id}: {name!r} is {list(values.shape[1:])} wide, the policy expects {width}",
            hint="give episodes of the robot that the policy was trained on",
            code="data.field_shape",
            details={"field": name, "width": width},
        )
    return values.astype(np.float64)


def _lacks(episode: Episode, kind: str, name: str, known: list[str]) -> DataError:
    return DataError(
        f"{episode.id}: has no {kind} {name!r}, which the policy sees",
        hint=did_you_mean(name, known) or f"the episode has no {kind}s",
        code=f"data.unknown_{kind}",
        details={kind: name, "known": known},
    )


def _instruction(episode: Episode) -> str:
    """The original annotation, or the first one of any kind; empty if there is none."""
    sentences = episode.language.get(_ORIGINAL) or next(iter(episode.language.values()), ())
    return next(iter(sentences), "")
