"""A trained tokenizer on a device: pictures to codes and back, and what it wants of pictures.

Legend of shapes: B pictures, S side of a picture, K codes of a picture.
"""

import hashlib
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlatool.episode import Array, UInt8Array
from vlatool.errors import DataError
from vlatool.evaluation.coding_config import Precision
from vlatool.evaluation.stored_preprocessing import resize_rule
from vlatool.loading.images.config import ImagePreprocessing
from vlatool.loading.images.preprocessing import checked_image, prepare_image
from vlatool.models.images import to_float, to_uint8
from vlatool.models.titok.model import Titok
from vlatool.models.titok.spec import TitokConfig, VqConfig
from vlatool.models.titok.weights import open_titok

# Squared distances of unit vectors from pictures encoded in other company differ by far less: a
# few 1e-7 on a GPU, by nothing on a CPU (measured).
_NEAR_TIE = 1e-5
_STEP = "step_"
_CHECKPOINTS = "checkpoints"
_MOST_CODES = 2**16
# Beginnings of the names of weights that decide the codes.
_DECIDING = ("encoder.", "latent_tokens", "quantize.")


@dataclass(frozen=True)
class ImageRule:
    """What pictures must be; picklable.

    Attributes:
        size: S.
        resize: How others become so; None where they are refused.
    """

    size: int
    resize: ImagePreprocessing | None = None

    def apply(self, pixels: UInt8Array, name: str) -> UInt8Array:
        """The picture uint8 [S, S, 3].

        Raises:
            DataError: It is another one, and nothing says how it becomes so; names it.
        """
        checked = checked_image(pixels, name)
        if self.resize is not None:
            return prepare_image(checked, self.resize)
        if checked.shape[:2] != (self.size, self.size):
            height, width = checked.shape[:2]
            raise DataError(
                f"{name}: is {width}x{height}, the tokenizer takes {self.size}x{self.size}",
                hint="write the pictures in that size; this tokenizer comes with no rule by which "
                "others become so",
                code="data.picture_size",
                details={"picture": name, "size": [height, width], "wanted": self.size},
            )
        return checked


class Codes(NamedTuple):
    """Codes of some pictures.

    Attributes:
        values: int64 [B, K].
        alone: Pictures that were encoded again, alone, because of a near tie.
    """

    values: Array
    num_encoded_alone: int


class CodeMaker:
    """A tokenizer with a codebook, ready to encode.

    Attributes:
        name: What people call it.
        digest: Changes with what decides its codes; stages 1 and 2 of one tokenizer share it.
        config: Its sizes.
        rule: What it wants of pictures.
        picture_digest: Changes with any weight.
        device: Where it computes.
    """

    def __init__(
        self, name: str, config: TitokConfig, model: Titok, rule: ImageRule, device: torch.device
    ) -> None:
        self.name = name
        self.config = config
        self.rule = rule
        self.device = device
        self.digest = codes_digest(config, model)
        self.image_digest = weights_digest(model, self.digest, ("",))
        self._model = model.to(device).eval()

    @property
    def codebook_size(self) -> int:
        """Codes are below it."""
        assert isinstance(self.config.quantizer, VqConfig)
        return self.config.quantizer.codebook_size

    @property
    def has_decoder(self) -> bool:
        """Whether it makes pixels of codes; a first stage does not."""
        return self.config.predicts_pixels

    @torch.inference_mode()
    def codes(self, images: Tensor, precision: Precision = "fp32") -> Codes:
        """Codes of pictures uint8 [B, 3, S, S] on the device.

        In fp32 they depend on nothing but each picture: where two codes are almost equally near,
        rounding, which differs between batches of different sizes, might decide; such a picture
        is encoded again alone.
        """
        quantizer = self._model.quantize
        assert quantizer is not None
        pixels = to_float(images)
        if precision == "bf16":
            with torch.autocast(self.device.type, torch.bfloat16):
                features = self._model.encoder(pixels, self._model.latent_tokens)
            return Codes(quantizer.codes(features).cpu().numpy(), 0)
        with _true_float32(self.device):
            features = self._model.encoder(pixels, self._model.latent_tokens)
            found, is_near = quantizer.near_ties(features, _NEAR_TIE)
            alone = is_near.any(1).nonzero().flatten().tolist()
            for index in alone:
                found[index] = self._model.codes(pixels[index : index + 1])[0]
        return Codes(found.cpu().numpy(), len(alone))

    @torch.inference_mode()
    def decode(self, codes: Array) -> UInt8Array:
        """Pictures uint8 [B, S, S, 3] of codes int [B, K].

        Raises:
            DataError: They are out of range, or not K.
        """
        with _true_float32(self.device):
            return to_uint8(self._model.decode_codes(torch.from_numpy(codes).to(self.device)))

    def check_decoder(self) -> None:
        """DataError where it makes codes and draws no pixels."""
        if not self.has_decoder:
            raise DataError(
                f"{self.name}: is a first stage, which makes codes and draws no pixels",
                hint="give the run of its second stage",
                code="data.no_pixels",
            )

    def check_tokenizer_of(self, where: Path, how: Mapping[str, Any]) -> None:
        """DataError where codes are those of another tokenizer.

        Args:
            where: The codes.
            how: What is known of them, as `CodesManifest.how` tells it.
        """
        own = (self.config.num_latent_tokens, self.codebook_size)
        told = (how.get("codes_per_picture"), how.get("codebook_size"))
        if how.get("tokenizer_digest") in ("", None, self.digest) and told == own:
            return
        raise DataError(
            f"{where}: codes of the tokenizer {how.get('tokenizer') or 'unknown'} ({told[0]} of "
            f"{told[1]}), not of {self.name} ({own[0]} of {own[1]})",
            hint="decode with the tokenizer that made the codes",
            code="data.other_tokenizer",
            details={"path": str(where)},
        )


