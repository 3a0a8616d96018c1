"""The `lbm` sink: `shards/` for training, `episodes/` with the same samples in frame order.

Each sample is encoded once, into its episode's tar; shards consist of byte ranges copied from these
tars, in a seeded shuffle. Source: formats/lbm-preprocessing 1, 2; formats/lbm 2, 3.1.
"""

import hashlib
import time
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import field_validator, model_validator

from vlatool.config.base import ConfigModel, option
from vlatool.episode import Array, Episode, EpisodeRef, FrameSource, Survey
from vlatool.errors import DataError, StorageError
from vlatool.events import Reporter, per_second
from vlatool.findings import Finding, FindingCodes, warning
from vlatool.formats import writing
from vlatool.formats.field_summary import DIMENSION_NAMES
from vlatool.formats.media.images import encode_jpeg, encode_png
from vlatool.formats.media.tar import ShardIndex, TarWriter, index_path, member_bytes
from vlatool.formats.media.tar_sample import sample_members
from vlatool.formats.shards import layout as shards_layout
from vlatool.formats.stats.layout import STATS_NAME, write_with_digests
from vlatool.jobs.executor import Executor
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Journal, Receipt, intact_receipt
from vlatool.storage.atomic import open_atomic, remove_file, write_bytes
from vlatool.storage.byte_ranges import ByteRange, read_byte_ranges
from vlatool.transforms.geometry import ImageGeometry, ResizeFilter, quarter_turns
from vlatool.transforms.rates import RateError, at_rate, command_fields
from vlatool.transforms.relative import PoseGroupConfig, with_pose_groups
from vlatool.transforms.statistics import (
    StatisticsAccumulator,
    field_entries,
    from_arrays,
    to_arrays,
)
from vlatool.transforms.windows import (
    EpisodeSampler,
    SampleSpec,
    WindowsConfig,
    make_windows,
)


class TargetConfig(ConfigModel):
    """Form that unlike data sets have in common, so that one run can train on all of them."""

    fps: float | None = option(
        None, "Frames per second; poses are interpolated, images are the nearest.", gt=0
    )
    proprioception_fields: list[str] = option(
        [], "Fields that a policy observes; empty: those of the format."
    )


class StoredImagesConfig(writing.SinkConfig):
    """Keys of stored images and poses, of all sinks from which policies are trained."""

    pose_groups: list[PoseGroupConfig] | None = option(
        None, "Poses that also get relative fields; null: those of the format."
    )
    resize_images_size: writing.ImageSize = None
    image_resizing_method: writing.ResizingMethod = "center_crop"
    image_resizing_filter: ResizeFilter | None = option(
        None, "Resize filter; null: lanczos_vips, or lanczos with compat."
    )
    camera_rotations: dict[str, int] = option(
        {}, "Clockwise quarter turns by camera, before the resize; calibration is rotated too."
    )
    jpeg_quality: int = option(95, "JPEG quality.", ge=1, le=100)
    depth: bool = option(False, "Store depth as 16-bit PNG, in millimeters.")
    labels: bool = option(False, "Store segmentation labels as 16-bit PNG.")
    compat: bool = option(
        False,
        "Use the published filter and calibration arithmetic, which is off by up to half a pixel.",
    )

    @field_validator("camera_rotations")
    @classmethod
    def _quarter_turns(cls, value: dict[str, int]) -> Any:
        return quarter_turns(value)

    @model_validator(mode="after")
    def _leave_out_default_filter(self) -> Self:
        unset = self.model_copy(update={"image_resizing_filter": None})
        return unset if self.image_resizing_filter == unset.resize_filter else self

    @property
    def resize_filter(self) -> ResizeFilter:
        """Filter of the resize; by default the published one with `compat`."""
        return self.image_resizing_filter or ("lanczos" if self.compat else "lanczos_vips")


