"""Config of TiTok; no torch. Source: reference/titok 1, 3, 4, 7.2."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, Names, derived_field, option
from vlatool.models.base import MAX_LAYERS, MAX_ROWS, MAX_SIDE, MAX_WIDTH
from vlatool.models.vqgan import config

# Width, number of blocks, number of heads. Source: reference/titok 1.1.
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}


class VitConfig(ConfigModel):
    """A vision transformer; its MLP width is 4 times `hidden_dim`."""

    hidden_dim: int = option(1024, "Width.", ge=1, le=MAX_WIDTH)
    n_layers: int = option(24, "Number of blocks.", ge=1, le=MAX_LAYERS)
    n_heads: int = option(16, "Number of attention heads.", ge=1)

    @classmethod
    def of(cls, size: str) -> "VitConfig":
        """Config of a published size: small, base or large."""
        width, layers, heads = SIZES[size]
        return cls(hidden_dim=width, n_layers=layers, n_heads=heads)

    @property
    def size(self) -> str | None:
        """Name of the published size; None for any other size."""
        sizes = (self.hidden_dim, self.n_layers, self.n_heads)
        return next((name for name, known in SIZES.items() if known == sizes), None)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_dim % self.n_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of n_heads")
        return self


class VqConfig(ConfigModel):
    """Discrete tokens, which are codes of a codebook."""

    type: Literal["vq"] = option("vq", "Type of bottleneck.")
    codebook_size: int = option(4096, "Number of codes.", ge=2, le=MAX_ROWS)
    token_size: int = option(12, "Width of a code.", ge=1, le=MAX_WIDTH)
    use_l2_norm: bool = option(True, "Normalize vectors and codes to unit length.")
    commitment_cost: float = option(0.25, "Weight of the commitment loss.", ge=0)
    entropy_weight: float = option(
        0.0,
        "Weight of the entropy penalty, which prevents the collapse of the codebook of "
        "small models; the published models use 0.",
        ge=0,
    )
    revive_after: int = config.revive_after_field()


class KlConfig(ConfigModel):
    """Continuous tokens with a KL divergence to the normal distribution."""

    type: Literal["kl"] = option("kl", "Type of bottleneck.")
    token_size: int = option(16, "Width of a token.", ge=1, le=MAX_WIDTH)


Bottleneck = Annotated[VqConfig | KlConfig, Field(discriminator="type")]


class TitokConfig(ConfigModel):
    """Visual tokenizer with a short sequence of tokens; the defaults give L-32, stage 1."""

    # The location of the teacher may change, its content (digest) may not; caching does not change
    # results.
    NAMES: ClassVar[Names] = {
        "init_weight": "/init_from",
    }

    type: Literal["titok"] = option("titok", "Model type.")
    stage: Literal[1, 2] = option(
        1,
        "1: train the tokens; 2: freeze encoder and codes of stage 1, and train the "
        "decoder to produce pixels.",
    )
    image_size: int | None = derived_field(
        "data.preprocessing.crop_size", "Side of the images in pixels.", ge=1, le=MAX_SIDE
    )
    patch_size: int = option(16, "Side of a patch in pixels.", ge=1, le=MAX_SIDE)
    num_latent_tokens: int = option(32, "Number of tokens per image.", ge=1, le=MAX_WIDTH)
    encoder: VitConfig = option(
        VitConfig(), "Transformer of the encoder: small, base, large, or explicit sizes."
    )
    decoder: VitConfig = option(
        VitConfig(), "Transformer of the decoder: small, base, large, or explicit sizes."
    )
    quantizer: Bottleneck = option(
        VqConfig(), "Bottleneck: discrete (vq) or continuous (kl) tokens."
    )
    latent_layout: Literal["legacy", "aligned"] = option(
        "legacy",
        "legacy: each code depends on a slice of every latent token, as in the "
        "published two-stage models; aligned: each code depends on one latent token.",
    )
    decoder_head: Literal["proxy", "pixel"] = option(
        "proxy",
        "Output of the decoder; proxy: codes of the teacher, which stage 2 decodes to "
        "pixels; pixel: pixels.",
    )
    teacher: str | None = option(
        None,
        "VQGAN that gives the target codes, and the initial pixel decoder of stage 2: a vqgan "
        "run, or the published file.",
        affects_output=False,
    )
    teacher_precision: Literal["float32", "bfloat16"] = option(
        "float32", "Precision of the teacher."
    )
    cache_teacher_ids: bool = option(
        False,
        "Keep the teacher codes of each image in memory, 2 bytes per patch in every process; "
        "saves time without random crops and flips.",
        affects_output=False,
    )
    vqgan: config.VqganNetworkConfig = option(
        config.VqganNetworkConfig(),
        "Sizes of the teacher; if the teacher is a run, they are read from it.",
    )
    losses: config.PixelLossConfig = option(config.PixelLossConfig(), "Losses.")
    codebook_alarm: config.CodebookAlarmConfig = option(
        config.CodebookAlarmConfig(), "Detection of a collapsed codebook."
    )

    @property
    def grid(self) -> int:
        assert self.image_size is not None, "image_size is derived from the data"
        return self.image_size // self.patch_size

    @property
    def revive_after(self) -> int:
        """Steps without use after which a code is replaced; 0: never, as for frozen codes."""
        if self.stage == 2 or not isinstance(self.quantizer, VqConfig):
            return 0
        return self.quantizer.revive_after

    @property
    def predicts_pixels(self) -> bool:
        """True if the losses compare pixels, False if they compare codes of the teacher."""
        return self.stage == 2 or self.decoder_head == "pixel"

    @model_validator(mode="before")
    @classmethod
    def _named_sizes(cls, data: Any) -> Any:
        """Replaces names of sizes, such as `encoder: large`, by the sizes."""
        if not isinstance(data, dict):
            return data
        named = {k: data[k] for k in ("encoder", "decoder") if isinstance(data.get(k), str)}
        unknown = sorted(set(named.values()) - set(SIZES))
        if unknown:
            raise ValueError(f"there is no size {unknown[0]!r}; use one of {', '.join(SIZES)}")
        return {**data, **{k: VitConfig.of(size).model_dump() for k, size in named.items()}}

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if (self.image_size or 0) % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size")
        if self.decoder_head == "pixel" and self.stage == 2:
            raise ValueError("decoder_head=pixel has no stage 2")
        if self.quantizer.type == "kl" and self.decoder_head == "proxy":
            raise ValueError("quantizer.type=kl needs decoder_head=pixel")
        if self.decoder_head == "pixel" and self.losses.perceptual_loss == config.FEATURES:
            raise ValueError(
                "losses.perceptual_loss=vqgan needs the teacher, which only decoder_head=proxy has"
            )
        return self
