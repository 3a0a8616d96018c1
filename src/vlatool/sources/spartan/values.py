"""Checks of the numbers and words of raw Spartan episodes.

Legend of shapes: F frames, C channels. Source: lbm-data 2.2, 2.3, 3.7.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.sources.npz import NpzArchive
from vlatool.sources.spartan.recording import Recording

_OBSERVATIONS = "observations.npz"
_ACTIONS = "actions.npz"
_INSTRUCTION = "language_instruction"
_NOTHING = 1e-6
_PARALLEL = 1e-3
_ROUNDING = 1e-3  # rotations that went through float32 or text


def check_values(recording: Recording, config: Any) -> Iterator[Finding]:
    """Everything odd about fields, actions, language and success.

    Args:
        recording: The episode.
        config: The `SpartanConfig` that says what the action vector holds.
    """
    fields, actions = dict[str, Array](), dict[str, Array]()
    yield from _read_fields(recording, fields)
    yield from _read_actions(recording, config, actions)
    for file, values in ((_OBSERVATIONS, fields), (_ACTIONS, actions)):
        for name, array in values.items():
            yield from _check_field(recording, file, name, array)
    yield from _check_motion(recording, fields)
    yield from _check_alignment(recording, fields, actions)
    yield from _check_instruction(recording, fields)
    yield from _check_success(recording)


def _read_fields(recording: Recording, fields: dict[str, Array]) -> Iterator[Finding]:
    """Numbers [F, C] and text [F] of the observations; pictures stay on disk."""
    for name, header in recording.arrays(_OBSERVATIONS):
        if not 1 <= len(header.shape) <= 2 or header.dtype.hasobject:
            continue
        values = recording.read(_OBSERVATIONS, name)
        if values is None:
            yield recording.finding(
                "unreadable_array", f"{name!r} cannot be read", _OBSERVATIONS, field=name
            )
        else:
            fields[name] = (
                values if values.ndim == 2 or values.dtype.kind in "US" else values[:, None]
            )


def _read_actions(
    recording: Recording, config: Any, actions: dict[str, Array]
) -> Iterator[Finding]:
    """The named parts [F, C] of the action vector."""
    ends: list[int] = config.action_index_fields
    vector = recording.read(_ACTIONS, "actions")
    if vector is None:
        if (recording.folder / _ACTIONS).is_file():
            yield recording.finding(
                "missing_actions", "no readable array 'actions'", _ACTIONS, field="actions"
            )
        return
    width = vector.shape[1] if vector.ndim == 2 else 0
    if width != ends[-1]:
        code = "wide_actions" if width > ends[-1] else "narrow_actions"
        message = f"'actions' is {list(vector.shape)}, expected [frames, {ends[-1]}]"
        yield recording.finding(code, message, _ACTIONS, field="actions")
    if width >= ends[-1]:
        for name, start, end in zip(config.action_key_fields, [0, *ends], ends, strict=False):
            actions[name] = vector[:, start:end]


def _check_field(recording: Recording, file: str, name: str, values: Array) -> Iterator[Finding]:
    if values.dtype.kind not in "fiu":
        return
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        frame = int(bad.argmax())
        message = f"{name!r} is not finite in {int(bad.sum())} frames, the first is {frame}"
        yield recording.finding(
            "not_finite", message, file, field=name, frame=frame, count=int(bad.sum())
        )
    elif name.endswith("rot_6d") and values.shape[1] == 6:
        yield from _check_rotation(recording, file, name, values.astype(np.float64))
    elif "timestamp" in name:
        steps = np.diff(values, axis=0).min(axis=1, initial=1)
        if (steps <= 0).any():
            frame = int((steps <= 0).argmax()) + 1
            message = f"{name!r} does not ascend at frame {frame}"
            yield recording.finding(
                "timestamps_not_ascending", message, file, field=name, frame=frame
            )


def _check_rotation(recording: Recording, file: str, name: str, values: Array) -> Iterator[Finding]:
    """Looks at the two rows of a rotation in values [F, 6]."""
    first, second = values[:, :3], values[:, 3:]
    lengths = np.linalg.norm(values.reshape(-1, 2, 3), axis=2)
    area = np.linalg.norm(np.cross(first, second), axis=1)
    degenerate = (lengths < _NOTHING).any(axis=1) | (area <= _PARALLEL * lengths.prod(axis=1))
    skewed = np.abs((first * second).sum(axis=1)) > _ROUNDING
    odd = ~degenerate & (skewed | (np.abs(lengths - 1) > _ROUNDING).any(axis=1))
    for code, frames, problem in (
        ("degenerate_rot_6d", degenerate, "stands for no rotation"),
        ("rot_6d_not_unit", odd, "has rows that are not unit and orthogonal"),
    ):
        if frames.any():
            frame, count = int(frames.argmax()), int(frames.sum())
            message = f"{name!r} {problem} in {count} frames, the first is {frame}"
            yield recording.finding(code, message, file, field=name, frame=frame, count=count)


def _check_motion(recording: Recording, fields: Mapping[str, Array]) -> Iterator[Finding]:
    poses = [values for name, values in fields.items() if "__actual__poses__" in name]
    if poses and min(map(len, poses)) > 1 and not any(np.ptp(one, axis=0).any() for one in poses):
        yield recording.finding("no_motion", "no measured pose ever changes", _OBSERVATIONS)


def _check_alignment(
    recording: Recording, fields: Mapping[str, Array], actions: Mapping[str, Array]
) -> Iterator[Finding]:
    """Compares action[t] with desired[t + 1]."""
    apart: list[Array] = []
    for name, values in actions.items():
        desired = fields.get(name.replace("__action__", "__desired__"))
        if desired is not None and desired.shape == values.shape:
            same = np.isclose(values[:-1], desired[1:], rtol=1e-5, atol=1e-6)
            apart.append(np.asarray(np.all(same, axis=1) == 0))
    frames = np.any(apart, axis=0) if apart else np.zeros(0, bool)
    if frames.any():
        first, share = int(frames.argmax()), float(frames.mean())
        message = f"action differs from the next desired pose in {share:.0%} of the frames"
        yield recording.finding(
            "action_not_next_desired", message, _ACTIONS, field="actions", frame=first, share=share
        )


def _check_instruction(recording: Recording, fields: Mapping[str, Array]) -> Iterator[Finding]:
    if not (recording.folder / _OBSERVATIONS).is_file():
        return
    texts = fields.get(_INSTRUCTION)
    if texts is None or texts.dtype.kind not in "US":
        problem, frame = f"has no {_INSTRUCTION}", None
    else:
        if texts.dtype.kind == "S":
            texts = np.char.decode(texts, "utf-8", "replace")
        empty = np.asarray(np.char.strip(texts) == "")
        if not empty.any():
            return
        problem, frame = (
            f"{_INSTRUCTION} is empty in {int(empty.sum())} frames",
            int(empty.argmax()),
        )
    yield recording.finding(
        "no_instruction", problem, _OBSERVATIONS, field=_INSTRUCTION, frame=frame
    )


def _check_success(recording: Recording) -> Iterator[Finding]:
    path = recording.folder / "summary.npz"
    if not path.is_file():
        return
    try:
        archive = NpzArchive(path)
        success = archive.read("episode_success") if "episode_success" in archive else None
    except DataError as error:
        yield recording.finding("unreadable_file", error.message, path.name)
        return
    if success is not None and success.size and not success.any():
        yield recording.finding(
            "not_successful", "episode_success is false", path.name, field="episode_success"
        )
