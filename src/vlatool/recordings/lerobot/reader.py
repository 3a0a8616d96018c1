"""LeRobot data sets, with video or image columns, as episodes; LIBERO among them.

LIBERO has two image columns and one instruction per episode. Source: reference/future-vla 1.2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.errors import DataError, VlatoolError
from vlatool.findings import Collector, Finding, FindingCodes
from vlatool.recordings.base import (
    FormatReader,
    id_part,
    merge_surveys,
    survey_each,
    survey_episode,
    unused_id,
)
from vlatool.recordings.inventory import left_out_findings
from vlatool.recordings.language import check_language, first_text
from vlatool.recordings.lerobot import check as rules
from vlatool.recordings.lerobot.dataset import (
    LeRobotConfig,
    LiberoConfig,
    dataset_roots,
    open_dataset,
)
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.recordings.lerobot.folder import EpisodeFiles, split_names
from vlatool.recordings.lerobot.layout import (
    INFO_FILE,
    META_FILES,
    TASKS_TABLE,
    split_spans,
)
from vlatool.recordings.lerobot.mapped import MappedEpisode, proposal_of
from vlatool.recordings.lerobot.meta import Info, episode_tables
from vlatool.recordings.lerobot.parts import NO_IMAGES, listed_texts
from vlatool.recordings.lerobot.set_lint import check_sets
from vlatool.recordings.mapping import RecordingMapping, mapping_file, read_mapping
from vlatool.recordings.rules import check_cameras, distinct_recordings
from vlatool.storage.tree import files_named
from vlatool.storage.uri import can_list
from vlatool.transforms.hold_out import split_of


class LeRobotReader(FormatReader):
    """Reader of LeRobot v2.0, v2.1 and v3.0; rows pair with frames by number, never by time."""

    Config: ClassVar[type[ConfigModel]] = LeRobotConfig
    findings: ClassVar[FindingCodes | None] = LEROBOT
    config: LeRobotConfig

    @cached_property
    def _mapping(self) -> RecordingMapping | None:
        name = self.config.mapping
        return None if name is None else read_mapping(mapping_file(name), RecordingMapping)

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """All listed episodes; reads and checks all metadata before the first one."""
        findings: list[Finding] = []
        datasets: list[tuple[Path, list[EpisodeFiles]]] = []
        for root, source in distinct_recordings(sources, dataset_roots, INFO_FILE, findings):
            episodes = open_dataset(root, self.config, findings)
            if self.config.split is not None:
                episodes = _of_split(root, episodes, self.config.split)
            datasets.append((source, episodes))
        self.source_findings = findings
        refs = list(_refs(datasets, is_mapped=self._mapping is not None))
        if self._mapping is not None:
            self._check_mapping(self._mapping, refs)
        return iter(refs)

    def _check_mapping(self, mapping: RecordingMapping, refs: Sequence[EpisodeRef]) -> None:
        """Raises DataError if the mapping does not fit the first episode that is here."""
        for ref in refs:
            files = _episode_files(ref)
            if files.rows.path in files.present and files.line.length is not None:
                MappedEpisode(ref, files, mapping)
                return

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Declared cameras, fields and lengths of the data sets.

        Reads the first readable episode of each data set, which gives the fields. Files and lengths
        of the others are known from listings.
        """
        reasons: list[VlatoolError] = []
        return merge_surveys(self._surveys(refs, reasons), reasons)

    def _surveys(self, refs: Sequence[EpisodeRef], reasons: list[VlatoolError]) -> Iterator[Survey]:
        refs_by_root: dict[Path, list[EpisodeRef]] = {}
        for ref in refs:
            refs_by_root.setdefault(_episode_files(ref).dataset.root, []).append(ref)
        for refs_of_set in refs_by_root.values():
            remaining = iter(refs_of_set)
            first = next(survey_each(self._survey_episode, remaining, reasons), None)
            if first is None:
                continue
            yield first
            for ref in remaining:  # after the first one that can be read
                files = _episode_files(ref)
                if files.is_listed and files.rows.path in files.present:
                    yield replace(first, frames=files.line.length)

    def _survey_episode(self, ref: EpisodeRef) -> Survey:
        """Survey of an episode that is read; sizes of images are the declared ones."""
        survey = survey_episode(self.read(ref))
        if self._mapping is not None:
            return survey
        cameras = _episode_files(ref).dataset.cameras
        return replace(survey, cameras={camera.name: camera.image_size for camera in cameras})

    def read(self, ref: EpisodeRef) -> Episode:
        files = _episode_files(ref)
        if self._mapping is not None:
            episode = MappedEpisode(ref, files, self._mapping).read()
        else:
            episode = self._read(ref, files)
        extras = {
            "dataset": files.dataset.name,
            "robot_type": files.dataset.info.robot_type,
            "source_episode_index": files.number,
        }
        return replace(episode, extras=extras)

    def _read(self, ref: EpisodeRef, files: EpisodeFiles) -> Episode:
        dataset = files.dataset
        report = Collector(LEROBOT, strict=True, episode=ref.id)
        contents = rules.walk_episode(files, self.config, report)
        assert contents.rows is not None, "a strict collector raises before"
        whole, spans = contents.language
        rows = len(contents.rows)
        count = min([rows, *(len(frames) for frames in contents.cameras.values())])
        if count < rows:
            spans = [replace(s, last=min(s.last, count - 1)) for s in spans if s.first < count]
        return Episode(
            id=ref.id,
            task=first_text(contents.language),
            fps=dataset.info.fps,
            num_frames=count,
            cut_frames=rows - count,
            cameras=contents.cameras,
            lowdim={name: values[:count] for name, values in contents.fields.items()},
            dimension_names=dataset.dimension_names,
            language=whole,
            language_spans=tuple(spans),
            action_fields=dataset.action_keys,
            proprioception_fields=dataset.observation_keys,
            frame_metadata={name: values[:count] for name, values in contents.metadata.items()},
            missing_cameras=contents.missing,
            depth=contents.depth,
            labels=contents.labels,
            success=contents.success,
            declared=dataset.declared,
            parts=contents.parts,
            findings=(
                *report.findings,
                *check_language(ref.id, count, (whole, spans)),
                *_left_out(ref.id, contents),
            ),
        )

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding] | None:
        """Yields findings by the rules of LeRobot; with a mapping, by the rules of all formats."""
        return self._check(ref, deep=deep) if self._mapping is None else None

    def _check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
        files = _episode_files(ref)
        report = Collector(LEROBOT, strict=False, episode=ref.id)
        contents = rules.walk_episode(files, self.config, report)
        rules.check_values(files, contents, report)
        yield from report.findings
        yield from check_language(ref.id, len(contents.rows or ()), contents.language)
        yield from _left_out(ref.id, contents)
        if deep:
            yield from check_cameras(ref.id, contents.cameras)

    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]:
        yield from check_sets(sources, self.config)

    @staticmethod
    def propose(source: Path) -> str | None:
        """A mapping of the first data set, which reads it as it is read without one."""
        if not can_list(source) or not source.is_dir():
            return None
        for root in dataset_roots(source):
            if (root / INFO_FILE).is_file():
                return proposal_of(open_dataset(root, LeRobotConfig(), [])[0])
        return None


