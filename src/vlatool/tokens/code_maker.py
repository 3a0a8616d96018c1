"""Trained visual tokenizer on a device: images to codes and back, and the image size it takes.

Legend of shapes: B images, S side of an image in pixels, K codes of an image.
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
from vlatool.loading.images.config import ImagePreprocessing, checked_image, prepare_image
from vlatool.models.images import to_float, to_uint8
from vlatool.models.titok.model import Titok
from vlatool.models.titok.spec import TitokConfig, VqConfig
from vlatool.models.titok.weights import open_titok
from vlatool.tokens.config import Precision
from vlatool.tokens.stored_preprocessing import resize_rule

# Squared distances of unit vectors differ by far less between batches of different sizes: by a
# few 1e-7 on a GPU, by nothing on a CPU (measured).
_NEAR_TIE = 1e-5
_STEP = "step_"
_CHECKPOINTS = "checkpoints"
_MAX_CODES = 2**16
# Prefixes of the names of weights that determine the codes.
_CODE_WEIGHTS = ("encoder.", "latent_tokens", "quantize.")


@dataclass(frozen=True)
class ImageRule:
    """Image size of a tokenizer and the preprocessing that produces it; picklable.

    Attributes:
        size: S.
        resize: Preprocessing of images of other sizes; None if they are rejected.
    """

    size: int
    resize: ImagePreprocessing | None = None

    def apply(self, pixels: UInt8Array, name: str) -> UInt8Array:
        """Image uint8 [S, S, 3], resized if the tokenizer has a stored preprocessing.

        Raises:
            DataError: The image has another size and there is no preprocessing; names the image.
        """
        checked = checked_image(pixels, name)
        if self.resize is not None:
            return prepare_image(checked, self.resize)
        if checked.shape[:2] != (self.size, self.size):
            height, width = checked.shape[:2]
            raise DataError(
                f"{name}: image is {width}x{height}, the tokenizer expects {self.size}x{self.size}",
                hint="resize the images first: this tokenizer has no stored preprocessing",
                code="data.picture_size",
                details={"picture": name, "size": [height, width], "wanted": self.size},
            )
        return checked


class Codes(NamedTuple):
    """Codes of a batch of images.

    Attributes:
        values: int64 [B, K].
        num_encoded_alone: Images that were encoded a second time, alone, because of a near tie.
    """

    values: Array
    num_encoded_alone: int


class CodeMaker:
    """Visual tokenizer with a codebook, ready to encode.

    Attributes:
        name: Name in reports.
        digest: Digest of all that determines the codes; stages 1 and 2 of a tokenizer share it.
        config: Sizes of the network.
        rule: Image size and preprocessing.
        image_digest: Digest of all weights.
        device: Device of the network.
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
        """Number of codes; each code is below it."""
        assert isinstance(self.config.quantizer, VqConfig)
        return self.config.quantizer.codebook_size

    @property
    def has_decoder(self) -> bool:
        """True if codes can be decoded to pixels; a first stage has no decoder."""
        return self.config.predicts_pixels

    @torch.inference_mode()
    def codes(self, images: Tensor, precision: Precision = "fp32") -> Codes:
        """Codes of images uint8 [B, 3, S, S] on the device.

        In fp32 the codes of an image do not depend on its batch. Where two codes are almost
        equally near, rounding, which differs between batch sizes, could pick either; such an image
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
            values, is_near = quantizer.near_ties(features, _NEAR_TIE)
            ties = is_near.any(1).nonzero().flatten().tolist()
            for index in ties:
                values[index] = self._model.codes(pixels[index : index + 1])[0]
        return Codes(values.cpu().numpy(), len(ties))

    @torch.inference_mode()
    def decode(self, codes: Array) -> UInt8Array:
        """Images uint8 [B, S, S, 3] of codes int [B, K].

        Raises:
            DataError: A code is out of range, or there are not K of them.
        """
        with _true_float32(self.device):
            return to_uint8(self._model.decode_codes(torch.from_numpy(codes).to(self.device)))

    def check_decoder(self) -> None:
        """Raises DataError if the tokenizer has no decoder."""
        if not self.has_decoder:
            raise DataError(
                f"{self.name}: is a first stage, which encodes images but cannot decode codes",
                hint="give the run of its second stage",
                code="data.no_pixels",
            )

    def check_tokenizer_of(self, location: Path, metadata: Mapping[str, Any]) -> None:
        """Raises DataError if codes were made by another tokenizer.

        Args:
            location: Folder of the codes.
            metadata: Their metadata, as `CodesManifest.encoding_info` returns it.
        """
        own = (self.config.num_latent_tokens, self.codebook_size)
        stored = (metadata.get("codes_per_picture"), metadata.get("codebook_size"))
        if metadata.get("tokenizer_digest") in ("", None, self.digest) and stored == own:
            return
        raise DataError(
            f"{location}: codes of the tokenizer {metadata.get('tokenizer') or 'unknown'} "
            f"({stored[0]} codes per image, codebook of {stored[1]}), not of {self.name} "
            f"({own[0]} codes per image, codebook of {own[1]})",
            hint="decode with the tokenizer that made the codes",
            code="data.other_tokenizer",
            details={"path": str(location)},
        )


def open_code_maker(location: str, device: torch.device) -> CodeMaker:
    """Loads the tokenizer of a run, a checkpoint, a published folder or a file.

    Raises:
        DataError: There is none, it is damaged or incomplete, or it has no codebook.
    """
    config, model = open_titok(location)
    quantizer = config.quantizer
    if not isinstance(quantizer, VqConfig) or quantizer.codebook_size > _MAX_CODES:
        reason = (
            "the tokenizer makes continuous tokens, not codes"
            if not isinstance(quantizer, VqConfig)
            else f"the codebook has {quantizer.codebook_size} codes, more than {_MAX_CODES}"
        )
        raise DataError(
            f"{location}: {reason}",
            hint=f"give a tokenizer with quantizer.type vq and at most {_MAX_CODES} codes",
            code="data.no_codebook",
            details={"path": location},
        )
    assert config.image_size is not None
    rule = ImageRule(config.image_size, resize_rule(location, config.image_size))
    return CodeMaker(_name_of(location), config, model, rule, device)


def rank_device() -> torch.device:
    """Device of this process: the GPU with its local rank, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def codes_digest(config: TitokConfig, model: Titok) -> str:
    """SHA-256 of all that determines the codes: encoder, latent tokens, codebook, their layout."""
    keys = {"patch_size", "num_latent_tokens", "encoder", "latent_layout", "image_size"}
    options: dict[str, Any] = config.model_dump(mode="json", include=keys)
    assert isinstance(config.quantizer, VqConfig)
    options["use_l2_norm"] = config.quantizer.use_l2_norm
    return weights_digest(model, json.dumps(options, sort_keys=True), _CODE_WEIGHTS)


def weights_digest(model: Titok, text: str, prefixes: tuple[str, ...]) -> str:
    """SHA-256 of `text` and of the weights whose names start with one of `prefixes`."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            values = tensor.detach().float().cpu().contiguous().numpy()
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _name_of(location: str) -> str:
    """Last name of a location; of a checkpoint, the name of its run."""
    path = Path(location.rstrip("/"))
    if path.name.startswith(_STEP) and path.parent.name == _CHECKPOINTS:
        path = path.parent.parent
    return path.resolve().name if path.name in ("", ".", "..") else path.name


@contextmanager
def _true_float32(device: torch.device) -> Generator[None]:
    """Disables TF32 and autocast for matrix products and convolutions in the block."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
