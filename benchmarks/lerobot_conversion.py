"""Seconds of a conversion of LeRobot v2.1 to v3.0: video copied, and encoded anew.

    python benchmarks/lerobot_conversion.py [--source SET] [--episodes 20] [--frames 200] [--runs 3]
        [--environment DIR]

Without a source, episodes of the built-in world are written first. One worker; best of the runs, in
processor seconds, since other programs do not change these. With --environment, the converter of
the official library takes turns with the others; it is installed there as by `lerobot_reads.py`,
and its start does not count. It takes sets of v2.1 only, and copies their video and statistics.
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lerobot_reads import install
from machine import describe

from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.sample import SampleConfig, sample

SIZE = "published"
# Runs in the environment of the official library.
_OFFICIAL = """
import json, os, sys
from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset

before = sum(os.times()[:4])
convert_dataset("set", root=sys.argv[1], push_to_hub=False, force_conversion=True)
print(json.dumps(sum(os.times()[:4]) - before))
"""


def main(source: str, episodes: int, frames: int, runs: int, environment: str) -> None:
    """Prints the seconds of each conversion and their ratios."""
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not source:
            source = str(folder / "v2")
            write_source(source, episodes, frames)
        conversions: dict[str, Callable[[Path], float]] = {
            "copied": partial(convert, source, copied=True),
            "encoded": partial(convert, source, copied=False),
        }
        if environment:
            python = install(Path(environment) / "lerobot")
            conversions["official"] = partial(convert_officially, python, source)
        seconds: dict[str, list[float]] = {kind: [] for kind in conversions}
        for run in range(runs):
            for kind, conversion in conversions.items():
                seconds[kind].append(conversion(folder / f"{kind}{run}"))
    best = {kind: min(values) for kind, values in seconds.items()}
    for kind, value in best.items():
        print(f"{kind}: {value:.2f} s, {value / best['copied']:.1f} times as long as copied")


def convert_officially(python: Path, source: str, output: Path) -> float:
    """Processor seconds of the official converter, which replaces its input."""
    shutil.copytree(source, output / "set")
    words = [str(python), "-c", _OFFICIAL, str(output)]
    # Its library would ask the hub, and take what an earlier call left in its cache.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(output / "cache")}
    answer = subprocess.run(words, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return float(json.loads(answer.stdout.splitlines()[-1]))


def write_source(source: str, episodes: int, frames: int) -> None:
    """Writes a set of v2.1."""
    tree = {"layout": "lerobot", "layout_version": "v2.1", "output": source, "size": SIZE}
    sample(SampleConfig.model_validate({**tree, "episodes": episodes, "frames": frames}))


def convert(source: str, output: Path, *, copied: bool) -> float:
    """Processor seconds of a conversion."""
    tree = {"format": "lerobot", "sources": [source], "output": str(output), "workers": 1}
    tree |= {"sink": {"type": "lerobot", "copy_videos": copied}}
    config = PreprocessConfig.specialize(tree).model_validate(tree)
    before = sum(os.times()[:4])
    result: PreprocessResult = preprocess(config)
    seconds = sum(os.times()[:4]) - before
    kind = "copied" if copied else "encoded"
    print(
        f"{kind}: {result.frames} frames, {seconds:.2f} s, {result.frames / seconds:.0f} frames/s"
    )
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="", help="a LeRobot data set")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--environment", default="", help="folder of the official library")
    main(**vars(parser.parse_args()))
