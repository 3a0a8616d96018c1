"""Parts of a merged set that differ by the factor between degrees and radians.

Legend of shapes: E episodes, C dimensions.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding
from vlatool.formats.lerobot.findings import LEROBOT
from vlatool.formats.lerobot.folder import EpisodeFiles
from vlatool.formats.lerobot.tables import read_rows
from vlatool.report.text import few_text
from vlatool.storage.uri import is_remote
from vlatool.transforms.neighbors import spread

_FACTOR = math.log(180 / math.pi)
_MEDIAN_WITHIN = math.log(1.4)  # 57.3 is told from 100 of percent, and from 1000 of millimeters
_EACH_WITHIN = math.log(2)  # of a dimension, whose motion differs from episode to episode
_FULL_TURN = 2 * math.pi  # radians that a joint hardly exceeds
_MOVE_IN = 0.8  # of the episodes, dimensions that count move
_MOST_EPISODES = 32  # that are read, evenly spaced


def unit_findings(episodes: Sequence[EpisodeFiles]) -> Iterator[Finding]:
    """A finding for each column that has both units; reads rows of local sets only."""
    dataset = episodes[0].dataset
    if len(episodes) < 2 or is_remote(dataset.root):
        return
    widths: dict[str, int] = {}  # of vectors
    for name in dataset.field_names:
        width = dataset.info.features[name].width or 0
        if width > 1:
            widths[name] = width
    numbers: list[int] = []  # of the episodes that can be read
    largest: dict[str, list[Array]] = {name: [] for name in widths}  # [C] of each episode
    ranges: dict[str, list[Array]] = {name: [] for name in widths}
    for index in spread(len(episodes), _MOST_EPISODES):
        episode = episodes[index]
        try:
            rows = read_rows(episode.segment(), f"episode {episode.number}", [*widths])
            vectors = {name: rows.vectors(name, width) for name, width in widths.items()}
        except DataError:  # the check of the episode reports it
            continue
        numbers.append(episode.number)
        for name, values in vectors.items():
            largest[name].append(np.abs(values).max(axis=0))
            ranges[name].append(np.ptp(values, axis=0))
    if not numbers:
        return
    for name in widths:
        found = degrees_of(np.array(largest[name], np.float64), np.array(ranges[name], np.float64))
        if found:
            degrees = [str(numbers[index]) for index in found]
            problem = (
                f"{name} of {counted(len(degrees), 'episode')} of {len(numbers)} "
                f"({few_text(degrees)}) is about 57.3 times larger: degrees instead of radians"
            )
            yield LEROBOT.at("mixed_units", dataset.root, problem, field=name)


def degrees_of(largest: Array, ranges: Array) -> list[int]:
    """Returns the rows of episodes that are in degrees while the other episodes are in radians.

    `largest` and `ranges` [E, C] are the largest absolute value and the range of each dimension.
    Episodes fall in two groups, by the median of their dimensions; the factor between the groups is
    57.3 in the median of the dimensions, and about so in most of them, of which there are two.
    """
    is_moving = np.isfinite(largest) & (ranges > 0)
    dimensions = is_moving.mean(axis=0) >= _MOVE_IN
    rows = np.flatnonzero(is_moving[:, dimensions].all(axis=1))
    if len(rows) < 2 or dimensions.sum() < 2:
        return []

    # Two groups of episodes, where their sizes differ most.
    logs = np.log(largest[rows][:, dimensions])
    sizes = np.median(logs - np.median(logs, axis=0), axis=1)
    ordered = np.sort(sizes)
    gap = int(np.diff(ordered).argmax())
    if ordered[gap + 1] - ordered[gap] < _FACTOR / 2:
        return []
    is_large = sizes > ordered[gap]

    # The factor between the groups, of values and of ranges.
    large = np.median(logs[is_large], axis=0)
    small = np.median(logs[~is_large], axis=0)
    if abs(np.median(large - small) - _FACTOR) >= _MEDIAN_WITHIN:
        return []
    logs = np.log(ranges[rows][:, dimensions])
    motion = np.median(logs[is_large], axis=0) - np.median(logs[~is_large], axis=0)
    if abs(np.median(motion) - _FACTOR) >= _EACH_WITHIN:
        return []
    is_near = np.abs(large - small - _FACTOR) < _EACH_WITHIN
    if is_near.sum() < max(2, 0.6 * len(is_near)):
        return []
    if not np.exp(small[is_near]).max() <= _FULL_TURN < np.exp(large[is_near]).max():
        return []
    return rows[is_large].tolist()
