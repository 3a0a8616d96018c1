"""Config of the VQGAN and of the pixel losses that TiTok shares; no torch.

Source: reference/titok 1.8, 4.2-4.4.
"""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, Names, derivation_rules, derived_field, option
from vlatool.errors import UsageError
from vlatool.models.base import MAX_LAYERS, MAX_ROWS, MAX_SIDE, MAX_WIDTH

if TYPE_CHECKING:
    from vlatool.loading.images.config import ImageDataConfig


# Levels of a network, each of which halves the resolution.
MAX_LEVELS = 16
# Perceptual losses without weights of their own; the weights of all others are configured.
GRADIENTS = "gradients"
FEATURES = "vqgan"
NOTHING = "none"


WEIGHTLESS = (GRADIENTS, FEATURES, NOTHING)


class VqganNetworkConfig(ConfigModel):
    """A convolutional autoencoder with a codebook; the defaults give the published one."""

    hidden_channels: int = option(128, "Channels of the first level.", ge=1, le=MAX_WIDTH)
    channel_mult: tuple[Annotated[int, Field(ge=1, le=MAX_WIDTH)], ...] = option(
        (1, 1, 2, 2, 4),
        "Channels of each level, as multiples of hidden_channels; each level except the first "
        "halves the resolution.",
        min_length=1,
        max_length=MAX_LEVELS,
    )
    num_res_blocks: int = option(2, "Residual blocks per level.", ge=1, le=MAX_LAYERS // MAX_LEVELS)
    z_channels: int = option(256, "Width of a code.", ge=1, le=MAX_WIDTH)
    codebook_size: int = option(1024, "Number of codes.", ge=2, le=MAX_ROWS)
    norm_groups: int = option(32, "Groups of the group norms.", ge=1)
    code_kernel: Literal[1, 3] = option(
        3,
        "Size of the encoder's convolutions at the resolution of the codes; with 1, a code "
        "depends on little more than its own patch. The published model has 3.",
    )

    @property
    def patch_size(self) -> int:
        """Side in pixels of the patch of one code."""
        return 2 ** (len(self.channel_mult) - 1)

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        for factor in self.channel_mult:
            if self.hidden_channels * factor % self.norm_groups:
                raise ValueError(
                    f"{self.hidden_channels * factor} channels are not a multiple of norm_groups "
                    f"{self.norm_groups}"
                )
        return self


class CodebookAlarmConfig(ConfigModel):
    """When a codebook counts as collapsed."""

    below: float = option(
        0.02,
        "Lowest codebook_evenness (share of the largest possible perplexity) and codes_differ "
        "(share of codes that differ from image to image) without an alarm; 0: never.",
        ge=0,
        le=1,
    )
    windows: int = option(20, "Number of logs in a row below the threshold.", ge=1)
    stops: bool = option(False, "End the run with an error, instead of a warning.")


def revive_after_field() -> Any:
    return option(
        0,
        "Number of steps without use after which a code is replaced by an output of the encoder; "
        "0: never, as in the published models.",
        ge=0,
    )


class PixelLossConfig(ConfigModel):
    """Losses of reconstructed images."""

    # Location of the weights of a network; their digest must stay the same.

    reconstruction_weight: float = option(1.0, "Weight of the squared error.", ge=0)
    foreground_weight: float = option(
        0.0,
        "Extra weight of what differs from the mean training image: a pixel, or a code of the "
        "teacher, weighs 1 plus this times the mean absolute difference (0 to 1). The published "
        "models use 0.",
        ge=0,
    )
    perceptual_loss: str | None = derived_field(
        "convnext_s with perceptual_weights, else a distance without weights of its own",
        "Perceptual distance: convnext_s, lpips or lpips-convnext_s-1.0-0.1; or, without weights, "
        "vqgan (features of the teacher), gradients or none.",
        may_be_null=True,
    )
    perceptual_weight: float = option(0.1, "Weight of the perceptual distance.", ge=0)
    perceptual_weights: str | None = option(
        None,
        "Weights of the perceptual network: a file, or a folder with all its files.",
        affects_output=False,
    )
    quantizer_weight: float = option(1.0, "Weight of the loss term of the quantizer.", ge=0)
    discriminator_start: int = option(20_000, "First step in which the discriminator trains.", ge=0)
    discriminator_ramp: int = option(
        0,
        "Number of steps over which the adversarial loss ramps up; the published models use 0.",
        ge=0,
    )
    discriminator_factor: float = option(1.0, "Factor on discriminator_weight.", ge=0)
    discriminator_weight: float = option(
        0.01, "Weight of the adversarial loss; 0: no discriminator.", ge=0
    )
    discriminator_channels: int = option(
        128, "Channels of the first layer of the discriminator.", ge=32, multiple_of=32
    )
    discriminator_learning_rate: float | None = option(
        None, "Peak learning rate of the discriminator; null: hparams.lr.", ge=0
    )
    lecam_regularization_weight: float = option(0.001, "Weight of the LeCam regularization.", ge=0)
    lecam_ema_decay: float = option(
        0.999, "Decay of the running means of the LeCam regularization.", ge=0, lt=1
    )

    @property
    def adversarial(self) -> bool:
        return self.discriminator_weight * self.discriminator_factor > 0


def with_perceptual(losses: PixelLossConfig, default: str) -> tuple[PixelLossConfig, str]:
    """Fills in the perceptual loss; returns the config, and the rule of the value; empty if the
    value is configured.
    """
    name = losses.perceptual_loss
    if name is None:
        chosen = default if losses.perceptual_weights is None else "convnext_s"
        is_default = chosen == default
        rule = "no losses.perceptual_weights" if is_default else "losses.perceptual_weights is set"
        return losses.model_copy(update={"perceptual_loss": chosen}), rule
    if name not in WEIGHTLESS and losses.perceptual_weights is None:
        raise UsageError(
            f"model.losses.perceptual_loss {name!r} needs the weights of this network",
            hint="set model.losses.perceptual_weights=FILE, or use one of "
            f"{', '.join(WEIGHTLESS)}, which need no weights",
            code="usage.missing_key",
            details={"key": "model.losses.perceptual_weights"},
        )
    return losses, ""


def derive_image_size(
    config: ConfigModel, size: int | None, patch_size: int, data: "ImageDataConfig"
) -> tuple[dict[str, Any], dict[str, str]]:
    """Derives `image_size` of a model from its data; returns the changed key with its value, and
    the rule.
    """
    data_size = data.preprocessing.crop_size
    if size not in (None, data_size):
        raise UsageError(
            f"model.image_size is {size}, but the images of the data are {data_size} x {data_size}",
            hint=f"set data.preprocessing.crop_size={size}",
            code="usage.bad_value",
            details={"key": "data.preprocessing.crop_size"},
        )
    if data_size % patch_size:
        raise UsageError(
            f"data.preprocessing.crop_size is {data_size}, which is not a multiple of the model's "
            f"patch size {patch_size}",
            hint=f"set data.preprocessing.crop_size={max(data_size // patch_size, 1) * patch_size}",
            code="usage.bad_value",
            details={"key": "data.preprocessing.crop_size"},
        )
    return {"image_size": data_size}, derivation_rules(config, ["image_size"])


class VqganConfig(VqganNetworkConfig):
    """Training of a MaskGIT-VQGAN, the teacher of TiTok."""

    NAMES: ClassVar[Names] = {
        "init_weight": "/init_from",
    }

    type: Literal["vqgan"] = option("vqgan", "Model type.")
    image_size: int | None = derived_field(
        "data.preprocessing.crop_size", "Side of the images in pixels.", ge=1, le=MAX_SIDE
    )
    commitment_cost: float = option(0.25, "Weight of the commitment loss.", ge=0)
    revive_after: int = revive_after_field()
    losses: PixelLossConfig = option(PixelLossConfig(), "Losses.")
    codebook_alarm: CodebookAlarmConfig = option(
        CodebookAlarmConfig(), "When a codebook counts as collapsed."
    )

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if (self.image_size or 0) % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {self.patch_size} (the patch "
                f"size with {len(self.channel_mult)} entries in channel_mult)"
            )
        if self.losses.perceptual_loss == FEATURES:
            raise ValueError(f"losses.perceptual_loss {FEATURES!r} needs a model with a teacher")
        return self
