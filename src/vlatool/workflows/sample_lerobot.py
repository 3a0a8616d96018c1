"""Records simulated worlds as LeRobot data sets, with the sink that `preprocess` uses.

A file of its own, since only this layout needs PyAV.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.jobs.files import FileEntry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.recordings.lerobot.layout import Version
from vlatool.recordings.lerobot.set_layout import LeRobotSinkConfig
from vlatool.recordings.lerobot.writer import LeRobotSink
from vlatool.recordings.writing import SinkSetup, Work
from vlatool.world import recording
from vlatool.world.metaworld import episodes as metaworld
from vlatool.world.record_lerobot import ROBOT_TYPE, as_episode, world_survey


def world_recorder(
    setup: recording.RecordingSetup, version: Version, episodes: int
) -> "SinkRecorder":
    """Recorder of the built-in world."""
    config = LeRobotSinkConfig(layout_version=version, robot_type=ROBOT_TYPE)
    survey = world_survey(setup.views, episodes)
    return SinkRecorder(setup.output, config, survey, partial(as_episode, views=setup.views))


def metaworld_recorder(
    output: Path, size: tuple[int, int], version: Version, episodes: int
) -> "SinkRecorder":
    """Recorder of Meta-World with images of `size` (height, width)."""
    config = LeRobotSinkConfig(layout_version=version, robot_type=metaworld.ROBOT_TYPE)
    survey = metaworld.simulator_survey(size, episodes)
    return SinkRecorder(output, config, survey, metaworld.as_episode)


@dataclass(frozen=True)
class _EpisodeWriter:
    """Writes an episode with the sink; picklable."""

    work: Work
    convert: Callable[[Any], Episode]

    def __call__(self, episode: recording.RecordableEpisode, first_row: int) -> Receipt:
        del first_row  # the sink numbers rows at the end
        converted = self.convert(episode)
        receipt = self.work(EpisodeRef(converted.id, Path(), ""), converted)
        return recording.with_recorded(receipt, recording.recorded_episode(episode, ()))


class SinkRecorder:
    """Recorder of LeRobot data sets; see `world.recording.Recorder`."""

    def __init__(
        self,
        output: Path,
        config: LeRobotSinkConfig,
        survey: Survey,
        convert: Callable[[Any], Episode],
    ) -> None:
        self._sink = LeRobotSink(config, SinkSetup(output, survey, ()))
        self.owned: Sequence[str] = self._sink.owned
        self.temporary: Sequence[str] = self._sink.temporary
        self.write: Callable[[Any, int], Receipt] = _EpisodeWriter(self._sink.work, convert)

    def begin(self) -> None:
        self._sink.begin()

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        return self._sink.finish(receipts, run).files
