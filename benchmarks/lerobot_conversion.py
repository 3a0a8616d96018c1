"""Seconds of a conversion of LeRobot v2.1 to v3.0: video copied, and encoded anew.

    python benchmarks/lerobot_conversion.py [--source SET] [--episodes 20] [--frames 200] [--runs 3]

Without a source, episodes of the built-in world are written first. One worker; best of the runs.
"""

import argparse
import tempfile
import time
from pathlib import Path

from machine import describe

from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.sample import SampleConfig, sample

SIZE = "published"


def main(source: str, episodes: int, frames: int, runs: int) -> None:
    """Prints both times and their ratio."""
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not source:
            source = str(folder / "v2")
            write_source(source, episodes, frames)
        seconds = {
            copied: min(
                convert(source, folder / f"{copied}{run}", copied=copied) for run in range(runs)
            )
            for copied in (True, False)
        }
    print(f"copied {seconds[True]:.2f} s, encoded {seconds[False]:.2f} s")
    print(f"copying is {seconds[False] / seconds[True]:.1f} times as fast")


def write_source(source: str, episodes: int, frames: int) -> None:
    """Writes a set of v2.1."""
    tree = {"layout": "lerobot", "layout_version": "v2.1", "output": source, "size": SIZE}
    sample(SampleConfig.model_validate({**tree, "episodes": episodes, "frames": frames}))


def convert(source: str, output: Path, *, copied: bool) -> float:
    """Seconds of a conversion."""
    tree = {"format": "lerobot", "sources": [source], "output": str(output), "workers": 1}
    tree |= {"sink": {"type": "lerobot", "copy_videos": copied}}
    config = PreprocessConfig.specialize(tree).model_validate(tree)
    start = time.perf_counter()
    result: PreprocessResult = preprocess(config)
    seconds = time.perf_counter() - start
    rate = result.frames / seconds
    kind = "copied" if copied else "encoded"
    print(f"{kind}: {result.frames} frames, {seconds:.2f} s, {rate:.0f} frames/s")
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="", help="a LeRobot data set")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    main(**vars(parser.parse_args()))
