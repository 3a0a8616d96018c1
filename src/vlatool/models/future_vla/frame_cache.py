"""Tokens of past images, computed once per image and grid.

At the next step of a robot most images are the same, and their tokens too: no operation before the
language model mixes images.

Source: reference/future-vla-model 4.2.

Legend of shapes: B observations, N images of an observation, K images, T image tokens of an
observation, t of one image, D number of deepstack features, C width.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
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

Key = TypeVar("Key", bound=Hashable)


class FrameCache:
    """Cache of the tokens of images by their content; not a part of the result; `network`: the
    network, in eval mode; its weights must not change.
    """

    def __init__(self, network: FutureVla) -> None:
        self._network = network
        self._maps: OrderedDict[bytes, Tensor] = OrderedDict()
        self._tokens: OrderedDict[tuple[bytes, int], Tensor] = OrderedDict()
        self._grids = [
            grid for grid, count in enumerate(network.config.frames) for _ in range(count)
        ]

    def features(self, images: UInt8Array) -> Tensor:
        """Returns the tokens of observations, [B, 1 + D, T, C], as `embed_images` does; `images`:
        uint8 [B, N, H, W, 3], oldest step first.
        """
        by_digest: dict[bytes, UInt8Array] = {}
        rows: list[list[tuple[bytes, int]]] = []
        for observation in images:
            digests = [_digest(image) for image in observation]
            by_digest |= dict(zip(digests, observation, strict=True))
            rows.append(list(zip(digests, self._grids, strict=True)))
        needed = list(dict.fromkeys(key for row in rows for key in row))
        tokens = _looked_up(self._tokens, needed, lambda keys: self._compute(keys, by_digest))
        return torch.stack([torch.cat([tokens[key] for key in row], dim=1) for row in rows])

    def _compute(
        self, keys: Sequence[tuple[bytes, int]], images: dict[bytes, UInt8Array]
    ) -> list[Tensor]:
        """Tokens [1 + D, t, C] of images with grids."""
        distinct = list(dict.fromkeys(digest for digest, _ in keys))
        maps = _looked_up(self._maps, distinct, lambda names: self._features(names, images))
        tokens: dict[tuple[bytes, int], Tensor] = {}
        for grid in range(len(self._network.config.compress)):
            chosen = [digest for digest, of_grid in keys if of_grid == grid]
            for start in range(0, len(chosen), _AT_ONCE):
                part = chosen[start : start + _AT_ONCE]
                filled = torch.stack([maps[digest] for digest in _filled(part)])
                grids = [filled[:0]] * len(self._network.config.compress)
                grids[grid] = filled
                computed = self._network.visual(grids)[grid]
                tokens |= {(digest, grid): computed[row] for row, digest in enumerate(part)}
        return [tokens[key] for key in keys]

    def _features(self, digests: Sequence[bytes], images: dict[bytes, UInt8Array]) -> list[Tensor]:
        """Features of DINOv3 [C, G, G] of images."""
        device = self._network.head_weight.device
        maps: list[Tensor] = []
        for start in range(0, len(digests), _AT_ONCE):
            part = digests[start : start + _AT_ONCE]
            pixels = np.stack([images[digest] for digest in _filled(part)])
            features = self._network.image_features(torch.from_numpy(pixels).to(device))
            maps += features[: len(part)].unbind()
        return maps


def _looked_up(
    cache: OrderedDict[Key, Tensor],
    keys: Sequence[Key],
    compute: Callable[[Sequence[Key]], Sequence[Tensor]],
) -> dict[Key, Tensor]:
    """Values of distinct keys; those that the cache lacks are computed together."""
    missing = [key for key in keys if key not in cache]
    if missing:
        cache.update(zip(missing, compute(missing), strict=True))
    for key in keys:
        cache.move_to_end(key)
    values = {key: cache[key] for key in keys}
    while len(cache) > _MAX_IMAGES:
        cache.popitem(last=False)
    return values


def _filled(keys: Sequence[bytes]) -> list[bytes]:
    return [*keys, *[keys[-1]] * (_AT_ONCE - len(keys))]


def _digest(image: UInt8Array) -> bytes:
    shape = repr(image.shape).encode()
    content = np.ascontiguousarray(image).data
    return blake2b(content, digest_size=_DIGEST_BYTES, key=shape).digest()
