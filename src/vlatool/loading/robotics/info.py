"""Metadata of robotics data sets: sizes, fields, cameras, statistics."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vlatool.config.coerce import value_text
from vlatool.conventions.contradiction import check_rate
from vlatool.episode import NO_CAMERAS, PoseGroup, listed_cameras
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter, counted
from vlatool.formats.field_summary import dimension_label, recorded_names
from vlatool.formats.frames.layout import FramesFolder
from vlatool.formats.shards.layout import Shard, ShardFolder, check_shards
from vlatool.formats.stats import layout as stats_layout
from vlatool.jobs.job import digest_of
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.loading.robotics.config import (
    FrameWindowsConfig,
    RoboticsDataConfig,
    ValidationDataConfig,
    image_names,
)
from vlatool.loading.robotics.frames import FrameWindows
from vlatool.loading.shard_reader import file_cache
from vlatool.plugins import did_you_mean
from vlatool.report.text import few_text
from vlatool.storage.uri import is_remote, location
from vlatool.transforms.augmentation import central_box
from vlatool.transforms.names import NameMap, name_end
from vlatool.transforms.normalize import constant_dimensions, field_width

# Number of fields that a message lists.
_MAX_LISTED = 40


@dataclass(frozen=True)
class RoboticsInfo:
    """Metadata of all data sets of a run."""

    shards: tuple[tuple[Shard, ...], ...]  # shards of each data set
    statistics: (
        stats_layout.Statistics
    )  # map from field name to statistics, merged over the data sets
    options: tuple[Mapping[str, Any], ...]  # content of preprocessing_config.yaml of each data set
    past: int  # number of steps before the anchor in every window
    future: int  # number of steps after the anchor in every window
    statistics_past: int  # index of the anchor in statistics per time step
    fields: tuple[str, ...] = ()  # names of the configured fields, or of those that the data name
    names: tuple[str, ...] = ()  # names of the data sets, as configured
    # name of each field that has no merged statistics, to the reason
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    # statistics of the fields over the data; None if `statistics` has them
    data_statistics: Mapping[str, Any] | None = None
    # names in each data set that `data.rename` changes, without globs
    renames: tuple[NameMap, ...] = ()
    # fields of other data sets that each data set lacks, with `pad_missing_fields`
    padded: tuple[frozenset[str], ...] = ()
    # dimensions that never change in one data set, but in all together, with the data set
    fixed_in_some: tuple[str, ...] = ()
    # windows of each data set that has frames; None for shards
    windows: tuple[FrameWindows | None, ...] = ()

    @cached_property
    def datasets(self) -> tuple[DataSet, ...]:
        names = self.names or tuple(f"data set {number}" for number, _ in enumerate(self.shards, 1))
        return tuple(
            DataSet(
                name,
                tuple(ShardInfo(shard.path, shard.num_sequences, shard.digest) for shard in shards),
            )
            for name, shards in zip(names, self.shards, strict=True)
        )

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the manifests and of the used statistics. Source: reference/order 7."""
        manifests = {
            f"data set {number}": _fingerprint(shards)
            for number, shards in enumerate(self.shards, 1)
        }
        used = {name: self.statistics.get(name) for name in self.fields}
        own = self.data_statistics
        replaced = {} if own is None else {"statistics of the data": digest_of(own)}
        return {**manifests, "statistics": digest_of(used), **replaced}

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(sum(shard.num_sequences for shard in shards) for shards in self.shards)

    @property
    def num_samples(self) -> int:
        """Number of samples in all data sets."""
        return sum(self.sizes)

    @property
    def fps(self) -> float:
        """Frames per second of the first data set; 10 if it is not recorded."""
        return float(self.options[0].get("fps") or 10.0)

    def widths(self, fields: Sequence[str]) -> list[int]:
        """Number of dimensions of each field."""
        for name in fields:
            if name in self.left_out:
                raise DataError(
                    f"the field {name!r} cannot be used: {self.left_out[name]}",
                    hint="leave the field out of data.action_fields or "
                    "data.proprioception_fields, rename it (`vlatool inspect A B`), train on one "
                    "of them, or use zeros where it is missing: data.pad_missing_fields true",
                    code="data.mismatch",
                    details={"field": name},
                )
            if name not in self.statistics:
                raise DataError(
                    f"the field {name!r} is not in the statistics of the data",
                    hint=did_you_mean(name, list(self.statistics)),
                    code="data.unknown_field",
                    details={"field": name, "known": list(self.statistics)},
                )
        return [field_width(name, self.statistics[name]) for name in fields]


