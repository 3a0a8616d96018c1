"""Visual tokenizer without weights: a color per block of pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

from vlatool.evaluation.image_metrics import block_means
from vlatool.models.base import Codes, Precision, Reconstruction, VisualTokenizer


class BlocksTokenizer(VisualTokenizer):
    """Reconstructs an image as its blocks in their mean color; codes are coarse red values."""

    def __init__(self, size: int, edge: int) -> None:
        self.image_size, self.codes_per_image, self.codebook_size = size, (size // edge) ** 2, 8
        self._edge = edge

    @property
    def digest(self) -> str:
        return f"blocks of {self._edge}"

    def encode(self, images: Tensor, precision: Precision = "fp32") -> Codes:
        del precision
        return Codes(self.blocks(images.permute(0, 3, 1, 2)).codes)  # pyright: ignore[reportArgumentType] - it has codes

    def decode(self, codes: Tensor) -> Tensor:
        side = self.image_size // self._edge
        reds = (codes.view(-1, side, side) * 32 + 16).to(torch.uint8)
        images = reds.repeat_interleave(self._edge, 1).repeat_interleave(self._edge, 2)
        return images[..., None].expand(-1, -1, -1, 3)

    def blocks(self, images: Tensor) -> Reconstruction:
        """Reconstruction of images uint8 [B, 3, S, S]."""
        blocks = block_means(images, self._edge)
        codes = blocks[:, 0, :: self._edge, :: self._edge].flatten(1).long() // 32
        return Reconstruction(blocks.float() / 255, codes)

    def reconstructor(self) -> Callable[[Tensor], Reconstruction]:
        return lambda images: self.blocks(images.permute(0, 3, 1, 2))
