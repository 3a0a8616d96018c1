"""Random numbers per sample, independent of how the global batch is split.

Source: reference/training 5.3.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlatool.models.base import Rng

# Number of rows that are drawn at once. A rank draws the rows of other ranks in its chunks too; the
# cost is small compared to a network.
CHUNK = 64

_DROPOUTS = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout),
)


@dataclass(frozen=True)
class _Chunk:
    """A chunk of the global batch: its generator, its size, and the rows that are used."""

    generator: torch.Generator
    size: int
    rows: list[int]


class Distributions:
    """The methods of `models.base.Rng`, from one method that draws a row per sample."""

    def normal(self, *shape: int) -> Tensor:
        """Returns samples of the standard normal distribution, float32 [B, *shape]."""
        return self._draw(torch.randn, (), shape)

    def uniform(self, *shape: int) -> Tensor:
        """Returns samples of the uniform distribution over [0, 1), float32 [B, *shape]."""
        return self._draw(torch.rand, (), shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Returns uniform integers in [0, high), int64 [B, *shape]."""
        return self._draw(torch.randint, (high,), shape)

    def _draw(
        self, function: Callable[..., Tensor], bounds: tuple[int, ...], shape: tuple[int, ...]
    ) -> Tensor:
        """Calls a sampling function of torch with `bounds`; returns rows [B, *shape]."""
        raise NotImplementedError


class PerSampleRng(Distributions):
    """Draws random numbers for chunks of the global batch, and returns the rows of one micro-batch.

    All micro-batches of a step start with generators in the same state, so the n-th call draws the
    same numbers in each of them. Row numbers of `total` and above wrap around: a dummy micro-batch
    may have more rows than the global batch.
    """

    def __init__(
        self, seeded: Callable[[int], torch.Generator], rows: Sequence[int], total: int
    ) -> None:
        self._chunks: list[_Chunk] = []
        for number, rows_of_chunk in _by_chunk([row % total for row in rows]):
            size = min(CHUNK, total - number * CHUNK)
            self._chunks.append(_Chunk(seeded(number), size, rows_of_chunk))

    def _draw(
        self, function: Callable[..., Tensor], bounds: tuple[int, ...], shape: tuple[int, ...]
    ) -> Tensor:
        values: list[Tensor] = []
        for chunk in self._chunks:
            device = chunk.generator.device
            size = (chunk.size, *shape)
            drawn = function(*bounds, size, generator=chunk.generator, device=device)
            values.append(drawn[_selection(chunk.rows, device)])
        return values[0] if len(values) == 1 else torch.cat(values)


class SeededRng(Distributions):
    """Random numbers of a batch. Each row has its own generator on the CPU, so on every device a
    row depends only on its seed and the number of the call.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device

    def _draw(
        self, function: Callable[..., Tensor], bounds: tuple[int, ...], shape: tuple[int, ...]
    ) -> Tensor:
        rows = [function(*bounds, shape, generator=rng) for rng in self._generators]
        return torch.stack(rows).to(self._device)


class InputNoise(nn.Module):
    """Normal noise on inputs in training mode, drawn by the generators of the samples."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = std  # standard deviation; 0: no noise

    def forward(self, values: Tensor, rng: Rng | None, repeats: int = 1) -> Tensor:
        """Adds noise to values [B * repeats, ...], where `rng` draws B rows."""
        if not self.training or self.std == 0:
            return values
        assert rng is not None, "input noise needs the generators of the samples"
        noise = rng.normal(repeats, *values.shape[1:]).flatten(0, 1)
        return values + (noise * self.std).to(values)


class SampleDropout(nn.Module):
    """Dropout in training mode, whose masks are drawn by the generators of the samples. Masks are
    drawn outside of blocks, which the backward pass may recompute.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share  # probability that an element becomes zero

    def mask(self, like: Tensor, rng: Rng | None, repeats: int = 1) -> Tensor | None:
        """Mask bool of the shape of `like` [B * repeats, ...], true for the elements that stay;
        returns the mask; None if all elements stay.
        """
        if not self.training or self.share == 0:
            return None
        assert rng is not None, "dropout needs the generators of the samples"
        return (rng.uniform(repeats, *like.shape[1:]) >= self.share).flatten(0, 1)

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Sets elements outside of the mask to zero and scales the others; same mean."""
        return values if mask is None else values * mask / (1 - self.share)


def draws_by_micro_batch(network: nn.Module) -> bool:
    """True if a network in training mode draws from the global generator of torch, for example by
    dropout inside an attention kernel. Such draws depend on the micro-batches.
    """
    return any(_global_dropout(module) > 0 for module in network.modules())


def computes_by_global_batch(network: nn.Module) -> bool:
    """True if a trained module has a loss term that is not a mean over samples; its attribute
    `uses_global_batch` is then true.
    """
    for module in network.modules():
        if not getattr(module, "uses_global_batch", False):
            continue
        if any(parameter.requires_grad for parameter in module.parameters()):
            return True
    return False


def _global_dropout(module: nn.Module) -> float:
    """Dropout of a layer of torch or transformers; 0 for other modules. Attention layers keep the
    number that they pass to the kernel.
    """
    if isinstance(module, _DROPOUTS):
        return module.p
    shares = [value for name, value in vars(module).items() if "drop" in name]
    return max((share for share in shares if isinstance(share, float)), default=0.0)


def _by_chunk(rows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    group: list[int] = []
    number = -1
    for row in rows:
        if row // CHUNK != number and group:
            yield number, group
            group = []
        number = row // CHUNK
        group.append(row % CHUNK)
    if group or not rows:
        yield max(number, 0), group


def _selection(rows: list[int], device: torch.device) -> slice | Tensor:
    """Index of the rows; a slice, which does not copy, if they are evenly spaced."""
    stride = max(1, rows[1] - rows[0]) if len(rows) > 1 else 1
    if not rows:
        return slice(0)
    if rows == list(range(rows[0], rows[-1] + 1, stride)):
        return slice(rows[0], rows[-1] + 1, stride)
    return torch.tensor(rows, dtype=torch.int64).to(device)
