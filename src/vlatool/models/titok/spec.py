"""Configuration of TiTok; light, no torch. Source: reference/titok 1, 3, 4, 7.2."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vlatool.config.base import ConfigModel, derived_field
from vlatool.errors import UsageError
from vlatool.models.base import ModelType, Objective, Part
from vlatool.models.foreign import find_weights
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

    from vlatool.loading.images.config import ImageDataConfig
    from vlatool.models.images import ImageBatcher

# Width, blocks, heads. Source: reference/titok 1.1.
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}


class VitConfig(ConfigModel):
    """A vision transformer; the MLPs are four times as wide."""

    hidden_dim: int = Field(default=1024, ge=1, description="Width.")
    n_layers: int = Field(default=24, ge=1, description="Blocks.")
    n_heads: int = Field(default=16, ge=1, description="Attention heads.")

    @classmethod
    def of(cls, size: str) -> "VitConfig":
        """A published size: small, base or large."""
        width, layers, heads = SIZES[size]
        return cls(hidden_dim=width, n_layers=layers, n_heads=heads)

    @property
    def size(self) -> str | None:
        """The name of a published size; None for another one."""
        sizes = (self.hidden_dim, self.n_layers, self.n_heads)
        return next((name for name, known in SIZES.items() if known == sizes), None)

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden_dim % self.n_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is no multiple of n_heads")
        return self


class VqConfig(ConfigModel):
    """Codes of a table."""

    type: Literal["vq"] = Field(default="vq", description="Kind of bottleneck.")
    codebook_size: int = Field(default=4096, ge=2, description="Codes.")
    token_size: int = Field(default=12, ge=1, description="Width of a code.")
    use_l2_norm: bool = Field(default=True, description="Compare directions only.")
    commitment_cost: float = Field(default=0.25, ge=0, description="Of staying near a code.")
    entropy_weight: float = Field(
        default=0.0,
        ge=0,
        description="Of choosing codes clearly and all of them alike, which keeps small models "
        "from a collapse; published: 0.",
    )


class KlConfig(ConfigModel):
    """Continuous tokens, held near a normal distribution."""

    type: Literal["kl"] = Field(default="kl", description="Kind of bottleneck.")
    token_size: int = Field(default=16, ge=1, description="Width of a token.")


Bottleneck = Annotated[VqConfig | KlConfig, Field(discriminator="type")]


class TitokConfig(ConfigModel):
    """Pictures as a short row of tokens; the defaults are those of L-32, stage 1."""

    # Where a teacher lies; that it is the same one is told by its digest.
    no_effect_on_output: ClassVar[frozenset[str]] = frozenset({"teacher", "cache_teacher_ids"})

    type: Literal["titok"] = Field(default="titok", description="Model type.")
    stage: Literal[1, 2] = Field(
        default=1,
        description="1 learns tokens; 2 learns to draw pixels from those of stage 1, which stay "
        "as they are.",
    )
    image_size: int | None = derived_field(
        "data.preprocessing.crop_size", "Side of the pictures.", ge=1
    )
    patch_size: int = Field(default=16, ge=1, description="Side of a patch in pixels.")
    num_latent_tokens: int = Field(default=32, ge=1, description="Tokens of a picture.")
    encoder: VitConfig = Field(
        default=VitConfig(), description="Its transformer; small, base, large, or sizes."
    )
    decoder: VitConfig = Field(
        default=VitConfig(), description="Its transformer; small, base, large, or sizes."
    )
    quantizer: Bottleneck = Field(default=VqConfig(), description="What a token is.")
    latent_layout: Literal["legacy", "aligned"] = Field(
        default="legacy",
        description="Which numbers make a code: legacy takes a slice of every latent token, as the "
        "released two-stage models do; aligned takes one token.",
    )
    decoder_head: Literal["proxy", "pixel"] = Field(
        default="proxy",
        description="What is drawn: codes of the teacher, which stage 2 turns into pixels, or "
        "pixels at once.",
    )
    teacher: str | None = Field(
        default=None,
        description="The vqgan whose codes are learned and whose decoder stage 2 begins with: a "
        "run of the model type vqgan, or the released file.",
    )
    teacher_precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="In which the teacher's codes are computed."
    )
    cache_teacher_ids: bool = Field(
        default=False,
        description="Keep the teacher's codes of each picture in memory, 2 bytes per patch and "
        "process; pays where pictures come again unchanged, without random crops and flips.",
    )
    vqgan: VqganNetworkConfig = Field(
        default=VqganNetworkConfig(), description="Sizes of the teacher; of a run they are read."
    )
    init_weight: str | None = Field(
        default=None,
        description="Weights to begin with: a run, a checkpoint, a published file or folder; "
        "stage 2 needs those of stage 1.",
    )
    losses: PixelLossConfig = Field(default=PixelLossConfig(), description="Losses.")
    codebook_alarm: CodebookAlarmConfig = Field(
        default=CodebookAlarmConfig(), description="When the codebook counts as collapsed."
    )

    @property
    def grid(self) -> int:
        """Patches along a side."""
        assert self.image_size is not None, "image_size is derived from the data"
        return self.image_size // self.patch_size

    @property
    def predicts_pixels(self) -> bool:
        """Whether losses are of pixels, not of the teacher's codes."""
        return self.stage == 2 or self.decoder_head == "pixel"

    @model_validator(mode="before")
    @classmethod
    def _named_sizes(cls, data: Any) -> Any:
        """`encoder: large`."""
        if not isinstance(data, dict):
            return data
        named = {k: data[k] for k in ("encoder", "decoder") if isinstance(data.get(k), str)}
        unknown = sorted(set(named.values()) - set(SIZES))
        if unknown:
            raise ValueError(f"no size {unknown[0]!r}: known are {', '.join(SIZES)}")
        return {**data, **{k: VitConfig.of(size).model_dump() for k, size in named.items()}}

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if (self.image_size or 0) % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size")
        if self.decoder_head == "pixel" and self.stage == 2:
            raise ValueError("decoder_head pixel draws pixels at once and has no stage 2")
        if self.quantizer.type == "kl" and self.decoder_head == "proxy":
            raise ValueError("quantizer.type kl needs decoder_head pixel")
        if self.decoder_head == "pixel" and self.losses.perceptual_loss == FEATURES:
            raise ValueError("losses.perceptual_loss vqgan needs decoder_head proxy: a teacher")
        return self


