"""Recordings of the built-in world in layouts that `vlatool sample` does not write."""

import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tests.builders.tfrecords import example, record
from vlatool.errors import installed
from vlatool.media.images import encode_png
from vlatool.media.tfrecord import Value
from vlatool.storage.atomic import atomic_folder, write_json
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.world.record_files import EpisodeFileWriter
from vlatool.world.recording import RecordedEpisode, RecordingSetup, WorldEpisode, expert_episode
from vlatool.world.render import View, cameras_for
from vlatool.world.scene import FPS


class ZarrWriter(EpisodeFileWriter):
    """Recorder of replay buffers in Zarr v2, one store of one episode per file."""

    owned: ClassVar[Sequence[str]] = ("episode_*.zarr/**/*",)

    def write_files(self, episode: WorldEpisode, name: str) -> Sequence[str]:
        zarr = installed("zarr")
        codecs = installed("numcodecs")
        arrays = {
            "data/action": np.asarray(episode.actions, np.float32),
            "data/state": np.asarray(episode.states, np.float32),
            "meta/episode_ends": np.array([len(episode)]),
        }
        for view in self.setup.views:
            arrays[f"data/{view.camera.name}"] = np.stack(list(episode.images(view)))
        with atomic_folder(self.setup.output / name) as folder:
            root = zarr.open_group(str(folder), mode="w", zarr_format=2)
            root.attrs.update({"fps": FPS, "instruction": episode.instruction})
            options = {"compressors": codecs.Zstd(3), "config": {"write_empty_chunks": True}}
            for key, values in arrays.items():
                root.create_array(key, data=values, chunks=(8, *values.shape[1:]), **options)
            files = [path for path in folder.rglob("*") if path.is_file()]
            return sorted(f"{name}/{path.relative_to(folder).as_posix()}" for path in files)


class McapWriter(EpisodeFileWriter):
    """Recorder of MCAP files; images are PNG."""

    owned: ClassVar[Sequence[str]] = ("episode_*.mcap",)

    def content(self, episode: WorldEpisode) -> bytes:
        buffer = io.BytesIO()
        writer = installed("mcap.writer").Writer(buffer)
        writer.start("ros2", "vlatool")
        types = installed("rosbags.typesys")
        store = types.get_typestore(types.Stores.ROS2_HUMBLE)
        channels: dict[str, int] = {}

        def add(topic: str, kind: str, step: int, *values: Any) -> None:
            if topic not in channels:
                text = store.generate_msgdef(kind, ros_version=2)[0].encode()
                schema = writer.register_schema(kind, "ros2msg", text)
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            time = round(step * 1e9 / FPS)
            data = bytes(store.serialize_cdr(store.types[kind](*values), kind))
            writer.add_message(channels[topic], time, data, time)

        numbers = "std_msgs/msg/Float64MultiArray"
        image = "sensor_msgs/msg/CompressedImage"
        layout = store.types["std_msgs/msg/MultiArrayLayout"]([], 0)
        add("/instruction", "std_msgs/msg/String", 0, episode.instruction)
        images = [(view.camera.name, episode.images(view)) for view in self.setup.views]
        for step, (action, state) in enumerate(zip(episode.actions, episode.states, strict=True)):
            add("/action", numbers, step, layout, np.asarray(action, np.float64))
            add("/state", numbers, step, layout, np.asarray(state, np.float64))
            seconds, rest = divmod(round(step * 1e9 / FPS), 10**9)
            stamp = store.types["builtin_interfaces/msg/Time"](seconds, rest)
            for camera, frames in images:
                header = store.types["std_msgs/msg/Header"](stamp, camera)
                data = np.frombuffer(encode_png(next(frames)), np.uint8)
                add(f"/{camera}/image_raw/compressed", image, step, header, "png", data)
        writer.add_metadata("episode", {"fps": str(FPS), "success": str(episode.success).lower()})
        writer.finish()
        return buffer.getvalue()