def load_info(config: RoboticsDataConfig) -> RoboticsInfo:
    """Reads manifests, statistics and preprocessing options, and checks the sizes of local
    shards.
    """
    if not config.dataset_manifest:
        raise DataError(
            "no data set is configured",
            hint="set --data DIR or data.dataset_manifest",
            code="data.no_source",
        )
    folders = [data_of(text, config) for text in config.dataset_manifest]
    shards = [folder.shards() for folder in folders]
    for folder, entries in zip(folders, shards, strict=True):
        if isinstance(folder, ShardFolder) and not is_remote(folder.manifest):
            check_shards(folder.manifest, entries)
    windows = tuple(each if isinstance(each, FrameWindows) else None for each in folders)
    for folder in filter(None, windows):
        _check_rate(folder, config)
    # Validation data may be shards beside training data of frames.
    is_typed = config.windows != FrameWindowsConfig() and not config.cameras_are_known
    if is_typed and not any(windows):
        raise UsageError(
            f"data.windows is for data of the sink frames; {config.dataset_manifest[0]} has shards",
            hint="take fewer of their steps with data.lowdim_past_timesteps and "
            "data.lowdim_future_timesteps, or preprocess with --sink frames",
            code="usage.unsupported",
        )
    if config.episodes is not None and (len(windows) > 1 or not any(windows)):
        raise UsageError(
            "data.episodes is for one data set, of the sink frames",
            hint="choose episodes when preprocessing, with --episodes",
            code="usage.unsupported",
        )
    if config.split == "val" and not all(windows):
        shards_only = config.dataset_manifest[windows.index(None)]
        raise DataError(
            f"{shards_only}: training shards hold no episode out, so data.split val is empty",
            hint="preprocess with --sink frames, which holds episodes out, or give other data",
            code="data.no_samples",
        )
    configured = config.dataset_statistics
    mergeable = len(configured or folders) > 1
    files = [
        location(text) if text.endswith(".json") else data_of(text, config).statistics_file
        for text in configured
    ] or [folder.statistics_file for folder in folders]
    parts = [
        (stats_layout.read_mergeable if mergeable else stats_layout.read_stats)(path)
        for path in files
    ]
    options = [_options(folder) for folder in folders]
    renames = [
        config.rename.applicable(row.get("camera_names") or (), part)
        for row, part in zip(options, parts, strict=True)
    ]
    parts = [_by_field(part, names) for part, names in zip(parts, renames, strict=True)]
    options = [_with_names(row, names) for row, names in zip(options, renames, strict=True)]
    pasts = [int(row["past_lowdim_steps"]) for row in options]
    merged = _merged(config, parts, pasts)
    known = {**_of_training(config), **merged.statistics}
    if config.pad_missing_fields:
        options[0] = {**options[0], **_of_all_fields(options)}
    return RoboticsInfo(
        shards=tuple(tuple(entries) for entries in shards),
        # Without digests, which only merging needs: each loader worker gets a copy.
        statistics=stats_layout.compact(known),
        options=tuple(options),
        past=min(pasts),
        future=min(int(row["future_lowdim_steps"]) for row in options),
        statistics_past=min(pasts),
        fields=_fields(config, options[0]),
        padded=tuple(frozenset(known) - part.keys() for part in parts)
        if config.pad_missing_fields
        else (),
        names=tuple(config.dataset_manifest),
        left_out=merged.left_out,
        fixed_in_some=tuple(_fixed_in_some(config, options[0], parts, known)),
        renames=tuple(renames),
        windows=windows,
    )


