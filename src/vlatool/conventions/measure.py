"""Conventions of the actions of raw episodes, measured on some of them."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from vlatool.conventions.file import (
    HEADER,
    Convention,
    Conventions,
    conventions_rows,
    meaning,
    sentence,
)
from vlatool.conventions.fit import Fit, PoseColumns, Tracks, rotation_residual
from vlatool.conventions.groups import Column, Group, find_groups
from vlatool.episode import Array, Declaration, Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes, warning
from vlatool.pages import layout
from vlatool.pages.charts import Axis, FieldValues, field_charts
from vlatool.transforms.relative import SUFFIX, reference_keys

_MOST_EPISODES = 40
_MOST_ROWS = 8000
_FEWEST_FRAMES = 20  # of an episode
_WIDEST = 64  # a field of more dimensions is no state of a robot
# A contradiction is clear from this ratio of residuals on, and with so many rows and episodes.
_CLEAR_RATIO = 10
_CLEAR_ROWS = 200
_CLEAR_EPISODES = 3
CONVENTION = FindingCodes(
    "conventions",
    contradiction=warning(
        "A declaration of what actions are contradicts the recorded states.",
        "correct the declaration, or pass --trust-declared true",
    ),
    relative_twice=warning(
        "Actions are made relative to the measured pose, and are differences already.",
        "take the fields without the suffix _relative",
    ),
)
_RATE = 0.1  # share by which a scale may differ from the rate
_EXACT = 0.01  # residual of a copy
_DRAWN_ROWS = 200
_DRAWN = 3
_LINES = ("recorded", "predicted")
_NO_STATES = ("action", "reward", "discount", "timestamp", "embedding")


class SampledEpisodes:
    """Parts of some episodes of a source, evenly chosen; those that cannot be read are left out."""

    def __init__(self, total: int) -> None:
        self.total = total  # number of episodes of the source
        self.chosen = layout.evenly_spaced(total, _MOST_EPISODES)
        self._episodes: list[Episode] = []

    def add(self, number: int, episode: Episode) -> None:
        """Adds a part of episode `number` if it was chosen; of later parts for later episodes."""
        if number in self.chosen:
            quota = max(_MOST_ROWS // len(self.chosen), _FEWEST_FRAMES)
            first = int(max(episode.num_frames - quota, 0) * number / self.total)
            rows = slice(first, first + quota)
            lowdim = {
                name: np.array(values[rows])
                for name, values in episode.lowdim.items()
                if _is_numeric(values)
            }
            self._episodes.append(
                replace(episode, lowdim=lowdim, cameras={}, depth={}, labels={}, calibration={})
            )

    def fits(self) -> "ConventionFits | None":
        """Conventions of the episodes; None without any actions."""
        return fit_conventions(self._episodes, self.total) if self._episodes else None


def fits_of(
    read: Callable[[EpisodeRef], Episode],
    refs: Sequence[EpisodeRef],
    actions: Sequence[str] = (),  # further action fields
    stored: Callable[[Episode], Episode] | None = None,  # the episode with the fields to measure
) -> "ConventionFits | None":
    """Conventions of some of the episodes, which are read for it."""
    sample = SampledEpisodes(len(refs))
    for number in sample.chosen:
        with suppress(DataError):  # of an episode that is reported elsewhere
            episode = read(refs[number])
            episode = episode if stored is None else stored(episode)
            fields = (*episode.action_fields, *actions)
            sample.add(number, replace(episode, action_fields=fields))
    return sample.fits()


@dataclass(frozen=True)
class ConventionFits:
    """Conventions, and the fits behind them, one group for each."""

    conventions: Conventions
    groups: Sequence[Group]
    tracks: Tracks
    declared: Sequence[Declaration] = ()  # by the data
    fps: float = 0.0  # 0: unknown

    def section(self) -> layout.Section:
        """Table of the conventions, and a chart with the best fit of each group."""
        rows = conventions_rows(self.conventions)
        pairs = zip(self.groups, self.conventions.groups, strict=True)
        charts = [_chart(convention, group) for group, convention in pairs if group.is_determined]
        text = f"<p>{layout.escape(sentence(self.conventions))}</p>"
        text += f'<p class="quiet">by {self.conventions.sample_text}</p>'
        return layout.Section("Conventions", text + layout.table(HEADER, rows) + "".join(charts))

    def conflicts(self, typed: Sequence[Declaration] = ()) -> Iterator["Contradiction"]:
        """Declarations of the data, and typed ones, that the recorded states contradict."""
        for declaration in (*self.declared, *typed):
            for group, convention in zip(self.groups, self.conventions.groups, strict=True):
                is_declared = (
                    convention.field == declaration.field
                    and declaration.first <= convention.last
                    and convention.first <= declaration.last
                )
                if is_declared and group.is_determined:
                    yield from self._conflicts(declaration, group, convention)

    def relative_twice(self, actions: Collection[str]) -> Iterator[Finding]:
        """Differences whose relative fields are among the actions of an output."""
        for group in self.conventions.groups:
            if group.relation == ("delta",) and group.field + SUFFIX in actions:
                message = (
                    f"{group.field}{SUFFIX} is computed from {group.name}, which the recorded "
                    f"states say is {meaning(group)} (residual {group.residual:.3g})"
                )
                yield CONVENTION("relative_twice", message, field=group.field)

    def _conflicts(
        self, declaration: Declaration, group: Group, convention: Convention
    ) -> Iterator["Contradiction"]:
        # A velocity, the difference by the rate, is an absolute value of its own.
        is_velocity = any(abs(each - self.fps) < _RATE * self.fps for each in convention.scale)
        relation = declaration.relation
        frame = declaration.frame
        for name, values, is_measured in (
            ("relation", (relation,) if relation else (), not is_velocity),
            ("rotation", declaration.rotations, group.pose is not None),
            ("frame", (frame,) if frame else (), bool(convention.frame)),
        ):
            if values and is_measured and not {*values} & {*getattr(convention, name)}:
                residual = self._residual(group, name, values)
                yield self._contradiction(declaration, " or ".join(values), residual, convention)

    def _residual(self, group: Group, name: str, values: Sequence[str]) -> float | None:
        """Least residual of hypotheses with one of some values of an attribute."""
        if group.pose is not None:
            return rotation_residual(self.tracks, group.columns, group.pose, name, values)
        fits = (fit for fit in group.fits if getattr(fit.hypothesis, name) in values)
        return min((fit.residual for fit in fits), default=None)

    def _contradiction(
        self, declaration: Declaration, text: str, residual: float | None, convention: Convention
    ) -> "Contradiction":
        best = convention.residual or 0.0
        conventions = self.conventions
        is_clear = (
            (residual is None or residual >= _CLEAR_RATIO * best)
            and conventions.rows >= _CLEAR_ROWS
            and conventions.episodes >= _CLEAR_EPISODES
        )
        left = "of another width" if residual is None else f"residual {residual:.3g}"
        message = (
            f"{convention.name}: {declaration.origin} says {text} ({left}), the recorded states"
            f" say {meaning(convention)} (residual {best:.3g}), {conventions.sample_text}"
        )
        finding = CONVENTION("contradiction", message, field=convention.field)
        return Contradiction(finding, is_clear=is_clear)


def _chart(convention: Convention, group: Group) -> str:
    """Recorded and predicted values of the first dimensions in consecutive rows."""
    assert group.fits[0].drawn is not None, "the best fit is drawn"
    recorded, predicted = (values[:_DRAWN_ROWS, :_DRAWN] for values in group.fits[0].drawn)
    names = [f"{kind} {convention.first + i}" for i in range(recorded.shape[1]) for kind in _LINES]
    values = np.stack([recorded, predicted], axis=2).reshape(len(recorded), -1)
    rows = np.arange(len(values))
    axis = Axis(0, max(len(values) - 1, 1), unit="rows", whole=True)
    drawn = field_charts(axis, rows, [FieldValues(convention.name, values, names)])
    return layout.heading(f"{convention.name}: {meaning(convention)}", drawn)


@dataclass(frozen=True)
class Contradiction:
    """Declaration that the recorded states contradict."""

    finding: Finding
    is_clear: bool  # True if its residual is so much larger that training on it is refused


def fit_conventions(episodes: Sequence[Episode], total: int) -> ConventionFits | None:
    """Conventions of episodes of `total`; None without any actions."""
    actions = _columns(episodes, [name.removesuffix(SUFFIX) for name in _actions(episodes)])
    states = _columns(episodes, state_fields(episodes))
    whole = [episode for episode in episodes if _has(episode, [*actions, *states])]
    if not actions or not whole:
        return None
    tracks = Tracks.of((_values(episode, actions), _values(episode, states)) for episode in whole)
    groups = find_groups(tracks, actions, states, list(_declared(episodes, actions, states)))
    conventions = Conventions(
        tuple(_convention(group, tracks, actions, states) for group in groups),
        rows=len(tracks.rows),
        episodes=len(whole),
        episodes_of=total,
    )
    declared = dict.fromkeys(each for episode in whole for each in episode.declared)
    return ConventionFits(conventions, groups, tracks, [*declared], whole[0].fps)


def _actions(episodes: Sequence[Episode]) -> list[str]:
    return list(dict.fromkeys(name for episode in episodes for name in episode.action_fields))


def state_fields(episodes: Sequence[Episode]) -> list[str]:
    """Fields that a policy observes; all numbers if the format names none."""
    observed = [name for episode in episodes for name in episode.proprioception_fields]
    actions = {*_actions(episodes)}
    every = [name for episode in episodes for name in episode.lowdim if name not in actions]
    return list(
        dict.fromkeys(
            observed
            or [name for name in every if not any(word in name.lower() for word in _NO_STATES)]
        )
    )


def _columns(episodes: Sequence[Episode], fields: Sequence[str]) -> list[Column]:
    columns: list[Column] = []
    for name in dict.fromkeys(fields):
        episode = next((each for each in episodes if _is_numeric(each.lowdim.get(name))), None)
        if episode is not None:
            width = episode.lowdim[name].shape[1]
            names = episode.dimension_names.get(name, ())
            named = names if len(names) == width else [""] * width
            columns += [Column(name, index, named[index]) for index in range(width)]
    return columns


def _is_numeric(values: Array | None) -> bool:
    return (
        values is not None
        and values.dtype.kind in "fiub"
        and values.ndim == 2
        and values.shape[1] <= _WIDEST
    )


def _has(episode: Episode, columns: Sequence[Column]) -> bool:
    widths = {column.field: column.index + 1 for column in columns}
    return all(
        _is_numeric(episode.lowdim.get(name)) and episode.lowdim[name].shape[1] == width
        for name, width in widths.items()
    )


def _values(episode: Episode, columns: Sequence[Column]) -> Array:
    fields = dict.fromkeys(column.field for column in columns)
    frames = len(next(iter(episode.lowdim.values())))
    return np.hstack([np.zeros((frames, 0)), *(episode.lowdim[name] for name in fields)])


def _declared(
    episodes: Sequence[Episode], actions: Sequence[Column], states: Sequence[Column]
) -> Iterator[tuple[int, int, PoseColumns]]:
    """Poses of the format: first columns of position and rotation, and the measured pose."""
    firsts = {column.field: number for number, column in reversed([*enumerate(actions)])}
    of_states = {column.field: number for number, column in reversed([*enumerate(states)])}
    for group in dict.fromkeys(group for each in episodes for group in each.pose_groups):
        keys = (group.position_key, group.rotation_key, *reference_keys(group))
        tables = (firsts, firsts, of_states, of_states)
        known = [table[key] for table, key in zip(tables, keys, strict=True) if key in table]
        if len(known) == len(keys):
            position, rotation, xyz, rot6d = known
            spans = slice(xyz, xyz + 3), slice(rot6d, rot6d + 6)
            yield position, rotation, PoseColumns(*spans, ("rot_6d",))


def _convention(
    group: Group, tracks: Tracks, actions: Sequence[Column], states: Sequence[Column]
) -> Convention:
    first = actions[group.columns.start]
    last = actions[group.columns.stop - 1]
    values = tracks.actions[tracks.rows, group.columns]
    low, high = np.percentile(values, [1, 99]) if len(values) else (0.0, 0.0)
    answer = Convention(
        first.field,
        first.index,
        last.index,
        group.kind,
        range=(_rounded(low), _rounded(high)) if len(values) else None,
    )
    if not group.fits:
        return answer
    best = group.fits[0]
    if not group.is_determined:
        relation = tuple(group.values("relation")) if best.residual <= group.largest else ()
        return replace(answer, residual=_rounded(best.residual), relation=relation)
    answer = replace(
        answer,
        states=_states_text(group, states),
        **{name: tuple(group.values(name)) for name in _ATTRIBUTES},
        scale=tuple(map(_rounded, best.scale)),
        offset=tuple(map(_rounded, best.offset)),
        residual=_rounded(best.residual),
    )
    lags = tracks.lags
    lag = best.hypothesis.lag
    if best.residual > _EXACT and lag in (lags[0], lags[-1]):
        answer = replace(answer, lag_limit="or more" if lag == lags[-1] else "or less")
    # Largest share of the rows [N, C] in which a dimension is at its least or greatest value;
    # one that has but two values is a command, and not clipped.
    is_end = (values == values.min(axis=0)) | (values == values.max(axis=0))
    clipped = is_end.mean(axis=0)[~is_end.all(axis=0)]
    answer = replace(answer, clipped=_rounded(float(clipped.max(initial=0))))
    other = next((fit for fit in group.fits if fit not in group.tied), None)
    return answer if other is None else replace(answer, **_second(answer, other))


def _rounded(value: float) -> float:
    """The number without its last digits, which differ between machines."""
    return float(f"{value:.5g}")


_ATTRIBUTES = ("relation", "lag", "frame", "rotation", "state_rotation")


def _second(answer: Convention, fit: Fit) -> dict[str, object]:
    """The best answer that the data reject, by what it says otherwise."""
    values = {name: getattr(fit.hypothesis, name) for name in _ATTRIBUTES}
    single = {name: () if value is None else (value,) for name, value in values.items()}
    text = meaning(replace(answer, scale=(), offset=(), range=None, **single))
    return {
        "second": text.replace(f" of {answer.states}", ""),
        "second_residual": _rounded(fit.residual),
    }


def _states_text(group: Group, states: Sequence[Column]) -> str:
    if group.states is None:
        return ""
    first = states[group.states.start]
    last = states[group.states.stop - 1]
    width = sum(column.field == first.field for column in states)
    if first.index == 0 and last.index == width - 1:
        return first.field
    return f"{first.field}[{first.index}:{last.index + 1}]"
