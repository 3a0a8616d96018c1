"""Errors of runs on data without a usable sample, before anything is written."""

import shutil
import tarfile
from pathlib import Path

from tests.builders.errors import fails
from tests.builders.training import CAMERAS, tiny_config
from vlatool.workflows.train import train


def without_camera(data: Path, target: Path) -> Path:
    """A copy whose shards lack the images of one camera; the options still name it."""
    shutil.copytree(data, target, ignore=shutil.ignore_patterns("*.tar", "*.index.npz"))
    for shard in sorted((data / "shards").glob("*.tar")):
        with (
            tarfile.open(shard) as source,
            tarfile.open(target / "shards" / shard.name, "w") as tar,
        ):
            for member in source:
                if CAMERAS[1] not in member.name:
                    tar.addfile(member, source.extractfile(member))
    return target


def test_shards_without_a_camera_are_rejected_unless_padded_or_only_some_lack_it(
    data: Path, tmp_path: Path
) -> None:
    lacking, run = without_camera(data, tmp_path / "data"), tmp_path / "run"
    for dry_run in (False, True):
        with fails("data.no_samples", 3) as caught:
            train(tiny_config(lacking, run, dry_run=dry_run))
        assert CAMERAS[1] in caught.value.message
        assert not run.exists()

    keys = {"data__pad_missing_images": True, "total_train_steps": 1}
    assert train(tiny_config(lacking, run, **keys)).dropped == {}

    whole = sorted((data / "shards").glob("*.tar"))
    assert len(whole) > 1
    for shard in whole[len(whole) // 2 :]:
        shutil.copy(shard, lacking / "shards" / shard.name)
    keys = {"data__max_dropped_share": 1.0, "total_train_steps": 1}
    assert train(tiny_config(lacking, tmp_path / "some", **keys)).dropped != {}
