"""Bags, against the libraries that write and decode them."""

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap.writer import CompressionType

from tests.builders import hdf5
from tests.builders import mcap as build
from tests.builders.s3_server import Proxy, S3Server
from tests.builders.world_recordings import record_world
from vlatool.episode import Episode
from vlatool.errors import DataError
from vlatool.recordings.mcap.reader import McapConfig, McapReader
from vlatool.storage.uri import location
from vlatool.testing import check_reader

_BESIDE = Path(__file__).parents[4] / "shared" / "data" / "formats"
REAL = Path(os.environ.get("VLATOOL_RECORDINGS", _BESIDE)) / "mcap"
real = pytest.mark.skipif(not REAL.is_dir(), reason="VLATOOL_RECORDINGS has no bags")


def read(path: Path, number: int = 0, **options: Any) -> Episode:
    reader = McapReader(McapConfig(**{"fps": 10, **options}))
    return reader.read(list(reader.discover([path]))[number])


def mapped(path: Path, text: str, **options: Any) -> Episode:
    file = path.parent / "mapping.yaml"
    file.write_text(text)
    return read(path, mapping=str(file), **options)


def codes(episode: Episode) -> list[str]:
    quiet = {"mcap.clock", "left_out.data"}
    return [finding.code for finding in episode.findings if finding.code not in quiet]


def test_recordings_of_the_world_keep_the_rules_of_readers(tmp_path: Path) -> None:
    record_world("mcap", tmp_path / "raw", episodes=2, frames=4)
    episode = check_reader(McapReader, tmp_path / "raw")[0]
    assert (episode.num_frames, episode.fps, episode.success) == (4, 10, False)
    assert episode.language["original"][0].startswith("put the")
    assert (episode.action_fields, episode.proprioception_fields) == (("action",), ("state",))


@real
def test_values_of_a_real_bag_are_those_of_its_decoder() -> None:
    decoder = pytest.importorskip("mcap_ros2.decoder")
    path = REAL / "robot_sample.mcap"
    expected: dict[str, list[Any]] = {}
    with path.open("rb") as file:
        reader = make_reader(file, decoder_factories=[decoder.DecoderFactory()])
        for _, channel, stored, message in reader.iter_decoded_messages():
            if channel.topic.endswith(("joint_states", "joint_command")):
                expected.setdefault(channel.topic, []).append((stored.log_time, message.position))
    episode = read(path, fps=20)
    assert episode.num_frames == 200
    for topic, rows in expected.items():
        name = topic.strip("/").replace("/", ".")
        np.testing.assert_array_equal(
            episode.lowdim[f"{name}.position"], [values for _, values in rows]
        )


@real
def test_parts_of_a_real_bag_are_one_episode(tmp_path: Path) -> None:
    listed = "".join(f"\n  - ros2_part_{number}.mcap" for number in (0, 1))
    text = f"rosbag2_bagfile_information:\n relative_file_paths:{listed}\n"
    (tmp_path / "metadata.yaml").write_text(text)
    for number in (0, 1):
        (tmp_path / f"ros2_part_{number}.mcap").symlink_to(REAL / f"ros2_part_{number}.mcap")
    reader = McapReader(McapConfig())
    refs = list(reader.discover([tmp_path]))
    assert [len(ref.files) for ref in refs] == [2]
    with pytest.raises(DataError, match="no images and no numbers"):
        reader.read(refs[0])


def test_a_row_has_the_last_value_before_its_time(tmp_path: Path) -> None:
    sent = [("/action", time, build.numbers(time)) for time in (0.0, 0.1, 0.25, 0.31, 0.5)]
    sent += [("/state", time, build.numbers(time)) for time in (0.1, 0.2, 0.3, 0.4)]
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    assert episode.lowdim["action"].ravel().tolist() == [0.1, 0.1, 0.25, 0.31]
    assert episode.lowdim["state"].ravel().tolist() == [0.1, 0.2, 0.3, 0.4]
    messages = {finding.code: finding.message for finding in episode.findings}
    assert messages["mcap.rows_dropped"] == "a: 1 rows at the start, 1 at the end"
    assert "/action: 5 messages, 2 unused, every 125 ms" in messages["mcap.clock"]


