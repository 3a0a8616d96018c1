"""Configuration of the MaskGIT-VQGAN; light, no torch. Source: reference/titok 1.8, 4.2-4.4."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, derivation_rules, derived_field
from vlatool.errors import UsageError
from vlatool.models.base import ModelType, Part

if TYPE_CHECKING:
    from torch import nn

    from vlatool.loading.images.config import ImageDataConfig
    from vlatool.models.images import ImageBatcher
    from vlatool.models.vqgan.objective import PixelObjective

# Distances that need no weights of their own; all others are networks whose weights are given.
GRADIENTS, FEATURES, NOTHING = "gradients", "vqgan", "none"
WEIGHTLESS = (GRADIENTS, FEATURES, NOTHING)


class VqganNetworkConfig(ConfigModel):
    """A convolutional autoencoder with a codebook; the defaults are the released one."""

    hidden_channels: int = Field(default=128, ge=1, description="Channels of the first level.")
    channel_mult: tuple[int, ...] = Field(
        default=(1, 1, 2, 2, 4),
        min_length=1,
        description="Channels of each level over those of the first; each halves the picture.",
    )
    num_res_blocks: int = Field(default=2, ge=1, description="Residual blocks of a level.")
    z_channels: int = Field(default=256, ge=1, description="Width of a code.")
    codebook_size: int = Field(default=1024, ge=2, description="Codes.")
    norm_groups: int = Field(default=32, ge=1, description="Groups of the group norms.")

    @property
    def patch_size(self) -> int:
        """Side in pixels of what a code stands for."""
        return 2 ** (len(self.channel_mult) - 1)

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        for factor in self.channel_mult:
            if self.hidden_channels * factor % self.norm_groups:
                raise ValueError(
                    f"{self.hidden_channels * factor} channels are no multiple of norm_groups "
                    f"{self.norm_groups}"
                )
        return self


class CodebookAlarmConfig(ConfigModel):
    """When a codebook counts as collapsed."""

    below: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Perplexity over what could be reached, or share of the codes that differ from "
        "picture to picture; 0: never.",
    )
    windows: int = Field(
        default=20, ge=1, description="Lines of metrics in a row at which it is below."
    )
    stops: bool = Field(default=False, description="End the run then, instead of a warning.")


class PixelLossConfig(ConfigModel):
    """Losses of a picture that is drawn again."""

    # Where a network's weights lie; that they are the same is told by their digest.
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset({"perceptual_weights"})

    reconstruction_weight: float = Field(default=1.0, ge=0, description="Of the squared error.")
    perceptual_loss: str | None = derived_field(
        "convnext_s with perceptual_weights, else a distance without weights of its own",
        "Distance of what a network sees: convnext_s, lpips, lpips-convnext_s-1.0-0.1; without "
        "weights of its own vqgan (features of the teacher), gradients, none.",
    )
    perceptual_weight: float = Field(default=0.1, ge=0, description="Of that distance.")
    perceptual_weights: str | None = Field(
        default=None,
        description="Weights of that network: a file, or a folder with those it needs.",
    )
    quantizer_weight: float = Field(
        default=1.0, ge=0, description="Of commitment and codebook, or of the divergence."
    )
    discriminator_start: int = Field(default=20_000, ge=0, description="First step with it.")
    discriminator_ramp: int = Field(
        default=0, ge=0, description="Steps over which its weight grows from 0; published: none."
    )
    discriminator_factor: float = Field(default=1.0, ge=0, description="Factor on the weight.")
    discriminator_weight: float = Field(
        default=0.01, ge=0, description="Of fooling the discriminator; 0 builds none."
    )
    discriminator_channels: int = Field(
        default=128, ge=32, multiple_of=32, description="Channels of its first layer."
    )
    discriminator_learning_rate: float | None = Field(
        default=None, ge=0, description="Its peak rate; null: hparams.lr."
    )
    lecam_regularization_weight: float = Field(
        default=0.001, ge=0, description="Of keeping its answers near their running means."
    )
    lecam_ema_decay: float = Field(default=0.999, ge=0, lt=1, description="Of those means.")

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator."""
        return self.discriminator_weight * self.discriminator_factor > 0


def with_perceptual(losses: PixelLossConfig, otherwise: str) -> tuple[PixelLossConfig, str]:
    """The losses with a perceptual loss, and by which rule where none is configured.

    Raises:
        UsageError: A network is named, and its weights are not given.
    """
    name = losses.perceptual_loss
    if name is None:
        chosen = otherwise if losses.perceptual_weights is None else "convnext_s"
        why = "no losses.perceptual_weights" if chosen == otherwise else "its weights are given"
        return losses.model_copy(update={"perceptual_loss": chosen}), why
    if name not in WEIGHTLESS and losses.perceptual_weights is None:
        raise UsageError(
            f"model.losses.perceptual_loss {name!r} needs the weights of that network",
            hint="give model.losses.perceptual_weights=FILE, or choose one of "
            f"{', '.join(WEIGHTLESS)}, which need none",
            code="usage.no_perceptual_weights",
            details={"key": "model.losses.perceptual_weights"},
        )
    return losses, ""


