"""Metadata of robotics data sets, read before the first sample.

`load_info` opens the data sets (`lbm` shards, or frames from which windows are cut), gives their
cameras and fields the names of `data.rename`, and merges their statistics. What follows from it for
the section `data` is in `derive.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.conventions.contradiction import check_rate
from vlatool.episode import PoseGroup
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter, counted
from vlatool.formats.field_summary import dimension_label, recorded_names
from vlatool.formats.frames.layout import FramesFolder
from vlatool.formats.shards.layout import ShardFolder, ShardTable, check_shards
from vlatool.formats.stats import layout as stats_layout
from vlatool.jobs.job import digest_of
from vlatool.loading.base import DataSet
from vlatool.loading.robotics.config import (
    FrameWindowsConfig,
    RoboticsDataConfig,
    ValidationDataConfig,
)
from vlatool.loading.robotics.frames import FrameWindows
from vlatool.loading.shard_reader import file_cache
from vlatool.plugins import did_you_mean
from vlatool.storage.uri import is_remote, location
from vlatool.transforms.names import NameMap
from vlatool.transforms.normalize import constant_dimensions, field_width


@dataclass(frozen=True)
class RoboticsDataSet:
    """One data set of a run; its cameras and fields have the names of the run."""

    name: str  # as configured
    shards: ShardTable
    options: Mapping[str, Any]  # content of preprocessing_config.yaml
    rename: NameMap  # what `data.rename` changes, without globs
    windows: FrameWindows | None  # windows that are cut from frames; None for shards
    padded: frozenset[str]  # fields of other data sets that it lacks, with `pad_missing_fields`

    @property
    def cameras(self) -> list[str]:
        """Its cameras; empty if it has none, or does not name them."""
        return list(self.options.get("camera_names") or ())

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(width, height) to which preprocessing resized all images; None if it did not resize."""
        match self.options.get("resize_images_size"):
            case [int(width), int(height)]:
                return width, height
            case _:
                return None


