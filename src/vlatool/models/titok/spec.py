"""Configuration of TiTok. Does not import torch. Source: reference/titok 1, 3, 4, 7.2."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, derived_field
from vlatool.errors import UsageError
from vlatool.models.base import ModelType, Objective, Part
from vlatool.models.published import Exported, PublishedFiles, PublishedModel
from vlatool.models.trained import WeightsOrigin, existing_weights
from vlatool.models.vqgan.spec import (
    FEATURES,
    GRADIENTS,
    CodebookAlarmConfig,
    PixelLossConfig,
    VqganNetworkConfig,
    derive_image_size,
    with_perceptual,
)

if TYPE_CHECKING:
    from torch import nn

    from vlatool.events import Reporter
    from vlatool.loading.images.config import ImageDataConfig
    from vlatool.models.images import ImageBatcher
    from vlatool.models.titok.tokenizer import TitokTokenizer
    from vlatool.models.trained import Trained

# Width, number of blocks, number of heads. Source: reference/titok 1.1.
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}


class VitConfig(ConfigModel):
    """A vision transformer; its MLP width is 4 times `hidden_dim`."""

    hidden_dim: int = Field(default=1024, ge=1, description="Width.")
    n_layers: int = Field(default=24, ge=1, description="Number of blocks.")
    n_heads: int = Field(default=16, ge=1, description="Number of attention heads.")

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
    """Discrete tokens: the codes of a codebook."""

    type: Literal["vq"] = Field(default="vq", description="Type of bottleneck.")
    codebook_size: int = Field(default=4096, ge=2, description="Number of codes.")
    token_size: int = Field(default=12, ge=1, description="Width of a code.")
    use_l2_norm: bool = Field(
        default=True, description="Normalize vectors and codes to unit length."
    )
    commitment_cost: float = Field(default=0.25, ge=0, description="Weight of the commitment loss.")
    entropy_weight: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the entropy penalty, which prevents the collapse of the codebook of "
        "small models; the published models use 0.",
    )


class KlConfig(ConfigModel):
    """Continuous tokens with a KL divergence to the normal distribution."""

    type: Literal["kl"] = Field(default="kl", description="Type of bottleneck.")
    token_size: int = Field(default=16, ge=1, description="Width of a token.")


Bottleneck = Annotated[VqConfig | KlConfig, Field(discriminator="type")]


class TitokConfig(ConfigModel):
    """Visual tokenizer with a short sequence of tokens; the defaults are those of L-32, stage 1."""

    # The location of the teacher may change, its content (digest) may not; caching does not change
    # results.
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset({"teacher", "cache_teacher_ids"})
    root_aliases: ClassVar[Mapping[str, str]] = {"init_weight": "init_from"}

    type: Literal["titok"] = Field(default="titok", description="Model type.")
    stage: Literal[1, 2] = Field(
        default=1,
        description="1: train the tokens; 2: freeze encoder and codes of stage 1, and train the "
        "decoder to produce pixels.",
    )
    image_size: int | None = derived_field(
        "data.preprocessing.crop_size", "Side of the images in pixels.", ge=1
    )
    patch_size: int = Field(default=16, ge=1, description="Side of a patch in pixels.")
    num_latent_tokens: int = Field(default=32, ge=1, description="Number of tokens per image.")
    encoder: VitConfig = Field(
        default=VitConfig(),
        description="Transformer of the encoder: small, base, large, or explicit sizes.",
    )
    decoder: VitConfig = Field(
        default=VitConfig(),
        description="Transformer of the decoder: small, base, large, or explicit sizes.",
    )
    quantizer: Bottleneck = Field(
        default=VqConfig(), description="Bottleneck: discrete (vq) or continuous (kl) tokens."
    )
    latent_layout: Literal["legacy", "aligned"] = Field(
        default="legacy",
        description="legacy: each code depends on a slice of every latent token, as in the "
        "published two-stage models; aligned: each code depends on one latent token.",
    )
    decoder_head: Literal["proxy", "pixel"] = Field(
        default="proxy",
        description="Output of the decoder; proxy: codes of the teacher, which stage 2 decodes to "
        "pixels; pixel: pixels.",
    )
    teacher: str | None = Field(
        default=None,
        description="VQGAN for the target codes and the initial pixel decoder of stage 2: a vqgan "
        "run, or the published file.",
    )
    teacher_precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Precision of the teacher."
    )
    cache_teacher_ids: bool = Field(
        default=False,
        description="Cache the teacher codes of each image in memory, 2 bytes per patch, in "
        "every process; useful without random crops and flips.",
    )
    vqgan: VqganNetworkConfig = Field(
        default=VqganNetworkConfig(),
        description="Sizes of the teacher; if the teacher is a run, they are read from it.",
    )
    losses: PixelLossConfig = Field(default=PixelLossConfig(), description="Losses.")
    codebook_alarm: CodebookAlarmConfig = Field(
        default=CodebookAlarmConfig(), description="Detection of a collapsed codebook."
    )

    @property
    def grid(self) -> int:
        """Number of patches along a side."""
        assert self.image_size is not None, "image_size is derived from the data"
        return self.image_size // self.patch_size

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
            raise ValueError(f"unknown size {unknown[0]!r}, expected one of {', '.join(SIZES)}")
        return {**data, **{k: VitConfig.of(size).model_dump() for k, size in named.items()}}

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if (self.image_size or 0) % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size")
        if self.decoder_head == "pixel" and self.stage == 2:
            raise ValueError("decoder_head=pixel has no stage 2")
        if self.quantizer.type == "kl" and self.decoder_head == "proxy":
            raise ValueError("quantizer.type=kl requires decoder_head=pixel")
        if self.decoder_head == "pixel" and self.losses.perceptual_loss == FEATURES:
            raise ValueError(
                "losses.perceptual_loss=vqgan needs the teacher, which only decoder_head=proxy has"
            )
        return self


class TitokType(ModelType):
    """The model type `titok`."""

    name: ClassVar[str] = "titok"
    Config: ClassVar[type[ConfigModel]] = TitokConfig
    kinds: ClassVar[tuple[str, ...]] = ("images",)

    def derive(
        self, config: TitokConfig, data: "ImageDataConfig", info: Any
    ) -> tuple[TitokConfig, dict[str, str]]:
        """Fills in image size, perceptual loss, and sizes of a teacher that is a run.

        Raises:
            UsageError: The required teacher is not configured, or sizes do not match.
            DataError: The teacher is not a VQGAN.
        """
        del info
        check_required_weights(config, needs_init=False)
        update, rules = derive_image_size(config, config.image_size, data)
        if config.predicts_pixels:
            default = FEATURES if config.decoder_head == "proxy" else GRADIENTS
            update["losses"], rule = with_perceptual(config.losses, default)
            rules |= {"losses.perceptual_loss": rule} if rule else {}
        section = teacher_section(config)
        if section is not None:
            update["vqgan"] = section
            rules["vqgan"] = "sizes of the teacher"
        derived = config.model_copy(update=update)
        check_grid(derived)
        return derived, rules

    def build(self, config: TitokConfig) -> Mapping[str, Part]:
        """Returns the tokenizer and, for the proxy head in stage 1, the teacher.

        Otherwise the tokenizer and the networks of the pixel losses.
        """
        from vlatool.models.titok.model import Titok
        from vlatool.models.vqgan.losses import loss_parts
        from vlatool.models.vqgan.model import Vqgan

        model = Titok(config)
        model.freeze_tokens(frozen=config.stage == 2)
        if config.predicts_pixels:
            return {"model": Part(model), **loss_parts(config.losses, config.vqgan)}
        teacher = Part(Vqgan(config.vqgan), trained=False, averaged=False, saved=False)
        return {"model": Part(model), "teacher": teacher}

    def load(self, config: TitokConfig, parts: Mapping[str, Part], names: Sequence[str]) -> None:
        """Loads the teacher and the perceptual network.

        Raises:
            UsageError: The required teacher is not configured.
            DataError: Weights are missing or do not match.
        """
        from vlatool.models.vqgan.losses import load_perceptual
        from vlatool.models.vqgan.weights import load_vqgan

        check_required_weights(config, needs_init=False)
        if "teacher" in names:
            assert config.teacher is not None
            load_vqgan(parts["teacher"].module, config.teacher)
        if "perceptual" in names:
            load_perceptual(config.losses, parts["perceptual"].module, config.teacher)

    def check_init(self, config: TitokConfig, init_from: str | None) -> None:
        """Raises a UsageError if weights of the teacher or of stage 1 are not configured."""
        check_required_weights(config, needs_init=config.stage == 2 and init_from is None)

    def load_init(
        self,
        config: TitokConfig,
        parts: Mapping[str, Part],
        init: WeightsOrigin,
        init_except: Sequence[str],
    ) -> None:
        """Loads the weights of a tokenizer; stage 2 takes those of stage 1 or 2."""
        from vlatool.models.titok.weights import load_titok

        load_titok(parts["model"].module, config, init.text, init_except)

    def blocks(self, parts: Mapping[str, Part]) -> Sequence["nn.Module"]:
        """Returns the transformer blocks, and the residual blocks of the pixel decoder."""
        from vlatool.models.titok.model import Block
        from vlatool.models.vqgan.model import ResidualBlock

        modules = parts["model"].module.modules()
        return [module for module in modules if isinstance(module, Block | ResidualBlock)]

    def objective(
        self, config: TitokConfig, data: Any, info: Any, parts: Mapping[str, Part]
    ) -> Objective:
        """Returns the objective: teacher codes (proxy, stage 1) or pixels."""
        del data, info
        from vlatool.models.titok.objective import make_objective

        return make_objective(config, parts)

    def batcher(
        self, config: TitokConfig, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> "ImageBatcher":
        """Returns the function that converts samples to tensors."""
        del data, assets, folder, training
        from vlatool.models.images import ImageBatcher

        assert config.image_size is not None
        return ImageBatcher(config.image_size, has_digests=config.cache_teacher_ids)

    def example(self, config: TitokConfig, data: Any, size: int) -> dict[str, Any]:
        """Returns a batch of synthetic images."""
        del data
        from vlatool.models.images import example_images

        assert config.image_size is not None
        return example_images(config.image_size, size)

    def build_for_inference(self, config: TitokConfig) -> Mapping[str, Part]:
        """Returns the tokenizer without the networks of its losses."""
        from vlatool.models.titok.model import Titok

        return {"model": Part(Titok(config))}

    def tokenizer(
        self, config: TitokConfig, parts: Mapping[str, "nn.Module"], assets: Any
    ) -> "TitokTokenizer":
        """Returns the visual tokenizer."""
        del assets
        from vlatool.models.titok.tokenizer import TitokTokenizer

        network: Any = parts["model"]
        return TitokTokenizer(config, network)

    def export(self, trained: "Trained", tree: Mapping[str, Any], reporter: "Reporter") -> Exported:
        """Prepares config.yaml and pytorch_model.bin."""
        del tree
        from vlatool.models.titok.weights import prepare_export

        return prepare_export(trained, reporter)

    def find_published(self, location: Path) -> PublishedFiles | None:
        """Returns the files of a folder, or a file alone."""
        from vlatool.models.titok.published import find_published

        return find_published(location) or (
            PublishedFiles(location) if location.is_file() else None
        )

    def open_published(self, files: PublishedFiles, path: Path) -> PublishedModel:
        """Opens a published tokenizer."""
        from vlatool.models.titok.weights import open_published

        return open_published(files, path)


def check_required_weights(config: TitokConfig, *, needs_init: bool) -> None:
    """Raises a UsageError if the weights of the teacher or of stage 1 are not configured."""
    has_teacher = config.decoder_head != "proxy" or config.teacher is not None
    missing = [*([] if has_teacher else ["model.teacher"]), *(["init_from"] if needs_init else [])]
    if missing:
        raise UsageError(
            f"stage {config.stage} requires {' and '.join(missing)}",
            hint="set model.teacher to a run of model type vqgan or the published file; for stage "
            "2 also set init_from to a run of stage 1",
            code="usage.no_stage_1" if has_teacher else "usage.no_teacher",
            details={"key": missing[0], "keys": missing},
        )


def check_grid(config: TitokConfig) -> None:
    """Raises a UsageError if the patches do not correspond to the codes of the teacher."""
    if config.decoder_head == "proxy" and config.patch_size != config.vqgan.patch_size:
        raise UsageError(
            f"model.patch_size is {config.patch_size}, the teacher has one code per "
            f"{config.vqgan.patch_size} x {config.vqgan.patch_size} pixels",
            hint=f"set model.patch_size={config.vqgan.patch_size}, or use another teacher",
            code="usage.teacher_grid",
            details={"key": "model.patch_size"},
        )


def teacher_section(config: TitokConfig) -> VqganNetworkConfig | None:
    """Returns the sizes of a teacher that is a run; None for a published file or no teacher.

    Raises:
        DataError: The teacher does not exist, or is not a VQGAN.
    """
    if config.teacher is None:
        return None
    origin = existing_weights(config.teacher)
    origin.check_type("vqgan", "data.no_vqgan")
    section = origin.section
    if section is None:
        return None
    keys = VqganNetworkConfig.model_fields
    return VqganNetworkConfig.model_validate({k: v for k, v in section.items() if k in keys})
