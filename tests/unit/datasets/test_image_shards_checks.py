"""`verify` and `inspect` of image shards, written by vlatool and published ones."""

import io
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from tests.builders.errors import fails
from tests.builders.images import image, image_shards, saved, window_tree
from vlatool.datasets.image_shards.check import check
from vlatool.media.tar import TarWriter, member_bytes
from vlatool.recordings.artifact import recognize
from vlatool.recordings.check import CheckOptions
from vlatool.workflows.verify import InspectConfig, InspectResult, inspect

FIRST = "train-episode_000000.tar"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    image_shards(window_tree(folder / "A"), folder / "shards", val_ratio=0.3)
    return folder / "shards"


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """Copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


@pytest.fixture
def published(shards: Path) -> Path:
    """Copy without the files that only vlatool writes."""
    shutil.rmtree(shards / ".vlatool")
    for path in (*shards.glob("*.npz"), *shards.glob("*.txt"), shards / "manifest.json"):
        path.unlink()
    return shards


def codes(location: Path, *, full: bool = False) -> Counter[str]:
    options = CheckOptions(None if full else 200, full)
    return Counter(finding.code for finding in check(location, options))


def rewrite(tar: Path, members: dict[str, bytes]) -> None:
    """Replaces a tar by one with `members`."""
    with tar.open("wb") as file:
        writer = TarWriter(file)
        for name, data in members.items():
            writer.append(member_bytes(name, data))
        writer.finish()


def inspected(location: Path, html: Path | None = None) -> InspectResult:
    return inspect(InspectConfig(location=str(location), html=str(html) if html else None))


def kind(location: Path) -> str | None:
    artifact = recognize(location)
    return artifact and artifact.kind


def test_shards_and_each_of_them_are_whole(shards: Path, tmp_path: Path) -> None:
    assert kind(shards) == kind(shards / FIRST) == "image-shards"
    assert codes(shards, full=True) == codes(shards / FIRST, full=True) == {}
    report = inspected(shards).document()
    assert (report["kind"], report["shards"], report["pictures"]) == ("image-shards", 3, 12)
    assert (report["train"], report["val"]) == (2, 1)
    assert report["first"]["format"] == "png"
    assert report["metadata"]["key"] == "A/episode_000000/image/000000"
    assert report["options"]["jpeg_subsampling"] == "4:4:4"
    with tarfile.open(tmp_path / "a.tar", "w") as tar:  # training samples are another kind
        for name in ("a_1.front_t0.jpg", "a_1.lowdim.npz"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert kind(tmp_path / "a.tar") == "shard"


def test_published_shards_are_whole(published: Path) -> None:
    assert kind(published) == kind(published / FIRST) == "image-shards"
    findings = codes(published, full=True)
    assert findings == {"output.no_file_list": 1, "image_shards.no_manifest": 1}
    report = inspected(published).document()
    assert (report["pictures"], report["shards"], report["status"]) == (None, 3, "whole")
    assert inspected(published / FIRST).document()["pictures"] == 4
    shutil.copy(published / FIRST, published / "train-episode_000009.tar")
    assert codes(published)["image_shards.duplicate_picture"] == 4


def test_changed_bytes_and_lost_files_are_reported(shards: Path) -> None:
    data = bytearray((shards / FIRST).read_bytes())
    data[700] ^= 1
    (shards / FIRST).write_bytes(data)
    assert codes(shards)["output.digest_mismatch"] == 1
    (shards / FIRST).unlink()
    findings = inspected(shards).document()["findings"]
    assert {finding["code"] for finding in findings} == {"data.broken", "data.missing"}
    (shards / "manifest.json").unlink()  # as in an interrupted run
    assert kind(shards) == "image-shards"
    assert "output.missing_file" in codes(shards)


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ([0], [1, 2], {}),  # of the same shards
        ([0, 1], [2, 1], {"image_shards.listed_twice": 1}),
        ([0, 1], [2, 9], {"image_shards.listed_missing": 1}),
        ([0, 1], [], {"image_shards.empty_list": 1, "image_shards.unlisted": 1}),
        ([0, 1, 2], None, {"image_shards.one_list": 1}),
    ],
)
def test_each_defect_of_the_lists_has_a_code(
    shards: Path, train: list[int], val: list[int] | None, expected: dict[str, int]
) -> None:
    for name, numbers in (("train_files.txt", train), ("val_files.txt", val)):
        (shards / name).unlink()
        if numbers is not None:
            text = "".join(f"train-episode_{number:06d}.tar\n" for number in numbers)
            (shards / name).write_text(text)
    assert codes(shards) == expected


PNG = saved(image(0))


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"00000001.png": PNG}, "image_shards.bad_key"),
        ({"00000000.json": b"{}"}, "image_shards.no_picture"),
        ({"00000000.png": PNG, "00000000.jpg": PNG}, "image_shards.no_picture"),
        ({"00000000.png": PNG[:-20]}, "image_shards.broken_picture"),
        ({"00000000.png": PNG, "00000000.json": b"{"}, "image_shards.bad_metadata"),
        ({"00000000.png": PNG, "00000000.json": b"{}"}, "image_shards.bad_metadata"),
        (
            {
                "00000000.png": PNG,
                "00000000.json": b'{"key":"a/b/c/0"}',
                "00000001.png": PNG,
                "00000001.json": b'{"key":"a/b/c/0"}',
            },
            "image_shards.duplicate_picture",
        ),
    ],
)
def test_each_defect_of_a_shard_has_a_code(
    published: Path, members: dict[str, bytes], code: str
) -> None:
    rewrite(published / FIRST, members)
    assert codes(published)[code] == 1


def test_counts_and_sizes_of_the_manifest_are_compared(shards: Path) -> None:
    text = (shards / "manifest.json").read_text()
    text = text.replace('"resize_images_size": null', '"resize_images_size": [8, 8]')
    (shards / "manifest.json").write_text(text.replace('"pictures": 4', '"pictures": 5', 1))
    findings = codes(shards)
    assert findings["image_shards.count_mismatch"] == 1
    assert findings["image_shards.picture_size"] == 12


@pytest.mark.parametrize("text", ["{", '{"format": "vlatool.image-shards", "version": 9}'])
def test_an_unreadable_manifest_is_reported(shards: Path, text: str) -> None:
    (shards / "manifest.json").write_text(text)
    assert codes(shards)["image_shards.broken_manifest"] == 1
    with fails("data.broken"):
        inspected(shards)


def test_the_page_has_a_row_of_images_for_each_shard(shards: Path, tmp_path: Path) -> None:
    (shards / FIRST).write_bytes(b"no tar")
    inspected(shards, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg") == 8
    assert page.count('class="strip"') == 2
    assert "not a readable tar file" in page
