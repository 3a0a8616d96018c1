"""A visual tokenizer of a plugin: a code is the brightness of a quadrant, in 8 levels.

`tests.builders.toys.install_toys` installs it as the model type `toy_tokenizer`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tests.builders.toy_images import image_batch
from vlatool.config.base import ConfigModel, derived_field
from vlatool.events import Reporter
from vlatool.loading.images.kind import ImageSample
from vlatool.models.base import ModelType, Objective, Part
from vlatool.models.published import Exported, Layout, Trained

FILE = "levels.json"


class ToyTokenizerConfig(ConfigModel):
    type: Literal["toy_tokenizer"] = Field(default="toy_tokenizer", description="Model type.")
    size: int | None = derived_field("data.preprocessing.crop_size", "Side of an image.")


class LevelsLayout(Layout):
    can_read: ClassVar[bool] = False

    def write(self, trained: Trained, tree: Mapping[str, Any], reporter: Reporter) -> Exported:
        levels = trained.parts["model"].state_dict()["table.weight"].flatten().tolist()

        def write(folder: Path) -> Mapping[str, Any]:
            (folder / FILE).write_text(json.dumps(levels))
            return {"levels": len(levels)}

        return Exported((FILE,), (FILE,), len(levels), f"{len(levels)} levels", write)


class ToyTokenizerType(ModelType):
    name: ClassVar[str] = "toy_tokenizer"
    Config: ClassVar[type[ConfigModel]] = ToyTokenizerConfig
    kinds: ClassVar[tuple[str, ...]] = ("images",)
    layout: ClassVar[Layout] = LevelsLayout()

    def derive(self, config: Any, data: Any, info: Any) -> tuple[Any, dict[str, str]]:
        update = {"size": data.preprocessing.crop_size}
        return config.model_copy(update=update), {"size": "data.preprocessing.crop_size"}

    def build(self, config: ToyTokenizerConfig) -> Mapping[str, Part]:
        from tests.builders.toy_levels import Levels

        return {"model": Part(Levels())}

    def objective(self, config: Any, data: Any, info: Any, parts: Any) -> Objective:
        from tests.builders.toy_levels import Brightness

        return Brightness()

    def batcher(
        self, config: Any, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> Any:
        return image_batch

    def example(self, config: ToyTokenizerConfig, data: Any, size: int) -> dict[str, Any]:

        from vlatool.models.images import example_images

        assert config.size is not None
        images = example_images(config.size, size)["images"].permute(0, 2, 3, 1).numpy()
        return image_batch([ImageSample(f"example-{i}", image) for i, image in enumerate(images)])

    def tokenizer(self, config: Any, parts: Mapping[str, Any], assets: Any) -> Any:
        from tests.builders.toy_levels import ToyTokenizer

        return ToyTokenizer(parts["model"], config.size)