class TitokType(ModelType):
    """The model type `titok`."""

    name: ClassVar[str] = "titok"
    Config: ClassVar[type[ConfigModel]] = TitokConfig
    kinds: ClassVar[tuple[str, ...]] = ("images",)

    def derive(
        self, config: TitokConfig, data: "ImageDataConfig", info: Any
    ) -> tuple[TitokConfig, dict[str, str]]:
        """The teacher's sizes where it is a run, and the perceptual loss.

        Raises:
            UsageError: A teacher is needed and none is given, or a stage 1.
            DataError: The teacher is no vqgan.
        """
        del info
        check_required_weights(config)
        update, rules = derive_image_size(config, config.image_size, data)
        if config.predicts_pixels:
            otherwise = FEATURES if config.decoder_head == "proxy" else GRADIENTS
            update["losses"], why = with_perceptual(config.losses, otherwise)
            rules |= {"losses.perceptual_loss": why} if why else {}
        section = teacher_section(config)
        if section is not None:
            update["vqgan"] = section
            rules["vqgan"] = "sizes of the teacher"
        changed = config.model_copy(update=update)
        check_grid(changed)
        return changed, rules

    def build(self, config: TitokConfig) -> Mapping[str, Part]:
        """The tokenizer; in stage 1 its teacher, where pixels are drawn what their losses need."""
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
        """Weights to begin with, the teacher's, and those of the perceptual network.

        Raises:
            UsageError: Weights that are needed are not given.
            DataError: Weights are missing or do not fit.
        """
        from vlatool.models.titok.weights import load_titok
        from vlatool.models.vqgan.losses import load_perceptual
        from vlatool.models.vqgan.weights import load_vqgan

        check_required_weights(config)
        if "model" in names and config.init_weight:
            load_titok(parts["model"].module, config, config.init_weight)
        if "teacher" in names:
            assert config.teacher is not None
            load_vqgan(parts["teacher"].module, config.teacher)
        if "perceptual" in names:
            load_perceptual(config.losses, parts["perceptual"].module, config.teacher)

    def blocks(self, parts: Mapping[str, Part]) -> Sequence["nn.Module"]:
        """The transformer blocks, and the residual blocks of the pixel decoder."""
        from vlatool.models.titok.model import Block
        from vlatool.models.vqgan.model import ResidualBlock

        modules = parts["model"].module.modules()
        return [module for module in modules if isinstance(module, Block | ResidualBlock)]

    def objective(
        self, config: TitokConfig, data: Any, info: Any, parts: Mapping[str, Part]
    ) -> Objective:
        """Of codes in stage 1, of pixels elsewhere."""
        del data, info
        from vlatool.models.titok.objective import make_objective

        return make_objective(config, parts)

    def batcher(
        self, config: TitokConfig, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> "ImageBatcher":
        """Samples to tensors."""
        del data, assets, folder, training
        from vlatool.models.images import ImageBatcher

        assert config.image_size is not None
        return ImageBatcher(config.image_size, has_digests=config.cache_teacher_ids)

    def example(self, config: TitokConfig, data: Any, size: int) -> dict[str, Any]:
        """Smooth pictures."""
        del data
        from vlatool.models.images import example_images

        assert config.image_size is not None
        return example_images(config.image_size, size)


def check_required_weights(config: TitokConfig) -> None:
    """UsageError where weights that a stage rests on are not given: random ones teach nothing."""
    lacks: list[str] = []
    if config.decoder_head == "proxy" and config.teacher is None:
        lacks.append("teacher")
    if config.stage == 2 and config.init_weight is None:
        lacks.append("init_weight")
    if lacks:
        raise UsageError(
            f"stage {config.stage} needs {' and '.join(f'model.{name}' for name in lacks)}",
            hint="model.teacher is a run of a vqgan or its released file, model.init_weight of "
            "stage 2 a run of stage 1",
            code="usage.no_teacher" if lacks[0] == "teacher" else "usage.no_stage_1",
            details={"key": f"model.{lacks[0]}", "keys": [f"model.{name}" for name in lacks]},
        )


def check_grid(config: TitokConfig) -> None:
    """UsageError unless each patch stands for one code of the teacher."""
    if config.decoder_head == "proxy" and config.patch_size != config.vqgan.patch_size:
        raise UsageError(
            f"model.patch_size is {config.patch_size}, a code of the teacher stands for "
            f"{config.vqgan.patch_size} pixels",
            hint=f"set model.patch_size={config.vqgan.patch_size}, or take another teacher",
            code="usage.teacher_grid",
            details={"key": "model.patch_size"},
        )


def teacher_section(config: TitokConfig) -> VqganNetworkConfig | None:
    """The sizes of a teacher that is a run; None for a released file, or where there is none.

    Raises:
        DataError: Nothing is there, or it is no vqgan.
    """
    if config.teacher is None:
        return None
    from vlatool.models.vqgan.weights import vqgan_section

    section = vqgan_section(find_weights(config.teacher))
    if section is None:
        return None
    keys = VqganNetworkConfig.model_fields
    return VqganNetworkConfig.model_validate({k: v for k, v in section.items() if k in keys})