def test_stamps_that_are_rounded_take_their_own_row(tmp_path: Path) -> None:
    sent = [("/state", step / 10 + 1e-7 * (step % 2), build.numbers(step)) for step in range(6)]
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    assert episode.lowdim["state"].ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_header_stamps_order_and_time_values(tmp_path: Path) -> None:
    times = (0.2, 0.0, 0.1)
    sent = [
        ("/joint_states", index, build.joints(time, a=time)) for index, time in enumerate(times)
    ]
    path = build.bag(tmp_path / "a.mcap", [*sent, ("/action", 0.0, build.numbers(1))])
    episode = read(path, time_source="header")
    assert episode.lowdim["joint_states.position"].ravel().tolist() == [0.0, 0.1, 0.2]
    assert codes(episode) == ["mcap.no_stamp", "mcap.out_of_order", "source.no_language"]


def test_an_old_value_fails_the_episode_and_gaps_are_named(tmp_path: Path) -> None:
    steps = [0, 1, 2, 3, 9, 10]
    sent = [("/state", step / 10, build.numbers(step)) for step in steps]
    path = build.bag(
        tmp_path / "a.mcap", [*sent, ("/instruction", 0, build.ros(build.STRING, "x"))]
    )
    assert codes(read(path)) == ["mcap.gaps"]
    with pytest.raises(DataError, match=r"fields\.state: the value in row 6 is 0\.3 s old"):
        read(path, max_age_s=0.25)


def test_joints_have_one_order_whatever_that_of_a_message(tmp_path: Path) -> None:
    sent = [
        ("/joint_states", 0.0, build.joints(0, b=2, a=1)),
        ("/joint_states", 0.1, build.joints(0, a=3, b=4)),
    ]
    path = build.bag(tmp_path / "a.mcap", sent)
    episode = read(path)
    assert episode.lowdim["joint_states.position"].tolist() == [[1, 2], [3, 4]]
    assert episode.dimension_names["joint_states.velocity"] == ("a", "b")
    text = "{fields: {q: /joint_states/position}, joints: {q: [b]}}"
    assert mapped(path, text).lowdim["q"].ravel().tolist() == [2, 4]


def test_numbers_of_any_message_are_found_by_their_path(tmp_path: Path) -> None:
    point = build.ros("geometry_msgs/msg/Point", 1, 2, 3)
    rotation = build.ros("geometry_msgs/msg/Quaternion", 0, 0, 0, 1)
    pose = build.ros(
        build.POSE, build.header(), build.ros("geometry_msgs/msg/Pose", point, rotation)
    )
    path = build.bag(tmp_path / "a.mcap", [("/arm/pose", 0, pose)])
    whole = read(path)
    assert whole.lowdim["arm.pose"].tolist() == [[1, 2, 3, 0, 0, 0, 1]]
    assert whole.dimension_names["arm.pose"][3] == "pose.orientation.x"
    part = mapped(path, "fields: {z: /arm/pose/pose.position.z}")
    assert part.lowdim["z"].tolist() == [[3]]


@pytest.mark.parametrize(
    ("encoding", "select"), [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("mono8", [0])]
)
def test_raw_images_are_rgb(encoding: str, select: list[int], tmp_path: Path) -> None:
    images = hdf5.images(3)
    sent = [
        (
            "/front/image_raw",
            index / 10,
            build.image(images[index][..., select], encoding, padding=5),
        )
        for index in range(3)
    ]
    camera = read(build.bag(tmp_path / "a.mcap", sent)).cameras["front"]
    expected = images if len(select) == 3 else images[..., [0, 0, 0]]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(camera)).read([2, 0]), expected[[2, 0]])


