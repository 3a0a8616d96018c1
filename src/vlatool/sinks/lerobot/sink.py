"""The `lerobot` sink: episodes of any source as a LeRobot data set, v3.0 or v2.1.

Workers write the parts of an episode below its id. Numbers are given at the end, to the episodes
that are good. Source: formats/lerobot-writing 1, 2.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from vlatool.artifacts.lerobot.format import INFO_FILE, split_spans
from vlatool.artifacts.lerobot.output import (
    CLOSING_FILES,
    PART_FILES,
    WRITTEN_FILES,
    WrittenEpisode,
    WrittenSet,
    write_episodes,
    write_info,
    write_statistics,
    write_tasks,
)
from vlatool.artifacts.lerobot.recording import LeRobotRecording, split_names, task_sentences
from vlatool.errors import DataError
from vlatool.findings import FindingCodes
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.pages.text import few_text
from vlatool.sinks.base import Estimate, SinkConfig, SinkSetup, SinkSummary, Work
from vlatool.sinks.lerobot.config import LeRobotSinkConfig
from vlatool.sinks.lerobot.episodes import LEROBOT_SINK, EpisodeWriter
from vlatool.sinks.lerobot.features import one_per_set, recordings_of, set_layout
from vlatool.sinks.lerobot.files import FileWriter, write_files
from vlatool.sinks.lerobot.modality import modality_of, write_modality
from vlatool.sinks.lerobot.numbering import Numbering
from vlatool.storage.atomic import remove_file
from vlatool.transforms.relative import stored_from


class LeRobotSink:
    """Writes LeRobot data sets."""

    Config: ClassVar[type[SinkConfig]] = LeRobotSinkConfig
    findings: ClassVar[FindingCodes] = LEROBOT_SINK
    owned: ClassVar[Sequence[str]] = (*WRITTEN_FILES, *PART_FILES)
    volatile: ClassVar[Sequence[str]] = ()
    temporary: ClassVar[Sequence[str]] = PART_FILES
    next_step: ClassVar[str] = "vlatool verify {output}"

    def __init__(self, config: LeRobotSinkConfig, setup: SinkSetup) -> None:
        self._config, self._setup = config, setup
        survey = setup.survey
        self._sets = one_per_set(recordings_of(setup.refs))
        self.fields: Mapping[str, int] = {name: spec.width for name, spec in survey.fields.items()}
        # Poses are stored as recorded, not relative to a window.
        actions = dict.fromkeys(stored_from(name, self.fields) for name in survey.action_fields)
        self.action_fields: tuple[str, ...] = setup.policy_actions(self.fields, (*actions,))
        self.proprioception_fields: tuple[str, ...] = survey.proprioception_fields
        self._splits: dict[str, list[int]] = {}
        self._layout = set_layout(config, setup, self.action_fields, self._sets)
        self.work: Work = EpisodeWriter(setup.output, config, self._layout)

    def begin(self) -> None:
        """Removes the meta files."""
        for name in CLOSING_FILES:
            remove_file(self._setup.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Numbers the episodes, writes tables and videos and, last, `meta/info.json`.

        Raises:
            DataError: No episode was written, or the images of episodes differ in size.
        """
        output, config, layout = self._setup.output, self._config, self._layout
        numbering = Numbering(config, layout, [*map(task_sentences, self._sets)])
        parts: list[FileEntry] = []
        splits = {
            ref.id: split_names(recording)
            for ref in self._setup.refs
            if isinstance(recording := ref.extras.get("recording"), LeRobotRecording)
        }
        self._splits.clear()
        for recording in self._sets:
            spans = split_spans(recording.document)
            if unknown := [name for name, ranges in spans.items() if ranges is None]:
                text = (
                    f"{recording.root}: the splits {few_text(unknown)} have no ranges of episodes"
                )
                run.reporter.warn("splits_left_out", f"{text} and are left out")

        def episodes() -> Iterator[WrittenEpisode]:
            for receipt in receipts:
                parts.extend(receipt.files)
                episode = numbering.add(receipt)
                if episode is not None:
                    for name in splits.get(receipt.item, ("train",)):
                        self._splits.setdefault(name, []).append(episode.number)
                    yield episode
            if not numbering.episodes:
                raise DataError(
                    "no episode was written",
                    hint="select more episodes",
                    code="data.no_samples",
                    details={"dropped": dict(run.dropped)},
                )

        # Written while the episodes arrive: memory does not grow with their statistics.
        limit = config.data_files_size_in_mb << 20
        lists = write_episodes(output, config.layout_version, episodes(), float(layout.rate), limit)
        annotations = tuple(name for name in layout.columns if name.startswith("annotation."))
        writer = FileWriter(output, layout.rate, numbering.table_columns, annotations)
        files = [*write_files(writer, numbering.plans(), run.executor, run.reporter)]
        size = sum(entry.bytes for entry in files)
        names = self._write_meta(numbering, lists)
        listed = parts if run.failures else []
        meta = [file_entry(output, name) for name in names]
        counts = {
            "episodes": numbering.episodes,
            "tasks": len(numbering.tasks),
            "copied_clips": run.sums.get("copied_clips", 0),
        }
        return SinkSummary(numbering.frames, size, (*files, *listed, *meta), counts)

    def estimate(self) -> Estimate:
        """Estimate: one sample per frame."""
        return Estimate(self._setup.survey.frames, {"episodes": self._setup.survey.episodes})

    def _write_meta(self, numbering: Numbering, lists: Sequence[str]) -> list[str]:
        """Writes the meta files besides the lists of episodes; returns the names of all."""
        output, config, layout = self._setup.output, self._config, self._layout
        version, fps = config.layout_version, float(layout.rate)
        names = [write_statistics(output, numbering.set_statistics())]
        names += [write_tasks(output, version, numbering.tasks), *lists]
        fields = {"state": self.proprioception_fields, "action": self.action_fields}
        modality = modality_of(layout, self._sets, fields if config.modality else {})
        if modality:
            names.append(write_modality(output, modality))
        source: Mapping[str, Any] = self._sets[0].document if self._sets else {}
        dataset = WrittenSet(
            version=version,
            fps=self._setup.survey.fps or fps,
            robot_type=config.robot_type or source.get("robot_type"),
            features=numbering.features(),
            chunks_size=config.chunks_size,
            data_mb=config.data_files_size_in_mb,
            video_mb=config.video_files_size_in_mb,
            splits=self._splits,
            extra=source if len(self._sets) == 1 else {},
        )
        totals = (numbering.episodes, numbering.frames, len(numbering.tasks))
        write_info(output, dataset, *totals)
        return [*names, INFO_FILE]