def held_out_data(config: RoboticsDataConfig) -> list[str]:
    """Those of the data sets that hold episodes out."""
    found: list[str] = []
    for text in config.dataset_manifest:
        folder = data_of(text, config.model_copy(update={"split": "val"}))
        if isinstance(folder, FrameWindows) and folder.folder.num_held_out and folder.chosen:
            found.append(text)
    return found


def report_held_out(info: RoboticsInfo, reporter: Reporter) -> None:
    """Says which data sets hold episodes out, and that training leaves these out."""
    for name, windows in zip(info.names, info.windows, strict=False):
        count = 0 if windows is None or windows.split != "train" else windows.folder.num_held_out
        if windows is not None and count:
            reporter.note(
                f"{name}: {count} of {counted(len(windows.folder.episodes), 'episode')} "
                f"{'is' if count == 1 else 'are'} held out for evaluation; "
                "--data.split all trains on all"
            )


def _check_rate(windows: FrameWindows, config: RoboticsDataConfig) -> None:
    conventions = windows.conventions() if windows.changes_rate else None
    if conventions is not None:
        actions = config.action_fields or windows.options().get("action_fields") or ()
        check_rate(
            conventions,
            [config.rename.source_of(name) for name in actions],
            "choose other data.action_fields, leave out data.windows.fps, or preprocess the "
            "recordings with their poses declared in pose_groups",
        )


def _by_field(values: Mapping[str, Any], names: NameMap) -> dict[str, Any]:
    return {names.parts_of(name)[0]: value for name, value in values.items()}


def _with_names(options: dict[str, Any], names: NameMap) -> dict[str, Any]:
    """Preprocessing options with new names of cameras and fields."""
    if names.is_empty:
        return options
    cameras: dict[str, None] = dict.fromkeys(options.get("camera_names") or ())
    conventions = options.get("conventions") or {"groups": ()}
    groups = [
        {**group, "field": names.parts_of(group["field"])[0]} for group in conventions["groups"]
    ]
    poses = [PoseGroup(**group) for group in options.get("pose_groups") or ()]
    changes = {
        "camera_names": list(names.cameras_of(cameras)),
        "camera_rotations": names.cameras_of(options.get("camera_rotations") or {}),
        "action_fields": list(names.names_of(options.get("action_fields") or ())),
        "proprioception_fields": list(names.names_of(options.get("proprioception_fields") or ())),
        "dimension_names": _by_field(options.get("dimension_names") or {}, names),
        "pose_groups": [asdict(group) for group in names.pose_groups_of(poses)],
        "conventions": {**conventions, "groups": groups},
    }
    return {key: changes.get(key, value) if value else value for key, value in options.items()}


def data_of(text: str, config: RoboticsDataConfig) -> ShardFolder | FrameWindows:
    """Opens the data set at a folder or manifest of any scheme; DataError if there is none."""
    frames = FramesFolder.find(location(text))
    if frames is None:
        return ShardFolder.open(location(text))
    cache = file_cache(config.dataset_cache).folder
    # Of several data sets each may have the fields that another one names.
    is_known = bool(config.action_fields and config.proprioception_fields)
    is_known = is_known or len(config.dataset_manifest) == 1
    named = _fields(config, frames.options()) if is_known else ()
    used = {config.rename.source_of(name) for name in named}
    fields = tuple(sorted(used))
    return FrameWindows(
        frames, config.windows, cache, fields, config.episodes, config.split or "train"
    )


def _merged(
    config: RoboticsDataConfig, parts: Sequence[stats_layout.Statistics], pasts: Sequence[int]
) -> stats_layout.MergedStats:
    """Merges statistics with the weights of the mixture; steps are aligned by the anchor. A field
    with other shapes in other data sets is left out. Using it is an error.
    """
    if len(parts) == 1:
        return stats_layout.MergedStats(parts[0])
    weights: Sequence[float | None] = config.dataset_weighting
    # By size if all are 0 or one is less; `SampleOrder` raises an error for these.
    if not weights or min(config.dataset_weighting) < 0 or not any(weights):
        weights = [None] * len(parts)
    names = (
        config.dataset_manifest if len(config.dataset_manifest) == len(parts) else [""] * len(parts)
    )
    folders = [name.rpartition("/")[0] or name for name in names]
    rows = zip(parts, pasts, weights, folders, strict=True)
    return stats_layout.merge_parts(
        [stats_layout.StatsPart(*row) for row in rows if row[2] != 0],  # what is never read
        leave_out_unequal=True,
        of_some=config.pad_missing_fields,
    )


