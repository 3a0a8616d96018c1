"""Lets `train` take raw recordings: their frames are written first, beside the runs."""

import os
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlatool.config.resolve import Override, load_config
from vlatool.datasets.frames.layout import FramesFolder
from vlatool.datasets.lbm.layout import ShardFolder
from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, PartialFailure
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.job import digest_of
from vlatool.jobs.record import is_being_written
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.plugins import DEFAULT_SINK, FORMATS
from vlatool.recordings.detect import detect_source
from vlatool.recordings.select import episode_state
from vlatool.storage.tree import files_below, size_text
from vlatool.storage.uri import local_path, location
from vlatool.training.config import TrainConfig
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

_FOLDER = "data"  # beside the runs
_PLANNED_EPISODES = 3  # that a dry run writes into a temporary folder
_WAIT_SECONDS = 1.0


@contextmanager
def with_frames(config: TrainConfig, reporter: Reporter) -> Generator[TrainConfig]:
    """Writes the frames of raw recordings that a run names as data, and yields the config with
    these frames in their place.

    The frames are in `save_path/data/NAME-DIGEST`, where the next run with the same recordings and
    options finds them. An interrupted call continues when it is repeated. If several processes
    train, one of them writes and the others wait. A dry run plans with the frames of a few episodes
    in a temporary folder.

    Raises:
        DataError: As `preprocess`, for recordings.
    """
    if not isinstance(config.data, RoboticsDataConfig):
        yield config
        return
    folders: list[str] = []
    temporary: list[Path] = []
    try:
        for text in config.data.dataset_manifest:
            episodes = _episodes(text)
            if not episodes:
                folders.append(text)
                continue
            job = _job(text, episodes, config.data.frames_preset, config.save_path)
            if config.dry_run and not _is_written(job):
                temporary.append(Path(tempfile.mkdtemp(prefix="vlatool-plan-")))
                folders.append(_planned(job, temporary[-1], reporter))
            else:
                _write(job, reporter)
                folders.append(job.output)
        data = config.data.model_copy(update={"dataset_manifest": folders})
        yield config.model_copy(update={"data": data})
    finally:
        for folder in temporary:
            shutil.rmtree(folder, ignore_errors=True)


def _episodes(text: str) -> Sequence[EpisodeRef]:
    """The raw episodes at a location; empty if it holds training data, or nothing."""
    place = location(text)
    if FramesFolder.find(place) is not None or ShardFolder.find(place) is not None:
        return ()
    try:
        found = detect_source(place, None)
    except DataError:
        return ()  # the error of missing training data says more
    # Images alone, for example, are no data for a policy.
    return found.refs if FORMATS.get(found.format).default_sink == DEFAULT_SINK else ()


def _job(
    text: str, episodes: Sequence[EpisodeRef], preset: str, save_path: str
) -> PreprocessConfig:
    """The call of `preprocess` for recordings. The output folder depends on options and files, so
    changed recordings get a new folder.
    """
    presets = [preset] if preset else []
    source = location(text)
    values: dict[str, Any] = {"sources": [text], "sink.type": "frames"}
    job = _resolved(presets, values)
    known = job.model_dump(mode="json", exclude={*job.no_effect_on_output, "sources"})
    states = [episode_state(episode).digest for episode in episodes]
    name = f"{source.name or 'data'}-{digest_of([states, known])[:8]}"
    output = local_path(save_path) / _FOLDER / name
    return _resolved(presets, {**values, "output": str(output)})


def _resolved(presets: list[str], values: dict[str, Any]) -> PreprocessConfig:
    overrides = [Override(key, value, "vlatool train") for key, value in values.items()]
    return load_config(PreprocessConfig, presets=presets, overrides=overrides).config


def _is_written(job: PreprocessConfig) -> bool:
    output = Path(job.output)
    return FramesFolder.find(output) is not None and not is_being_written(output)


def _write(job: PreprocessConfig, reporter: Reporter) -> None:
    """Writes the frames, or waits until another process of this run has written them."""
    is_parallel = int(os.environ.get("WORLD_SIZE", "1")) > 1
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if is_parallel and not is_first:
        while not _is_written(job):
            time.sleep(_WAIT_SECONDS)
        return
    while is_parallel and is_being_written(Path(job.output)):  # by another machine
        time.sleep(_WAIT_SECONDS)
    reporter.note(
        f"{job.sources[0]}: raw recordings; their frames are written to {job.output} first"
    )
    try:
        preprocess(job, reporter=reporter)
    except PartialFailure as error:
        reporter.warn("data.episodes_failed", f"{error.message}; training goes on without them")


def _planned(job: PreprocessConfig, folder: Path, reporter: Reporter) -> str:
    """Frames of the first episodes, for a dry run; notes how large the frames of all will be."""
    plan = preprocess(job.model_copy(update={"dry_run": True}), reporter=NULL)
    output = str(folder / "frames")
    few = job.model_copy(update={"output": output, "max_episodes": _PLANNED_EPISODES})
    written = preprocess(few, reporter=NULL)
    size = sum(file.bytes for file in files_below(Path(output)))
    total = size * plan.frames / max(written.frames, 1)
    reporter.note(
        f"{job.sources[0]}: frames of {counted(plan.episodes, 'episode')} would be written to "
        f"{job.output} first, about {size_text(round(total))}; this plan is computed from "
        f"{counted(written.episodes, 'episode')}"
    )
    return few.output
