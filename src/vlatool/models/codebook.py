"""Vectors to the nearest of a table of codes, and whether the table is used.

Source: reference/titok 1.4. Legend of shapes: B pictures, K vectors of a picture, N codes, D width of a code.
"""

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.errors import DataError

_NORM_EPS = 1e-12
# Squared distance over which a code loses most of its share, in the entropy of shares.
_TEMPERATURE = 0.1


class QuantizerOutput(NamedTuple):
    """What stands between encoder and decoder.

    Attributes:
        vectors: float32 [B, K, D]; gradients pass straight through.
        codes: int64 [B, K]; [B, 0] where there is no codebook.
        penalty: What the loss adds for them, scalar float32.
        commitment: The encoder's share of it, detached.
    """

    vectors: Tensor
    codes: Tensor
    penalty: Tensor
    commitment: Tensor


@contextmanager
def no_tf32(device: torch.device) -> Generator[None]:
    """Within it float32 is computed in float32: no autocast, no TF32.

    With TF32 about one id in a thousand is another one (reference/titok 1.4).
    """
    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        products.allow_tf32 = before


class VectorQuantizer(nn.Module):
    """The nearest code of each vector; names as published. The table is stored un-normalised.

    Args:
        size: N.
        width: D.
        l2_norm: Unit vectors are compared.
        commitment_cost: Weight of staying near a code.
        entropy_weight: Of choosing clearly, and all codes alike over a micro-batch; published: 0.
    """

    def __init__(
        self,
        size: int,
        width: int,
        *,
        l2_norm: bool = False,
        commitment_cost: float = 0.25,
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.l2_norm = l2_norm
        self.commitment_cost = commitment_cost
        self.entropy_weight = entropy_weight
        self.embedding = nn.Embedding(size, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / size, 1.0 / size)

    @property
    def size(self) -> int:
        """N."""
        return self.embedding.num_embeddings

    def forward(self, features: Tensor) -> QuantizerOutput:
        """Of features [B, K, D]; both sides are unit vectors with `l2_norm`."""
        with no_tf32(features.device):
            given, table = self._scaled(features.float()), self._scaled(self.embedding.weight)
            codes = nearest(given.detach(), table.detach())
            chosen = functional.embedding(codes, table)
            commitment = self.commitment_cost * functional.mse_loss(chosen.detach(), given)
            moved = functional.mse_loss(chosen, given.detach())
            straight = given + (chosen - given).detach()
            penalty = commitment + moved
            if self.entropy_weight and self.training:
                penalty = penalty + self.entropy_weight * entropy_penalty(given, table)
        return QuantizerOutput(straight, codes, penalty, commitment.detach())

    def codes(self, features: Tensor) -> Tensor:
        """Codes int64 [B, K] of features [B, K, D]."""
        with no_tf32(features.device):
            given = self._scaled(features.float())
            return nearest(given, self._scaled(self.embedding.weight.float()))

    def near_ties(self, features: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """Codes as `codes`, and whether another was almost as near: int64 and bool [B, K].

        Args:
            features: [B, K, D].
            margin: Of squared distances, as a share of the mean squared length of both sides.
        """
        with no_tf32(features.device):
            given = self._scaled(features.float()).flatten(0, 1)
            table = self._scaled(self.embedding.weight.float())
            found = distances(given, table).topk(2, dim=1, largest=False)
            length = (given.square().sum(1) + table.square().sum(1).mean()) / 2
            is_near = found.values[:, 1] - found.values[:, 0] < margin * length
        shape = features.shape[:2]
        return found.indices[:, 0].view(shape), is_near.view(shape)

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors float32 [..., D] of codes int [...].

        Raises:
            DataError: A code is out of range.
        """
        check_codes(codes, self.size)
        return self._scaled(functional.embedding(codes.long(), self.embedding.weight.float()))

    def _scaled(self, values: Tensor) -> Tensor:
        return functional.normalize(values, dim=-1, eps=_NORM_EPS) if self.l2_norm else values


def nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """The row of `table` [N, D] that is nearest to each of `vectors` [..., D]: int64 [...]."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    return distances(rows, table).argmin(dim=1).view(vectors.shape[:-1])


def distances(rows: Tensor, table: Tensor) -> Tensor:
    """Squared distances [M, N] of rows [M, D] from those of `table` [N, D]."""
    lengths = rows.square().sum(1, keepdim=True) + table.square().sum(1)
    return torch.addmm(lengths, rows, table.t(), alpha=-2.0)


def entropy_penalty(vectors: Tensor, table: Tensor) -> Tensor:
    """Mean entropy of the codes' shares in each of `vectors` [..., D], less that of their mean.

    Small where each vector chooses clearly and all vectors together choose all codes alike.
    """
    rows = vectors.reshape(-1, vectors.shape[-1])
    logits = distances(rows, table) / -_TEMPERATURE
    shares, logs = logits.softmax(1), logits.log_softmax(1)
    mean = shares.mean(0)
    return -(shares * logs).sum(1).mean() + (mean * mean.clamp(min=1e-12).log()).sum()


def check_codes(codes: Tensor, size: int) -> None:
    """DataError unless all codes are integers in [0, size)."""
    is_whole = not codes.is_floating_point() and codes.dtype != torch.bool
    low, high = (int(codes.min()), int(codes.max())) if is_whole and codes.numel() else (0, 0)
    if not is_whole or low < 0 or high >= size:
        found = f"codes from {low} to {high}" if is_whole else f"codes as {codes.dtype}"
        raise DataError(
            f"{found}, the codebook has 0 to {size - 1}",
            hint="decode with the tokenizer that made the codes",
            code="data.code_out_of_range",
            details={"low": low, "high": high, "size": size},
        )


def histogram(codes: Tensor, size: int) -> Tensor:
    """How often each code occurs: float32 [size]."""
    flat = codes.reshape(-1)
    ones = torch.ones_like(flat, dtype=torch.float32)
    return torch.zeros(size, device=codes.device).scatter_add_(0, flat, ones)


def difference_sums(codes: Tensor) -> dict[str, Tensor]:
    """How many codes [B, K] differ from those of the picture before, and of how many."""
    differing = (codes[1:] != codes[:-1]).sum()
    return {"codes_differing": differing, "codes_compared": differing.new_tensor(codes[1:].numel())}


def usage_metrics(counts: Tensor) -> Mapping[str, float]:
    """How well a codebook is used, from how often each code occurred.

    Returns:
        usage, the share of codes that occurred; dead_codes, how many did not; perplexity, the
        number of equally frequent codes that would be as varied, and its share of what so many
        codes could reach.
    """
    total = float(counts.sum())
    shares = counts[counts > 0] / max(total, 1.0)
    perplexity = math.exp(float(-(shares * shares.log()).sum()))
    used = int((counts > 0).sum())
    return {
        "codebook_usage": used / len(counts),
        "dead_codes": float(len(counts) - used),
        "codebook_perplexity": perplexity,
        "codebook_evenness": perplexity / max(min(len(counts), total), 1.0),
    }
