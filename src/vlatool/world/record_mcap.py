"""Writer of bags of ROS 2, one file per episode. Source: formats/mcap 1, 3."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from vlatool.artifacts.images import encode_png
from vlatool.errors import installed
from vlatool.storage.atomic import write_bytes
from vlatool.world.recording import RecordedEpisode, RecordingSetup, WorldEpisode, recorded_episode
from vlatool.world.scene import FPS

_NUMBERS, _TEXT = "std_msgs/msg/Float64MultiArray", "std_msgs/msg/String"
_IMAGE = "sensor_msgs/msg/CompressedImage"


@dataclass(frozen=True)
class McapWriter:
    """Recorder of MCAP files; images are PNG."""

    owned: ClassVar[Sequence[str]] = ("episode_*.mcap",)
    closing: ClassVar[Sequence[str]] = ()
    setup: RecordingSetup

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        del first_row  # episodes do not depend on each other
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

        layout = store.types["std_msgs/msg/MultiArrayLayout"]([], 0)
        add("/instruction", _TEXT, 0, episode.instruction)
        images = [(view.camera.name, episode.images(view)) for view in self.setup.views]
        for step, (action, state) in enumerate(zip(episode.actions, episode.states, strict=True)):
            add("/action", _NUMBERS, step, layout, np.asarray(action, np.float64))
            add("/state", _NUMBERS, step, layout, np.asarray(state, np.float64))
            seconds, rest = divmod(round(step * 1e9 / FPS), 10**9)
            stamp = store.types["builtin_interfaces/msg/Time"](seconds, rest)
            for camera, frames in images:
                header = store.types["std_msgs/msg/Header"](stamp, camera)
                data = np.frombuffer(encode_png(next(frames)), np.uint8)
                add(f"/{camera}/image_raw/compressed", _IMAGE, step, header, "png", data)
        writer.add_metadata("episode", {"fps": str(FPS), "success": str(episode.success).lower()})
        writer.finish()
        path = f"episode_{episode.index:06d}.mcap"
        write_bytes(self.setup.output / path, buffer.getvalue())
        return recorded_episode(episode, [path])

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Nothing is written for the whole data set."""
