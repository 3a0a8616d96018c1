"""Checks of a format, whose contract is `recordings.base.FormatReader`.

Legend of shapes: F frames, N images, C dimensions.
"""

import pickle
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, FrameSource, Survey
from vlatool.errors import DataError
from vlatool.recordings.base import field_specs
from vlatool.storage.tree import natural_key
from vlatool.transforms.relative import SUFFIX


def check_reader(
    reader_class: Any, source: str | Path, config: Mapping[str, Any] | None = None
) -> list[Episode]:
    """Checks the contract of a reader on a small data set; returns its episodes.

    Args:
        reader_class: The class that the entry point names.
        source: A folder with a few short episodes; all of them are read.
        config: Config keys of the reader that differ from the defaults.
    """
    keys = config_section(reader_class, config)
    reader = reader_class(keys)
    refs = list(reader.discover([Path(source)]))
    again = list(reader_class(_pickled(keys)).discover([Path(source)]))
    assert refs, f"`discover` finds no episodes in {source}"
    assert refs == again, "`discover` returns other episodes when it is called again"
    _check_refs(refs)
    code = ""
    with tempfile.TemporaryDirectory() as empty:
        try:
            list(reader_class(keys).discover([Path(empty)]))
        except DataError as error:
            code = error.code
    assert code == "data.no_episodes", (
        "`discover` does not raise `data.no_episodes` for an empty folder"
    )
    # Workers use new readers on which discover was not called.
    episodes = [reader_class(keys).read(_pickled(ref)) for ref in refs]
    for ref, episode in zip(refs, episodes, strict=True):
        assert episode.id == ref.id, f"`read` returns the id {episode.id!r} for the ref {ref.id!r}"
        _check_episode(episode)
    _check_survey(reader_class(keys).survey(refs), episodes)
    return episodes


def config_section(plugin_class: Any, keys: Mapping[str, Any] | None) -> Any:
    """The config of a plugin class with keys that differ from the defaults."""
    assert issubclass(plugin_class.Config, ConfigModel), "`Config` is not a ConfigModel"
    return plugin_class.Config.model_validate(dict(keys or {}))


def _pickled(value: Any) -> Any:
    try:
        return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own bytes
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"{type(value).__name__} cannot be pickled: {error}") from error


def _check_refs(refs: list[EpisodeRef]) -> None:
    ids = [ref.id for ref in refs]
    for name in ids:
        assert re.fullmatch("[A-Za-z0-9_-]+", name), (
            f"the id {name!r} has characters other than letters, digits, _ and -"
        )
    assert len(set(ids)) == len(ids), "two episodes have the same id"
    paths = [natural_key(ref.path) for ref in refs]
    numbers = [-1 if ref.number is None else ref.number for ref in refs]
    ordered = paths == sorted(paths) or (min(numbers) >= 0 and numbers == sorted(numbers))
    assert ordered, (
        "`discover` does not return episodes in natural order, episode_2 before episode_10"
    )
    assert [_pickled(ref) for ref in refs] == refs, "refs change when they are pickled"


def _check_episode(episode: Episode) -> None:
    label = f"episode {episode.id}"
    frames = episode.num_frames
    lowdim = episode.lowdim
    assert min(frames, episode.fps) > 0, f"{label}: num_frames or fps is not positive"
    for name, values in lowdim.items():
        _check_field(f"{label}, field {name!r}", values, frames)
    for name, names in episode.dimension_names.items():
        assert name in lowdim, f"{label}: dimension_names has {name!r}, which is not a field"
        width = lowdim[name].shape[-1]
        assert len(names) == width, (
            f"{label}: {name!r} has {len(names)} names for {width} dimensions"
        )
    for name, camera in episode.cameras.items():
        _check_camera(f"{label}, camera {name!r}", camera, frames)
    poses = {group.position_key: 3 for group in episode.pose_groups}
    poses |= {group.rotation_key: 6 for group in episode.pose_groups}
    for key, width in poses.items():
        pose_shape = lowdim[key].shape if key in lowdim else None
        assert pose_shape == (frames, width), (
            f"{label}: the pose {key!r} has shape {pose_shape}, not [F, {width}]"
        )
    known = {*lowdim, *(key + SUFFIX for key in poses)}
    for name in (*episode.action_fields, *episode.proprioception_fields):
        assert name in known, f"{label}: {name!r} is neither in lowdim nor a pose with {SUFFIX!r}"
    _check_parts(label, episode)
    for kind, values in episode.language.items():
        has_texts = not isinstance(values, str) and any(isinstance(text, str) for text in values)
        assert has_texts, f"{label}: language {kind!r} is not a list of texts"
    for name, values in episode.frame_metadata.items():
        assert len(values) == frames, (
            f"{label}: frame_metadata {name!r} does not have one value per frame"
        )


