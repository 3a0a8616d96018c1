"""Image shards, and a model type that learns the mean color of their images."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from tests.builders.shards import write_tar
from vlatool.config.base import ConfigModel
from vlatool.loading.images.kind import ImageSample
from vlatool.models.base import Loss, ModelType, Objective, OptimizerSpec, Part


def image(number: int, size: tuple[int, int] = (12, 8), mode: str = "RGB") -> bytes:
    """Content of a random PNG of (width, height) `size`, seeded with `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def write_image_shards(
    folder: Path,  # output folder
    sizes: Sequence[int] = (5, 3, 4),  # samples per shard
    # Tar members in place of the image, by index of the sample over all shards.
    change: Mapping[int, dict[str, bytes]] | None = None,
) -> Path:
    """Writes shards `train-episode_*.tar`; keys start with 0 in each, as in published shards."""
    first = 0
    for index, size in enumerate(sizes):
        contents = {
            f"{i:08d}": (change or {}).get(first + i, {"png": image(first + i)})
            for i in range(size)
        }
        write_tar(folder / f"train-episode_{index:06d}.tar", list(contents), contents)
        first += size
    return folder


class ImageConfig(ConfigModel):
    type: Literal["toy_images"] = Field(default="toy_images", description="Model type.")


class ImageType(ModelType):
    name: ClassVar[str] = "toy_images"
    Config: ClassVar[type[ConfigModel]] = ImageConfig
    kinds: ClassVar[tuple[str, ...]] = ("images",)

    def build(self, config: ImageConfig) -> Mapping[str, Part]:
        from torch import nn

        del config
        return {"model": Part(nn.Linear(3, 3))}

    def objective(self, config: Any, data: Any, info: Any, parts: Any) -> Objective:
        del config, data, info, parts
        return ImageObjective()

    def batcher(
        self, config: Any, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> Any:
        del config, data, assets, folder, training
        return image_batch

    def example(self, config: Any, data: Any, size: int) -> dict[str, Any]:
        del config
        edge = data.preprocessing.crop_size
        values = np.random.default_rng(0).integers(0, 256, (size, edge, edge, 3), np.uint8)
        return image_batch([ImageSample(f"example-{i}", pixels) for i, pixels in enumerate(values)])


class ImageObjective(Objective):
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",))}

    def loss(self, optimizer: str, batch: dict[str, Any], ctx: Any) -> Loss:
        del optimizer
        colors = batch["images"].float().mean((1, 2)) / 255
        error = (ctx.parts["model"](colors) - colors).square().sum()
        return Loss(error, colors.new_tensor(float(len(colors))))


def image_batch(samples: Sequence[ImageSample]) -> dict[str, Any]:
    import torch

    return {"images": torch.from_numpy(np.stack([sample.image for sample in samples]))}