@dataclass(frozen=True)
class RoboticsInfo:
    """Metadata of all data sets of a run."""

    sets: tuple[RoboticsDataSet, ...]
    options: Mapping[str, Any]  # of the first data set, with the fields of all if they are padded
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
        for number, dataset in enumerate(self.datasets, 1):
            digest = self.sets[number - 1].shards.digest
            digests[f"data set {number}"] = f"{dataset.size} samples, {digest}"
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
        return float(self.options.get("fps") or 10.0)

    def widths(self, fields: Sequence[str]) -> list[int]:
        """Number of dimensions of each field."""
        for name in fields:
            if name in self.left_out:
                raise DataError(
                    f"the field {name!r} cannot be used: {self.left_out[name]}",
                    hint="if it has another name there, rename it (`vlatool inspect A B` shows "
                    "how); else set data.pad_missing_fields true, or leave it out of "
                    "data.action_fields and data.proprioception_fields",
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

    options: list[dict[str, Any]] = []
    renames: list[NameMap] = []
    statistics: list[stats_layout.Statistics] = []
    for number, folder in enumerate(folders):
        file = _statistics_file(config, number, folder)
        if len(folders) > 1:
            stored = stats_layout.read_mergeable(file)
        else:
            stored = stats_layout.read_stats(file)
        stored_options = _options(folder)
        rename = config.rename.applicable(stored_options.get("camera_names") or (), stored)
        options.append(_with_names(stored_options, rename))
        renames.append(rename)
        statistics.append(_by_field(stored, rename))

    pasts = [int(row["past_lowdim_steps"]) for row in options]
    futures = [int(row["future_lowdim_steps"]) for row in options]
    merged = _merged(config, statistics, pasts)
    all_statistics = {**_of_training(config), **merged.statistics}
    sets: list[RoboticsDataSet] = []
    for number, folder in enumerate(folders):
        padded: frozenset[str] = frozenset()
        if config.pad_missing_fields:
            padded = frozenset(all_statistics) - statistics[number].keys()
        sets.append(
            RoboticsDataSet(
                name=config.dataset_manifest[number],
                shards=shards[number],
                options=options[number],
                rename=renames[number],
                windows=folder if isinstance(folder, FrameWindows) else None,
                padded=padded,
            )
        )
    first_options = options[0]
    if config.pad_missing_fields:
        first_options = first_options | _of_all_fields(options)
    return RoboticsInfo(
        sets=tuple(sets),
        options=first_options,
        statistics=stats_layout.compact(all_statistics),
        past=min(pasts),
        future=min(futures),
        statistics_past=min(pasts),
        fields=_fields(config, first_options),
        left_out=merged.left_out,
        fixed_in_some=tuple(_fixed_in_some(config, first_options, statistics, all_statistics)),
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
        fields = {config.rename.source_of(name) for name in _fields(config, frames.options())}
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
    for folder, entries in zip(folders, shards, strict=True):
        if isinstance(folder, ShardFolder) and not is_remote(folder.manifest):
            check_shards(folder.manifest, entries)
    for folder in folders:
        if isinstance(folder, FrameWindows):
            _check_rate(folder, config)

    has_frames = any(isinstance(folder, FrameWindows) for folder in folders)
    # Validation data may be shards beside training data of frames.
    is_typed = config.windows != FrameWindowsConfig() and not config.cameras_are_known
    if is_typed and not has_frames:
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
    for text, folder in zip(config.dataset_manifest, folders, strict=True):
        if config.split == "val" and isinstance(folder, ShardFolder):
            raise DataError(
                f"{text}: shards hold no episodes out, so data.split val has no samples",
                hint="preprocess with --sink frames, which holds episodes out",
                code="data.no_samples",
            )


def _check_rate(windows: FrameWindows, config: RoboticsDataConfig) -> None:
    if not windows.changes_rate:
        return
    conventions = windows.conventions()
    if conventions is not None:
        actions = config.action_fields or windows.options().get("action_fields") or ()
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


def _options(folder: ShardFolder | FrameWindows) -> dict[str, Any]:
    """Options of the preprocessing, and `conventions` if they were measured."""
    options = folder.options()
    for key in ("past_lowdim_steps", "future_lowdim_steps"):
        if not isinstance(options.get(key), int):
            raise DataError(f"{folder.options_file}: {key} is missing", code="data.broken")
    conventions = folder.conventions()
    if conventions is None:
        return options
    return {**options, "conventions": asdict(conventions)}


def _by_field(values: Mapping[str, Any], rename: NameMap) -> dict[str, Any]:
    return {rename.parts_of(name)[0]: value for name, value in values.items()}


def _with_names(options: dict[str, Any], rename: NameMap) -> dict[str, Any]:
    """Preprocessing options with new names of cameras and fields."""
    if rename.is_empty:
        return options
    renamed = dict(options)
    for key in ("action_fields", "proprioception_fields"):
        if options.get(key):
            renamed[key] = list(rename.names_of(options[key]))
    if options.get("camera_names"):
        renamed["camera_names"] = list(rename.cameras_of(dict.fromkeys(options["camera_names"])))
    if options.get("camera_rotations"):
        renamed["camera_rotations"] = rename.cameras_of(options["camera_rotations"])
    if options.get("dimension_names"):
        renamed["dimension_names"] = _by_field(options["dimension_names"], rename)
    if options.get("pose_groups"):
        groups = [PoseGroup(**group) for group in options["pose_groups"]]
        renamed["pose_groups"] = [asdict(group) for group in rename.pose_groups_of(groups)]
    if options.get("conventions"):
        conventions = options["conventions"]
        meanings: list[dict[str, Any]] = []
        for group in conventions["groups"]:
            meanings.append({**group, "field": rename.parts_of(group["field"])[0]})
        renamed["conventions"] = {**conventions, "groups": meanings}
    return renamed


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


def _of_all_fields(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Options of the fields of all data sets."""
    pose_groups: list[Any] | None = []
    dimension_names: dict[str, Any] = {}
    action_fields: dict[str, None] = {}
    proprioception_fields: dict[str, None] = {}
    for row in options:
        groups = row.get("pose_groups")
        if groups is None:
            pose_groups = None
        for group in groups or ():
            if pose_groups is not None and group not in pose_groups:
                pose_groups.append(group)
        dimension_names = {**(row.get("dimension_names") or {}), **dimension_names}
        action_fields |= dict.fromkeys(row.get("action_fields") or ())
        proprioception_fields |= dict.fromkeys(row.get("proprioception_fields") or ())
    return {
        "pose_groups": pose_groups,
        "dimension_names": dimension_names,
        "action_fields": list(action_fields),
        "proprioception_fields": list(proprioception_fields),
    }


def _fields(config: RoboticsDataConfig, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Configured action and proprioception fields, or those that the data name; each once."""
    actions = config.action_fields or options.get("action_fields") or []
    observed = config.proprioception_fields or options.get("proprioception_fields") or []
    return tuple(dict.fromkeys(map(str, [*actions, *observed])))


def _fixed_in_some(
    config: RoboticsDataConfig,
    options: Mapping[str, Any],
    parts: Sequence[stats_layout.Statistics],
    merged: Mapping[str, Any],
) -> Iterator[str]:
    """Labels of dimensions that never change in one data set, but in all together."""
    if len(parts) == 1:
        return
    names = recorded_names(options)
    for text, part in zip(config.dataset_manifest, parts, strict=True):
        for name in _fields(config, options):
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


def report_held_out(info: RoboticsInfo, reporter: Reporter) -> None:
    """Says which data sets hold episodes out, and that training leaves these out."""
    for dataset in info.sets:
        windows = dataset.windows
        if windows is None or windows.split != "train" or not windows.folder.num_held_out:
            continue
        count = windows.folder.num_held_out
        total = counted(len(windows.folder.episodes), "episode")
        verb = "is" if count == 1 else "are"
        reporter.note(
            f"{dataset.name}: {count} of {total} {verb} held out for evaluation; "
            "add --data.split all to train on all"
        )
