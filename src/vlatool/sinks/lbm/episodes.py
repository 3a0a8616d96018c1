"""Writing of one episode: a tar of its windows with encoded images, and their statistics.

Source: formats/lbm-preprocessing 2; formats/lbm 2.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vlatool.artifacts.images import encode_jpeg, encode_png
from vlatool.artifacts.sample import sample_members
from vlatool.artifacts.shards.format import episode_tar_name
from vlatool.artifacts.tar import TarWriter, member_bytes
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCode, FindingCodes
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Receipt
from vlatool.sinks.images import FRAMES_PER_READ, read_frames
from vlatool.sinks.lbm.config import LbmConfig
from vlatool.storage.atomic import open_atomic
from vlatool.transforms.geometry import ImageGeometry
from vlatool.transforms.pose_groups import with_pose_groups
from vlatool.transforms.sampling import EpisodeSampler, SampleSpec
from vlatool.transforms.statistics import to_arrays

# Inflating, resizing and encoding release the GIL: with two threads per worker no core is idle
# while the last episode of a run is read or written.
THREADS = 2


@dataclass(frozen=True)
class ImageStream:
    """Frames of one camera and their conversion."""

    name: str  # camera, or camera with the suffix `_depth` or `_label`; names the tar members
    source: FrameSource
    geometry: ImageGeometry  # rotation, resize and crop
    # `image` is encoded as JPEG, `values` (depth, labels) as 16-bit PNG without interpolation
    kind: Literal["image", "values"] = "image"

    def member(self, offset: int) -> str:
        """Suffix of the tar member of an image offset."""
        return f"{self.name}_t{offset}.{'jpg' if self.kind == 'image' else 'png'}"

    def encode(self, frames: Sequence[int], quality: int) -> list[bytes]:
        """Encoded files of the frames."""
        return [
            self._file(pixels, quality) for pixels in read_frames(self.name, self.source, frames)
        ]

    def _file(self, pixels: Array, quality: int) -> bytes:
        if self.kind == "image":
            return encode_jpeg(self.geometry.apply(pixels), quality)
        return encode_png(self.geometry.apply_to_values(self._in_16_bits(pixels)))

    def _in_16_bits(self, values: Array) -> Array:
        if values.min(initial=0) < 0 or values.max(initial=0) > np.iinfo(np.uint16).max:
            raise DataError(
                f"{self.name}: values from {values.min()} to {values.max()} do not fit 16 bits",
                hint="leave them out: --depth false, --labels false",
                code="data.bad_depth",
                details={"camera": self.name},
            )
        return values.astype(np.uint16)


class EpisodeEncoder:
    """Encoded images for samples with ascending frames; memory is bounded by one window.

    A context manager. Streams are encoded one batch ahead on a few threads.
    """

    def __init__(
        self, streams: Sequence[ImageStream], needed_frames: Iterable[int], quality: int
    ) -> None:
        needed = sorted(set(needed_frames))
        self._pool = ThreadPoolExecutor(min(THREADS, max(len(streams), 1)))
        self._streams = [_StreamEncoder(stream, needed, quality, self._pool) for stream in streams]

    def __enter__(self) -> "EpisodeEncoder":
        for stream in self._streams:
            stream.prefetch()
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def images(self, frames: Mapping[int, int]) -> dict[str, bytes]:
        """Encoded files by member suffix: offsets outer, cameras inner, PNG last."""
        oldest = min(frames.values())
        members = [
            (stream.stream.kind, stream.stream.member(offset), stream.file(frame, oldest))
            for offset, frame in frames.items()
            for stream in self._streams
        ]
        return {name: data for _, name, data in sorted(members, key=lambda item: item[0])}


class _StreamEncoder:
    def __init__(
        self, stream: ImageStream, needed: Sequence[int], quality: int, pool: ThreadPoolExecutor
    ) -> None:
        self.stream = stream
        self._quality = quality
        self._pool = pool
        starts = range(0, len(needed), FRAMES_PER_READ)
        self._waiting = deque(needed[start : start + FRAMES_PER_READ] for start in starts)
        self._next: tuple[Sequence[int], Future[list[bytes]]] | None = None
        self._encoded: dict[int, bytes] = {}

    def file(self, frame: int, oldest: int) -> bytes:
        """The encoded frame; frames before `oldest` are discarded."""
        while frame not in self._encoded:
            self._await_batch()
        self._encoded = {n: data for n, data in self._encoded.items() if n >= oldest}
        return self._encoded[frame]

    def prefetch(self) -> None:
        """Starts encoding the next batch; one at a time, because sources are read in order."""
        if self._next is None and self._waiting:
            frames = self._waiting.popleft()
            self._next = frames, self._pool.submit(self.stream.encode, frames, self._quality)

    def _await_batch(self) -> None:
        self.prefetch()
        assert self._next is not None
        frames, future = self._next
        self._encoded.update(zip(frames, future.result(), strict=True))
        self._next = None
        self.prefetch()


RANGES = "ranges"

LBM = FindingCodes(
    "lbm",
    {
        "missing_depth": FindingCode("warning", "Depth was requested, but a camera has none."),
        "missing_labels": FindingCode("warning", "Labels were requested, but a camera has none."),
    },
)


@dataclass(frozen=True)
class EpisodeWriter:
    """Writes the samples of an episode into its own tar; picklable."""

    output: Path  # the output folder
    config: LbmConfig  # options of the sink

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Writes the tar; the receipt holds the byte ranges of its samples."""
        episode = stored_episode(episode, self.config)
        spec = self.config.sample_spec()
        sampler = EpisodeSampler(episode, tuple(episode.cameras), spec)
        findings = tuple(self._missing_findings(episode))
        counts = {"frames": episode.num_frames, "samples": len(sampler)}
        if not len(sampler):
            return Receipt(ref.id, counts=counts, dropped=sampler.dropped, findings=findings)
        name = episode_tar_name(ref.id)
        with open_atomic(self.output / name) as file:
            tar = TarWriter(file)
            ranges = self._write(tar, sampler, spec)
            tar.finish()
        arrays = to_arrays(sampler.statistics()) if self.config.compute_statistics else {}
        return Receipt(
            ref.id,
            counts=counts,
            dropped=sampler.dropped,
            files=(FileEntry(name, tar.position, tar.sha256, len(sampler)),),
            findings=findings,
            arrays={RANGES: ranges, **arrays},
        )

    def _write(self, tar: TarWriter, sampler: EpisodeSampler, spec: SampleSpec) -> Array:
        """(offset, length) in bytes of each sample, int64 [S, 2]."""
        ranges: list[tuple[int, int]] = []
        streams = list(self._streams(sampler, spec))
        with EpisodeEncoder(streams, sampler.needed_frames(), self.config.jpeg_quality) as encoder:
            for sample in sampler:
                members = sample_members(sample, encoder.images(sample.image_frames))
                ranges.append(tar.append(b"".join(member_bytes(*member) for member in members)))
        return np.array(ranges, np.int64).reshape(-1, 2)

    def _streams(self, sampler: EpisodeSampler, spec: SampleSpec) -> Iterator[ImageStream]:
        episode = sampler.episode
        for name in sampler.cameras:
            yield ImageStream(name, episode.cameras[name], sampler.geometries[name])
        extra = {"depth": episode.depth if self.config.depth else {}}
        extra["label"] = episode.labels if self.config.labels else {}
        for kind, sources in extra.items():
            for name in sampler.cameras:
                if name in sources:
                    source = sources[name]
                    geometry = spec.geometry(name, source.size)
                    yield ImageStream(f"{name}_{kind}", source, geometry, "values")

    def _missing_findings(self, episode: Episode) -> Iterator[Finding]:
        """Findings for requested depth and labels that are missing."""
        requested = {"depth": self.config.depth, "labels": self.config.labels}
        available = {"depth": episode.depth, "labels": episode.labels}
        for kind in (kind for kind, is_requested in requested.items() if is_requested):
            missing = [name for name in episode.cameras if name not in available[kind]]
            if missing:
                message = f"{episode.id}: no {kind} of {', '.join(missing)}"
                yield LBM(f"missing_{kind}", message, episode=episode.id)


def stored_episode(episode: Episode, config: LbmConfig) -> Episode:
    """The episode with the configured pose groups."""
    if config.pose_groups is None:
        return episode
    return with_pose_groups(episode, config.pose_groups)
