"""Raw Diffusion-Spartan episodes. Source: formats/spartan 1, 2, 9."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import repeat
from pathlib import Path

from vlatool.episode import Array, Episode, EpisodeRef, FrameSource, PoseGroup, Survey
from vlatool.errors import DataError, VlatoolError
from vlatool.findings import Collector, Finding
from vlatool.sources.base import merge_surveys, survey_each, survey_episode
from vlatool.sources.order import natural_key, unique_refs
from vlatool.sources.rules import SOURCE, check_cameras
from vlatool.sources.spartan.config import (
    SpartanConfig,
    language_annotations,
    task_to_sentence,
    validation_episodes,
    with_action_file,
)
from vlatool.sources.spartan.findings import SPARTAN
from vlatool.sources.spartan.lint import EpisodeLint, check_members, check_siblings
from vlatool.sources.spartan.rules import (
    METADATA,
    OBSERVATIONS,
    OpenedEpisode,
    camera_names,
    open_episode,
    read_values,
)
from vlatool.storage.background import in_parallel
from vlatool.storage.tree import walk
from vlatool.storage.uri import is_remote
from vlatool.transforms.relative import SUFFIX, actual_field

_RATE_HZ = 10.0
_INSTRUCTION = "language_instruction"
_LOOKS_AT_ONCE = 8
_EPISODE = re.compile(r"^episode_(\d+)$")


class SpartanReader:
    """Reads raw Spartan episodes; any folder above them can be the source."""

    Config = SpartanConfig
    findings = SPARTAN

    def __init__(self, config: SpartanConfig) -> None:
        self.config, self._groups = with_action_file(config)
        self._ordered = sorted(self.config.action_key_fields, key=_published_order)
        self.source_findings: list[Finding] = []

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Episodes below the sources in natural order.

        Raises:
            DataError: A source is missing or has no episode below it.
        """
        annotations = language_annotations(self.config.language_annotations_path)
        held_out = validation_episodes(self.config.validation_episodes_path)
        found: list[EpisodeRef] = []
        for source in sources:
            folders = episode_folders(source)
            if not folders:
                raise DataError(
                    f"{source}: no Spartan episode here or below",
                    hint="looked for folders episode_<N> that contain processed/",
                    code="data.no_episodes",
                    details={"path": str(source)},
                )
            for folder in folders:
                ref = episode_ref(folder, source, self.config.task)
                held = episode_number(folder) in held_out.get(ref.task, ())
                reason = "validation_episode" if held else ""
                language = annotations.get(ref.task, {})
                found.append(replace(ref, language=language, excluded=reason))
        self.source_findings = list(_unmatched(held_out, found))
        yield from unique_refs(found)

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """What files and headers tell.

        In S3, where each look at an episode is several requests, the first readable episode gives
        the fields, and of the others metadata.yaml alone is read, unless it names a camera that
        none had so far; the number of frames stays unknown.

        Raises:
            DataError: No episode can be read; the first one's reason.
        """
        reasons: list[VlatoolError] = []
        survey = merge_surveys(self._looks(iter(refs), reasons), reasons)
        groups = self._complete_groups(survey.fields)
        return replace(
            survey,
            action_fields=self._policy_actions(groups),
            proprioception_fields=self._policy_proprioception(survey.fields),
            pose_groups=groups,
        )

    def _looks(self, refs: Iterator[EpisodeRef], reasons: list[VlatoolError]) -> Iterator[Survey]:
        first = next(survey_each(lambda ref: survey_episode(self.read(ref)), refs, reasons), None)
        if first is None:
            return
        yield first
        others = list(refs)  # those after it
        known, named = set(first.cameras), repeat(None)
        if others and is_remote(others[0].path):
            named = _remote_cameras(others)
        for ref, names in zip(others, named, strict=False):
            if names is not None and names <= known:
                yield replace(first, cameras={}, frames=None)
                continue
            for look in survey_each(
                self._look, [ref], []
            ):  # what is broken is told when it is read
                known |= look.cameras.keys()
                yield look

    def _look(self, ref: EpisodeRef) -> Survey:
        """What the headers of an episode tell."""
        report = Collector(SPARTAN, strict=True)
        recording = open_episode(ref.path / "processed", self.config, report)
        sizes = {name: camera.size for name, camera in recording.cameras.items()}
        fields = recording.field_facts(self.config)
        return Survey(1, sizes, fields, recording.num_frames, _RATE_HZ)

    def read(self, ref: EpisodeRef) -> Episode:
        """One episode; arrays nobody needs are not inflated.

        Raises:
            DataError: A file or array is missing, broken, or does not fit the others.
        """
        report = Collector(SPARTAN, strict=True, episode=ref.id)
        recording = open_episode(ref.path / "processed", self.config, report)
        values = read_values(recording, self.config, report)
        lowdim = {**values.observed, **values.actions}
        groups = self._complete_groups(lowdim)
        assert recording.num_frames is not None, "a strict walk has raised"
        return Episode(
            id=ref.id,
            task=ref.task,
            fps=_RATE_HZ,
            num_frames=recording.num_frames,
            cameras=recording.cameras,
            lowdim=lowdim,
            language=_language(ref, lowdim, report),
            calibration=values.calibration,
            depth=_DepthAndLabels(recording, "depth"),
            labels=_DepthAndLabels(recording, "label"),
            success=values.success,
            action_fields=self._policy_actions(groups),
            proprioception_fields=self._policy_proprioception(lowdim),
            pose_groups=groups,
            findings=tuple(report.findings),
            extras={"source_episode": episode_place(ref.path)},
        )

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
        """Every defect of an episode; with `deep` every frame is decoded."""
        report = Collector(SPARTAN, strict=False, episode=ref.id)
        recording = open_episode(ref.path / "processed", self.config, report)
        values = read_values(recording, self.config, report)
        EpisodeLint(recording, values, self.config.data_discard_keys, report).check()
        if deep:
            check_members(recording, report)
        yield from report.findings
        if deep:
            yield from check_cameras(ref.id, recording.cameras)

    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]:
        """Defects that concern more than one episode."""
        yield from check_siblings(list(self.discover(sources)), sources)

    def _complete_groups(self, fields: Collection[str]) -> tuple[PoseGroup, ...]:
        """Pose groups of which every field is there, the measured counterparts included."""
        return tuple(
            group
            for group in self._groups
            if all(
                key in fields and (actual_field(key) or key) in fields
                for key in (group.position_key, group.rotation_key)
            )
        )

    def _policy_actions(self, groups: Sequence[PoseGroup]) -> tuple[str, ...]:
        """Left arm first, poses relative where they can be. Source: formats/lbm-preprocessing 3.4."""
        relative = {key for group in groups for key in (group.position_key, group.rotation_key)}
        return tuple(name + SUFFIX if name in relative else name for name in self._ordered)

    def _policy_proprioception(self, lowdim: Collection[str]) -> tuple[str, ...]:
        """The measured counterpart of every action field."""
        measured = map(actual_field, self._ordered)
        return tuple(name for name in measured if name is not None and name in lowdim)


