"""`curation.json`: figures of each episode of a source, and which of them a rule leaves out.

It is made from `figures.json`, the same without rules, whenever rules are applied. Beside them are
`curation.html`, and `strips/EPISODE.jpg` with a few images of each camera.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.jobs.record import read_record
from vlatool.storage.manifest import Count, ManifestType
from vlatool.storage.uri import pinned
from vlatool.transforms.neighbors import at_like_length

NAME = "curation.json"
FIGURES_NAME = "figures.json"
PAGE = "curation.html"
STRIPS = "strips"
OWNED_FILES = (FIGURES_NAME, f"{STRIPS}/*.jpg")  # besides what `vlatool curate` writes afterwards
MODEL_ERROR = "model_error"
FOLDS = "folds"
CURATION = "vlatool.curation", 1  # format and version

FIGURES: Mapping[str, str] = {
    "success": "1 if the recording says that the task was completed, 0 if not",
    "idle_share": "share of still frames between the first and the last that move",
    "longest_pause": "longest stillness between them, in seconds",
    "end_speed": "speed of the last 0.3 s, by the top speed: cut off in motion",
    "largest_jump": "largest step of a dimension of the state, by its range",
    "reversal": "negative correlation of each step with the next: above 0 for tremor",
    "action_lag": "number of frames that actions come after the motion they explain",
    "frozen_share": "share of frames that repeat the image while the robot moves",
    "blank_share": "share of images of one color",
    "swapped_cameras": "distance of a camera's mean image to the usual one, by that to another's",
    "end_distance": "distance of the last state to the nearest of the same instruction",
    "duplicate_distance": "distance of states and images to the nearest episode",
    "other_instruction": "distance of the end to ends of its instruction, by that to others",
    "disagreement": "difference of actions from other episodes in similar states",
    MODEL_ERROR: "error of the actions of a policy that was not trained on it, in deviations",
}
_BAD_IF_LOW = frozenset({"success", "duplicate_distance"})


def badness(name: str, value: float) -> float:
    """Value of a figure, with the sign that makes the largest the worst."""
    return -value if name in _BAD_IF_LOW else value


@dataclass(frozen=True)
class CuratedEpisode:
    """An episode with its figures."""

    id: str
    frames: Count
    instruction: str
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    # robust z-scores of the figures among episodes of like length
    at_length: Mapping[str, float] = field(default_factory=dict[str, float])
    camera: str = ""  # the one that repeats its image most
    reasons: tuple[str, ...] = ()  # why it is left out; empty: it is kept


@dataclass(frozen=True)
class Curation:
    """All episodes of a source, in order."""

    episodes: tuple[CuratedEpisode, ...]
    absent: Mapping[str, str]  # figures that no episode has, and why
    rules: Mapping[str, Any] | None = None  # those applied; None: not yet

    def selected(self) -> list[str]:
        """Ids of the episodes that the rules keep."""
        return [episode.id for episode in self.episodes if not episode.reasons]

    def with_figures(self, columns: Mapping[str, Array]) -> "Curation":
        """Adds figures by name, a value [N] per episode, of which NaN is none."""
        lengths = np.array([episode.frames for episode in self.episodes])
        scores = {name: at_like_length(values, lengths) for name, values in columns.items()}
        absent = dict(self.absent)
        episodes: list[CuratedEpisode] = []
        for row, episode in enumerate(self.episodes):
            figures = dict(episode.figures)
            at_length = dict(episode.at_length)
            for name, values in columns.items():
                if not np.isnan(values[row]):
                    figures[name] = _number(values[row])
                    at_length[name] = _number(scores[name][row])
                    absent.pop(name, None)
            episodes.append(replace(episode, figures=figures, at_length=at_length))
        return replace(self, episodes=tuple(episodes), absent=absent)


def _number(value: float) -> float:
    """Six digits; an infinite one as the largest that every reader of JSON knows."""
    return float(f"{np.clip(value, -1e9, 1e9):.6g}")


def write_curation(path: Path, curation: Curation) -> None:
    """Writes a curation; each row says whether the episode is kept, null before rules."""
    document = asdict(curation)
    for episode, row in zip(curation.episodes, document["episodes"], strict=True):
        row["keep"] = None if curation.rules is None else not episode.reasons
    _manifest(path).write(path.parent, document)


def read_curation(location: Path) -> Curation:
    """Curation of a folder with applied rules, or of a file; DataError if there is none."""
    path = location / NAME if location.is_dir() else location
    curation = _manifest(path).read(path.parent)
    if curation is None:
        problem = "is no curation" if path.exists() else "does not exist"
        raise _manifest(path).error(path.parent, problem)
    return curation


def _manifest(path: Path) -> ManifestType[Curation]:
    hint = "write it with vlatool curate SOURCE --output DIR"
    return ManifestType(path.name, *CURATION, Curation, hint, code="data.broken")


def selected_positions(place: str, ids: Sequence[str]) -> list[int]:
    """Positions, among the ids of a source, of the episodes that a curation of it keeps.

    Raises:
        DataError: It has not been given rules, keeps nothing, or is of other episodes.
    """
    path = pinned(place)
    curation = read_curation(path)
    selected = curation.selected()
    positions = {name: position for position, name in enumerate(ids)}
    unknown = [name for name in selected if name not in positions]
    problem = ""
    if curation.rules is None:
        problem = "has no rules yet"
    elif not selected:
        problem = "keeps no episode"
    elif unknown:
        problem = f"is of other episodes: {unknown[0]} is not in the source"
    if problem:
        raise _manifest(path).error(path.parent, problem)
    return [positions[name] for name in selected]


def recognize(location: Path) -> str | None:
    """`curation` at the location of one, else None."""
    record = read_record(location)
    if record is not None and record.options.get("sink") == "curation":
        return "curation"
    return "curation" if (location / NAME).is_file() else None
