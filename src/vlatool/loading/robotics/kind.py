"""Data kind of robotics data, and pairs of recorded observations and the actions that followed.

Legend of shapes: K images of a camera, T action steps, C dimensions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import numpy as np

from vlatool.config.base import ConfigModel, derivation_rules
from vlatool.episode import NO_CAMERAS, Array, Observation, PoseGroup, UInt8Array
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter, counted
from vlatool.formats.contract import CONTRACT, Contract, SeenCamera, conventions_in
from vlatool.formats.field_summary import Names, dimension_names, recorded_names
from vlatool.formats.frames.layout import FramesFolder
from vlatool.formats.media.tar_sample import StoredSample
from vlatool.formats.run.layout import RunDir
from vlatool.formats.shards import layout as shards_layout
from vlatool.formats.stats.layout import Statistics, write_stats
from vlatool.jobs.job import digest_of
from vlatool.loading import base
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.config import (
    AugmentationConfig,
    RoboticsDataConfig,
    ValidationDataConfig,
    image_names,
)
from vlatool.loading.robotics.frames import WindowSample
from vlatool.loading.robotics.info import (
    RoboticsInfo,
    derive_data,
    held_out_data,
    load_info,
    report_held_out,
    report_padding,
)
from vlatool.loading.robotics.reader import DROP_REASONS, DecodedSample, RoboticsReader
from vlatool.loading.robotics.statistics import (
    Normalizer,
    report_blind,
    report_conventions,
    report_ranges,
    select_statistics,
)
from vlatool.loading.shard_reader import check_frame, episode_named
from vlatool.storage.uri import pinned
from vlatool.transforms.augmentation import central_box
from vlatool.transforms.geometry import ResizeFilter, ResizeMethod, resize
from vlatool.transforms.normalize import field_width
from vlatool.transforms.relative import SUFFIX, groups_by_name

# Key of preprocessing_config.yaml of a run: (height, width) of its training images.
_IMAGE_SIZE = "image_size"
# Start of the names of images in a plain sample.
_IMAGES = "observation.images."


@dataclass(frozen=True)
class ImageTransform:
    """Transform from a camera image to an image of the training data."""

    # (height, width) after the resize; None: unknown, images are not resized
    size: tuple[int, int] | None = None
    method: ResizeMethod = "center_crop"
    resample: ResizeFilter = "lanczos_vips"
    # map from camera to number of clockwise quarter turns, applied first
    rotations: Mapping[str, int] = field(default_factory=dict)
    # (height, width) of the center crop in pixels or, if both are at most 1, as fractions of the
    # image; None: no crop
    crop: tuple[float, float] | None = None

    def apply(self, camera: str, image: UInt8Array, *, is_turned: bool = False) -> UInt8Array:
        """Transforms an image uint8 [H, W, 3] to the input of a policy."""
        turns = 0 if is_turned else self.rotations.get(camera, 0)
        if turns or self.size not in (None, image.shape[:2]):
            image = resize(image, self.size, self.method, self.resample, turns)
        if self.crop is None:
            return image
        return central_box((image.shape[0], image.shape[1]), self.crop).of(image)


@dataclass(frozen=True)
class RoboticsAssets:
    """Assets that a policy needs besides weights."""

    data: RoboticsDataConfig  # section `data` of the run, derived
    normalizer: Normalizer  # normalization of the run
    pose_groups: Sequence[PoseGroup]  # fields that form poses
    fps: float  # frames per second of the training data
    statistics: Statistics  # statistics of the normalization
    # transform of camera images. From `make_assets` its size may be None, because training does not
    # need it
    images: ImageTransform = ImageTransform()
    contract: Contract = field(default_factory=Contract)  # what training saw
    # map from field name to names of its dimensions, if they are recorded
    names: Names = field(default_factory=dict[str, Sequence[str]])

    def normalized(self, sample: DecodedSample) -> DecodedSample:
        """Returns the sample with normalized fields, float32 [T, C]."""
        fields = {
            name: self.normalizer.normalize(name, values) * (name not in sample.padded_fields)
            for name, values in sample.fields.items()
        }
        return replace(sample, fields=fields)


class RoboticsKind(base.DataKind):
    """`lbm` shards; see `loading.base.DataKind`."""

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
        chosen: dict[str, Any]
        if config.val_dataset_manifest:
            manifests = config.val_dataset_manifest
            chosen = {"split": "all", "episodes": None}
        elif config.split in (None, "train"):
            manifests = held_out_data(config)
            chosen = {"split": "val"}
        else:
            return None
        if not manifests:
            return None
        changes = {
            **chosen,
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
        real = [name for name in config.action_fields if name not in sample.padded_fields]
        actions = [sample.fields[name] for name in real]
        return {
            **({"images": sample.images} if len(sample.images) else {}),
            "actions": np.concatenate(actions, axis=1) if actions else np.empty(0),
            "instruction": sample.instruction,
        }

    def reader(self, config: RoboticsDataConfig, info: RoboticsInfo) -> RoboticsReader:
        return RoboticsReader(config, info)

    def make_assets(self, config: RoboticsDataConfig, info: RoboticsInfo) -> RoboticsAssets:
        return assets_of(config, info.statistics, info.statistics_past, info.options[0])

    def save_assets(self, config: RoboticsDataConfig, info: RoboticsInfo, folder: Path) -> None:
        """Writes statistics of the used fields, and preprocessing options of the first data set.
        Adds the size of the first image to the options if preprocessing did not resize images.
        """
        run = RunDir(folder)
        names = dict.fromkeys([*config.action_fields, *config.proprioception_fields])
        write_stats(run.stats, {name: info.statistics[name] for name in names})
        size = _recorded_size(info.options[0]) or self._first_size(config, info)
        image_size = {} if size is None else {_IMAGE_SIZE: list(size)}
        # Merged statistics have only the steps that all data sets have.
        steps = {"past_lowdim_steps": info.statistics_past, "future_lowdim_steps": info.future}
        sizes = {shards_layout.RECORDED_SIZES: _merged_sizes(info.options)}
        sources = [
            {"name": name, "samples": size, "conversions": row.get("conversions")}
            for name, size, row in zip(info.names, info.sizes, info.options, strict=True)
        ]
        several = {"data_sets": sources, "conversions": None} if len(sources) > 1 else {}
        options = {**info.options[0], **steps, **image_size, **sizes, **several}
        shards_layout.write_preprocessing_config(folder, options)
        CONTRACT.write(folder, asdict(contract_of(config, options, info.statistics)))

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

    def plain(
        self, config: RoboticsDataConfig, sample: DecodedSample, *, channels_first: bool = True
    ) -> dict[str, Any]:
        """Returns a sample by the names of LeRobot; see `DataKind`.

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

        anchor = config.lowdim_past_timesteps
        assert anchor is not None, "the section is derived"
        is_real = sample.past_mask | sample.future_mask
        actions = [sample.fields[name][anchor:] for name in config.action_fields]
        arrays: dict[str, Array] = {
            **_by_camera(config, sample, channels_first=channels_first),
            **{
                f"observation.{name}": sample.fields[name][: anchor + 1].astype(np.float32)
                for name in config.proprioception_fields
            },
            "observation_is_pad": ~is_real[: anchor + 1],
            "action": np.concatenate(actions, axis=1).astype(np.float32),
            "action_is_pad": ~is_real[anchor:],
        }
        if config.pad_missing_fields:
            arrays["action_dim_is_pad"] = ~sample.is_real(config.action_fields)
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return {**tensors, "task": sample.instruction, "key": sample.key}

    def pairs(
        self,
        config: RoboticsDataConfig,
        assets: RoboticsAssets,
        location: str,
        options: base.PairOptions,
    ) -> "RoboticsPairs":
        info = pairs_info(location, config, options, assets.statistics)
        return RoboticsPairs(config, assets, info, options)

    def _first_size(self, config: RoboticsDataConfig, info: RoboticsInfo) -> tuple[int, int] | None:
        """(height, width) of the images of the first sample; None if it is broken or has none."""
        shards = enumerate(info.datasets[0].shards)
        first = next((number for number, shard in shards if shard.size), None)
        if first is None or not config.cameras:
            return None
        with suppress(DataError):  # the error is raised or counted when training reads the sample
            plain = config.model_copy(update={"augmentation": AugmentationConfig()})
            reader = self.reader(plain, info)
            sample = reader.read([base.SampleRef(0, first, 0)], [np.random.default_rng(0)])[0]
            if not isinstance(sample, base.DroppedSample):
                return sample.images.shape[1], sample.images.shape[2]
        return None