class _DepthAndLabels(Mapping[str, FrameSource]):
    """Depth or labels of the cameras that have them; looked for only when they are asked for."""

    def __init__(self, recording: OpenedEpisode, kind: str) -> None:
        self._recording = recording
        self._kind = kind

    @cached_property
    def _found(self) -> dict[str, FrameSource]:
        archive = self._recording.archives[OBSERVATIONS]
        keys = {name: f"{one}_{self._kind}" for one, name in self._recording.camera_ids.items()}
        archive.load_headers(keys.values())
        return {
            name: archive.frames(key, channels=None)
            for name, key in keys.items()
            if key in archive and archive.header(key).shape[:1] == (self._recording.num_frames,)
        }

    def __getitem__(self, name: str) -> FrameSource:
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _unmatched(
    held_out: Mapping[str, Collection[int]], refs: Sequence[EpisodeRef]
) -> Iterator[Finding]:
    """A misspelt task would let validation episodes into the training data."""
    there = {(ref.task, episode_number(ref.path)) for ref in refs}
    for task, numbers in held_out.items():
        missing = sorted(number for number in numbers if (task, number) not in there)
        if missing:
            message = f"validation episodes {missing} of task {task!r} are not in the source"
            yield SPARTAN("validation_episode_missing", message)


def _remote_cameras(refs: Iterable[EpisodeRef]) -> Iterator[set[str]]:
    """The cameras that each episode's metadata.yaml names; none where it is broken."""

    def names(ref: EpisodeRef) -> set[str]:
        try:
            report = Collector(SPARTAN, strict=True)
            return set(camera_names(ref.path / "processed" / METADATA, report).values())
        except DataError:  # told when the episode is read
            return set()

    return in_parallel(names, refs, _LOOKS_AT_ONCE)


