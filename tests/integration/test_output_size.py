"""Size of outputs: nothing is stored twice, and tars of episodes only with `--keep-episodes`."""

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.preprocessing import FRAMES, contents, processed, refusal, run
from tests.builders.spartan import spartan_task
from vlatool.datasets.stats.layout import merge_stats, read_mergeable, read_stats
from vlatool.errors import DataError, UsageError
from vlatool.transforms.statistics import Digest, to_state
from vlatool.workflows.stats import StatsMergeConfig, stats_merge
from vlatool.workflows.verify import InspectConfig, VerifyConfig, inspect, verify


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("raw") / "raw", 2, FRAMES)


@pytest.fixture(scope="module")
def with_episodes(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("output") / "with_episodes"
    run(source, output)
    return output


def shards(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(output).items() if name.startswith("shards/")}


@contextmanager
def broken_episode(source: Path) -> Generator[None]:
    """Removes the actions of the second episode during the block."""
    path = processed(source) / "actions.npz"
    path.rename(path.with_suffix(".away"))
    yield
    path.with_suffix(".away").rename(path)


def test_without_keep_episodes_only_the_episodes_are_missing(
    source: Path, with_episodes: Path, tmp_path: Path
) -> None:
    run(source, tmp_path / "small", keep_episodes=False)

    assert not (tmp_path / "small/episodes").exists()
    assert shards(tmp_path / "small") == shards(with_episodes)
    assert verify(VerifyConfig(location=str(tmp_path / "small"))).findings == ()
    assert run(source, tmp_path / "small", keep_episodes=False).status == "already complete"


def test_episodes_are_kept_until_the_broken_ones_are_repaired(
    source: Path, with_episodes: Path, tmp_path: Path
) -> None:
    output = tmp_path / "small"
    with broken_episode(source):
        assert refusal(source, output, keep_episodes=False).exit_code == 4
        assert len(list(output.glob("episodes/*.tar"))) == 1
        assert verify(VerifyConfig(location=str(output))).codes.keys() == {"output.partial"}

    result = run(source, output, keep_episodes=False)

    assert result.resumed == 1
    assert shards(output) == shards(with_episodes)
    assert not (output / "episodes").exists()


def test_output_without_episodes_is_refused_with_a_hint_if_the_source_grew(tmp_path: Path) -> None:
    first = spartan_task(tmp_path / "raw", 1, FRAMES)
    run(first, tmp_path / "small", keep_episodes=False)
    shutil.rmtree(first)
    spartan_task(tmp_path / "raw", 2, FRAMES)

    error = refusal(first, tmp_path / "small", keep_episodes=False)

    assert (error.code, error.exit_code) == ("usage.output_differs", 2)
    assert "--overwrite" in error.hint
    assert run(first, tmp_path / "small", keep_episodes=False, overwrite=True).episodes == 2


def test_episodes_left_by_a_killed_run_are_removed_by_the_next(
    source: Path, with_episodes: Path, tmp_path: Path
) -> None:
    run(source, tmp_path / "small", keep_episodes=False)
    shutil.copytree(with_episodes / "episodes", tmp_path / "small/episodes")
    (tmp_path / "small/episodes/manifest.jsonl").unlink()

    run(source, tmp_path / "small", keep_episodes=False)

    assert not (tmp_path / "small/episodes").exists()


def test_statistics_are_written_once_and_digests_beside_them_merge_like_those_inside(
    with_episodes: Path, tmp_path: Path
) -> None:
    names = sorted(
        path.relative_to(with_episodes).as_posix() for path in with_episodes.rglob("*stats*")
    )
    assert names == ["shards/stats.json", "shards/stats_digests.npz"]
    for entry in read_stats(with_episodes / "shards/stats.json").values():
        assert entry["tdigest_state"] is entry["tdigest_state_per_timestep"] is None

    published = with_states_inside(Path(shutil.copytree(with_episodes, tmp_path / "published")))
    each = [read_mergeable(folder / "shards/stats.json") for folder in (with_episodes, published)]
    assert merge_stats([each[0], each[0]]) == merge_stats([each[1], each[1]])


def with_states_inside(output: Path) -> Path:
    """Moves the digests of an output into `stats.json`, as in the published layout."""
    path = output / "shards/stats.json"
    stats: dict[str, Any] = {}
    for name, entry in read_mergeable(path).items():
        digest: Digest = entry["tdigest_state_per_timestep"]
        shape = np.shape(entry["mean_per_timestep"])
        stats[name] = {**entry, "tdigest_state_per_timestep": to_state(digest, shape)}
    path.write_text(json.dumps(stats))
    path.with_name("stats_digests.npz").unlink()
    return output


def test_error_names_the_file_of_damaged_digests(with_episodes: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(with_episodes, tmp_path / "damaged"))
    path = output / "shards/stats_digests.npz"
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(DataError) as caught:
        stats_merge(StatsMergeConfig(sources=[str(output), str(output)]))
    assert str(path) in caught.value.message


def test_merged_statistics_can_be_merged_again_and_replace_no_foreign_digests(
    with_episodes: Path, tmp_path: Path
) -> None:
    target, digests = tmp_path / "merged.json", tmp_path / "merged_digests.npz"
    config = StatsMergeConfig(sources=[str(with_episodes)] * 2, output=str(target))
    digests.write_text("mine")
    with pytest.raises(UsageError):
        stats_merge(config)
    assert digests.read_text() == "mine"

    digests.unlink()
    stats_merge(config)
    again = stats_merge(StatsMergeConfig(sources=[str(target), str(target)]))
    assert digests.exists()
    assert next(iter(again.statistics.values()))["count"][1] == 4 * 2 * FRAMES


@pytest.mark.parametrize("changes", [{"compact": True}, {"weights": [1.0, 3.0]}])
def test_digests_of_an_earlier_merge_are_removed_with_other_statistics(
    with_episodes: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    keys = {
        "sources": [str(with_episodes), str(with_episodes)],
        "output": str(tmp_path / "merged.json"),
    }
    stats_merge(StatsMergeConfig(**keys))

    stats_merge(StatsMergeConfig(**keys, **changes))

    assert not (tmp_path / "merged_digests.npz").exists()


def test_inspect_counts_the_files_of_the_data_set_only(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 1, FRAMES)
    before = inspect(InspectConfig(location=str(source))).document()["bytes"]
    run(source, source / "shards-of-it")
    (source / ".vlatool").mkdir()
    (source / ".git").mkdir()
    (source / ".git/pack").write_bytes(bytes(1000))
    (source / ".vlatool/files.jsonl").write_text("x" * 1000)

    assert inspect(InspectConfig(location=str(source))).document()["bytes"] == before