def _by_camera(
    config: RoboticsDataConfig, sample: DecodedSample, *, channels_first: bool
) -> dict[str, Array]:
    """Images of each camera, and the mask of its padded images if images may be missing."""
    images: Array = sample.images.transpose(0, 3, 1, 2) if channels_first else sample.images
    count = len(config.cameras)
    arrays: dict[str, Array] = {}
    for number, camera in enumerate(config.cameras):
        arrays[f"{_IMAGES}{camera}"] = np.ascontiguousarray(images[number::count])
        if config.pad_missing_images:
            assert sample.image_mask is not None
            arrays[f"{_IMAGES}{camera}_is_pad"] = ~sample.image_mask[number::count]
    return arrays


def _changed(before: ConfigModel, after: ConfigModel) -> list[str]:
    names = type(after).model_fields
    return [name for name in names if getattr(after, name) != getattr(before, name)]


def assets_of(
    config: RoboticsDataConfig, statistics: Statistics, past: int, options: Mapping[str, Any]
) -> RoboticsAssets:
    try:
        declared = options.get("pose_groups")
        groups = [PoseGroup(**group) for group in declared or []]
        if declared is None:
            groups = groups_by_name([*config.action_fields, *config.proprioception_fields])
        fps = float(options.get("fps") or 10.0)
        images = replace(_image_transform(options), crop=config.augmentation.crop_shape)
        contract = contract_of(config, options, statistics)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{shards_layout.CONFIG_NAME} is broken: {error}",
            hint="copy it again from the training data, or train again",
            code="data.broken",
        ) from None
    normalizer = Normalizer(config, statistics, past)
    names = recorded_names(options)
    return RoboticsAssets(config, normalizer, groups, fps, statistics, images, contract, names)


