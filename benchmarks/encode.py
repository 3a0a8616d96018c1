"""Images/s of `encode`: the device alone, reading PNG alone, and both in one run.

    python benchmarks/encode.py [--variant s128] [--images 32] [--batch 8] [--workers 2]

Random weights of the published size; PNG images of 256 x 256 with smooth colors and noise. On a
GPU, batches are 64 and bfloat16 is measured too.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from machine import describe
from titok import GFLOPS, PEAK_TFLOPS
from titok import network as sizes

from vlatool.jobs.job import ItemTask, WorkItem
from vlatool.jobs.journal import Journal
from vlatool.loading.images.config import ImagePreprocessing
from vlatool.media.images import encode_png
from vlatool.models.images import example_images
from vlatool.models.titok.model import Titok, TitokTokenizer
from vlatool.models.tokenizer import ImageRule, OpenTokenizer, rank_device
from vlatool.recordings.detect import detect_source
from vlatool.recordings.select import episode_state
from vlatool.tokens.encode import EncodePipeline, EncodeRule
from vlatool.tokens.images import EpisodeOpener

SIDE, EPISODE = 256, 32


def main(variant: str, images: int, batch: int, workers: int) -> None:
    """Prints the three rates and the waiting time of each stage."""
    torch.manual_seed(0)
    config = sizes(variant, 1)
    model = Titok(config)
    torch.nn.init.normal_(model.quantize.embedding.weight)  # with the variance of trained ones
    device = rank_device()
    network = TitokTokenizer(config, model.to(device).eval())
    tokenizer = OpenTokenizer(network, None, device, ImagePreprocessing(), ImageRule(SIDE))
    print(describe(), f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = write_frames(folder / "A", images)
        print(f"{variant}, {images} images, batches of {batch}, {tokenizer.device.type}")
        for precision in ("fp32", "bf16") if tokenizer.device.type == "cuda" else ("fp32",):
            rate = device_rate(tokenizer, frames[:batch], precision, images)
            teraflops = rate * GFLOPS[variant][0] / 1000
            share = f"{teraflops:.2f} TFLOP/s, {teraflops / PEAK_TFLOPS:.1%} of {PEAK_TFLOPS:.0f}"
            share_text = f", {share}" if tokenizer.device.type == "cuda" else ""
            print(f"device alone, {precision}: {rate:.2f} images/s{share_text}")
            show_run(tokenizer, folder, precision, batch, workers)


def write_frames(tree: Path, count: int) -> np.ndarray:
    """Writes PNG files in episodes of 32; returns the pixels uint8 [N, S, S, 3]."""
    rng = np.random.default_rng(0)
    smooth = example_images(SIDE, count)["images"].permute(0, 2, 3, 1).numpy()
    noise = rng.integers(-8, 9, smooth.shape)
    frames = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    for number, frame in enumerate(frames):
        episode_dir = tree / f"images/episode_{number // EPISODE:06d}"
        episode_dir.mkdir(parents=True, exist_ok=True)
        (episode_dir / f"frame_{number:06d}.png").write_bytes(encode_png(frame))
    return frames


def device_rate(tokenizer: OpenTokenizer, frames: np.ndarray, precision: str, count: int) -> float:
    """Images per second, with the images on the device."""
    images = torch.from_numpy(frames).to(tokenizer.device)
    tokenizer.network.encode(images, precision)
    repeats = max(1, count // len(frames))
    started = time.perf_counter()
    for _ in range(repeats):
        tokenizer.network.encode(images, precision)
    return repeats * len(frames) / (time.perf_counter() - started)


def show_run(
    tokenizer: OpenTokenizer, folder: Path, precision: str, batch: int, workers: int
) -> None:
    """Runs reading alone, then all stages together."""
    source = detect_source(folder / "A", None)
    open_episode = EpisodeOpener(source.format, source.reader.config)
    rule = EncodeRule(folder / precision, "packed", precision, batch, 0, workers)
    pipeline = EncodePipeline(open_episode, tokenizer, rule)
    started, count = time.perf_counter(), 0
    for ref in source.refs:
        opened = open_episode(ref)
        count += sum(1 for _ in opened.read(range(len(opened))))
    rate_alone = count / (time.perf_counter() - started)
    print(f"PNG reading alone, one process: {rate_alone:.1f} images/s")
    started = time.perf_counter()
    task = ItemTask(
        None, episode_state, "", Journal(rule.output), has_arrays=False, has_stored=False
    )
    items = [WorkItem(ref, ref.id, None) for ref in source.refs]
    receipts = [outcome.value for outcome in pipeline.map(task, items) if outcome.value]
    encoded_alone = sum(receipt.counts["encoded_alone"] for receipt in receipts)
    seconds = time.perf_counter() - started
    waits = ", ".join(f"{stage} {value:.1f} s" for stage, value in pipeline.seconds.items())
    rate = count / seconds
    print(f"all stages: {rate:.2f} images/s, {encoded_alone} encoded alone; {waits}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--variant", default="l32" if on_gpu else "s128")
    parser.add_argument("--images", type=int, default=2048 if on_gpu else 32)
    parser.add_argument("--batch", type=int, default=64 if on_gpu else 8)
    parser.add_argument("--workers", type=int, default=8 if on_gpu else 2)
    main(**vars(parser.parse_args()))