def _language(
    ref: EpisodeRef, lowdim: Mapping[str, Array], report: Collector
) -> Mapping[str, Sequence[str]]:
    """Annotations of the task, else the episode's own sentence, else the task in words."""
    if ref.language:
        return ref.language
    if _INSTRUCTION in lowdim and len(lowdim[_INSTRUCTION]) and str(lowdim[_INSTRUCTION][0]):
        sentence, origin = str(lowdim[_INSTRUCTION][0]), "its own language_instruction"
    else:
        sentence, origin = task_to_sentence(ref.task), "the task's name in words"
    if not sentence:
        message = "no language: no annotation, no language_instruction, no task in the path"
        report.add(SOURCE, "no_language", message)
        return {}
    message = f"task {ref.task!r} has no language annotation: each episode uses {origin}"
    report.add(SOURCE, "language_fallback", message)
    return {"original": [sentence]}


def _published_order(field: str) -> tuple[int, int]:
    """Left before right, position before rotation before gripper."""
    part = 2 if "gripper" in field else (1 if field.endswith("rot_6d") else 0)
    return (0 if "left" in field else 1, part)


def episode_folders(source: Path) -> list[Path]:
    """Folders episode_<N> with a `processed` folder, at or below `source`, naturally sorted.

    One without beside them was not downloaded whole, or cannot be listed; reading it will tell.
    """
    found: set[Path] = set()
    named: set[Path] = set()
    for folder, children, _ in walk(source):
        if _EPISODE.match(folder.name) and "processed" in children:
            found.add(folder)
            children.clear()
        named.update(folder / child for child in children if _EPISODE.match(child))
    beside = {folder.parent for folder in found}
    found.update(folder for folder in named if folder.parent in beside)
    return sorted(found, key=natural_key)


def episode_place(folder: Path) -> str:
    """Where an episode is below its task; its last folders where the layout is another one."""
    parts = folder.parts
    known = "tasks" in parts[:-7] or "diffusion_spartan" in parts
    return "/".join(part for part in parts[-7 if known else -3 :] if part != "/")


def episode_number(folder: Path) -> int:
    """N of `episode_<N>`."""
    match = _EPISODE.match(folder.name)
    assert match is not None
    return int(match.group(1))


def episode_ref(folder: Path, source: Path, task: str | None) -> EpisodeRef:
    """Task, station and time stamp are read from the published folder layout where it is kept."""
    parts = folder.parts
    named: list[str] = []
    if "tasks" in parts[:-2]:
        below = parts[len(parts) - 1 - parts[::-1].index("tasks") + 1 : -1]
        named = [part for part in below if part not in ("sim", "bc", "teleop", "diffusion_spartan")]
    found = named[0] if named else ""
    if not named:
        named = [part for part in parts[-3:-1] if part not in ("/", "diffusion_spartan")]
    identity = "_".join([*named, folder.name])
    return EpisodeRef(
        id=re.sub(r"[^A-Za-z0-9_-]+", "-", identity),
        path=folder,
        source=str(source),
        task=task or found,
    )
