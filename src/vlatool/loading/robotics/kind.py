"""Data kind of robotics data: `lbm` shards, or frames from which windows are cut.

`load_info` reads what the data are, and the assets are what a policy needs of them besides weights
(`mixture.py`). `derive` fills in the keys of the section `data` that are not set, and checks the
others against the data. `reader` reads samples (`reader.py`).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlatool.checkpoints.contract import CONTRACT
from vlatool.checkpoints.layout import RunDir
from vlatool.config.base import ConfigModel, derivation_rules
from vlatool.config.coerce import value_text
from vlatool.datasets.frames.layout import FramesFolder
from vlatool.datasets.lbm import layout as shards_layout
from vlatool.datasets.stats.layout import write_stats
from vlatool.episode import NO_CAMERAS, Array, listed_cameras
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.loading import base
from vlatool.loading.robotics.config import (
    AugmentationConfig,
    RoboticsDataConfig,
    ValidationDataConfig,
    image_names,
)
from vlatool.loading.robotics.mixture import (
    RoboticsAssets,
    RoboticsDataSet,
    RoboticsInfo,
    assets_of,
    contract_of,
    held_out_data,
    load_info,
)
from vlatool.loading.robotics.options import DataOptions
from vlatool.loading.robotics.pairs import RoboticsPairs, pairs_info
from vlatool.loading.robotics.reader import DROP_REASONS, DecodedSample, RoboticsReader
from vlatool.loading.robotics.statistics import (
    report_blind,
    report_conventions,
    report_ranges,
    select_statistics,
)
from vlatool.plugins import did_you_mean
from vlatool.recordings.commands import named_commands
from vlatool.report.text import few_text
from vlatool.storage.uri import location
from vlatool.transforms.augmentation import central_box
from vlatool.transforms.names import name_end
from vlatool.transforms.normalize import field_width

# Number of fields that a message lists.
_MAX_LISTED = 40


class RoboticsKind(base.DataKind):
    """`lbm` shards and frames; see `loading.base.DataKind`."""

    name: ClassVar[str] = "robotics"
    Config: ClassVar[type[base.LoadingConfig]] = RoboticsDataConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("dataset_manifest", "dataset_statistics")
    drop_reasons: ClassVar[tuple[str, ...]] = DROP_REASONS
    has_statistics: ClassVar[bool] = True
    has_plain: ClassVar[bool] = True
    normalizes: ClassVar[bool] = True

    def load_info(self, config: RoboticsDataConfig, reporter: Reporter = NULL) -> RoboticsInfo:  # pyright: ignore[reportIncompatibleMethodOverride] - a cached_property is read-only, too
        """Reads manifests, statistics and preprocessing options; checks sizes of local shards."""
        info = load_info(config)
        _report_held_out(info, reporter)
        return info

    def with_windows(
        self, config: RoboticsDataConfig, windows: Mapping[str, Any]
    ) -> RoboticsDataConfig:
        """The section with keys of windows that are not set, if all data are frames."""
        manifests = config.dataset_manifest
        if not windows or None in [FramesFolder.find(location(text)) for text in manifests]:
            return config
        keys = {key: windows[key] for key in windows if getattr(config.windows, key) is None}
        return config.model_copy(update={"windows": config.windows.model_copy(update=keys)})

    def with_init_statistics(
        self,
        config: RoboticsDataConfig,
        info: RoboticsInfo,
        folder: Path | None,
        reporter: Reporter = NULL,
    ) -> RoboticsInfo:
        return select_statistics(config, info, folder, reporter)

    def validation(self, config: RoboticsDataConfig) -> RoboticsDataConfig | None:
        """Returns the section of `val_dataset_manifest`, else of the held-out episodes of the data:
        no random augmentation.
        """
        changes: dict[str, Any]
        if config.val_dataset_manifest:
            manifests = config.val_dataset_manifest
            changes = {"split": "all", "episodes": None}
        elif config.split in (None, "train"):
            manifests = held_out_data(config)
            changes = {"split": "val"}
        else:
            return None
        if not manifests:
            return None
        changes |= {
            "dataset_manifest": manifests,
            "val_dataset_manifest": [],
            "training_manifest": config.dataset_manifest,
            "dataset_statistics": [],
            "dataset_weighting": [],
            "dataset_modality": [],
            "shuffle": False,
            "augmentation": config.augmentation.without_randomness(),
        }
        return ValidationDataConfig.model_construct(**{**dict(config), **changes})

    def derive(
        self, config: RoboticsDataConfig, info: RoboticsInfo
    ) -> tuple[RoboticsDataConfig, dict[str, str]]:
        derived = _derived(config, info)
        rules = derivation_rules(derived, _changed(config, derived))
        changed = _changed(config.normalization, derived.normalization)
        rules |= derivation_rules(derived.normalization, changed, "normalization.")
        return derived, {key: rule for key, rule in rules.items() if rule}

    def check_samples(
        self, config: RoboticsDataConfig, info: RoboticsInfo, reporter: Reporter = NULL
    ) -> None:
        """Names dimensions with ranges that a policy cannot learn well, and conventions that
        contradict a declaration or the statistics; reads no sample.
        """
        report_ranges(config, info, reporter)
        report_conventions(config, info, reporter)
        report_blind(config, info, reporter)
        _report_padding(config, info, reporter)

    def contents(self, config: RoboticsDataConfig, sample: DecodedSample) -> Mapping[str, Any]:
        contents: dict[str, Any] = {}
        if len(sample.images):
            contents["images"] = sample.images
        actions: list[Array] = []
        for name in config.action_fields:
            if name not in sample.padded_fields:
                actions.append(sample.fields[name])
        contents["actions"] = np.concatenate(actions, axis=1) if actions else np.empty(0)
        contents["instruction"] = sample.instruction
        return contents

    def reader(self, config: RoboticsDataConfig, info: RoboticsInfo) -> RoboticsReader:
        return RoboticsReader(config, info)

    def plain(
        self, config: RoboticsDataConfig, sample: DecodedSample, *, channels_first: bool = True
    ) -> dict[str, Any]:
        """Returns a sample by the names of LeRobot; see `DataKind`.

        Names of a LeRobot set stay as they are; others get the prefixes below.

        Returns observation.images.CAMERA: uint8 [N, 3, H, W] or [N, H, W, 3], in the order of
        `image_indices`. observation.images.CAMERA_is_pad: bool [N]; with `pad_missing_images` only.
        observation.FIELD: float32 [P + 1, C] of a proprioception field; the anchor is last.
        observation_is_pad: bool [P + 1], True for steps before the episode. action: float32 [T, A],
        the action fields side by side, in their order. action_is_pad: bool [T], True for steps
        after the episode. action_dim_is_pad: bool [A], True for fields that the data set lacks;
        with `pad_missing_fields` only. task: The instruction. key: Name of the sample.

        P past steps, T steps from the anchor on, N images of a camera.
        """
        import torch

        arrays: dict[str, Array] = {}
        images: Array = sample.images.transpose(0, 3, 1, 2) if channels_first else sample.images
        cameras = len(config.cameras)
        for number, camera in enumerate(config.cameras):  # time outer, camera inner
            name = _prefixed("observation.images.", camera)
            arrays[name] = np.ascontiguousarray(images[number::cameras])
            if config.pad_missing_images:
                assert sample.image_mask is not None
                arrays[f"{name}_is_pad"] = ~sample.image_mask[number::cameras]

        anchor = config.lowdim_past_timesteps
        assert anchor is not None, "the section is derived"
        is_real = sample.past_mask | sample.future_mask
        for name in config.proprioception_fields:
            past = sample.fields[name][: anchor + 1].astype(np.float32)
            arrays[_prefixed("observation.", name)] = past
        arrays["observation_is_pad"] = ~is_real[: anchor + 1]
        actions = [sample.fields[name][anchor:] for name in config.action_fields]
        arrays["action"] = np.concatenate(actions, axis=1).astype(np.float32)
        arrays["action_is_pad"] = ~is_real[anchor:]
        if config.pad_missing_fields:
            arrays["action_dim_is_pad"] = ~sample.is_real(config.action_fields)
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return {**tensors, "task": sample.instruction, "key": sample.key}

    def make_assets(self, config: RoboticsDataConfig, info: RoboticsInfo) -> RoboticsAssets:
        return assets_of(config, info.statistics, info.statistics_past, info.options)

    def save_assets(self, config: RoboticsDataConfig, info: RoboticsInfo, folder: Path) -> None:
        """Writes statistics of the used fields, and preprocessing options of the first data set.
        Adds the size of the first image to the options if preprocessing did not resize images.
        """
        names = dict.fromkeys([*config.action_fields, *config.proprioception_fields])
        write_stats(RunDir(folder).stats, {name: info.statistics[name] for name in names})
        options = dict(info.options.stored)
        # Merged statistics have only the steps that all data sets have.
        options["past_lowdim_steps"] = info.statistics_past
        options["future_lowdim_steps"] = info.future
        size = self.image_size(config, info)
        if size is not None:
            options["image_size"] = list(size)
        options[shards_layout.RECORDED_SIZES] = _merged_sizes(info.sets)
        if len(info.sets) > 1:
            sources: list[dict[str, Any]] = []
            for stored, dataset in zip(info.sets, info.datasets, strict=True):
                conversions = stored.options.stored.get("conversions")
                sources.append(
                    {"name": stored.name, "samples": dataset.size, "conversions": conversions}
                )
            options["data_sets"] = sources
            options["conversions"] = None
        shards_layout.write_preprocessing_config(folder, options)
        contract = contract_of(config, DataOptions.parse(options), info.statistics)
        CONTRACT.write(folder, asdict(contract))

    def image_size(self, config: RoboticsDataConfig, info: RoboticsInfo) -> tuple[int, int] | None:
        """(height, width) of the images before their crop; None if there are none.

        If preprocessing did not resize images, they are those of the first sample, unless it is
        broken.
        """
        with_samples = np.flatnonzero(info.datasets[0].sizes)
        if info.options.images.size or not config.cameras or not len(with_samples):
            return info.options.images.size
        plain = config.model_copy(update={"augmentation": AugmentationConfig()})
        ref = base.SampleRef(0, int(with_samples[0]), 0)
        with suppress(DataError):  # it is raised or counted when training reads the sample
            (sample,) = self.reader(plain, info).read([ref], [np.random.default_rng(0)])
            if not isinstance(sample, base.DroppedSample):
                return sample.images.shape[1], sample.images.shape[2]
        return None

    def load_assets(self, config: RoboticsDataConfig, folder: Path) -> RoboticsAssets:
        run = RunDir(folder)
        statistics = run.statistics()
        options = DataOptions.parse(shards_layout.read_preprocessing_config(folder), run.options)
        if options.past_lowdim_steps is None:
            raise DataError.at(
                run.options,
                "past_lowdim_steps is missing",
                hint="copy preprocessing_config.yaml of the training data there",
                code="data.broken",
            )
        return assets_of(config, statistics, options.past_lowdim_steps, options)

    def pairs(
        self,
        config: RoboticsDataConfig,
        assets: RoboticsAssets,
        location: str,
        options: base.PairOptions,
    ) -> RoboticsPairs:
        info = pairs_info(location, config, options, assets.statistics)
        return RoboticsPairs(config, assets, info, options)


def _changed(before: ConfigModel, after: ConfigModel) -> list[str]:
    names = type(after).model_fields
    return [name for name in names if getattr(after, name) != getattr(before, name)]


def _merged_sizes(sets: Sequence[RoboticsDataSet]) -> dict[str, list[list[int]]]:
    """Sizes of the recordings of all data sets; of a camera none if one did not record them."""
    merged: dict[str, list[list[int]]] = {}
    for camera in _all_cameras(sets):
        owners = [dataset.options for dataset in sets if camera in dataset.cameras]
        if all(options.recorded_sizes.get(camera) for options in owners):
            sizes = {size for options in owners for size in options.recorded_sizes[camera]}
            merged[camera] = sorted(map(list, sizes))
    return merged


def _prefixed(prefix: str, name: str) -> str:
    return name if name.startswith(prefix) else f"{prefix}{name}"


def _derived(config: RoboticsDataConfig, info: RoboticsInfo) -> RoboticsDataConfig:
    """Returns the section with all derived keys; DataError if the data lack what it asks for."""
    _check_renames(config, info)
    cameras = config.camera_names or _cameras(config, info)
    indices = config.image_indices or _agreed(info, "image_indices")
    fields: dict[str, list[str]] = {}
    for key in ("action_fields", "proprioception_fields"):
        fields[key] = getattr(config, key)
        if not fields[key] and config.pad_missing_fields:
            fields[key] = getattr(info.options, key)
        elif not fields[key]:
            fields[key] = _agreed(info, key)
    actions = fields["action_fields"]
    observed = fields["proprioception_fields"]
    past = config.lowdim_past_timesteps
    future = config.lowdim_future_timesteps
    normalization = config.normalization.model_copy(
        update={
            "include_fields": [*observed, *actions],
            "lowdim_past_timesteps": info.statistics_past,
            "lowdim_future_timesteps": info.future,
        }
    )
    windows = [dataset.windows for dataset in info.sets if dataset.windows is not None]
    # Keys of the windows of frames that are the same in all data sets.
    common: dict[str, Any] = windows[0].keys.model_dump() if windows else {}
    for other in windows[1:]:
        keys = other.keys.model_dump()
        common = {key: value for key, value in common.items() if keys[key] == value}
    derived = config.model_copy(
        update={
            "camera_names": list(cameras),
            "image_indices": list(indices),
            "windows": config.windows.model_copy(update=common),
            "episodes": windows[0].numbers if config.episodes else config.episodes,
            "image_names": image_names(listed_cameras(cameras), indices),
            "action_fields": list(actions),
            "proprioception_fields": list(observed),
            "normalization": normalization,
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
    cameras = _all_cameras(info.sets)
    fields = [*info.statistics, *info.left_out]
    unused = config.rename.unmatched(cameras, fields)
    if unused and not config.cameras_are_known:
        raise DataError(
            f"data.rename.{unused[0]}: none of your data sets has this name; they have cameras "
            f"{', '.join(cameras) or 'none'} and fields {few_text(fields, _MAX_LISTED)}",
            hint=did_you_mean(unused[0].partition("=")[2], [*cameras, *fields]),
            code="data.unknown_field",
        )


def _cameras(config: RoboticsDataConfig, info: RoboticsInfo) -> list[str]:
    """Cameras of all data sets, which must agree; with padding, cameras of any of them; `none` if
    all were preprocessed without images.
    """
    if all(dataset.options.camera_names == [] for dataset in info.sets):
        return [NO_CAMERAS]
    if config.pad_missing_images:
        return _all_cameras(info.sets)
    return _agreed(info, "camera_names")


def _all_cameras(sets: Sequence[RoboticsDataSet]) -> list[str]:
    cameras: dict[str, None] = {}
    for dataset in sets:
        cameras |= dict.fromkeys(dataset.cameras)
    return list(cameras)


def _agreed(info: RoboticsInfo, key: str) -> list[Any]:
    """Values of an option, which must be the same in all data sets."""
    first = getattr(info.sets[0].options, key) or []
    for dataset in info.sets[1:]:
        values = getattr(dataset.options, key) or []
        if values != first:
            raise DataError(
                f"your data sets have different {key}: {first} and {values}",
                hint=f"set data.{key}, or for names data.rename (see `vlatool inspect A B`), "
                "data.pad_missing_images or data.pad_missing_fields",
                code="data.mismatch",
            )
    return first


def _check(derived: RoboticsDataConfig, config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    chunk = (derived.lowdim_future_timesteps or 0) + 1
    if derived.max_delay >= chunk:
        raise UsageError(
            f"data.max_delay is {derived.max_delay}, but a chunk has {counted(chunk, 'step')}",
            hint="set data.max_delay to at most half of the steps of a chunk",
            code="usage.bad_value",
        )
    if not derived.action_fields:
        raise _no_actions(info)
    _check_images(derived, info)
    info.check_steps(derived.lowdim_past_timesteps or 0, chunk - 1)
    for key in ("action_dim", "proprioception_dim"):
        configured = getattr(config, key)
        if configured not in (None, getattr(derived, key)):
            raise DataError(
                f"data.{key} is {configured}, but the fields have {getattr(derived, key)} "
                "dimensions",
                hint=f"remove data.{key}",
                code="data.mismatch",
            )


def _no_actions(info: RoboticsInfo) -> DataError:
    """Error with all fields, and a guess at the predicted and the observed ones."""
    widths = {name: field_width(name, entry) for name, entry in info.statistics.items()}
    listed = [f"{name} ({width})" for name, width in widths.items()]
    actions = [name for name in widths if "action" in name] or [*named_commands(widths)]
    observed = [name for name in widths if name not in actions and "desired" not in name]
    return DataError(
        "your data do not say which fields are actions; they have (dimensions): "
        f"{few_text(listed, _MAX_LISTED)}",
        hint="name predicted and observed fields, such as --data.action_fields "
        f"{','.join(actions[:2]) or 'NAME'} --data.proprioception_fields "
        f"{','.join(observed[:2]) or 'NAME'}",
        code="data.missing",
        details={"known": widths},
    )


def _check_images(config: RoboticsDataConfig, info: RoboticsInfo) -> None:
    """Raises an error if a data set lacks a configured camera or image index.

    With padding, it is enough if one data set has a camera. Padded validation data may lack some
    cameras, but not all.
    """
    cameras = {dataset.name: dataset.cameras for dataset in info.sets}
    if config.pad_missing_images:
        available = _all_cameras(info.sets)
        if config.cameras_are_known and not set(config.cameras).isdisjoint(available):
            available = config.cameras
        # A data set that names no cameras may have any.
        cameras = {"your training data": available} if all(cameras.values()) else {}
    indices = {dataset.name: dataset.options.image_indices for dataset in info.sets}
    _check_listed("camera_names", config.cameras, cameras)
    _check_listed("image_indices", config.image_indices, indices)

    shape = config.augmentation.crop_shape
    sizes = {dataset.options.images.size for dataset in info.sets} - {None}
    for size in sizes:
        if shape is not None and size is not None:
            central_box(size, shape)
    if len(sizes) > 1 and (shape is None or max(shape) <= 1):
        listed = ", ".join(map(value_text, sorted(sizes, key=str)))
        raise DataError(
            f"your data sets have images of different sizes (height, width): {listed}",
            hint="preprocess them with the same --resize-images-size, or crop to a size in pixels "
            "with data.augmentation.image.crop",
            code="data.mismatch",
        )


def _check_listed(key: str, values: Sequence[Any], listed: Mapping[str, Sequence[Any]]) -> None:
    """Raises an error if a data set that lists its values of a key lacks one of `values`.

    Args:
        key: Key of the section.
        values: Its values.
        listed: Values of each data set, by its name; empty: unknown.
    """
    for dataset, present in listed.items():
        missing = [value for value in values if present and value not in present]
        if not missing:
            continue
        hint = f"remove it from data.{key}"
        if key == "camera_names":
            hint += ", or set data.pad_missing_images"
            spare = [name for name in present if name not in values]
            alike = [name for name in spare if name_end(name) == name_end(missing[0])] or spare
            if len(alike) == 1:
                hint = f"rename it with --data.rename cameras.{missing[0]}={alike[0]}, or {hint}"
        raise DataError(
            f"data.{key}: {missing[0]!r} is not in {dataset}, only "
            f"{few_text(list(map(str, present)))}",
            hint=hint,
            code="data.unknown_field",
        )


def _report_held_out(info: RoboticsInfo, reporter: Reporter) -> None:
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


def _report_padding(config: RoboticsDataConfig, info: RoboticsInfo, reporter: Reporter) -> None:
    """Counts what is padded because whole data sets lack it, by their manifests."""
    lacking: dict[str, list[int]] = {}  # numbers of the data sets, by what they lack
    fields = {*config.action_fields, *config.proprioception_fields}
    for number, dataset in enumerate(info.sets):
        if dataset.options.camera_names is not None:
            for camera in config.cameras:
                if camera not in dataset.cameras:
                    lacking.setdefault(f"black images of {camera}", []).append(number)
        for name in sorted(fields & dataset.padded):
            lacking.setdefault(f"zeros as {name}", []).append(number)
    for text, numbers in lacking.items():
        count = sum(info.datasets[number].size for number in numbers)
        sets = few_text([info.sets[number].name for number in numbers])
        reporter.note(f"{text} in {count} of {counted(info.num_samples, 'sample')}: {sets}")
