"""TiTok as a visual tokenizer.

Legend of shapes: B images, S side of an image in pixels, K codes of an image.
"""

import json
from collections.abc import Callable
from typing import Any

from torch import Tensor

from vlatool.errors import DataError, UsageError
from vlatool.events import counted
from vlatool.models.codebook import CodebookTokenizer
from vlatool.models.titok.config import TitokConfig, VqConfig
from vlatool.models.titok.model import Titok
from vlatool.models.tokenizer import Reconstruction
from vlatool.models.trained import as_config_error, existing_weights
from vlatool.models.vqgan.config import VqganNetworkConfig
from vlatool.models.vqgan.model import Vqgan
from vlatool.models.vqgan.weights import open_vqgan

# Prefixes of the names of weights that determine the codes.
_CODE_WEIGHTS = ("encoder.", "latent_tokens", "quantize.")


class TitokTokenizer(CodebookTokenizer):
    """Visual tokenizer of a config and its network; stages 1 and 2 have the same digest."""

    def __init__(self, config: TitokConfig, network: Titok) -> None:
        assert config.image_size is not None
        super().__init__(
            network,
            image_size=config.image_size,
            codes_per_image=config.num_latent_tokens,
            code_options=_code_options(config),
            code_weights=_CODE_WEIGHTS,
        )
        self.has_decoder = config.predicts_pixels
        self._config = config
        self._teacher: Vqgan | None = None

    def reconstructor(self) -> Callable[[Tensor], Reconstruction]:
        """Function that reconstructs images; the teacher decodes the codes of a first stage."""
        if not self.has_decoder:
            device = self.network.latent_tokens.device
            self._teacher = _open_teacher(self._config).to(device).eval()
        return super().reconstructor()

    def _reconstructed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self._teacher is None:
            return super()._reconstructed(pixels)
        output = self.network(pixels)
        return self._teacher.decode_codes(output.logits.argmax(1)), output.codes


def _code_options(config: TitokConfig) -> str:
    """Options that determine the codes, as JSON."""
    keys = {"patch_size", "num_latent_tokens", "encoder", "latent_layout", "image_size"}
    options: dict[str, Any] = config.model_dump(mode="json", include=keys)
    if isinstance(config.quantizer, VqConfig):
        options["use_l2_norm"] = config.quantizer.use_l2_norm
    return json.dumps(options, sort_keys=True)


def _open_teacher(config: TitokConfig) -> Vqgan:
    if config.teacher is None:
        raise UsageError(
            "the tokenizer is a first stage, which predicts codes of its teacher and has no "
            "decoder",
            hint="give the teacher with --teacher, or the run of stage 2",
            code="usage.no_teacher",
        )
    origin = existing_weights(config.teacher)
    section = origin.section or {}
    keys = {k: v for k, v in section.items() if k in VqganNetworkConfig.model_fields}
    with as_config_error(origin):
        network = VqganNetworkConfig.model_validate(keys) if keys else config.vqgan
    if network.codebook_size != config.vqgan.codebook_size:
        raise DataError.at(
            config.teacher,
            f"has {counted(network.codebook_size, 'code')}, the tokenizer predicts codes of "
            f"a teacher with {config.vqgan.codebook_size}",
            hint="give the teacher that the tokenizer was trained with",
            code="data.checkpoint_mismatch",
        )
    return open_vqgan(network, config.teacher)
