"""Network, visual tokenizer and losses of `tests.builders.toy_tokenizer`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.models.base import Codes, Loss, Objective, OptimizerSpec, Precision, VisualTokenizer

LEVELS, CODES = 8, 4


class Levels(nn.Module):
    """Brightness of each code."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(LEVELS, 1)
        nn.init.zeros_(self.table.weight)

    def forward(self, codes: Tensor) -> Tensor:
        return 10 * self.table(codes).squeeze(-1)


class ToyTokenizer(VisualTokenizer):
    codes_per_image = CODES
    codebook_size = LEVELS

    def __init__(self, network: nn.Module, size: int) -> None:
        self.network, self.image_size = network, size

    @property
    def digest(self) -> str:
        return f"toy-{self.image_size}"

    def encode(self, images: Tensor, precision: Precision = "fp32") -> Codes:
        del precision
        return Codes((quadrants(images) * LEVELS).long().clamp(max=LEVELS - 1))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        side = self.image_size // 2
        gray = (self.network(codes.long()).clamp(0, 1) * 255).round().to(torch.uint8)
        square = gray.unflatten(1, (2, 2)).repeat_interleave(side, 1).repeat_interleave(side, 2)
        return square[..., None].expand(-1, -1, -1, 3).contiguous()


class Brightness(Objective):
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",))}

    def loss(self, optimizer: str, batch: dict[str, Any], ctx: Any) -> Loss:
        target = quadrants(batch["images"])
        codes = (target * LEVELS).long().clamp(max=LEVELS - 1)
        error = (ctx.parts["model"](codes) - target).square().sum()
        return Loss(error, error.new_tensor(float(len(target))))


def quadrants(images: Tensor) -> Tensor:
    """Mean brightness in [0, 1] of each quadrant of images uint8 [B, S, S, 3]: [B, 4]."""
    gray = images.float().mean(3, keepdim=True).permute(0, 3, 1, 2) / 255
    return nn.functional.adaptive_avg_pool2d(gray, 2).flatten(1)
