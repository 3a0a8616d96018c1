"""The data sets of a run as one mixture, and what a policy needs of them besides weights.

`load_info` opens the data sets (`lbm` shards, or frames from which windows are cut), gives their
cameras and fields the names of `data.rename`, and merges their statistics. `assets_of` makes the
normalization, poses, images and contract of a policy of them; a run stores these in its folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlatool.checkpoints.contract import Contract, SeenCamera
from vlatool.conventions.contradiction import check_rate
from vlatool.datasets.frames.layout import FramesFolder
from vlatool.datasets.lbm.layout import ShardFolder, ShardTable, check_shards
from vlatool.datasets.stats import layout as stats_layout
from vlatool.episode import Array, PoseGroup
from vlatool.errors import DataError, UsageError
from vlatool.jobs.job import digest_of
from vlatool.loading.base import DataSet
from vlatool.loading.robotics.config import (
    FrameWindowsConfig,
    RoboticsDataConfig,
    ValidationDataConfig,
)
from vlatool.loading.robotics.frames import FrameWindows
from vlatool.loading.robotics.options import DataOptions, ImageTransform
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.loading.shard_reader import file_cache
from vlatool.plugins import did_you_mean
from vlatool.recordings.field_summary import Names, dimension_label
from vlatool.storage.uri import is_remote, location
from vlatool.transforms.names import NameMap
from vlatool.transforms.normalize import constant_dimensions, field_width
from vlatool.transforms.relative import groups_by_name

if TYPE_CHECKING:
    from vlatool.loading.robotics.reader import DecodedSample

# Frames per second where the data do not record it.
_FPS = 10.0


@dataclass(frozen=True)
class RoboticsDataSet:
    """One data set of a run; its cameras and fields have the names of the run."""

    name: str  # as configured
    shards: ShardTable
    options: DataOptions
    rename: NameMap  # what `data.rename` changes, without globs
    windows: FrameWindows | None  # windows that are cut from frames; None for shards
    # fields of other data sets that it lacks, with `pad_missing_fields`
    padded: frozenset[str] = frozenset()

    @property
    def cameras(self) -> list[str]:
        """Its cameras; empty if it has none, or does not name them."""
        return self.options.camera_names or []


@dataclass(frozen=True)
class RoboticsInfo:
    """Metadata of all data sets of a run."""

    sets: tuple[RoboticsDataSet, ...]
    options: DataOptions  # of the first data set, with the fields of all if they are padded
    # map from field to statistics, merged over the data sets; without digests, which only merging
    # needs: each loader worker gets a copy
    statistics: stats_layout.Statistics
    past: int  # number of steps before the anchor in every window
    future: int  # number of steps after the anchor in every window
    statistics_past: int  # index of the anchor in statistics per time step
    fields: tuple[str, ...]  # names of the configured fields, or of those that the data name
    # name of each field that has no merged statistics, to the reason
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    # dimensions that never change in one data set, but in all together, with the data set
    fixed_in_some: tuple[str, ...] = ()
    # statistics of the fields over the data; None if `statistics` has them
    data_statistics: Mapping[str, Any] | None = None

    @cached_property
    def datasets(self) -> tuple[DataSet, ...]:
        return tuple(DataSet(stored.name, stored.shards) for stored in self.sets)

    @cached_property
    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the manifests and of the used statistics. Source: reference/order 7."""
        digests: dict[str, str] = {}
        for number, dataset in enumerate(self.sets, 1):
            size = self.datasets[number - 1].size
            digests[f"data set {number}"] = f"{size} samples, {dataset.shards.digest}"
        digests["statistics"] = digest_of({name: self.statistics.get(name) for name in self.fields})
        if self.data_statistics is not None:
            digests["statistics of the data"] = digest_of(self.data_statistics)
        return digests

    @property
    def num_samples(self) -> int:
        """Number of samples in all data sets."""
        return sum(dataset.size for dataset in self.datasets)

    @property
    def fps(self) -> float:
        """Frames per second of the first data set; 10 if it is not recorded."""
        return float(self.options.fps or _FPS)

    def widths(self, fields: Sequence[str]) -> list[int]:
        """Number of dimensions of each field."""
        for name in fields:
            if name in self.left_out:
                raise DataError(
                    f"the field {name!r} cannot be used: {self.left_out[name]}",
                    hint="rename it (`vlatool inspect A B` shows how), set data.pad_missing_fields "
                    "true, or leave it out of the fields of the policy",
                    code="data.mismatch",
                    details={"field": name},
                )
            if name not in self.statistics:
                raise DataError(
                    f"your data have no field {name!r}, or no statistics of it",
                    hint=did_you_mean(name, list(self.statistics)),
                    code="data.unknown_field",
                    details={"field": name, "known": list(self.statistics)},
                )
        return [field_width(name, self.statistics[name]) for name in fields]

    def check_steps(self, past: int, future: int) -> None:
        """Raises an error if the windows lack steps before or after the anchor."""
        for key, steps, available in (
            ("lowdim_past_timesteps", past, self.past),
            ("lowdim_future_timesteps", future, self.future),
        ):
            if steps > available:
                raise DataError(
                    f"data.{key} is {steps}, but the windows of {self.sets[0].name} have "
                    f"{available}",
                    hint=f"lower data.{key}, or make larger windows: with data.windows for frames, "
                    "with `vlatool preprocess` for shards",
                    code="data.mismatch",
                )


