"""Frames of videos that are cut off or have no index are those of the whole video."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from vlatool.formats.media import repair_mp4
from vlatool.formats.media.repair import NothingWhole

PLAIN, REORDERED = {"bf": "0"}, {"bf": "3", "g": "250"}


def video(path: Path, count: int, options: dict[str, str], **container: str) -> bytes:
    """Writes a video of a moving square."""
    codec = options.get("codec", "libx264")
    encoder = {key: value for key, value in options.items() if key != "codec"}
    with av.open(str(path), "w", options=container) as file:
        stream: Any = file.add_stream(codec, rate=Fraction(12), options=encoder)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(count):
            image = np.full((64, 96, 3), 3 * number % 200, np.uint8)
            image[number % 50 : number % 50 + 10, 10:30] = 220
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    return path.read_bytes()


def images(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path), "r") as file:
        return [np.asarray(f.to_ndarray(format="rgb24"), np.uint8) for f in file.decode(video=0)]


@pytest.mark.parametrize("share", [0.6, 1])
@pytest.mark.parametrize("options", [PLAIN, REORDERED, {"codec": "libx265", **REORDERED}])
def test_frames_without_an_index_are_read_with_the_settings_of_a_whole_video(
    tmp_path: Path, options: dict[str, str], share: float
) -> None:
    whole, path, healthy = (tmp_path / name for name in ("whole.mp4", "cut.mp4", "healthy.mp4"))
    video(whole, 40, options)
    data = video(path, 60, options)
    expected = images(path)
    path.write_bytes(data[: int(data.rindex(b"moov") * share) - 4])
    assert not repair_mp4.is_whole(path)
    repair_mp4.salvage(path, healthy, [whole])
    actual = images(healthy)
    assert repair_mp4.is_whole(healthy)
    assert len(actual) >= 60 * share * 0.8 - 4
    assert all(map(np.array_equal, actual, expected))


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+empty_moov"])
@pytest.mark.parametrize("options", [PLAIN, REORDERED])
def test_frames_before_the_cut_of_a_video_with_an_index_are_copied(
    tmp_path: Path, options: dict[str, str], flags: str
) -> None:
    path, healthy = tmp_path / "cut.mp4", tmp_path / "healthy.mp4"
    data = video(path, 60, {**options, "g": "10"}, movflags=flags)
    expected = images(path)
    assert repair_mp4.is_whole(path)
    path.write_bytes(data[: len(data) * 2 // 3])
    assert not repair_mp4.is_whole(path)
    repair_mp4.salvage(path, healthy, ())
    actual = images(healthy)
    assert 10 < len(actual) < 60
    assert all(map(np.array_equal, actual, expected))


def test_a_video_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    video(whole, 40, {"crf": "35"})
    data = video(path, 60, {"crf": "18"})
    path.write_bytes(data[: data.rindex(b"moov") - 4])
    with pytest.raises(NothingWhole, match="no whole h264 or hevc video of the same recorder"):
        repair_mp4.salvage(path, tmp_path / "healthy.mp4", [whole])
