"""Time, samples/s, CPU per sample and memory of `preprocess` of Spartan episodes to shards.

    python benchmarks/preprocess.py [--episodes N] [--size small|published] [--frames N]
    python benchmarks/preprocess.py --raw DIR --size published

Without --raw, `vlatool sample spartan` makes the input, which is not timed. Start-up is timed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe
from process_stats import ProcessStats, run

VLATOOL = [sys.executable, "-m", "vlatool"]
CAMERAS = "scene_right_0,scene_left_0,wrist_left_plus,wrist_right_minus"


def main(arguments: argparse.Namespace) -> None:
    """Makes the input, times the runs, prints the results of the median run."""
    with tempfile.TemporaryDirectory() as folder:
        raw = arguments.raw or make_input(arguments, Path(folder, "raw"))
        runs = [
            run(command(arguments, raw, Path(folder, f"out{number}")))
            for number in range(arguments.repeat)
        ]
    median = statistics.median_low([stats.seconds for stats in runs])
    report(next(stats for stats in runs if stats.seconds == median), runs)


def make_input(arguments: argparse.Namespace, raw: Path) -> Path:
    """Episodes of the built-in world."""
    cameras = "6" if arguments.size == "published" else "2"
    words = ["sample", "spartan", str(raw), "--episodes", str(arguments.episodes)]
    words += ["--size", arguments.size, "--cameras", cameras, "--frames", str(arguments.frames)]
    depth = ["--depth"] if arguments.size == "published" else []
    subprocess.run([*VLATOOL, *words, *depth, "-q"], check=True, capture_output=True)
    return raw


def command(arguments: argparse.Namespace, raw: Path, out: Path) -> list[str]:
    """Command to measure."""
    words = [*VLATOOL, "preprocess", "spartan", str(raw), "--sink", "lbm"]
    words += ["--output", str(out), "--json", "-q"]
    words += ["--workers", str(arguments.workers), "--max-padding-right", "14"]
    if arguments.size == "published":
        words += ["--resize-images-size", "384,384", "--camera-names", CAMERAS]
    return words


def report(stats: ProcessStats, runs: list[ProcessStats]) -> None:
    """Prints the results."""
    result = json.loads(stats.stdout)
    samples = result["samples"]
    print(describe())
    print(f"{samples} samples, {result['bytes'] / 1e6:.0f} MB of shards, {len(runs)} runs")
    print(f"wall {stats.seconds:.2f} s, {samples / stats.seconds:.0f} samples/s")
    print(f"CPU {stats.cpu_s:.2f} s, {1000 * stats.cpu_s / samples:.2f} ms per sample")
    print(f"peak memory: driver {stats.driver_mib:.0f} MiB, worker {stats.worker_mib:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--size", choices=["small", "published"], default="small")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--raw", type=Path)
    main(parser.parse_args())
