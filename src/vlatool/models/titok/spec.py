"""The model type `titok`; no torch. Source: reference/titok 1, 3, 4, 7.2."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlatool.config.base import ConfigModel
from vlatool.errors import UsageError
from vlatool.models.base import Objective, Part
from vlatool.models.published import Exported, Layout, PublishedFiles, PublishedModel, WeightsOrigin
from vlatool.models.titok.config import TitokConfig
from vlatool.models.titok.published import teacher_section
from vlatool.models.vqgan.config import FEATURES, GRADIENTS, derive_image_size, with_perceptual
from vlatool.models.vqgan.spec import ImageTokenizerType

if TYPE_CHECKING:
    from torch import nn

    from vlatool.events import Reporter
    from vlatool.loading.images.config import ImageDataConfig
    from vlatool.models.images import ImageBatcher
    from vlatool.models.published import Trained
    from vlatool.models.titok.model import TitokTokenizer


class TitokLayout(Layout):
    """A configuration and a file of weights, or the file alone."""

    def write(self, trained: "Trained", tree: Mapping[str, Any], reporter: "Reporter") -> Exported:
        from vlatool.models.titok.weights import prepare_export

        return prepare_export(trained, reporter)

    def recognize(self, location: Path) -> PublishedFiles | None:
        """Returns the files of a folder, or a file alone."""
        from vlatool.models.titok.published import find_published

        return find_published(location) or (
            PublishedFiles(location) if location.is_file() else None
        )

    def open(self, files: PublishedFiles, path: Path) -> PublishedModel:
        from vlatool.models.titok.weights import open_published

        return open_published(files, path)


class TitokType(ImageTokenizerType):
    name: ClassVar[str] = "titok"
    Config: ClassVar[type[ConfigModel]] = TitokConfig
    methods: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("assignment_sums",)}
    layout: ClassVar[Layout] = TitokLayout()

    def derive(
        self, config: TitokConfig, data: "ImageDataConfig", info: Any
    ) -> tuple[TitokConfig, dict[str, str]]:
        """Fills in image size, perceptual loss, and sizes of a teacher that is a run."""
        check_required_weights(config, needs_init=False)
        update, rules = derive_image_size(config, config.image_size, config.patch_size, data)
        if config.predicts_pixels:
            default = FEATURES if config.decoder_head == "proxy" else GRADIENTS
            update["losses"], rule = with_perceptual(config.losses, default)
            if rule:
                rules["losses.perceptual_loss"] = rule
        section = teacher_section(config)
        if section is not None:
            update["vqgan"] = section
            rules["vqgan"] = "sizes of the teacher"
        derived = config.model_copy(update=update)
        check_grid(derived)
        return derived, rules

    def build(self, config: TitokConfig) -> Mapping[str, Part]:
        """The tokenizer, and the teacher (proxy head of stage 1) or the networks of the losses."""
        from vlatool.models.titok.model import Titok, TitokBlock
        from vlatool.models.vqgan.losses import buffer_parts, loss_parts
        from vlatool.models.vqgan.model import ResidualBlock, Vqgan

        model = Titok(config)
        model.freeze_tokens(frozen=config.stage == 2)
        blocks: list[nn.Module] = []
        for module in model.modules():
            if isinstance(module, TitokBlock | ResidualBlock):
                blocks.append(module)
        parts = {"model": Part(model, blocks=blocks)}
        if config.predicts_pixels:
            parts |= loss_parts(config.losses, config.vqgan)
        else:
            teacher = Vqgan(config.vqgan)
            parts["teacher"] = Part(teacher, trained=False, averaged=False, saved=False)
        codebook_size = 0 if model.quantize is None else model.quantize.size
        parts |= buffer_parts(config.losses, config.image_size, codebook_size, config.revive_after)
        return parts

    def load(self, config: TitokConfig, parts: Mapping[str, Part], names: Sequence[str]) -> None:
        from vlatool.models.vqgan.losses import load_perceptual
        from vlatool.models.vqgan.model import load_vqgan

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
        """Loads the weights of a tokenizer; stage 2 takes weights of stage 1 or 2."""
        from vlatool.models.titok.weights import load_titok

        load_titok(parts["model"].module, config, init.text, init_except)

    def objective(
        self, config: TitokConfig, data: Any, info: Any, parts: Mapping[str, Part]
    ) -> Objective:
        """Returns the objective: teacher codes (proxy, stage 1) or pixels."""
        from vlatool.models.titok.objective import make_objective

        return make_objective(config, parts)

    def batcher(
        self, config: TitokConfig, data: Any, assets: Any, folder: Path | None, *, training: bool
    ) -> "ImageBatcher":
        from vlatool.models.images import ImageBatcher

        assert config.image_size is not None
        return ImageBatcher(config.image_size, has_digests=config.cache_teacher_ids)

    def build_for_inference(self, config: TitokConfig) -> Mapping[str, Part]:
        """The tokenizer without the networks of its losses."""
        from vlatool.models.titok.model import Titok

        return {"model": Part(Titok(config))}

    def tokenizer(
        self, config: TitokConfig, parts: Mapping[str, "nn.Module"], assets: Any
    ) -> "TitokTokenizer":
        from vlatool.models.titok.model import TitokTokenizer

        network: Any = parts["model"]
        return TitokTokenizer(config, network)


def check_required_weights(config: TitokConfig, *, needs_init: bool) -> None:
    """Raises a UsageError if the weights of the teacher or of stage 1 are not configured."""
    has_teacher = config.decoder_head != "proxy" or config.teacher is not None
    missing = [*([] if has_teacher else ["model.teacher"]), *(["init_from"] if needs_init else [])]
    if missing:
        raise UsageError(
            f"stage {config.stage} requires {' and '.join(missing)}",
            hint="add --model.teacher LOCATION, a run of `vlatool tokenizer train --preset "
            "vqgan-tiny` or the published file; for stage 2 also --init-from, a run of stage 1",
            code="usage.missing_key" if has_teacher else "usage.unsupported",
            details={"key": missing[0], "keys": missing},
        )


def check_grid(config: TitokConfig) -> None:
    """Raises a UsageError if the patches do not correspond to the codes of the teacher."""
    if config.decoder_head == "proxy" and config.patch_size != config.vqgan.patch_size:
        raise UsageError(
            f"model.patch_size is {config.patch_size}, but the teacher has one code per "
            f"{config.vqgan.patch_size} x {config.vqgan.patch_size} pixels",
            hint=f"set model.patch_size={config.vqgan.patch_size}, or use another teacher",
            code="usage.bad_value",
            details={"key": "model.patch_size"},
        )
