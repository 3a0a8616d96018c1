"""Robotics data as a kind of training data."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

import numpy as np

from vlatool.artifacts.dimensions import Names, recorded_names
from vlatool.artifacts.provenance import (
    CONFIG_NAME,
    read_preprocessing_config,
    write_preprocessing_config,
)
from vlatool.artifacts.run_dir import RunDir
from vlatool.artifacts.stats import Statistics, write_stats
from vlatool.config.base import ConfigModel, derivation_rules
from vlatool.episode import PoseGroup, UInt8Array
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.loading.base import DroppedSample, SampleRef
from vlatool.loading.robotics.augmentation import AugmentationConfig
from vlatool.loading.robotics.config import HeldOutDataConfig, RoboticsDataConfig
from vlatool.loading.robotics.decode import DROP_REASONS, DecodedSample
from vlatool.loading.robotics.info import RoboticsInfo, derive_data, load_info
from vlatool.loading.robotics.normalizer import Normalizer
from vlatool.transforms.augmentation import central_box
from vlatool.transforms.geometry import ResizeMethod, resize
from vlatool.transforms.resampling import ResizeFilter

if TYPE_CHECKING:
    from vlatool.loading.robotics.reader import RoboticsReader

# In the options beside a run: (height, width) of the pictures it was trained on.
_IMAGE_SIZE = "image_size"


@dataclass(frozen=True)
class ImageShape:
    """How pictures of a camera become those of the training data, as preprocessing did it.

    Attributes:
        size: (height, width); None where it is not known: pictures keep theirs.
        method: How they get that size.
        resample: Which pixels are mixed in doing so.
        rotations: Camera to quarter turns clockwise, before everything else.
        crop: (height, width) of the middle that is seen of it, in pixels or, both at most 1, shares
            of the picture; None: all of it.
    """

    size: tuple[int, int] | None = None
    method: ResizeMethod = "center_crop"
    resample: ResizeFilter = "lanczos_vips"
    rotations: Mapping[str, int] = field(default_factory=dict)
    crop: tuple[float, float] | None = None

    def apply(self, camera: str, image: UInt8Array, *, is_turned: bool = False) -> UInt8Array:
        """A picture uint8 [H, W, 3] of the camera as a policy sees it.

        Of a policy that was trained on parts of pictures, that is the middle.

        Args:
            camera: Its name.
            image: As recorded.
            is_turned: Whether it has been turned already, as those of training data are.
        """
        turns = 0 if is_turned else self.rotations.get(camera, 0)
        if turns or self.size not in (None, image.shape[:2]):
            image = resize(image, self.size, self.method, self.resample, turns)
        if self.crop is None:
            return image
        return central_box((image.shape[0], image.shape[1]), self.crop).of(image)


@dataclass(frozen=True)
class RoboticsAssets:
    """What a policy needs besides weights.

    Attributes:
        data: The data section of its run, derived.
        normalizer: Of that run.
        pose_groups: Which fields form poses.
        fps: Frames per second of its training data.
        statistics: Statistics it normalises with.
        pictures: How pictures become those of its training data; of `prepared`, which training
            does not ask for it, the size may be open.
        names: Of the dimensions of fields, where they are recorded.
    """

    data: RoboticsDataConfig
    normalizer: Normalizer
    pose_groups: Sequence[PoseGroup]
    fps: float
    statistics: Statistics
    images: ImageShape = ImageShape()
    names: Names = field(default_factory=dict[str, Sequence[str]])

    def normalized(self, sample: DecodedSample) -> DecodedSample:
        """The sample with its fields scaled, float32 [T, C]."""
        scaled = {
            name: self.normalizer.normalize(name, values) for name, values in sample.fields.items()
        }
        return replace(sample, fields=scaled)


class RoboticsKind:
    """`lbm` shards: see `loading.base.DataKind`."""

    name: ClassVar[str] = "robotics"
    Config: ClassVar[type[RoboticsDataConfig]] = RoboticsDataConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("dataset_manifest", "dataset_statistics")
    drop_reasons: ClassVar[tuple[str, ...]] = DROP_REASONS

    def load_info(self, config: RoboticsDataConfig, reporter: Reporter = NULL) -> RoboticsInfo:
        """Reads manifests, statistics and preprocessing options; checks sizes of local shards."""
        del reporter
        return load_info(config)

    def validation(self, config: RoboticsDataConfig) -> RoboticsDataConfig | None:
        """The same section for `val_dataset_manifest`, in stored order; nothing varies."""
        if not config.val_dataset_manifest:
            return None
        changes = {
            "dataset_manifest": config.val_dataset_manifest,
            "val_dataset_manifest": [],
            "dataset_statistics": [],
            "dataset_weighting": [],
            "dataset_modality": [],
            "shuffle": False,
            "augmentation": config.augmentation.without_randomness(),
        }
        return HeldOutDataConfig.model_construct(**{**dict(config), **changes})

    def derive(
        self, config: RoboticsDataConfig, info: RoboticsInfo
    ) -> tuple[RoboticsDataConfig, dict[str, str]]:
        """Cameras, pictures, fields, window and widths from the data."""
        derived = derive_data(config, info)
        own = derivation_rules(derived, _changed(config, derived))
        scaled = _changed(config.normalization, derived.normalization)
        scaling = derivation_rules(derived.normalization, scaled, "normalization.")
        return derived, {key: rule for key, rule in {**own, **scaling}.items() if rule}

    def reader(self, config: RoboticsDataConfig, info: RoboticsInfo) -> "RoboticsReader":
        """Reads and decodes samples."""
        from vlatool.loading.robotics.reader import RoboticsReader

        return RoboticsReader(config, info)

    def make_assets(self, config: RoboticsDataConfig, info: RoboticsInfo) -> RoboticsAssets:
        """Scales and poses of the training data."""
        return _kept(config, info.statistics, info.statistics_past, info.options[0])

    def save_assets(self, config: RoboticsDataConfig, info: RoboticsInfo, folder: Path) -> None:
        """Statistics of the fields that are used, and how the first data set was made.

        Adds the size of the pictures, which preprocessing leaves open where it did not resize.
        """
        run = RunDir(folder)
        names = dict.fromkeys([*config.action_fields, *config.proprioception_fields])
        write_stats(run.stats, {name: info.statistics[name] for name in names})
        size = _given_size(info.options[0]) or self._first_size(config, info)
        known = {} if size is None else {_IMAGE_SIZE: list(size)}
        # Statistics of several data sets are of the steps that all of them have.
        steps = {"past_lowdim_steps": info.statistics_past, "future_lowdim_steps": info.future}
        write_preprocessing_config(folder, {**info.options[0], **steps, **known})

    def load_assets(self, config: RoboticsDataConfig, folder: Path) -> RoboticsAssets:
        """What `keep` wrote; DataError where it is missing or broken."""
        run = RunDir(folder)
        statistics = run.statistics()
        options = read_preprocessing_config(folder)
        past = options.get("past_lowdim_steps")
        if not isinstance(past, int):
            raise DataError(
                f"{run.options}: past_lowdim_steps is missing",
                hint="copy preprocessing_config.yaml of the data there",
                code="data.broken_config",
                details={"path": str(run.options)},
            )
        return _kept(config, statistics, past, options)

    def _first_size(self, config: RoboticsDataConfig, info: RoboticsInfo) -> tuple[int, int] | None:
        """(height, width) of the first sample's pictures; None where it is broken or has none."""
        blocks = enumerate(info.datasets[0].shards)
        first = next((number for number, block in blocks if block.size), None)
        if first is None or not config.camera_names:
            return None
        with suppress(DataError):  # whoever reads that sample for its content says what is wrong
            whole = config.model_copy(update={"augmentation": AugmentationConfig()})
            reader = self.reader(whole, info)
            sample = reader.read([SampleRef(0, first, 0)], [np.random.default_rng(0)])[0]
            if not isinstance(sample, DroppedSample):
                return sample.images.shape[1], sample.images.shape[2]
        return None


