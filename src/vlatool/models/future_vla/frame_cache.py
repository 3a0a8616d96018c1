"""Caches the tokens of past images, so each image is computed only once per grid.

At the next step of a robot most images are the same, and so are their tokens, because no operation
before the language model mixes images. Source: reference/future-vla-model 4.

Legend of shapes: B observations, N past images, T image tokens of an observation, t image tokens of
one image, D number of deepstack features, C width, G side of the grid of DINOv3.
"""

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vlatool.episode import UInt8Array
from vlatool.models.future_vla.model import FutureVla

# Images computed at once, filled up: the bits of an image must not depend on the others, and the
# shapes of a call change them.
_AT_ONCE = 8
# Images in the cache; one of 256 x 256 has about 4 MB in the published network.
_MAX_IMAGES = 512
_DIGEST_BYTES = 16

# An image with the number of its grid.
_Framed = tuple[bytes, int]
_Key = TypeVar("_Key", bound=Hashable)


class FrameCache:
    """Cache of the tokens of images by their content; the result does not depend on it."""

    def __init__(self, network: FutureVla) -> None:
        self._network = network  # in eval mode; its weights must not change
        self._maps: OrderedDict[bytes, Tensor] = OrderedDict()  # features of DINOv3
        self._tokens: OrderedDict[_Framed, Tensor] = OrderedDict()
        self._grids: list[int] = []  # number of the grid of each past image
        for grid, count in enumerate(network.config.frames):
            self._grids += [grid] * count

    def features(self, images: UInt8Array) -> Tensor:
        """Returns the tokens of observations, [B, 1 + D, T, C], as `embed_images` does.

        Args:
            images: uint8 [B, N, H, W, 3], oldest step first.
        """
        pixels: dict[bytes, UInt8Array] = {}
        rows: list[list[_Framed]] = []
        for observation in images:
            row: list[_Framed] = []
            for image, grid in zip(observation, self._grids, strict=True):
                digest = _digest(image)
                pixels[digest] = image
                row.append((digest, grid))
            rows.append(row)
        framed = list(dict.fromkeys(key for row in rows for key in row))
        missing = [key for key in framed if key not in self._tokens]
        if missing:
            self._compute_tokens(missing, pixels)
        tokens = _recent(self._tokens, framed)
        return torch.stack([torch.cat([tokens[key] for key in row], dim=1) for row in rows])

    def _compute_tokens(self, keys: Sequence[_Framed], pixels: Mapping[bytes, UInt8Array]) -> None:
        """Puts tokens [1 + D, t, C] into the cache."""
        digests = list(dict.fromkeys(digest for digest, _ in keys))
        missing = [digest for digest in digests if digest not in self._maps]
        if missing:
            self._compute_maps(missing, pixels)
        maps = _recent(self._maps, digests)
        num_grids = len(self._network.config.compress)
        for grid in range(num_grids):
            digests = [digest for digest, grid_of_key in keys if grid_of_key == grid]
            for part in _parts(digests):
                filled = torch.stack([maps[digest] for digest in _filled(part)])
                grids = [filled[:0]] * num_grids
                grids[grid] = filled
                computed = self._network.visual(grids)[grid]
                for row, digest in enumerate(part):
                    self._tokens[digest, grid] = computed[row]

    def _compute_maps(self, digests: Sequence[bytes], pixels: Mapping[bytes, UInt8Array]) -> None:
        """Puts features of DINOv3 [C, G, G] into the cache."""
        device = self._network.head_weight.device
        for part in _parts(digests):
            stacked = np.stack([pixels[digest] for digest in _filled(part)])
            features = self._network.image_features(torch.from_numpy(stacked).to(device))
            for row, digest in enumerate(part):
                self._maps[digest] = features[row]


def _digest(image: UInt8Array) -> bytes:
    shape = repr(image.shape).encode()
    content = np.ascontiguousarray(image).data
    return blake2b(content, digest_size=_DIGEST_BYTES, key=shape).digest()


def _parts(digests: Sequence[bytes]) -> list[Sequence[bytes]]:
    """The images in parts that are computed at once."""
    return [digests[start : start + _AT_ONCE] for start in range(0, len(digests), _AT_ONCE)]


def _filled(digests: Sequence[bytes]) -> list[bytes]:
    return [*digests, *[digests[-1]] * (_AT_ONCE - len(digests))]


def _recent(cache: OrderedDict[_Key, Tensor], keys: Sequence[_Key]) -> dict[_Key, Tensor]:
    """Values of keys, which become the newest of the cache; drops the oldest of a full cache."""
    values: dict[_Key, Tensor] = {}
    for key in keys:
        cache.move_to_end(key)
        values[key] = cache[key]
    while len(cache) > _MAX_IMAGES:
        cache.popitem(last=False)
    return values
