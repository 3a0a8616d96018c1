"""Options of the preprocessing that data or a run record, and the image transform they describe."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from vlatool.checkpoints.contract import Contract, Size, conventions_in
from vlatool.datasets.lbm.layout import CONFIG_NAME
from vlatool.episode import PoseGroup, UInt8Array
from vlatool.errors import DataError
from vlatool.recordings.field_summary import Names, recorded_names
from vlatool.storage.manifest import parse_values
from vlatool.transforms.augmentation import central_box
from vlatool.transforms.geometry import ResizeFilter, ResizeMethod, resize
from vlatool.transforms.names import NameMap

_Lower = BeforeValidator(str.lower)


@dataclass(frozen=True)
class ImageTransform:
    """Transform from a camera image to an image of the training data."""

    # (height, width) after the resize; None: unknown, images are not resized
    size: Size | None = None
    method: ResizeMethod = "center_crop"
    resample: ResizeFilter = "lanczos_vips"
    # map from camera to number of clockwise quarter turns, applied first
    rotations: Mapping[str, int] = field(default_factory=dict[str, int])
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
class DataOptions:
    """Options of the preprocessing of a data set, or of the data of a run.

    Names are the keys of preprocessing_config.yaml.
    """

    stored: Mapping[str, Any]  # content of the file
    past_lowdim_steps: int | None = None
    future_lowdim_steps: int | None = None
    camera_names: list[str] | None = None  # None: unknown; empty: there are no images
    image_indices: list[int] = field(default_factory=list[int])
    action_fields: list[str] = field(default_factory=list[str])
    proprioception_fields: list[str] = field(default_factory=list[str])
    pose_groups: list[PoseGroup] | None = None
    fps: int | float | None = None
    camera_rotations: dict[str, int] = field(default_factory=dict[str, int])
    # (height, width) of the recordings, by camera
    recorded_sizes: dict[str, list[Size]] = field(default_factory=dict[str, list[Size]])
    resize_images_size: Size | None = None  # (width, height) of all images
    image_size: Size | None = None  # (height, width) of those of a run that were not resized
    image_resizing_method: Annotated[ResizeMethod, _Lower] = "center_crop"
    image_resizing_filter: Annotated[ResizeFilter, _Lower] = "lanczos"

    @classmethod
    def parse(cls, stored: Mapping[str, Any], path: Path | str = CONFIG_NAME) -> "DataOptions":
        """Options by the content of a file; null is as if the key were missing."""
        values = {key: value for key, value in stored.items() if value is not None}
        try:
            return parse_values(cls, {**values, "stored": stored})
        except ValueError as error:
            raise DataError.at(
                path,
                f"is broken: {error}",
                hint="copy it again from the original data or run",
                code="data.broken",
            ) from None

    def renamed(self, names: NameMap) -> "DataOptions":
        """The options with new names of cameras and fields."""
        if names.is_empty:
            return self
        dimensions: dict[str, Sequence[str]] = {}
        for name, labels in self.names.items():
            dimensions[names.parts_of(name)[0]] = labels
        conventions = self.stored.get("conventions") or {}
        groups: list[dict[str, Any]] = []
        for group in conventions.get("groups", ()):
            groups.append({**group, "field": names.parts_of(group["field"])[0]})
        cameras = dict.fromkeys(self.camera_names or ())
        new_values = {
            "action_fields": list(names.names_of(self.action_fields)),
            "proprioception_fields": list(names.names_of(self.proprioception_fields)),
            "camera_names": list(names.cameras_of(cameras)),
            "camera_rotations": names.cameras_of(self.camera_rotations),
            "dimension_names": {
                names.parts_of(name)[0]: value for name, value in self.names.items()
            },
            "pose_groups": list(map(asdict, names.pose_groups_of(self.pose_groups or ()))),
            "conventions": {**conventions, "groups": groups},
        }
        stored = dict(self.stored)
        for key, value in new_values.items():
            if stored.get(key):
                stored[key] = value
        return self.parse(stored)

    @property
    def names(self) -> Names:
        """Names of the dimensions of fields, if they are recorded."""
        return recorded_names(self.stored)

    @property
    def images(self) -> ImageTransform:
        """Transform of the images, without a crop."""
        size = self.image_size
        if self.resize_images_size is not None:
            width, height = self.resize_images_size
            size = (height, width)
        return ImageTransform(
            size, self.image_resizing_method, self.image_resizing_filter, self.camera_rotations
        )

    @property
    def meaning(self) -> Contract:
        """Rate of the data, and what their actions mean."""
        return Contract(fps=self.fps, conventions=conventions_in(self.stored.get("conventions")))
