"""Writers of HDF5 and folders of plain files, one per episode.

Source: formats/hdf5 1, 2.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlatool.errors import installed
from vlatool.media.video import encode_video
from vlatool.storage.atomic import atomic_folder, write_bytes
from vlatool.world.recording import RecordedEpisode, RecordingSetup, WorldEpisode, recorded_episode
from vlatool.world.render import plain_name
from vlatool.world.scene import FPS


@dataclass(frozen=True)
class EpisodeFileWriter:
    """Recorder of files that do not depend on each other."""

    owned: ClassVar[Sequence[str]]
    closing: ClassVar[Sequence[str]] = ()
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        suffix = self.owned[0].removeprefix("episode_*").partition("/")[0]
        name = f"episode_{episode.index:06d}{suffix}"
        return recorded_episode(episode, self.write_files(episode, name))

    def write_files(self, episode: WorldEpisode, name: str) -> Sequence[str]:
        """Writes an episode; returns the names of its files."""
        write_bytes(self.setup.output / name, self.content(episode))
        return [name]

    def content(self, episode: WorldEpisode) -> bytes:
        """Bytes of the file of an episode."""
        raise NotImplementedError

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Writes nothing for the whole data set."""


class Hdf5Writer(EpisodeFileWriter):
    """Recorder of robomimic's layout with the attributes of LIBERO; images are arrays."""

    owned: ClassVar[Sequence[str]] = ("episode_*.hdf5",)

    def content(self, episode: WorldEpisode) -> bytes:
        states = np.asarray(episode.states, np.float32)
        buffer = io.BytesIO()
        with installed("h5py").File(buffer, "w") as file:
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
        return buffer.getvalue()


class PlainFilesWriter(EpisodeFileWriter):
    """Recorder of a video per camera, a CSV of states and actions, and a JSON of the episode."""

    owned: ClassVar[Sequence[str]] = ("episode_*/*",)

    def write_files(self, episode: WorldEpisode, name: str) -> Sequence[str]:
        name = name.removesuffix("/*")
        header = ["timestamp"]
        for field in ("state", "action"):
            header += [f"{field}.{axis}" for axis in ("x", "y", "z", "gripper")]
        lines = [",".join(header)]
        for step, (state, action) in enumerate(zip(episode.states, episode.actions, strict=True)):
            lines.append(",".join(f"{value:.6f}" for value in (step / FPS, *state, *action)))
        facts = {"instruction": episode.instruction, "success": episode.success, "fps": FPS}
        with atomic_folder(self.setup.output / name) as folder:
            for view in self.setup.views:
                video = encode_video(episode.images(view), FPS)
                (folder / f"{plain_name(view.camera.name)}.mp4").write_bytes(video)
            (folder / "data.csv").write_text("\n".join(lines) + "\n")
            (folder / "meta.json").write_text(json.dumps(facts, indent=1) + "\n")
            return sorted(f"{name}/{path.name}" for path in folder.iterdir())


WRITERS = {"hdf5": Hdf5Writer, "folder": PlainFilesWriter}
