"""The `lbm` sink: `shards/` for training, `episodes/` with the same samples in frame order.

Each sample is encoded once, into its episode's tar (`images.py`); shards consist of byte ranges
copied from these tars, in a seeded shuffle (`shuffle.py`). Source: formats/lbm-preprocessing 1, 2;
formats/lbm 2, 3.1.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import field_validator, model_validator

from vlatool.config.base import ConfigModel, option
from vlatool.datasets.lbm import layout as shards_layout
from vlatool.datasets.lbm.images import EpisodeEncoder, image_streams
from vlatool.datasets.lbm.shuffle import RANGES, SampleIndex, write_shards
from vlatool.datasets.stats.layout import STATS_NAME, write_with_digests
from vlatool.episode import Array, Episode, EpisodeRef, Survey, UInt8Array
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes, warning
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.media.images import encode_jpeg
from vlatool.media.tar import TarWriter, member_bytes
from vlatool.media.tar_sample import sample_members
from vlatool.recordings import writing
from vlatool.recordings.field_summary import DIMENSION_NAMES
from vlatool.storage.atomic import open_atomic, remove_file
from vlatool.transforms.geometry import ResizeFilter, quarter_turns
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
    """Form that unlike data sets get in common, so that one run can train on all of them."""

    fps: float | None = option(
        None, "Convert to this many frames per second: poses between frames, nearest images.", gt=0
    )
    proprioception_fields: list[str] = option(
        [], "Fields that a policy observes; empty uses what the format proposes."
    )


class StoredImagesConfig(writing.SinkConfig):
    """Options of stored images and poses, for all sinks from which policies are trained."""

    newer: ClassVar[Mapping[str, Any]] = {"jpeg_optimize": True}

    pose_groups: list[PoseGroupConfig] | None = option(
        None, "Poses that also get relative fields; null uses the poses that the format knows."
    )
    resize_images_size: writing.ImageSize = None
    image_resizing_method: writing.ResizingMethod = "center_crop"
    image_resizing_filter: ResizeFilter | None = option(
        None, "Filter of the resize; null uses lanczos_vips, or lanczos with compat."
    )
    camera_rotations: dict[str, int] = option(
        {}, "Rotate cameras by clockwise quarter turns before the resize, with their calibration."
    )
    jpeg_quality: int = option(95, "JPEG quality of written images.", ge=1, le=100)
    jpeg_optimize: bool = option(
        True, "Make code tables for each JPEG: 5 % smaller files, twice the time, the same pixels."
    )
    depth: bool = option(False, "Store depth as 16-bit PNG, in millimeters.")
    labels: bool = option(False, "Store segmentation labels as 16-bit PNG.")
    compat: bool = option(
        False,
        "Resize and calibrate as the published LBM code does, which is off by up to half a pixel.",
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

    def encode_image(self, pixels: UInt8Array) -> bytes:
        """JPEG of uint8 [H, W, 3]."""
        return encode_jpeg(pixels, self.jpeg_quality, optimize=self.jpeg_optimize)


class LbmConfig(StoredImagesConfig, WindowsConfig):
    """Options of the sink `lbm`."""

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
            "jpeg_optimize",
            "depth",
            "labels",
            "compat",
        ),
        "Unlike data sets": ("pose_groups", "target"),
        "Statistics and shards": ("compute_statistics", "samples_per_shard", "seed"),
    }

    type: Literal["lbm"] = option("lbm", "Form of the output.")
    target: TargetConfig = option(TargetConfig(), "Form that several data sets get in common.")
    samples_per_shard: int = option(128, "Number of samples in a shard.", ge=1)
    seed: int = option(42, "Seed of the shuffle.", ge=0)
    keep_episodes: bool = option(
        True, "Keep the samples a second time, one tar per episode; false saves half the space."
    )
    compute_statistics: bool = option(True, "Write stats.json, which training needs.")

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


def estimated_windows(survey: Survey, config: WindowsConfig, rate: float = 1.0) -> int | None:
    """Estimates the number of windows as if all episodes were equally long.

    None if the survey has no lengths. `rate` is the stored frame rate divided by the recorded one.
    """
    if survey.frames is None:
        return None
    frames = round(rate * survey.frames / max(survey.episodes, 1))
    return len(make_windows(frames, config.window_spec()).anchors) * survey.episodes


_RATE_ERRORS = "rate_errors"  # fact of receipts: of another rate

LBM = FindingCodes(
    "lbm",
    missing_depth=warning("You asked for depth, but a camera has none."),
    missing_labels=warning("You asked for labels, but a camera has none."),
)


def missing_findings(episode: Episode, config: StoredImagesConfig) -> Iterator[Finding]:
    """Yields findings on requested depth and labels that cameras do not have."""
    requested: dict[str, Mapping[str, Any]] = {}
    if config.depth:
        requested["depth"] = episode.depth
    if config.labels:
        requested["labels"] = episode.labels
    for kind, available in requested.items():
        missing = [name for name in episode.cameras if name not in available]
        if missing:
            message = f"{episode.id}: has no {kind} of {', '.join(missing)}"
            yield LBM(f"missing_{kind}", message, episode=episode.id)


@dataclass(frozen=True)
class LbmEpisodeWriter:
    """Writes the samples of an episode into its own tar; picklable."""

    output: Path  # the output folder
    config: LbmConfig  # options of the sink
    commands: tuple[str, ...] = ()  # fields of the actions, including relative poses

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
            arrays = {RANGES: self._write(tar, sampler, spec)}
            tar.finish()
        if self.config.compute_statistics:
            arrays |= to_arrays(sampler.statistics())
        facts: dict[str, Any] = {
            writing.SIZES: {name: list(source.size) for name, source in episode.cameras.items()}
        }
        if error is not None:
            facts[_RATE_ERRORS] = list(error)
        return Receipt(
            ref.id,
            counts=counts,
            dropped=sampler.dropped,
            files=(FileEntry(name, tar.position, tar.sha256, len(sampler)),),
            findings=findings,
            facts=facts,
            arrays=arrays,
        )

    def stored(self, episode: Episode) -> tuple[Episode, RateError | None]:
        """The episode with the stored fields at the stored rate, and the errors of another rate."""
        stored = stored_episode(episode, self.config)
        fps = self.config.target.fps
        if fps is None:
            return stored, None
        return at_rate(stored, fps, self.commands)

    def _write(self, tar: TarWriter, sampler: EpisodeSampler, spec: SampleSpec) -> Array:
        """(offset, length) in bytes of each sample, int64 [S, 2]."""
        ranges: list[tuple[int, int]] = []
        config = self.config
        streams = image_streams(
            sampler.episode, spec.geometry, has_depth=config.depth, has_labels=config.labels
        )
        with EpisodeEncoder([*streams], sampler.needed_frames(), config.encode_image) as encoder:
            for sample in sampler:
                members = sample_members(sample, encoder.images(sample.image_frames))
                ranges.append(tar.append(b"".join(member_bytes(*member) for member in members)))
        return np.array(ranges, np.int64).reshape(-1, 2)


def stored_episode(episode: Episode, config: LbmConfig) -> Episode:
    """Adds the fields of the pose groups, and removes fields that mean nothing at a new rate."""
    if config.pose_groups is None:
        return episode
    stored = with_pose_groups(episode, config.pose_groups)
    if config.target.fps is None:
        return stored
    # Differences between frames mean nothing at another rate.
    lowdim = dict(stored.lowdim)
    for group in config.pose_groups:
        if group.relation == "delta":
            for name in group.recorded_fields:
                lowdim.pop(name, None)
    return replace(stored, lowdim=lowdim)


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
    "success_unknown": "your episodes do not record their success; leave out --only-successful",
    "episode_missing_camera": "use only cameras that the episodes have (--camera-names), or leave "
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
                f"your field {name!r} has a name that the output uses for {content}",
                hint=f"give it another name: --rename fields.NEW={name}",
                code="data.broken",
                details={"field": name},
            )


def no_samples(dropped: Mapping[str, int]) -> DataError:
    """Returns the error for an output without samples; `dropped`: number of samples by reason."""
    main_reason = max(dropped, key=lambda reason: dropped[reason], default="padding")
    listed = ", ".join(f"{count} for {reason}" for reason, count in dropped.items())
    relax = f"most samples are left out because of {main_reason}: relax this rule"
    return DataError(
        f"no sample is left to write; left out: {listed or 'none'}",
        hint=_DROP_HINTS.get(main_reason, relax),
        code="data.no_samples",
        details={"dropped": dict(dropped)},
    )


def stored_roles(config: StoredImagesConfig) -> tuple[str, ...]:
    """Roles of what is stored with these keys."""
    roles = ["camera", "field", "language"]
    if config.depth:
        roles.append("depth")
    if config.labels:
        roles.append("labels")
    return tuple(roles)


class LbmSink(writing.Sink):
    """Writes training data of the LBM pipeline. Source: formats/lbm 1; formats/lbm-preprocessing 1,
    2.
    """

    Config: ClassVar[type[writing.SinkConfig]] = LbmConfig
    owned: ClassVar[Sequence[str]] = shards_layout.OWNED_FILES
    volatile: ClassVar[Sequence[str]] = shards_layout.VOLATILE_FILES
    findings: ClassVar[FindingCodes | None] = LBM
    lower_case_cameras: ClassVar[bool] = True
    needs_actions: ClassVar[bool] = True
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
                "your recordings have images only; windows need at least one field of numbers",
                hint="to write images alone, use --sink image-shards",
                code="data.missing",
            )
        check_names(setup.survey.fields)
        writing.check_sizes(setup.survey, config.resize_images_size)
        self.changes_rate = config.target.fps not in (None, setup.survey.fps)
        spec = config.sample_spec()
        steps = spec.windows.past + 1 + spec.windows.future
        example = stored_episode(setup.survey.example(steps), config)
        self._example = example
        # Options that do not fit the fields raise here, not once per episode.
        sampler = EpisodeSampler(example, (), spec)
        self._widths = sampler.widths()
        fields = {name: self._widths.get(name, 0) for name in sampler.fields}
        self.fields: Mapping[str, int] = fields
        self.temporary: Sequence[str] = () if config.keep_episodes else shards_layout.EPISODE_FILES
        self.action_fields: tuple[str, ...] = setup.policy_actions(fields, example.action_fields)
        target_fields = config.target.proprioception_fields
        commands = command_fields(
            self.action_fields,
            target_fields or example.proprioception_fields,
            example.pose_groups,
            example.lowdim,
        )
        self._writer = LbmEpisodeWriter(setup.output, config, commands)
        self.work: writing.Work = self._writer
        self.proprioception_fields: tuple[str, ...] = writing.stored_fields(
            target_fields, fields, "--target.proprioception_fields"
        ) or tuple(name for name in example.proprioception_fields if name in fields)

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
        """Writes options, statistics and shards and, last, the manifests."""
        output = self._setup.output
        config = self._config
        index = SampleIndex()
        total = StatisticsAccumulator()
        sizes: dict[str, set[tuple[int, ...]]] = {}
        worst = RateError(0.0, 0.0, 0.0)
        for receipt in receipts:
            index.add(receipt)
            for name, size in receipt.facts.get(writing.SIZES, {}).items():
                sizes.setdefault(name, set()).add(tuple(size))
            if _RATE_ERRORS in receipt.facts:
                worst = RateError(*map(max, worst, receipt.facts[_RATE_ERRORS]))
            if len(receipt.arrays) > 1:
                total.add(from_arrays(receipt.arrays))
        if not index.samples:
            raise no_samples(run.dropped)

        folder = output / shards_layout.SHARDS_NAME
        options = self._options()
        options[shards_layout.RECORDED_SIZES] = {
            name: [list(size) for size in sorted(sizes_of_camera)]
            for name, sizes_of_camera in sizes.items()
        }
        shards_layout.write_preprocessing_config(folder, options)
        statistics = total.total()
        if statistics is not None:
            entries = dict(field_entries(statistics, self._widths))
            write_with_digests(folder / STATS_NAME, entries)

        written = write_shards(
            output, index, config.seed, config.samples_per_shard, run.executor, run.reporter
        )
        if any(worst):
            run.reporter.note(f"{config.target.fps:g} frames per second: {worst.text}")
        shards: list[FileEntry] = []
        files: list[FileEntry] = []
        for shard, shard_index in written:
            shards.append(shard)
            files += (shard, shard_index)
        if not self.temporary or run.failures:
            files += index.files
            _write_manifest(output, shards_layout.EPISODES_NAME, index.files)
        _write_manifest(output, shards_layout.SHARDS_NAME, shards)

        counts: dict[str, Any] = {
            "total_samples_created": index.samples,
            "sample_counts": {"dropped": dict(run.dropped)},
            "failures": run.redact_paths(run.failures),
        }
        if any(worst):
            counts["rate_errors"] = worst._asdict()
        shards_layout.write_processing_metadata(
            folder,
            started=run.started,
            counts=counts,
            arguments=run.record.options,
            episodes=[ref.id for ref in self._setup.refs],
        )
        for name in shards_layout.LISTED_FILES:
            if (output / name).is_file():
                files.append(file_entry(output, name))
        size = sum(entry.bytes for entry in shards)
        return writing.SinkSummary(index.samples, size, tuple(files), {"shards": len(shards)})

    def estimate(self) -> writing.Estimate:
        survey = self._setup.survey
        rate = (self._config.target.fps or 0) / (survey.fps or 1) or 1
        samples = estimated_windows(survey, self._config, rate)
        if samples is None:
            return writing.Estimate(None)
        shards = math.ceil(samples / self._config.samples_per_shard)
        return writing.Estimate(samples, {"shards": shards})

    def _options(self) -> dict[str, Any]:
        """Content of preprocessing_config.yaml: options of the data, and facts that training needs.
        Source: formats/lbm 3.2.
        """
        config = self._config
        survey = self._setup.survey
        options = config.recorded({"type", "keep_episodes", "target"})
        pose_groups: list[dict[str, Any]] = []
        for group in self._example.pose_groups:
            pose_groups.append({key: value for key, value in vars(group).items() if value})
        dimension_names: dict[str, list[str]] = {}
        for name, field in survey.fields.items():
            if field.names:
                dimension_names[name] = list(field.names)
        document = {
            **self._setup.origin,
            **dict.fromkeys(_UNUSED_KEYS),
            **options,
            "sink": config.type,
            "camera_rotations": options["camera_rotations"] or None,
            "image_resizing_method": options["image_resizing_method"].upper(),
            "image_resizing_filter": config.resize_filter,
            "camera_names": list(survey.cameras),
            "pose_groups": pose_groups,
            "action_fields": list(self.action_fields),
            "proprioception_fields": list(self.proprioception_fields),
            "fps": config.target.fps or survey.fps,
            DIMENSION_NAMES: dimension_names,
        }
        # Steps from the source to the stored fields.
        groups = [group.model_dump() for group in config.pose_groups or ()]
        source_fps = survey.fps if config.target.fps else None
        if groups or source_fps:
            document["conversions"] = {"pose_groups": groups, "fps": source_fps}
        return document


def _write_manifest(output: Path, part: str, files: Sequence[FileEntry]) -> None:
    """Writes the manifest of `shards` or `episodes`."""
    rows = [(Path(entry.path).stem, entry.samples or 0) for entry in files]
    shards_layout.write_manifest(shards_layout.ShardFolder.of(output, part).manifest, rows)
