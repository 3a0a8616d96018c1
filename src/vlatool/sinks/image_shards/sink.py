"""The `image-shards` sink: a tar of images per episode, and the lists of a split."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vlatool.artifacts.image_shards import (
    LISTS,
    MANIFEST,
    TRAIN_LIST,
    VAL_LIST,
    ImageManifest,
    ImageShard,
    split_patterns,
    write_lists,
    write_manifest,
)
from vlatool.errors import DataError
from vlatool.findings import FindingCodes
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.sinks.base import Estimate, SinkConfig, SinkSetup, SinkSummary, Work
from vlatool.sinks.image_shards.config import ImageShardsConfig
from vlatool.sinks.image_shards.episodes import EpisodeWriter
from vlatool.sinks.image_shards.findings import IMAGE_SHARDS
from vlatool.storage.atomic import remove_file
from vlatool.transforms.splits import validation_positions


class ImageShardsSink:
    """Writes training data of visual tokenizers. Source: reference/future-vla 2.1, 2.2."""

    Config: ClassVar[type[SinkConfig]] = ImageShardsConfig
    owned: ClassVar[Sequence[str]] = (*split_patterns("*"), *LISTS, MANIFEST)
    # `vlatool split` may replace them.
    volatile: ClassVar[Sequence[str]] = LISTS
    findings: ClassVar[FindingCodes] = IMAGE_SHARDS
    has_arrays: ClassVar[bool] = False
    next_step: ClassVar[str] = "vlatool verify {output}"

    def __init__(self, config: ImageShardsConfig, setup: SinkSetup) -> None:
        self._config = config
        self._setup = setup
        # Tars of other splits in the same folder are not owned by this run.
        patterns = (*split_patterns(config.split_name), *LISTS, MANIFEST)
        self.owned = patterns  # pyright: ignore[reportAttributeAccessIssue] - narrower than the class
        self.work: Work = EpisodeWriter(setup.output, config)
        self.action_fields: tuple[str, ...] = ()
        self.proprioception_fields: tuple[str, ...] = ()

    def begin(self) -> None:
        """Removes the lists and the manifest."""
        for name in (*LISTS, MANIFEST):
            remove_file(self._setup.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Writes the lists, if `val_ratio` is set, and the manifest.

        Raises:
            DataError: No image was written.
        """
        files = [entry for receipt in receipts for entry in receipt.files]
        shards = tuple(_shard(entry) for entry in files if entry.path.endswith(".tar"))
        manifest = ImageManifest(shards, self._options())
        if not manifest.images:
            raise DataError(
                "no image was written",
                hint="select episodes that have images",
                code="data.no_samples",
                details={"dropped": dict(run.dropped)},
            )
        output = self._setup.output
        if self._config.val_ratio is not None:
            self._split(self._config.val_ratio, [output / tar.name for tar in shards], run)
        write_manifest(output, manifest)
        files.append(file_entry(output, MANIFEST))
        size = sum(shard.bytes for shard in shards)
        return SinkSummary(manifest.images, size, tuple(files), {"shards": len(shards)})

    def estimate(self) -> Estimate:
        """Estimate: one image per frame and camera."""
        survey = self._setup.survey
        frames = None if survey.frames is None else survey.frames * len(survey.cameras)
        return Estimate(frames, {"shards": survey.episodes})

    def _split(self, ratio: float, tars: Sequence[Path], run: JobRun) -> None:
        held_out_indices = set(validation_positions(len(tars), ratio))
        train = [tar for index, tar in enumerate(tars) if index not in held_out_indices]
        val = [tar for index, tar in enumerate(tars) if index in held_out_indices]
        if not train:
            message = f"{len(tars)} shards are too few for --val-ratio {ratio}; no lists written"
            run.reporter.warn("image_shards.not_split", message)
            return
        output = self._setup.output
        write_lists((output / TRAIN_LIST, train), (output / VAL_LIST, val))

    def _options(self) -> dict[str, Any]:
        """Options that the manifest records."""
        options = self._config.model_dump(
            mode="json", exclude={"type", "val_ratio", "verify_pixels"}
        )
        origin = {key: self._setup.origin.get(key) for key in ("type", "source_episodes")}
        return {**origin, "cameras": list(self._setup.survey.cameras), **options}


def _shard(entry: FileEntry) -> ImageShard:
    return ImageShard(entry.path, entry.samples or 0, entry.bytes)
