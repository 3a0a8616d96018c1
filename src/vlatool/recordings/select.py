"""Chooses the episodes, cameras and fields of a source for a run."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import SerializeAsAny, field_validator

from vlatool.config.base import ConfigModel, option, required_field, unique_items
from vlatool.episode import Episode, EpisodeRef, Survey, listed_cameras
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding
from vlatool.jobs.job import InputState, digest_of, input_state
from vlatool.jobs.journal import Receipt
from vlatool.jobs.ownership import check_downloaded
from vlatool.plugins import FORMATS, did_you_mean
from vlatool.recordings import base
from vlatool.recordings.choice import chosen_numbers, select
from vlatool.recordings.field_summary import dimension_label
from vlatool.recordings.renaming import in_lower_case, read_with_names, renamed_survey, with_names
from vlatool.recordings.rules import SOURCE
from vlatool.report.text import few_text
from vlatool.storage.uri import is_missing, missing_error
from vlatool.transforms.names import NameMap

FRAMES_CUT = "frames_cut"  # reason of frames without an action or an image


class SelectionConfig(ConfigModel):
    """Options that choose sources, episodes and cameras."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Selection of episodes": (
            "episodes",
            "exclude",
            "max_episodes",
            "only_successful",
            "fail_on_nan",
        ),
        "Names": ("rename",),
        "Cameras": ("camera_names", "skip_episodes_missing_cameras"),
    }

    format: str = option("", "Format of your recordings; empty detects it.")
    sources: list[str] = required_field([], "Locations of your recordings.", affects_output=False)
    episodes: str | None = option(
        None,
        "Use only these episodes, such as 0:4,7; the end of a range is excluded. @DIR uses the "
        "episodes that `vlatool curate` keeps.",
    )
    exclude: str | None = option(None, "Leave these episodes out, written like --episodes.")
    max_episodes: int | None = option(None, "At most this many episodes; 0 or -1: all.", ge=-1)
    camera_names: list[str] | None = option(
        None, "Use only these cameras, in this order; null uses all, none leaves out all images."
    )
    skip_episodes_missing_cameras: bool = option(
        False,
        "Leave out episodes that lack a camera. Otherwise such an episode is kept without "
        "the camera, or fails if its data set declares the camera.",
    )
    only_successful: bool = option(
        False, "Leave out episodes that failed or that do not record their success."
    )
    fail_on_nan: bool = option(
        True, "Let an episode with NaN or infinity fail; false keeps such values."
    )
    rename: NameMap = option(
        NameMap(),
        "Give cameras and fields new names (NEW=OLD): cameras.wrist=wrist_left, "
        "fields.arm=state[0:7] for a part of a field, or cameras.*=images.* for many.",
    )
    source: SerializeAsAny[ConfigModel] = option(ConfigModel(), "Options of the format.")

    @field_validator("camera_names")
    @classmethod
    def _check_unique(cls, value: list[str] | None) -> Any:
        return value and unique_items(value)


@dataclass(frozen=True)
class EpisodeSelection:
    """Cameras, fields and conditions of the episodes of a run; small, as workers receive it."""

    cameras: tuple[str, ...]  # cameras to keep, in order
    fields: Mapping[str, int]  # map from field to its width, 0 for text
    skip_missing_cameras: bool  # leave out episodes that lack a camera
    only_successful: bool  # leave out episodes that failed or whose success is unknown
    finite: bool  # let episodes with NaN or infinity fail


@dataclass(frozen=True)
class DroppedEpisode:
    """An episode that is left out on purpose."""

    reason: str  # identifier of the reason; `preprocess` counts dropped episodes per reason
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class EpisodeTask:
    """Reads one episode, applies the selection and hands it to `work`; picklable."""

    format: str  # name of the dataset format
    config: ConfigModel  # keys of the format
    selection: EpisodeSelection  # cameras, fields and conditions
    work: Callable[[EpisodeRef, Episode], Receipt]  # writes the episode
    names: NameMap = field(default_factory=NameMap)  # new names, without globs

    def __call__(self, ref: EpisodeRef) -> Receipt:
        reader = with_names(FORMATS.get(self.format)(self.config), self.names)
        episode = apply_selection(reader.read(ref), self.selection)
        if isinstance(episode, DroppedEpisode):
            return Receipt(ref.id, dropped={episode.reason: 1}, findings=episode.findings)
        receipt = self.work(ref, episode)
        dropped = dict(receipt.dropped)
        if episode.cut_frames:
            dropped[FRAMES_CUT] = episode.cut_frames
        findings = (*episode.findings, *receipt.findings)
        return replace(receipt, findings=findings, dropped=dropped)


