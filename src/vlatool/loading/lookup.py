"""Episodes and frames that a user names."""

from collections.abc import Mapping

from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.plugins import did_you_mean

_DIGITS = 18  # more are no number of an episode


def episode_named(episodes: Mapping[int, str], text: str) -> str:
    """Id of the episode that a text names: its id, or its number."""
    if text in episodes.values():
        return text
    if text.isascii() and text.isdigit() and len(text) < _DIGITS and int(text) in episodes:
        return episodes[int(text)]
    hint = did_you_mean(text, list(episodes.values()))
    if text.isdigit() or not text:
        hint = f"give a number up to {max(episodes, default=0)}, or the id of an episode"
    raise DataError(
        f"there is no episode {text!r} among {counted(len(episodes), 'episode')}",
        hint=hint,
        code="data.unknown_field",
        details={"episode": text, "episodes": len(episodes)},
    )


def check_frame(frame: int, frames: range | Mapping[int, int], episode: str) -> None:
    """Raises DataError if an episode does not have a frame; `frames` are those that it has."""
    if frame in frames:
        return
    nearest = sorted(sorted(frames, key=lambda number: abs(number - frame))[:2])
    raise DataError(
        f"{episode}: there is no frame {frame} of {min(frames)} to {max(frames)}; near it: "
        f"{', '.join(map(str, nearest))}",
        hint="give one of its frames; preprocessed data have the frames of their windows only",
        code="data.unknown_field",
        details={"episode": episode, "frame": frame},
    )
