"""Vector quantization with a codebook, and metrics of the use of its codes.

Source: reference/titok 1.4.
Legend of shapes: B images, S side of an image, K vectors per image, N codes, D width of a code.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.errors import DataError
from vlatool.models.base import Codes, Precision, Reconstruction, Rng
from vlatool.models.images import to_float, to_uint8

_NORM_EPS = 1e-12
# Differences of squared distances of unit vectors change by less between batches of different
# sizes: by 1e-6 on a CPU (S-128, batches of 1, 5, 16), by a few 1e-7 on a GPU (measured). An image
# with a near tie costs one more pass of one image: a wider margin makes encoding slower.
_NEAR_TIE = 4e-6
# Temperature of the softmax over negative squared distances, for the entropy penalty.
_TEMPERATURE = 0.1


class QuantizerOutput(NamedTuple):
    """Output of a quantizer: the input of the decoder, and loss terms."""

    vectors: Tensor  # float32 [B, K, D]; straight-through gradients
    codes: Tensor  # int64 [B, K]; [B, 0] without a codebook
    penalty: Tensor  # loss term of the quantizer, scalar float32
    commitment: Tensor  # commitment loss, a part of `penalty`; detached
    inputs: Tensor  # vectors that were mapped to codes, float32 [B, K, D]; detached


@contextmanager
def true_float32(device: torch.device) -> Generator[None]:
    """Disables autocast and TF32 for matrix products and convolutions. With TF32 about one code in
    a thousand differs (reference/titok 1.4).
    """
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


class VectorQuantizer(nn.Module):
    """Maps each vector to its nearest code. Names of parameters are the published ones. The
    codebook is stored without normalization.
    """

    def __init__(
        self,
        size: int,  # number of codes, N
        width: int,  # width of a code, D
        *,
        l2_norm: bool = False,
        commitment_cost: float = 0.25,
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.l2_norm = l2_norm  # normalize vectors and codes to unit length
        self.commitment_cost = commitment_cost  # weight of the commitment loss
        self.entropy_weight = entropy_weight  # weight of `entropy_penalty`; published: 0
        self.embedding = nn.Embedding(size, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / size, 1.0 / size)

    @property
    def uses_global_batch(self) -> bool:
        """True if its loss needs the global batch, because it has the entropy of the mean
        assignment.
        """
        return self.entropy_weight > 0

    @property
    def size(self) -> int:
        return self.embedding.num_embeddings

    def forward(self, features: Tensor, mean_assignment: Tensor | None = None) -> QuantizerOutput:
        """Quantizes features [B, K, D]; the vectors have unit length with `l2_norm`; `features`:
        [B, K, D].
        """
        with true_float32(features.device):
            vectors = self._scaled(features.float())
            table = self._scaled(self.embedding.weight)
            codes = nearest(vectors.detach(), table.detach())
            quantized = functional.embedding(codes, table)
            commitment = self.commitment_cost * functional.mse_loss(quantized.detach(), vectors)
            codebook_loss = functional.mse_loss(quantized, vectors.detach())
            straight_through = vectors + (quantized - vectors).detach()
            penalty = commitment + codebook_loss
            if self.entropy_weight and self.training and vectors.requires_grad:
                entropy = entropy_penalty(vectors, table, mean_assignment)
                penalty = penalty + self.entropy_weight * entropy
        inputs = vectors.detach()
        return QuantizerOutput(straight_through, codes, penalty, commitment.detach(), inputs)

    def codes(self, features: Tensor) -> Tensor:
        """Returns the codes int64 [B, K] of features [B, K, D]."""
        with true_float32(features.device):
            vectors = self._scaled(features.float())
            return nearest(vectors, self._scaled(self.embedding.weight.float()))

    def assignment_sums(self, features: Tensor) -> Tensor:
        """Returns the sum of the soft assignments of features [B, K, D], float64 [N]. The sum of
        all elements is the number of vectors.
        """
        with true_float32(features.device):
            rows = self._scaled(features.float()).flatten(0, 1)
            logits = distances(rows, self._scaled(self.embedding.weight)) / -_TEMPERATURE
            return logits.softmax(1).sum(0, dtype=torch.float64)

    def near_ties(self, features: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """Returns the codes int64 [B, K], and a mask bool [B, K] of near ties. `features`: [B, K,
        D]. A near tie is a vector whose two nearest codes are at almost the same distance.
        """
        with true_float32(features.device):
            vectors = self._scaled(features.float()).flatten(0, 1)
            table = self._scaled(self.embedding.weight.float())
            closest = distances(vectors, table).topk(2, dim=1, largest=False)
            length = (vectors.square().sum(1) + table.square().sum(1).mean()) / 2
            is_near = closest.values[:, 1] - closest.values[:, 0] < margin * length
        shape = features.shape[:2]
        return closest.indices[:, 0].view(shape), is_near.view(shape)

    def lookup(self, codes: Tensor) -> Tensor:
        """Returns the vectors float32 [..., D] of codes int [...]."""
        check_codes(codes, self.size)
        return self._scaled(functional.embedding(codes.long(), self.embedding.weight.float()))

    def _scaled(self, values: Tensor) -> Tensor:
        return functional.normalize(values, dim=-1, eps=_NORM_EPS) if self.l2_norm else values


class CodeRevival(nn.Module):
    """Replaces dead codes, to which no vector was mapped for a number of steps.

    At every step one vector of each image, drawn at random, is a candidate for one code, drawn at
    random; a dead code with one candidate is replaced by it. It is a part beside the model, so that
    the weights of the model keep the published names.
    """

    idle: Tensor  # int64 [N], steps since each code was used or replaced

    def __init__(self, size: int, after: int) -> None:
        super().__init__()
        self.after = after  # number of steps without use after which a code is dead
        self.register_buffer("idle", torch.zeros(size, dtype=torch.int64))

    def candidates(self, vectors: Tensor, rng: Rng) -> Tensor:
        """Returns the sum of the candidates of each code and their number, float64 [N, D + 1];
        `vectors`: vectors of a micro-batch, [B, K, D].
        """
        size = len(self.idle)
        number = vectors.shape[1]
        width = vectors.shape[2]
        chosen = rng.integers(number)
        codes = rng.integers(size)
        rows = vectors[torch.arange(len(vectors), device=vectors.device), chosen].double()
        counted = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
        total = torch.zeros(size, width + 1, dtype=torch.float64, device=vectors.device)
        return total.index_add_(0, codes, counted)

    def update(self, table: Tensor, counts: Tensor, candidates: Tensor, ok: Tensor) -> None:
        """Counts for each code the steps without use, and replaces dead codes.

        `table`: weights of the codebook [N, D], sharded or not, which are changed; `counts`: number
        of vectors of the step that were mapped to each code, [N]; `candidates`: [N, D + 1],
        summed over all micro-batches and ranks; the last column counts them, and 1 is used.
        """
        # Takes 0.4 s, and only training needs it.
        from torch.distributed.tensor import DTensor, distribute_tensor

        idle = torch.where(counts > 0, 0, self.idle + 1)
        is_replaced = ok & (idle >= self.after) & (candidates[:, -1] == 1)
        idle = torch.where(is_replaced, 0, idle)
        self.idle.copy_(torch.where(ok, idle, self.idle))
        rows = candidates[:, :-1].to(table.dtype)
        mask = is_replaced.to(table.dtype)[:, None].expand_as(rows).contiguous()
        if isinstance(table, DTensor):
            mesh = table.device_mesh
            placements = table.placements
            rows, mask = (distribute_tensor(x, mesh, placements).to_local() for x in (rows, mask))
            table = table.to_local()
        table.copy_(torch.where(mask > 0, rows, table))


class CodebookTokenizer:
    """Visual tokenizer of a network with a quantizer; a `tokenizer.VisualTokenizer`."""

    def __init__(
        self,
        network: Any,
        *,
        image_size: int,
        codes_per_image: int,
        code_options: str,  # text of the options that determine the codes
        code_weights: tuple[str, ...],  # prefixes of the names of weights that determine the codes
    ) -> None:
        # network with the method `features`, from pixels [B, 3, S, S] to features [B, K, D], the
        # method `decode_codes`, and the module `quantize`; None without codes. Its output has
        # `pixels` and `codes`
        self.network = network
        self.has_decoder = True
        self.image_size = image_size  # S
        self.codes_per_image = codes_per_image  # K
        self.codebook_size = 0 if network.quantize is None else network.quantize.size
        self._options = code_options
        self._weights = code_weights

    @property
    def digest(self) -> str:
        """SHA-256 of everything that determines the codes."""
        return self._code_digest

    @cached_property
    def _code_digest(self) -> str:
        return weights_digest(self.network, self._options, self._weights)

    @property
    def decoder_digest(self) -> str:
        """SHA-256 of all weights; computed at each call."""
        return weights_digest(self.network, self.digest, ("",))

    @torch.inference_mode()
    def encode(self, images: Tensor, precision: Precision = "fp32") -> Codes:
        """Codes of images uint8 [B, S, S, 3].

        In fp32 the codes of an image do not depend on its batch. If two codes are almost equally
        near, rounding could pick either, depending on the batch size; such an image is encoded
        again alone.
        """
        quantizer: VectorQuantizer = self.network.quantize
        pixels = to_float(images.permute(0, 3, 1, 2))
        if precision == "bf16":
            with torch.autocast(images.device.type, torch.bfloat16):
                return Codes(quantizer.codes(self.network.features(pixels)))
        with true_float32(images.device):
            values, is_near = quantizer.near_ties(self.network.features(pixels), _NEAR_TIE)
            ties = is_near.any(1).nonzero().flatten().tolist()
            for index in ties:
                features = self.network.features(pixels[index : index + 1])
                values[index] = quantizer.codes(features)[0]
        return Codes(values, len(ties))

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Images uint8 [B, S, S, 3] of codes int [B, K]."""
        with true_float32(codes.device):
            return to_uint8(self.network.decode_codes(codes)).permute(0, 2, 3, 1)

    def reconstructor(self) -> Callable[[Tensor], Reconstruction]:
        """Function that reconstructs images uint8 [B, S, S, 3], in float32."""

        @torch.inference_mode()
        def reconstruct(images: Tensor) -> Reconstruction:
            with true_float32(images.device):
                pixels, codes = self._reconstructed(to_float(images.permute(0, 3, 1, 2)))
            return Reconstruction(pixels, codes if self.codebook_size else None)

        return reconstruct

    def _reconstructed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [B, 3, S, S], not clamped, and codes [B, K] of the same images."""
        output = self.network(pixels)
        return output.pixels, output.codes


def weights_digest(network: nn.Module, text: str, prefixes: tuple[str, ...]) -> str:
    """SHA-256 of `text` and of the weights with names that start with one of `prefixes`."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(network.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(f"{name} {list(tensor.shape)}\n".encode())
            values = tensor.detach().float().cpu().contiguous().numpy()
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """Returns the nearest row of `table` [N, D] for each of `vectors` [..., D]: int64 [...]."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    return distances(rows, table).argmin(dim=1).view(vectors.shape[:-1])


def distances(rows: Tensor, table: Tensor) -> Tensor:
    """Returns the squared distances [M, N] between rows [M, D] and the rows of `table` [N, D]."""
    lengths = rows.square().sum(1, keepdim=True) + table.square().sum(1)
    return torch.addmm(lengths, rows, table.t(), alpha=-2.0)


def entropy_penalty(vectors: Tensor, table: Tensor, mean: Tensor | None = None) -> Tensor:
    """Mean entropy of the soft assignments of `vectors` [..., D], minus the entropy of their mean.

    `table`: codes [N, D]; `mean`: mean assignment of the global batch, [N], without gradient; None:
    of these vectors.

    It is small if each vector is assigned to one code, and all codes are used equally often.

    Let p(k) be the mean of these vectors and P(k) the mean of the global batch. The second term is
    sum p log P. Its mean over micro-batches, weighted by their vectors, is sum P log P, and the
    gradients agree, because the gradient of sum P is 0.
    """
    rows = vectors.reshape(-1, vectors.shape[-1])
    logits = distances(rows, table) / -_TEMPERATURE
    probabilities = logits.softmax(1)
    logs = logits.log_softmax(1)
    own = probabilities.mean(0)
    reference = own if mean is None else mean.to(own.dtype)
    return -(probabilities * logs).sum(1).mean() + (own * reference.clamp(min=1e-12).log()).sum()


def check_codes(codes: Tensor, size: int) -> None:
    """Raises a DataError if a code is not an integer in [0, size)."""
    is_integer = not codes.is_floating_point() and codes.dtype != torch.bool
    low, high = (int(codes.min()), int(codes.max())) if is_integer and codes.numel() else (0, 0)
    if not is_integer or low < 0 or high >= size:
        actual = f"codes are {low} to {high}" if is_integer else f"codes have dtype {codes.dtype}"
        raise DataError(
            f"{actual}, but the codebook has codes 0 to {size - 1}",
            hint="decode with the tokenizer that encoded the images",
            code="data.mismatch",
            details={"low": low, "high": high, "size": size},
        )


def histogram(codes: Tensor, size: int) -> Tensor:
    """Number of occurrences of each code, float32 [size]."""
    flat = codes.reshape(-1)
    ones = torch.ones_like(flat, dtype=torch.float32)
    return torch.zeros(size, device=codes.device).scatter_add_(0, flat, ones)


def difference_sums(codes: Tensor) -> dict[str, Tensor]:
    """Number of codes [B, K] that differ from the previous image, and number of compared codes."""
    differing = (codes[1:] != codes[:-1]).sum()
    return {"codes_differing": differing, "codes_compared": differing.new_tensor(codes[1:].numel())}


def usage_metrics(counts: Tensor) -> Mapping[str, float]:
    """Metrics that tell how evenly a codebook is used.

    `counts`: number of occurrences of each code, float [N]; returns codebook_usage: Fraction of
    codes that occurred. dead_codes: Number of codes that did not occur. codebook_perplexity:
    Exponential of the entropy of the code frequencies. codebook_evenness: Perplexity divided by the
    largest possible one, which is the smaller of N and the number of occurrences.
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
