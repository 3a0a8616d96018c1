"""Visual tokenizer of a run, a checkpoint, a published folder or a file, for evaluation.

Legend of shapes: B images, S side of an image in pixels, K codes of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vlatool.errors import DataError, UsageError
from vlatool.evaluation.image_quality import to_uint8
from vlatool.evaluation.reconstruction import CodeShape, Reconstruction
from vlatool.loading.images.config import ImagePreprocessing
from vlatool.models.codebook import true_float32
from vlatool.models.foreign import ForeignWeights, as_config_error, find_weights
from vlatool.models.images import to_float
from vlatool.models.titok.model import Titok
from vlatool.models.titok.spec import TitokConfig, VqConfig
from vlatool.models.titok.weights import open_titok
from vlatool.models.vqgan.model import Vqgan
from vlatool.models.vqgan.spec import VqganConfig, VqganNetworkConfig
from vlatool.models.vqgan.weights import load_vqgan
from vlatool.tokens.stored_preprocessing import read_preprocessing

# Pixels [B, 3, S, S] to reconstructed pixels, not clamped, and codes int64 [B, K].
Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainedTokenizer:
    """Visual tokenizer that reconstructs images; a `measuring.PixelTokenizer`.

    Attributes:
        path: File of the weights.
        size: S.
        codes: Numbers of codes; None without a codebook.
        preprocessing: Preprocessing of its training without the random part.
    """

    path: Path
    size: int
    codes: CodeShape | None
    preprocessing: ImagePreprocessing
    _reconstruct_images: Reconstruct

    def __call__(self, images: Tensor, /) -> Reconstruction:
        """Reconstructs images uint8 [B, 3, S, S] on its device, in float32 without TF32."""
        with true_float32(images.device):
            pixels, codes = self._reconstruct_images(to_float(images))
        return Reconstruction(to_uint8(pixels), None if self.codes is None else codes)


def open_tokenizer(
    location: str, device: torch.device, teacher: str | None = None
) -> TrainedTokenizer:
    """Loads a tokenizer, or the vqgan of a run.

    Args:
        location: A run, a checkpoint of one, a published folder, or a file of weights.
        device: Device of the tokenizer.
        teacher: Teacher that decodes the codes predicted by a first stage; None: that of the run.

    Raises:
        UsageError: The tokenizer is a first stage, and there is no teacher.
        DataError: There is no tokenizer, or its weights do not match its configuration.
    """
    weights = find_weights(location)
    if (weights.section or {}).get("type") == "vqgan":
        return _vqgan(weights, location, device)
    config, model = open_titok(location)
    model = model.to(device)
    size = _size(config.image_size, weights)
    codes = None
    if isinstance(config.quantizer, VqConfig):
        codes = CodeShape(config.quantizer.codebook_size, config.num_latent_tokens)
    run: Reconstruct = _reconstructor(model)
    if not config.predicts_pixels:
        run = _teacher_reconstructor(model, _teacher(config, location, teacher).to(device))
    return TrainedTokenizer(weights.path, size, codes, read_preprocessing(location, size), run)


def _vqgan(weights: ForeignWeights, location: str, device: torch.device) -> TrainedTokenizer:
    with as_config_error(weights):
        config = VqganConfig.model_validate(weights.section)
    model = Vqgan(config)
    load_vqgan(model, location)
    size = _size(config.image_size, weights)
    codes = CodeShape(config.codebook_size, (size // config.patch_size) ** 2)
    run = _reconstructor(model.to(device).eval())
    return TrainedTokenizer(weights.path, size, codes, read_preprocessing(location, size), run)


def _reconstructor(model: nn.Module) -> Reconstruct:
    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = model(pixels)
        return output.pixels, output.codes

    return run


def _teacher_reconstructor(model: Titok, teacher: Vqgan) -> Reconstruct:
    """Decodes the most probable codes of the teacher by the teacher."""

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        output = model(pixels)
        return teacher.decode_codes(output.logits.argmax(1)), output.codes

    return run


def _teacher(config: TitokConfig, location: str, requested: str | None) -> Vqgan:
    path = requested or config.teacher
    if path is None:
        raise UsageError(
            f"{location}: is a first stage, which predicts codes of its teacher and has no decoder",
            hint="give the teacher with --teacher, or the run of stage 2",
            code="usage.no_teacher",
            details={"path": location},
        )
    weights = find_weights(path)
    section = weights.section or {}
    keys = {k: v for k, v in section.items() if k in VqganNetworkConfig.model_fields}
    with as_config_error(weights):
        network = VqganNetworkConfig.model_validate(keys) if keys else config.vqgan
    if network.codebook_size != config.vqgan.codebook_size:
        raise DataError(
            f"{path}: has {network.codebook_size} codes, {location} predicts codes of a teacher "
            f"with {config.vqgan.codebook_size}",
            hint="give the teacher that the tokenizer was trained with",
            code="data.checkpoint_mismatch",
            details={"path": path},
        )
    model = Vqgan(network)
    load_vqgan(model, path)
    return model.eval()


def _size(image_size: int | None, weights: ForeignWeights) -> int:
    if image_size is None:
        raise DataError(
            f"{weights.origin}: the image size is missing",
            hint="write dataset.preprocessing.crop_size into its config.yaml",
            code="data.picture_size",
            details={"path": weights.origin},
        )
    return image_size
