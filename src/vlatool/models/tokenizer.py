"""Opens visual tokenizers, which turn images into codes and back. Does not import torch.

Legend of shapes: B images, S side of an image in pixels, K codes of an image.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.loading.images.config import ImagePreprocessing, checked_image, prepare_image
from vlatool.models.base import VisualTokenizer
from vlatool.models.published import Trained
from vlatool.models.trained import open_trained

if TYPE_CHECKING:
    from torch import device

_MAX_CODES = 2**16


@dataclass(frozen=True)
class ImageRule:
    """Image size of a tokenizer and the preprocessing that produces it; picklable."""

    size: int  # S
    # preprocessing of images of other sizes; None if they are rejected
    resize: ImagePreprocessing | None = None

    def apply(self, pixels: UInt8Array, name: str) -> UInt8Array:
        """Image uint8 [S, S, 3]; resized if the preprocessing is stored with the tokenizer."""
        checked = checked_image(pixels, name)
        if self.resize is not None:
            return prepare_image(checked, self.resize)
        if checked.shape[:2] != (self.size, self.size):
            height, width = checked.shape[:2]
            raise DataError(
                f"{name}: image is {width}x{height}, the tokenizer expects {self.size}x{self.size}",
                hint="resize the images first: no preprocessing is stored with this tokenizer",
                code="data.mismatch",
                details={"picture": name, "size": [height, width], "wanted": self.size},
            )
        return checked


@dataclass(frozen=True)
class OpenTokenizer:
    """Trained visual tokenizer on a device."""

    network: VisualTokenizer
    trained: Trained  # weights it was opened from
    device: "device"  # device of the network
    preprocessing: ImagePreprocessing  # preprocessing of its training without the random part
    rule: ImageRule  # rule for images to encode

    @property
    def name(self) -> str:
        return self.trained.origin.name

    @property
    def path(self) -> Path:
        return self.trained.origin.path

    def check_codebook(self) -> None:
        """Raises DataError if images cannot be encoded to codes of 16 bits."""
        size = self.network.codebook_size
        if 0 < size <= _MAX_CODES:
            return
        reason = f"the codebook has {size} codes, but at most {_MAX_CODES} are possible"
        location = self.trained.origin.text
        raise DataError.at(
            location,
            reason if size else "the tokenizer makes continuous tokens, not codes",
            hint=f"give a tokenizer with quantizer.type vq and at most {_MAX_CODES} codes",
            code="data.missing",
        )

    def check_decoder(self) -> None:
        if not self.network.has_decoder:
            raise DataError(
                f"{self.name}: is a first stage, which can encode images, but not decode codes",
                hint="give the run of the second stage",
                code="data.missing",
            )

    def check_tokenizer_of(self, location: Path, metadata: Mapping[str, Any]) -> None:
        own = (self.network.codes_per_image, self.network.codebook_size)
        stored = (metadata.get("codes_per_picture"), metadata.get("codebook_size"))
        has_digest = metadata.get("tokenizer_digest") not in ("", None)
        is_other = has_digest and metadata["tokenizer_digest"] != self.network.digest
        if stored == own and not is_other:
            return
        raise DataError.at(
            location,
            f"codes of the tokenizer {metadata.get('tokenizer') or 'unknown'} ({stored[0]} codes "
            f"per image, codebook of {stored[1]}), not of {self.name} ({counted(own[0], 'code')} "
            f"per image, codebook of {own[1]})",
            hint="decode with the tokenizer that encoded the images",
            code="data.mismatch",
        )


def rank_device(index: int | None = None) -> "device":
    """The GPU with an index, or the CPU; `index`: None for the local rank of this process."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    if index is None:
        index = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", index % torch.cuda.device_count())


def open_tokenizer(
    location: str, device: "device", changes: Mapping[str, Any] | None = None
) -> OpenTokenizer:
    """Opens the visual tokenizer of a run, a checkpoint, a published folder or a file."""
    trained = open_trained(location, device=device, changes=changes)
    model_type = trained.model_type
    network = model_type.tokenizer(trained.config.model, trained.parts, trained.assets)
    if network is None:
        raise DataError.at(
            location,
            f"the model type {model_type.name!r} is not a visual tokenizer",
            hint="give the run of a visual tokenizer, such as titok",
            code="data.missing",
        )
    preprocessing: ImagePreprocessing = trained.assets.preprocessing
    if preprocessing.crop_size != network.image_size:
        raise DataError.at(
            location,
            f"the stored preprocessing is wrong: crop_size is {preprocessing.crop_size}, but the "
            f"tokenizer takes {network.image_size}",
            hint="copy the preprocessing from the original run, or download the tokenizer again",
            code="data.broken",
        )
    plain = preprocessing.without_randomness()
    resizes = "resize_shorter_edge" in preprocessing.model_fields_set
    rule = ImageRule(network.image_size, plain if resizes else None)
    return OpenTokenizer(network, trained, device, plain, rule)
