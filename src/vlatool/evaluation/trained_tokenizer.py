"""A tokenizer of pictures from a run, a checkpoint, a published folder or a file, to be measured.

Legend of shapes: B pictures, S their size, K codes of a picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vlatool.errors import DataError, UsageError
from vlatool.evaluation.image_quality import to_uint8
from vlatool.evaluation.reconstruction import CodeShape, Reconstruction
from vlatool.evaluation.stored_preprocessing import read_preprocessing
from vlatool.loading.images.config import ImagePreprocessing
from vlatool.models.codebook import no_tf32
from vlatool.models.foreign import ForeignWeights, as_config_error, find_weights
from vlatool.models.images import to_float
from vlatool.models.titok.model import Titok
from vlatool.models.titok.spec import TitokConfig, VqConfig
from vlatool.models.titok.weights import open_titok
from vlatool.models.vqgan.model import Vqgan
from vlatool.models.vqgan.spec import VqganConfig, VqganNetworkConfig
from vlatool.models.vqgan.weights import load_vqgan

# Pixels [B, 3, S, S] to pixels, not clamped, and codes int64 [B, K].
Draw = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainedTokenizer:
    """Draws pictures again; see `measuring.Tokenizer`.

    Attributes:
        path: The file of its weights.
        size: S.
        codes: None without a codebook.
        preprocessing: How pictures become those it learned from; without chance.
    """

    path: Path
    size: int
    codes: CodeShape | None
    preprocessing: ImagePreprocessing
    _draw: Draw

    def __call__(self, images: Tensor, /) -> Reconstruction:
        """Of pictures uint8 [B, 3, S, S], on its device; in true float32."""
        with no_tf32(images.device):
            pixels, codes = self._draw(to_float(images))
        return Reconstruction(to_uint8(pixels), None if self.codes is None else codes)


def open_tokenizer(
    location: str, device: torch.device, teacher: str | None = None
) -> TrainedTokenizer:
    """Loads a tokenizer, or a vqgan of a run.

    Args:
        location: A run, a checkpoint of one, a published folder, or a file of weights.
        device: Where it computes.
        teacher: What draws the codes that a first stage predicts; by default the run's own.

    Raises:
        UsageError: It is a first stage, and nothing draws its codes.
        DataError: There is none, or weights and configuration do not fit together.
    """
    found = find_weights(location)
    if (found.section or {}).get("type") == "vqgan":
        return _vqgan(found, location, device)
    config, model = open_titok(location)
    draw = model.to(device)
    size = _size(config.image_size, found)
    codes = None
    if isinstance(config.quantizer, VqConfig):
        codes = CodeShape(config.quantizer.codebook_size, config.num_latent_tokens)
    run: Draw = _drawing(draw)
    if not config.predicts_pixels:
        run = _predicting(draw, _teacher(config, location, teacher).to(device))
    return TrainedTokenizer(found.path, size, codes, read_preprocessing(location, size), run)


def _vqgan(found: ForeignWeights, location: str, device: torch.device) -> TrainedTokenizer:
    with as_config_error(found):
        config = VqganConfig.model_validate(found.section)
    model = Vqgan(config)
    load_vqgan(model, location)
    size = _size(config.image_size, found)
    codes = CodeShape(config.codebook_size, (size // config.patch_size) ** 2)
    run = _drawing(model.to(device).eval())
    return TrainedTokenizer(found.path, size, codes, read_preprocessing(location, size), run)


def _drawing(model: nn.Module) -> Draw:
    def draw(pixels: Tensor) -> tuple[Tensor, Tensor]:
        drawn = model(pixels)
        return drawn.pixels, drawn.codes

    return draw


def _predicting(model: Titok, teacher: Vqgan) -> Draw:
    """The likeliest codes of the teacher, as it draws them."""

    def draw(pixels: Tensor) -> tuple[Tensor, Tensor]:
        predicted = model(pixels)
        return teacher.decode_codes(predicted.logits.argmax(1)), predicted.codes

    return draw


def _teacher(config: TitokConfig, location: str, given: str | None) -> Vqgan:
    origin = given or config.teacher
    if origin is None:
        raise UsageError(
            f"{location}: is a first stage, which predicts codes of its teacher and draws no "
            "pixels",
            hint="give the teacher with --teacher, or the run of stage 2",
            code="usage.no_teacher",
            details={"path": location},
        )
    found = find_weights(origin)
    section = found.section or {}
    keys = {k: v for k, v in section.items() if k in VqganNetworkConfig.model_fields}
    with as_config_error(found):
        network = VqganNetworkConfig.model_validate(keys) if keys else config.vqgan
    if network.codebook_size != config.vqgan.codebook_size:
        raise DataError(
            f"{origin}: has {network.codebook_size} codes, {location} predicts those of a teacher "
            f"with {config.vqgan.codebook_size}",
            hint="give the teacher that it learned from",
            code="data.checkpoint_mismatch",
            details={"path": origin},
        )
    model = Vqgan(network)
    load_vqgan(model, origin)
    return model.eval()


def _size(image_size: int | None, found: ForeignWeights) -> int:
    if image_size is None:
        raise DataError(
            f"{found.origin}: does not say how large its pictures are",
            hint="write dataset.preprocessing.crop_size into its config.yaml",
            code="data.picture_size",
            details={"path": found.origin},
        )
    return image_size
