"""What the folders a run trains on say about themselves: sizes, fields, cameras, statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vlatool.artifacts.digests import read_mergeable
from vlatool.artifacts.manifest import Shard, check_shards
from vlatool.artifacts.shard_folder import ShardFolder
from vlatool.artifacts.stats import (
    MergedStats,
    Statistics,
    StatsPart,
    compact,
    merge_parts,
    read_stats,
)
from vlatool.errors import DataError
from vlatool.jobs.inputs import digest_of
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.loading.robotics.config import RoboticsDataConfig, image_names
from vlatool.plugins import did_you_mean
from vlatool.storage.uri import is_remote, location
from vlatool.transforms.augmentation import central_box
from vlatool.transforms.normalize import field_width

# Fields that a message lists.
_MOST_LISTED = 40


@dataclass(frozen=True)
class RoboticsInfo:
    """Facts of all data sets of a run together.

    Attributes:
        shards: Shards of each data set.
        statistics: Field name to statistics, merged over the data sets.
        options: preprocessing_config.yaml of each data set.
        past: Steps before the anchor that every window has.
        future: Steps after the anchor that every window has.
        statistics_past: Index of the anchor in statistics per time step.
        fields: Those that are used.
        names: What the data sets are called, as they were given.
        left_out: Field without statistics to the reason.
    """

    shards: tuple[tuple[Shard, ...], ...]
    statistics: Statistics
    options: tuple[Mapping[str, Any], ...]
    past: int
    future: int
    statistics_past: int
    fields: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def datasets(self) -> tuple[DataSet, ...]:
        """The shards as blocks."""
        names = self.names or tuple(f"data set {number}" for number, _ in enumerate(self.shards, 1))
        return tuple(
            DataSet(name, tuple(ShardInfo(shard.path, shard.num_sequences) for shard in shards))
            for name, shards in zip(names, self.shards, strict=True)
        )

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Digests of manifests and statistics, wherever the data lie. Source: reference/order 7."""
        found = {
            f"data set {number}": _listed(shards) for number, shards in enumerate(self.shards, 1)
        }
        used = {name: self.statistics.get(name) for name in self.fields}
        return {**found, "statistics": digest_of(used)}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples in each data set."""
        return tuple(sum(shard.num_sequences for shard in shards) for shards in self.shards)

    @property
    def num_samples(self) -> int:
        """Samples in all data sets."""
        return sum(self.sizes)

    @property
    def fps(self) -> float:
        """Frames per second of the first data set; 10 where it is not recorded."""
        return float(self.options[0].get("fps") or 10.0)

    def widths(self, fields: Sequence[str]) -> list[int]:
        """Channels of each field.

        Raises:
            DataError: A field is not in the statistics; names the nearest.
        """
        for name in fields:
            if name in self.left_out:
                raise DataError(
                    f"the field {name!r} cannot be used: {self.left_out[name]}",
                    hint="leave it or these data sets out, or preprocess them alike",
                    code="data.datasets_differ",
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
    """Opens manifests, statistics and preprocessing options, and checks that shards are whole.

    Raises:
        DataError: Something is missing or broken, or the data sets do not fit together.
    """
    if not config.dataset_manifest:
        raise DataError(
            "no data set is given",
            hint="give one with --data DIR or data.dataset_manifest",
            code="data.no_dataset",
        )
    folders = [data_folder(text) for text in config.dataset_manifest]
    shards = [folder.shards() for folder in folders]
    for folder, entries in zip(folders, shards, strict=True):
        if not is_remote(folder.manifest):
            check_shards(folder.manifest, entries)
    parts = _statistics(config, folders)
    options = [_options(folder) for folder in folders]
    pasts = [int(one["past_lowdim_steps"]) for one in options]
    merged = _merged(config, parts, pasts)
    return RoboticsInfo(
        shards=tuple(tuple(entries) for entries in shards),
        # Loader processes get a copy; only merging needs digests.
        statistics=compact(merged.statistics),
        options=tuple(options),
        past=min(pasts),
        future=min(int(one["future_lowdim_steps"]) for one in options),
        statistics_past=min(pasts),
        fields=_fields(config, options[0]),
        names=tuple(config.dataset_manifest),
        left_out=merged.left_out,
    )


def data_folder(text: str) -> ShardFolder:
    """The data set at a folder or manifest of any scheme; DataError where none is."""
    return ShardFolder.open(location(text))


def _statistics(config: RoboticsDataConfig, folders: Sequence[ShardFolder]) -> list[Statistics]:
    """Those that are named, else those of the data sets; with digests where they are merged."""
    named = config.dataset_statistics
    mergeable = len(named or folders) > 1
    files = [
        location(text) if text.endswith(".json") else data_folder(text).statistics_file
        for text in named
    ] or [folder.statistics_file for folder in folders]
    return [(read_mergeable if mergeable else read_stats)(path) for path in files]


def _merged(
    config: RoboticsDataConfig, parts: Sequence[Statistics], pasts: Sequence[int]
) -> MergedStats:
    """The statistics of the mixture: weighted as samples are drawn, steps matched by the anchor.

    A field that the data sets have in different shapes is left out, and refused where it is used.
    """
    if len(parts) == 1:
        return MergedStats(parts[0])
    weights: Sequence[float | None] = config.dataset_weighting
    if not weights or min(config.dataset_weighting) <= 0:  # the order refuses such a mixture
        weights = [None] * len(parts)
    return merge_parts(
        [StatsPart(*one) for one in zip(parts, pasts, weights, strict=True)],
        leave_out_unequal=True,
    )


def _fields(config: RoboticsDataConfig, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The configured fields, or those of the data."""
    keys = ("action_fields", "proprioception_fields")
    names = [getattr(config, key) or options.get(key) or [] for key in keys]
    return tuple(dict.fromkeys(str(name) for part in names for name in part))


