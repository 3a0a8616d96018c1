"""Image shards as a kind of training data."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ValidationError

from vlatool.artifacts.provenance import (
    CONFIG_NAME,
    read_preprocessing_config,
    write_preprocessing_config,
)
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.loading.images.config import ImageDataConfig, ImagePreprocessing
from vlatool.loading.images.info import ImagesInfo, load_info
from vlatool.loading.images.reader import DROP_REASONS, ImageReader


@dataclass(frozen=True)
class ImagesAssets:
    """What encoding needs besides weights.

    Attributes:
        preprocessing: How pictures became those of the training data.
    """

    preprocessing: ImagePreprocessing


class ImagesKind:
    """Pictures in tar shards: see `loading.base.DataKind`."""

    name: ClassVar[str] = "images"
    Config: ClassVar[type[ImageDataConfig]] = ImageDataConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("shards",)
    drop_reasons: ClassVar[tuple[str, ...]] = DROP_REASONS

    def load_info(self, config: ImageDataConfig, reporter: Reporter = NULL) -> ImagesInfo:
        """Reads the lists of shards and their indexes."""
        return load_info(config, reporter)

    def validation(self, config: ImageDataConfig) -> ImageDataConfig | None:
        """The same section for `val_shards`, in stored order, cropped in the middle."""
        if not config.val_shards:
            return None
        changes = {
            "shards": config.val_shards,
            "val_shards": [],
            "dataset_weighting": [],
            "split": "val",
            "shuffle": False,
            "preprocessing": config.preprocessing.without_randomness(),
        }
        return config.model_copy(update=changes)

    def derive(
        self, config: ImageDataConfig, info: ImagesInfo
    ) -> tuple[ImageDataConfig, dict[str, str]]:
        """Nothing is left open."""
        del info
        return config, {}

    def reader(self, config: ImageDataConfig, info: ImagesInfo) -> ImageReader:
        """Reads, decodes and prepares pictures."""
        return ImageReader(config, info)

    def make_assets(self, config: ImageDataConfig, info: ImagesInfo) -> ImagesAssets:
        """The rule of preprocessing."""
        del info
        return ImagesAssets(config.preprocessing)

    def save_assets(self, config: ImageDataConfig, info: ImagesInfo, folder: Path) -> None:
        """Writes the rule of preprocessing."""
        del info
        write_preprocessing_config(folder, config.preprocessing.model_dump(mode="json"))

    def load_assets(self, config: ImageDataConfig, folder: Path) -> ImagesAssets:
        """What `keep` wrote; DataError where it is missing, broken, or not that of the config."""
        try:
            rule = ImagePreprocessing.model_validate(read_preprocessing_config(folder))
        except ValidationError as error:
            raise _unusable(folder, str(error.errors()[0]["msg"])) from None
        if rule.without_randomness() != config.preprocessing.without_randomness():
            raise _unusable(folder, "differs from data.preprocessing of the run")
        return ImagesAssets(rule)


def _unusable(folder: Path, told: str) -> DataError:
    return DataError(
        f"{folder / CONFIG_NAME}: {told}",
        hint="copy it again from where the run was trained",
        code="data.broken_config",
        details={"path": str(folder / CONFIG_NAME)},
    )