def _fixed_in_some(
    config: RoboticsDataConfig,
    options: Mapping[str, Any],
    parts: Sequence[stats_layout.Statistics],
    merged: Mapping[str, Any],
) -> Iterator[str]:
    """Labels of dimensions that never change in one data set, but in all together."""
    names = recorded_names(options)
    for location_text, part in zip(config.dataset_manifest, parts, strict=False):
        for field_name in _fields(config, options):
            if len(parts) == 1 or field_name not in part or field_name not in merged:
                continue
            fixed = constant_dimensions(part[field_name], field_name)
            moves = ~constant_dimensions(merged[field_name], field_name)
            for index in np.flatnonzero(fixed & moves).tolist():
                label = dimension_label(field_name, index, len(fixed), names)
                yield f"{label} (in {location_text})"


def _of_training(config: RoboticsDataConfig) -> stats_layout.Statistics:
    """Statistics of fields that validation data may lack, for their widths."""
    if not (isinstance(config, ValidationDataConfig) and config.pad_missing_fields):
        return {}
    training = config.model_copy(update={"dataset_manifest": config.training_manifest})
    return load_info(RoboticsDataConfig.model_construct(**dict(training))).statistics


def _of_all_fields(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Options of the fields of all data sets."""
    rows = [row.get("pose_groups") for row in options]
    names = [row.get("dimension_names") or {} for row in options]
    groups = [group for row in rows for group in row or ()]
    return {
        "pose_groups": None
        if None in rows
        else [g for i, g in enumerate(groups) if g not in groups[:i]],
        "dimension_names": {name: part[name] for part in reversed(names) for name in part},
        **{
            key: list(dict.fromkeys(name for row in options for name in row.get(key) or ()))
            for key in ("action_fields", "proprioception_fields")
        },
    }


def _fields(config: RoboticsDataConfig, options: Mapping[str, Any]) -> tuple[str, ...]:
    keys = ("action_fields", "proprioception_fields")
    names = [getattr(config, key) or options.get(key) or [] for key in keys]
    return tuple(dict.fromkeys(str(name) for part in names for name in part))


def _fingerprint(shards: Sequence[Shard]) -> str:
    rows = [(shard.path.name, shard.num_sequences) for shard in shards]
    return f"{sum(count for _, count in rows)} samples, {digest_of(rows)}"


def derive_data(config: RoboticsDataConfig, info: RoboticsInfo) -> RoboticsDataConfig:
    _check_renames(config, info)
    cameras = config.camera_names or _cameras(config, info)
    indices = config.image_indices or _agreed(info, "image_indices")
    agreed = _first if config.pad_missing_fields else _agreed
    actions = config.action_fields or agreed(info, "action_fields")
    observed = config.proprioception_fields or agreed(info, "proprioception_fields")
    past = config.lowdim_past_timesteps
    future = config.lowdim_future_timesteps
    cut = [windows.keys.model_dump() for windows in info.windows if windows is not None]
    first = cut[0] if cut else {}
    same = {key: value for key, value in first.items() if all(w[key] == value for w in cut)}
    scaled = {
        "include_fields": [*observed, *actions],
        "lowdim_past_timesteps": info.statistics_past,
        "lowdim_future_timesteps": info.future,
    }
    derived = config.model_copy(
        update={
            "camera_names": list(cameras),
            "image_indices": list(indices),
            "windows": config.windows.model_copy(update=same),
            "episodes": config.episodes and next(filter(None, info.windows)).numbers,
            "image_names": image_names(listed_cameras(cameras), indices),
            "action_fields": list(actions),
            "proprioception_fields": list(observed),
            "normalization": config.normalization.model_copy(update=scaled),
            "lowdim_past_timesteps": info.past if past is None else past,
            "lowdim_future_timesteps": info.future if future is None else future,
            "action_dim": sum(info.widths(actions)),
            "proprioception_dim": sum(info.widths(observed)),
        }
    )
    _check(derived, config, info)
    return derived


def _check_renames(config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    """Raises an error for names of `data.rename` that no data set has; validation data may."""
    cameras = dict.fromkeys(
        str(name) for options in info.options for name in options.get("camera_names") or ()
    )
    fields = [*info.statistics, *info.left_out]
    unused = config.rename.unmatched(cameras, fields)
    if unused and not config.cameras_are_known:
        raise DataError(
            f"data.rename.{unused[0]}: no data set has this name; their cameras are "
            f"{', '.join(cameras) or 'none'}, their fields {few_text(fields, _MAX_LISTED)}",
            hint=did_you_mean(unused[0].partition("=")[2], [*cameras, *fields]),
            code="data.unknown_field",
        )


def _check(derived: RoboticsDataConfig, config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    chunk = (derived.lowdim_future_timesteps or 0) + 1
    if derived.max_delay >= chunk:
        raise UsageError(
            f"data.max_delay is {derived.max_delay}, a chunk has {counted(chunk, 'step')}",
            hint="a delay is at most half of a chunk: the chunk before has as many steps left",
            code="usage.bad_value",
        )
    if not derived.action_fields:
        known = {name: field_width(name, entry) for name, entry in info.statistics.items()}
        listed = [f"{name} ({width})" for name, width in known.items()]
        more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
        actions = [name for name in known if "action" in name] or list(known)
        observed = [name for name in known if name not in actions and "desired" not in name]
        keys = {"data.action_fields": actions[:2], "data.proprioception_fields": observed[:2]}
        options = (f"--{key} {','.join(names)}" for key, names in keys.items() if names)
        raise DataError(
            f"the data name no action fields; their fields (dimensions) are: "
            f"{', '.join(listed[:_MAX_LISTED])}{more}",
            hint=f"select predicted and observed fields, such as {' '.join(options)}",
            code="data.missing",
            details={"known": known},
        )
    _check_images(derived, info)
    for key, available in (
        ("lowdim_past_timesteps", info.past),
        ("lowdim_future_timesteps", info.future),
    ):
        if getattr(derived, key) > available:
            raise DataError(
                f"data.{key} is {getattr(derived, key)}, but the windows have {available}",
                hint=f"lower data.{key}, or make larger windows: of frames with data.windows, of "
                "shards when preprocessing",
                code="data.mismatch",
            )
    for key in ("action_dim", "proprioception_dim"):
        value = getattr(config, key)
        if value is not None and value != getattr(derived, key):
            raise DataError(
                f"data.{key} is {value}, but the fields have {getattr(derived, key)} dimensions",
                hint=f"remove data.{key}",
                code="data.mismatch",
            )


def _check_images(config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    """Raises an error if a data set lacks a configured camera or image index. With padding, one
    data set must have each camera. Padded validation data may lack cameras, but not all of them.
    """
    cameras = [list(options.get("camera_names") or []) for options in info.options]
    if config.pad_missing_images:
        known = list(dict.fromkeys(name for part in cameras for name in part))
        if config.cameras_are_known and not set(config.cameras).isdisjoint(known):
            known = config.cameras
        cameras = [known if all(cameras) else []]
    indices = [list(options.get("image_indices") or []) for options in info.options]
    _check_names("camera_names", config.cameras, cameras, info.names)
    _check_names("image_indices", config.image_indices, indices, info.names)
    shape = config.augmentation.crop_shape
    sizes = {image_size(options) for options in info.options} - {None}
    for width, height in filter(None, sizes):
        if shape is not None:
            central_box((height, width), shape)
    if len(sizes) > 1 and (shape is None or max(shape) <= 1):
        raise DataError(
            "the data sets have images of different sizes (width, height): "
            + ", ".join(value_text(size) for size in sorted(sizes, key=str)),
            hint="preprocess them with the same --resize-images-size, or crop to a size in pixels "
            "with data.augmentation.image.crop",
            code="data.mismatch",
        )


def _check_names(
    key: str, values: Sequence[Any], available: Sequence[Sequence[Any]], names: Sequence[str]
) -> None:
    """Raises an error if a data set that lists its values of a key lacks one of `values`."""
    for number, known in enumerate(available):
        missing = [value for value in values if value not in known] if known else []
        if not missing:
            continue
        dataset = names[number] if len(available) == len(names) > 1 else "the data"
        hint = did_you_mean(str(missing[0]), [str(value) for value in known])
        if any(missing[0] in row for row in available):
            hint = f"remove it from data.{key}"
            hint += ", or set data.pad_missing_images" if key == "camera_names" else ""
        spare = [name for name in known if name not in values and key == "camera_names"]
        alike = [name for name in spare if name_end(name) == name_end(missing[0])] or spare
        if len(alike) == 1:
            hint = f"rename it with --data.rename cameras.{missing[0]}={alike[0]}, or {hint}"
        raise DataError(
            f"data.{key}: {missing[0]!r} is not in {dataset}, which has {known}; asked for are "
            f"{list(values)}",
            hint=hint,
            code="data.unknown_field",
        )


def report_padding(config: RoboticsDataConfig, info: RoboticsInfo, reporter: Reporter) -> None:
    """Counts what is padded because whole data sets lack it, by their manifests."""
    lacking: dict[str, list[int]] = {}
    fields = {*config.action_fields, *config.proprioception_fields}
    for number, options in enumerate(info.options):
        known = options.get("camera_names")
        absent = [] if known is None else [name for name in config.cameras if name not in known]
        images = [f"black images of {name}" for name in absent]
        padded = fields.intersection(info.padded[number]) if info.padded else ()
        for text in (*images, *(f"zeros as {name}" for name in sorted(padded))):
            lacking.setdefault(text, []).append(number)
    for text, numbers in lacking.items():
        count = sum(info.sizes[number] for number in numbers)
        sets = few_text([info.names[number] for number in numbers])
        reporter.note(f"{text} in {count} of {counted(info.num_samples, 'sample')}: {sets}")


def image_size(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) to which preprocessing resized all images; None if it did not resize."""
    match options.get("resize_images_size"):
        case [int(width), int(height)]:
            return width, height
        case _:
            return None


def _cameras(config: RoboticsDataConfig, info: RoboticsInfo) -> list[str]:
    """Cameras of all data sets, which must agree; with padding, cameras of any of them; `none` if
    all were preprocessed without images.
    """
    if all(options.get("camera_names") == [] for options in info.options):
        return [NO_CAMERAS]
    if not config.pad_missing_images:
        return _agreed(info, "camera_names")
    parts = [options.get("camera_names") or [] for options in info.options]
    return list(dict.fromkeys(str(name) for part in parts for name in part))


def _first(info: RoboticsInfo, key: str) -> list[Any]:
    return list(info.options[0].get(key) or [])


def _agreed(info: RoboticsInfo, key: str) -> list[Any]:
    values = [list(options.get(key) or []) for options in info.options]
    if any(value != values[0] for value in values):
        kind = "images" if key == "camera_names" else "fields"
        names = f", data.rename (see `vlatool inspect A B`) or data.pad_missing_{kind}"
        raise DataError(
            f"the data sets differ in {key}: {values[0]} and "
            f"{next(value for value in values if value != values[0])}",
            hint=f"set data.{key}{names if key != 'image_indices' else ''}",
            code="data.mismatch",
        )
    return values[0]


def _options(folder: ShardFolder | FrameWindows) -> dict[str, Any]:
    options = folder.options()
    for key in ("past_lowdim_steps", "future_lowdim_steps"):
        if not isinstance(options.get(key), int):
            raise DataError(
                f"{folder.options_file}: {key} is missing",
                code="data.broken",
            )
    conventions = folder.conventions()
    return options if conventions is None else {**options, "conventions": asdict(conventions)}