def test_depth_in_meters_becomes_millimeters_and_0_where_it_is_unknown(tmp_path: Path) -> None:
    cell = np.array([[0.5, 1.0004], [np.nan, np.inf], [-np.inf, 70.0]], np.float32)
    depth = np.tile(cell, (8, 12))
    path = build.bag(tmp_path / "a.mcap", [("/front/depth", 0, build.image(depth, "32FC1"))])
    expected = np.tile([[500, 1000], [0, 0], [0, 0]], (8, 12))
    np.testing.assert_array_equal(read(path).depth["front"].read([0])[0], expected)


def test_numbers_and_texts_of_json_messages(tmp_path: Path) -> None:
    def change(writer: Any) -> None:
        schema = writer.register_schema("foxglove.CompressedImage", "jsonschema", b"{}")
        channel = writer.register_channel("/arm", "json", schema)
        for index in range(3):
            body = {"header": {"stamp": {"sec": "x"}}, "q": [index, 0.5], "grip": {"open": True}}
            data = json.dumps(body | {"task": "pick"}).encode()
            writer.add_message(channel, build.START + index * 10**8, data, 0)

    path = build.bag(tmp_path / "a.mcap", [], change=change)
    text = "fields: {q: /arm/q, open: /arm/grip}\ninstruction: /arm/task\n"
    episode = mapped(path, text, time_source="header")
    assert episode.lowdim["q"].tolist() == [[0, 0.5], [1, 0.5], [2, 0.5]]
    assert episode.lowdim["open"].tolist() == [[1], [1], [1]]
    assert episode.instruction_at(0) == "pick"


def test_a_json_topic_that_is_no_json_is_left_out_without_a_mapping(tmp_path: Path) -> None:
    def change(writer: Any) -> None:
        schema = writer.register_schema("x", "jsonschema", b"{}")
        channel = writer.register_channel("/log", "json", schema)
        writer.add_message(channel, build.START, b"{broken", 0)

    episode = read(build.bag(tmp_path / "a.mcap", build.standard(), change=change))
    assert [part.role for part in episode.parts if part.path == "/log"] == ["left_out"]


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_encoded_images_are_passed_on(form: str, tmp_path: Path) -> None:
    files = [hdf5.encoded(hdf5.image(index), form) for index in range(2)]
    sent = [("/image_raw/compressed", i / 10, build.encoded(file)) for i, file in enumerate(files)]
    camera = read(build.bag(tmp_path / "a.mcap", sent)).cameras["image_raw_compressed"]
    assert [camera.encoded(index) for index in (0, 1)] == files


def test_foxglove_messages_are_read_by_their_descriptors(tmp_path: Path) -> None:
    images = hdf5.images(2)
    sent: list[build.Sent] = []
    for index, pixels in enumerate(images):
        time, file = index / 10, hdf5.encoded(pixels)
        height, width = pixels.shape[:2]
        raw = {"width": width, "height": height, "encoding": "rgb8", "step": 3 * width}
        raw["data"] = pixels.tobytes()
        sent += [
            ("/raw", time, build.foxglove("RawImage", time, **raw)),
            ("/png", time, build.foxglove("CompressedImage", time, data=file, format="png")),
            ("/tip", time, build.foxglove("PoseInFrame", time, position={"x": index, "z": 2})),
        ]
    episode = read(build.bag(tmp_path / "a.mcap", sent), time_source="header")
    np.testing.assert_array_equal(episode.cameras["raw"].read([0, 1]), images)
    assert episode.cameras["png"].encoded(1) == hdf5.encoded(images[1])
    assert episode.lowdim["tip"].tolist() == [[0, 0, 2], [1, 0, 2]]


def test_video_is_decoded_from_its_keyframes(tmp_path: Path) -> None:
    images = np.stack([np.full((32, 32, 3), 40 * index, np.uint8) for index in range(6)])
    sent = [
        ("/front", index / 10, build.foxglove("CompressedVideo", data=data, format="h264"))
        for index, data in enumerate(build.packets(images)[1:])
    ]
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    assert "mcap.skipped" in codes(episode)  # the packet before the first keyframe
    camera = episode.cameras["front"]
    assert (len(camera), camera.size) == (4, (32, 32))
    for order in ([0, 1, 2, 3], [3, 1, 0]):
        decoded = camera.read(order).astype(int)
        assert np.abs(decoded - images[2:][order]).max() <= 3


