"""Which episodes of a source are used, and what of them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, SerializeAsAny, field_validator

from vlatool.artifacts.dimensions import dimension_label
from vlatool.config.base import ConfigModel, required_field, unique_items
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.jobs.inputs import InputState, input_state
from vlatool.jobs.journal import Receipt
from vlatool.plugins import FORMATS, did_you_mean
from vlatool.sources.base import FormatReader, camera_name_problem, field_mismatch, field_specs
from vlatool.sources.order import checked_refs, select
from vlatool.sources.rules import SOURCE
from vlatool.storage.uri import is_missing


class SelectionConfig(ConfigModel):
    """Which episodes and cameras are taken, and from where."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Choice of episodes": (
            "episodes",
            "exclude",
            "max_episodes",
            "only_successful",
            "fail_on_nan",
        ),
        "Cameras": ("camera_names", "skip_episodes_missing_cameras"),
    }

    format: str = Field(
        default="", description="Name of the dataset format; empty for the one that finds episodes."
    )
    sources: list[str] = required_field([], "Locations to search.")
    episodes: str | None = Field(
        default=None, description="Episodes to take, such as 0:4,7; the end of a range is excluded."
    )
    exclude: str | None = Field(
        default=None, description="Episodes to leave out, written like --episodes."
    )
    max_episodes: int | None = Field(
        default=None, ge=-1, description="Take at most so many episodes; 0 or -1 for all."
    )
    camera_names: list[str] | None = Field(
        default=None, description="Cameras, in order; null for all."
    )
    skip_episodes_missing_cameras: bool = Field(
        default=False,
        description="Drop an episode that lacks a camera, instead of keeping it without or, where "
        "the data set declares the camera, reporting it as broken.",
    )
    only_successful: bool = Field(
        default=False, description="Drop episodes that failed or do not say whether they did."
    )
    fail_on_nan: bool = Field(
        default=True, description="An episode with NaN or infinity fails; else they are kept."
    )
    source: SerializeAsAny[ConfigModel] = Field(
        default=ConfigModel(), description="Keys of the format's reader."
    )

    @field_validator("camera_names")
    @classmethod
    def _check_unique(cls, value: list[str] | None) -> Any:
        return value and unique_items(value)


@dataclass(frozen=True)
class EpisodeSelection:
    """What every episode must have, and what of it is used; small, because workers get it.

    Attributes:
        cameras: Cameras to keep, in order.
        fields: Width of each field, 0 for text.
        skip_missing_cameras: Drop an episode that lacks one.
        only_successful: Drop an episode that failed, or does not say.
        finite: Refuse an episode with numbers that are none.
    """

    cameras: tuple[str, ...]
    fields: Mapping[str, int]
    skip_missing_cameras: bool
    only_successful: bool
    finite: bool

    def digest_form(self) -> tuple[str, Mapping[str, Any]]:
        """Name and fields that plan digests hold; outputs on disk depend on them."""
        return "EpisodeChoice", {
            "cameras": self.cameras,
            "fields": self.fields,
            "skip_missing_cameras": self.skip_missing_cameras,
            "only_successful": self.only_successful,
            "finite": self.finite,
        }


@dataclass(frozen=True)
class DroppedEpisode:
    """An episode that is left out on purpose.

    Attributes:
        reason: One word, counted.
        findings: What there is to say about it.
    """

    reason: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class EpisodeTask:
    """Reads one episode and hands what is chosen of it on; picklable.

    Attributes:
        format: Name of the dataset format.
        config: Keys of its reader.
        choice: What is used.
        work: Takes the episode.
    """

    format: str
    config: ConfigModel
    selection: EpisodeSelection
    work: Callable[[EpisodeRef, Episode], Receipt]

    def __call__(self, ref: EpisodeRef) -> Receipt:
        """The receipt of the episode.

        Raises:
            DataError: The episode is broken or does not fit the others.
        """
        reader: FormatReader = FORMATS.get(self.format)(self.config)
        episode = apply_selection(reader.read(ref), self.selection)
        if isinstance(episode, DroppedEpisode):
            return Receipt(ref.id, dropped={episode.reason: 1}, findings=episode.findings)
        receipt = self.work(ref, episode)
        return replace(receipt, findings=(*episode.findings, *receipt.findings))


@dataclass(frozen=True)
class SelectedEpisodes:
    """Episodes to work on.

    Attributes:
        refs: In order.
        held_out: Reason to number of episodes that are left out on purpose.
        survey: What they have between them; its cameras are the chosen ones.
        choice: What is used of each.
        findings: What there is to say of the sources as a whole.
    """

    refs: tuple[EpisodeRef, ...]
    excluded: Mapping[str, int]
    survey: Survey
    selection: EpisodeSelection
    findings: tuple[Finding, ...]


