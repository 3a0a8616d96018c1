"""Vector quantization with a codebook, and metrics of the use of its codes.

Source: reference/titok 1.4.
Legend of shapes: B images, K vectors per image, N codes, D width of a code.
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
# Temperature of the softmax over negative squared distances, for the entropy penalty.
_TEMPERATURE = 0.1


class QuantizerOutput(NamedTuple):
    """Output of a quantizer: the input of the decoder, and loss terms.

    Attributes:
        vectors: float32 [B, K, D]; straight-through gradients.
        codes: int64 [B, K]; [B, 0] without a codebook.
        penalty: Loss term of the quantizer, scalar float32.
        commitment: Commitment loss, a part of `penalty`; detached.
    """

    vectors: Tensor
    codes: Tensor
    penalty: Tensor
    commitment: Tensor


@contextmanager
def no_tf32(device: torch.device) -> Generator[None]:
    """Disables autocast and TF32 for matrix products.

    With TF32 about one code in a thousand differs (reference/titok 1.4).
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        matmul.allow_tf32 = before


class VectorQuantizer(nn.Module):
    """Maps each vector to its nearest code.

    Names of parameters are the published ones. The codebook is stored without normalization.

    Args:
        size: Number of codes, N.
        width: Width of a code, D.
        l2_norm: Normalize vectors and codes to unit length.
        commitment_cost: Weight of the commitment loss.
        entropy_weight: Weight of `entropy_penalty`; published: 0.
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
        """Number of codes."""
        return self.embedding.num_embeddings

    def forward(self, features: Tensor) -> QuantizerOutput:
        """Quantizes features [B, K, D]; the vectors have unit length with `l2_norm`."""
        with no_tf32(features.device):
            vectors, table = self._scaled(features.float()), self._scaled(self.embedding.weight)
            codes = nearest(vectors.detach(), table.detach())
            quantized = functional.embedding(codes, table)
            commitment = self.commitment_cost * functional.mse_loss(quantized.detach(), vectors)
            codebook_loss = functional.mse_loss(quantized, vectors.detach())
            straight_through = vectors + (quantized - vectors).detach()
            penalty = commitment + codebook_loss
            if self.entropy_weight and self.training:
                penalty = penalty + self.entropy_weight * entropy_penalty(vectors, table)
        return QuantizerOutput(straight_through, codes, penalty, commitment.detach())

    def codes(self, features: Tensor) -> Tensor:
        """Returns the codes int64 [B, K] of features [B, K, D]."""
        with no_tf32(features.device):
            vectors = self._scaled(features.float())
            return nearest(vectors, self._scaled(self.embedding.weight.float()))

    def near_ties(self, features: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """Returns the codes int64 [B, K], and a mask bool [B, K] of near ties.

        A near tie is a vector whose two nearest codes are at almost the same distance.

        Args:
            features: [B, K, D].
            margin: Difference of squared distances of a near tie, as a fraction of the mean of the
                squared lengths of vector and codes.
        """
        with no_tf32(features.device):
            vectors = self._scaled(features.float()).flatten(0, 1)
            table = self._scaled(self.embedding.weight.float())
            closest = distances(vectors, table).topk(2, dim=1, largest=False)
            length = (vectors.square().sum(1) + table.square().sum(1).mean()) / 2
            is_near = closest.values[:, 1] - closest.values[:, 0] < margin * length
        shape = features.shape[:2]
        return closest.indices[:, 0].view(shape), is_near.view(shape)

    def lookup(self, codes: Tensor) -> Tensor:
        """Returns the vectors float32 [..., D] of codes int [...].

        Raises:
            DataError: A code is out of range.
        """
        check_codes(codes, self.size)
        return self._scaled(functional.embedding(codes.long(), self.embedding.weight.float()))

    def _scaled(self, values: Tensor) -> Tensor:
        return functional.normalize(values, dim=-1, eps=_NORM_EPS) if self.l2_norm else values


def nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """Returns the nearest row of `table` [N, D] for each of `vectors` [..., D]: int64 [...]."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    return distances(rows, table).argmin(dim=1).view(vectors.shape[:-1])


def distances(rows: Tensor, table: Tensor) -> Tensor:
    """Returns the squared distances [M, N] between rows [M, D] and those of `table` [N, D]."""
    lengths = rows.square().sum(1, keepdim=True) + table.square().sum(1)
    return torch.addmm(lengths, rows, table.t(), alpha=-2.0)


def entropy_penalty(vectors: Tensor, table: Tensor) -> Tensor:
    """Mean entropy of the soft assignments of `vectors` [..., D], minus the entropy of their mean.

    It is small if each vector is assigned to one code, and all codes are used equally often.
    """
    rows = vectors.reshape(-1, vectors.shape[-1])
    logits = distances(rows, table) / -_TEMPERATURE
    probabilities, logs = logits.softmax(1), logits.log_softmax(1)
    mean = probabilities.mean(0)
    return -(probabilities * logs).sum(1).mean() + (mean * mean.clamp(min=1e-12).log()).sum()


def check_codes(codes: Tensor, size: int) -> None:
    """Raises a DataError if a code is not an integer in [0, size)."""
    is_integer = not codes.is_floating_point() and codes.dtype != torch.bool
    low, high = (int(codes.min()), int(codes.max())) if is_integer and codes.numel() else (0, 0)
    if not is_integer or low < 0 or high >= size:
        actual = f"codes are {low} to {high}" if is_integer else f"codes have dtype {codes.dtype}"
        raise DataError(
            f"{actual}, the codebook has codes 0 to {size - 1}",
            hint="decode with the tokenizer that encoded the images",
            code="data.code_out_of_range",
            details={"low": low, "high": high, "size": size},
        )


def histogram(codes: Tensor, size: int) -> Tensor:
    """Number of occurrences of each code, float32 [size]."""
    flat = codes.reshape(-1)
    ones = torch.ones_like(flat, dtype=torch.float32)
    return torch.zeros(size, device=codes.device).scatter_add_(0, flat, ones)


def difference_sums(codes: Tensor) -> dict[str, Tensor]:
    """Number of codes [B, K] that differ from those of the previous image, and of all compared."""
    differing = (codes[1:] != codes[:-1]).sum()
    return {"codes_differing": differing, "codes_compared": differing.new_tensor(codes[1:].numel())}


def usage_metrics(counts: Tensor) -> Mapping[str, float]:
    """Metrics of the use of a codebook.

    Args:
        counts: Number of occurrences of each code, float [N].

    Returns:
        codebook_usage: Fraction of codes that occurred.
        dead_codes: Number of codes that did not occur.
        codebook_perplexity: Exponential of the entropy of the code frequencies.
        codebook_evenness: Perplexity divided by the largest possible one, which is the smaller of
            N and the number of occurrences.
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
