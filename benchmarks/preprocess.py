"""Spartan episodes to shards: samples/s, and peak memory of the largest process.

    python benchmarks/preprocess.py [--episodes N] [--size small|published] [--workers N]

Input is made by `vlatool sample spartan` and is not counted; start-up is.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import describe

VLATOOL = [sys.executable, "-m", "vlatool"]


def main(episodes: int, size: str, workers: int) -> None:
    """Makes the input, times the run, prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder, "raw"), Path(folder, "out")
        cameras = "6" if size == "published" else "2"
        sample = ["sample", "spartan", str(raw), "--episodes", str(episodes), "--size", size]
        depth = ["--depth"] if size == "published" else []
        frames = ["--cameras", cameras, "--frames", "60"]
        subprocess.run([*VLATOOL, *sample, *frames, *depth, "-q"], check=True, capture_output=True)
        resize = ["--resize-images-size", "384,384"] if size == "published" else []
        names = "scene_right_0,scene_left_0,wrist_left_plus,wrist_right_minus"
        chosen = ["--camera-names", names] if size == "published" else []
        command = [*VLATOOL, "preprocess", "spartan", str(raw), "--output", str(out), *resize]
        command += [*chosen, "--workers", str(workers), "--max-padding-right", "14", "--json", "-q"]
        started = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    result = json.loads(done.stdout)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(describe())
    print(f"{episodes} episodes of 60 frames, {size}, {workers} workers: {seconds:.1f} s")
    print(f"{result['samples'] / seconds:.0f} samples/s, {result['bytes'] / 1e6:.0f} MB of shards")
    print(f"peak memory of the largest process {used.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--size", choices=["small", "published"], default="small")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.episodes, arguments.size, arguments.workers)