class LbmConfig(StoredImagesConfig, WindowsConfig):
    """Training shards of the LBM pipeline."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Output": ("type", "keep_episodes"),
        "Windows": tuple(key for key in WindowsConfig.model_fields if key != "image_indices"),
        "Images": (
            "image_indices",
            "resize_images_size",
            "image_resizing_method",
            "image_resizing_filter",
            "camera_rotations",
            "jpeg_quality",
            "depth",
            "labels",
            "compat",
        ),
        "Unlike data sets": ("pose_groups", "target"),
        "Statistics and shards": ("compute_statistics", "samples_per_shard", "seed"),
    }

    type: Literal["lbm"] = option("lbm", "Form of the output.")
    target: TargetConfig = option(TargetConfig(), "Form that several data sets have in common.")
    samples_per_shard: int = option(128, "Samples in a shard.", ge=1)
    seed: int = option(42, "Seed of the shuffle.", ge=0)
    keep_episodes: bool = option(
        True, "Keep the tars per episode, as large as the shards, once the output is complete."
    )
    compute_statistics: bool = option(True, "Write stats.json.")

    def sample_spec(self) -> SampleSpec:
        return SampleSpec(
            windows=self.window_spec(),
            image_offsets=tuple(self.image_indices),
            image_size=writing.height_and_width(self.resize_images_size),
            resize_method=self.image_resizing_method,
            resize_filter=self.resize_filter,
            rotations=self.camera_rotations,
            still=self.stillness(),
            compat=self.compat,
        )


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
    copies_jpeg: bool = False  # copy JPEG files that the geometry does not change

    def member(self, offset: int) -> str:
        """Suffix of the tar member of an image offset."""
        return f"{self.name}_t{offset}.{'jpg' if self.kind == 'image' else 'png'}"

    def encode(self, frames: Sequence[int], quality: int) -> list[bytes]:
        """Encoded files of the frames."""
        if self.source.is_prepared:
            return [self.source.encoded(frame) or b"" for frame in frames]
        files: dict[int, bytes] = {}
        if self.copies_jpeg and self.kind == "image" and self.geometry.is_identity:
            size = self.geometry.target
            for frame in frames:
                if (data := writing.stored_jpeg(self.name, self.source, frame, size)) is not None:
                    files[frame] = data
        missing = [frame for frame in frames if frame not in files]
        pixels = writing.read_frames(self.name, self.source, missing) if missing else ()
        for frame, image in zip(missing, pixels, strict=True):
            files[frame] = self._file(image, quality)
        return [files[frame] for frame in frames]

    def _file(self, pixels: Array, quality: int) -> bytes:
        if self.kind == "image":
            return encode_jpeg(self.geometry.apply(pixels), quality)
        if pixels.min(initial=0) < 0 or pixels.max(initial=0) > np.iinfo(np.uint16).max:
            raise DataError(
                f"{self.name}: values from {pixels.min()} to {pixels.max()} do not fit 16 bits",
                hint="leave them out: --depth false, --labels false",
                code="data.mismatch",
                details={"camera": self.name},
            )
        return encode_png(self.geometry.apply_to_values(pixels.astype(np.uint16)))


class EpisodeEncoder:
    """Encoded images for samples with ascending frames; memory is bounded by one window. A context
    manager. Streams are encoded one batch ahead on a few threads.
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
        starts = range(0, len(needed), writing.FRAMES_PER_READ)
        self._waiting = deque(needed[start : start + writing.FRAMES_PER_READ] for start in starts)
        self._next: tuple[Sequence[int], Future[list[bytes]]] | None = None
        self._encoded: dict[int, bytes] = {}

    def file(self, frame: int, oldest: int) -> bytes:
        """The encoded frame; frames before `oldest` are discarded."""
        while frame not in self._encoded:
            self.prefetch()
            assert self._next is not None
            frames, future = self._next
            self._encoded.update(zip(frames, future.result(), strict=True))
            self._next = None
            self.prefetch()
        self._encoded = {n: data for n, data in self._encoded.items() if n >= oldest}
        return self._encoded[frame]

    def prefetch(self) -> None:
        """Starts encoding the next batch; one at a time, because sources are read in order."""
        if self._next is None and self._waiting:
            frames = self._waiting.popleft()
            self._next = frames, self._pool.submit(self.stream.encode, frames, self._quality)


