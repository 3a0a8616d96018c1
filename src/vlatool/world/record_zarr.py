"""Writer of replay buffers, one store of one episode per file. Source: formats/zarr 1, 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlatool.errors import installed
from vlatool.storage.atomic import atomic_folder
from vlatool.world.recording import RecordedEpisode, RecordingSetup, WorldEpisode, recorded_episode
from vlatool.world.scene import FPS


@dataclass(frozen=True)
class ZarrWriter:
    """Recorder of stores of Zarr v2."""

    owned: ClassVar[Sequence[str]] = ("episode_*.zarr/**/*",)
    closing: ClassVar[Sequence[str]] = ()
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        zarr, codecs = installed("zarr"), installed("numcodecs")
        del first_row  # episodes do not depend on each other
        arrays = {
            "data/action": np.asarray(episode.actions, np.float32),
            "data/state": np.asarray(episode.states, np.float32),
            "meta/episode_ends": np.array([len(episode)]),
        }
        for view in self.setup.views:
            arrays[f"data/{view.camera.name}"] = np.stack(list(episode.images(view)))
        name = f"episode_{episode.index:06d}.zarr"
        with atomic_folder(self.setup.output / name) as folder:
            root = zarr.open_group(str(folder), mode="w", zarr_format=2)
            root.attrs.update({"fps": FPS, "instruction": episode.instruction})
            for key, values in arrays.items():
                root.create_array(
                    key,
                    data=values,
                    chunks=(8, *values.shape[1:]),
                    compressors=codecs.Zstd(3),
                    config={"write_empty_chunks": True},
                )
            files = [path for path in folder.rglob("*") if path.is_file()]
            names = sorted(f"{name}/{path.relative_to(folder).as_posix()}" for path in files)
        return recorded_episode(episode, names)

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Nothing is written for the whole data set."""
