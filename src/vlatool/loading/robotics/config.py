"""Configuration of robotics data and of the augmentation of their images.

Key names are the published ones. Source: reference/training 1.6; formats/lbm 5.1.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from vlatool.config import base
from vlatool.config.base import Ignored, Names, option
from vlatool.episode import LanguageKind, listed_cameras
from vlatool.loading.base import LoadingConfig, Split
from vlatool.transforms.names import NameMap
from vlatool.transforms.normalize import Method, Scope
from vlatool.transforms.windows import Padding, WindowsConfig

_Hue = Annotated[float, Field(ge=-0.5, le=0.5)]
_Side = Annotated[float, Field(gt=0)]


class JitterConfig(base.ConfigModel):
    """Color jitter. For a range x, a factor is drawn uniformly from 1 - x to 1 + x."""

    enabled: bool = option(False, "Change the colors of training images randomly.")
    brightness: float = option(0.2, "Range x of the brightness factor, 1 - x to 1 + x.", ge=0)
    contrast: float = option(0.4, "Range x of the contrast factor, 1 - x to 1 + x.", ge=0)
    saturation: float = option(0.2, "Range x of the saturation factor, 1 - x to 1 + x.", ge=0)
    hue: tuple[_Hue, _Hue] = option(
        (-0.05, 0.05), "Lowest and highest hue shift, as fractions of the color circle."
    )


class CropConfig(base.ConfigModel):
    """Crop of images."""

    enabled: bool = option(False, "Crop training images; evaluation crops their center.")
    shape: tuple[_Side, _Side] = option(
        (224, 224),
        "Height and width of the crop in pixels; if both are at most 1, as fractions of the image.",
    )
    mode: Literal["random", "center"] = option(
        "random", "Crop at a random place, or at the center."
    )

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if (self.shape[0] <= 1) != (self.shape[1] <= 1):
            raise ValueError(f"shape {list(self.shape)} mixes pixels and fractions")
        if self.mode == "center" and self.shape[0] <= 1:
            raise ValueError("a shape in fractions of the image needs mode: random")
        return self


class ImageAugmentationConfig(base.ConfigModel):
    """Crop, then color jitter; the same for all images of a sample that have the same size."""

    color_jitter: JitterConfig = option(JitterConfig(), "Color jitter.")
    crop: CropConfig = option(CropConfig(), "Crop.")


class AugmentationConfig(base.ConfigModel):
    """Augmentation of training samples."""

    enabled: bool = option(True, "Apply crop and color jitter.")
    image: ImageAugmentationConfig = option(ImageAugmentationConfig(), "Augmentation of images.")

    def without_randomness(self) -> Self:
        """Returns the augmentation of evaluation: center crop, no color jitter."""
        crop = self.image.crop.model_copy(update={"mode": "center"})
        image = self.image.model_copy(update={"crop": crop, "color_jitter": JitterConfig()})
        return self.model_copy(update={"image": image})

    @property
    def crop_shape(self) -> tuple[float, float] | None:
        """(height, width) of the crop, as `CropConfig.shape`; None: no crop."""
        if self.enabled and self.image.crop.enabled:
            return self.image.crop.shape
        return None


class FieldNormalizeConfig(base.ConfigModel):
    """Normalization of one field; null takes the value for all fields."""

    enabled: bool | None = option(None, "Normalize this field.")
    method: Method | None = option(None, "Statistics that normalize this field.")
    scope: Scope | None = option(None, "One scale for all steps, or one per step.")
    epsilon: float | None = option(None, "Smallest scale that values are divided by.", gt=0)


class NormalizeConfig(base.ConfigModel):
    """Normalization of action and proprioception fields."""

    # These values follow from other keys and from the data.

    enabled: bool = option(True, "Normalize action and proprioception fields.")
    method: Method = option("std", "Statistics that normalize the fields.")
    scope: Scope = option("global", "One scale for all steps of a window, or one per step.")
    epsilon: float = option(1e-8, "Smallest scale that values are divided by.", gt=0)
    centered_norm: bool = option(
        False, "Normalize to [-1, 1] instead of [0, 1]; method `std` is always centered."
    )
    field_configs: dict[str, FieldNormalizeConfig] = option(
        {}, "Settings of single fields that differ from the others, by field name."
    )
    include_fields: list[str] = base.derived_field(
        "data.proprioception_fields and data.action_fields",
        "Normalized fields.",
        default=[],
        affects_output=False,
    )
    lowdim_past_timesteps: int | None = base.derived_field(
        "past steps of the statistics",
        "Steps of the statistics before the anchor.",
        ge=0,
        affects_output=False,
    )
    lowdim_future_timesteps: int | None = base.derived_field(
        "future steps of the statistics",
        "Steps of the statistics after the anchor.",
        ge=0,
        affects_output=False,
    )

    def for_field(self, name: str) -> "NormalizeConfig":
        """Returns the section with the values of one field."""
        config = self.field_configs.get(name)
        if config is None:
            return self
        return self.model_copy(update=config.model_dump(exclude_none=True))


def _window_key(name: str) -> Any:
    description = WindowsConfig.model_fields[name].description or ""
    return base.derived_field("windows of preprocessing_config.yaml", description)


class FrameWindowsConfig(base.ConfigModel):
    """Windows that are cut from data of the sink `frames`."""

    past_lowdim_steps: int | None = _window_key("past_lowdim_steps")
    future_lowdim_steps: int | None = _window_key("future_lowdim_steps")
    stride: int | None = _window_key("stride")
    max_padding_left: int | None = _window_key("max_padding_left")
    max_padding_right: int | None = _window_key("max_padding_right")
    padding_strategy: Padding | None = _window_key("padding_strategy")
    filter_still_samples: bool | None = _window_key("filter_still_samples")
    still_threshold: float | None = _window_key("still_threshold")
    still_field_thresholds: dict[str, float] | None = _window_key("still_field_thresholds")
    image_indices: list[int] | None = _window_key("image_indices")
    fps: float | None = option(
        None, "Convert to this many frames per second: poses between frames, nearest images.", gt=0
    )

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        try:
            self.complete({})
        except ValidationError as error:
            problem = error.errors()[0]
            message = problem["msg"].removeprefix("Value error, ")
            raise ValueError(": ".join([*map(str, problem["loc"]), message])) from None
        return self

    def complete(self, stored: Mapping[str, Any]) -> WindowsConfig:
        """These keys; a key that is null takes its stored value."""
        keys = {key: stored[key] for key in WindowsConfig.model_fields if key in stored}
        if self.filter_still_samples is False:
            keys.pop("still_field_thresholds", None)
        keys |= self.model_dump(exclude={"fps"}, exclude_none=True)
        return WindowsConfig.model_validate(keys)


class RoboticsDataConfig(LoadingConfig):
    """Robotics data in `lbm` shards, or frames from which windows are cut."""

    NAMES: ClassVar[Names] = {
        **LoadingConfig.NAMES,
        "val_dataset_weighting": Ignored("validation data are read in stored order"),
        "val_dataset_statistics": Ignored(
            "validation data are normalized with the training statistics"
        ),
        "processor_kwargs": Ignored("images are resized to the input size of the backbone"),
        "image_size": Ignored("images are resized to the input size of the backbone"),
        "img_num_tokens": Ignored("the base model of the backbone determines it"),
        "seq_len": Ignored("texts are padded to the longest text of a batch"),
        "use_hf_fast_tokenizer": Ignored("the fast tokenizer is always used"),
        "hf_fast_tokenizers_parallelism": Ignored("loader workers provide the parallelism"),
        "hf_fast_tokenizer_rayon_threads": Ignored("loader workers provide the parallelism"),
        "dataloader_in_order": Ignored("samples are always in order"),
        "tactile_fields": Ignored("no model uses them"),
        "use_point_cloud": Ignored("no model uses point clouds"),
        "point_cloud_num_points": Ignored("no model uses point clouds"),
        "pose_groups": Ignored("preprocessing_config.yaml has them"),
        "intrinsics_fields": Ignored("no model uses the calibration"),
        "extrinsics_fields": Ignored("no model uses the calibration"),
    }

    weighted_key: ClassVar[str] = "dataset_manifest"
    keys_by_set: ClassVar[tuple[str, ...]] = (
        "dataset_statistics",
        "dataset_weighting",
        "dataset_modality",
    )
    # True if camera_names come from other data; these data may lack some of the cameras.
    cameras_are_known: ClassVar[bool] = False

    type: Literal["robotics"] = option(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        "robotics", "Data kind."
    )
    dataset_manifest: list[str] = base.required_field(
        [], "Folder or manifest.jsonl of each data set, of any scheme.", affects_output=False
    )
    dataset_statistics: list[str] = option(
        [],
        "stats.json of each data set; empty takes the file beside each manifest.",
        affects_output=False,
    )
    statistics_from: Literal["data", "init"] = option(
        "data",
        "Normalize fields by the statistics of these data, or of the weights in init_from.",
    )
    dataset_modality: list[Literal["robotics"]] = option(
        [], "Modality of each data set; empty means robotics."
    )
    val_dataset_manifest: list[str] = option(
        [], "Folder or manifest.jsonl of each validation data set.", affects_output=False
    )
    windows: FrameWindowsConfig = option(
        FrameWindowsConfig(), "Windows to cut from data of the sink frames; shards have their own."
    )
    episodes: str | None = option(
        None,
        "Use only these episodes of a data set of the sink frames: numbers and ranges such as "
        "0:4,7, or @CURATION for the episodes that `vlatool curate` keeps.",
    )
    split: Split | None = option(
        None,
        "Episodes to use of frames that hold some out: train, val (held out) or all; null means "
        "train.",
    )
    frames_preset: str = option(
        "",
        "If dataset_manifest names recordings, `train` preprocesses them first, with this preset "
        "of `preprocess`; empty uses its defaults.",
        affects_output=False,
    )
    rename: NameMap = option(
        NameMap(),
        "Give cameras and whole fields new names, such as cameras.wrist=wrist_left, in data sets "
        "that have only the old name.",
    )
    language_instruction_types: list[LanguageKind] = option(
        ["original"], "Kinds of instructions; each sample gets a random one of these kinds."
    )
    camera_names: list[str] = base.derived_field(
        "cameras of the data set's preprocessing_config.yaml",
        "Cameras that the policy sees, in order; none reads no images.",
        default=[],
    )
    image_indices: list[int] = base.derived_field(
        "image indices of preprocessing_config.yaml",
        "Frames of the images relative to the anchor, such as [-1, 0].",
        default=[],
    )
    image_names: list[str] = base.derived_field(
        "data.camera_names at each of data.image_indices",
        "Names of the images.",
        default=[],
        affects_output=False,
    )
    pad_missing_images: bool = option(False, "Use a black image for a camera that a sample lacks.")
    pad_missing_fields: bool = option(
        False, "Use zeros for a field that a data set lacks; losses and errors leave them out."
    )
    mask_padded_images: bool = option(
        False, "Mask padded images, so that models do not attend to them."
    )
    processor: str | None = option(
        None, "Processor of images and text; always the one of the backbone."
    )
    max_text_seq_len: int | None = option(
        None, "Largest number of tokens of a text; null uses the limit of the backbone.", ge=1
    )
    augmentation: AugmentationConfig = option(
        AugmentationConfig(), "Augmentation of training samples."
    )
    proprioception_fields: list[str] = base.derived_field(
        "proprioception fields of preprocessing_config.yaml",
        "Fields that the policy observes.",
        default=[],
    )
    action_fields: list[str] = base.derived_field(
        "action fields of preprocessing_config.yaml", "Fields that the policy predicts.", default=[]
    )
    normalization: NormalizeConfig = option(NormalizeConfig(), "Normalization of fields.")
    allow: list[str] = option(
        [],
        "Accept these fields although their normalized values exceed 1,000.",
        affects_output=False,
    )
    lowdim_past_timesteps: int | None = base.derived_field(
        "past steps of preprocessing_config.yaml", "Steps of a window before the anchor.", ge=0
    )
    lowdim_future_timesteps: int | None = base.derived_field(
        "future steps of preprocessing_config.yaml", "Steps of a window after the anchor.", ge=0
    )
    max_delay: int = option(
        0,
        "Train for robots that execute up to this many steps of the old chunk while the policy "
        "plans the next one: the policy is given these first actions.",
        ge=0,
    )
    action_dim: int | None = base.derived_field(
        "sum of the widths of action_fields", "Number of dimensions of an action."
    )
    proprioception_dim: int | None = base.derived_field(
        "sum of the widths of proprioception_fields", "Number of dimensions of proprioception."
    )

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras; empty without images, and before they are derived."""
        return listed_cameras(self.camera_names)

    @model_validator(mode="after")
    def _check_masking(self) -> Self:
        if self.mask_padded_images and not self.pad_missing_images:
            raise ValueError("mask_padded_images needs pad_missing_images")
        return self

    @field_validator("rename")
    @classmethod
    def _check_whole(cls, value: NameMap) -> NameMap:
        old_names = [part.key for part in value.fields.values()]
        for name, part in value.fields.items():
            if old_names.count(part.key) > 1:
                raise ValueError(f"fields.{name}={part.key}: {part.key} has another new name too")
            if not part.is_whole:
                raise ValueError(
                    f"fields.{name} is a part of a field: cut it with `vlatool preprocess --rename`"
                )
        return value

    def derive_static(self) -> tuple[Self, Mapping[str, str]]:
        """Fills in image names and normalized fields, if the keys they follow from are set."""
        update: dict[str, Any] = {}
        rules: dict[str, str] = {}
        if self.cameras and self.image_indices and not self.image_names:
            update["image_names"] = image_names(self.cameras, self.image_indices)
        rules |= base.derivation_rules(self, update)
        if self.proprioception_fields and self.action_fields:
            fields = [*self.proprioception_fields, *self.action_fields]
            scaled = self.normalization.model_copy(update={"include_fields": fields})
            update["normalization"] = scaled
            rules |= base.derivation_rules(scaled, ["include_fields"], "normalization.")
        return self.model_copy(update=update), rules

    def violations(self) -> Iterator[base.Violation]:
        """Yields a violation if `image_names` contradicts `camera_names` and `image_indices`."""
        names = image_names(self.cameras, self.image_indices)
        if names and self.image_names and self.image_names != names:
            message = "data.image_names differs from data.camera_names at data.image_indices"
            yield base.Violation(("image_names",), message)


class ValidationDataConfig(RoboticsDataConfig):
    """Section of the validation data, derived with the training data."""

    cameras_are_known: ClassVar[bool] = True

    training_manifest: list[str] = option([], "Data sets that have the fields to pad.")

    @property
    def is_held_out(self) -> bool:
        return self.split == "val"


def image_names(cameras: Sequence[str], indices: Sequence[int]) -> list[str]:
    """Names of the images of a sample: index outer, camera inner."""
    names: list[str] = []
    for index in indices:
        names += [f"{camera}_t{index}" for camera in cameras]
    return names