@pytest.mark.parametrize(
    "options",
    [
        {"compression": CompressionType.LZ4},
        {"compression": CompressionType.NONE},
        {"use_chunking": False},
        {"chunk_size": 100},
        {"use_statistics": False},
    ],
)
def test_each_kind_of_file_has_the_same_values(options: dict[str, Any], tmp_path: Path) -> None:
    sent = [*build.standard(), *[("/image", 0, build.image(hdf5.image(1), "rgb8"))]]
    expected = read(build.bag(tmp_path / "a.mcap", sent))
    episode = read(build.bag(tmp_path / "b.mcap", sent, **options))
    for name, values in expected.lowdim.items():
        np.testing.assert_array_equal(episode.lowdim[name], values)
    np.testing.assert_array_equal(episode.cameras["image"].read([4])[0], hdf5.image(1))


@pytest.mark.parametrize("name", ["a.bag", "a"])
def test_bags_of_ros_1_and_db3_are_read(name: str, tmp_path: Path) -> None:
    version = 1 if name.endswith(".bag") else 2
    images = hdf5.images(3)
    sent: list[build.Sent] = []
    for index, pixels in enumerate(images):
        header = build.header(index / 10, version)
        file = np.frombuffer(hdf5.encoded(pixels), np.uint8)
        values = np.array([index, 7.0])
        state = build.ros(build.JOINTS, header, ["a", "b"], values, values, values, version=version)
        sent.append(("/joint_states", index / 10, state))
        image = build.ros(build.ENCODED, header, "png", file, version=version)
        sent.append(("/front", index / 10, image))
    path = build.other_bag(tmp_path / name, sent)
    for source in ("log", "header"):
        episode = read(path, time_source=source)
        assert episode.lowdim["joint_states.position"].tolist() == [[0, 7], [1, 7], [2, 7]]
        camera = pickle.loads(pickle.dumps(episode.cameras["front"]))
        np.testing.assert_array_equal(camera.read([1, 2, 0]), images[[1, 2, 0]])


def test_a_damaged_time_is_an_error_and_no_endless_episode(tmp_path: Path) -> None:
    sent = [("/action", time, build.numbers(time)) for time in (0.0, 0.1, 7e9)]
    with pytest.raises(DataError, match="the times jump") as caught:
        read(build.bag(tmp_path / "a.mcap", sent))
    assert (caught.value.code, "mcap filter" in caught.value.hint) == ("data.broken", True)


def test_bags_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    for name in ("x/demo.mcap", "y/demo.mcap", "z/demo-2.mcap"):
        (tmp_path / name).parent.mkdir()
        build.bag(tmp_path / name, [])
    refs = McapReader(McapConfig()).discover([tmp_path])
    assert [ref.id for ref in refs] == ["demo", "demo-2", "demo-2-2"]


def test_an_instruction_that_changes_within_an_episode_is_a_span_of_its_rows(
    tmp_path: Path,
) -> None:
    texts = [("/instruction", 0.25, build.ros(build.STRING, "pull"))]
    episode = read(build.bag(tmp_path / "a.mcap", [*build.standard(), *texts]))
    spans = [(span.kind, span.text, span.first, span.last) for span in episode.language_spans]
    assert spans == [("original", "push", 0, 2), ("original", "pull", 3, 4)]
    assert (episode.task, dict(episode.language)) == ("push", {})


def test_images_that_cannot_be_decoded_are_named_and_no_camera(tmp_path: Path) -> None:
    sent = [*build.standard(), ("/front", 0.0, build.encoded(b"\0\1\2"))]
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    assert ([*episode.cameras], codes(episode)) == ([], ["left_out.wanted"])


