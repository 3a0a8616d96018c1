"""LeRobot v2.0 and v2.1 data sets, with video or image columns, as episodes."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from vlatool.artifacts.lerobot import META_FILES
from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.errors import VlatoolError
from vlatool.findings import Collector, Finding, FindingCodes
from vlatool.sources.base import facts_of, id_part, merge_surveys, survey_each
from vlatool.sources.lerobot.config import LeRobotConfig
from vlatool.sources.lerobot.dataset import EpisodeFiles, dataset_roots, open_dataset
from vlatool.sources.lerobot.findings import LEROBOT
from vlatool.sources.lerobot.lint import check_values
from vlatool.sources.lerobot.rules import name_to_sentence, walk_episode, without_labels
from vlatool.sources.lerobot.set_rules import check_sets
from vlatool.sources.rules import SOURCE, check_cameras
from vlatool.storage.tree import files_named
from vlatool.storage.uri import can_list


class LeRobotReader:
    """Reads LeRobot v2.0 and v2.1; rows pair with frames by number, never by time."""

    Config: ClassVar[type[ConfigModel]] = LeRobotConfig
    findings: ClassVar[FindingCodes] = LEROBOT

    def __init__(self, config: LeRobotConfig) -> None:
        self.config = config
        self.source_findings: list[Finding] = []

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every listed episode; all metadata is read and checked before the first one is given.

        Raises:
            DataError: `data.no_episodes`, `data.unknown_field`, `data.unsupported_version`, or
                broken metadata.
        """
        findings: list[Finding] = []
        found: dict[Path, tuple[Path, list[EpisodeFiles]]] = {}
        for source in sources:
            for root in dataset_roots(source):
                if root.resolve() in found:
                    message = f"{root} was given twice; read once"
                    findings.append(SOURCE("given_twice", message, path=str(root)))
                else:
                    found[root.resolve()] = (source, open_dataset(root, self.config, findings))
        self.source_findings = findings
        return _refs(list(found.values()))

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """What the data sets declare.

        One episode of each data set is read, the first that can be: it gives the fields. The
        others cost nothing: their files and lengths are listed.

        Raises:
            DataError: No episode can be read; the first one's reason.
        """
        reasons: list[VlatoolError] = []
        return merge_surveys(self._looks(refs, reasons), reasons)

    def _looks(self, refs: Sequence[EpisodeRef], reasons: list[VlatoolError]) -> Iterator[Survey]:
        sets: dict[Path, list[EpisodeRef]] = {}
        for ref in refs:
            sets.setdefault(_recording(ref).dataset.root, []).append(ref)
        for members in sets.values():
            others = iter(members)
            first = next(survey_each(self._look, others, reasons), None)
            if first is not None:
                yield first
                for one in map(_recording, others):  # those after it
                    if one.data_file in one.present:
                        yield replace(first, frames=one.line.length)

    def _look(self, ref: EpisodeRef) -> Survey:
        """The survey of an episode that is read; sizes and names are those that are declared."""
        episode, dataset = self.read(ref), _recording(ref).dataset
        sizes = {one.name: one.image_size for one in dataset.cameras}
        return Survey(
            1,
            sizes,
            facts_of(episode),
            episode.num_frames,
            episode.fps,
            episode.action_fields,
            episode.proprioception_fields,
        )

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; pictures stay on disk.

        Raises:
            DataError: Its files are missing or broken, or disagree; names file and field.
        """
        recording = _recording(ref)
        dataset = recording.dataset
        report = Collector(LEROBOT, strict=True, episode=ref.id)
        contents = walk_episode(recording, self.config, report)
        assert contents.rows is not None, "a strict walk has raised"
        return Episode(
            id=ref.id,
            task=contents.task,
            fps=dataset.info.fps,
            num_frames=len(contents.rows),
            cameras=contents.cameras,
            lowdim=contents.fields,
            dimension_names=dataset.dimension_names,
            language={"original": [contents.task]},
            action_fields=dataset.action_keys,
            proprioception_fields=dataset.observation_keys,
            frame_metadata=contents.metadata,
            missing_cameras=contents.missing,
            findings=tuple(report.findings),
            extras={
                "source_version": dataset.info.layout,
                "dataset": dataset.name,
                "robot_type": dataset.info.robot_type,
                "source_episode_index": recording.line.number,
            },
        )

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
        """Every defect of an episode; with `deep` every frame is decoded."""
        report = Collector(LEROBOT, strict=False, episode=ref.id)
        contents = walk_episode(_recording(ref), self.config, report)
        check_values(_recording(ref), contents, report)
        yield from report.findings
        if deep:
            yield from check_cameras(ref.id, contents.cameras)

    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]:
        """Defects that concern more than one episode."""
        yield from check_sets(sources, self.config)


def _recording(ref: EpisodeRef) -> EpisodeFiles:
    return ref.extras["recording"]


def _metadata(root: Path) -> list[Path]:
    if can_list(root):
        return sorted((root / "meta").glob("*.json*"))
    return files_named(root, META_FILES)


def _refs(found: Sequence[tuple[Path, list[EpisodeFiles]]]) -> Iterator[EpisodeRef]:
    """Refs of data sets; the second of two with one name has `-2` after it."""
    seen: Counter[str] = Counter()
    for source, recordings in found:
        dataset = recordings[0].dataset
        name = id_part(dataset.name)
        seen[name] += 1
        prefix = name if seen[name] == 1 else f"{name}-{seen[name]}"
        metadata = _metadata(dataset.root)
        for recording in recordings:
            number = recording.line.number
            sentences = without_labels(recording.line.tasks)
            yield EpisodeRef(
                id=f"{prefix}_episode_{number:06d}",
                path=recording.data_file,
                source=str(source),
                number=number if len(found) == 1 else None,
                task=sentences[0] if sentences else name_to_sentence(dataset.name),
                files=(*recording.videos.values(), *metadata),
                extras={"recording": recording},
            )