def contract_of(
    config: RoboticsDataConfig, options: Mapping[str, Any], statistics: Statistics
) -> Contract:
    """Facts on data for the inputs of a derived section; ValueError if options are invalid."""
    images = _image_transform(options)
    sizes = options.get(shards_layout.RECORDED_SIZES) or {}
    cameras = {
        name: SeenCamera(
            tuple((int(height), int(width)) for height, width in sizes.get(name) or ()),
            images.size,
            images.rotations.get(name, 0),
        )
        for name in config.cameras
        if name in (options.get("camera_names") or config.cameras)
    }
    # Heights and widths of recordings, turned, and of the images that they are resized to.
    resized = [
        (*old[:: -1 if each.quarter_turns % 2 else 1], *each.size)
        for each in cameras.values()
        for old in each.recorded
        if each.size
    ]
    fields, actions = (
        {name: field_width(name, statistics[name]) for name in names if name in statistics}
        for names in (config.proprioception_fields, config.action_fields)
    )
    future = config.lowdim_future_timesteps
    return Contract(
        cameras=cameras,
        resize_method=images.method if any(a * w != b * h for a, b, h, w in resized) else "",
        resize_filter=images.resample if any((a, b) != (h, w) for a, b, h, w in resized) else "",
        crop=config.augmentation.crop_shape,
        fields=fields,
        actions=actions,
        fps=options.get("fps"),
        horizon=None if future is None else future + 1,
        conventions=conventions_in(options.get("conventions")),
        statistics=digest_of({name: statistics[name] for name in (*fields, *actions)}),
    )


def _merged_sizes(parts: Sequence[Mapping[str, Any]]) -> dict[str, list[list[int]]]:
    """Sizes of the recordings of all data sets; of a camera none if one did not record them."""
    merged: dict[str, list[list[int]]] = {}
    for name in {name for options in parts for name in options.get("camera_names") or ()}:
        having = [row for row in parts if name in (row.get("camera_names") or ())]
        sizes = [(row.get(shards_layout.RECORDED_SIZES) or {}).get(name) or [] for row in having]
        if all(sizes):
            merged[name] = sorted({tuple(size): size for each in sizes for size in each}.values())
    return merged


def _image_transform(options: Mapping[str, Any]) -> ImageTransform:
    """Image transform of preprocessing options; TypeError or ValueError if they are invalid."""
    method = str(options.get("image_resizing_method") or "center_crop").lower()
    resample = str(options.get("image_resizing_filter") or "lanczos").lower()
    for key, value, known in (
        ("image_resizing_method", method, get_args(ResizeMethod)),
        ("image_resizing_filter", resample, get_args(ResizeFilter)),
    ):
        if value not in known:
            raise ValueError(f"{key} is {value!r}, expected one of {', '.join(known)}")
    turns = {str(name): int(n) for name, n in (options.get("camera_rotations") or {}).items()}
    method = cast(ResizeMethod, method)
    resample = cast(ResizeFilter, resample)
    return ImageTransform(_recorded_size(options), method, resample, turns)


