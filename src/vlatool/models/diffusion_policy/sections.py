"""Base classes of the sections of the diffusion policy: initial weights, base models. No torch."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from vlatool.artifacts.base_model import ImageMeanStd, copy_tokenizer, read_image_mean_std
from vlatool.config.base import ConfigModel, derivation_rules, derived_field
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.models.pretrained import base_model
from vlatool.storage.uri import version_of

Derived = tuple[Any, dict[str, str]]


class NetworkConfig(ConfigModel):
    """A network with optional initial weights, which may be frozen."""

    resume_from_checkpoint: str | None = Field(
        default=None, description="Checkpoint with the initial weights; null: none."
    )
    resume_weights_only: bool = Field(
        default=False, description="Load only the weights and start a new run with them."
    )
    freeze: bool = Field(default=False, description="Do not train the weights of this network.")

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """Derives keys from the data or a base model; returns the section and the rule of each key.

        Raises:
            DataError: A base model is missing or broken.
        """
        del data
        return self, {}

    def restore_base_config(self, before: ConfigModel) -> Self:
        """The section with the derived keys of an earlier section with the same base model."""
        del before
        return self

    def save_assets(self, folder: Path, origin: Path | None = None) -> None:
        """Writes the assets of a base model to a run folder.

        Args:
            folder: The run folder.
            origin: Folder of a run with these assets; None: copy them from the base model.
        """
        del folder, origin

    def _with_derived(self, update: Mapping[str, Any]) -> Derived:
        """The section with derived keys, and the rules of these keys."""
        return self.model_copy(update=dict(update)), derivation_rules(self, update)


class BaseModelConfig(NetworkConfig):
    """A network with the architecture of a base model."""

    hf_pretrained: str = Field(
        default="", description="Base model: owner/name on the hub, or a folder of any scheme."
    )
    revision: str | None = derived_field(
        "commit of hf_pretrained on its hub", "Commit of a base model on the hub."
    )
    architecture: dict[str, Any] | None = derived_field(
        "config.json of hf_pretrained", "Architecture of the base model."
    )

    @property
    def base(self) -> Path:
        """Folder of the base model; see `pretrained.base_model`."""
        return base_model(self.hf_pretrained, self.revision)

    def restore_base_config(self, before: ConfigModel) -> Self:
        """The section with the commit, architecture and image normalization of the earlier one."""
        if self.architecture is not None or not isinstance(before, type(self)):
            return self
        is_same = before.hf_pretrained == self.hf_pretrained
        if not is_same or self.revision not in (None, before.revision):
            return self
        names = [name for name in self._base_model_keys() if getattr(self, name) is None]
        return self.model_copy(update={name: getattr(before, name) for name in names})

    @classmethod
    def _base_model_keys(cls) -> Sequence[str]:
        """Keys that are derived from the base model."""
        return ("revision", "architecture")

    def _hub_revision(self, folder: Path) -> dict[str, str]:
        """The commit of a folder from the hub; empty for other folders."""
        version = version_of(folder)
        return {"revision": version} if version else {}


class BaseBackboneConfig(BaseModelConfig):
    """A backbone from a base model, with its image normalization and text tokenizer."""

    image_mean: tuple[float, float, float] | None = derived_field(
        "preprocessor_config.json of hf_pretrained", "Mean of red, green and blue."
    )
    image_std: tuple[float, float, float] | None = derived_field(
        "preprocessor_config.json of hf_pretrained", "Std of red, green and blue."
    )
    num_images: int | None = derived_field(
        "data.camera_names times data.image_indices", "Images per sample.", ge=1
    )

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """Derives the architecture and image normalization of the base model."""
        update: dict[str, Any] = {"num_images": len(data.camera_names) * len(data.image_indices)}
        if self.architecture is None:
            folder = self.base
            update |= {**self._hub_revision(folder), **self._read(folder)}
        return self._with_derived(update)

    def save_assets(self, folder: Path, origin: Path | None = None) -> None:
        """Writes the text tokenizer."""
        copy_tokenizer(origin or self.base, folder)

    @classmethod
    def _base_model_keys(cls) -> Sequence[str]:
        return (*super()._base_model_keys(), "image_mean", "image_std")

    @abstractmethod
    def _read(self, folder: Path) -> dict[str, Any]:
        """The derived keys, read from the files of a base model."""

    def _mean_and_std(self, folder: Path, default: ImageMeanStd) -> dict[str, Any]:
        colors = read_image_mean_std(folder, default)
        return {"image_mean": colors.image_mean, "image_std": colors.image_std}
