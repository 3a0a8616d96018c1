"""Toy users of the training protocols: a data kind of numbers, a GAN, a language model.

`install_toys` installs them like a third-party distribution. `tests.builders.toy_networks` has the
code that imports torch.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from vlatool.config.base import ConfigModel, option
from vlatool.errors import DataError
from vlatool.events import NULL, Reporter
from vlatool.loading.base import (
    DataKind,
    DataSet,
    DroppedSample,
    LoadingConfig,
    SampleReader,
    SampleRef,
    ShardInfo,
)
from vlatool.models.base import ModelType, Objective, Part

WIDTH, LENGTH, TOKENS = 4, 6, 11
METADATA = "Metadata-Version: 2.1\nName: toy_models\nVersion: 0.1\n"
ENTRY_POINTS = """\
[vlatool.models]
toy_gan = tests.builders.toys:GanType
toy_lm = tests.builders.toys:LmType
toy_images = tests.builders.toy_images:ImageType
toy_tokenizer = tests.builders.toy_tokenizer:ToyTokenizerType
toy_push = tests.builders.toy_policy:PushType
"""
NUMBERS = "tests.builders.toys:NumbersKind"


def install_toys(root: Path) -> None:
    """Writes the metadata of the distribution into a folder of the import path."""
    info = root / "toy_models-0.1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)


def write_numbers(
    folder: Path, sizes: Sequence[int] = (20, 13, 15), nan_row: int | None = None
) -> Path:
    """Writes .npy files of rows [S, WIDTH]; the row with index `nan_row` is NaN."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(7).normal(size=(sum(sizes), WIDTH)).astype(np.float32)
    if nan_row is not None:
        rows[nan_row] = np.nan
    stops = np.cumsum(sizes)
    for index, (size, stop) in enumerate(zip(sizes, stops, strict=True)):
        np.save(folder / f"block-{index}.npy", rows[stop - size : stop])
    return folder


class NumbersConfig(LoadingConfig):
    """Rows of numbers in .npy files."""

    type: Literal["numbers"] = Field(default="numbers", description="Data kind.")
    folders: list[str] = option([], "Folders with .npy files.", affects_output=False)
    val_folders: list[str] = option([], "Folders with validation data.", affects_output=False)


@dataclass(frozen=True)
class Row:
    key: str
    values: np.ndarray


@dataclass(frozen=True)
class NumbersInfo:
    datasets: tuple[DataSet, ...]
    digest: str

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {"numbers": self.digest}


@dataclass
class NumbersReader(SampleReader):
    datasets: tuple[DataSet, ...]

    def read(self, refs: Sequence[SampleRef], rngs: Sequence[np.random.Generator]) -> list[Any]:
        del rngs
        return [self._row(ref) for ref in refs]

    def _row(self, ref: SampleRef) -> Row | DroppedSample:
        shard = self.datasets[ref.dataset].shards[ref.shard]
        values = np.load(shard.location, mmap_mode="r")[ref.sample]
        key = f"{shard.location.stem}-{ref.sample}"
        if not np.isfinite(values).all():
            return DroppedSample("no_number", key, f"row {key} is NaN")
        return Row(key, np.array(values))


