"""Files of bags: compressed as a whole or by message, without an index, cut off."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from mcap.writer import CompressionType
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from tests.builders import hdf5
from tests.builders import mcap as build
from vlatool.episode import Episode
from vlatool.errors import DataError
from vlatool.recordings.mcap import files
from vlatool.recordings.mcap.reader import McapConfig, McapReader

PLUGINS = [StoragePlugin.MCAP, StoragePlugin.SQLITE3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(path: Path, **options: Any) -> list[Episode]:
    reader = McapReader(McapConfig(fps=10, **options))
    return [reader.read(ref) for ref in reader.discover([path])]


def sent_images(count: int = 3) -> list[build.Sent]:
    images = hdf5.images(count)
    return [("/front", i / 10, build.image(pixels, "rgb8")) for i, pixels in enumerate(images)]


def compressed(path: Path, suffix: str = ".zstd") -> Path:
    """The file, compressed as a whole in its place."""
    target = path.with_name(path.name + suffix)
    target.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(path.read_bytes()))
    path.unlink()
    return target


def codes(episode: Episode) -> list[str]:
    return [finding.code for finding in episode.findings if finding.code.startswith("mcap.")]


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
@pytest.mark.parametrize("plugin", PLUGINS)
def test_bags_that_are_compressed_have_the_values_of_others(
    plugin: StoragePlugin, mode: CompressionMode, tmp_path: Path
) -> None:
    path = build.other_bag(
        tmp_path / "bags/take", [*build.standard(), *sent_images()], plugin, mode
    )
    episodes = read(path.parent)
    assert [episode.id for episode in episodes] == ["take"]
    assert episodes[0].lowdim["action"].tolist() == [[0, 0], [1, -1], [2, -2]]
    np.testing.assert_array_equal(episodes[0].cameras["front"].read([2, 0]), hdf5.images(3)[[2, 0]])


@pytest.mark.parametrize("suffix", [".zstd", ".zst"])
def test_a_compressed_file_alone_is_a_bag_of_its_name(suffix: str, tmp_path: Path) -> None:
    path = compressed(build.bag(tmp_path / "take.mcap", build.standard()), suffix)
    assert [episode.id for episode in read(path)] == ["take"]


def test_a_bag_is_inflated_once_and_not_beside_it(tmp_path: Path) -> None:
    path = compressed(build.bag(tmp_path / "bags.mcap", build.standard()))
    reader = McapReader(McapConfig(fps=10))
    (ref,) = reader.discover([path])
    reader.read(ref)
    (copy,) = (tmp_path / "cache").rglob("bags.mcap")
    made = copy.stat().st_mtime_ns
    reader.read(ref)
    assert copy.stat().st_mtime_ns == made
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "cache"]


def test_a_bag_that_is_also_there_inflated_is_one_episode(tmp_path: Path) -> None:
    path = build.bag(tmp_path / "take.mcap", build.standard())
    shutil.copy(path, tmp_path / "copy")
    compressed(path)
    os.rename(tmp_path / "copy", path)
    assert len(read(tmp_path)) == 1


@pytest.mark.parametrize("plugin", PLUGINS)
def test_parts_that_were_inflated_by_hand_are_found(plugin: StoragePlugin, tmp_path: Path) -> None:
    path = build.other_bag(tmp_path / "take", build.standard(), plugin, CompressionMode.FILE)
    (file,) = path.glob("*.zstd")
    stream = zstandard.ZstdDecompressor().stream_reader(file.read_bytes())
    file.with_suffix("").write_bytes(stream.read())
    assert len(read(tmp_path)) == 1
    file.unlink()
    assert read(tmp_path)[0].num_frames == 5


def test_parts_that_were_compressed_by_hand_are_found(tmp_path: Path) -> None:
    path = build.other_bag(tmp_path / "take", build.standard())
    compressed(next(path.glob("*.db3")))
    assert read(tmp_path)[0].num_frames == 5


def test_a_file_that_inflates_to_more_than_the_limit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compressed(build.bag(tmp_path / "a.mcap", build.standard()))
    monkeypatch.setattr(files, "_LARGEST_FILE", 100)
    with pytest.raises(DataError, match="inflates to more than 100 bytes") as caught:
        read(path)
    assert caught.value.code == "data.broken"
    assert "zstd -d" in caught.value.hint
    assert not [*(tmp_path / "cache").rglob("*.mcap")]


def test_a_message_that_inflates_to_more_than_the_limit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build.other_bag(
        tmp_path / "take", build.standard(), StoragePlugin.SQLITE3, CompressionMode.MESSAGE
    )
    monkeypatch.setenv("VLATOOL_MEMORY_GB", "4e-8")
    (tmp_path / "mapping.yaml").write_text("fields: {a: /action}")
    with pytest.raises(DataError, match=r"left out: /action .*the limit is 10"):
        read(path)
    with pytest.raises(DataError, match="the limit is 10") as caught:
        read(path, mapping=str(tmp_path / "mapping.yaml"))
    assert caught.value.code == "data.broken"


def test_a_damaged_file_is_named_with_the_command_that_tests_it(tmp_path: Path) -> None:
    path = compressed(build.bag(tmp_path / "a.mcap", build.standard()))
    build.damaged(path, 20, b"\xff" * 30)
    with pytest.raises(DataError) as caught:
        read(path)
    assert (caught.value.code, "zstd -t" in caught.value.hint) == ("data.broken", True)


def test_a_compressed_file_that_is_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    options = {"chunk_size": 200, "compression": CompressionType.NONE}
    path = compressed(build.bag(tmp_path / "a.mcap", build.standard(4000), **options))
    build.cut(path, path.stat().st_size // 2)
    (episode,) = read(path)
    assert 0 < episode.num_frames < 4000
    assert "mcap.cut_off" in codes(episode)


def test_a_bag_is_inflated_to_a_temporary_folder_if_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compressed(build.bag(tmp_path / "a.mcap", build.standard()))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert read(path)


def test_a_part_of_an_unknown_compression_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mcap").write_bytes(b"")
    (tmp_path / "b.db3.lz4").write_bytes(b"")
    text = "rosbag2_bagfile_information: {relative_file_paths: [b.db3.lz4]}"
    (tmp_path / "metadata.yaml").write_text(text)
    reader = McapReader(McapConfig(fps=10))
    with pytest.raises(DataError, match=r"b\.db3\.lz4: is listed") as caught:
        reader.read(next(iter(reader.discover([tmp_path]))))
    assert "inflate it" in caught.value.hint


# ROS 1 without an index


def ros1_bag(path: Path, compression: Writer1.CompressionFormat | None = None) -> Path:
    writer = Writer1(path)
    writer.chunk_threshold = 400
    if compression is not None:
        writer.set_compression(compression)
    with writer:
        kind = "std_msgs/msg/Float64"
        link = writer.add_connection("/a", kind, typestore=build.store(1))
        for step in range(30):
            data = build.store(1).serialize_ros1(build.ros(kind, float(step), version=1), kind)
            writer.write(link, build.START + step * 10**8, data)
    return path


@pytest.mark.parametrize("compression", [None, *Writer1.CompressionFormat])
def test_a_bag_without_an_index_has_all_values(
    compression: Writer1.CompressionFormat | None, tmp_path: Path
) -> None:
    path = build.unindexed(ros1_bag(tmp_path / "a.bag", compression))
    (episode,) = read(path)
    assert episode.lowdim["a"].ravel().tolist() == list(range(30))
    assert codes(episode)[:1] == ["mcap.bad_index"]
    assert "mcap.cut_off" not in codes(episode)


@pytest.mark.parametrize("is_open", [False, True])
def test_a_bag_that_was_being_recorded_is_read_up_to_its_last_whole_message(
    is_open: bool, tmp_path: Path
) -> None:
    path = build.unindexed(ros1_bag(tmp_path / "a.bag"), cut=1, is_open=is_open)
    path = path.rename(tmp_path / "run.bag.active")
    (episode,) = read(tmp_path)
    assert episode.id == "run"
    assert episode.lowdim["a"].ravel().tolist() == list(range(29))
    (finding,) = [finding for finding in episode.findings if finding.code == "mcap.cut_off"]
    assert "29 messages are read" in finding.message


def test_an_indexed_bag_that_is_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = ros1_bag(tmp_path / "a.bag")
    build.cut(path, path.stat().st_size * 2 // 3)
    (episode,) = read(path)
    values = episode.lowdim["a"].ravel().tolist()
    assert values == list(range(len(values)))
    assert 5 < len(values) < 30


def test_a_chunk_that_cannot_be_inflated_is_left_out(tmp_path: Path) -> None:
    path = build.unindexed(ros1_bag(tmp_path / "a.bag", Writer1.CompressionFormat.BZ2))
    place = path.read_bytes().index(b"BZh", 5000)
    build.damaged(path, place, b"xxxx")
    (episode,) = read(path)
    assert len(np.unique(episode.lowdim["a"])) < 30
    assert "mcap.damaged_chunk" in codes(episode)


def test_a_bag_without_a_whole_message_is_an_error_with_its_hint(tmp_path: Path) -> None:
    path = ros1_bag(tmp_path / "a.bag")
    build.cut(path, 4200)
    with pytest.raises(DataError, match="has no whole message") as caught:
        read(path)
    assert "copy the bag" not in caught.value.hint


def test_what_rosbag_reindex_leaves_beside_is_no_episode(tmp_path: Path) -> None:
    ros1_bag(tmp_path / "run.bag")
    shutil.copy(tmp_path / "run.bag", tmp_path / "run.orig.bag")
    assert [episode.id for episode in read(tmp_path)] == ["run"]