def test_a_proposed_mapping_reads_the_same_values(tmp_path: Path) -> None:
    path = build.bag(tmp_path / "a.mcap", build.standard())
    text = McapReader.propose(path) or ""
    assert '"joint_states.position": ["b", "a"]' in text
    expected, episode = read(path), mapped(path, text)
    assert [*episode.lowdim] == [*expected.lowdim]
    columns = episode.lowdim["joint_states.position"]
    np.testing.assert_array_equal(columns[:, ::-1], expected.lowdim["joint_states.position"])


@pytest.mark.parametrize("metadata", [{}, {"fps": "5"}])
def test_a_proposed_mapping_has_a_rate(metadata: dict[str, str], tmp_path: Path) -> None:
    images = [("/front", i / 4, build.image(hdf5.image(i), "rgb8")) for i in range(4)]
    slow = [("/back", i / 2.001, build.image(hdf5.image(i), "rgb8")) for i in range(3)]
    sent = [*build.standard(20), *images, *slow]
    path = build.bag(tmp_path / "a.mcap", sent, change=lambda w: w.add_metadata("lab", metadata))
    episode = mapped(path, McapReader.propose(path) or "", fps=None)
    assert episode.fps == (5 if metadata else 2)


def test_a_proposed_rate_is_that_of_the_slowest_field_without_cameras(tmp_path: Path) -> None:
    sent = [*build.standard(30), *[("/slow", i / 3, build.numbers(i)) for i in range(6)]]
    path = build.bag(tmp_path / "a.mcap", sent)
    assert "\nfps: 3.0 " in (McapReader.propose(path) or "")


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    def change(writer: Any) -> None:
        writer.add_attachment(0, 0, "arm.urdf", "text/xml", b"1234")
        writer.add_metadata("lab", {"room": "5"})
        schema = writer.register_schema("x", "jsonschema", b"{}")
        writer.add_message(writer.register_channel("/cbor", "cbor", schema), build.START, b"{}", 0)

    episode = read(build.bag(tmp_path / "a.mcap", build.standard(), change=change))
    left = next(finding for finding in episode.findings if finding.code == "left_out.data")
    for part in ("/cbor (is encoded", "attachment arm.urdf (4 bytes)", "lab@room (metadata)"):
        assert part in left.message
    assert codes(episode) == ["mcap.unknown_encoding"]


def long_bag(folder: Path, **options: Any) -> Path:
    return build.bag(folder / "a.mcap", build.standard(40), chunk_size=1000, **options)


def _chunks(path: Path) -> list[Any]:
    with path.open("rb") as file:
        summary = make_reader(file).get_summary()
    return summary.chunk_indexes if summary else []


def cut_off(path: Path) -> None:
    build.cut(path, _chunks(path)[-1].chunk_start_offset + 30)


def cut_in_its_first_chunk(path: Path) -> None:
    build.bag(path, build.standard(4000), compression=CompressionType.LZ4)
    build.cut(path, 100_000)


def without_index(path: Path) -> None:
    build.cut(path, -36)


def wrong_index(path: Path) -> None:
    build.damaged(path, -100, b"\xff\xff")


def wrong_checksum(path: Path) -> None:
    build.damaged(path, _chunks(path)[2].chunk_start_offset + 9 + 24, b"\1\2\3\4")


def cut_chunk(path: Path) -> None:
    chunk = _chunks(path)[2]
    build.damaged(path, chunk.chunk_start_offset + chunk.chunk_length - 60, bytes(50))


def long_record(path: Path) -> None:
    place = _chunks(path)[2].chunk_start_offset + 1
    build.cut(build.damaged(path, place, struct.pack("<Q", 2**60)), -1)


@pytest.mark.parametrize(
    ("damage", "code", "rows"),
    [
        (cut_off, "mcap.cut_off", 38),
        (cut_in_its_first_chunk, "mcap.cut_off", 1683),
        (without_index, "mcap.bad_index", 40),
        (wrong_index, "mcap.bad_index", 40),
        (wrong_checksum, "mcap.damaged_chunk", 40),
        (cut_chunk, "mcap.damaged_chunk", 40),
        (long_record, "mcap.cut_off", 11),
    ],
)
def test_damaged_files_are_read_as_far_as_they_go(
    damage: Callable[[Path], None], code: str, rows: int, tmp_path: Path
) -> None:
    path = long_bag(tmp_path)
    damage(path)
    episode = read(path)
    assert code in codes(episode)
    assert episode.num_frames == rows