def load_info(config: RoboticsDataConfig) -> RoboticsInfo:
    """Reads manifests, statistics and preprocessing options; checks the sizes of local shards."""
    if not config.dataset_manifest:
        raise DataError(
            "there is no data set to train on",
            hint="add --data with the output of `vlatool preprocess`",
            code="data.no_source",
        )
    folders = [data_of(text, config) for text in config.dataset_manifest]
    shards = [folder.shards() for folder in folders]
    _check_folders(config, folders, shards)

    # Only the statistics of several data sets are merged.
    read_statistics = stats_layout.read_mergeable if len(folders) > 1 else stats_layout.read_stats
    sets: list[RoboticsDataSet] = []
    statistics: list[stats_layout.Statistics] = []
    pasts: list[int] = []
    futures: list[int] = []
    for number, folder in enumerate(folders):
        stored = read_statistics(_statistics_file(config, number, folder))
        options = _options(folder)
        rename = config.rename.applicable(options.camera_names or (), stored)
        statistics.append(_by_field(stored, rename))
        pasts.append(options.past_lowdim_steps or 0)
        futures.append(options.future_lowdim_steps or 0)
        sets.append(
            RoboticsDataSet(
                name=config.dataset_manifest[number],
                shards=shards[number],
                options=options.renamed(rename),
                rename=rename,
                windows=folder if isinstance(folder, FrameWindows) else None,
            )
        )

    merged = _merged(config, statistics, pasts)
    all_statistics = {**_of_training(config), **merged.statistics}
    first_options = sets[0].options
    if config.pad_missing_fields:
        first_options = _with_all_fields([dataset.options for dataset in sets])
        for number, own in enumerate(statistics):
            padded = frozenset(all_statistics) - own.keys()
            sets[number] = replace(sets[number], padded=padded)
    fields = _fields(config, first_options)
    fixed = _fixed_in_some(config, fields, first_options.names, statistics, all_statistics)
    return RoboticsInfo(
        sets=tuple(sets),
        options=first_options,
        statistics=stats_layout.compact(all_statistics),
        past=min(pasts),
        future=min(futures),
        statistics_past=min(pasts),
        fields=fields,
        left_out=merged.left_out,
        fixed_in_some=tuple(fixed),
    )


def data_of(text: str, config: RoboticsDataConfig) -> ShardFolder | FrameWindows:
    """Opens the data set at a folder or manifest of any scheme; DataError if there is none."""
    frames = FramesFolder.find(location(text))
    if frames is None:
        return ShardFolder.open(location(text))
    # Only the statistics of the fields in use are computed. Of several data sets each may have the
    # fields that another one names.
    fields: set[str] = set()
    is_configured = bool(config.action_fields and config.proprioception_fields)
    if is_configured or len(config.dataset_manifest) == 1:
        options = DataOptions.parse(frames.options())
        fields = {config.rename.source_of(name) for name in _fields(config, options)}
    return FrameWindows(
        folder=frames,
        config=config.windows,
        cache=file_cache(config.dataset_cache).folder,
        fields=tuple(sorted(fields)),
        episodes=config.episodes,
        split=config.split or "train",
    )


def _check_folders(
    config: RoboticsDataConfig,
    folders: Sequence[ShardFolder | FrameWindows],
    shards: Sequence[ShardTable],
) -> None:
    """Checks sizes of local shards, the rate of frames, and keys that are for frames only."""
    has_frames = False
    for text, folder, table in zip(config.dataset_manifest, folders, shards, strict=True):
        if isinstance(folder, FrameWindows):
            has_frames = True
            _check_rate(folder, config)
        elif config.split == "val":
            raise DataError(
                f"{text}: shards hold no episodes out, so data.split val has no samples",
                hint="preprocess with --sink frames, which holds episodes out",
                code="data.no_samples",
            )
        elif not is_remote(folder.manifest):
            check_shards(folder.manifest, table)

    # Validation data may be shards beside training data of frames.
    has_windows = config.windows != FrameWindowsConfig() and not config.cameras_are_known
    if has_windows and not has_frames:
        raise UsageError(
            f"data.windows needs data of the sink frames; {config.dataset_manifest[0]} has shards",
            hint="use fewer steps with data.lowdim_past_timesteps and "
            "data.lowdim_future_timesteps, or preprocess with --sink frames",
            code="usage.unsupported",
        )
    if config.episodes is not None and (len(folders) > 1 or not has_frames):
        raise UsageError(
            "data.episodes needs a single data set, written by the sink frames",
            hint="choose the episodes earlier: vlatool preprocess ... --episodes 0:4,7",
            code="usage.unsupported",
        )


