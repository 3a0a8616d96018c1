"""Which episodes of a source are used, and what of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, Survey
from vlatool.errors import DataError
from vlatool.findings import Family, Finding, Kind
from vlatool.jobs.journal import Receipt
from vlatool.plugins import FORMATS, did_you_mean
from vlatool.sources.base import FormatReader
from vlatool.sources.order import checked_ids, select

CHOICE = Family(
    "choice",
    {
        "upper_case_camera": Kind("warning", "The name of a camera has capitals."),
        "option_without_effect": Kind("warning", "An option was given that does nothing."),
        "episode_missing_camera": Kind("warning", "An episode was dropped: it lacks a camera."),
    },
)


@dataclass(frozen=True)
class ChosenRefs:
    """Episodes to work on.

    Attributes:
        refs: In order.
        held_out: Reason to number of episodes that are left out on purpose.
    """

    refs: tuple[EpisodeRef, ...]
    held_out: Mapping[str, int]


@dataclass(frozen=True)
class EpisodeChoice:
    """What every episode must have, and what of it is used.

    Attributes:
        cameras: Cameras to keep, in order.
        fields: Width of each field, 0 for text.
        skip_missing_cameras: Drop an episode that lacks one instead of keeping it without.
        only_successful: Drop an episode that failed, or does not say.
        finite: Refuse an episode with numbers that are none.
    """

    cameras: tuple[str, ...]
    fields: Mapping[str, int]
    skip_missing_cameras: bool = False
    only_successful: bool = False
    finite: bool = True


@dataclass(frozen=True)
class Dropped:
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
    choice: EpisodeChoice
    work: Callable[[EpisodeRef, Episode], Receipt]

    def __call__(self, ref: EpisodeRef) -> Receipt:
        """The receipt of the episode.

        Raises:
            DataError: The episode is broken or does not fit the others.
        """
        reader: FormatReader = FORMATS.get(self.format)(self.config)
        found = choose(reader.read(ref), self.choice)
        if isinstance(found, Dropped):
            return Receipt(ref.id, dropped={found.reason: 1}, findings=found.findings)
        receipt = self.work(ref, found)
        return replace(receipt, findings=(*found.findings, *receipt.findings))


def chosen_refs(
    reader: FormatReader, sources: Sequence[Path], episodes: str | None, limit: int | None
) -> ChosenRefs:
    """The episodes that a run works on.

    Args:
        reader: Finds them.
        sources: Where.
        episodes: Such as `0:4,7`; None for all.
        limit: Take at most so many; None, 0 or less for all.

    Raises:
        DataError: A source does not exist, or no episode is left.
    """
    for source in sources:
        if not source.exists():
            raise DataError(
                f"{source}: does not exist",
                hint="check the path of the source",
                code="data.no_source",
                details={"source": str(source)},
            )
    found = select(checked_ids(list(reader.discover(sources))), episodes)
    if not found:
        raise DataError(
            f"{', '.join(map(str, sources))}: no episode found",
            hint="is this data of the format? `vlatool inspect` says what it is",
            code="data.no_episodes",
        )
    taken = found if limit is None or limit <= 0 else found[:limit]
    held_out: dict[str, int] = {}
    for ref in taken:
        if ref.held_out:
            held_out[ref.held_out] = held_out.get(ref.held_out, 0) + 1
    refs = tuple(ref for ref in taken if not ref.held_out)
    if not refs:
        raise DataError(
            f"all {len(taken)} episodes are held out: {', '.join(held_out)}",
            hint="leave some of them in",
            code="data.no_episodes",
            details={"held_out": held_out},
        )
    return ChosenRefs(refs, held_out)


def chosen_survey(
    reader: FormatReader,
    refs: Sequence[EpisodeRef],
    cameras: Sequence[str] | None,
    named: Sequence[str] = (),
) -> Survey:
    """What the episodes have between them, with the cameras that are asked for.

    Args:
        reader: Looks at them.
        refs: The episodes.
        cameras: In this order; None for all.
        named: Cameras that options name as well.

    Raises:
        DataError: No episode can be read, or none has a camera that is asked for.
    """
    survey = reader.survey(refs) if hasattr(reader, "survey") else _interim(reader, refs)
    known = list(survey.cameras)
    for name in (*(cameras or ()), *named):
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


def choose(episode: Episode, choice: EpisodeChoice) -> Episode | Dropped:
    """The episode with the chosen cameras and its fields in the common order, or why not.

    Raises:
        DataError: Its fields are not those of the others, or a number is none.
    """
    _check_fields(episode, choice.fields)
    if choice.only_successful and not episode.success:
        reason = "unsuccessful_episode" if episode.success is False else "success_unknown"
        return Dropped(reason, episode.findings)
    cameras = {name: episode.cameras[name] for name in choice.cameras if name in episode.cameras}
    missing = [name for name in choice.cameras if name not in cameras]
    if missing and (choice.skip_missing_cameras or not cameras):
        message = f"{episode.id}: dropped, lacks {', '.join(missing)}"
        finding = CHOICE("episode_missing_camera", message, episode=episode.id)
        return Dropped("episode_missing_camera", (*episode.findings, finding))
    if choice.finite:
        check_finite(episode)
    lowdim = {name: episode.lowdim[name] for name in choice.fields}
    return replace(episode, cameras=cameras, lowdim=lowdim)


def check_finite(episode: Episode) -> None:
    """Makes sure that every number is one.

    Raises:
        DataError: A field holds NaN or infinity; names field and first frame.
    """
    for name, values in episode.lowdim.items():
        if values.dtype.kind in "fc" and not np.isfinite(values).all():
            frame = int(np.argwhere(~np.isfinite(values))[0][0])
            raise DataError(
                f"{episode.id}: field {name!r} is not finite at frame {frame}",
                hint="repair the recording, or leave the field out",
                code="data.not_finite",
                details={"field": name, "frame": frame},
            )


def _check_fields(episode: Episode, fields: Mapping[str, int]) -> None:
    own = {
        name: 0 if values.dtype.kind == "U" else int(np.prod(values.shape[1:]))
        for name, values in episode.lowdim.items()
    }
    for name in [*fields, *own]:
        if own.get(name) != fields.get(name):
            raise DataError(
                f"{episode.id}: field {name!r} is {_width(own.get(name))}, "
                f"in the other episodes {_width(fields.get(name))}",
                hint="episodes of one run must have the same fields; discard the field or "
                "preprocess the episodes apart",
                code="data.schema_mismatch",
                details={"field": name},
            )


def _width(width: int | None) -> str:
    if width is None:
        return "absent"
    return "text" if width == 0 else f"{width} wide"


def _interim(reader, refs):
    from vlatool.episode import FieldFacts

    for ref in refs:
        try:
            e = reader.read(ref)
        except DataError:
            continue
        cams = {n: s.size for n, s in e.cameras.items()}
        fields = {
            n: FieldFacts(0 if v.dtype.kind == "U" else int(np.prod(v.shape[1:])))
            for n, v in e.lowdim.items()
        }
        return Survey(
            len(refs),
            cams,
            fields,
            e.num_frames * len(refs),
            e.fps,
            e.action_fields,
            e.proprioception_fields,
            e.pose_groups,
        )
    reader.read(refs[0])