def count_frames(ref: EpisodeRef, episode: Episode) -> Receipt:
    """Returns a receipt for an episode that is only read, as `--dry-run` does."""
    return Receipt(ref.id, counts={"frames": episode.num_frames})


@dataclass(frozen=True)
class SelectedEpisodes:
    """The selected episodes of a run, and what they store."""

    refs: tuple[EpisodeRef, ...]  # episodes to read, in order
    # map from reason to number of episodes that are excluded on purpose
    excluded: Mapping[str, int]
    survey: Survey  # survey of the episodes, with the selected cameras only
    stored: Survey  # survey of the episodes, with everything that they store
    selection: EpisodeSelection  # cameras, fields and conditions for each episode
    findings: tuple[Finding, ...]  # findings on the sources as a whole
    available: int  # number of episodes in the sources
    names: NameMap  # new names, without globs
    lowered: Mapping[str, str]  # cameras whose name became lower case: new name to old one
    numbers: str | None  # numbers and ranges of `--episodes`; None: all


def select_episodes(
    reader: base.FormatReader,
    sources: Sequence[Path],
    config: SelectionConfig,
    required_cameras: Sequence[str] = (),
    *,
    lower_case: bool = False,
) -> SelectedEpisodes:
    """Selects the episodes of a run, and the cameras and fields that it uses.

    `required_cameras` are cameras that other options name; they must exist. `lower_case`: names of
    cameras with capital letters become lower case.

    Raises:
        DataError: No episode is left, a camera does not exist or has an unusable name, or the
            sources store different fields.
    """
    available, requested, numbers = _discover(reader, sources, config)
    held_out_counts = dict(Counter(ref.excluded for ref in requested if ref.excluded))
    refs = tuple(ref for ref in requested if not ref.excluded)
    if not refs:
        raise DataError(
            f"all {counted(len(requested), 'selected episode is', 'selected episodes are')} "
            f"excluded ({', '.join(held_out_counts)})",
            hint="select other episodes with --episodes, or drop the option that excludes them",
            code="data.no_episodes",
            details={"held_out": held_out_counts},
        )
    reader, survey, names = read_with_names(reader, refs, config.rename)
    _check_sources(reader, refs)
    stored = survey
    survey = _with_cameras(survey, config.camera_names, required_cameras)
    for camera in survey.cameras:
        problem = base.camera_name_problem(camera)
        if problem is not None:
            raise problem
    findings = list(reader.source_findings)
    written = NameMap()
    if lower_case:
        written = in_lower_case(written, list(survey.cameras))
        names = in_lower_case(names, list(survey.cameras))
        survey, stored = (renamed_survey(each, written) for each in (survey, stored))
        for new, old in written.cameras.items():
            message = f"camera {old!r} is written as {new!r}: loaders read lower-case names"
            findings.append(SOURCE("upper_case_camera", message, camera=old))
    selection = EpisodeSelection(
        cameras=tuple(survey.cameras),
        fields={name: info.width for name, info in survey.fields.items()},
        skip_missing_cameras=config.skip_episodes_missing_cameras,
        only_successful=config.only_successful,
        finite=config.fail_on_nan,
    )
    return SelectedEpisodes(
        refs=refs,
        excluded=held_out_counts,
        survey=survey,
        stored=stored,
        selection=selection,
        findings=tuple(findings),
        available=available,
        names=names,
        lowered=written.cameras,
        numbers=numbers,
    )


def _discover(
    reader: base.FormatReader, sources: Sequence[Path], config: SelectionConfig
) -> tuple[int, Sequence[EpisodeRef], str | None]:
    """Returns the number of episodes, the selected episodes (some excluded), and `--episodes`."""
    for source in sources:
        if is_missing(source):
            raise missing_error(source)
        check_downloaded(source)
    discovered = base.checked_refs(list(reader.discover(sources)))
    numbers = chosen_numbers(config.episodes, discovered)
    refs = select(discovered, numbers, config.exclude)
    if not refs:
        raise DataError(
            f"{', '.join(map(str, sources))}: no episodes here",
            hint=f"`vlatool inspect {sources[0]}` says what is there, whatever its format",
            code="data.no_episodes",
        )
    if config.max_episodes is not None and config.max_episodes > 0:
        refs = refs[: config.max_episodes]
    return len(discovered), refs, numbers


