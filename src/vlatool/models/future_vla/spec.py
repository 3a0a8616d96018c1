"""The model type `future_vla`; no torch. Source: reference/future-vla-model 2."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.config.base import ConfigModel, Violation
from vlatool.models.base import ModelType, Objective, Part
from vlatool.models.future_vla.config import FutureVlaConfig

if TYPE_CHECKING:
    from torch import nn


class FutureVlaType(ModelType):
    """The model type `future_vla`."""

    name: ClassVar[str] = "future_vla"
    Config: ClassVar[type[ConfigModel]] = FutureVlaConfig
    kinds: ClassVar[tuple[str, ...]] = ("vla",)
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "model": ("answer_losses", "head", "embed_images", "image_features")
    }

    def build(self, config: FutureVlaConfig) -> Mapping[str, Part]:
        """The network, as the part `model`."""
        from vlatool.models.future_vla.model import FutureVla

        return {"model": Part(FutureVla(config))}

    def blocks(self, parts: Mapping[str, Part]) -> Sequence["nn.Module"]:
        """The blocks of DINOv3, of the vision transformer and of the language model."""
        network: Any = parts["model"].module
        return network.blocks()

    def violations(self, config: FutureVlaConfig, data: Any) -> Iterator[Violation]:
        """A configuration that trains nothing."""
        del data
        keys = ("freeze_dino", "freeze_vision", "freeze_mergers", "freeze_language")
        if all(getattr(config, key) for key in keys) and not config.lora.rank:
            names = tuple(f"model.{key}" for key in keys)
            yield Violation(names, "all parts of the model are frozen: nothing would be trained")

    def objective(
        self, config: FutureVlaConfig, data: Any, info: Any, parts: Mapping[str, Part]
    ) -> Objective:
        """Cross entropy of the answer."""
        del data, info, parts
        from vlatool.models.future_vla.objective import AnswerObjective

        return AnswerObjective(config.segment_weights)