def derive_image_size(
    config: ConfigModel, size: int | None, data: "ImageDataConfig"
) -> tuple[dict[str, Any], dict[str, str]]:
    """`image_size` of a model from its data: the changed keys and the rule.

    Raises:
        UsageError: The model is for pictures of another size.
    """
    found = data.preprocessing.crop_size
    if size not in (None, found):
        raise UsageError(
            f"model.image_size is {size}, the pictures of the data are {found} pixels wide",
            hint=f"set data.preprocessing.crop_size={size}",
            code="usage.picture_size",
            details={"key": "data.preprocessing.crop_size"},
        )
    return {"image_size": found}, derivation_rules(config, ["image_size"])


class VqganConfig(VqganNetworkConfig):
    """A MaskGIT-VQGAN that is trained: what supplies ids and a pixel decoder to a tokenizer."""

    type: Literal["vqgan"] = Field(default="vqgan", description="Model type.")
    image_size: int | None = derived_field(
        "data.preprocessing.crop_size", "Side of the pictures.", ge=1
    )
    commitment_cost: float = Field(default=0.25, ge=0, description="Of staying near a code.")
    losses: PixelLossConfig = Field(default=PixelLossConfig(), description="Losses.")
    codebook_alarm: CodebookAlarmConfig = Field(
        default=CodebookAlarmConfig(), description="When a codebook counts as collapsed."
    )
    init_weight: str | None = Field(
        default=None, description="Weights to begin with: a released file, a run, a checkpoint."
    )

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if (self.image_size or 0) % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of {self.patch_size}, "
                f"which {len(self.channel_mult)} levels halve to"
            )
        if self.losses.perceptual_loss == FEATURES:
            raise ValueError(f"losses.perceptual_loss {FEATURES!r} needs a vqgan that is trained")
        return self


class VqganType(ModelType):
    """The model type `vqgan`."""

    name: ClassVar[str] = "vqgan"
    Config: ClassVar[type[ConfigModel]] = VqganConfig
    kinds: ClassVar[tuple[str, ...]] = ("images",)

    def derive(
        self, config: VqganConfig, data: "ImageDataConfig", info: Any
    ) -> tuple[VqganConfig, dict[str, str]]:
        """The size of the pictures, and the perceptual loss.

        Raises:
            UsageError: A perceptual network is named without its weights, or the pictures of the
                data have another size.
        """
        del info
        update, rules = derive_image_size(config, config.image_size, data)
        update["losses"], why = with_perceptual(config.losses, GRADIENTS)
        rules |= {"losses.perceptual_loss": why} if why else {}
        return config.model_copy(update=update), rules

    def build(self, config: VqganConfig) -> Mapping[str, Part]:
        """The autoencoder, and what its losses need."""
        from vlatool.models.vqgan.losses import loss_parts
        from vlatool.models.vqgan.model import Vqgan

        model = Vqgan(config, commitment_cost=config.commitment_cost)
        return {"model": Part(model), **loss_parts(config.losses, config)}

    def load(self, config: VqganConfig, parts: Mapping[str, Part], names: Sequence[str]) -> None:
        """Weights to begin with, and those of the perceptual network."""
        from vlatool.models.vqgan.losses import load_perceptual
        from vlatool.models.vqgan.weights import load_vqgan

        if "model" in names and config.init_weight:
            load_vqgan(parts["model"].module, config.init_weight)
        if "perceptual" in names:
            load_perceptual(config.losses, parts["perceptual"].module, None)

    def blocks(self, parts: Mapping[str, Part]) -> Sequence["nn.Module"]:
        """The residual blocks."""
        from vlatool.models.vqgan.model import ResidualBlock

        modules = parts["model"].module.modules()
        return [module for module in modules if isinstance(module, ResidualBlock)]

    def objective(
        self, config: VqganConfig, data: Any, info: Any, parts: Mapping[str, Part]
    ) -> "PixelObjective":
        """Draws pictures again."""
        del data, info
        from vlatool.models.vqgan.objective import PixelObjective

        return PixelObjective(
            config.losses, parts, codebook_size=config.codebook_size, alarm=config.codebook_alarm
        )

    def batcher(
        self, config: VqganConfig, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> "ImageBatcher":
        """Samples to tensors."""
        del data, assets, folder, training
        from vlatool.models.images import ImageBatcher

        assert config.image_size is not None
        return ImageBatcher(config.image_size)

    def example(self, config: VqganConfig, data: Any, size: int) -> dict[str, Any]:
        """Smooth pictures."""
        del data
        from vlatool.models.images import example_images

        assert config.image_size is not None
        return example_images(config.image_size, size)
