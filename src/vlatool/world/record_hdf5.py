"""Writer of robomimic's HDF5 layout, one file per episode, with the attributes of LIBERO.

Source: formats/hdf5 1, 2.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlatool.errors import installed
from vlatool.storage.atomic import write_bytes
from vlatool.world.recording import RecordedEpisode, RecordingSetup, WorldEpisode, recorded_episode
from vlatool.world.scene import FPS


@dataclass(frozen=True)
class Hdf5Writer:
    """Recorder of HDF5 files; images are arrays."""

    owned: ClassVar[Sequence[str]] = ("episode_*.hdf5",)
    closing: ClassVar[Sequence[str]] = ()
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        h5py = installed("h5py")
        del first_row  # episodes do not depend on each other
        states = np.asarray(episode.states, np.float32)
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            data = file.create_group("data")
            env = {"env_name": "VlatoolPickPlace", "type": 2, "env_kwargs": {"control_freq": FPS}}
            data.attrs["env_args"] = json.dumps(env)
            data.attrs["problem_info"] = json.dumps({"language_instruction": episode.instruction})
            data.attrs["total"] = len(episode)
            demo = data.create_group(f"demo_{episode.index}")
            demo.attrs["num_samples"] = len(episode)
            demo.attrs["success"] = episode.success
            demo["actions"] = np.asarray(episode.actions, np.float32)
            demo["obs/eef_pos"] = states[:, :3]
            demo["obs/gripper_width"] = states[:, 3:]
            for view in self.setup.views:
                images = np.stack(list(episode.images(view)))
                name = f"obs/{view.camera.name}_image"
                demo.create_dataset(name, data=images, chunks=(1, *images.shape[1:]), compression=4)
        path = f"episode_{episode.index:06d}.hdf5"
        write_bytes(self.setup.output / path, buffer.getvalue())
        return recorded_episode(episode, [path])

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Nothing is written for the whole data set."""
