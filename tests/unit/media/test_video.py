import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.builders.lerobot import encoded_image, frame_of, image, write_video
from vlatool.episode import Clip
from vlatool.errors import DataError
from vlatool.media.frames import VideoFrames, probe_video

FRAMES = 300


@pytest.fixture(scope="module")
def long_gop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "long.mp4"
    write_video(path, FRAMES, g="250", bf="3", sc_threshold="0")
    return path


def decode_all(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.asarray(images, np.uint8)


def test_the_test_video_has_b_frames_and_a_long_gop(long_gop: Path) -> None:
    with av.open(str(long_gop)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    times = [packet.pts for packet in packets]
    assert times != sorted(t for t in times if t is not None)
    assert sum(packet.is_keyframe for packet in packets) == 2


def test_random_access_equals_sequential_decoding(long_gop: Path) -> None:
    expected = decode_all(long_gop)
    frames = VideoFrames(Clip(long_gop), FRAMES)
    picks = np.random.default_rng(0).integers(0, FRAMES, 40).tolist()
    for number in [*picks, 0, 299, 249, 250, 251, 250]:
        assert np.array_equal(frames.read([number])[0], expected[number]), number


def test_frames_of_any_indices_are_read_again_after_a_close_and_by_a_pickled_copy(
    long_gop: Path,
) -> None:
    frames = VideoFrames(Clip(long_gop), FRAMES)
    first = frames.read([7, 3, 3, 40])
    assert [frame_of(image) for image in first] == [7, 3, 3, 40]
    assert frames.read([]).shape == (0, 32, 48, 3)
    copy = pickle.loads(pickle.dumps(frames))
    assert len(copy) == FRAMES
    assert np.array_equal(copy.read([7, 3, 3, 40]), first)
    frames.close()
    assert np.array_equal(frames.read([7, 3, 3, 40]), first)
    assert frames.size == probe_video(Clip(long_gop)).size == (32, 48)


def test_ascending_reads_open_the_file_once(
    long_gop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    original = av.open

    def counting_open(path: str, **options: Any) -> object:
        opened.append(path)
        return original(path, **options)

    monkeypatch.setattr(av, "open", counting_open)
    frames = VideoFrames(Clip(long_gop), FRAMES)
    frames.read([0])
    before = len(opened)
    for first in range(1, 200, 8):
        frames.read(range(first, first + 8))
    assert len(opened) == before


@pytest.mark.parametrize(("codec", "suffix"), [("mjpeg", "avi"), ("libsvtav1", "mp4")])
def test_other_codecs_are_exact(tmp_path: Path, codec: str, suffix: str) -> None:
    path = tmp_path / f"video.{suffix}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.height, stream.width = 64, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(image(number, 64, 64), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    assert probe_video(Clip(path)).num_frames == 12
    frames = VideoFrames(Clip(path), 12)
    assert [frame_of(frames.read([number])[0]) for number in (11, 2, 5, 4)] == [11, 2, 5, 4]


@pytest.mark.parametrize("name", ["video.mkv", "video.ts", "video.avi"])
def test_other_containers_are_exact_with_b_frames(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_video(path, 60, g="20", bf="3")
    expected = decode_all(path)
    frames = VideoFrames(Clip(path), 60)
    for number in (0, 59, 7, 33, 34, 20, 19):
        assert np.array_equal(frames.read([number])[0], expected[number]), number


def test_uneven_frame_times_do_not_shift_frames(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24")
            frame.pts, frame.time_base = 300 + 20 * number**2, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = VideoFrames(Clip(path), 30)
    assert [frame_of(frames.read([number])[0]) for number in (0, 29, 13)] == [0, 29, 13]


def test_frames_are_counted_if_the_container_has_no_length(tmp_path: Path) -> None:
    path = tmp_path / "video.mkv"
    write_video(path, 9)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert probe_video(Clip(path)).num_frames == 9


PIXMAP = b"P6\n4 4\n255\n" + bytes(48)  # FFmpeg decodes it as a video of one frame


@pytest.mark.parametrize(
    "content", [b"", b"not a video", PIXMAP, encoded_image(1)[:40], None], ids=str
)
def test_file_that_is_not_a_video_or_of_an_unknown_codec_is_rejected(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, 3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"xxxx") if content is None else content)
    with pytest.raises(DataError) as caught:
        probe_video(Clip(path)) if content is None else VideoFrames(Clip(path), 3).read([0])
    assert caught.value.code == "data.broken"
    assert caught.value.details["path"] == str(path)


def test_a_truncated_video_names_the_frame(tmp_path: Path) -> None:
    path = tmp_path / "video.mkv"
    write_video(path, 60, g="10")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError) as caught:
        VideoFrames(Clip(path), 60).read(range(60))
    assert caught.value.code == "data.broken"
    assert 0 < caught.value.details["frame"] < 60


@pytest.mark.parametrize("per_read", [8, 1])
def test_a_frame_of_another_size_is_named(tmp_path: Path, per_read: int) -> None:
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuvj420p"
        for number in range(8):
            side = 64 if number < 5 else 32
            encoder: Any = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width, encoder.pix_fmt = side, side, "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            frame = av.VideoFrame.from_ndarray(image(number, side, side), format="rgb24")
            for packet in encoder.encode(frame.reformat(format="yuvj420p")):
                packet.stream = stream
                packet.pts = packet.dts = number
                container.mux(packet)
    frames = VideoFrames(Clip(path), 8)
    with pytest.raises(DataError) as caught:
        [frames.read(range(start, start + per_read)) for start in range(0, 8, per_read)]
    assert (caught.value.code, caught.value.details["frame"]) == ("data.broken", 5)
    assert "32x32" in caught.value.message