def open_code_maker(location: str, device: torch.device) -> CodeMaker:
    """The tokenizer behind a run, a checkpoint, a published folder or a file.

    Raises:
        DataError: There is none, it is damaged or half written, or it has no codebook.
    """
    config, model = open_titok(location)
    quantizer = config.quantizer
    if not isinstance(quantizer, VqConfig) or quantizer.codebook_size > _MOST_CODES:
        reason = (
            "makes continuous tokens" if not isinstance(quantizer, VqConfig) else "is too large"
        )
        raise DataError(
            f"{location}: {reason}, which are no codes",
            hint="give a tokenizer with quantizer.type vq of at most 65536 codes",
            code="data.no_codebook",
            details={"path": location},
        )
    assert config.image_size is not None
    rule = ImageRule(config.image_size, resize_rule(location, config.image_size))
    return CodeMaker(_name_of(location), config, model, rule, device)


def rank_device() -> torch.device:
    """The device of this process among those of its machine."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def codes_digest(config: TitokConfig, model: Titok) -> str:
    """SHA-256 of what decides the codes: encoder, latent tokens, codebook, and their layout."""
    keys = {"patch_size", "num_latent_tokens", "encoder", "latent_layout", "image_size"}
    told: dict[str, Any] = config.model_dump(mode="json", include=keys)
    assert isinstance(config.quantizer, VqConfig)
    told["use_l2_norm"] = config.quantizer.use_l2_norm
    return weights_digest(model, json.dumps(told, sort_keys=True), _DECIDING)


def weights_digest(model: Titok, told: str, prefixes: tuple[str, ...]) -> str:
    """SHA-256 of a text and of the weights whose names begin with one of some prefixes."""
    digest = hashlib.sha256(told.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            values = tensor.detach().float().cpu().contiguous().numpy()
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _name_of(location: str) -> str:
    """A run's name, whichever of its checkpoints was given."""
    place = Path(location.rstrip("/"))
    if place.name.startswith(_STEP) and place.parent.name == _CHECKPOINTS:
        place = place.parent.parent
    return place.resolve().name if place.name in ("", ".", "..") else place.name


@contextmanager
def _true_float32(device: torch.device) -> Generator[None]:
    """Products and convolutions in float32 all the way, whatever else this process does."""
    switches: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [one.allow_tf32 for one in switches]
    for one in switches:
        one.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for one, value in zip(switches, before, strict=True):
            one.allow_tf32 = value
