"""List of episodes of a written LeRobot set. Source: formats/lerobot 5, 6."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vlatool.recordings.lerobot.layout import Version
from vlatool.recordings.lerobot.output import EpisodeTables, WrittenEpisode, write_episode_lines

EPISODES = 200
NAMES = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")


def episodes(width: int = 200) -> Iterator[WrittenEpisode]:
    """Episodes with about 60 kB of statistics each in memory; the last one has another feature."""
    for number in range(EPISODES):
        values = {name: [number + index / 7 for index in range(width)] for name in NAMES}
        values["count"] = [3]
        stats = {"action": values} | ({"other": values} if number == EPISODES - 1 else {})
        yield WrittenEpisode(number, ["wave"], 3, 3 * number, stats)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_memory_does_not_grow_with_the_episodes(tmp_path: Path, version: Version) -> None:
    tracemalloc.start()
    if version == "v3.0":
        EpisodeTables(tmp_path, 10.0, 1 << 30).write(episodes())
    else:
        write_episode_lines(tmp_path, episodes())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    if version == "v3.0":
        rows = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
        other = [row["stats/other/count"] for row in rows]
        assert other == [*[None] * (EPISODES - 1), [3]]
    else:
        lines = (tmp_path / "meta/episodes.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
    assert [row["episode_index"] for row in rows] == [*range(EPISODES)]
