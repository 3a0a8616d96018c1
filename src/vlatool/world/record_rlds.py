"""Writer of RLDS as TFDS lays it out, a shard per episode. Source: formats/rlds 1 to 3."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vlatool.artifacts.images import encode_png
from vlatool.artifacts.tfrecord import Value, example, record
from vlatool.storage.atomic import write_bytes, write_json
from vlatool.world.recording import RecordedEpisode, RecordingSetup, WorldEpisode, recorded_episode
from vlatool.world.scene import FPS

_NAME, _SPLIT = "world", "train"


@dataclass(frozen=True)
class RldsWriter:
    """Recorder of TFRecords; images are PNG."""

    owned: ClassVar[Sequence[str]] = ("*.tfrecord-*", "features.json", "dataset_info.json")
    closing: ClassVar[Sequence[str]] = ("features.json", "dataset_info.json")
    setup: RecordingSetup
    shards: int  # number of episodes, which is part of the names of files

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        del first_row  # episodes do not depend on each other
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
        path = f"{_NAME}-{_SPLIT}.tfrecord-{episode.index:05d}-of-{self.shards:05d}"
        write_bytes(self.setup.output / path, record(example(features)))
        return recorded_episode(episode, [path])

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
            "name": _SPLIT,
            "shardLengths": ["1"] * len(episodes),
        }
        info = {"fileFormat": "tfrecord", "name": _NAME, "version": "1.0.0", "splits": [split]}
        write_json(self.setup.output / "dataset_info.json", info)
        write_json(self.setup.output / "features.json", document)


_CLASSES = "tensorflow_datasets.core.features"


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
