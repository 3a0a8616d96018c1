"""Time of a command with two checkouts, run in turn, A B A B ...

    python benchmarks/in_turn.py --before ../vlatool-before -- preprocess spartan DIR -o OUT

Each run uses the code of PYTHONPATH=CHECKOUT/src. OUT is replaced by a new folder for each run. The
first run of each checkout warms caches and is not counted.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from machine import describe

HERE = Path(__file__).resolve().parents[1]
OUTPUT = "OUT"


def main(checkouts: Sequence[Path], words: Sequence[str], runs: int) -> None:
    """Prints each median with its range, and the ratio of the second to the first."""
    seconds: list[list[float]] = [[] for _ in checkouts]
    for number in range(runs + 1):
        for checkout, durations in zip(checkouts, seconds, strict=True):
            duration = once(checkout, words)
            if number:
                durations.append(duration)
    print(describe())
    before, after = (statistics.median(durations) for durations in seconds)
    for checkout, durations in zip(checkouts, seconds, strict=True):
        extremes = f"{min(durations):.3f} to {max(durations):.3f}"
        print(f"{statistics.median(durations):8.3f} s  ({extremes})  {checkout}")
    print(f"{after / before:8.3f} x  of {runs} runs each, in turn")


def once(checkout: Path, words: Sequence[str]) -> float:
    """Seconds of a command with the code of a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [str(Path(folder, "out")) if word == OUTPUT else word for word in words]
        env = {**os.environ, "PYTHONPATH": str(checkout / "src")}
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "vlatool", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            env=env,
        )
        return time.perf_counter() - started


def checkout(text: str) -> Path:
    """Checkout folder, which has `src/vlatool`."""
    path = Path(text).resolve()
    if not (path / "src" / "vlatool").is_dir():
        raise argparse.ArgumentTypeError(f"{path} has no src/vlatool")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=checkout, required=True)
    parser.add_argument("--after", type=checkout, default=HERE)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("command", nargs="+", help="after --; OUT stands for a new folder")
    arguments = parser.parse_args()
    main((arguments.before, arguments.after), arguments.command, arguments.runs)
