"""Encoding and a stage 1 step of TiTok against a plain implementation of the same formulas.

    python benchmarks/titok.py [--variant s128] [--batch 8] [--repeats 5]

The plain one is sequence first, uses the attention module of torch, and computes every token of
every block. Both have the same weights and compute the same codes and losses, in turn, A B A B ...
On a GPU, also images/s at larger batches, memory, and the share of the peak.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor
from torch.nn import functional

from vlatool.models.titok.config import TitokConfig
from vlatool.models.titok.model import Titok
from vlatool.models.vqgan.model import Vqgan

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for tests.builders

VARIANTS = {"s128": ("small", 128), "b64": ("base", 64), "l32": ("large", 32)}
# Forward pass per image in GFLOP: encoder, decoder, teacher. Source: reference/titok 8.
GFLOPS = {"s128": (22.0, 22.6), "b64": (58.6, 59.7), "l32": (183.2, 184.9)}
TEACHER, PIXELS = 128.9, 186.7
PEAK_TFLOPS = 790.0  # usable bfloat16 of the GPU of the target rates; reference/titok 8
GPU_BATCHES = {"encode": 256, "stage 1": 64, "stage 2": 32}


def main(variant: str, batch: int, repeats: int) -> None:
    """Prints seconds and ratios; on a GPU, rates too."""
    from tests.builders.tokenizers import PlainTitok

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = Titok(network(variant, 1)).to(device)
    plain = PlainTitok(model).to(device)
    pixels = torch.rand(batch, 3, 256, 256, device=device)
    targets = torch.randint(1024, (batch, 256), device=device)
    print(describe(), f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}")
    ours, theirs = model.codes(pixels), plain.codes(pixels)
    print(f"{variant}, {batch} images, float32; {(ours == theirs).float().mean():.4%} equal codes")
    compare("encode", repeats, lambda: encoded(plain, pixels), lambda: encoded(model, pixels))
    compare(
        "step",
        repeats,
        lambda: backward(plain.logits(pixels), targets, plain),
        lambda: backward(model(pixels).logits, targets, model),
    )
    if device.type == "cuda":
        del plain
        measure_gpu(variant, device)


def network(variant: str, stage: int) -> TitokConfig:
    """Configuration of a published size."""
    size, latents = VARIANTS[variant]
    tree = {"encoder": size, "decoder": size, "num_latent_tokens": latents, "stage": stage}
    return TitokConfig.model_validate({"image_size": 256, **tree})


@torch.no_grad()
def encoded(model: Any, pixels: Tensor) -> None:
    """Encodes pixels."""
    model.codes(pixels)


def backward(logits: Tensor, targets: Tensor, model: torch.nn.Module) -> None:
    """Backward pass of the cross-entropy."""
    functional.cross_entropy(logits.flatten(2), targets).backward()
    model.zero_grad(set_to_none=True)


def compare(name: str, repeats: int, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Times both in turn; prints medians, fastest times and ratios."""
    seconds: list[list[float]] = [[], []]
    for number in range(repeats + 1):
        for durations, work in zip(seconds, (before, after), strict=True):
            duration = timed(work)
            if number:
                durations.append(duration)
    plain, ours = (statistics.median(duration) for duration in seconds)
    fastest = [min(duration) for duration in seconds]
    best = f"fastest {fastest[0]:.3f} s, {fastest[1]:.3f} s: {fastest[0] / fastest[1]:.2f} x"
    print(f"{name:8} plain {plain:.3f} s, ours {ours:.3f} s: {plain / ours:.2f} x; {best}")


def timed(work: Callable[[], None]) -> float:
    """Seconds of the work, including that of the device."""
    _wait()
    started = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_gpu(variant: str, device: torch.device) -> None:
    """Prints rates, memory and share of the peak: bfloat16, inputs on the GPU, compiled blocks."""
    encoder, decoder = GFLOPS[variant]
    first = compiled(network(variant, 1), device)
    rate("encode", partial(encoded, first), encoder, device)
    teacher = Vqgan(first.config.vqgan).to(device).eval().requires_grad_(requires_grad=False)
    rate(
        "stage 1", partial(stage_1_step, first, teacher), 3 * (encoder + decoder) + TEACHER, device
    )
    del first, teacher
    second = compiled(network(variant, 2), device)
    rate("stage 2", partial(stage_2_step, second), encoder + 3 * (decoder + PIXELS), device)


def compiled(config: TitokConfig, device: torch.device) -> Titok:
    """Network with compiled blocks, as with `hparams.torchcompile`."""
    model = Titok(config).to(device)
    model.freeze_tokens(frozen=config.stage == 2)
    for side in (model.encoder, model.decoder):
        for block in side.transformer:
            block.forward = torch.compile(block.forward)
    return model


def stage_1_step(model: Titok, teacher: Vqgan, pixels: Tensor) -> None:
    """Step of stage 1 without the update; the codes of the teacher are in bfloat16 too."""
    with torch.no_grad():
        targets = teacher.ids(pixels)
    backward(model(pixels).logits.float(), targets, model)


def stage_2_step(model: Titok, pixels: Tensor) -> None:
    """Forward and backward pass of the squared error of pixels."""
    functional.mse_loss(model(pixels).pixels.float(), pixels).backward()
    model.zero_grad(set_to_none=True)


def rate(name: str, work: Callable[[Tensor], None], gflops: float, device: torch.device) -> None:
    """Prints images/s of the work under autocast."""
    batch = GPU_BATCHES[name]
    pixels = torch.rand(batch, 3, 256, 256, device=device)

    def once() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            work(pixels)

    torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        once()
    seconds = statistics.median(timed(once) for _ in range(10))
    teraflops = batch * gflops / seconds / 1000
    share = f"{teraflops:.0f} TFLOP/s, {teraflops / PEAK_TFLOPS:.1%} of {PEAK_TFLOPS:.0f}"
    memory = torch.cuda.max_memory_allocated() / 2**30
    text = f"{batch / seconds:.0f} images/s, {share}, {memory:.1f} GiB"
    print(f"{name:8} batch {batch}, bfloat16: {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", choices=VARIANTS, default="s128")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.variant, arguments.batch, arguments.repeats)
