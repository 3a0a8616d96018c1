"""What a policy needs of robotics data besides weights: normalization, poses, images, contract.

`assets_of` makes it of the section `data`, of statistics and of preprocessing options. They come
from the data when training starts, and from the folder of the run afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

import numpy as np

from vlatool.episode import Array, PoseGroup, UInt8Array
from vlatool.errors import DataError
from vlatool.formats.contract import Contract, SeenCamera, conventions_in
from vlatool.formats.field_summary import Names, recorded_names
from vlatool.formats.shards.layout import CONFIG_NAME, RECORDED_SIZES
from vlatool.formats.stats.layout import Statistics
from vlatool.jobs.job import digest_of
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.transforms.augmentation import central_box
from vlatool.transforms.geometry import ResizeFilter, ResizeMethod, resize
from vlatool.transforms.normalize import field_width
from vlatool.transforms.relative import groups_by_name

# Key of preprocessing_config.yaml of a run: (height, width) of its training images.
IMAGE_SIZE = "image_size"


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
        """Returns the sample with normalized fields, float32 [T, C]; padded fields are zeros."""
        fields: dict[str, Array] = {}
        for name, values in sample.fields.items():
            fields[name] = self.normalizer.normalize(name, values)
            if name in sample.padded_fields:
                fields[name] = np.zeros_like(fields[name])
        return replace(sample, fields=fields)


def assets_of(
    config: RoboticsDataConfig, statistics: Statistics, past: int, options: Mapping[str, Any]
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
    try:
        if options.get("pose_groups") is None:
            groups = groups_by_name([*config.action_fields, *config.proprioception_fields])
        else:
            groups = [PoseGroup(**group) for group in options["pose_groups"]]
        fps = float(options.get("fps") or 10.0)
        images = replace(_image_transform(options), crop=config.augmentation.crop_shape)
        contract = contract_of(config, options, statistics)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{CONFIG_NAME} is broken: {error}",
            hint="copy it again from the training data, or train again",
            code="data.broken",
        ) from None
    return RoboticsAssets(
        data=config,
        normalizer=Normalizer(config, statistics, past),
        pose_groups=groups,
        fps=fps,
        statistics=statistics,
        images=images,
        contract=contract,
        names=recorded_names(options),
    )


def contract_of(
    config: RoboticsDataConfig, options: Mapping[str, Any], statistics: Statistics
) -> Contract:
    """Facts on data for the inputs of a derived section; ValueError if options are invalid."""
    images = _image_transform(options)
    recorded_sizes = options.get(RECORDED_SIZES) or {}
    cameras: dict[str, SeenCamera] = {}
    is_resized = False
    changes_aspect = False
    for name in config.cameras:
        if name not in (options.get("camera_names") or config.cameras):
            continue
        turns = images.rotations.get(name, 0)
        recorded: list[tuple[int, int]] = []
        for height, width in recorded_sizes.get(name) or ():
            size = (int(height), int(width))
            recorded.append(size)
            if images.size is not None:
                turned = size[::-1] if turns % 2 else size
                is_resized |= turned != images.size
                changes_aspect |= turned[0] * images.size[1] != turned[1] * images.size[0]
        cameras[name] = SeenCamera(tuple(recorded), images.size, turns)

    fields = _widths(config.proprioception_fields, statistics)
    actions = _widths(config.action_fields, statistics)
    future = config.lowdim_future_timesteps
    return Contract(
        cameras=cameras,
        resize_method=images.method if changes_aspect else "",
        resize_filter=images.resample if is_resized else "",
        crop=config.augmentation.crop_shape,
        fields=fields,
        actions=actions,
        fps=options.get("fps"),
        horizon=None if future is None else future + 1,
        conventions=conventions_in(options.get("conventions")),
        statistics=digest_of({name: statistics[name] for name in (*fields, *actions)}),
    )


def _widths(names: Sequence[str], statistics: Statistics) -> dict[str, int]:
    return {name: field_width(name, statistics[name]) for name in names if name in statistics}


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
    return ImageTransform(
        recorded_size(options), cast(ResizeMethod, method), cast(ResizeFilter, resample), turns
    )


def recorded_size(options: Mapping[str, Any]) -> tuple[int, int] | None:
    """(height, width) in preprocessing options; `resize_images_size` is (width, height)."""
    if options.get("resize_images_size"):
        width, height = map(int, options["resize_images_size"])
        return height, width
    if options.get(IMAGE_SIZE) is None:
        return None
    height, width = map(int, options[IMAGE_SIZE])
    return height, width
