"""The model type `future_vla`; no torch. Source: reference/future-vla 8."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.config.base import ConfigModel
from vlatool.models.base import ModelType, Part
from vlatool.models.future_vla.config import FutureVlaConfig

if TYPE_CHECKING:
    from torch import nn


class FutureVlaType(ModelType):
    """The model type `future_vla`."""

    name: ClassVar[str] = "future_vla"
    Config: ClassVar[type[ConfigModel]] = FutureVlaConfig
    kinds: ClassVar[tuple[str, ...]] = ("vla",)
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("head", "embed_images", "image_features")
    }

    def build(self, config: FutureVlaConfig) -> Mapping[str, Part]:
        """The network, as the part `model`."""
        from vlatool.models.future_vla.model import FutureVla

        return {"model": Part(FutureVla(config))}

    def blocks(self, parts: Mapping[str, Part]) -> Sequence["nn.Module"]:
        """The blocks of DINOv3, of the vision transformer and of the language model."""
        network: Any = parts["model"].module
        return network.blocks()
