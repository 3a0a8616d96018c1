"""Cutting and joining of encoded video. Source: formats/lerobot 7."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.builders.lerobot import write_video
from vlatool.episode import Clip
from vlatool.media.video import copy_clip, join_clips

RATE = Fraction(10)
B_FRAMES = {"g": "12", "bf": "2"}


def decoded(data: bytes) -> tuple[list[float], list[bytes]]:
    """Times and pixels of all frames."""
    with av.open(io.BytesIO(data), "r") as container:
        frames = list(container.decode(video=0))
    return [float(f.time or 0) for f in frames], [f.to_ndarray().tobytes() for f in frames]


@pytest.fixture
def joined(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A file of three clips of 20, 7 and 15 frames, and the clips."""
    parts: list[Path] = []
    for number, length in enumerate((20, 7, 15)):
        source = tmp_path / f"source{number}.mp4"
        write_video(source, length, fps=10, **B_FRAMES)
        copied = copy_clip(Clip(source), length, RATE)
        assert copied is not None
        parts.append(tmp_path / f"part{number}.mp4")
        parts[-1].write_bytes(copied.data)
    buffer = io.BytesIO()
    join_clips(parts, RATE, buffer, 2)
    path = tmp_path / "joined.mp4"
    path.write_bytes(buffer.getvalue())
    return path, [part.read_bytes() for part in parts]


def test_joined_clips_have_the_same_frames_at_counted_times(
    joined: tuple[Path, list[bytes]],
) -> None:
    path, parts = joined
    times, frames = decoded(path.read_bytes())
    assert np.allclose(times, np.arange(42) / 10, rtol=0, atol=1e-9)
    assert frames == [frame for part in parts for frame in decoded(part)[1]]


@pytest.mark.parametrize(("start", "count", "part"), [(0, 20, 0), (20, 7, 1), (27, 15, 2)])
def test_a_clip_is_cut_out_of_a_shared_file(
    joined: tuple[Path, list[bytes]], start: int, count: int, part: int
) -> None:
    path, parts = joined
    cut = copy_clip(Clip(path, start / 10, (start + count) / 10), count, RATE)
    assert cut is not None
    times, frames = decoded(cut.data)
    assert frames == decoded(parts[part])[1]
    assert np.allclose(times, np.arange(count) / 10, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("start", "count"),
    [(1, 5), (20, 2), (27, 16)],
    ids=["no keyframe", "between B-frames", "beyond the end"],
)
def test_frames_that_need_others_are_not_copied(
    joined: tuple[Path, list[bytes]], start: int, count: int
) -> None:
    clip = Clip(joined[0], start / 10, (start + count) / 10)
    assert copy_clip(clip, count, RATE) is None
