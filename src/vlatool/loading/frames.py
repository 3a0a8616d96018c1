"""Look-up of an episode and a frame that a user names, for all kinds of data."""

from collections.abc import Mapping

from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.plugins import did_you_mean

_DIGITS = 18  # more are no number of an episode


def episode_named(episodes: Mapping[int, str], text: str) -> str:
    """Id of the episode that a text names: its id, or its number."""
    if text in episodes.values():
        return text
    number = int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else -1
    if number in episodes:
        return episodes[number]
    raise DataError(
        f"there is no episode {text!r} among {counted(len(episodes), 'episode')}",
        hint=_known(episodes, text),
        code="data.unknown_episode",
        details={"episode": text, "episodes": len(episodes)},
    )


def _known(episodes: Mapping[int, str], text: str) -> str:
    if text.isdigit() or not text:
        low, high = min(episodes, default=0), max(episodes, default=0)
        return f"give a number from {low} to {high}, or the id of an episode"
    return did_you_mean(text, list(episodes.values()))


def check_frame(frame: int, frames: range | Mapping[int, int], episode: str) -> None:
    """Raises an error if an episode has no such frame."""
    if frame not in frames:
        low, high = min(frames), max(frames)
        inside = low < frame < high
        raise DataError(
            f"{episode}: there is no frame {frame}; "
            + (f"near it: {_near(frame, frames)}" if inside else f"frames are {low} to {high}"),
            hint="give one of its frames; preprocessed data have the frames of their windows only",
            code="data.unknown_frame",
            details={"episode": episode, "frame": frame},
        )


def _near(frame: int, frames: range | Mapping[int, int]) -> str:
    low = max(known for known in frames if known < frame)
    high = min(known for known in frames if known > frame)
    return f"{low}, {high}"
