"""Data kind of image shards."""

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
    """Assets that encoding needs besides weights.

    Attributes:
        preprocessing: Preprocessing of the training images.
    """

    preprocessing: ImagePreprocessing


class ImagesKind:
    """Image shards (tar files); see `loading.base.DataKind`."""

    name: ClassVar[str] = "images"
    Config: ClassVar[type[ImageDataConfig]] = ImageDataConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("shards",)
    drop_reasons: ClassVar[tuple[str, ...]] = DROP_REASONS

    def load_info(self, config: ImageDataConfig, reporter: Reporter = NULL) -> ImagesInfo:
        """Finds the shards and reads their indexes."""
        return load_info(config, reporter)

    def validation(self, config: ImageDataConfig) -> ImageDataConfig | None:
        """Returns the section of `val_shards`: stored order, center crop; None without shards."""
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
        """Returns the section unchanged."""
        del info
        return config, {}

    def reader(self, config: ImageDataConfig, info: ImagesInfo) -> ImageReader:
        """Returns a reader that decodes and preprocesses images."""
        return ImageReader(config, info)

    def make_assets(self, config: ImageDataConfig, info: ImagesInfo) -> ImagesAssets:
        """Returns the preprocessing."""
        del info
        return ImagesAssets(config.preprocessing)

    def save_assets(self, config: ImageDataConfig, info: ImagesInfo, folder: Path) -> None:
        """Writes the preprocessing to preprocessing_config.yaml."""
        del info
        write_preprocessing_config(folder, config.preprocessing.model_dump(mode="json"))

    def load_assets(self, config: ImageDataConfig, folder: Path) -> ImagesAssets:
        """Reads the preprocessing of a run.

        Raises:
            DataError: The file is missing, broken, or differs from the config of the run.
        """
        try:
            preprocessing = ImagePreprocessing.model_validate(read_preprocessing_config(folder))
        except ValidationError as error:
            raise _unusable(folder, str(error.errors()[0]["msg"])) from None
        if preprocessing.without_randomness() != config.preprocessing.without_randomness():
            raise _unusable(folder, "differs from data.preprocessing of the run")
        return ImagesAssets(preprocessing)


def _unusable(folder: Path, reason: str) -> DataError:
    return DataError(
        f"{folder / CONFIG_NAME}: {reason}",
        hint="copy it again from the original run folder",
        code="data.broken_config",
        details={"path": str(folder / CONFIG_NAME)},
    )
