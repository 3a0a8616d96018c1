"""Past images to tokens of FUTURE-VLA: dense attention of equal grids, and the cache of images.

    python benchmarks/future_vla_images.py [--size small] [--batch 2] [--repeats 5]
    python benchmarks/future_vla_images.py --size 4b --batch 8      # on a GPU

1. Attention over all images of an equal grid at once against one call per image, as published:
   forward and backward pass of all images of a batch, with the same weights and equal tokens.
2. The images of the next step of a robot with those of the step before in the cache, against all
   of them anew, as published.

In turn, A B A B ...; medians. Memory is that of the device, on a CPU the most that tensors take.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from future_vla import SIZES, now
from machine import describe
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from vlatool.models.future_vla.frame_cache import FrameCache
from vlatool.models.future_vla.model import FutureVla
from vlatool.models.future_vla.vision import FrameAttention

EQUAL = 2e-2  # relative to the largest value: bfloat16 on a GPU


class AttentionPerImage(FrameAttention):
    """One call for each image."""

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], groups: Sequence[tuple[int, int]]
    ) -> Tensor:
        """[P, C] to [P, C]; see `FrameBlock`."""
        query, key, value = self.qkv(hidden).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
        lengths = [patches for count, patches in groups for _ in range(count)]
        parts = zip(*(tensor.split(lengths) for tensor in (query, key, value)), strict=True)
        mixed = [
            functional.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in part))
            for part in parts
        ]
        return self.proj(torch.cat([x[0].transpose(0, 1).flatten(1) for x in mixed]))


def main(arguments: argparse.Namespace) -> None:
    """Prints milliseconds, memory and ratios."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        network = FutureVla(SIZES[arguments.size].config())
    side = SIZES[arguments.size].side
    shape = (arguments.batch, network.config.images, side, side, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    print(describe(), f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}")
    print(f"{arguments.size}: batch {arguments.batch} of {shape[1]} images of {side} x {side}")
    compare_attention(network, torch.from_numpy(pixels).to(device), arguments.repeats)
    compare_cache(network.eval(), pixels, arguments.repeats)


def compare_attention(network: FutureVla, images: Tensor, repeats: int) -> None:
    """Prints the comparison of one call per image with one per grid."""
    with torch.no_grad():
        features = network.image_features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    parts = [x.flatten(0, 1) for x in features.split(network.config.frames, dim=1)]
    blocks: list[Any] = [block.attn for block in network.visual.blocks]
    dtype = torch.bfloat16

    def run(kind: type[FrameAttention]) -> Tensor:
        for attention in blocks:
            attention.__class__ = kind
        with torch.autocast(images.device.type, dtype, enabled=images.is_cuda):
            tokens = torch.cat([x.flatten(0, 2) for x in network.visual(parts)])
        tokens.float().square().mean().backward()
        network.zero_grad()
        return tokens.detach()

    kinds = (AttentionPerImage, FrameAttention)
    before, after = (run(kind) for kind in kinds)
    difference = float((before - after).abs().max() / before.abs().max())
    assert difference < EQUAL, f"tokens differ by {difference:.2g}"
    report("attention", [lambda kind=kind: run(kind) for kind in kinds], repeats)


def compare_cache(network: FutureVla, pixels: np.ndarray[Any, Any], repeats: int) -> None:
    """Prints the comparison of all images with those that the cache lacks."""
    views = network.config.views
    steps = iter(np.random.default_rng(1).integers(0, 256, (4 * repeats + 8, *pixels.shape[:1],
                 views, *pixels.shape[2:]), np.uint8))  # fmt: skip
    device = network.head_weight.device
    current = [pixels]
    cache = FrameCache(network)

    @torch.no_grad()
    def cached() -> Tensor:
        current[0] = np.concatenate([current[0][:, views:], next(steps)], axis=1)
        return cache.features(current[0])

    @torch.no_grad()
    def anew() -> Tensor:
        return network.embed_images(torch.from_numpy(current[0]).to(device))

    cached()
    difference = float((cached() - anew()).abs().max() / anew().abs().max())
    assert difference < EQUAL, f"tokens differ by {difference:.2g}"
    report("cache", [anew, cached], repeats)


def report(name: str, works: Sequence[Callable[[], object]], repeats: int) -> None:
    """Times both in turn; prints medians, memory and ratios."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for durations, work in zip(seconds, works, strict=True):
            started = now()
            work()
            durations.append(now() - started)
    plain, ours = (1000 * statistics.median(durations) for durations in seconds)
    memory = [peak_bytes(work) / 2**20 for work in works]
    print(f"   {name:9} plain {plain:.1f} ms, {memory[0]:,.0f} MiB; ours {ours:.1f} ms, "
          f"{memory[1]:,.0f} MiB: {plain / ours:.2f} x as fast")  # fmt: skip


def peak_bytes(work: Callable[[], object]) -> float:
    """Most bytes that the work allocates."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return float(torch.cuda.max_memory_allocated() - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    size = most = 0
    events: Any = recorded.profiler
    for event in sorted(events.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            size += event.nbytes()
            most = max(most, size)
    return float(most)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    main(parser.parse_args())
