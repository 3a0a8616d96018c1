"""The model type `vqgan`, the MaskGIT-VQGAN: what vlatool calls. No torch.

This folder is a model type to copy: `config.py` has the section `model`, `model.py` the network,
`losses.py` and `objective.py` the loss, and this file the methods that tie them to a run. Source:
reference/titok 1.8, 4.2-4.4.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.config.base import ConfigModel
from vlatool.models.base import ModelType, Part
from vlatool.models.vqgan.config import (
    GRADIENTS,
    VqganConfig,
    VqganNetworkConfig,
    derive_image_size,
    with_perceptual,
)

if TYPE_CHECKING:
    from torch import nn

    from vlatool.loading.images.config import ImageDataConfig
    from vlatool.models.codebook import CodebookTokenizer
    from vlatool.models.images import ImageBatcher
    from vlatool.models.published import WeightsOrigin
    from vlatool.models.vqgan.objective import PixelObjective


class ImageTokenizerType(ModelType):
    """A model type that is trained on images of one size, `image_size` of its section."""

    kinds: ClassVar[tuple[str, ...]] = ("images",)

    def example(self, config: Any, data: Any, size: int) -> dict[str, Any]:
        from vlatool.models.images import example_images

        assert config.image_size is not None
        return example_images(config.image_size, size)

    def flops(self, config: Any, data: Any) -> float | None:
        from vlatool.models.flops import objective_losses, sample_flops

        losses = objective_losses(lambda parts: self.objective(config, data, None, parts))
        return sample_flops(self, config, data, losses)


class VqganType(ImageTokenizerType):
    """The model type `vqgan`."""

    name: ClassVar[str] = "vqgan"
    Config: ClassVar[type[ConfigModel]] = VqganConfig

    def derive(
        self, config: VqganConfig, data: "ImageDataConfig", info: Any
    ) -> tuple[VqganConfig, dict[str, str]]:
        update, rules = derive_image_size(config, config.image_size, config.patch_size, data)
        update["losses"], rule = with_perceptual(config.losses, GRADIENTS)
        if rule:
            rules["losses.perceptual_loss"] = rule
        return config.model_copy(update=update), rules

    def build(self, config: VqganConfig) -> Mapping[str, Part]:
        """Returns the autoencoder, and the parts of its losses."""
        from vlatool.models.vqgan.losses import buffer_parts, loss_parts
        from vlatool.models.vqgan.model import ResidualBlock, Vqgan

        model = Vqgan(config, commitment_cost=config.commitment_cost)
        blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
        return {
            "model": Part(model, blocks=blocks),
            **loss_parts(config.losses, config),
            **buffer_parts(
                config.losses, config.image_size, config.codebook_size, config.revive_after
            ),
        }

    def load(self, config: VqganConfig, parts: Mapping[str, Part], names: Sequence[str]) -> None:
        from vlatool.models.vqgan.losses import load_perceptual

        if "perceptual" in names:
            load_perceptual(config.losses, parts["perceptual"].module, None)

    def load_init(
        self,
        config: VqganConfig,
        parts: Mapping[str, Part],
        init: "WeightsOrigin",
        init_except: Sequence[str],
    ) -> None:
        """Loads the weights of a published file, a run, or a checkpoint."""
        from vlatool.models.vqgan.model import load_vqgan

        load_vqgan(parts["model"].module, init.text, init_except)

    def objective(
        self, config: VqganConfig, data: Any, info: Any, parts: Mapping[str, Part]
    ) -> "PixelObjective":
        from vlatool.models.vqgan.objective import PixelObjective

        return PixelObjective(
            config.losses, parts, codebook_size=config.codebook_size, alarm=config.codebook_alarm
        )

    def batcher(
        self, config: VqganConfig, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> "ImageBatcher":
        from vlatool.models.images import ImageBatcher

        assert config.image_size is not None
        return ImageBatcher(config.image_size)

    def build_for_inference(self, config: VqganConfig) -> Mapping[str, Part]:
        """The autoencoder without the networks of its losses."""
        from vlatool.models.vqgan.model import Vqgan

        return {"model": Part(Vqgan(config, commitment_cost=config.commitment_cost))}

    def tokenizer(
        self, config: VqganConfig, parts: Mapping[str, "nn.Module"], assets: Any
    ) -> "CodebookTokenizer":
        from vlatool.models.codebook import CodebookTokenizer

        assert config.image_size is not None
        sizes = VqganNetworkConfig.model_fields
        return CodebookTokenizer(
            parts["model"],
            image_size=config.image_size,
            codes_per_image=(config.image_size // config.patch_size) ** 2,
            code_options=config.model_dump_json(include={"image_size", *sizes}),
            code_weights=("encoder.", "quantize."),
        )
