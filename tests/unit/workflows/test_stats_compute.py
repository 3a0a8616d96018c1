"""`vlatool stats compute`: statistics of shards without any, and training on them."""

import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.builders.shards import Members, arrays, npz, shard_output
from tests.builders.training import tiny_config
from tests.builders.verifying import verified
from vlatool.cli.app import run
from vlatool.datasets.lbm.layout import ShardFolder, read_preprocessing_config
from vlatool.datasets.lbm.writer import LbmSink
from vlatool.datasets.stats.layout import number_array, read_stats
from vlatool.errors import VlatoolError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.stats import StatsComputeConfig, StatsComputeResult, stats_compute
from vlatool.workflows.train import train


@pytest.fixture(scope="module")
def world(data: Path) -> Path:
    return data


@pytest.fixture
def published(world: Path, tmp_path: Path) -> Path:
    """Shards without statistics, as they are published."""
    folder = tmp_path / "published"
    shutil.copytree(world / "shards", folder)
    for name in ("stats.json", "stats_compact.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


def compute(folder: Path, **keys: Any) -> StatsComputeResult:
    return stats_compute(
        StatsComputeConfig(data=str(folder), workers=keys.pop("workers", 1), **keys)
    )


def error_of(work: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(VlatoolError) as caught:
        work()
    assert caught.value.hint
    return caught.value.code, caught.value.exit_code


def without_digests(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not key.startswith("tdigest")}


def test_statistics_equal_those_of_preprocess(world: Path, published: Path) -> None:
    result = compute(published)

    computed, expected = read_stats(published / "stats.json"), ShardFolder.open(world).statistics()
    assert list(computed) == list(expected) == list(result.fields)
    for name, entry in computed.items():
        assert entry.keys() == expected[name].keys()
        for key in without_digests(entry):
            value, other = (number_array(stats[key]) for stats in (entry, expected[name]))
            np.testing.assert_allclose(value, other, rtol=1e-9, atol=1e-12, err_msg=f"{name} {key}")


def test_bytes_do_not_depend_on_workers_and_the_temporary_folder_stays_empty(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    for workers in (2, 1):
        output = tmp_path / f"{workers}.json"
        assert compute(published, workers=workers, output=str(output)).status == "written"
        written.append(output.read_bytes())
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert written[0] == written[1]


@pytest.mark.parametrize("maker", ["preprocess", "stats compute"])
def test_proposed_training_command_can_be_planned(maker: str, published: Path) -> None:
    proposed = compute(published).next
    if maker == "preprocess":
        proposed = LbmSink.next_step.format(output=published, name="mine")
    assert run(["-q", *shlex.split(proposed)[1:], "--dry-run"]) == 0


def test_published_shards_can_be_trained_on_and_evaluated(published: Path, tmp_path: Path) -> None:
    compute(published)
    changes = {"data__dataset_manifest": str(published), "total_train_steps": 1}
    train(tiny_config(published, tmp_path / "runs/policy", **changes))
    report = open_loop(
        OpenLoopConfig(checkpoint=str(tmp_path / "runs/policy"), data=str(published), max_samples=3)
    )
    assert report.samples == 3


def test_padded_steps_and_nan_do_not_count(tmp_path: Path) -> None:
    def spoil(key: str, members: Members) -> None:
        if key.endswith("0000"):
            content = arrays(0)
            content["action"][1, 0] = np.nan
            members["lowdim.npz"] = npz(content)

    shard_output(tmp_path, change=spoil)
    (tmp_path / ".vlatool/files.jsonl").unlink()
    compute(tmp_path, overwrite=True)
    stats = read_stats(tmp_path / "shards/stats.json")
    assert stats["state"]["count"] == [6, 6, 6, 0]
    assert stats["action"]["count"] == [6, 5, 6, 0]


def test_a_repeated_run_is_already_complete_and_a_file_only_replaced_with_overwrite(
    published: Path,
) -> None:
    assert compute(published).status == "written"
    assert compute(published).status == "already complete"
    before = (published / "stats.json").read_bytes()
    (published / "stats.json").write_bytes(b"mine")
    assert error_of(lambda: compute(published)) == ("usage.output_exists", 2)
    assert (published / "stats.json").read_bytes() == b"mine"
    compute(published, overwrite=True)
    assert (published / "stats.json").read_bytes() == before


def test_statistics_of_other_or_changed_shards_are_not_taken_for_these(
    published: Path, tmp_path: Path
) -> None:
    shard_output(tmp_path / "other")
    output = str(tmp_path / "stats.json")
    compute(published, output=output)
    repeated = error_of(lambda: compute(tmp_path / "other", output=output))
    assert repeated == ("usage.output_differs", 2)

    shard = next(path for path in published.iterdir() if path.suffix == ".tar")
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    assert error_of(lambda: compute(published, output=output)) == ("usage.output_differs", 2)


def test_half_of_the_files_is_a_finding_and_repeated(published: Path) -> None:
    compute(published)
    digests = published / "stats_digests.npz"
    before = digests.read_bytes()
    digests.unlink()

    assert "output.missing_file" in verified(published, samples=0).codes
    assert compute(published).status == "written"
    assert digests.read_bytes() == before


def test_statistics_of_an_output_are_not_replaced(world: Path) -> None:
    assert error_of(lambda: compute(world, overwrite=True)) == ("usage.output_exists", 2)


def test_dry_run_writes_nothing(published: Path) -> None:
    result = compute(published, dry_run=True)
    assert result.status == "planned"
    assert result.samples == ShardFolder.open(published).shards()[0].size * len(
        ShardFolder.open(published).shards()
    )
    assert not (published / "stats.json").exists()


@pytest.mark.parametrize(
    ("action", "code"),
    [
        (np.zeros((4, 3)), "data.mismatch"),
        (None, "data.broken"),
        (b"PK", "data.broken"),
    ],
)
def test_inconsistent_samples_are_rejected(action: Any, code: str, tmp_path: Path) -> None:
    def change(key: str, members: Members) -> None:
        if key.endswith("0004"):
            content = {**arrays(4), "action": action}
            if action is None:
                del content["action"]
            members["lowdim.npz"] = action if isinstance(action, bytes) else npz(content)

    shard_output(tmp_path / "data", change=change)
    output = tmp_path / "stats.json"
    assert error_of(lambda: compute(tmp_path / "data", output=str(output))) == (code, 3)
    assert not output.exists()


# Errors of training for statistics


def forgetful(folder: Path) -> None:
    """Removes the field keys from the options, which published ones lack, too."""
    options = read_preprocessing_config(folder)
    for key in ("action_fields", "proprioception_fields"):
        del options[key]
    (folder / "preprocessing_config.yaml").write_text(yaml.safe_dump(options))


def test_missing_action_fields_are_reported_with_the_keys_to_set(
    published: Path, tmp_path: Path
) -> None:
    compute(published)
    forgetful(published)
    changes = {"data__dataset_manifest": str(published), "data__action_fields": ""}
    with pytest.raises(VlatoolError) as caught:
        train(tiny_config(published, tmp_path / "runs/policy", **changes))
    error = caught.value
    assert (error.code, error.exit_code) == ("data.missing", 3)
    assert "--data.action_fields robot__action__" in error.hint
    assert set(error.details["known"]) == set(read_stats(published / "stats.json"))