def _check_sources(reader: base.FormatReader, refs: Sequence[EpisodeRef]) -> None:
    """Raises one error if the sources come from unlike robots, instead of an error per episode.

    A single odd episode does not count as another robot: it fails alone.
    """
    by_source: dict[str, list[EpisodeRef]] = {}
    for ref in refs:
        by_source.setdefault(ref.source, []).append(ref)
    if len(by_source) < 2:
        return
    by_widths: dict[tuple[tuple[str, int], ...], list[str]] = {}  # widths of fields to sources
    episodes: Counter[tuple[tuple[str, int], ...]] = Counter()
    for source, members in by_source.items():
        with suppress(DataError):  # each episode raises it again
            fields = reader.survey(members[:1]).fields
            widths = tuple(sorted((name, spec.width) for name, spec in fields.items()))
            by_widths.setdefault(widths, []).append(source)
            episodes[widths] += len(members)
    most = episodes.most_common(2)
    if len(most) < 2 or most[1][1] < 2:
        return
    usual = dict(most[0][0])
    other = dict(most[1][0])
    usual_source = by_widths[most[0][0]][0]
    other_source = by_widths[most[1][0]][0]
    rows: list[str] = []
    for name in sorted({*usual, *other}):
        if usual.get(name) != other.get(name):
            width = base.width_text(usual.get(name))
            other_width = base.width_text(other.get(name))
            rows.append(f"{name!r} is {width} in {usual_source}, {other_width} in {other_source}")
    raise DataError(
        f"your sources store different fields: {few_text(rows)}",
        hint="preprocess each into its own --output and train on both: --data A --data B, with "
        "--data.pad-missing-fields true if one lacks a field. Or rename the fields so that they "
        "match: `vlatool inspect A B` lists the --rename options",
        code="data.mismatch",
        details={"sources": [usual_source, other_source]},
    )


def _with_cameras(
    survey: Survey, cameras: Sequence[str] | None, required_cameras: Sequence[str]
) -> Survey:
    known = list(survey.cameras)
    named = [] if cameras is None else listed_cameras(cameras)
    for name in (*named, *required_cameras):
        if name not in known:
            others = [camera for camera in known if camera not in named]
            raise DataError(
                f"your recordings have no camera {name!r}",
                hint=did_you_mean(name, others or known),
                code="data.unknown_field",
                details={"camera": name, "known": known},
            )
    if cameras is None:
        return survey
    return replace(survey, cameras={name: survey.cameras[name] for name in named})


def apply_selection(episode: Episode, selection: EpisodeSelection) -> Episode | DroppedEpisode:
    """Returns the episode with the selected cameras, and its fields in the order of all episodes.

    Returns a DroppedEpisode if an option says that such an episode is left out.

    Raises:
        DataError: Its fields differ from the other episodes, a declared camera is missing, or a
            value is NaN or infinite.
    """
    mismatch = base.field_mismatch(episode.id, base.field_specs(episode), selection.fields)
    if mismatch is not None:
        raise mismatch
    if selection.only_successful and not episode.success:
        reason = "unsuccessful_episode" if episode.success is False else "success_unknown"
        return DroppedEpisode(reason, episode.findings)
    cameras = {name: episode.cameras[name] for name in selection.cameras if name in episode.cameras}
    missing = [name for name in selection.cameras if name not in cameras]
    is_declared = any(name in episode.missing_cameras for name in missing)
    if missing and (selection.skip_missing_cameras or not (cameras or is_declared)):
        message = f"{episode.id}: left out because it has no camera {', '.join(missing)}"
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
    """Raises an error if a value of a field is NaN or infinite."""
    for name, values in episode.lowdim.items():
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            frame, column = np.argwhere(~np.isfinite(values))[0].tolist()
            label = dimension_label(name, column, values.shape[1], episode.dimension_names)
            raise DataError(
                f"{episode.id}: {label} is NaN or infinite at frame {frame}",
                hint="leave the episode out with --exclude, or keep such values: --no-fail-on-nan",
                code="data.not_finite",
                details={"finding": "not_finite", "field": name, "frame": frame},
            )


def episode_state(ref: EpisodeRef) -> InputState:
    """Returns the state of the files and metadata of an episode, to see later if they changed."""
    metadata = [ref.task, {kind: list(texts) for kind, texts in ref.language.items()}]
    if not ref.listing:
        return input_state((ref.path, *ref.files), metadata)
    shared = _shared_state(ref.path, ref.listing)
    sizes = digest_of([shared.sizes, metadata])
    return InputState(digest_of([shared.digest, metadata]), sizes, shared.changed_ns)


@lru_cache(maxsize=32)
def _shared_state(path: Path, listing: int) -> InputState:
    """State of a folder of many episodes when its first one was read: a later change counts as one
    in the next run.
    """
    del listing
    return input_state([path])


def reader_section(config: SelectionConfig) -> ConfigModel:
    """Returns the options of the format; its defaults if the config has none."""
    config_type = FORMATS.get(config.format).Config
    return config.source if isinstance(config.source, config_type) else config_type()