def _check_parts(label: str, episode: Episode) -> None:
    """Checks that each part has one role, and that parts and episode name the same cameras and
    fields.
    """
    paths = [part.path for part in episode.parts]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    assert not twice, f"{label}: {twice} occurs more than once in the parts"
    silent = [part.path for part in episode.parts if part.role == "left_out" and not part.note]
    assert not silent, f"{label}: the parts {silent} are left out, but no reason is given"
    used: Mapping[str, Collection[str]] = {
        "camera": {*episode.cameras, *episode.missing_cameras},
        "depth": episode.depth,
        "labels": episode.labels,
        "field": episode.lowdim,
    }
    for role, names in used.items() if episode.parts else ():
        named = [part.name for part in episode.parts if part.role == role]
        assert len(named) == len(set(named)), (
            f"{label}: two parts with the role {role} have the same name"
        )
        strange = sorted({*named} - {*names})
        assert not strange, (
            f"{label}: the parts {strange} with the role {role} are not in the episode"
        )


def _check_survey(survey: Survey, episodes: list[Episode]) -> None:
    cameras = {name for e in episodes for name in (*e.cameras, *e.missing_cameras)}
    assert set(survey.cameras) == cameras, (
        f"the survey has the cameras {sorted(survey.cameras)}, but the episodes {sorted(cameras)}"
    )
    schemas = [field_specs(episode) for episode in episodes]
    common = set.intersection(*(set(schema) for schema in schemas))
    assert common <= set(survey.fields), (
        f"the survey has the fields {sorted(survey.fields)}, but all episodes have {sorted(common)}"
    )
    for name, info in survey.fields.items():
        widths = {schema[name].width for schema in schemas if name in schema}
        assert info.width in widths, (
            f"the survey says that {name!r} has width {info.width}, episodes {sorted(widths)}"
        )
    frames = sum(episode.num_frames for episode in episodes)
    assert survey.frames in (None, frames), (
        f"the survey counts {survey.frames} frames, but the episodes have {frames}"
    )


def _check_field(label: str, values: Any, frames: int) -> None:
    assert isinstance(values, np.ndarray), f"{label} is a {type(values).__name__}, not an array"
    assert values.dtype.kind in "fiubU", (
        f"{label} has dtype {values.dtype}, neither numeric nor unicode"
    )
    dimensions = 1 if values.dtype.kind == "U" else 2
    assert values.ndim == dimensions, f"{label} has shape {values.shape}, not [F, C] (text [F])"
    assert len(values) == frames, f"{label} has {len(values)} rows, but the episode {frames} frames"


def _check_camera(label: str, camera: FrameSource, frames: int) -> None:
    assert len(camera) == frames, (
        f"{label} has {len(camera)} images, but the episode {frames} frames"
    )
    last = camera.read([frames - 1])
    first = camera.read([0])
    for images in (first, last):
        assert images.dtype == np.uint8, f"{label} returns dtype {images.dtype}, not uint8"
        expected = (1, *camera.size, 3)
        assert images.shape == expected, f"{label} returns shape {images.shape}, not {expected}"
    is_equal = np.array_equal(camera.read([0, frames - 1]), np.concatenate([first, last]))
    assert is_equal, f"{label} returns other images when frames are read in another order"
