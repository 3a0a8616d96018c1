"""Messages of MCAP files that are cut off or damaged, by the reference writer and reader."""

from pathlib import Path
from typing import Any

import pytest

from vlatool.formats.mcap import repair

writer_module: Any = pytest.importorskip("mcap.writer")


def bag(path: Path, count: int = 300) -> bytes:
    with path.open("wb") as file:
        writer = writer_module.Writer(file, chunk_size=2000)
        writer.start("ros2", "recorder")
        schema = writer.register_schema("std_msgs/msg/String", "ros2msg", b"string data")
        topics = [writer.register_channel(f"/topic{n}", "cdr", schema) for n in range(2)]
        writer.add_metadata("robot", {"name": "arm"})
        for number in range(count):
            data = number.to_bytes(4, "little") * 10
            writer.add_message(topics[number % 2], number * 100, data, number * 100, number)
        writer.add_attachment(1, 1, "calibration", "text/plain", b"0.5")
        writer.finish()
    return path.read_bytes()


def messages(path: Path) -> list[tuple[str, int, bytes]]:
    from mcap.reader import make_reader

    with path.open("rb") as file:
        rows = make_reader(file, validate_crcs=True).iter_messages()
        return [(channel.topic, message.log_time, message.data) for _, channel, message in rows]


def test_a_file_without_a_summary_has_all_of_its_messages(tmp_path: Path) -> None:
    whole, cut, healthy = (tmp_path / name for name in ("whole", "cut", "healthy"))
    data = bag(whole)
    cut.write_bytes(data[:-60])
    assert (repair.is_whole(whole), repair.is_whole(cut)) == (True, False)
    repair.salvage(cut, healthy, ())
    assert messages(healthy) == messages(whole)
    assert repair.is_whole(healthy)


def test_messages_before_the_cut_are_in_the_copy(tmp_path: Path) -> None:
    whole, cut, healthy = (tmp_path / name for name in ("whole", "cut", "healthy"))
    data = bag(whole)
    cut.write_bytes(data[: len(data) // 2])
    salvaged = repair.salvage(cut, healthy, ())
    actual = messages(healthy)
    assert 0 < len(actual) < 300
    assert actual == messages(whole)[: len(actual)]
    assert any(str(f"{cut.stat().st_size:,}") in part for part in salvaged.lost)


def test_a_damaged_chunk_is_left_out_and_named(tmp_path: Path) -> None:
    whole, path, healthy = (tmp_path / name for name in ("whole", "damaged", "healthy"))
    data = bytearray(bag(whole))
    data[data.index((0x28B52FFD).to_bytes(4, "big"), 900) + 20] ^= 255  # in a zstd frame
    path.write_bytes(data[:-100])
    salvaged = repair.salvage(path, healthy, ())
    expected = messages(whole)
    actual = messages(healthy)
    assert 0 < len(actual) < len(expected)
    assert set(actual) < set(expected)
    assert any("the chunk that ends at byte" in part for part in salvaged.lost)
