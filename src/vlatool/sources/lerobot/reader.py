"""LeRobot v2.0 and v2.1 data sets, with video or image columns, as episodes."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, FieldFacts, Survey
from vlatool.errors import DataError
from vlatool.findings import Collector, Family, Finding
from vlatool.sources.base import SurveyUnion, facts_of, first_readable, id_part, none_readable
from vlatool.sources.lerobot.codes import LEROBOT
from vlatool.sources.lerobot.config import LeRobotConfig
from vlatool.sources.lerobot.dataset import Dataset, Recording, dataset_roots, open_dataset
from vlatool.sources.lerobot.rules import (
    check_values,
    name_in_words,
    walk_episode,
    without_labels,
)
from vlatool.sources.lerobot.set_rules import check_sets
from vlatool.sources.rules import SOURCE, check_cameras


class LeRobotReader:
    """Reads LeRobot v2.0 and v2.1; rows pair with frames by number, never by time."""

    Config: ClassVar[type[ConfigModel]] = LeRobotConfig
    findings: ClassVar[Family] = LEROBOT

    def __init__(self, config: LeRobotConfig) -> None:
        self.config = config
        self.noticed: list[Finding] = []

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every listed episode; all metadata is read and checked before the first one is given.

        Raises:
            DataError: `data.no_episodes`, `data.unknown_field`, `data.unsupported_version`, or
                broken metadata.
        """
        noticed: list[Finding] = []
        found: dict[Path, tuple[Path, list[Recording]]] = {}
        for source in sources:
            for root in dataset_roots(source):
                if root.resolve() in found:
                    message = f"{root} was given twice; read once"
                    noticed.append(SOURCE("given_twice", message, path=str(root)))
                else:
                    found[root.resolve()] = (source, open_dataset(root, self.config, noticed))
        self.noticed = noticed
        return _refs(list(found.values()))

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """What the data sets declare, and the files that were there when they were opened.

        One episode of each data set is read, the first that can be: it gives the fields. The
        others cost nothing: their files and lengths are listed.

        Raises:
            DataError: No episode can be read; the first one's reason.
        """
        union, reasons = SurveyUnion(), list[DataError]()
        sets: dict[Path, list[EpisodeRef]] = {}
        for ref in refs:
            sets.setdefault(_recording(ref).dataset.root, []).append(ref)
        actions, proprioception = dict[str, None](), dict[str, None]()
        for members in sets.values():
            first, others = first_readable(self.read, members, reasons)
            if first is not None:
                _add_set(first, _recording(members[0]).dataset, others, union)
                actions |= dict.fromkeys(first.action_fields)
                proprioception |= dict.fromkeys(first.proprioception_fields)
        if not union.episodes:
            raise none_readable(refs, reasons[0])
        return union.survey(
            action_fields=tuple(actions), proprioception_fields=tuple(proprioception)
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
            language={"original": [contents.task]},
            action_fields=dataset.action_keys,
            proprioception_fields=dataset.observation_keys,
            frame_metadata=contents.metadata,
            findings=tuple(report.found),
            extras=_extras(recording),
        )

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
        """Every defect of an episode; with `deep` every frame is decoded."""
        report = Collector(LEROBOT, strict=False, episode=ref.id)
        contents = walk_episode(_recording(ref), self.config, report)
        check_values(_recording(ref), contents, report)
        yield from report.found
        if deep:
            yield from check_cameras(ref.id, contents.cameras)

    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]:
        """Defects that concern more than one episode."""
        yield from check_sets(sources, self.config)


def _add_set(
    first: Episode, dataset: Dataset, others: Sequence[EpisodeRef], union: SurveyUnion
) -> None:
    """Adds an episode that was read, and the others of its data set that have their rows."""
    fields = _named(dataset, facts_of(first))
    lengths: list[tuple[set[str], int | None]] = [(set(first.cameras), first.num_frames)]
    for recording in map(_recording, others):
        if recording.data_file in recording.there:
            there = {one.name for one in dataset.cameras if recording.has_pictures(one)}
            lengths.append((there, recording.line.length))
    for there, length in lengths:
        sizes = {one.name: one.picture_size for one in dataset.cameras if one.name in there}
        union.add(sizes, fields, length, dataset.info.fps)


def _recording(ref: EpisodeRef) -> Recording:
    return ref.extras["recording"]


def _named(dataset: Dataset, fields: Mapping[str, FieldFacts]) -> dict[str, FieldFacts]:
    """The same with the names that the data set gives to the channels."""
    names = {name: dataset.info.features[name].dimension_names for name in fields}
    return {
        name: replace(facts, names=names[name] if len(names[name]) == facts.width else ())
        for name, facts in fields.items()
    }


def _refs(found: Sequence[tuple[Path, list[Recording]]]) -> Iterator[EpisodeRef]:
    """Refs of data sets; the second of two with one name has `-2` after it."""
    seen: Counter[str] = Counter()
    for source, recordings in found:
        dataset = recordings[0].dataset
        name = id_part(dataset.name)
        seen[name] += 1
        prefix = name if seen[name] == 1 else f"{name}-{seen[name]}"
        metadata = _metadata_files(dataset.root)
        for recording in recordings:
            number = recording.line.number
            sentences = without_labels(recording.line.tasks)
            yield EpisodeRef(
                id=f"{prefix}_episode_{number:06d}",
                path=recording.data_file,
                source=str(source),
                number=number if len(found) == 1 else None,
                task=sentences[0] if sentences else name_in_words(dataset.name),
                files=(*recording.videos.values(), *metadata),
                extras={"recording": recording},
            )


def _metadata_files(root: Path) -> list[Path]:
    return sorted((root / "meta").glob("*.json*"))


def _extras(recording: Recording) -> dict[str, Any]:
    info = recording.dataset.info
    return {
        "source_version": info.layout,
        "dataset": recording.dataset.name,
        "robot_type": info.robot_type,
        "source_episode_index": recording.line.number,
    }