def _left_out(episode: str, contents: rules.EpisodeContents) -> list[Finding]:
    return left_out_findings(episode, [part for part in contents.parts if part.note != NO_IMAGES])


def _of_split(root: Path, episodes: Sequence[EpisodeFiles], split: str) -> list[EpisodeFiles]:
    of_split = [episode for episode in episodes if split in split_names(episode)]
    if not of_split:
        known = [name for name, spans in split_spans(episodes[0].document).items() if spans]
        raise DataError.at(
            root / INFO_FILE,
            f"the split {split!r} has no episode",
            hint=f"choose from: {', '.join(known or ['train'])}",
            code="data.unknown_field",
            split=split,
            known=known,
        )
    return of_split


def _episode_files(ref: EpisodeRef) -> EpisodeFiles:
    return ref.extras["files"]


def _metadata(root: Path, info: Info) -> list[Path]:
    """Files in `meta/` that the episodes of a set depend on."""
    if can_list(root):
        files = sorted((root / "meta").glob("*.json*"))
    else:
        files = files_named(root, META_FILES)
    if info.is_shared:
        files += [*episode_tables(root), *files_named(root, [TASKS_TABLE])]
    return files


def _refs(
    datasets: Sequence[tuple[Path, list[EpisodeFiles]]], *, is_mapped: bool
) -> Iterator[EpisodeRef]:
    """Refs of data sets; the second data set of the same name gets the suffix `-2`."""
    used: dict[str, int] = {}
    for source, episodes in datasets:
        dataset = episodes[0].dataset
        prefix = unused_id(id_part(dataset.name), used)
        metadata = [*_metadata(dataset.root, dataset.info), *dataset.text_tables.values()]
        for episode in episodes:
            number = episode.number
            sentences = list(rules.without_labels(episode.line.tasks))
            for _, texts in listed_texts(episode).values():
                sentences += texts
            extras = {"files": episode}
            if not is_mapped:  # the sink `lerobot` copies a recording
                extras["recording"] = episode
            yield EpisodeRef(
                id=f"{prefix}_episode_{number:06d}",
                path=episode.rows.path,
                source=str(source),
                number=number if len(datasets) == 1 else None,
                task=sentences[0] if sentences else rules.name_to_sentence(dataset.name),
                files=(*(clip.path for clip in episode.clips.values()), *metadata),
                extras=extras,
                split=_split(episode),
            )


def _split(episode: EpisodeFiles) -> str:
    """`val` if any split for evaluation has the episode, else `train` or nothing."""
    splits = {split_of(name) for name in split_names(episode)}
    for split in ("val", "train"):
        if split in splits:
            return split
    return ""


class LiberoReader(LeRobotReader):
    """Reader of LIBERO: the scene camera, the wrist camera, and the listed task."""

    Config: ClassVar[type[ConfigModel]] = LiberoConfig
    base_format: ClassVar[str] = "lerobot"

    @staticmethod
    def propose(source: Path) -> str | None:
        """None: such a set is read as `lerobot` with a mapping."""
        return None

    default_sink: ClassVar[str] = "jsonl"