def no_magic(path: Path) -> None:
    build.damaged(path, 0, b"x")


def large_chunk(path: Path) -> None:
    place = _chunks(path)[1].chunk_start_offset + 9 + 16
    build.damaged(path, place, struct.pack("<Q", 10 * 2**30))


def empty(path: Path) -> None:
    build.bag(path, [])


def not_a_bag(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (no_magic, "data.broken"),
        (not_a_bag, "data.broken"),
        (large_chunk, "data.broken"),
        (empty, "data.broken"),
    ],
)
def test_files_that_cannot_be_read_are_errors(
    damage: Callable[[Path], None], code: str, tmp_path: Path
) -> None:
    path = long_bag(tmp_path)
    damage(path)
    if damage is no_magic:
        build.cut(path, -1)
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message


def test_a_chunk_that_inflates_to_more_than_it_says_is_left_out(tmp_path: Path) -> None:
    path = long_bag(tmp_path)
    place = _chunks(path)[1].chunk_start_offset + 9 + 16
    build.damaged(path, place, struct.pack("<Q", 100))
    assert "mcap.damaged_chunk" in codes(read(path))


def _message(schema: tuple[str, str, bytes], data: bytes = b"") -> Callable[[Any], None]:
    def change(writer: Any) -> None:
        number = writer.register_schema(*schema) if schema[0] else 0
        channel = writer.register_channel("/state", "cdr", number)
        writer.add_message(channel, build.START, data, 0)

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_message(("", "", b"")), "data.broken"),
        (_message(("lab/msg/X", "ros2msg", b"float64[ x")), "data.broken"),
        (_message(("lab/msg/X", "ros2msg", b"lab/Y[999999] x")), "data.broken"),
        (_message(("lab/msg/X", "ros2msg", b"float64 x"), b"\0\1\0\0\0"), "data.broken"),
        (
            _message(("lab/msg/X", "ros2msg", b"float64[] x"), b"\0\1\0\0" + b"\xff" * 8),
            "data.broken",
        ),
        (
            _message(("lab/msg/X", "ros2msg", b"string x"), b"\0\1\0\0\2\0\0\0a\0"),
            "data.broken",
        ),
    ],
)
def test_topics_that_cannot_be_decoded_are_errors_if_they_are_mapped(
    change: Callable[[Any], None], code: str, tmp_path: Path
) -> None:
    path = build.bag(tmp_path / "a.mcap", build.standard(), change=change)
    with pytest.raises(DataError) as caught:
        mapped(path, "fields: {a: /action, s: /state}")
    assert caught.value.code == code


def test_a_topic_with_two_types_is_an_error_if_it_is_mapped(tmp_path: Path) -> None:
    sent = [*build.standard(), ("/action", 0.2, build.ros(build.STRING, "x"))]
    path = build.bag(tmp_path / "a.mcap", sent)
    assert codes(read(path)) == ["mcap.two_types", "left_out.wanted"]
    with pytest.raises(DataError, match="/action: has messages of 2 types"):
        mapped(path, "fields: {a: /action}")


