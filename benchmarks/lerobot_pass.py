"""Processor seconds of one pass over all frames of a LeRobot set, beside plain loops over PyAV.

    python benchmarks/lerobot_pass.py [--source SET] [--turns 5] [--images 16]

The readers take turns. `to_ndarray` is the loop of PyAV's documentation; `reformatter` shares one
converter of colors between frames, which that loop makes anew for each; `blocks` also gathers the
frames in arrays [16, H, W, 3], as a reader of windows does. The pass of vlatool includes the rows
and the metadata. Without a source, an episode of the built-in world is written.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from machine import describe

from vlatool.plugins import FORMATS
from vlatool.workflows.sample import SampleConfig, sample


def main(source: str, turns: int, images: int, frames: int) -> None:
    """Prints seconds and ratios."""
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        root = Path(source or f"{name}/set")
        if not source:
            tree = {"layout": "lerobot", "output": str(root), "size": "published"}
            sample(SampleConfig.model_validate({**tree, "episodes": 1, "frames": frames}))
        videos = sorted(root.glob("videos/**/*.mp4"))
        loops: dict[str, Callable[[], int]] = {
            "to_ndarray": lambda: plain(videos, convert),
            "reformatter": lambda: plain(videos, VideoReformatter().reformat),
            "blocks": lambda: plain(videos, VideoReformatter().reformat, images),
            "vlatool": lambda: read(root, images),
        }
        seconds: dict[str, list[float]] = {loop: [] for loop in loops}
        counts = {loop: run() for loop, run in loops.items()}  # warms up
        for _ in range(turns):
            for loop, run in loops.items():
                start = time.process_time()
                run()
                seconds[loop].append(time.process_time() - start)
    for loop, count in counts.items():
        rate = count / median(seconds[loop])
        print(f"{loop}: {count} frames, {median(seconds[loop]):.3f} s, {rate:.0f} frames/s")
    for loop in ("to_ndarray", "reformatter", "blocks"):
        pairs = zip(seconds["vlatool"], seconds[loop], strict=True)
        print(f"vlatool takes {median(a / b for a, b in pairs):.2f} times as long as {loop}")


def convert(frame: Any, **options: str) -> Any:
    """A frame as RGB, with a converter of its own."""
    return frame.reformat(**options)


def plain(videos: list[Path], to_rgb: Callable[..., Any], gathered: int = 0) -> int:
    """Decodes all frames in order, gathered in arrays of several; returns their number."""
    count, block = 0, np.empty(0, np.uint8)
    for path in videos:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                image = to_rgb(frame, format="rgb24").to_ndarray()
                if gathered:
                    if count % gathered == 0 or block.shape[1:] != image.shape:
                        block = np.empty((gathered, *image.shape), np.uint8)
                    block[count % gathered] = image
                count += 1
    return count


def read(root: Path, images: int) -> int:
    """Reads all episodes with all images, `images` at a time; returns the number of images."""
    reader = FORMATS.get("lerobot")(FORMATS.get("lerobot").Config())
    count = 0
    for ref in reader.discover([root]):
        episode = reader.read(ref)
        for camera in episode.cameras.values():
            for start in range(0, episode.num_frames, images):
                count += len(camera.read(range(start, min(start + images, episode.num_frames))))
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="", help="a LeRobot data set with videos")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=16, help="frames of a read")
    parser.add_argument("--frames", type=int, default=200, help="of the written episode")
    main(**vars(parser.parse_args()))