def _listed(shards: Sequence[Shard]) -> str:
    rows = [(shard.path.name, shard.num_sequences) for shard in shards]
    return f"{sum(count for _, count in rows)} samples, {digest_of(rows)}"


def derive_data(config: RoboticsDataConfig, info: RoboticsInfo) -> RoboticsDataConfig:
    """The config with what it left open taken from the data.

    Raises:
        DataError: A configured camera, picture, field or window is not in the data.
    """
    cameras = config.camera_names or _cameras(config, info)
    indices = config.image_indices or _agreed(info, "image_indices")
    actions = config.action_fields or _agreed(info, "action_fields")
    observed = config.proprioception_fields or _agreed(info, "proprioception_fields")
    past, future = config.lowdim_past_timesteps, config.lowdim_future_timesteps
    scaled = {
        "include_fields": [*observed, *actions],
        "lowdim_past_timesteps": info.statistics_past,
        "lowdim_future_timesteps": info.future,
    }
    derived = config.model_copy(
        update={
            "camera_names": list(cameras),
            "image_indices": list(indices),
            "image_names": image_names(cameras, indices),
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


def _check(derived: RoboticsDataConfig, asked: RoboticsDataConfig, info: RoboticsInfo) -> None:
    if not derived.action_fields:
        raise _no_action_fields(info)
    _check_images(derived, info)
    for key, has in (
        ("lowdim_past_timesteps", info.past),
        ("lowdim_future_timesteps", info.future),
    ):
        if getattr(derived, key) > has:
            raise DataError(
                f"data.{key} is {getattr(derived, key)}, the shards hold {has}",
                hint="ask for less, or preprocess with larger windows",
                code="data.window_too_large",
            )
    for key in ("action_dim", "proprioception_dim"):
        given = getattr(asked, key)
        if given is not None and given != getattr(derived, key):
            raise DataError(
                f"data.{key} is {given}, the fields are {getattr(derived, key)} wide",
                hint=f"leave data.{key} out",
                code="data.dimension_mismatch",
            )


def _check_images(config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    """Every data set has the pictures, or, where they are padded, some data set has the camera.

    Padded held-out data may have any of the cameras.
    """
    cameras = [list(options.get("camera_names") or []) for options in info.options]
    if config.pad_missing_images:
        known = list(dict.fromkeys(name for part in cameras for name in part))
        if config.cameras_are_known and not set(config.camera_names).isdisjoint(known):
            known = config.camera_names
        cameras = [known if all(cameras) else []]
    indices = [list(options.get("image_indices") or []) for options in info.options]
    _check_names("camera_names", config.camera_names, cameras, info.names)
    _check_names("image_indices", config.image_indices, indices, info.names)
    _check_sizes(config, info)


def _check_names(
    key: str, wanted: Sequence[Any], found: Sequence[Sequence[Any]], names: Sequence[str]
) -> None:
    """Each data set that says what it has, has what is wanted."""
    for number, known in enumerate(found):
        missing = [one for one in wanted if one not in known] if known else []
        if not missing:
            continue
        where = names[number] if len(found) == len(names) > 1 else "the data"
        hint = did_you_mean(str(missing[0]), [str(one) for one in known])
        if any(missing[0] in other for other in found):
            hint = "leave it out"
            if key == "camera_names":
                hint += ", or set data.pad_missing_images for black pictures in its place"
        raise DataError(
            f"data.{key}: {missing[0]!r} is not in {where}; there are {known}",
            hint=hint,
            code=f"data.unknown_{key}",
        )


def _check_sizes(config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    """Pictures of all data sets end up with one size."""
    shape = config.augmentation.crop_shape
    sizes = {image_size(options) for options in info.options} - {None}
    for width, height in filter(None, sizes):
        if shape is not None:
            central_box((height, width), shape)
    if len(sizes) > 1 and (shape is None or max(shape) <= 1):
        raise DataError(
            f"the data sets have pictures of different (width, height): {sorted(sizes, key=str)}",
            hint="preprocess them with one --resize-images-size, or cut them alike with "
            "data.augmentation.image.crop",
            code="data.image_sizes_differ",
        )


def image_size(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """(width, height) that preprocessing gave all pictures, if it did."""
    match options.get("resize_images_size"):
        case [int(width), int(height)]:
            return width, height
        case _:
            return None


def _cameras(config: RoboticsDataConfig, info: RoboticsInfo) -> list[str]:
    """Those that all data sets have; where pictures are padded, those that any of them has."""
    if not config.pad_missing_images:
        return _agreed(info, "camera_names")
    parts = [options.get("camera_names") or [] for options in info.options]
    return list(dict.fromkeys(str(name) for part in parts for name in part))


def _no_action_fields(info: RoboticsInfo) -> DataError:
    """The refusal of data that do not say what is predicted, with the keys that do."""
    known = {name: field_width(name, entry) for name, entry in info.statistics.items()}
    listed = [f"{name} ({width})" for name, width in known.items()]
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    actions = [name for name in known if "action" in name] or list(known)
    seen = [name for name in known if name not in actions and "desired" not in name]
    keys = {"data.action_fields": actions[:2], "data.proprioception_fields": seen[:2]}
    typed = (f"--{key} {','.join(names)}" for key, names in keys.items() if names)
    return DataError(
        f"the data name no action fields; they have (channels): "
        f"{', '.join(listed[:_MOST_LISTED])}{more}",
        hint=f"choose what is predicted and what is seen, such as {' '.join(typed)}",
        code="data.no_action_fields",
        details={"known": known},
    )


def _agreed(info: RoboticsInfo, key: str) -> list[Any]:
    """The value that all data sets give for a key.

    Raises:
        DataError: They differ.
    """
    values = [list(options.get(key) or []) for options in info.options]
    if any(value != values[0] for value in values):
        raise DataError(
            f"the data sets differ in {key}: {values[0]} and "
            f"{next(value for value in values if value != values[0])}",
            hint=f"choose with data.{key}",
            code="data.datasets_differ",
        )
    return values[0]


def _options(folder: ShardFolder) -> dict[str, Any]:
    options = folder.options()
    for key in ("past_lowdim_steps", "future_lowdim_steps"):
        if not isinstance(options.get(key), int):
            raise DataError(
                f"{folder.options_file}: {key} is missing",
                code="data.broken_config",
            )
    return options
