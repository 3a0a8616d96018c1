"""Recording of the built-in world as a LeRobot data set, with the sink that `preprocess` uses.

A file of its own, since only this layout needs PyAV.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlatool.artifacts.lerobot.format import Version
from vlatool.episode import EpisodeRef
from vlatool.jobs.files import FileEntry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.sinks.base import SinkSetup, Work
from vlatool.sinks.lerobot.config import LeRobotSinkConfig
from vlatool.sinks.lerobot.sink import LeRobotSink
from vlatool.world.episodes import WorldEpisode
from vlatool.world.record_lerobot import ROBOT_TYPE, as_episode, world_survey
from vlatool.world.recording import RecordingSetup, recorded_episode, with_recorded
from vlatool.world.render import View


@dataclass(frozen=True)
class _EpisodeWriter:
    """Writes an episode with the sink; picklable."""

    work: Work
    views: tuple[View, ...]

    def __call__(self, episode: WorldEpisode, first_row: int) -> Receipt:
        del first_row  # the sink numbers rows at the end
        converted = as_episode(episode, self.views)
        receipt = self.work(EpisodeRef(converted.id, Path(), ""), converted)
        return with_recorded(receipt, recorded_episode(episode, ()))


class SinkRecorder:
    """Recorder of LeRobot data sets; see `world.recording.Recorder`."""

    def __init__(self, setup: RecordingSetup, version: Version, episodes: int) -> None:
        config = LeRobotSinkConfig(layout_version=version, robot_type=ROBOT_TYPE)
        survey = world_survey(setup.views, episodes)
        self._sink = LeRobotSink(config, SinkSetup(setup.output, survey, ()))
        self.owned: Sequence[str] = self._sink.owned
        self.temporary: Sequence[str] = self._sink.temporary
        self.write: Callable[[WorldEpisode, int], Receipt]
        self.write = _EpisodeWriter(self._sink.work, setup.views)

    def begin(self) -> None:
        """Removes the meta files."""
        self._sink.begin()

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Joins the episodes."""
        return self._sink.finish(receipts, run).files
