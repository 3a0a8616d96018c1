"""Reader of raw Diffusion-Spartan episodes. Source: formats/spartan 1, 2, 9."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from vlatool.episode import Array, Episode, EpisodeRef, FrameSource, PoseGroup, Survey
from vlatool.errors import DataError, VlatoolError
from vlatool.findings import Collector, Finding
from vlatool.recordings import base
from vlatool.recordings.rules import SOURCE, check_cameras
from vlatool.recordings.spartan import check as rules
from vlatool.recordings.spartan import lint
from vlatool.recordings.spartan.config import (
    SpartanConfig,
    language_annotations,
    task_to_sentence,
    validation_episodes,
    with_action_file,
)
from vlatool.storage.background import in_parallel
from vlatool.storage.tree import natural_key, walk
from vlatool.storage.uri import is_remote
from vlatool.transforms.relative import SUFFIX, actual_field

_RATE_HZ = 10.0
_INSTRUCTION = "language_instruction"
_PARALLEL_READS = 8
_EPISODE = re.compile(r"^episode_(\d+)$")


class SpartanReader(base.FormatReader):
    """Reader of raw Spartan episodes; any folder above them can be the source."""

    Config = SpartanConfig
    findings = rules.SPARTAN

    def __init__(self, config: SpartanConfig) -> None:
        self.config, self._groups = with_action_file(config)
        self._ordered = sorted(self.config.action_key_fields, key=_published_order)
        self.source_findings: Sequence[Finding] = ()

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        annotations = language_annotations(self.config.language_annotations_path)
        validation = validation_episodes(self.config.validation_episodes_path)
        refs: list[EpisodeRef] = []
        for source in sources:
            folders = episode_folders(source)
            if not folders:
                raise base.no_episodes(source, "folders episode_<N> that contain processed/")
            for folder in folders:
                ref = episode_ref(folder, source, self.config.task)
                is_excluded = episode_number(folder) in validation.get(ref.task, ())
                reason = "validation_episode" if is_excluded else ""
                language = annotations.get(ref.task, {})
                refs.append(replace(ref, language=language, excluded=reason))
        self.source_findings = list(_missing_validation_episodes(validation, refs))
        yield from base.unique_refs(refs)

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Cameras, fields and lengths from files and headers.

        On S3, where the headers of an episode take several requests, the first readable episode
        gives the fields. Of the others only metadata.yaml is read, unless it names a new camera;
        the number of frames stays unknown.
        """
        reasons: list[VlatoolError] = []
        survey = base.merge_surveys(self._surveys(iter(refs), reasons), reasons)
        groups = self._complete_groups(survey.fields)
        return replace(
            survey,
            action_fields=self._policy_actions(groups),
            proprioception_fields=self._policy_proprioception(survey.fields),
            pose_groups=groups,
        )

    def _surveys(self, refs: Iterator[EpisodeRef], reasons: list[VlatoolError]) -> Iterator[Survey]:
        readable = base.survey_each(lambda ref: base.survey_episode(self.read(ref)), refs, reasons)
        first = next(readable, None)
        if first is None:
            return
        yield first
        others = list(refs)  # after the first one
        if not others or not is_remote(others[0].path):
            # Errors are reported when the episode is read.
            yield from base.survey_each(self._survey_headers, others, [])
            return
        known_cameras = set(first.cameras)
        for ref, names in zip(others, _remote_cameras(others), strict=True):
            if names <= known_cameras:
                yield replace(first, cameras={}, frames=None)
                continue
            for survey in base.survey_each(self._survey_headers, [ref], []):
                known_cameras |= survey.cameras.keys()
                yield survey

    def _survey_headers(self, ref: EpisodeRef) -> Survey:
        report = Collector(rules.SPARTAN, strict=True)
        episode = rules.open_episode(ref.path / "processed", self.config, report)
        return Survey(
            episodes=1,
            cameras={name: camera.size for name, camera in episode.cameras.items()},
            fields=episode.field_specs(self.config),
            frames=episode.num_frames,
            fps=_RATE_HZ,
        )

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; arrays that are not used are not inflated."""
        report = Collector(rules.SPARTAN, strict=True, episode=ref.id)
        opened = rules.open_episode(ref.path / "processed", self.config, report)
        values = rules.read_values(opened, self.config, report)
        lowdim = {**values.observed, **values.actions}
        groups = self._complete_groups(lowdim)
        assert opened.num_frames is not None, "a strict collector raises before"
        return Episode(
            id=ref.id,
            task=ref.task,
            fps=_RATE_HZ,
            num_frames=opened.num_frames,
            cameras=opened.cameras,
            lowdim=lowdim,
            language=self._language(ref, lowdim, report),
            calibration=values.calibration,
            depth=_DepthAndLabels(opened, "depth"),
            labels=_DepthAndLabels(opened, "label"),
            success=values.success,
            action_fields=self._policy_actions(groups),
            proprioception_fields=self._policy_proprioception(lowdim),
            pose_groups=groups,
            findings=tuple(report.findings),
            extras={"source_episode": relative_episode_path(ref.path)},
        )

    def _language(
        self, ref: EpisodeRef, lowdim: Mapping[str, Array], report: Collector
    ) -> Mapping[str, Sequence[str]]:
        """Annotations of the task, else the episode's own instruction, else the task in words.

        Only what stands in for something else is a finding: an episode with an instruction is
        complete unless its task was to be annotated.
        """
        if ref.language:
            return ref.language
        own = lowdim.get(_INSTRUCTION)
        if own is not None and len(own) and str(own[0]):
            sentence = str(own[0])
            origin = "its own language_instruction"
        else:
            sentence = task_to_sentence(ref.task)
            origin = "the task name"
        if not sentence:
            message = "no instruction: no annotation, no language_instruction, no task in the path"
            report.add(SOURCE, "no_language", message)
            return {}
        if origin == "the task name" or self.config.language_annotations_path:
            message = f"task {ref.task!r} has no language annotation: each episode uses {origin}"
            report.add(SOURCE, "language_fallback", message)
        return {"original": [sentence]}

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
        report = Collector(rules.SPARTAN, strict=False, episode=ref.id)
        opened = rules.open_episode(ref.path / "processed", self.config, report)
        values = rules.read_values(opened, self.config, report)
        lint.EpisodeLint(opened, values, self.config.data_discard_keys, report).check()
        if deep:
            lint.check_members(opened, report)
        yield from report.findings
        if deep:
            yield from check_cameras(ref.id, opened.cameras)

    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]:
        yield from lint.check_siblings(list(self.discover(sources)), sources)

    def _complete_groups(self, fields: Collection[str]) -> tuple[PoseGroup, ...]:
        complete: list[PoseGroup] = []
        for group in self._groups:
            keys = (group.position_key, group.rotation_key)
            needed = {*keys, *(actual_field(key) or key for key in keys)}
            if needed <= set(fields):
                complete.append(group)
        return tuple(complete)

    def _policy_actions(self, groups: Sequence[PoseGroup]) -> tuple[str, ...]:
        """Action fields of a policy: left arm first, poses relative if possible. Source:
        formats/lbm-preprocessing 3.4.
        """
        relative: set[str] = set()
        for group in groups:
            relative.update((group.position_key, group.rotation_key))
        return tuple(name + SUFFIX if name in relative else name for name in self._ordered)

    def _policy_proprioception(self, lowdim: Collection[str]) -> tuple[str, ...]:
        measured = map(actual_field, self._ordered)
        return tuple(name for name in measured if name is not None and name in lowdim)


class _DepthAndLabels(Mapping[str, FrameSource]):
    """Depth or labels of the cameras that have them, read on first access."""

    def __init__(self, episode: rules.OpenedEpisode, kind: str) -> None:
        self._episode = episode
        self._kind = kind

    @cached_property
    def _sources(self) -> dict[str, FrameSource]:
        episode = self._episode
        archive = episode.archives[rules.OBSERVATIONS]
        names = {
            f"{camera_id}_{self._kind}": name for camera_id, name in episode.camera_ids.items()
        }
        archive.load_headers(names)
        sources: dict[str, FrameSource] = {}
        for key, name in names.items():
            if key in archive and archive.header(key).shape[:1] == (episode.num_frames,):
                sources[name] = archive.frames(key, channels=None)
        return sources

    def __getitem__(self, name: str) -> FrameSource:
        return self._sources[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def _missing_validation_episodes(
    excluded: Mapping[str, Collection[int]], refs: Sequence[EpisodeRef]
) -> Iterator[Finding]:
    """Findings for validation episodes that do not exist, for example due to a misspelled task."""
    present = {(ref.task, episode_number(ref.path)) for ref in refs}
    for task, numbers in excluded.items():
        missing = sorted(number for number in numbers if (task, number) not in present)
        if missing:
            message = f"validation episodes {missing} of task {task!r} are not in the source"
            yield rules.SPARTAN("validation_episode_missing", message)


def _remote_cameras(refs: Iterable[EpisodeRef]) -> Iterator[set[str]]:
    """Cameras in the metadata.yaml of each episode; empty if it is broken."""

    def names(ref: EpisodeRef) -> set[str]:
        try:
            report = Collector(rules.SPARTAN, strict=True)
            return set(rules.camera_names(ref.path / "processed" / rules.METADATA, report).values())
        except DataError:  # reported when the episode is read
            return set()

    return in_parallel(names, refs, _PARALLEL_READS)


def _published_order(field: str) -> tuple[int, int]:
    part = 0
    if "gripper" in field:
        part = 2
    elif field.endswith("rot_6d"):
        part = 1
    return (0 if "left" in field else 1, part)


def episode_folders(source: Path) -> list[Path]:
    """Folders episode_<N> with a `processed` folder, at or below `source`, in natural order.

    Includes folders episode_<N> without it beside others, which were not downloaded completely or
    cannot be listed; `read` reports them.
    """
    complete: set[Path] = set()
    numbered: set[Path] = set()
    for folder, children, _ in walk(source):
        if _EPISODE.match(folder.name) and "processed" in children:
            complete.add(folder)
            children.clear()
        numbered.update(folder / child for child in children if _EPISODE.match(child))
    beside = {folder.parent for folder in complete}
    complete.update(folder for folder in numbered if folder.parent in beside)
    return sorted(complete, key=natural_key)


def relative_episode_path(folder: Path) -> str:
    """Path of an episode below its task; its last three parts if the layout is another one."""
    parts = folder.parts
    known = "tasks" in parts[:-7] or "diffusion_spartan" in parts
    return "/".join(part for part in parts[-7 if known else -3 :] if part != "/")


def episode_number(folder: Path) -> int:
    """N of `episode_<N>`."""
    match = _EPISODE.match(folder.name)
    assert match is not None
    return int(match.group(1))


def episode_ref(folder: Path, source: Path, task: str | None) -> EpisodeRef:
    """Ref with task, station and timestamp from the published folder layout, if it is that one."""
    parts = folder.parts
    generic = ("sim", "bc", "teleop", "diffusion_spartan")
    id_parts: list[str] = []
    if "tasks" in parts[:-2]:
        first = len(parts) - parts[::-1].index("tasks")  # behind the last `tasks`
        id_parts = [part for part in parts[first:-1] if part not in generic]
    task_folder = id_parts[0] if id_parts else ""
    if not id_parts:
        id_parts = [part for part in parts[-3:-1] if part not in ("/", "diffusion_spartan")]
    identity = "_".join([*id_parts, folder.name])
    return EpisodeRef(
        id=re.sub(r"[^A-Za-z0-9_-]+", "-", identity),
        path=folder,
        source=str(source),
        task=task or task_folder,
    )
