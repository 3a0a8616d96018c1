"""`curation.json`: figures of each episode of a source, and which of them a rule leaves out.

It is made from `figures.json`, the same without rules, whenever rules are applied. Beside them are
`curation.html`, and `strips/EPISODE.jpg` with a few images of each camera.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.errors import DataError
from vlatool.jobs.record import read_record
from vlatool.storage.atomic import write_json
from vlatool.storage.documents import read_json
from vlatool.storage.uri import pinned

NAME, FIGURES_NAME, PAGE, STRIPS = "curation.json", "figures.json", "curation.html", "strips"
OWNED_FILES = (FIGURES_NAME, f"{STRIPS}/*.jpg")  # and those of `vlatool curate`, outside its job
MODEL_ERROR, FOLDS = "model_error", "folds"  # the folder has the policies behind the figure
TYPE, VERSION = "vlatool.curation", 1


@dataclass(frozen=True)
class Figure:
    """Description of a figure, and the direction in which it is bad: 1 for high, -1 for low."""

    about: str
    bad: int = 1


FIGURES: Mapping[str, Figure] = {
    "success": Figure("1 if the recording says that the task was completed, 0 if not", -1),
    "idle_share": Figure("share of still frames between the first and the last that move"),
    "longest_pause": Figure("longest stillness between them, in seconds"),
    "end_speed": Figure("speed of the last 0.3 s, by the top speed: cut off in motion"),
    "largest_jump": Figure("largest step of a dimension of the state, by its range"),
    "spectral_arc_length": Figure("smoothness of the speed (SPARC, 2015)", -1),
    "log_jerk": Figure("smoothness of the speed (logarithm of the dimensionless jerk)", -1),
    "reversal": Figure("negative correlation of each step with the next: above 0 for tremor"),
    "saturation": Figure("share of action values that stay at their limit"),
    "gripper_switches": Figure("times that the gripper opens or closes"),
    "action_lag": Figure("frames by which actions come after the motion they explain"),
    "camera_lag": Figure("frames by which images come after the motion"),
    "frozen_share": Figure("share of frames that repeat the image while the robot moves"),
    "blank_share": Figure("share of images of one color"),
    "swapped_cameras": Figure(
        "distance of a camera's mean image to the usual one, by that to another camera's"
    ),
    "outlier_distance": Figure("distance of the states to the nearest of the same instruction"),
    "end_distance": Figure("distance of the last state to the nearest of the same instruction"),
    "duplicate_distance": Figure("distance of states and images to the nearest episode", -1),
    "other_instruction": Figure(
        "distance of the end to ends of the same instruction, by that to those of another"
    ),
    "disagreement": Figure("difference of actions from those of others at like states"),
    MODEL_ERROR: Figure(
        "error of the actions of a policy that was not trained on it, in standard deviations"
    ),
}


@dataclass(frozen=True)
class CuratedEpisode:
    """An episode with its figures."""

    id: str
    frames: int
    instruction: str
    figures: Mapping[str, float]
    # robust z-scores of the figures among episodes of like length
    at_length: Mapping[str, float] = field(default_factory=dict[str, float])
    camera: str = ""  # the camera with the worst figures of images
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


def write_curation(path: Path, curation: Curation) -> None:
    rows = [
        {
            "id": episode.id,
            "frames": episode.frames,
            "instruction": episode.instruction,
            "keep": None if curation.rules is None else not episode.reasons,
            "reasons": list(episode.reasons),
            "camera": episode.camera,
            "figures": _rounded(episode.figures),
            "at_length": _rounded(episode.at_length),
        }
        for episode in curation.episodes
    ]
    document = {"type": TYPE, "version": VERSION, "rules": curation.rules}
    write_json(path, document | {"absent": dict(curation.absent), "episodes": rows})


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Six digits, of infinite ones the largest numbers of JSON readers."""
    return {name: float(f"{np.clip(value, -1e9, 1e9):.6g}") for name, value in values.items()}


def read_curation(location: Path) -> Curation:
    """Curation of a folder with applied rules, or of a file; DataError if there is none."""
    path = location / NAME if location.is_dir() else location
    if not path.is_file():
        raise _error(path, "does not exist")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("type") != TYPE:
        raise _error(path, "is no curation")
    if document.get("version") != VERSION:
        raise _error(path, f"has version {document.get('version')!r}; this vlatool reads {VERSION}")
    try:
        episodes = tuple(
            CuratedEpisode(
                id=str(row["id"]),
                frames=int(row["frames"]),
                instruction=str(row["instruction"]),
                figures={name: float(value) for name, value in row["figures"].items()},
                at_length={name: float(value) for name, value in row["at_length"].items()},
                camera=str(row["camera"]),
                reasons=tuple(map(str, row["reasons"])),
            )
            for row in document["episodes"]
        )
        return Curation(episodes, dict(document["absent"]), document["rules"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _error(path, f"is damaged: {error!r}") from None


def selected_positions(place: str, ids: Sequence[str]) -> list[int]:
    """Positions, among the ids of a source, of the episodes that a curation of it keeps.

    Raises:
        DataError: It has not been given rules, keeps nothing, or is of other episodes.
    """
    path = pinned(place)
    curation = read_curation(path)
    if curation.rules is None:
        raise _error(path, "has no rules yet")
    positions = {name: position for position, name in enumerate(ids)}
    chosen = curation.selected()
    unknown = [name for name in chosen if name not in positions]
    if unknown:
        problem = f"is of other episodes: {unknown[0]} is not in the source"
        raise _error(path, problem)
    if not chosen:
        raise _error(path, "keeps no episode")
    return [positions[name] for name in chosen]


def _error(path: Path, problem: str) -> DataError:
    return DataError.at(
        path, problem, hint="write it with vlatool curate SOURCE --output DIR", code="data.curation"
    )


def recognize(location: Path) -> str | None:
    record = read_record(location)
    is_curation = record is not None and record.options.get("sink") == "curation"
    return "curation" if is_curation or (location / NAME).is_file() else None