def _recorded_size(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) in preprocessing options; `resize_images_size` is (width, height)."""
    if options.get("resize_images_size"):
        width, height = map(int, options["resize_images_size"])
        return height, width
    if options.get(_IMAGE_SIZE) is None:
        return None
    height, width = map(int, options[_IMAGE_SIZE])
    return height, width


# Smallest standard deviation that errors are divided by.
_MIN_STD = 1e-9
# Samples fetched together to look up a frame.
_READ_AT_ONCE = 64


class RoboticsPairs(base.RecordedPairs):
    """Pairs of `lbm` shards; see `RecordedPairs`. Samples are read with all their past steps, so
    that the action before the current one is known.
    """

    def __init__(
        self,
        config: RoboticsDataConfig,  # section `data` of the run
        assets: "RoboticsAssets",  # assets of the run
        info: RoboticsInfo,
        options: base.PairOptions,  # form of the pairs
    ) -> None:
        self.fps = info.fps
        self.contract = contract_of(config, info.options[0], info.statistics)
        sees = options.sees
        self._sees = sees
        self._horizon = options.horizon
        self._anchor = info.past
        self._offsets = sorted({step for view in sees.cameras.values() for step in view.offsets})
        # Of a relative pose a policy sees the absolute one, from which data have it computed.
        self._observed = [
            name
            for name in config.proprioception_fields
            if name in sees.fields or name.endswith(SUFFIX)
        ]
        cameras = list(sees.cameras)
        changes = {
            "camera_names": cameras or [NO_CAMERAS],
            "image_indices": self._offsets,
            "image_names": image_names(cameras, self._offsets),
            "proprioception_fields": self._observed,
            "lowdim_past_timesteps": info.past,
            "lowdim_future_timesteps": options.horizon - 1,
            # No random crops; weights are those of the training data sets.
            "augmentation": AugmentationConfig(),
            "dataset_weighting": [],
        }
        whole = config.model_copy(update=changes)
        from vlatool.loading.dataset import SampleDataset  # imports torch

        self._order = SampleOrder(info.datasets, OrderOptions(options.seed, shuffle=False))
        self._reader = RoboticsReader(whole, info)
        self._samples = SampleDataset(whole, info, self._order, self._reader)
        self._datasets = info.datasets
        self._actions = config.action_fields
        self._normalizer = assets.normalizer
        self.fields = {
            name: _action_field(name, assets)
            for name in config.action_fields
            if not (info.padded and name in info.padded[0])
        }

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, indices: Sequence[int]) -> list[tuple[Observation, base.Target]]:
        samples = self._samples.__getitems__(indices)
        return [(self._observation(sample), self._target(sample)) for sample in samples]

    def find(self, episode: str, frame: int) -> int:
        """Returns the index of a pair; see `RecordedPairs`. Data without a tar per episode are read
        to their end.
        """
        frames: dict[str, dict[int, int]] = {}
        for index, sample in self._stored(episode):
            metadata = sample.metadata()
            episode_frames = frames.setdefault(str(metadata.get("episode_id")), {})
            episode_frames[metadata.get("anchor_timestep", -1)] = index
        name = episode_named(dict(enumerate(sorted(frames))), episode if len(frames) > 1 else "0")
        check_frame(frame, frames[name], name)
        return frames[name][frame]

    def _stored(self, episode: str) -> Iterator[tuple[int, StoredSample | WindowSample]]:
        """Yields samples with their indices; only those of the episode if tars are episodes."""
        refs = list(enumerate(self._order.refs(range(len(self)))))
        (dataset,) = self._datasets
        tars = [shards_layout.tar_episode(shard.location) or "" for shard in dataset.shards]
        if all(tars):
            name = episode_named(dict(enumerate(tars)), episode)
            refs = [(index, ref) for index, ref in refs if tars[ref.shard] == name]
        for start in range(0, len(refs), _READ_AT_ONCE):
            rows = refs[start : start + _READ_AT_ONCE]
            read = self._reader.stored([ref for _, ref in rows])
            for (index, _), sample in zip(rows, read, strict=True):
                if not isinstance(sample, base.DroppedSample):
                    yield index, sample

    def _observation(self, sample: DecodedSample) -> Observation:
        first = self._anchor - self._sees.past
        past = slice(first, self._anchor)
        mask = sample.image_mask

        def values(name: str, steps: slice) -> Array:
            stored = sample.fields[name][steps]
            if name not in sample.padded_fields:
                return stored
            return self._normalizer.denormalize(name, np.zeros(stored.shape))  # 0 when normalized

        return Observation(
            images=self._by_camera(sample.images),
            fields={name: values(name, slice(first, self._anchor + 1)) for name in self._observed},
            instruction=sample.instruction,
            past_actions={name: values(name, past) for name in self._actions},
            past_mask=sample.past_mask[past],
            image_masks={} if mask is None else self._by_camera(mask),
            is_preprocessed=True,
        )

    def _by_camera(self, values: Array) -> Mapping[str, Array]:
        """Rows of N images, time outer, camera inner, by camera at its offsets [K, ...]."""
        cameras = self._sees.cameras
        by_offset = values.reshape(len(self._offsets), len(cameras), *values.shape[1:])
        return {
            name: by_offset[[self._offsets.index(step) for step in view.offsets], number]
            for number, (name, view) in enumerate(cameras.items())
        }

    def _target(self, sample: DecodedSample) -> base.Target:
        steps = slice(self._anchor, self._anchor + self._horizon)
        before = self._anchor - 1
        return base.Target(
            actions={name: sample.fields[name][steps] for name in self.fields},
            mask=sample.future_mask[steps],
            last={name: sample.fields[name][before] for name in self.fields}
            if before >= 0 and sample.past_mask[before]
            else {},
            episode=str(sample.metadata["episode_id"]),
            frame=int(sample.metadata["anchor_timestep"]),
        )


def _action_field(name: str, assets: "RoboticsAssets") -> base.ActionField:
    statistics = assets.statistics[name]
    is_constant = assets.normalizer.constant([name])
    return base.ActionField(
        names=dimension_names(name, len(is_constant), assets.names),
        mean=np.asarray(statistics["mean"]),
        std=np.maximum(np.asarray(statistics["std"]), _MIN_STD),
        is_constant=is_constant,
    )


def pairs_info(
    location: str, config: RoboticsDataConfig, options: base.PairOptions, statistics: Statistics
) -> RoboticsInfo:
    """Loads the info of the data, with whole episodes in frame order if the data contain them."""
    place = pinned(location)
    windows = config.windows
    if is_frames := FramesFolder.find(place) is not None:
        steps = {"past_lowdim_steps": max(options.sees.past, config.lowdim_past_timesteps or 0)}
        steps |= {"future_lowdim_steps": options.horizon - 1}
        windows = windows.model_copy(update={**steps, "image_indices": config.image_indices})
    folder = None if is_frames else shards_layout.ShardFolder.open(place)
    manifest = str(place if folder is None else folder.manifest)
    keys: dict[str, Any] = {"rename": config.rename, "split": options.split}
    if is_frames:  # only the statistics of these fields are computed
        keys |= {"windows": windows, "action_fields": config.action_fields}
        keys |= {"proprioception_fields": config.proprioception_fields}
    info = load_info(RoboticsDataConfig(dataset_manifest=[manifest], **keys))
    if folder is not None and folder.episodes is not None:
        info = replace(info, shards=(tuple(folder.episodes.shards()),))
    fields = [*config.action_fields, *config.proprioception_fields]
    if config.pad_missing_fields:
        padded = frozenset(fields) - info.statistics.keys()
        used = {name: statistics[name] for name in padded}
        info = replace(info, statistics={**info.statistics, **used}, padded=(padded,))
    info.widths(fields)
    for key, needed, has in (
        ("lowdim_past_timesteps", options.sees.past, info.past),
        ("lowdim_future_timesteps", options.horizon - 1, info.future),
    ):
        if needed > has:
            raise DataError(
                f"{location}: windows have {counted(has, 'step')}, {key} of the policy is {needed}",
                hint="preprocess the data with the window size that the policy was trained on",
                code="data.mismatch",
            )
    known = info.options[0].get("camera_names") or []
    for camera in options.sees.cameras:
        if known and camera not in known and not config.pad_missing_images:
            raise DataError(
                f"{location}: camera {camera!r} of the policy is not in the data, which have "
                f"{', '.join(known)}",
                hint="preprocess the data with the cameras that the policy was trained on, such as "
                f"--rename cameras.{camera}=OLD",
                code="data.unknown_field",
            )
    return info
