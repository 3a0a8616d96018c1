"""Turns frames of raw episodes into inputs of a policy, with the actions recorded after them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from vlatool.episode import Array, Episode, Observation, ObservationSpec
from vlatool.errors import DataError
from vlatool.evaluation.control import (
    EpisodeControl,
    ImageSizes,
    RobotState,
)
from vlatool.loading.base import RecordedFutures, Target
from vlatool.loading.lookup import check_frame
from vlatool.models.base import Policy
from vlatool.plugins import did_you_mean
from vlatool.recordings.field_summary import dimension_names


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
    episode: Episode,
    frame: int,
    policy: Policy,
    sizes: ImageSizes,
    instruction: str | None = None,
) -> RecordedFrame:
    """Input of a policy at a frame of a raw episode. Without `instruction`, the recorded one is
    used.
    """
    check_frame(frame, range(episode.num_frames), episode.id)
    recorded = _recorded_actions(episode, policy.actions)
    control = replay(episode, frame, policy, sizes)
    if instruction is None:
        instruction = episode.instruction_at(frame)
    observation, _ = control.observation(instruction)
    steps = _clipped(episode, frame, frame + policy.horizon)
    last: dict[str, Array] = {}
    if frame:
        last = {name: values[frame - 1] for name, values in recorded.items()}
    target = Target(
        actions={name: values[steps] for name, values in recorded.items()},
        mask=np.arange(frame, frame + policy.horizon) < episode.num_frames,
        last=last,
        episode=episode.id,
        frame=frame,
    )
    names: dict[str, Sequence[str]] = {}
    for name, width in policy.actions.items():
        names[name] = dimension_names(name, width, episode.dimension_names)
    futures = partial(_futures, episode, frame, list(policy.sees.cameras))
    return RecordedFrame(observation, target, names, futures=futures)


def replay(episode: Episode, frame: int, policy: Policy, sizes: ImageSizes) -> EpisodeControl:
    """Returns the control loop of a policy that has seen an episode up to a frame.

    It executes the recorded commands. Frames before the first or after the last repeat that frame.
    """
    lookahead = 0
    for view in policy.sees.cameras.values():
        lookahead = max(lookahead, *view.offsets)
    control = EpisodeControl(policy, 0, sizes, lookahead=lookahead)
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
    recorded: dict[str, Array] = {}
    for name, values in episode.lowdim.items():
        is_number = values.dtype.kind in "fiu"
        if is_number and name in widths and values.shape == (episode.num_frames, widths[name]):
            recorded[name] = values
    return recorded


def _clipped(episode: Episode, start: int, stop: int) -> Array:
    """Frames [stop - start], those outside the episode replaced by its first or last."""
    return np.clip(np.arange(start, stop), 0, episode.num_frames - 1)


def _images(episode: Episode, camera: str, frames: Sequence[int]) -> Array:
    """Images of a camera, uint8 [K, H, W, 3]; each frame is decoded once."""
    if camera in episode.missing_cameras:
        raise episode.missing_cameras[camera]
    if camera not in episode.cameras:
        raise _lacks(episode, "camera", camera, list(episode.cameras))
    inside = np.clip(frames, 0, episode.num_frames - 1)
    distinct, rows = np.unique(inside, return_inverse=True)
    return episode.cameras[camera].read(distinct.tolist())[rows]


def _field(episode: Episode, name: str, width: int) -> Array:
    """Values of a measured field [F, C]."""
    values = episode.lowdim.get(name)
    if values is None or values.dtype.kind not in "fiu":
        raise _lacks(episode, "field", name, list(episode.lowdim))
    if values.shape != (episode.num_frames, width):
        raise DataError(
            f"{episode.id}: {name!r} is {list(values.shape[1:])} wide, the policy expects {width}",
            hint="give episodes of the robot on which the policy was trained",
            code="data.mismatch",
            details={"field": name, "width": width},
        )
    return values.astype(np.float64)


def _lacks(episode: Episode, kind: str, name: str, known: list[str]) -> DataError:
    return DataError(
        f"{episode.id}: has no {kind} {name!r}, which the policy needs",
        hint=did_you_mean(name, known) or f"the episode has no {kind}s",
        code="data.unknown_field",
        details={kind: name, "known": known},
    )
