"""The `image-shards` sink: a tar of images per episode, and the lists of a split.

A tar has the images camera by camera, in frame order. Source: reference/future-vla 2.1.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlatool.config.base import option
from vlatool.datasets.image_shards import layout as image_shards_layout
from vlatool.datasets.image_shards.check import IMAGE_SHARDS
from vlatool.datasets.lbm.shuffle import write_index
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.media.images import JPEG, PNG, Subsampling
from vlatool.media.tar import TarWriter, member_bytes
from vlatool.recordings import writing
from vlatool.storage.atomic import open_atomic, remove_file


class ImageShardsConfig(writing.SinkConfig):
    """Tars of images that a visual tokenizer is trained on."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "split_name", "val_ratio", "image_metadata", "label"),
        "Images": (
            "image_format",
            "jpeg_quality",
            "jpeg_subsampling",
            "jpeg_optimize",
            "resize_images_size",
            "image_resizing_method",
            "image_resizing_filter",
            "verify_pixels",
        ),
    }

    newer: ClassVar[Mapping[str, Any]] = {"jpeg_optimize": True}

    type: Literal["image-shards"] = option("image-shards", "Form of the output: tars of images.")
    split_name: str = option(
        "train", "Prefix of the names of all tars.", pattern=r"^[A-Za-z0-9_-]{1,64}$"
    )
    val_ratio: float | None = option(
        None,
        "Share of the shards for validation; null writes no lists (see `vlatool split`).",
        gt=0,
        lt=1,
    )
    image_metadata: bool = option(True, "Store the origin of each image as JSON beside it.")
    label: int | None = option(
        None,
        "Class label to store beside every image, for the original reader of 1d-tokenizer.",
        ge=0,
    )
    image_format: Literal["jpeg", "png"] | None = option(
        None, "Image format; null keeps stored PNG and JPEG, and writes PNG where pixels change."
    )
    jpeg_quality: int = option(100, "JPEG quality of written images.", ge=1, le=100)
    jpeg_subsampling: Subsampling = option("4:4:4", "Chroma subsampling of written JPEG.")
    jpeg_optimize: bool = option(
        True, "Make code tables for each JPEG: 5 % smaller files, twice the time, the same pixels."
    )
    resize_images_size: writing.ImageSize = None
    image_resizing_method: writing.ResizingMethod = "center_crop"
    image_resizing_filter: writing.ResizingFilter = "lanczos_vips"
    verify_pixels: bool = option(
        False, "Decode PNG files that are copied unchanged, to check them."
    )

    def encoding(self) -> writing.ImageEncoding:
        return writing.ImageEncoding(
            size=writing.height_and_width(self.resize_images_size),
            method=self.image_resizing_method,
            filter=self.image_resizing_filter,
            formats=(PNG, JPEG) if self.image_format is None else (self.image_format,),
            quality=self.jpeg_quality,
            subsampling=self.jpeg_subsampling,
            optimize=self.jpeg_optimize,
            verify_pixels=self.verify_pixels,
        )