def select_episodes(
    reader: FormatReader,
    sources: Sequence[Path],
    config: SelectionConfig,
    required_cameras: Sequence[str] = (),
) -> SelectedEpisodes:
    """The episodes that a run works on, and what of them it uses.

    Cameras that other options name are given as `named`: they must be there.

    Raises:
        DataError: A source does not exist, no episode is left or can be read, none has a camera
            that is asked for, or one has a name that no file can have.
    """
    discovered = _discover(reader, sources, config)
    held_out_counts = dict(Counter(ref.excluded for ref in discovered if ref.excluded))
    refs = tuple(ref for ref in discovered if not ref.excluded)
    if not refs:
        raise DataError(
            f"all {len(discovered)} episodes are held out: {', '.join(held_out_counts)}",
            hint="leave some of them in",
            code="data.no_episodes",
            details={"held_out": held_out_counts},
        )
    survey = _survey(reader, refs, config.camera_names, required_cameras)
    for problem in filter(None, map(camera_name_problem, survey.cameras)):
        raise problem
    fields = {name: info.width for name, info in survey.fields.items()}
    options = (config.skip_episodes_missing_cameras, config.only_successful, config.fail_on_nan)
    selection = EpisodeSelection(tuple(survey.cameras), fields, *options)
    capitals = (
        SOURCE("upper_case_camera", f"camera {name!r}: other loaders want lower case", camera=name)
        for name in survey.cameras
        if name != name.lower()
    )
    findings = (*getattr(reader, "source_findings", ()), *capitals)
    return SelectedEpisodes(refs, held_out_counts, survey, selection, findings)


def _discover(
    reader: FormatReader, sources: Sequence[Path], config: SelectionConfig
) -> Sequence[EpisodeRef]:
    """The episodes that are asked for, held-out ones included."""
    for source in sources:
        if is_missing(source):
            raise DataError(
                f"{source}: does not exist",
                hint="check the path of the source",
                code="data.no_source",
                details={"path": str(source)},
            )
    refs = select(checked_refs(list(reader.discover(sources))), config.episodes, config.exclude)
    if not refs:
        raise DataError(
            f"{', '.join(map(str, sources))}: no episode found",
            hint="is this data of the format? `vlatool inspect` says what it is",
            code="data.no_episodes",
        )
    limit = config.max_episodes
    return refs if limit is None or limit <= 0 else refs[:limit]


def _survey(
    reader: FormatReader,
    refs: Sequence[EpisodeRef],
    cameras: Sequence[str] | None,
    required_cameras: Sequence[str],
) -> Survey:
    """What the episodes have between them, with the cameras that are asked for."""
    survey = reader.survey(refs)
    known = list(survey.cameras)
    for name in (*(cameras or ()), *required_cameras):
        if name not in known:
            raise DataError(
                f"camera {name!r} is not in the data; there are: {', '.join(known)}",
                hint=did_you_mean(name, known),
                code="data.unknown_camera",
                details={"camera": name, "known": known},
            )
    if cameras is None:
        return survey
    return replace(survey, cameras={name: survey.cameras[name] for name in cameras})


def apply_selection(episode: Episode, selection: EpisodeSelection) -> Episode | DroppedEpisode:
    """The episode with the chosen cameras and its fields in the common order, or why not.

    Raises:
        DataError: Its fields are not those of the others, a chosen camera of its data set is
            missing, or a number is none.
    """
    mismatch = field_mismatch(episode.id, field_specs(episode), selection.fields)
    if mismatch is not None:
        raise mismatch
    if selection.only_successful and not episode.success:
        reason = "unsuccessful_episode" if episode.success is False else "success_unknown"
        return DroppedEpisode(reason, episode.findings)
    cameras = {name: episode.cameras[name] for name in selection.cameras if name in episode.cameras}
    missing = [name for name in selection.cameras if name not in cameras]
    is_declared = any(name in episode.missing_cameras for name in missing)
    if missing and (selection.skip_missing_cameras or not (cameras or is_declared)):
        message = f"{episode.id}: dropped, lacks {', '.join(missing)}"
        finding = SOURCE("episode_missing_camera", message, episode=episode.id)
        return DroppedEpisode("episode_missing_camera", (*episode.findings, finding))
    for name in missing:
        if name in episode.missing_cameras:
            raise episode.missing_cameras[name]
    if selection.finite:
        check_finite(episode)
    lowdim = {name: episode.lowdim[name] for name in selection.fields}
    return replace(episode, cameras=cameras, lowdim=lowdim)


def check_finite(episode: Episode) -> None:
    """Makes sure that every number is one.

    Raises:
        DataError: A field holds NaN or infinity; names field and first frame.
    """
    for name, values in episode.lowdim.items():
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            frame, column = np.argwhere(~np.isfinite(values))[0].tolist()
            label = dimension_label(name, column, values.shape[1], episode.dimension_names)
            raise DataError(
                f"{episode.id}: {label} is not finite at frame {frame}",
                hint="repair the recording, or leave the field out",
                code="data.not_finite",
                details={"field": name, "frame": frame},
            )


def episode_state(ref: EpisodeRef) -> InputState:
    """The files of an episode, and what is known of it beforehand."""
    metadata = [ref.task, {kind: list(texts) for kind, texts in ref.language.items()}]
    return input_state((ref.path, *ref.files), metadata)


def reader_section(config: SelectionConfig) -> ConfigModel:
    """The reader's keys; the defaults where the config was built without them."""
    config_type = FORMATS.get(config.format).Config
    return config.source if isinstance(config.source, config_type) else config_type()
