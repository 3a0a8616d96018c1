"""Grids of the past images: how strongly each is compressed, by its age. No torch.

Legend: V views (cameras) of a step, P past images in the order of samples: by time, and within a
step by camera. Source: reference/future-vla-model 1.1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Sides of the three grids of patches, as divisors of the side of the grid of DINOv3: oldest steps
# first. Source: reference/future-vla-model 2.1.
REDUCTIONS = (4, 2, 1)


@dataclass(frozen=True)
class FrameGrid:
    """Grid of each past image of a sample."""

    views: int  # V
    compress: tuple[int, int, int]  # number of steps of each level, the oldest steps first
    patches: int  # patches per side of an image, before the convolutions
    merge: int  # patches per side that become one token of the language model

    def __post_init__(self) -> None:
        for steps, side in zip(self.compress, self._level_sides(), strict=True):
            if steps and side % self.merge:
                raise ValueError(
                    f"images of {self.patches} x {self.patches} patches are compressed to {side} x "
                    f"{side}, which cannot be merged in squares of {self.merge} x {self.merge}"
                )

    @property
    def images(self) -> int:
        """Number of past images, P."""
        return self.views * sum(self.compress)

    @property
    def patch_sides(self) -> tuple[int, ...]:
        """Patches per side of each of P images, after the convolutions."""
        levels = zip(self.compress, self._level_sides(), strict=True)
        return tuple(side for steps, side in levels for _ in range(steps * self.views))

    @property
    def token_sides(self) -> tuple[int, ...]:
        """Tokens of the language model per side of each of P images."""
        return tuple(side // self.merge for side in self.patch_sides)

    @property
    def tokens(self) -> int:
        """Tokens of all images, without those around each image."""
        return sum(side * side for side in self.token_sides)

    def _level_sides(self) -> Iterator[int]:
        """Patches per side of each level; each halving rounds up, as its convolution does."""
        yield from (-(-self.patches // stride) for stride in REDUCTIONS)


def image_positions(sides: Sequence[int]) -> int:
    """Positions that images of these token sides take, each with the two tokens around it."""
    return sum(side + 2 for side in sides)