def _check_rate(windows: FrameWindows, config: RoboticsDataConfig) -> None:
    conventions = windows.conventions() if windows.changes_rate else None
    if conventions is not None:
        actions = config.action_fields or windows.stored.action_fields
        check_rate(
            conventions,
            [config.rename.source_of(name) for name in actions],
            "choose other data.action_fields, leave out data.windows.fps, or preprocess the "
            "recordings with their poses declared in pose_groups",
        )


def _statistics_file(
    config: RoboticsDataConfig, number: int, folder: ShardFolder | FrameWindows
) -> Path:
    if not config.dataset_statistics:
        return folder.statistics_file
    text = config.dataset_statistics[number]
    if text.endswith(".json"):
        return location(text)
    return data_of(text, config).statistics_file


def _options(folder: ShardFolder | FrameWindows) -> DataOptions:
    """Options of the preprocessing, with `conventions` if they were measured."""
    stored = folder.options()
    conventions = folder.conventions()
    if conventions is not None:
        stored["conventions"] = asdict(conventions)
    options = DataOptions.parse(stored, folder.options_file)
    for key in ("past_lowdim_steps", "future_lowdim_steps"):
        if getattr(options, key) is None:
            raise DataError(f"{folder.options_file}: {key} is missing", code="data.broken")
    return options


def _by_field(values: Mapping[str, Any], rename: NameMap) -> dict[str, Any]:
    return {rename.parts_of(name)[0]: value for name, value in values.items()}


def _merged(
    config: RoboticsDataConfig, parts: Sequence[stats_layout.Statistics], pasts: Sequence[int]
) -> stats_layout.MergedStats:
    """Merges statistics with the weights of the mixture; steps are aligned by the anchor. A field
    with other shapes in other data sets is left out. Using it is an error.
    """
    if len(parts) == 1:
        return stats_layout.MergedStats(parts[0])
    weights = config.dataset_weighting
    # By size if all are 0 or one is less; `SampleOrder` raises an error for these.
    is_weighted = any(weights) and min(weights) >= 0
    read_parts: list[stats_layout.StatsPart] = []
    for number, part in enumerate(parts):
        weight = weights[number] if is_weighted else None
        if weight == 0:  # never read
            continue
        name = config.dataset_manifest[number]
        folder = name.rpartition("/")[0] or name
        read_parts.append(stats_layout.StatsPart(part, pasts[number], weight, folder))
    return stats_layout.merge_parts(
        read_parts, leave_out_unequal=True, of_some=config.pad_missing_fields
    )


def _of_training(config: RoboticsDataConfig) -> stats_layout.Statistics:
    """Statistics of fields that validation data may lack, for their widths."""
    if not isinstance(config, ValidationDataConfig) or not config.pad_missing_fields:
        return {}
    training = config.model_copy(update={"dataset_manifest": config.training_manifest})
    return load_info(RoboticsDataConfig.model_construct(**dict(training))).statistics


def _with_all_fields(options: Sequence[DataOptions]) -> DataOptions:
    """Options of the first data set, with the fields of all."""
    groups: dict[PoseGroup, None] = {}
    names: dict[str, Sequence[str]] = {}
    actions: dict[str, None] = {}
    observed: dict[str, None] = {}
    for of_set in options:
        groups |= dict.fromkeys(of_set.pose_groups or ())
        names = {**of_set.names, **names}
        actions |= dict.fromkeys(of_set.action_fields)
        observed |= dict.fromkeys(of_set.proprioception_fields)
    are_grouped = all(of_set.pose_groups is not None for of_set in options)
    return DataOptions.parse(
        {
            **options[0].stored,
            "pose_groups": list(map(asdict, groups)) if are_grouped else None,
            "dimension_names": names,
            "action_fields": list(actions),
            "proprioception_fields": list(observed),
        }
    )


def _fields(config: RoboticsDataConfig, options: DataOptions) -> tuple[str, ...]:
    """Configured action and proprioception fields, or those that the data name; each once."""
    actions = config.action_fields or options.action_fields
    observed = config.proprioception_fields or options.proprioception_fields
    return tuple(dict.fromkeys([*actions, *observed]))


