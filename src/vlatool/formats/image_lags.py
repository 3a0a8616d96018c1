"""Lags of cameras behind the joints in raw episodes, measured on a few of them."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from vlatool.conventions.measure import state_fields
from vlatool.episode import Array, Episode, FrameSource
from vlatool.errors import VlatoolError
from vlatool.report.facts import evenly_spaced
from vlatool.transforms.image_lag import brightness, clear_lag, lag_correlations

_MOST_EPISODES = 4
_FEWEST_EPISODES = 3
_MOST_FRAMES = 150
_AT_ONCE = 8
# Least correlations of an answer for one episode, and of the mean of several.
_PEAK = 0.6
_MEAN_PEAK = 0.45


class ImageLags:
    """Accumulator over evenly chosen episodes."""

    def __init__(self, total: int) -> None:
        self._chosen = evenly_spaced(total, _MOST_EPISODES)
        self._values: dict[str, dict[str, Array]] = {}

    def add(self, number: int, episode: Episode) -> None:
        """Reads images of episode `number` if it was chosen; broken ones are reported elsewhere."""
        if number not in self._chosen:
            return
        states: list[Array] = []
        for name in state_fields([episode]):
            if name in episode.lowdim and episode.lowdim[name].dtype.kind in "fiu":
                states.append(episode.lowdim[name][:_MOST_FRAMES])
        if not states:
            return
        for camera, source in episode.cameras.items():
            with suppress(VlatoolError, ValueError, OSError):
                values = lag_correlations(_pixels(source), np.hstack(states))
                if values is not None:
                    self._values.setdefault(camera, {})[episode.id] = values

    def lags(self) -> dict[str, Mapping[str, Any]]:
        """Returns `lag` in frames, and the lags of the `episodes`, by camera; None: unknown."""
        lags: dict[str, Mapping[str, Any]] = {}
        for camera, by_episode in self._values.items():
            if len(by_episode) >= _FEWEST_EPISODES:
                mean = np.mean([*by_episode.values()], axis=0)
                episodes = {name: clear_lag(values, _PEAK) for name, values in by_episode.items()}
                lags[camera] = {"lag": clear_lag(mean, _MEAN_PEAK), "episodes": episodes}
        return lags


def lag_text(lag: int | None) -> str:
    return "not determined" if lag is None else f"{lag} frames"


def _pixels(source: FrameSource) -> Array:
    frames = range(min(len(source), _MOST_FRAMES))
    starts = range(0, len(frames), _AT_ONCE)
    return np.vstack([brightness(source.read(frames[at : at + _AT_ONCE])) for at in starts])