def image_streams(
    episode: Episode,
    config: StoredImagesConfig,
    geometry: Callable[[str, tuple[int, int]], ImageGeometry],
    *,
    copies_jpeg: bool = False,
) -> Iterator[ImageStream]:
    """Images of an episode, then its depth and labels; `geometry` of a camera and a size."""
    for name, source in episode.cameras.items():
        yield ImageStream(name, source, geometry(name, source.size), copies_jpeg=copies_jpeg)
    extra = {"depth": episode.depth if config.depth else {}}
    extra["label"] = episode.labels if config.labels else {}
    for kind, sources in extra.items():
        of_cameras = [name for name in episode.cameras if name in sources]
        alone = [name for name in sources if name not in episode.cameras]
        for name in (*of_cameras, *alone):
            source = sources[name]
            values = geometry(name, source.size)
            yield ImageStream(f"{name}_{kind}", source, values, "values")


def estimated_windows(survey: Survey, config: WindowsConfig, rate: float = 1.0) -> int | None:
    """Number of windows if all episodes are of equal length; None if the survey has no length.
    `rate` is that of the stored frames by that of the recording.
    """
    if survey.frames is None:
        return None
    frames = round(rate * survey.frames / max(survey.episodes, 1))
    return len(make_windows(frames, config.window_spec()).anchors) * survey.episodes


_RATE_ERRORS = "rate_errors"  # fact of receipts: of another rate
RANGES = "ranges"

LBM = FindingCodes(
    "lbm",
    missing_depth=warning("Depth was requested, but a camera has none."),
    missing_labels=warning("Labels were requested, but a camera has none."),
)


def missing_findings(episode: Episode, config: StoredImagesConfig) -> Iterator[Finding]:
    """Findings on depth and labels that were requested and that cameras lack."""
    requested = {"depth": config.depth, "labels": config.labels}
    available = {"depth": episode.depth, "labels": episode.labels}
    for kind in (kind for kind, is_requested in requested.items() if is_requested):
        missing = [name for name in episode.cameras if name not in available[kind]]
        if missing:
            message = f"{episode.id}: no {kind} of {', '.join(missing)}"
            yield LBM(f"missing_{kind}", message, episode=episode.id)


@dataclass(frozen=True)
class LbmEpisodeWriter:
    """Writes the samples of an episode into its own tar; picklable."""

    output: Path  # the output folder
    config: LbmConfig  # options of the sink
    commands: tuple[str, ...] = ()  # fields of the actions, also those of relative poses

    def __call__(self, ref: EpisodeRef, episode: Episode) -> Receipt:
        """Writes the tar; the receipt holds the byte ranges of its samples."""
        episode, error = self.stored(episode)
        spec = self.config.sample_spec()
        sampler = EpisodeSampler(episode, tuple(episode.cameras), spec)
        findings = tuple(missing_findings(episode, self.config))
        counts = {"frames": episode.num_frames, "samples": len(sampler)}
        if not len(sampler):
            return Receipt(ref.id, counts=counts, dropped=sampler.dropped, findings=findings)
        name = shards_layout.episode_tar_name(ref.id)
        with open_atomic(self.output / name) as file:
            tar = TarWriter(file)
            ranges = self._write(tar, sampler, spec)
            tar.finish()
        arrays = to_arrays(sampler.statistics()) if self.config.compute_statistics else {}
        sizes = {name: list(source.size) for name, source in episode.cameras.items()}
        return Receipt(
            ref.id,
            counts=counts,
            dropped=sampler.dropped,
            files=(FileEntry(name, tar.position, tar.sha256, len(sampler)),),
            findings=findings,
            facts={writing.SIZES: sizes, **({} if error is None else {_RATE_ERRORS: [*error]})},
            arrays={RANGES: ranges, **arrays},
        )

    def stored(self, episode: Episode) -> tuple[Episode, RateError | None]:
        """The episode with the stored fields at the stored rate, and the errors of another rate."""
        stored = stored_episode(episode, self.config)
        fps = self.config.target.fps
        return (stored, None) if fps is None else at_rate(stored, fps, self.commands)

    def _write(self, tar: TarWriter, sampler: EpisodeSampler, spec: SampleSpec) -> Array:
        """(offset, length) in bytes of each sample, int64 [S, 2]."""
        ranges: list[tuple[int, int]] = []
        streams = list(image_streams(sampler.episode, self.config, spec.geometry))
        with EpisodeEncoder(streams, sampler.needed_frames(), self.config.jpeg_quality) as encoder:
            for sample in sampler:
                members = sample_members(sample, encoder.images(sample.image_frames))
                ranges.append(tar.append(b"".join(member_bytes(*member) for member in members)))
        return np.array(ranges, np.int64).reshape(-1, 2)


