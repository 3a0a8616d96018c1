"""Writes LeRobot v2.1 data sets with h264 video. Source: lerobot-format 2 to 7."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import av
import numpy as np
from numpy.typing import NDArray

from vlatool.episode import UInt8Array
from vlatool.storage.atomic import write_bytes
from vlatool.world.episodes import WorldEpisode
from vlatool.world.lerobot_layout import (
    DATA_PATH,
    META_FILES,
    OWNED_FILES,
    VIDEO_PATH,
    Stats,
    automatic_columns,
    automatic_features,
    feature,
    table_stats,
    template_values,
    vector_column,
    write_lines,
    write_meta,
    write_table,
)
from vlatool.world.recording import RecordedEpisode, RecordingSetup, recorded
from vlatool.world.render import View
from vlatool.world.scene import FPS

ROBOT_TYPE = "vlatool_world"
_STATE_NAMES = ["x", "y", "z", "opening"]
# One thread, no clock and no B-frames (with them x264's bytes vary from run to run, measured):
# the same pictures give the same bytes.
_ENCODER = {"crf": "18", "g": "2", "bf": "0", "preset": "medium", "threads": "1"}
_CONTAINER = {"fflags": "+bitexact"}


@dataclass(frozen=True)
class LeRobotRecorder:
    """Records into `setup.output`."""

    owned: ClassVar[tuple[str, ...]] = OWNED_FILES
    closing: ClassVar[tuple[str, ...]] = META_FILES
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        """Writes one episode's videos and table."""
        place = template_values(episode.index)
        stats: dict[str, Any] = {}
        files: list[str] = []
        for view in self.setup.views:
            key = video_key(view)
            frames = list(episode.pictures(view))
            files.append(VIDEO_PATH.format(video_key=key, **place))
            write_bytes(self.setup.output / files[-1], encode_video(frames))
            stats[key] = _picture_stats(np.stack(frames))
        columns = {
            "observation.state": vector_column(episode.states.astype(np.float32)),
            "action": vector_column(episode.actions.astype(np.float32)),
            **automatic_columns(episode.index, len(episode), first_row, episode.target),
        }
        files.append(DATA_PATH.format(**place))
        write_table(self.setup.output / files[-1], columns)
        return recorded(episode, files, stats | table_stats(columns))

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Writes the meta files."""
        stats = ({"episode_index": one.index, "stats": one.stats} for one in episodes)
        write_lines(self.setup.output / "meta/episodes_stats.jsonl", stats)
        features = {
            "observation.state": feature("float32", [4], _STATE_NAMES),
            "action": feature("float32", [4], _STATE_NAMES),
            **{video_key(view): _video_feature(view) for view in self.setup.views},
            **automatic_features(),
        }
        write_meta(self.setup.output, "v2.1", episodes, features, ROBOT_TYPE)


def video_key(view: View) -> str:
    """Name of a camera's feature."""
    return f"observation.images.{view.camera.name}"


def encode_video(frames: Sequence[UInt8Array]) -> bytes:
    """An mp4 file, h264, yuv420p, from pictures uint8 [H, W, 3] with even sides."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=_CONTAINER) as container:
        stream = container.add_stream("libx264", rate=FPS, options=_ENCODER)
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = frames[0].shape[:2]
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _picture_stats(pictures: NDArray[np.uint8]) -> Stats:
    """Statistics of [L, H, W, 3] per channel in 0..1, shaped (3, 1, 1) as the format has them."""
    chosen = pictures[:, ::4, ::4].reshape(-1, 3) / 255.0
    values = {
        "min": chosen.min(axis=0),
        "max": chosen.max(axis=0),
        "mean": chosen.mean(axis=0),
        "std": chosen.std(axis=0),
    }
    stats: Stats = {name: value.reshape(3, 1, 1).tolist() for name, value in values.items()}
    return stats | {"count": [len(pictures)]}


def _video_feature(view: View) -> dict[str, Any]:
    height, width = view.size
    info = {
        "video.fps": float(FPS),
        "video.height": height,
        "video.width": width,
        "video.channels": 3,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "has_audio": False,
    }
    declared = feature("video", [height, width, 3], ["height", "width", "channels"])
    return declared | {"info": info}
