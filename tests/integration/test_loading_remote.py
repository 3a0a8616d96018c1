"""Training data in S3: the same micro-batches, few requests. Source: reference/order 11."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders.loading import batches, loader_of, names, opened
from tests.builders.s3_runs import upload
from tests.builders.s3_server import Proxy
from tests.builders.shards import shard_output
from vlatool.artifacts.shard import index_by_headers, index_path
from vlatool.errors import DataError, StorageError
from vlatool.loading.base import MicroBatch
from vlatool.loading.loader import LoaderPlan
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import TIMEOUT_VARIABLE

SAMPLES, SHARDS = 24, 8  # three samples per shard
PLAN = LoaderPlan(6)
FIELDS: dict[str, Any] = {"action_fields": ["action"], "proprioception_fields": ["state"]}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Shards without indexes, as published ones are."""
    return shard_output(tmp_path / "local", samples=SAMPLES) / "shards"


@pytest.fixture
def remote(local: Path, s3_bucket: str) -> RemotePath:
    return upload(local, RemotePath(f"s3://{s3_bucket}/data/shards"))


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    """A data section whose cache is empty."""
    cache = {"cache_dir": str(tmp_path / "cache"), "enabled": False}
    return {**FIELDS, "dataset_cache": cache}


def write_indexes(folder: Path) -> None:
    for shard in sorted(folder.glob("*.tar")):
        index_path(shard).write_bytes(index_by_headers(shard).content())


def read(folder: Path, keys: dict[str, Any], plan: LoaderPlan = PLAN) -> list[MicroBatch]:
    """An epoch and a half."""
    return batches(opened(folder, **keys), plan, 6)


def asked(proxy: Proxy, name: str) -> list[str]:
    """Methods and ranges of the requests for files of some name."""
    found = [one for one in proxy.faults.requests if one.path.endswith(name)]
    return [f"{one.method} {one.range}".strip() for one in found]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("cache", [True, False])
def test_remote_shards_give_the_same_micro_batches(
    local: Path, remote: RemotePath, keys: dict[str, Any], index: bool, cache: bool
) -> None:
    if index:
        write_indexes(local)
        upload(local, remote)
    keys["dataset_cache"]["enabled"] = cache

    assert read(remote, keys) == read(local, FIELDS)


def test_loader_processes_read_remote_shards(
    local: Path, remote: RemotePath, keys: dict[str, Any]
) -> None:
    # In a process of its own: the one that starts loader processes keeps the environment it had
    # when another test needed it first.
    code = (
        "from vlatool.loading.loader import LoaderPlan\n"
        "from vlatool.storage.remote_path import RemotePath\n"
        "from tests.builders.loading import batches, names, opened\n"
        f"data = opened(RemotePath({str(remote)!r}), **{keys!r})\n"
        "print(*names(batches(data, LoaderPlan(6, num_workers=2), 6)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == names(read(local, FIELDS))


def test_sample_is_one_request(
    local: Path, remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy
) -> None:
    write_indexes(local)
    upload(local, remote)
    data = opened(remote, **keys)
    s3_proxy.faults.clear()

    with loader_of(data, replace(PLAN, count=SAMPLES)) as loader:
        found = list(loader)

    assert len(names(found)) == SAMPLES
    shards = asked(s3_proxy, ".tar")
    assert shards.count("HEAD") == len(asked(s3_proxy, ".index.npz")) == SHARDS
    assert len([one for one in shards if one.startswith("GET bytes=")]) in (SAMPLES, SAMPLES + 6)


def test_shard_without_index_is_streamed_once_for_all(
    remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy
) -> None:
    data = opened(remote, **keys)
    s3_proxy.faults.clear()
    batches(data, PLAN, 6)
    streamed = [one for one in asked(s3_proxy, ".tar") if one.startswith("GET bytes=0-")]
    s3_proxy.faults.clear()

    batches(data, PLAN, 6)

    again = [one for one in asked(s3_proxy, ".tar") if one == "GET bytes=0-262143"]
    assert streamed.count("GET bytes=0-262143") == SHARDS
    assert again == []


def test_cached_blocks_are_fetched_once(
    remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy, tmp_path: Path
) -> None:
    keys["dataset_cache"] |= {"enabled": True, "cache_size_gb": 1}
    data = opened(remote, **keys)
    batches(data, PLAN, 6)
    fetched = [one for one in asked(s3_proxy, ".tar") if one.startswith("GET")]
    s3_proxy.faults.clear()

    batches(data, PLAN, 6)

    assert len(fetched) == SHARDS
    assert {one for one in asked(s3_proxy, ".tar") if one.startswith("GET")} == set()
    assert len(list((tmp_path / "cache").glob("*.copy"))) == SHARDS


@pytest.mark.parametrize("enabled", [True, None])
def test_blocks_are_not_cached_where_they_do_not_fit(
    remote: RemotePath, keys: dict[str, Any], tmp_path: Path, enabled: bool | None
) -> None:
    """Else each would be fetched again and again."""
    keys["dataset_cache"] |= {"enabled": enabled, "cache_size_gb": 1e-4}

    batches(opened(remote, **keys), PLAN, 1)

    assert list((tmp_path / "cache").glob("*.copy")) == []


def test_small_data_are_kept_unasked(
    remote: RemotePath, keys: dict[str, Any], tmp_path: Path
) -> None:
    keys["dataset_cache"] |= {"enabled": None}

    read(remote, keys)

    assert len(list((tmp_path / "cache").glob("*.copy"))) == SHARDS


def test_going_on_opens_only_the_next_shards(
    remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy
) -> None:
    data = opened(remote, **keys, lanes=1, shuffle_buffer_size=3)
    s3_proxy.faults.clear()

    batches(data, LoaderPlan(3, first=10**6), 1)

    # The micro-batch, and the one that the loader makes ahead; three neighbours may be of two.
    assert asked(s3_proxy, ".tar").count("HEAD") <= 3


def test_outage_is_no_drop(remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy) -> None:
    data = opened(remote, **keys)
    expected = batches(data, PLAN, 4)
    s3_proxy.faults.fail_every = 5

    found = batches(data, PLAN, 4)

    assert found == expected
    assert not any(sum(batch.dropped) for batch in found)


def test_storage_that_stays_away_ends_the_run(
    remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.2")
    data = opened(remote, **keys)
    s3_proxy.faults.down_for(60)

    with pytest.raises(StorageError):
        batches(data, PLAN, 1)


def test_remote_shard_that_is_missing_is_told(remote: RemotePath, keys: dict[str, Any]) -> None:
    data = opened(remote, **keys)
    (remote / "shard_000001.tar").unlink()

    with pytest.raises(DataError) as caught:
        batches(data, LoaderPlan(SAMPLES), 1)

    assert caught.value.code == "data.missing_shard"
    assert caught.value.details["shard"] == str(remote / "shard_000001.tar")


def test_changed_shard_is_not_taken_for_the_old_one(
    local: Path, remote: RemotePath, keys: dict[str, Any]
) -> None:
    """What is kept of a file belongs to one version of it."""
    batches(opened(remote, **keys), PLAN, 4)
    other = shard_output(local.parent.parent / "other", samples=SAMPLES, change=_longer) / "shards"
    upload(other, remote)

    assert read(remote, keys) == read(other, FIELDS)


def _longer(_key: str, members: dict[str, bytes]) -> None:
    members["extra.txt"] = b"x" * 2000