@dataclass(frozen=True)
class ImageEpisodeWriter:
    """Writes the tar of an episode and its index; picklable."""

    output: Path  # the output folder
    config: ImageShardsConfig  # options of the sink

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Writes tar and index; no tar remains if an image is broken."""
        writer = writing.ImageWriter(self.config.encoding())
        name = image_shards_layout.shard_name(self.config.split_name, ref.id)
        with open_atomic(self.output / name) as file:
            tar = TarWriter(file)
            ranges = [tar.append(data) for data in self._samples(ref, episode, writer)]
            tar.finish()
        counts = {"frames": episode.num_frames, "samples": len(ranges)}
        shard = FileEntry(name, tar.position, tar.sha256, len(ranges))
        return Receipt(
            ref.id,
            counts=counts,
            files=(shard, write_index(self.output, name, ranges, tar.position)),
            findings=tuple(_image_findings(writer, ref.id)),
        )

    def _samples(
        self, ref: EpisodeRef, episode: Episode, writer: writing.ImageWriter
    ) -> Iterator[bytes]:
        """Tar members of each image, as bytes."""
        dataset = str(episode.extras.get("dataset") or Path(ref.source).name)
        files = episode.frame_metadata.get("file", ())
        number = 0
        for camera, source in episode.cameras.items():
            images = writer.images(camera, source, episode.num_frames)
            for frame, (image_format, data) in enumerate(images):
                key = image_shards_layout.image_key(number)
                suffix = image_shards_layout.SUFFIXES[image_format]
                content = member_bytes(f"{key}.{suffix}", data)
                if self.config.label is not None:
                    name = f"{key}.{image_shards_layout.LABEL_SUFFIX}"
                    content += member_bytes(name, str(self.config.label).encode())
                if self.config.image_metadata:
                    place = (dataset, ref.id, camera, f"{frame:06d}")
                    metadata: dict[str, Any] = {
                        "key": image_shards_layout.global_key(place),
                        "dataset": dataset,
                        "episode": ref.id,
                        "camera": camera,
                        "frame": frame,
                    }
                    if files:
                        metadata["file"] = files[frame]
                    name = f"{key}.{image_shards_layout.METADATA_SUFFIX}"
                    content += member_bytes(name, image_shards_layout.metadata_bytes(metadata))
                yield content
                number += 1


def _image_findings(writer: writing.ImageWriter, episode: str) -> Iterator[Finding]:
    total = writer.sizes.total()
    if writer.converted:
        message = (
            f"{episode}: of {counted(total, 'image')}, {writer.converted} converted to 8-bit RGB"
        )
        yield IMAGE_SHARDS("converted", message, episode=episode)
    if writer.animations:
        message = f"{episode}: {writer.animations} animations; their first frames were used"
        yield IMAGE_SHARDS("several_frames", message, episode=episode)
    if len(writer.sizes) > 1 and writer.encoding.size is None:
        listed = ", ".join(f"{n} of {size[1]}x{size[0]}" for size, n in writer.sizes.items())
        yield IMAGE_SHARDS("mixed_sizes", f"{episode}: {listed} pixels", episode=episode)


class ImageShardsSink(writing.Sink):
    """Writes training data of visual tokenizers. Source: reference/future-vla 2.1, 2.2."""

    Config: ClassVar[type[writing.SinkConfig]] = ImageShardsConfig
    owned: ClassVar[Sequence[str]] = (
        *image_shards_layout.split_patterns("*"),
        *image_shards_layout.LISTS.values(),
        image_shards_layout.MANIFEST,
    )
    # `vlatool split` may replace them.
    volatile: ClassVar[Sequence[str]] = tuple(image_shards_layout.LISTS.values())
    findings: ClassVar[FindingCodes | None] = IMAGE_SHARDS
    has_arrays: ClassVar[bool] = False
    needs_rate: ClassVar[bool] = False
    stored_roles: Collection[str] = ("camera",)
    next_step: ClassVar[str] = (
        "vlatool tokenizer train --preset future-vla-tiny-tokenizer --data {output} "
        "--output runs/tokenizer"
    )

    def __init__(self, config: ImageShardsConfig, setup: writing.SinkSetup) -> None:
        self._config = config
        self._setup = setup
        # Tars of other splits in the same folder are not owned by this run.
        patterns = (
            *image_shards_layout.split_patterns(config.split_name),
            *image_shards_layout.LISTS.values(),
            image_shards_layout.MANIFEST,
        )
        self.owned = patterns  # pyright: ignore[reportAttributeAccessIssue] - narrower than the class
        self.work: writing.Work = ImageEpisodeWriter(setup.output, config)
        self.fields: Mapping[str, int] = {}
        self.action_fields: tuple[str, ...] = setup.policy_actions(self.fields, ())
        self.proprioception_fields: tuple[str, ...] = ()

    def begin(self) -> None:
        for name in (*image_shards_layout.LISTS.values(), image_shards_layout.MANIFEST):
            remove_file(self._setup.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> writing.SinkSummary:
        """Writes the lists, if `val_ratio` is set, and the manifest."""
        output = self._setup.output
        files: list[FileEntry] = []
        shards: list[image_shards_layout.ImageShard] = []
        for receipt in receipts:
            for entry in receipt.files:
                files.append(entry)
                if entry.path.endswith(".tar"):
                    shard = image_shards_layout.ImageShard(
                        entry.path, entry.samples or 0, entry.bytes
                    )
                    shards.append(shard)
        manifest = image_shards_layout.ImageManifest(tuple(shards), self._options())
        if not manifest.images:
            raise DataError(
                "no image was written: the selected episodes have none",
                hint="select episodes with images, or other cameras with --camera-names",
                code="data.no_samples",
                details={"dropped": dict(run.dropped)},
            )
        if self._config.val_ratio is not None:
            self._split(self._config.val_ratio, [output / shard.name for shard in shards], run)
        image_shards_layout.write_manifest(output, manifest)
        files.append(file_entry(output, image_shards_layout.MANIFEST))
        size = sum(shard.bytes for shard in shards)
        return writing.SinkSummary(manifest.images, size, tuple(files), {"shards": len(shards)})

    def estimate(self) -> writing.Estimate:
        survey = self._setup.survey
        frames = None if survey.frames is None else survey.frames * len(survey.cameras)
        return writing.Estimate(frames, {"shards": survey.episodes})

    def _split(self, ratio: float, tars: Sequence[Path], run: JobRun) -> None:
        """Writes the lists; warns if no shard would be left to train on."""
        val_positions = image_shards_layout.validation_positions(len(tars), ratio)
        val = [tars[position] for position in val_positions]
        held_out = set(val)
        train = [tar for tar in tars if tar not in held_out]
        if not train:
            message = (
                f"{counted(len(tars), 'shard is', 'shards are')} too few for --val-ratio "
                f"{ratio}; no lists written"
            )
            run.reporter.warn("image_shards.not_split", message)
            return
        output = self._setup.output
        image_shards_layout.write_lists(
            (output / image_shards_layout.TRAIN_LIST, train),
            (output / image_shards_layout.VAL_LIST, val),
        )

    def _options(self) -> dict[str, Any]:
        options = self._config.recorded({"type", "val_ratio", "verify_pixels"})
        if self._config.label is None:
            del options["label"]  # as in manifests that have no such key
        origin = {key: self._setup.origin.get(key) for key in ("type", "source_episodes")}
        return {**origin, "cameras": list(self._setup.survey.cameras), **options}