class NumbersKind(DataKind):
    name: ClassVar[str] = "numbers"
    Config: ClassVar[type[LoadingConfig]] = NumbersConfig
    folders_keys: ClassVar[tuple[str, ...]] = ("folders",)
    drop_reasons: ClassVar[tuple[str, ...]] = ("no_number",)

    def load_info(self, config: NumbersConfig, reporter: Reporter = NULL) -> NumbersInfo:
        if not config.folders:
            raise DataError("folders is empty", code="data.no_source")
        digest, datasets = hashlib.sha256(), list[DataSet]()
        for name in config.folders:
            paths = sorted(Path(name).glob("*.npy"))
            for path in paths:
                digest.update(path.read_bytes())
            shards = [ShardInfo(path, len(np.load(path, mmap_mode="r"))) for path in paths]
            datasets.append(DataSet(Path(name).name, tuple(shards)))
        return NumbersInfo(tuple(datasets), digest.hexdigest())

    def validation(self, config: NumbersConfig) -> NumbersConfig | None:
        changes = {"folders": config.val_folders, "val_folders": []}
        return config.model_copy(update=changes) if config.val_folders else None

    def derive(self, config: Any, info: Any) -> tuple[Any, dict[str, str]]:
        del info
        return config, {}

    def reader(self, config: NumbersConfig, info: NumbersInfo) -> NumbersReader:
        del config
        return NumbersReader(info.datasets)

    def make_assets(self, config: NumbersConfig, info: NumbersInfo) -> None:
        del config, info

    def save_assets(self, config: NumbersConfig, info: NumbersInfo, folder: Path) -> None:
        del config, info, folder

    def load_assets(self, config: NumbersConfig, folder: Path) -> None:
        del config, folder


class GanConfig(ConfigModel):
    type: Literal["toy_gan"] = Field(default="toy_gan", description="Model type.")
    teacher: str = Field(default="", description="File with the teacher's weights.")
    critic_starts_at: int = Field(default=2, description="First step of the critic.")


class GanType(ModelType):
    name: ClassVar[str] = "toy_gan"
    Config: ClassVar[type[ConfigModel]] = GanConfig
    kinds: ClassVar[tuple[str, ...]] = (NUMBERS,)
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {"critic": ("score",)}

    def build(self, config: GanConfig) -> Mapping[str, Part]:
        from tests.builders.toy_networks import gan_parts

        del config
        return gan_parts()

    def load(self, config: GanConfig, parts: Mapping[str, Part], names: Sequence[str]) -> None:
        from vlatool.models.weights import load_weights

        if "teacher" in names and config.teacher:
            load_weights(parts["teacher"].module, Path(config.teacher))

    def objective(
        self, config: GanConfig, data: Any, info: Any, parts: Mapping[str, Part]
    ) -> Objective:
        from tests.builders.toy_networks import GanObjective

        del data, info
        return GanObjective(config, parts["means"].module)

    def batcher(
        self, config: Any, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> Any:
        from tests.builders.toy_networks import row_batch

        del config, data, assets, folder, training
        return row_batch

    def example(self, config: GanConfig, data: Any, size: int) -> dict[str, Any]:
        from tests.builders.toy_networks import row_batch

        del config, data
        values = np.random.default_rng(0).normal(size=(size, WIDTH)).astype(np.float32)
        return row_batch([Row(f"example-{i}", row) for i, row in enumerate(values)])


class LmConfig(ConfigModel):
    type: Literal["toy_lm"] = Field(default="toy_lm", description="Model type.")
    chunks: int = Field(default=3, description="Number of chunks in which the head is computed.")


class LmType(ModelType):
    name: ClassVar[str] = "toy_lm"
    Config: ClassVar[type[ConfigModel]] = LmConfig
    kinds: ClassVar[tuple[str, ...]] = (NUMBERS,)

    def build(self, config: LmConfig) -> Mapping[str, Part]:
        from tests.builders.toy_networks import ToyLm

        model = ToyLm(config.chunks)
        return {"model": Part(model, blocks=[model.block])}

    def objective(
        self, config: LmConfig, data: Any, info: Any, parts: Mapping[str, Part]
    ) -> Objective:
        from tests.builders.toy_networks import LmObjective

        del config, data, info, parts
        return LmObjective()

    def batcher(
        self, config: Any, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> Any:
        from tests.builders.toy_networks import token_batch

        del config, data, assets, folder, training
        return partial(token_batch)

    def example(self, config: LmConfig, data: Any, size: int) -> dict[str, Any]:
        from tests.builders.toy_networks import token_batch

        del config, data
        return token_batch([Row(f"example-{i}", np.ones(WIDTH, np.float32)) for i in range(size)])
