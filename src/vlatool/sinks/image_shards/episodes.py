"""Writing of one episode: a tar of its images, camera by camera, in frame order.

Source: reference/future-vla 2.1.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.image_shards import (
    METADATA_SUFFIX,
    SUFFIXES,
    global_key,
    image_key,
    metadata_bytes,
    shard_name,
)
from vlatool.artifacts.shard import ShardIndex, TarWriter, index_path, member_bytes
from vlatool.episode import Episode, EpisodeRef
from vlatool.findings import Finding
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Receipt
from vlatool.sinks.image_shards.config import ImageShardsConfig
from vlatool.sinks.image_shards.encoding import ImageWriter
from vlatool.sinks.image_shards.findings import IMAGE_SHARDS
from vlatool.storage.atomic import open_atomic, write_bytes


@dataclass(frozen=True)
class EpisodeWriter:
    """Writes the tar of an episode and its index; picklable.

    Attributes:
        output: The output folder.
        config: Options of the sink.
    """

    output: Path
    config: ImageShardsConfig

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Writes tar and index; no tar remains if an image is broken.

        Raises:
            DataError: An image cannot be read or decoded.
        """
        writer = ImageWriter(self.config)
        name = shard_name(self.config.split_name, ref.id)
        with open_atomic(self.output / name) as file:
            tar = TarWriter(file)
            ranges = [tar.append(data) for data in self._samples(ref, episode, writer)]
            tar.finish()
        counts = {"frames": episode.num_frames, "samples": len(ranges)}
        shard = FileEntry(name, tar.position, tar.sha256, len(ranges))
        return Receipt(
            ref.id,
            counts=counts,
            files=(shard, self._index(name, ranges, tar.position)),
            findings=tuple(_image_findings(writer, ref.id)),
        )

    def _samples(self, ref: EpisodeRef, episode: Episode, writer: ImageWriter) -> Iterator[bytes]:
        """Tar members of each image, as bytes."""
        dataset = str(episode.extras.get("dataset") or Path(ref.source).name)
        number = 0
        for camera, source in episode.cameras.items():
            for frame in range(episode.num_frames):
                key = image_key(number)
                image_format, data = writer.image(camera, source, frame)
                members = [(f"{key}.{SUFFIXES[image_format]}", data)]
                if self.config.image_metadata:
                    metadata = _metadata((dataset, ref.id, camera, frame), episode)
                    members.append((f"{key}.{METADATA_SUFFIX}", metadata_bytes(metadata)))
                yield b"".join(member_bytes(*member) for member in members)
                number += 1

    def _index(self, name: str, ranges: list[tuple[int, int]], size: int) -> FileEntry:
        """Writes the byte ranges of the images; called after the tar is complete."""
        table = np.array(ranges, np.int64).reshape(-1, 2)
        content = ShardIndex(table[:, 0], table[:, 1], size).content()
        path = index_path(self.output / name)
        write_bytes(path, content, synced=False)
        digest = hashlib.sha256(content).hexdigest()
        return FileEntry(path.name, len(content), digest, len(ranges))


def _metadata(parts: tuple[str, str, str, int], episode: Episode) -> Mapping[str, Any]:
    """Origin of an image, with the name of its file if it has one."""
    dataset, episode_id, camera, frame = parts
    files = episode.frame_metadata.get("file", ())
    return {
        "key": global_key((dataset, episode_id, camera, f"{frame:06d}")),
        "dataset": dataset,
        "episode": episode_id,
        "camera": camera,
        "frame": frame,
        **({"file": files[frame]} if files else {}),
    }


def _image_findings(writer: ImageWriter, episode: str) -> Iterator[Finding]:
    total = writer.sizes.total()
    if writer.converted:
        message = f"{episode}: {writer.converted} of {total} images were converted to 8-bit RGB"
        yield IMAGE_SHARDS("converted", message, episode=episode)
    if writer.animations:
        message = f"{episode}: {writer.animations} animations; their first frames were used"
        yield IMAGE_SHARDS("several_frames", message, episode=episode)
    if len(writer.sizes) > 1 and writer.config.image_size is None:
        listed = ", ".join(f"{n} of {size[1]}x{size[0]}" for size, n in writer.sizes.items())
        yield IMAGE_SHARDS("mixed_sizes", f"{episode}: {listed} pixels", episode=episode)
