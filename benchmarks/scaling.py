"""CPU per sample and driver memory of `preprocess` for growing amounts of data.

    python benchmarks/scaling.py [--episodes 10,100,1000]

Episodes of 40 frames with 2 cameras of 96x96, median of three runs each.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe
from process_stats import run

VLATOOL = [sys.executable, "-m", "vlatool"]


def main(counts: list[int], repeat: int) -> None:
    """Prints one row per number of episodes."""
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw")
        words = ["sample", "spartan", str(raw), "--episodes", str(max(counts)), "--frames", "40"]
        words += ["--cameras", "2", "--size", "medium", "-q"]
        subprocess.run([*VLATOOL, *words], check=True, capture_output=True)
        for count in counts:
            row(folder, raw, count, repeat)


def row(folder: str, raw: Path, count: int, repeat: int) -> None:
    """Measures one number of episodes."""
    runs = []
    for number in range(repeat):
        out = Path(folder, f"out{count}-{number}")
        words = ["preprocess", "spartan", str(raw), "-o", str(out), "--max-episodes", str(count)]
        runs.append(run([*VLATOOL, *words, "--max-padding-right", "14", "--json", "-q"]))
        subprocess.run(["rm", "-rf", str(out)], check=True)
    samples = json.loads(runs[0].stdout)["samples"]
    cpu = statistics.median(1000 * stats.cpu_s / samples for stats in runs)
    wall = statistics.median(stats.seconds for stats in runs)
    driver = statistics.median(stats.driver_mib for stats in runs)
    print(
        f"{count:5} episodes, {samples:6} samples: {cpu:.2f} CPU ms per sample, {wall:.1f} s, "
        f"driver {driver:.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", default="10,100,1000")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    main([int(part) for part in arguments.episodes.split(",")], arguments.repeat)
