"""What sections of the diffusion policy share: weights to begin with, base models. Light."""

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
    """A network that may begin with weights from elsewhere, or stay as it is."""

    resume_from_checkpoint: str | None = Field(
        default=None, description="Weights that this network begins with; null for none."
    )
    resume_weights_only: bool = Field(
        default=False, description="Take the weights alone, and begin a new run with them."
    )
    freeze: bool = Field(default=False, description="Whether its weights stay as they are.")

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """The section with what the data or a base model decide, and key to rule.

        Raises:
            DataError: A base model is missing or broken.
        """
        del data
        return self, {}

    def restore_base_config(self, before: ConfigModel) -> Self:
        """The section with what an earlier one knows of the same base model."""
        del before
        return self

    def keep(self, folder: Path, origin: Path | None = None) -> None:
        """Writes what inference needs of a base model, beside the weights.

        Args:
            folder: The run.
            origin: Where a run with the same base model keeps it; None: the base model is asked.
        """
        del folder, origin

    def _filled(self, update: Mapping[str, Any]) -> Derived:
        """The section with derived keys, and their rules."""
        return self.model_copy(update=dict(update)), derivation_rules(self, update)


class BaseModelConfig(NetworkConfig):
    """A network whose sizes are those of a base model."""

    hf_pretrained: str = Field(
        default="", description="Base model: owner/name of the hub, or a folder of any scheme."
    )
    revision: str | None = derived_field(
        "commit of hf_pretrained on its hub", "Version of a base model of the hub."
    )
    architecture: dict[str, Any] | None = derived_field(
        "config.json of hf_pretrained", "The base model's sizes."
    )

    @property
    def base(self) -> Path:
        """The folder of the base model; see `pretrained.base_model`."""
        return base_model(self.hf_pretrained, self.revision)

    def restore_base_config(self, before: ConfigModel) -> Self:
        """With the version, sizes and colours that it had."""
        if self.architecture is not None or not isinstance(before, type(self)):
            return self
        is_same = before.hf_pretrained == self.hf_pretrained
        if not is_same or self.revision not in (None, before.revision):
            return self
        names = [name for name in self._of_the_base() if getattr(self, name) is None]
        return self.model_copy(update={name: getattr(before, name) for name in names})

    @classmethod
    def _of_the_base(cls) -> Sequence[str]:
        """Keys that the base model decides."""
        return ("revision", "architecture")

    def _pinned(self, folder: Path) -> dict[str, str]:
        """The version that a folder of the hub has."""
        version = version_of(folder)
        return {"revision": version} if version else {}


class BaseBackboneConfig(BaseModelConfig):
    """A backbone of a base model: its colours and its tokenizer too."""

    image_mean: tuple[float, float, float] | None = derived_field(
        "preprocessor_config.json of hf_pretrained", "What is taken from red, green and blue."
    )
    image_std: tuple[float, float, float] | None = derived_field(
        "preprocessor_config.json of hf_pretrained", "What red, green and blue are divided by."
    )
    num_images: int | None = derived_field(
        "data.camera_names times data.image_indices", "Pictures of a sample.", ge=1
    )

    def derive(self, data: RoboticsDataConfig) -> Derived:
        """Sizes and colours of the base model."""
        update: dict[str, Any] = {"num_images": len(data.camera_names) * len(data.image_indices)}
        if self.architecture is None:
            folder = self.base
            update |= {**self._pinned(folder), **self._read(folder)}
        return self._filled(update)

    def keep(self, folder: Path, origin: Path | None = None) -> None:
        """The tokenizer."""
        copy_tokenizer(origin or self.base, folder)

    @classmethod
    def _of_the_base(cls) -> Sequence[str]:
        return (*super()._of_the_base(), "image_mean", "image_std")

    @abstractmethod
    def _read(self, folder: Path) -> dict[str, Any]:
        """What the files of a base model say."""

    def _colored(self, folder: Path, default: ImageMeanStd) -> dict[str, Any]:
        colors = read_image_mean_std(folder, default)
        return {"image_mean": colors.image_mean, "image_std": colors.image_std}
