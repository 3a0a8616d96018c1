"""Training data in S3: the same micro-batches, few requests. Source: reference/order 11."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders.errors import fails
from tests.builders.loading import batches, loader_of, names, opened
from tests.builders.s3_runs import upload
from tests.builders.s3_server import Proxy
from tests.builders.shards import shard_output
from vlatool.errors import StorageError
from vlatool.loading.base import MicroBatch
from vlatool.loading.loader import LoaderPlan
from vlatool.media.tar import index_by_headers, index_path
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import SPEED_VARIABLE, TIMEOUT_VARIABLE

SAMPLES, SHARDS = 12, 4  # three samples per shard
PLAN = LoaderPlan(6)
FIELDS: dict[str, Any] = {"action_fields": ["action"], "proprioception_fields": ["state"]}


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Shards without indexes, like the published ones."""
    return shard_output(tmp_path / "local", samples=SAMPLES) / "shards"


@pytest.fixture
def remote(local: Path, s3_bucket: str) -> RemotePath:
    return upload(local, RemotePath(f"s3://{s3_bucket}/data/shards"))


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    """A section `data` with an empty cache."""
    cache = {"cache_dir": str(tmp_path / "cache"), "enabled": False}
    return {**FIELDS, "dataset_cache": cache}


def write_indexes(folder: Path) -> None:
    for shard in sorted(folder.glob("*.tar")):
        index_path(shard).write_bytes(index_by_headers(shard).content())


def read(folder: Path, keys: dict[str, Any], plan: LoaderPlan = PLAN) -> list[MicroBatch]:
    """Reads one and a half epochs."""
    return batches(opened(folder, **keys), plan, 6)


def requests_of(proxy: Proxy, name: str) -> list[str]:
    """Methods and ranges of the requests for files with a name."""
    rows = [row for row in proxy.faults.requests if row.path.endswith(name)]
    return [f"{row.method} {row.range}".strip() for row in rows]


def test_sample_is_one_request(
    local: Path, remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy
) -> None:
    write_indexes(local)
    upload(local, remote)
    data = opened(remote, **keys)
    s3_proxy.faults.clear()

    with loader_of(data, replace(PLAN, count=SAMPLES)) as loader:
        micro_batches = list(loader)

    assert len(names(micro_batches)) == SAMPLES
    shards = requests_of(s3_proxy, ".tar")
    assert shards.count("HEAD") == len(requests_of(s3_proxy, ".index.npz")) == SHARDS
    assert len([request for request in shards if request.startswith("GET bytes=")]) in (
        SAMPLES,
        SAMPLES + 6,
    )


def test_shard_without_index_is_streamed_once_for_all(
    remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy
) -> None:
    data = opened(remote, **keys)
    s3_proxy.faults.clear()
    batches(data, PLAN, 6)
    streamed = [
        request for request in requests_of(s3_proxy, ".tar") if request.startswith("GET bytes=0-")
    ]
    s3_proxy.faults.clear()

    batches(data, PLAN, 6)

    repeated = [
        request for request in requests_of(s3_proxy, ".tar") if request == "GET bytes=0-262143"
    ]
    assert streamed.count("GET bytes=0-262143") == SHARDS
    assert repeated == []


@pytest.mark.parametrize("enabled", [True, None])
def test_cached_shards_are_downloaded_once(
    remote: RemotePath,
    keys: dict[str, Any],
    s3_proxy: Proxy,
    tmp_path: Path,
    enabled: bool | None,
) -> None:
    """Small data are cached by default."""
    keys["dataset_cache"] |= {"enabled": enabled, "cache_size_gb": 1}
    data = opened(remote, **keys)
    batches(data, PLAN, 6)
    downloads = [request for request in requests_of(s3_proxy, ".tar") if request.startswith("GET")]
    s3_proxy.faults.clear()

    batches(data, PLAN, 6)

    assert len(downloads) == SHARDS
    assert not [row for row in requests_of(s3_proxy, ".tar") if row.startswith("GET")]
    assert len(list((tmp_path / "cache").glob("*.copy"))) == SHARDS


@pytest.mark.parametrize("enabled", [True, None])
def test_shards_are_not_cached_if_they_do_not_fit(
    remote: RemotePath, keys: dict[str, Any], tmp_path: Path, enabled: bool | None
) -> None:
    """Each shard would be downloaded several times."""
    keys["dataset_cache"] |= {"enabled": enabled, "cache_size_gb": 1e-4}

    batches(opened(remote, **keys), PLAN, 1)

    assert list((tmp_path / "cache").glob("*.copy")) == []


def test_resume_opens_only_the_next_shards(
    remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy
) -> None:
    data = opened(remote, **keys, lanes=1, shuffle_buffer_size=3)
    s3_proxy.faults.clear()

    batches(data, LoaderPlan(3, first=10**6), 1)

    # The micro-batch and the prefetched one; three consecutive samples may be in two shards.
    assert requests_of(s3_proxy, ".tar").count("HEAD") <= 3


def test_outage_drops_no_sample(
    remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, "20")
    data = opened(remote, **keys)
    expected = batches(data, PLAN, 4)
    s3_proxy.faults.fail_every = 5

    micro_batches = batches(data, PLAN, 4)

    assert micro_batches == expected
    assert not any(sum(batch.dropped) for batch in micro_batches)


def test_unavailable_storage_or_a_missing_shard_ends_the_run(
    remote: RemotePath, keys: dict[str, Any], s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "0.2")
    data = opened(remote, **keys)
    (remote / "shard_000001.tar").unlink()
    with fails("data.missing") as caught:
        batches(data, LoaderPlan(SAMPLES), 1)
    assert caught.value.details["shard"] == str(remote / "shard_000001.tar")

    s3_proxy.faults.down_for(60)
    with pytest.raises(StorageError):
        batches(data, PLAN, 1)


def test_cache_is_not_used_for_a_changed_shard(
    local: Path, remote: RemotePath, keys: dict[str, Any]
) -> None:
    """A cached copy belongs to one version of a file."""
    batches(opened(remote, **keys), PLAN, 4)
    other = shard_output(local.parent.parent / "other", samples=SAMPLES, change=_longer) / "shards"
    upload(other, remote)

    assert read(remote, keys) == read(other, FIELDS)


def _longer(_key: str, members: dict[str, bytes]) -> None:
    members["extra.txt"] = b"x" * 2000