def stored_episode(episode: Episode, config: LbmConfig) -> Episode:
    if config.pose_groups is None:
        return episode
    stored = with_pose_groups(episode, config.pose_groups)
    if config.target.fps is None:
        return stored
    # Differences between frames mean nothing at another rate.
    deltas = (group for group in config.pose_groups if group.relation == "delta")
    differences = {name for group in deltas for name in group.recorded_fields}
    lowdim = {name: v for name, v in stored.lowdim.items() if name not in differences}
    return replace(stored, lowdim=lowdim)


@dataclass(frozen=True)
class ShardPlan:
    """Samples of one shard."""

    path: str  # Path of the tar, relative to the output
    samples: tuple[tuple[str, int, int], ...]  # (episode's tar, offset, length) of each sample
    digest: str  # digest that changes with the content of the shard

    @property
    def id(self) -> str:
        return Path(self.path).stem


class SampleIndex:
    """Byte ranges of all samples; 16 bytes per sample, so that millions fit in memory."""

    def __init__(self) -> None:
        self.files: list[FileEntry] = []
        self._ends = array("q")
        self._offsets = array("q")
        self._lengths = array("q")

    @property
    def samples(self) -> int:
        return len(self._offsets)

    def shards(self, samples_per_shard: int) -> int:
        return -(-self.samples // samples_per_shard)

    def add(self, receipt: Receipt) -> None:
        """Adds the samples of the next episode; an episode without samples is skipped."""
        if not receipt.files:
            return
        self.files += receipt.files
        for offset, length in receipt.arrays[RANGES].tolist():
            self._offsets.append(offset)
            self._lengths.append(length)
        self._ends.append(len(self._offsets))

    def plans(self, seed: int, samples_per_shard: int) -> Iterator[ShardPlan]:
        """Plans of the shards, in order."""
        order = np.random.default_rng(seed).permutation(self.samples)
        for number in range(self.shards(samples_per_shard)):
            chosen = order[number * samples_per_shard : (number + 1) * samples_per_shard]
            yield self._plan(shards_layout.shard_name(number), chosen.tolist())

    def _plan(self, path: str, chosen: list[int]) -> ShardPlan:
        digest = hashlib.blake2b(digest_size=16)
        samples: list[tuple[str, int, int]] = []
        for sample in chosen:
            episode = self.files[bisect_right(self._ends, sample)]
            offset = self._offsets[sample]
            length = self._lengths[sample]
            samples.append((episode.path, offset, length))
            digest.update(f"{episode.sha256} {offset} {length}\n".encode())
        return ShardPlan(path, tuple(samples), digest.hexdigest())


@dataclass(frozen=True)
class ShardWriter:
    """Copies the byte ranges of one shard and indexes them; picklable."""

    output: Path

    def __call__(self, plan: ShardPlan) -> Receipt:
        journal = Journal(self.output, "shards")
        previous = intact_receipt(self.output, journal.find(plan.id, plan.digest))
        if previous is not None:
            return previous
        path = self.output / plan.path
        with open_atomic(path) as file:
            tar = TarWriter(file)
            ranges = [tar.append(data) for data in _samples(self.output, plan)]
            tar.finish()
        shard = FileEntry(plan.path, tar.position, tar.sha256, len(plan.samples))
        index = write_index(self.output, plan.path, ranges, tar.position)
        receipt = Receipt(plan.id, plan.digest, files=(shard, index))
        journal.store(receipt)
        return receipt


def write_index(output: Path, tar: str, ranges: Sequence[tuple[int, int]], size: int) -> FileEntry:
    """Writes the index of a tar of `size` bytes, from the (offset, length) of its samples."""
    rows = np.array(ranges, np.int64).reshape(-1, 2)
    content = ShardIndex(rows[:, 0], rows[:, 1], size).content()
    path = index_path(output / tar)
    write_bytes(path, content, synced=False)
    name = path.relative_to(output).as_posix()
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest(), len(rows))


