"""Contract checks for authors of formats, sinks and model types: one line in their tests.

    check_reader(AcmeReader, "tests/data/acme")
    check_sink(AcmeSink)
    check_model_type(AcmeType, {"width": 32}, data="tests/data/acme")

Each raises an AssertionError that names the part of the contract that is broken. The contracts are
`sources.base.FormatReader`, `sinks.base.Sink` and `models.base.ModelType`.
Legend of shapes: F frames, N images, C dimensions.
"""

import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, FrameSource, Survey
from vlatool.errors import DataError
from vlatool.jobs.executor import Executor, ProcessExecutor, SerialExecutor
from vlatool.sink_trial import SinkChecks
from vlatool.sources.base import field_specs
from vlatool.sources.order import natural_key
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
    keys = _config(reader_class, config)
    reader = reader_class(keys)
    refs = list(reader.discover([Path(source)]))
    again = list(reader_class(_pickled(keys)).discover([Path(source)]))
    assert refs, f"discover finds no episode in {source}"
    assert refs == again, "discover returns other episodes when it is called again"
    _check_refs(refs)
    _check_empty_source(reader_class(keys))
    # Workers use new readers on which discover was not called.
    episodes = [reader_class(keys).read(_pickled(ref)) for ref in refs]
    for ref, episode in zip(refs, episodes, strict=True):
        assert episode.id == ref.id, f"read returns the id {episode.id!r} for the ref {ref.id!r}"
        _check_episode(episode)
    _check_survey(reader_class(keys).survey(refs), episodes)
    return episodes


def check_sink(
    sink_class: Any,
    config: Mapping[str, Any] | None = None,
    *,
    make_executor: Callable[[], Executor] | None = None,
) -> None:
    """Checks the contract of a sink on three small episodes.

    Its output must be complete, owned by the sink, and equal after kills and with any executor.

    Args:
        sink_class: The class that the table of sinks names.
        config: Config keys of the sink that differ from the defaults. The episodes have two
            cameras of 64 x 64 pixels and 6 frames each; a sink may need smaller windows.
        make_executor: Makes the executor of one of the runs; None: two processes.
    """
    with tempfile.TemporaryDirectory() as folder:
        checks = SinkChecks(sink_class, _config(sink_class, config), Path(folder))
        outcomes = checks.check_quiet_run()
        for count in range(outcomes + 1):
            checks.check_killed_run(f"killed after {count}", SerialExecutor, count)
        checks.check_killed_run("killed elsewhere", make_executor or partial(ProcessExecutor, 2), 1)
        checks.check_failed_episode()
        checks.check_owned()


def check_model_type(
    model_type_class: Any,
    config: Mapping[str, Any] | None = None,
    *,
    data: str | Path | Mapping[str, Any] | None = None,
) -> None:
    """Checks the contract of a model type with short runs: training, checkpoints, resume, policy.

    Args:
        model_type_class: The class that the entry point names.
        config: Config keys that differ from the defaults; choose a tiny network, and let every
            optimizer start before step 3.
        data: A small folder for the first data kind of the model type, or keys of the data
            section, with `type` for another kind. None: a few samples of the built-in world, for
            a model type with robotics data.
    """
    model_type = model_type_class()
    plugin_modules = [target.partition(":")[0] for target in model_type.kinds if ":" in target]
    for module in dict.fromkeys([model_type_class.__module__, *plugin_modules]):
        _check_light_import(module)
    # Both import torch, which checks of formats and sinks do not need.
    from vlatool.model_promises import check_config
    from vlatool.model_trial import ModelChecks

    with tempfile.TemporaryDirectory() as folder:
        section = _config(model_type_class, config)
        derived, info = check_config(model_type, section, data, Path(folder))
        ModelChecks(derived, info, Path(folder)).check()


def _config(plugin_class: Any, keys: Mapping[str, Any] | None) -> Any:
    assert issubclass(plugin_class.Config, ConfigModel), "Config is not a ConfigModel"
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
        "discover does not return episodes in natural order: episode_2 before episode_10"
    )
    assert [_pickled(ref) for ref in refs] == refs, "refs change when they are pickled"


def _check_empty_source(reader: Any) -> None:
    code = ""
    with tempfile.TemporaryDirectory() as empty:
        try:
            list(reader.discover([Path(empty)]))
        except DataError as error:
            code = error.code
    assert code == "data.no_episodes", (
        "discover does not raise data.no_episodes for an empty folder"
    )


def _check_episode(episode: Episode) -> None:
    label, frames, lowdim = f"episode {episode.id}", episode.num_frames, episode.lowdim
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
    for kind, values in episode.language.items():
        has_texts = not isinstance(values, str) and any(isinstance(text, str) for text in values)
        assert has_texts, f"{label}: language {kind!r} is not a list of texts"
    for name, values in episode.frame_metadata.items():
        assert len(values) == frames, (
            f"{label}: frame_metadata {name!r} does not have one value per frame"
        )


def _check_survey(survey: Survey, episodes: list[Episode]) -> None:
    cameras = {name for e in episodes for name in (*e.cameras, *e.missing_cameras)}
    assert set(survey.cameras) == cameras, (
        f"survey has the cameras {sorted(survey.cameras)}, the episodes have {sorted(cameras)}"
    )
    schemas = [field_specs(episode) for episode in episodes]
    common = set.intersection(*(set(schema) for schema in schemas))
    assert common <= set(survey.fields), (
        f"survey has the fields {sorted(survey.fields)}, all episodes have {sorted(common)}"
    )
    for name, info in survey.fields.items():
        widths = {schema[name].width for schema in schemas if name in schema}
        assert info.width in widths, (
            f"survey: field {name!r} has width {info.width}, in the episodes {sorted(widths)}"
        )
    frames = sum(episode.num_frames for episode in episodes)
    assert survey.frames in (None, frames), (
        f"survey counts {survey.frames} frames, the episodes have {frames}"
    )


def _check_field(label: str, values: Any, frames: int) -> None:
    assert isinstance(values, np.ndarray), f"{label} is a {type(values).__name__}, not an array"
    assert values.dtype.kind in "fiubU", (
        f"{label} has dtype {values.dtype}, neither numeric nor unicode"
    )
    dimensions = 1 if values.dtype.kind == "U" else 2
    assert values.ndim == dimensions, f"{label} has shape {values.shape}, not [F, C] (text [F])"
    assert len(values) == frames, f"{label} has {len(values)} rows, the episode {frames} frames"


def _check_camera(label: str, camera: FrameSource, frames: int) -> None:
    assert len(camera) == frames, f"{label} has {len(camera)} images, the episode {frames} frames"
    last, first = camera.read([frames - 1]), camera.read([0])
    for images in (first, last):
        assert images.dtype == np.uint8, f"{label} returns dtype {images.dtype}, not uint8"
        expected = (1, *camera.size, 3)
        assert images.shape == expected, f"{label} returns shape {images.shape}, not {expected}"
    is_equal = np.array_equal(camera.read([0, frames - 1]), np.concatenate([first, last]))
    assert is_equal, f"{label} returns other images if frames are read in another order"


def _check_light_import(module: str) -> None:
    """Checks that a module imports no torch; in a new process, as this one may have torch."""
    program = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    completed = subprocess.run([sys.executable, "-c", program], env=env, check=False)  # noqa: S603 - our own interpreter
    assert completed.returncode == 0, (
        f"importing {module} fails or imports torch; import torch inside methods"
    )