def test_a_topic_whose_name_is_not_utf_8_is_left_out_and_named(tmp_path: Path) -> None:
    options = {"compression": CompressionType.NONE, "enable_crcs": False}
    path = build.bag(tmp_path / "a.mcap", build.standard(), **options)
    path.write_bytes(path.read_bytes().replace(b"/action", b"/\xff\xfetion"))
    episode = read(path)
    assert [*episode.lowdim] == ["joint_states.position", "joint_states.velocity"]
    messages = [finding.message for finding in episode.findings if finding.code == "mcap.cut_off"]
    assert "a record is left out: UnicodeDecodeError" in messages[0]
    assert "5 messages of channel 3 without description" in messages[1]


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("fields: {a: /nothing}", "data.broken", "the bag has /action"),
        ("fields: {a: /action/date}", "data.broken", "there is no 'date'"),
        ("cameras: {a: {path: /action}}", "data.broken", "which are no images"),
        ("{fields: {a: /action}, instruction: /action}", "data.broken", "is no text"),
        ("{fields: {a: /action}, fps: 'note@fps'}", "data.broken", "is no frame rate"),
        ("{fields: {a: /action}, joint: {}}", "data.broken", "joint"),
        ("{fields: {a: /action}, episodes: /start}", "data.broken", "episodes.* is withdrawn"),
    ],
)
def test_a_mapping_that_does_not_fit_is_an_error(
    text: str, code: str, reason: str, tmp_path: Path
) -> None:
    path = build.bag(tmp_path / "a.mcap", build.standard())
    with pytest.raises(DataError, match=reason) as caught:
        mapped(path, text, fps=10 if "fps" not in text else None)
    assert caught.value.code == code


def test_a_part_that_is_missing_fails_its_bag_only(tmp_path: Path) -> None:
    build.bag(tmp_path / "a.mcap", build.standard())
    (tmp_path / "b").mkdir()
    build.bag(tmp_path / "b" / "b_0.mcap", build.standard())
    text = "rosbag2_bagfile_information: {relative_file_paths: [b_0.mcap, b_1.mcap]}"
    (tmp_path / "b" / "metadata.yaml").write_text(text)
    reader = McapReader(McapConfig(fps=10))
    refs = list(reader.discover([tmp_path]))
    assert reader.read(refs[0]).num_frames == 5
    with pytest.raises(DataError, match=r"b_1\.mcap: is listed in metadata\.yaml"):
        reader.read(refs[1])


def test_a_remote_bag_is_read_by_its_index(
    s3: S3Server, s3_bucket: str, s3_proxy: Proxy, tmp_path: Path
) -> None:
    images = hdf5.images(3)
    sent = [("/front", i / 10, build.image(pixels, "rgb8")) for i, pixels in enumerate(images)]
    for path in (build.bag(tmp_path / "a.mcap", sent), build.other_bag(tmp_path / "a.db3", sent)):
        for file in [path] if path.is_file() else path.iterdir():
            name = str(file.relative_to(tmp_path))
            s3.client().upload_file(str(file), s3_bucket, f"bags/{name}")
    reader = McapReader(McapConfig(fps=10))
    refs = list(reader.discover([location(f"s3://{s3_bucket}/bags")]))
    assert [ref.path.name for ref in refs] == ["a.db3", "a.mcap"]
    for ref in refs:
        s3_proxy.faults.requests.clear()
        np.testing.assert_array_equal(
            reader.read(ref).cameras["front"].read([2, 0]), images[[2, 0]]
        )
        assert len(s3_proxy.faults.requests) <= 12


@pytest.mark.parametrize("name", ["a.mcap", "a.bag", "a"])
def test_changed_bytes_end_in_findings_or_data_errors(name: str, tmp_path: Path) -> None:
    version = 1 if name == "a.bag" else 2
    sent = [
        ("/a", i / 10, build.ros("std_msgs/msg/Float64", float(i), version=version))
        for i in range(8)
    ]
    if name == "a.mcap":
        images = [("/front", i / 10, build.image(hdf5.image(i), "rgb8")) for i in range(3)]
        path = build.bag(tmp_path / name, sent + images, enable_crcs=False, chunk_size=500)
    else:
        path = build.other_bag(tmp_path / name, sent)
        path = next(path.glob("*.db3")) if path.is_dir() else path
    rng, content = random.Random(5), path.read_bytes()
    for number in range(60):
        changed = bytearray(content)
        place, length = rng.randrange(len(content)), rng.choice([1, 1, 8])
        changed[place : place + length] = rng.choice([b"\0", b"\xff"]) * length
        target = tmp_path / f"{number}{path.suffix}"
        target.write_bytes(changed if number % 6 else changed[:place])
        with suppress(DataError):
            for camera in read(target).cameras.values():
                camera.read(range(len(camera)))