def write_shards(
    output: Path,
    index: SampleIndex,
    seed: int,
    samples_per_shard: int,
    executor: Executor,
    reporter: Reporter,
) -> list[tuple[FileEntry, FileEntry]]:
    """Writes all shards; returns the (tar, index) entries of each."""
    entries: list[tuple[FileEntry, FileEntry]] = []
    plans = index.plans(seed, samples_per_shard)
    start = time.monotonic()
    megabytes = 0.0
    with reporter.progress("shards", index.shards(samples_per_shard), "shards") as bar:
        for outcome in executor.map(ShardWriter(output), plans):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None
            shard, index_entry = outcome.value.files
            entries.append((shard, index_entry))
            megabytes += shard.bytes / 1e6
            rate = per_second(megabytes, time.monotonic() - start)
            bar.advance(1, **({} if rate is None else {"MB/s": round(rate, 1)}))
    return entries


def _samples(output: Path, plan: ShardPlan) -> Iterator[bytes]:
    parts = [
        ByteRange(output / name, start, start + length) for name, start, length in plan.samples
    ]
    read = read_byte_ranges(parts)
    for part in parts:
        try:
            data = next(read)
        except FileNotFoundError:
            data = b""
        if len(data) != part.stop - part.start:
            raise StorageError.at(
                part.path,
                "was removed or truncated while shards were written",
                hint="run the same command again to resume",
                code="storage.changed",
            )
        yield data


# Published options that do not affect the data; they are written with the value null.
_UNUSED_KEYS = (
    "output_dir",
    "num_workers",
    "ray_address",
    "ray_num_cpus",
    "output_dir_fixed_path",
    "auto_tag",
    "skip_git_tagging",
    "db_logging",
    "max_episodes_to_process",
)
_DROP_HINTS = {
    "padding": "allow more padding with --max-padding-left and --max-padding-right",
    "still": "lower --still-threshold or --still-field-thresholds, or leave out "
    "--filter-still-samples",
    "unsuccessful_episode": "leave out --only-successful",
    "success_unknown": "no episode records success or failure; leave out --only-successful",
    "episode_missing_camera": "choose cameras that the episodes have with --camera-names, or leave "
    "out --skip-episodes-missing-cameras",
}


# Members of samples that are no fields, and beginnings of others.
_TAKEN = ("past_mask", "future_mask")
_TAKEN_STARTS = ("original_intrinsics.", "rescaled_intrinsics.", "extrinsics.")


def check_names(fields: Iterable[str]) -> None:
    """Raises DataError if a field would have the name of a mask or of calibration in the data."""
    for name in sorted(fields):
        if name in _TAKEN or name.startswith(_TAKEN_STARTS):
            content = "the mask of the steps" if name in _TAKEN else "calibration of a camera"
            raise DataError(
                f"the episodes have a field {name!r}, which in the output is {content}",
                hint=f"give it another name: --rename fields.NEW={name}",
                code="data.broken",
                details={"field": name},
            )


def no_samples(dropped: Mapping[str, int]) -> DataError:
    """Error of an output without any sample; `dropped`: number of samples by reason."""
    main_reason = max(dropped, key=lambda reason: dropped[reason], default="padding")
    listed = ", ".join(f"{count} for {reason}" for reason, count in dropped.items())
    return DataError(
        f"no sample was written; dropped: {listed or 'none'}",
        hint=_DROP_HINTS.get(
            main_reason, f"relax the rule that drops the most samples: {main_reason}"
        ),
        code="data.no_samples",
        details={"dropped": dict(dropped)},
    )


