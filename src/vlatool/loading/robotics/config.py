"""What the training loader reads and how; key names are the published ones (lbm-training 1.11)."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, derived_field, needed_field
from vlatool.loading.config import LoadingConfig
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

    def for_field(self, name: str) -> "NormalizeConfig":
        """The settings of one field, with its own keys on top."""
        own = self.field_configs.get(name)
        if own is None:
            return self
        return self.model_copy(update=own.model_dump(exclude_none=True))


class RoboticsDataConfig(LoadingConfig):
    """Robotics data in `lbm` shards."""

    no_effect_on_output: ClassVar[frozenset[str]] = LoadingConfig.no_effect_on_output | {
        # Where the data are; what they are is in the fingerprint of a run.
        "dataset_manifest",
        "dataset_statistics",
        "val_dataset_manifest",
    }

    type: Literal["robotics"] = Field(  # pyright: ignore[reportIncompatibleVariableOverride] - frozen
        default="robotics", description="Kind of data."
    )
    dataset_manifest: list[str] = needed_field(
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
    def _equal_lengths(self) -> Self:
        count = len(self.dataset_manifest)
        for key in ("dataset_statistics", "dataset_weighting", "dataset_modality"):
            given = len(getattr(self, key))
            if given and given != count:
                raise ValueError(f"{key} has {given} entries, dataset_manifest has {count}")
        return self
