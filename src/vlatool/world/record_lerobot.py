"""Episodes of the world, with the fields of LeRobot data sets, and a writer of LIBERO's layout.

Source: formats/lerobot 2, 3, 4, 5, 6, 7, 10.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from vlatool.episode import Episode, FieldSpec, FrameSource, Survey, UInt8Array
from vlatool.recordings.lerobot import layout as lerobot_layout
from vlatool.recordings.lerobot.output import IMAGE_CELL
from vlatool.storage.atomic import write_json
from vlatool.world import scene
from vlatool.world.recording import RecordedEpisode, RecordingSetup, WorldEpisode, recorded_episode
from vlatool.world.render import View

PUBLISHED_SIZE = (256, 256)
STATE = "observation.state"
ACTION = "action"
_STATE_NAMES = ("x", "y", "z", "opening")
ROBOT_TYPE = "vlatool_world"


@dataclass(frozen=True)
class DrawnFrames(FrameSource):
    """Images of a view as a `FrameSource`, drawn when they are read."""

    view: View
    scenes: Sequence[scene.Scene]

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def size(self) -> tuple[int, int]:
        return self.view.size

    def read(self, indices: Sequence[int]) -> UInt8Array:
        return np.stack([self.view.draw(self.scenes[index]) for index in indices])


def world_survey(views: Sequence[View], episodes: int) -> Survey:
    """Survey of episodes of the world with the columns of a LeRobot data set."""
    spec = FieldSpec(len(_STATE_NAMES), _STATE_NAMES)
    return Survey(
        episodes=episodes,
        cameras={view.camera.name: view.size for view in views},
        fields={STATE: spec, ACTION: spec},
        fps=scene.FPS,
        action_fields=(ACTION,),
        proprioception_fields=(STATE,),
    )


def as_episode(episode: WorldEpisode, views: Sequence[View]) -> Episode:
    """An episode of the world with the fields of `world_survey`; images are drawn when read."""
    return Episode(
        id=f"episode_{episode.index:06d}",
        task=episode.instruction,
        fps=scene.FPS,
        num_frames=len(episode),
        cameras={view.camera.name: DrawnFrames(view, episode.scenes) for view in views},
        lowdim={STATE: episode.states, ACTION: episode.actions},
        language={"original": [episode.instruction]},
        action_fields=(ACTION,),
        proprioception_fields=(STATE,),
    )


@dataclass(frozen=True)
class LiberoWriter:
    """Recorder of LIBERO data sets; the two views become `image` and `wrist_image`."""

    owned: ClassVar[Sequence[str]] = lerobot_layout.OWNED_FILES
    closing: ClassVar[Sequence[str]] = lerobot_layout.META_FILES
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        images = {
            name: _image_column(episode, view)
            for name, view in zip(scene.IMAGE_COLUMNS, self.setup.views, strict=True)
        }
        columns = {
            **images,
            "state": lerobot_layout.vector_column(scene.libero_states(episode.states)),
            "actions": lerobot_layout.vector_column(
                scene.libero_actions(episode.actions, episode.states)
            ),
            **lerobot_layout.automatic_columns(
                np.arange(len(episode)), scene.FPS, episode.index, first_row
            ),
            "task_index": pa.array(np.full(len(episode), episode.target)),
        }
        path = lerobot_layout.DATA_PATH.format(**lerobot_layout.template_values(episode.index))
        lerobot_layout.write_table(self.setup.output / path, columns)
        return recorded_episode(episode, [path], lerobot_layout.table_stats(columns))

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        merged = {
            name: lerobot_layout.merge_stats([episode.stats[name] for episode in episodes])
            for name in episodes[0].stats
        }
        write_json(self.setup.output / lerobot_layout.STATS_FILE, merged, indent=4)
        features: dict[str, Any] = {
            name: lerobot_layout.feature("image", [*view.size, 3], ["height", "width", "channel"])
            for name, view in zip(scene.IMAGE_COLUMNS, self.setup.views, strict=True)
        }
        features["state"] = lerobot_layout.feature("float32", [scene.STATE_WIDTH], ["state"])
        features["actions"] = lerobot_layout.feature("float32", [scene.ACTION_WIDTH], ["actions"])
        _write_meta(self.setup, episodes, "v2.0", "panda", features)


def _write_meta(
    setup: RecordingSetup,
    episodes: Sequence[RecordedEpisode],
    version: str,
    robot_type: str,
    features: Mapping[str, Any],
) -> None:
    tasks = [scene.instruction_for(color) for color in scene.COLORS]
    info = lerobot_layout.SetInfo(
        version, robot_type, scene.FPS, tasks, {**features, **lerobot_layout.automatic_features()}
    )
    lines = [
        lerobot_layout.EpisodeLine(episode.index, (episode.instruction,), episode.frames)
        for episode in episodes
    ]
    lerobot_layout.write_meta(setup.output, info, lines)


def _image_column(episode: WorldEpisode, view: View) -> pa.Array:
    cells = [
        {"bytes": _png(image), "path": f"frame_{number:06d}.png"}
        for number, image in enumerate(episode.images(view))
    ]
    return pa.array(cells, IMAGE_CELL)


def _png(image: UInt8Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