def _fixed_in_some(
    config: RoboticsDataConfig,
    fields: Sequence[str],
    names: Names,
    parts: Sequence[stats_layout.Statistics],
    merged: stats_layout.Statistics,
) -> Iterator[str]:
    """Labels of dimensions that never change in one data set, but in all together."""
    for text, part in zip(config.dataset_manifest, parts, strict=True):
        for name in fields:
            if name not in part or name not in merged:
                continue
            fixed = constant_dimensions(part[name], name)
            moves = ~constant_dimensions(merged[name], name)
            for index in np.flatnonzero(fixed & moves).tolist():
                yield f"{dimension_label(name, index, len(fixed), names)} (in {text})"


def held_out_data(config: RoboticsDataConfig) -> list[str]:
    """Returns the data sets that hold episodes out."""
    held_out: list[str] = []
    for text in config.dataset_manifest:
        folder = data_of(text, config.model_copy(update={"split": "val"}))
        if isinstance(folder, FrameWindows) and folder.folder.num_held_out and folder.selected:
            held_out.append(text)
    return held_out


@dataclass(frozen=True)
class RoboticsAssets:
    """Assets that a policy needs besides weights."""

    data: RoboticsDataConfig  # section `data` of the run, derived
    normalizer: Normalizer  # normalization of the run
    pose_groups: Sequence[PoseGroup]  # fields that form poses
    fps: float  # frames per second of the training data
    statistics: stats_layout.Statistics  # statistics of the normalization
    # transform of camera images. From `make_assets` its size may be None, because training does not
    # need it
    images: ImageTransform = field(default_factory=ImageTransform)
    contract: Contract = field(default_factory=Contract)  # what training saw
    # map from field name to names of its dimensions, if they are recorded
    names: Names = field(default_factory=dict[str, Sequence[str]])

    def normalized(self, sample: "DecodedSample") -> "DecodedSample":
        """Returns the sample with normalized fields, float32 [T, C]; padded fields are zeros."""
        fields: dict[str, Array] = {}
        for name, values in sample.fields.items():
            fields[name] = self.normalizer.normalize(name, values)
            if name in sample.padded_fields:
                fields[name] = np.zeros_like(fields[name])
        return replace(sample, fields=fields)


def assets_of(
    config: RoboticsDataConfig,
    statistics: stats_layout.Statistics,
    past: int,
    options: Mapping[str, Any] | DataOptions,
) -> RoboticsAssets:
    """Assets of a derived section.

    Args:
        config: Section `data`, derived.
        statistics: Map from field to its statistics.
        past: Index of the anchor in statistics per time step.
        options: Content of preprocessing_config.yaml.

    Raises:
        DataError: The options are broken, or the statistics lack a field or a step.
    """
    if not isinstance(options, DataOptions):
        options = DataOptions.parse(options)
    groups = options.pose_groups
    if groups is None:
        groups = groups_by_name([*config.action_fields, *config.proprioception_fields])
    return RoboticsAssets(
        data=config,
        normalizer=Normalizer(config, statistics, past),
        pose_groups=groups,
        fps=float(options.fps or _FPS),
        statistics=statistics,
        images=replace(options.images, crop=config.augmentation.crop_shape),
        contract=contract_of(config, options, statistics),
        names=options.names,
    )


def contract_of(
    config: RoboticsDataConfig, options: DataOptions, statistics: stats_layout.Statistics
) -> Contract:
    """Facts on data for the inputs of a derived section."""
    images = options.images
    cameras: dict[str, SeenCamera] = {}
    is_resized = False
    changes_aspect = False
    for name in config.cameras:
        if options.camera_names and name not in options.camera_names:
            continue
        turns = images.rotations.get(name, 0)
        recorded = options.recorded_sizes.get(name, [])
        for size in recorded:
            turned = size[::-1] if turns % 2 else size
            if images.size is not None:
                is_resized |= turned != images.size
                changes_aspect |= turned[0] * images.size[1] != turned[1] * images.size[0]
        cameras[name] = SeenCamera(tuple(recorded), images.size, turns)

    fields = _widths(config.proprioception_fields, statistics)
    actions = _widths(config.action_fields, statistics)
    future = config.lowdim_future_timesteps
    return replace(
        options.meaning,
        cameras=cameras,
        resize_method=images.method if changes_aspect else "",
        resize_filter=images.resample if is_resized else "",
        crop=config.augmentation.crop_shape,
        fields=fields,
        actions=actions,
        horizon=None if future is None else future + 1,
        statistics=digest_of({name: statistics[name] for name in (*fields, *actions)}),
    )


def _widths(names: Sequence[str], statistics: stats_layout.Statistics) -> dict[str, int]:
    return {name: field_width(name, statistics[name]) for name in names if name in statistics}
