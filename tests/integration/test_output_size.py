"""What an output keeps: nothing twice, and tars of episodes only where they are wanted."""

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
from vlatool.artifacts.digests import read_mergeable
from vlatool.artifacts.stats import merge_stats, read_stats
from vlatool.errors import DataError, UsageError
from vlatool.transforms.quantiles import Digest, to_state
from vlatool.workflows.inspect import InspectConfig, inspect
from vlatool.workflows.stats_merge import StatsMergeConfig, stats_merge
from vlatool.workflows.verify import VerifyConfig, verify


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return spartan_task(tmp_path / "raw", 2, FRAMES)


@pytest.fixture
def kept(source: Path, tmp_path: Path) -> Path:
    run(source, tmp_path / "kept")
    return tmp_path / "kept"


def shards(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(output).items() if name.startswith("shards/")}


@contextmanager
def broken_episode(source: Path) -> Generator[None]:
    """The second episode lacks its actions within the block."""
    path = processed(source) / "actions.npz"
    path.rename(path.with_suffix(".away"))
    yield
    path.with_suffix(".away").rename(path)


def test_episodes_that_are_not_kept_are_gone_and_the_rest_is_the_same(
    source: Path, kept: Path, tmp_path: Path
) -> None:
    run(source, tmp_path / "small", keep_episodes=False)

    assert not (tmp_path / "small/episodes").exists()
    assert shards(tmp_path / "small") == shards(kept)
    assert verify(VerifyConfig(location=str(tmp_path / "small"))).findings == ()
    assert run(source, tmp_path / "small", keep_episodes=False).status == "already complete"


def test_episodes_stay_until_the_broken_ones_are_repaired(
    source: Path, kept: Path, tmp_path: Path
) -> None:
    output = tmp_path / "small"
    with broken_episode(source):
        assert refusal(source, output, keep_episodes=False).exit_code == 4
        assert len(list(output.glob("episodes/*.tar"))) == 1
        assert verify(VerifyConfig(location=str(output))).counts.keys() == {"output.partial"}

    result = run(source, output, keep_episodes=False)

    assert result.resumed == 1
    assert shards(output) == shards(kept)
    assert not (output / "episodes").exists()


def test_output_without_episodes_says_what_to_do_when_the_set_grew(tmp_path: Path) -> None:
    first = spartan_task(tmp_path / "raw", 1, FRAMES)
    run(first, tmp_path / "small", keep_episodes=False)
    shutil.rmtree(first)
    spartan_task(tmp_path / "raw", 2, FRAMES)

    error = refusal(first, tmp_path / "small", keep_episodes=False)

    assert (error.code, error.exit_code) == ("usage.output_differs", 2)
    assert "--overwrite" in error.hint
    assert run(first, tmp_path / "small", keep_episodes=False, overwrite=True).episodes == 2


def test_what_a_killed_run_left_of_the_episodes_goes_with_the_next(
    source: Path, kept: Path, tmp_path: Path
) -> None:
    run(source, tmp_path / "small", keep_episodes=False)
    shutil.copytree(kept / "episodes", tmp_path / "small/episodes")
    (tmp_path / "small/episodes/manifest.jsonl").unlink()

    run(source, tmp_path / "small", keep_episodes=False)

    assert not (tmp_path / "small/episodes").exists()


def test_statistics_are_written_once(kept: Path) -> None:
    names = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*stats*"))

    assert names == ["shards/stats.json", "shards/stats_digests.npz"]
    for entry in read_stats(kept / "shards/stats.json").values():
        assert entry["tdigest_state"] is entry["tdigest_state_per_timestep"] is None


def with_states_inside(output: Path) -> Path:
    """The output with its digests where the published layout has them."""
    path = output / "shards/stats.json"
    stats: dict[str, Any] = {}
    for name, entry in read_mergeable(path).items():
        digest: Digest = entry["tdigest_state_per_timestep"]
        shape = np.shape(entry["mean_per_timestep"])
        stats[name] = {**entry, "tdigest_state_per_timestep": to_state(digest, shape)}
    path.write_text(json.dumps(stats))
    path.with_name("stats_digests.npz").unlink()
    return output


def test_digests_beside_the_statistics_merge_as_those_inside(kept: Path, tmp_path: Path) -> None:
    published = with_states_inside(Path(shutil.copytree(kept, tmp_path / "published")))
    each = [read_mergeable(folder / "shards/stats.json") for folder in (kept, published)]

    assert merge_stats([each[0], each[0]]) == merge_stats([each[1], each[1]])


def test_damaged_digests_are_told_with_their_name(kept: Path) -> None:
    path = kept / "shards/stats_digests.npz"
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(DataError) as caught:
        stats_merge(StatsMergeConfig(sources=[str(kept), str(kept)]))
    assert str(path) in caught.value.message


def test_merged_statistics_can_be_merged_again(kept: Path, tmp_path: Path) -> None:
    target = tmp_path / "merged.json"
    stats_merge(StatsMergeConfig(sources=[str(kept), str(kept)], output=str(target)))

    again = stats_merge(StatsMergeConfig(sources=[str(target), str(target)]))

    assert (tmp_path / "merged_digests.npz").exists()
    assert next(iter(again.statistics.values()))["count"][1] == 4 * 2 * FRAMES


@pytest.mark.parametrize("changes", [{"compact": True}, {"weights": [1.0, 3.0]}])
def test_digests_of_an_earlier_merge_do_not_stay_beside_other_statistics(
    kept: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    wanted = {"sources": [str(kept), str(kept)], "output": str(tmp_path / "merged.json")}
    stats_merge(StatsMergeConfig(**wanted))

    stats_merge(StatsMergeConfig(**wanted, **changes))

    assert not (tmp_path / "merged_digests.npz").exists()


def test_merge_does_not_replace_a_strangers_digests(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "merged_digests.npz").write_text("mine")
    wanted = {"sources": [str(kept), str(kept)], "output": str(tmp_path / "merged.json")}

    with pytest.raises(UsageError):
        stats_merge(StatsMergeConfig(**wanted))
    assert (tmp_path / "merged_digests.npz").read_text() == "mine"


def test_inspect_counts_the_files_of_the_data_set_only(source: Path) -> None:
    before = inspect(InspectConfig(location=str(source))).document()["bytes"]
    run(source, source / "shards-of-it")
    (source / ".vlatool").mkdir()
    (source / ".vlatool/files.jsonl").write_text("x" * 1000)

    assert inspect(InspectConfig(location=str(source))).document()["bytes"] == before