_CLASSES = "tensorflow_datasets.core.features"


class RldsWriter(EpisodeFileWriter):
    """Recorder of TFRecords as TFDS lays them out, a shard per episode; images are PNG."""

    owned: ClassVar[Sequence[str]] = ("*.tfrecord-*", "features.json", "dataset_info.json")
    closing: ClassVar[Sequence[str]] = ("features.json", "dataset_info.json")

    def write_files(self, episode: WorldEpisode, name: str) -> Sequence[str]:
        path = f"world-train.tfrecord-{episode.index:05d}-of-{self.setup.episodes:05d}"
        return super().write_files(episode, path)

    def content(self, episode: WorldEpisode) -> bytes:
        count = len(episode)
        steps: dict[str, Value] = {
            "action": np.asarray(episode.actions, np.float32),
            "observation/state": np.asarray(episode.states, np.float32),
            "is_first": np.arange(count) == 0,
            "is_last": np.arange(count) == count - 1,
            "language_instruction": [episode.instruction.encode()] * count,
        }
        for view in self.setup.views:
            images = [encode_png(image) for image in episode.images(view)]
            steps[f"observation/{view.camera.name}"] = images
        features = {f"steps/{name}": value for name, value in steps.items()}
        features["episode_metadata/fps"] = np.array([FPS], np.float32)
        return record(example(features))

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        images = {view.camera.name: _image((*view.size, 3), "png") for view in self.setup.views}
        steps = _dict(
            action=_tensor("float32", 4),
            observation=_dict(state=_tensor("float32", 4), **images),
            is_first=_tensor("bool"),
            is_last=_tensor("bool"),
            language_instruction={"pythonClassName": f"{_CLASSES}.text_feature.Text", "text": {}},
        )
        dataset = {"pythonClassName": f"{_CLASSES}.dataset_feature.Dataset"}
        document = _dict(
            steps={**dataset, "sequence": {"feature": steps, "length": "-1"}},
            episode_metadata=_dict(fps=_tensor("float32")),
        )
        split = {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": "train",
            "shardLengths": ["1"] * len(episodes),
        }
        info = {"fileFormat": "tfrecord", "name": "world", "version": "1.0.0", "splits": [split]}
        write_json(self.setup.output / "dataset_info.json", info)
        write_json(self.setup.output / "features.json", document)


def _dict(**features: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{_CLASSES}.features_dict.FeaturesDict"
    return {"pythonClassName": name, "featuresDict": {"features": features}}


def _tensor(dtype: str, *shape: int) -> dict[str, Any]:
    sides = {"dimensions": [str(side) for side in shape]} if shape else {}
    tensor = {"shape": sides, "dtype": dtype, "encoding": "none"}
    return {"pythonClassName": f"{_CLASSES}.tensor_feature.Tensor", "tensor": tensor}


def _image(shape: Sequence[int], form: str) -> dict[str, Any]:
    sides = {"dimensions": [str(side) for side in shape]}
    image = {"shape": sides, "dtype": "uint8", "encodingFormat": form}
    return {"pythonClassName": f"{_CLASSES}.image_feature.Image", "image": image}


WRITERS = {"zarr": ZarrWriter, "rlds": RldsWriter, "mcap": McapWriter}


def record_world(layout: Any, output: Path, episodes: int, frames: int) -> None:
    """Writes episodes of the built-in world, with two cameras, without a record of a command."""
    if layout not in WRITERS:
        config = SampleConfig(layout=layout, output=str(output), episodes=episodes, frames=frames)
        sample(config.model_copy(update={"workers": 1}))
        shutil.rmtree(output / ".vlatool")
        return
    views = tuple(View(camera, camera.size("small")) for camera in cameras_for(2))
    output.mkdir(parents=True, exist_ok=True)
    writer = WRITERS[layout](RecordingSetup(output, views, episodes=episodes))
    recorded = [writer.write(expert_episode(0, index, frames), 0) for index in range(episodes)]
    writer.finish(recorded)
