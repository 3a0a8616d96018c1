"""What the training loader reads and how; key names are the published ones (reference/training 1.7)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import (
    ConfigModel,
    Violation,
    derivation_rules,
    derived_field,
    required_field,
)
from vlatool.loading.config import LoadingConfig
from vlatool.loading.robotics.augmentation import AugmentationConfig
from vlatool.transforms.normalize import Method, Scope

LanguageKind = Literal["original", "randomized", "verbose", "alternative"]


class FieldNormalizeConfig(ConfigModel):
    """How one field is normalised; null keys follow the section above."""

    enabled: bool | None = Field(default=None, description="Whether the field is normalised.")
    method: Method | None = Field(
        default=None, description="Which statistics give centre and scale."
    )
    scope: Scope | None = Field(
        default=None, description="One scale for all steps, or one per step."
    )
    epsilon: float | None = Field(default=None, gt=0, description="Smallest scale.")


class NormalizeConfig(ConfigModel):
    """How action and proprioception fields are normalised."""

    # They follow from other keys and from the data.
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset(
        {"include_fields", "lowdim_past_timesteps", "lowdim_future_timesteps"}
    )

    enabled: bool = Field(default=True, description="Whether fields are normalised.")
    method: Method = Field(default="std", description="Which statistics give centre and scale.")
    scope: Scope = Field(default="global", description="One scale for all steps, or one per step.")
    epsilon: float = Field(default=1e-8, gt=0, description="Smallest scale.")
    centered_norm: bool = Field(
        default=False,
        description="Map the range to [-1, 1] instead of [0, 1]; `std` is always centred.",
    )
    field_configs: dict[str, FieldNormalizeConfig] = Field(
        default={}, description="Field name to what differs for it."
    )
    include_fields: list[str] = derived_field(
        "data.proprioception_fields and data.action_fields", "Fields it is about.", default=[]
    )
    lowdim_past_timesteps: int | None = derived_field(
        "past steps of the statistics", "Steps of the statistics before the anchor.", ge=0
    )
    lowdim_future_timesteps: int | None = derived_field(
        "future steps of the statistics", "Steps of the statistics after the anchor.", ge=0
    )

    def for_field(self, name: str) -> "NormalizeConfig":
        """The settings of one field, with its own keys on top."""
        own = self.field_configs.get(name)
        if own is None:
            return self
        return self.model_copy(update=own.model_dump(exclude_none=True))


class PublishedDataConfig(LoadingConfig):
    """Keys of published job files that decide nothing here."""

    ignored: ClassVar[Mapping[str, str]] = {
        **LoadingConfig.ignored,
        "val_dataset_weighting": "held-out data are read in stored order",
        "val_dataset_statistics": "held-out data are scaled as the training data are",
        "processor_kwargs": "pictures get the size that the backbone's base model was made for",
        "image_size": "pictures get the size that the backbone's base model was made for",
        "img_num_tokens": "the backbone's base model decides it",
        "seq_len": "texts are as long as the longest of a batch",
        "use_hf_fast_tokenizer": "the fast tokenizer is always used",
        "hf_fast_tokenizers_parallelism": "loader processes are what works in parallel",
        "hf_fast_tokenizer_rayon_threads": "loader processes are what works in parallel",
        "dataloader_in_order": "samples always come in order",
        "tactile_fields": "no model reads them",
        "use_point_cloud": "no model reads them",
        "point_cloud_num_points": "no model reads them",
        "pose_groups": "those of preprocessing_config.yaml count",
        "intrinsics_fields": "no model reads calibration",
        "extrinsics_fields": "no model reads calibration",
    }

    val_dataset_weighting: list[float] = Field(default=[], description="Has no effect.")
    val_dataset_statistics: list[str] = Field(default=[], description="Has no effect.")
    processor_kwargs: dict[str, Any] = Field(default={}, description="Has no effect.")
    image_size: int = Field(default=224, ge=1, description="Has no effect.")
    img_num_tokens: int = Field(default=256, ge=1, description="Has no effect.")
    seq_len: int = Field(default=2048, ge=1, description="Has no effect.")
    use_hf_fast_tokenizer: bool = Field(default=True, description="Has no effect.")
    hf_fast_tokenizers_parallelism: bool = Field(default=True, description="Has no effect.")
    hf_fast_tokenizer_rayon_threads: int | None = Field(default=None, description="Has no effect.")
    dataloader_in_order: bool = Field(default=False, description="Has no effect.")
    tactile_fields: list[str] = Field(default=[], description="Has no effect.")
    use_point_cloud: bool = Field(default=False, description="Has no effect.")
    point_cloud_num_points: int = Field(default=4096, ge=1, description="Has no effect.")
    pose_groups: list[dict[str, Any]] = Field(default=[], description="Has no effect.")
    intrinsics_fields: list[str] = Field(default=[], description="Has no effect.")
    extrinsics_fields: list[str] = Field(default=[], description="Has no effect.")


class RoboticsDataConfig(PublishedDataConfig):
    """Robotics data in `lbm` shards."""

    no_effect_on_output: ClassVar[frozenset[str]] = (
        LoadingConfig.no_effect_on_output
        | PublishedDataConfig.ignored.keys()
        # Where the data are; what they are is in the fingerprint of a run.
        | {"dataset_manifest", "dataset_statistics", "val_dataset_manifest"}
        # Cameras and pictures say which these are.
        | {"image_names"}
    )

    # Whether its cameras are known to be those of other data, which these may lack.
    cameras_are_known: ClassVar[bool] = False

    type: Literal["robotics"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        default="robotics", description="Kind of data."
    )
    dataset_manifest: list[str] = required_field(
        [], "Folder or manifest.jsonl of each data set, of any scheme."
    )
    dataset_statistics: list[str] = Field(
        default=[], description="stats.json of each data set; empty: beside each manifest."
    )
    dataset_modality: list[Literal["robotics"]] = Field(
        default=[], description="Modality of each data set; empty: robotics."
    )
    val_dataset_manifest: list[str] = Field(
        default=[], description="Folder or manifest.jsonl of each held-out data set."
    )
    language_instruction_types: list[LanguageKind] = Field(
        default=["original"], description="Kinds of sentences, one of which is drawn per sample."
    )
    camera_names: list[str] = derived_field(
        "cameras of the data set's preprocessing_config.yaml", "Cameras, in order.", default=[]
    )
    image_indices: list[int] = derived_field(
        "image indices of preprocessing_config.yaml",
        "Pictures, as frames from the anchor.",
        default=[],
    )
    image_names: list[str] = derived_field(
        "data.camera_names at each of data.image_indices", "Pictures, in order.", default=[]
    )
    pad_missing_images: bool = Field(
        default=False, description="A black picture for a camera that a sample lacks."
    )
    mask_padded_images: bool = Field(
        default=False, description="Models do not look at pictures that were padded."
    )
    processor: str | None = Field(
        default=None, description="Processor of pictures and text: that of the backbone."
    )
    max_text_seq_len: int | None = Field(
        default=None,
        ge=1,
        description="Most tokens of a text; null: as many as the backbone takes.",
    )
    augmentation: AugmentationConfig = Field(
        default=AugmentationConfig(), description="How pictures are varied."
    )
    proprioception_fields: list[str] = derived_field(
        "proprioception fields of preprocessing_config.yaml",
        "Fields that are observed.",
        default=[],
    )
    action_fields: list[str] = derived_field(
        "action fields of preprocessing_config.yaml", "Fields that are predicted.", default=[]
    )
    normalization: NormalizeConfig = Field(default=NormalizeConfig(), description="Normalisation.")
    lowdim_past_timesteps: int | None = derived_field(
        "past steps of preprocessing_config.yaml", "Steps before the anchor.", ge=0
    )
    lowdim_future_timesteps: int | None = derived_field(
        "future steps of preprocessing_config.yaml", "Steps after the anchor.", ge=0
    )
    action_dim: int | None = derived_field(
        "sum of the widths of action_fields", "Width of an action."
    )
    proprioception_dim: int | None = derived_field(
        "sum of the widths of proprioception_fields", "Width of a proprioception vector."
    )

    @model_validator(mode="after")
    def _masks_what_is_padded(self) -> Self:
        if self.mask_padded_images and not self.pad_missing_images:
            raise ValueError("mask_padded_images needs pad_missing_images")
        return self

    @model_validator(mode="after")
    def _room_for_images(self) -> Self:
        if self.seq_len < self.img_num_tokens:
            raise ValueError(f"seq_len {self.seq_len} is below img_num_tokens")
        return self

    @model_validator(mode="after")
    def _equal_lengths(self) -> Self:
        count = len(self.dataset_manifest)
        for key in ("dataset_statistics", "dataset_weighting", "dataset_modality"):
            given = len(getattr(self, key))
            if given and given != count:
                raise ValueError(f"{key} has {given} entries, dataset_manifest has {count}")
        return self

    def derive_static(self) -> tuple[Self, Mapping[str, str]]:
        """Names of pictures, and fields of the normalisation, as far as they are known."""
        update: dict[str, Any] = {}
        rules: dict[str, str] = {}
        if self.camera_names and self.image_indices and not self.image_names:
            update["image_names"] = image_names(self.camera_names, self.image_indices)
        rules |= derivation_rules(self, update)
        if self.proprioception_fields and self.action_fields:
            fields = [*self.proprioception_fields, *self.action_fields]
            scaled = self.normalization.model_copy(update={"include_fields": fields})
            update["normalization"] = scaled
            rules |= derivation_rules(scaled, ["include_fields"], "normalization.")
        return self.model_copy(update=update), rules

    def violations(self) -> Iterator[Violation]:
        """Pictures that are named otherwise than they are chosen."""
        chosen = image_names(self.camera_names, self.image_indices)
        if chosen and self.image_names and self.image_names != chosen:
            told = "data.image_names are not those of camera_names at image_indices, which count"
            yield Violation(("image_names",), told)


class HeldOutDataConfig(RoboticsDataConfig):
    """The section of held-out data, derived with the training data."""

    cameras_are_known: ClassVar[bool] = True


def image_names(cameras: Sequence[str], indices: Sequence[int]) -> list[str]:
    """Names of the pictures of a sample, all cameras at the first index first."""
    return [f"{camera}_t{index}" for index in indices for camera in cameras]
