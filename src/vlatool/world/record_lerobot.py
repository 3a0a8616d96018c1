"""Writers of LeRobot data sets: v2.1 with h264 video, and the layout of LIBERO with PNG cells.

Source: formats/lerobot 2, 3, 4, 5, 6, 7, 10.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from vlatool.artifacts.lerobot.format import (
    AUTOMATIC,
    DATA_PATH,
    EPISODE_STATS_FILE,
    META_FILES,
    OWNED_FILES,
    STATS_FILE,
    VIDEO_PATH,
    EpisodeLine,
    SetInfo,
    Stats,
    automatic_features,
    feature,
    merge_stats,
    moments,
    table_stats,
    template_values,
    vector_column,
    write_lines,
    write_meta,
    write_table,
)
from vlatool.artifacts.video import encode_video
from vlatool.episode import UInt8Array
from vlatool.storage.atomic import write_bytes, write_json
from vlatool.world.episodes import WorldEpisode
from vlatool.world.libero import (
    ACTION_WIDTH,
    IMAGE_COLUMNS,
    STATE_WIDTH,
    libero_actions,
    libero_states,
)
from vlatool.world.recording import RecordedEpisode, RecordingSetup, recorded_episode
from vlatool.world.render import View
from vlatool.world.scene import COLORS, FPS, instruction_for

PUBLISHED_SIZE = (256, 256)
_STATE_NAMES = ["x", "y", "z", "opening"]


@dataclass(frozen=True)
class LeRobotRecorder:
    """Recorder of LeRobot v2.1 data sets with videos."""

    owned: ClassVar[Sequence[str]] = OWNED_FILES
    closing: ClassVar[Sequence[str]] = META_FILES
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        """Writes the videos and the table of one episode."""
        template = template_values(episode.index)
        stats: dict[str, Any] = {}
        files: list[str] = []
        for view in self.setup.views:
            key = video_key(view)
            frames = list(episode.images(view))
            files.append(VIDEO_PATH.format(video_key=key, **template))
            write_bytes(self.setup.output / files[-1], encode_video(frames, FPS))
            stats[key] = _image_stats(np.stack(frames))
        columns = {
            "observation.state": vector_column(episode.states.astype(np.float32)),
            "action": vector_column(episode.actions.astype(np.float32)),
            **_columns(episode, first_row),
        }
        files.append(DATA_PATH.format(**template))
        write_table(self.setup.output / files[-1], columns)
        return recorded_episode(episode, files, stats | table_stats(columns))

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Writes the files in `meta/`."""
        stats = ({"episode_index": episode.index, "stats": episode.stats} for episode in episodes)
        write_lines(self.setup.output / EPISODE_STATS_FILE, stats)
        features = {
            "observation.state": feature("float32", [4], _STATE_NAMES),
            "action": feature("float32", [4], _STATE_NAMES),
            **{video_key(view): _video_feature(view) for view in self.setup.views},
        }
        _write_meta(self.setup, episodes, "v2.1", "vlatool_world", features)


@dataclass(frozen=True)
class LiberoRecorder:
    """Recorder of LIBERO data sets; the two views become `image` and `wrist_image`."""

    owned: ClassVar[Sequence[str]] = OWNED_FILES
    closing: ClassVar[Sequence[str]] = META_FILES
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        """Writes the table of one episode."""
        images = {
            name: _image_column(episode, view)
            for name, view in zip(IMAGE_COLUMNS, self.setup.views, strict=True)
        }
        columns = {
            **images,
            "state": vector_column(libero_states(episode.states)),
            "actions": vector_column(libero_actions(episode.actions, episode.states)),
            **_columns(episode, first_row),
        }
        path = DATA_PATH.format(**template_values(episode.index))
        write_table(self.setup.output / path, columns)
        return recorded_episode(episode, [path], table_stats(columns))

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Writes the files in `meta/`."""
        merged = {
            name: merge_stats([episode.stats[name] for episode in episodes])
            for name in episodes[0].stats
        }
        write_json(self.setup.output / STATS_FILE, merged, indent=4)
        features: dict[str, Any] = {
            name: feature("image", [*view.size, 3], ["height", "width", "channel"])
            for name, view in zip(IMAGE_COLUMNS, self.setup.views, strict=True)
        }
        features["state"] = feature("float32", [STATE_WIDTH], ["state"])
        features["actions"] = feature("float32", [ACTION_WIDTH], ["actions"])
        _write_meta(self.setup, episodes, "v2.0", "panda", features)


def _columns(episode: WorldEpisode, first_row: int) -> dict[str, pa.Array]:
    """Columns of all data sets."""
    length = len(episode)
    frames = np.arange(length)
    columns = (
        (frames / FPS).astype(np.float32),
        frames,
        np.full(length, episode.index),
        first_row + frames,
        np.full(length, episode.target),
    )
    return dict(zip(AUTOMATIC, map(pa.array, columns), strict=True))


def _write_meta(
    setup: RecordingSetup,
    episodes: Sequence[RecordedEpisode],
    version: str,
    robot_type: str,
    features: Mapping[str, Any],
) -> None:
    tasks = [instruction_for(color) for color in COLORS]
    info = SetInfo(version, robot_type, FPS, tasks, {**features, **automatic_features()})
    lines = [
        EpisodeLine(episode.index, (episode.instruction,), episode.frames) for episode in episodes
    ]
    write_meta(setup.output, info, lines)


def video_key(view: View) -> str:
    """Name of the feature of a camera."""
    return f"observation.images.{view.camera.name}"


def _image_stats(images: NDArray[np.uint8]) -> Stats:
    """Statistics of [L, H, W, 3] per channel in 0..1, with the shape (3, 1, 1) of the format."""
    pixels = images[:, ::4, ::4].reshape(-1, 3) / 255.0
    stats = {name: value.reshape(3, 1, 1).tolist() for name, value in moments(pixels).items()}
    return {**stats, "count": [len(images)]}


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


def _image_column(episode: WorldEpisode, view: View) -> pa.Array:
    cells = [
        {"bytes": _png(image), "path": f"frame_{number:06d}.png"}
        for number, image in enumerate(episode.images(view))
    ]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _png(image: UInt8Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
