"""Writing of one episode: a tar of its windows with encoded images, and their statistics.

Source: formats/lbm-preprocessing 2; formats/lbm 2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlatool.artifacts.sample import sample_members
from vlatool.artifacts.shards.format import episode_tar_name
from vlatool.artifacts.tar import TarWriter, member_bytes
from vlatool.episode import Array, Episode, EpisodeRef
from vlatool.findings import Finding, FindingCode, FindingCodes
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Receipt
from vlatool.sinks.lbm.config import LbmConfig
from vlatool.sinks.lbm.encoding import EpisodeEncoder, ImageStream
from vlatool.storage.atomic import open_atomic
from vlatool.transforms.pose_groups import with_pose_groups
from vlatool.transforms.sampling import EpisodeSampler, SampleSpec
from vlatool.transforms.statistics import to_arrays

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
    """Writes the samples of an episode into its own tar; picklable.

    Attributes:
        output: The output folder.
        config: Options of the sink.
    """

    output: Path
    config: LbmConfig

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Writes the tar; the receipt holds the byte ranges of its samples.

        Raises:
            DataError: The episode lacks a requested field, or an image cannot be decoded.
        """
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