def _changed(before: ConfigModel, now: ConfigModel) -> list[str]:
    names = type(now).model_fields
    return [name for name in names if getattr(now, name) != getattr(before, name)]


def _kept(
    config: RoboticsDataConfig, statistics: Statistics, past: int, options: Mapping[str, Any]
) -> RoboticsAssets:
    try:
        groups = [PoseGroup(**group) for group in options.get("pose_groups") or []]
        fps = float(options.get("fps") or 10.0)
        images = replace(_image_shape(options), crop=config.augmentation.crop_shape)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{CONFIG_NAME} is not as preprocessing wrote it: {error}",
            hint="copy it again from the training data, or train again",
            code="data.broken_config",
        ) from None
    normalizer = Normalizer(config, statistics, past)
    names = recorded_names(options)
    return RoboticsAssets(config, normalizer, groups, fps, statistics, images, names)


def _image_shape(options: Mapping[str, Any]) -> ImageShape:
    """How pictures were shaped; ValueError and the like where no preprocessing writes such."""
    method = str(options.get("image_resizing_method") or "center_crop").lower()
    resample = str(options.get("image_resizing_filter") or "lanczos").lower()
    for key, value, known in (
        ("image_resizing_method", method, get_args(ResizeMethod)),
        ("image_resizing_filter", resample, get_args(ResizeFilter)),
    ):
        if value not in known:
            raise ValueError(f"{key} is {value!r}, known are {', '.join(known)}")
    turns = {str(name): int(n) for name, n in (options.get("camera_rotations") or {}).items()}
    method, resample = cast(ResizeMethod, method), cast(ResizeFilter, resample)
    return ImageShape(_given_size(options), method, resample, turns)


def _given_size(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) that options tell; `resize_images_size` is width, height."""
    if options.get("resize_images_size"):
        width, height = map(int, options["resize_images_size"])
        return height, width
    if options.get(_IMAGE_SIZE) is None:
        return None
    height, width = map(int, options[_IMAGE_SIZE])
    return height, width
