"""Data kind of robotics data: `lbm` shards, or frames from which windows are cut.

`load_info` reads what the data are (`info.py`), `derive` fills in the section (`derive.py`),
`reader` reads samples (`reader.py`), and the assets are what a policy needs besides weights
(`assets.py`).
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlatool.config.base import ConfigModel, derivation_rules
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.formats.contract import CONTRACT
from vlatool.formats.frames.layout import FramesFolder
from vlatool.formats.run.layout import RunDir
from vlatool.formats.shards import layout as shards_layout
from vlatool.formats.stats.layout import write_stats
from vlatool.loading import base
from vlatool.loading.robotics.assets import (
    IMAGE_SIZE,
    RoboticsAssets,
    assets_of,
    contract_of,
    recorded_size,
)
from vlatool.loading.robotics.config import (
    AugmentationConfig,
    RoboticsDataConfig,
    ValidationDataConfig,
)
from vlatool.loading.robotics.derive import derive_data, report_padding
from vlatool.loading.robotics.info import (
    RoboticsDataSet,
    RoboticsInfo,
    held_out_data,
    load_info,
    report_held_out,
)
from vlatool.loading.robotics.pairs import RoboticsPairs, pairs_info
from vlatool.loading.robotics.reader import DROP_REASONS, DecodedSample, RoboticsReader
from vlatool.loading.robotics.statistics import (
    report_blind,
    report_conventions,
    report_ranges,
    select_statistics,
)
from vlatool.storage.uri import location


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
        report_held_out(info, reporter)
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
        derived = derive_data(config, info)
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
        report_padding(config, info, reporter)

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
        options = dict(info.options)
        # Merged statistics have only the steps that all data sets have.
        options["past_lowdim_steps"] = info.statistics_past
        options["future_lowdim_steps"] = info.future
        size = self.image_size(config, info)
        if size is not None:
            options[IMAGE_SIZE] = list(size)
        options[shards_layout.RECORDED_SIZES] = _merged_sizes(info.sets)
        if len(info.sets) > 1:
            sources: list[dict[str, Any]] = []
            for stored, dataset in zip(info.sets, info.datasets, strict=True):
                conversions = stored.options.get("conversions")
                sources.append(
                    {"name": stored.name, "samples": dataset.size, "conversions": conversions}
                )
            options["data_sets"] = sources
            options["conversions"] = None
        shards_layout.write_preprocessing_config(folder, options)
        CONTRACT.write(folder, asdict(contract_of(config, options, info.statistics)))

    def image_size(self, config: RoboticsDataConfig, info: RoboticsInfo) -> tuple[int, int] | None:
        """(height, width) of the images before their crop; None if there are none."""
        return recorded_size(info.options) or self._first_size(config, info)

    def _first_size(self, config: RoboticsDataConfig, info: RoboticsInfo) -> tuple[int, int] | None:
        """(height, width) of the images of the first sample; None if it is broken or has none."""
        with_samples = np.flatnonzero(info.datasets[0].sizes)
        if not config.cameras or not len(with_samples):
            return None
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
        options = shards_layout.read_preprocessing_config(folder)
        past = options.get("past_lowdim_steps")
        if not isinstance(past, int):
            raise DataError.at(
                run.options,
                "past_lowdim_steps is missing",
                hint="copy preprocessing_config.yaml of the training data there",
                code="data.broken",
            )
        return assets_of(config, statistics, past, options)

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


def _merged_sizes(sets: tuple[RoboticsDataSet, ...]) -> dict[str, list[list[int]]]:
    """Sizes of the recordings of all data sets; of a camera none if one did not record them."""
    merged: dict[str, list[list[int]]] = {}
    cameras: set[str] = set()
    for dataset in sets:
        cameras.update(dataset.cameras)
    for camera in cameras:
        is_known = True
        sizes: list[list[int]] = []
        for dataset in sets:
            if camera in dataset.cameras:
                recorded = (dataset.options.get(shards_layout.RECORDED_SIZES) or {}).get(camera)
                is_known = is_known and bool(recorded)
                sizes += [size for size in recorded or () if size not in sizes]
        if is_known:
            merged[camera] = sorted(sizes)
    return merged


def _prefixed(prefix: str, name: str) -> str:
    return name if name.startswith(prefix) else f"{prefix}{name}"
