"""Writes the LIBERO parquet layout: pictures as PNG in the table. Source: lerobot-format 13."""

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from vlatool.episode import UInt8Array
from vlatool.storage.atomic import write_json
from vlatool.world.episodes import WorldEpisode
from vlatool.world.lerobot_layout import (
    DATA_PATH,
    META_FILES,
    OWNED_FILES,
    automatic_columns,
    automatic_features,
    feature,
    merge_stats,
    table_stats,
    template_values,
    vector_column,
    write_meta,
    write_table,
)
from vlatool.world.recording import RecordedEpisode, RecordingSetup, recorded
from vlatool.world.render import View
from vlatool.world.scene import OPEN

PUBLISHED_SIZE = (256, 256)
PICTURE_COLUMNS = ("image", "wrist_image")
# An action of 1 moves the real arm's goal by this many metres (robosuite's default scale).
_METRES_PER_UNIT = 0.05
# Axis-angle of a hand that points down.
_DOWNWARD = (np.pi, 0.0, 0.0)


@dataclass(frozen=True)
class LiberoRecorder:
    """Records into `setup.output`; the two views become `image` and `wrist_image`."""

    owned: ClassVar[tuple[str, ...]] = OWNED_FILES
    closing: ClassVar[tuple[str, ...]] = META_FILES
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        """Writes one episode's table."""
        pictures = {
            name: _picture_column(episode, view)
            for name, view in zip(PICTURE_COLUMNS, self.setup.views, strict=True)
        }
        columns = {
            **pictures,
            "state": vector_column(_states(episode)),
            "actions": vector_column(_actions(episode)),
            **automatic_columns(episode.index, len(episode), first_row, episode.target),
        }
        path = DATA_PATH.format(**template_values(episode.index))
        write_table(self.setup.output / path, columns)
        return recorded(episode, [path], table_stats(columns))

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Writes the meta files."""
        merged = {
            name: merge_stats([one.stats[name] for one in episodes]) for name in episodes[0].stats
        }
        write_json(self.setup.output / "meta/stats.json", merged, indent=4)
        features: dict[str, Any] = {
            name: feature("image", [*view.size, 3], ["height", "width", "channel"])
            for name, view in zip(PICTURE_COLUMNS, self.setup.views, strict=True)
        }
        features["state"] = feature("float32", [8], ["state"])
        features["actions"] = feature("float32", [7], ["actions"])
        features |= automatic_features()
        write_meta(self.setup.output, "v2.0", episodes, features, "panda")


def _picture_column(episode: WorldEpisode, view: View) -> pa.Array:
    cells = [
        {"bytes": _png(picture), "path": f"frame_{number:06d}.png"}
        for number, picture in enumerate(episode.pictures(view))
    ]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _png(picture: UInt8Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _states(episode: WorldEpisode) -> NDArray[np.float32]:
    """Position, axis-angle, the two fingers [L, 8]."""
    states = episode.states
    turn = np.tile(_DOWNWARD, (len(states), 1))
    finger = states[:, 3:] / 2
    return np.hstack([states[:, :3], turn, finger, -finger]).astype(np.float32)


def _actions(episode: WorldEpisode) -> NDArray[np.float32]:
    """Displacement, no turn, gripper (-1 open, 1 closed) [L, 7]."""
    ways = (episode.actions[:, :3] - episode.states[:, :3]) / _METRES_PER_UNIT
    grip = np.where(episode.actions[:, 3:] > OPEN / 2, -1.0, 1.0)
    return np.hstack([ways, np.zeros_like(ways), grip]).astype(np.float32)