def stored_roles(config: StoredImagesConfig) -> tuple[str, ...]:
    """Roles of what is stored with these keys."""
    asked = {"depth": config.depth, "labels": config.labels}
    return ("camera", "field", "language", *(role for role, is_asked in asked.items() if is_asked))


class LbmSink(writing.Sink):
    """Writes training data of the LBM pipeline. Source: formats/lbm 1; formats/lbm-preprocessing 1,
    2.
    """

    Config: ClassVar[type[writing.SinkConfig]] = LbmConfig
    owned: ClassVar[Sequence[str]] = shards_layout.OWNED_FILES
    volatile: ClassVar[Sequence[str]] = shards_layout.VOLATILE_FILES
    findings: ClassVar[FindingCodes | None] = LBM
    next_step: ClassVar[str] = (
        "vlatool train --preset policy-tiny --data {output} --output runs/{name}"
    )
    next_without_images: ClassVar[str] = (
        "vlatool train --preset policy-state --data {output} --output runs/{name} --num-epochs 20"
    )

    def __init__(self, config: LbmConfig, setup: writing.SinkSetup) -> None:
        self._config = config
        self._setup = setup
        self.stored_roles: Collection[str] = stored_roles(config)
        if not setup.survey.fields:
            raise DataError(
                "the episodes have no field; windows need at least one",
                hint="write images only with --sink image-shards",
                code="data.missing",
            )
        check_names(setup.survey.fields)
        self.changes_rate = config.target.fps not in (None, setup.survey.fps)
        spec = config.sample_spec()
        steps = spec.windows.past + 1 + spec.windows.future
        self._example = stored_episode(setup.survey.example(steps), config)
        # Options that do not fit the fields raise here, not once per episode.
        sampler = EpisodeSampler(self._example, (), spec)
        self._widths = sampler.widths()
        self.fields: Mapping[str, int] = {
            name: self._widths.get(name, 0) for name in sampler.fields
        }
        self.temporary: Sequence[str] = () if config.keep_episodes else shards_layout.EPISODE_FILES
        self.action_fields: tuple[str, ...] = setup.policy_actions(
            self.fields, self._example.action_fields
        )
        commands = command_fields(
            self.action_fields,
            config.target.proprioception_fields or self._example.proprioception_fields,
            self._example.pose_groups,
            self._example.lowdim,
        )
        self._writer = LbmEpisodeWriter(setup.output, config, commands)
        self.work: writing.Work = self._writer
        chosen = config.target.proprioception_fields
        self.proprioception_fields: tuple[str, ...] = writing.stored_fields(
            chosen, self.fields, "--target.proprioception_fields"
        ) or tuple(name for name in self._example.proprioception_fields if name in self.fields)

    def stored(self, episode: Episode) -> Episode:
        stored, _ = self._writer.stored(episode)
        return replace(
            stored,
            action_fields=self.action_fields,
            proprioception_fields=self.proprioception_fields,
        )

    def begin(self) -> None:
        for name in shards_layout.CLOSING_FILES:
            remove_file(self._setup.output / name)
        shards_layout.write_preprocessing_config(
            self._setup.output / shards_layout.SHARDS_NAME, self._options()
        )

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> writing.SinkSummary:
        output = self._setup.output
        config = self._config
        index = SampleIndex()
        total = StatisticsAccumulator()
        sizes: dict[str, set[tuple[int, ...]]] = {}
        errors = [[0.0] * 3]
        for receipt in receipts:
            index.add(receipt)
            for name, size in receipt.facts.get(writing.SIZES, {}).items():
                sizes.setdefault(name, set()).add(tuple(size))
            errors.append(receipt.facts.get(_RATE_ERRORS, errors[0]))
            if len(receipt.arrays) > 1:
                total.add(from_arrays(receipt.arrays))
        if not index.samples:
            raise no_samples(run.dropped)
        recorded = {name: [*map(list, sorted(each))] for name, each in sizes.items()}
        shards_layout.write_preprocessing_config(
            output / shards_layout.SHARDS_NAME,
            {**self._options(), shards_layout.RECORDED_SIZES: recorded},
        )
        statistics = total.total()
        if statistics is not None:
            self._write_stats(dict(field_entries(statistics, self._widths)))
        entries = write_shards(
            output, index, config.seed, config.samples_per_shard, run.executor, run.reporter
        )
        worst = RateError(*map(max, *errors, errors[0]))
        if any(worst):
            run.reporter.note(f"{config.target.fps:g} frames per second: {worst.text}")
        shards = [shard for shard, _ in entries]
        files = [entry for pair in entries for entry in pair]
        if not self.temporary or run.failures:
            files += index.files
            shards_layout.write_manifest(
                shards_layout.ShardFolder.of(output, shards_layout.EPISODES_NAME).manifest,
                _rows(index.files),
            )
        shards_layout.write_manifest(
            shards_layout.ShardFolder.of(output, shards_layout.SHARDS_NAME).manifest, _rows(shards)
        )
        shards_layout.write_processing_metadata(
            self._setup.output / shards_layout.SHARDS_NAME,
            started=run.started,
            counts={
                "total_samples_created": index.samples,
                "sample_counts": {"dropped": dict(run.dropped)},
                "failures": run.redact_paths(run.failures),
                **({"rate_errors": worst._asdict()} if any(worst) else {}),
            },
            arguments=run.record.options,
            episodes=[ref.id for ref in self._setup.refs],
        )
        small = (
            file_entry(output, name)
            for name in shards_layout.LISTED_FILES
            if (output / name).is_file()
        )
        size = sum(entry.bytes for entry in shards)
        return writing.SinkSummary(index.samples, size, (*files, *small), {"shards": len(shards)})

    def estimate(self) -> writing.Estimate:
        survey = self._setup.survey
        rate = (self._config.target.fps or 0) / (survey.fps or 1) or 1
        samples = estimated_windows(survey, self._config, rate)
        if samples is None:
            return writing.Estimate(None)
        return writing.Estimate(samples, {"shards": -(-samples // self._config.samples_per_shard)})

    def _write_stats(self, entries: Mapping[str, Mapping[str, object]]) -> None:
        write_with_digests(self._setup.output / shards_layout.SHARDS_NAME / STATS_NAME, entries)

    def _options(self) -> dict[str, Any]:
        """Content of preprocessing_config.yaml: options of the data, and facts that training needs.
        Source: formats/lbm 3.2.
        """
        unused = {"type", "keep_episodes", "target"}
        options = self._config.model_dump(mode="json", exclude=unused)
        groups = self._example.pose_groups
        return {
            **self._setup.origin,
            **dict.fromkeys(_UNUSED_KEYS),
            **options,
            "sink": self._config.type,
            "camera_rotations": options["camera_rotations"] or None,
            "image_resizing_method": options["image_resizing_method"].upper(),
            "image_resizing_filter": self._config.resize_filter,
            "camera_names": list(self._setup.survey.cameras),
            "pose_groups": [
                {key: value for key, value in vars(group).items() if value} for group in groups
            ],
            "action_fields": list(self.action_fields),
            "proprioception_fields": list(self.proprioception_fields),
            **self._conversions(),
            "fps": self._config.target.fps or self._setup.survey.fps,
            DIMENSION_NAMES: {
                name: list(info.names)
                for name, info in self._setup.survey.fields.items()
                if info.names
            },
        }

    def _conversions(self) -> dict[str, Any]:
        """Steps from the source to the stored fields; empty if these are as recorded."""
        groups = [group.model_dump() for group in self._config.pose_groups or ()]
        rate = self._setup.survey.fps if self._config.target.fps else None
        steps = {"pose_groups": groups, "fps": rate}
        return {"conversions": steps} if any(steps.values()) else {}


def _rows(files: Iterable[FileEntry]) -> list[tuple[str, int]]:
    return [(Path(entry.path).stem, entry.samples or 0) for entry in files]
