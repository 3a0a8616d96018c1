"""An episode put together again from a tar that holds all samples of it.

Legend of shapes: S samples in the order of their anchors, T steps of a window.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.inspection.samples import TarIndex
from vlatool.inspection.views import chosen_fields, rate, stored_shot
from vlatool.pages.episode import EpisodeView, Shot, shown_positions
from vlatool.pages.fields import as_columns, is_lowdim
from vlatool.pages.poses import pose_tracks, position_fields

_USUAL_RATE = 10.0


def view_episode_tar(tar: TarIndex, options: Mapping[str, Any]) -> EpisodeView | None:
    """The episode whose samples these are; None where they are not of one episode.

    Args:
        tar: The samples.
        options: preprocessing_config.yaml; empty when unknown.
    """
    found = _one_episode(tar)
    if found is None:
        return None
    problems: list[str] = []
    rows = _anchor_rows(tar, found, problems)
    if not rows:
        return None
    anchors = sorted(rows)
    keys = [found[anchor] for anchor in anchors]
    numbers = _columns([rows[anchor] for anchor in anchors])
    metadata = tar.metadata(keys[0])
    absolute = {kind: _absolute(options.get(kind), numbers) for kind in _FIELD_KEYS}
    actions, proprioception = chosen_fields(numbers, absolute)
    shown = shown_positions(len(anchors))
    fps = rate(metadata, options)
    if fps is None:
        problems.append(f"the rate is not recorded; times are those of {_USUAL_RATE:g} fps")
    return EpisodeView(
        name=str(metadata.get("episode_id")),
        facts={
            "task": metadata.get("task"),
            "samples": len(anchors),
            "episode length": metadata.get("original_episode_length"),
            "fps": "" if fps is None else f"{fps:g}",
        },
        fps=fps or _USUAL_RATE,
        frames=np.array(anchors),
        shown=shown,
        cameras=_strips(tar, [keys[position] for position in shown]),
        actions={name: numbers[name] for name in actions},
        proprioception={name: numbers[name] for name in proprioception},
        tracks=pose_tracks(numbers, position_fields(numbers)),
        language=tar.language(keys[0]),
        problems=problems,
    )


_FIELD_KEYS = ("action_fields", "proprioception_fields")


def _one_episode(tar: TarIndex) -> dict[int, str] | None:
    """Anchor frame to key, when all samples with readable metadata are of one episode."""
    anchors: dict[int, str] = {}
    episodes: set[str] = set()
    for key in tar.keys:
        try:
            metadata = tar.metadata(key)
        except DataError:
            continue
        anchor, episode = metadata.get("anchor_timestep"), metadata.get("episode_id")
        if not isinstance(anchor, int) or not isinstance(episode, str) or anchor in anchors:
            return None
        episodes.add(episode)
        if len(episodes) > 1:
            return None
        anchors[anchor] = key
    return anchors if len(anchors) > 1 else None


def _anchor_rows(
    tar: TarIndex, keys: Mapping[int, str], problems: list[str]
) -> dict[int, dict[str, Array]]:
    """Anchor frame to the row of each field at the anchor; broken samples become problems."""
    rows: dict[int, dict[str, Array]] = {}
    for frame, key in keys.items():
        try:
            step = tar.metadata(key).get("anchor_relative_idx", 0)
            arrays = tar.arrays(key)
        except DataError as error:
            problems.append(error.message)
            continue
        length = len(arrays["past_mask"]) if "past_mask" in arrays else step + 1
        fields = as_columns(
            {name: values for name, values in arrays.items() if is_lowdim(name, values, length)}
        )
        rows[frame] = {name: values[min(step, length - 1)] for name, values in fields.items()}
    return rows


def _columns(rows: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Fields [S, C] that all rows have, equally wide."""
    return {
        name: np.stack([row[name] for row in rows])
        for name, first in rows[0].items()
        if all(name in row and row[name].shape == first.shape for row in rows)
    }


def _absolute(names: object, known: Mapping[str, Array]) -> list[str]:
    """Configured fields; of those relative to an anchor, what they were made from."""
    texts = map(str, names) if isinstance(names, list) else ()
    plain = ((name, name.removesuffix("_relative")) for name in texts)
    return [base if base in known else name for name, base in plain]


def _strips(tar: TarIndex, keys: Sequence[str]) -> dict[str, list[Shot]]:
    """Camera to its picture nearest to the anchor of each sample."""
    strips: dict[str, list[Shot]] = {}
    views = tar.pictures(keys[0])
    for camera in dict.fromkeys(camera for camera, _ in views):
        offset = min((at for name, at in views if name == camera), key=abs)
        strips[camera] = [_shot(tar, key, (camera, offset)) for key in keys]
    return strips


def _shot(tar: TarIndex, key: str, view: tuple[str, int]) -> Shot:
    if view not in tar.pictures(key):
        return Shot(None, problem="not in the sample")
    names = [f"rescaled_intrinsics.{view[0]}", f"extrinsics.{view[0]}"]
    step = tar.metadata(key).get("anchor_relative_idx", 0)
    return stored_shot(tar, key, view, tar.arrays(key, names), step + view[1])
