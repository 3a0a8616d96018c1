"""CPU per episode and driver memory of `preprocess`, `verify` and a repeated command, as data grow.

    python benchmarks/scaling.py [--episodes 20,200,2000] [--sinks lbm,frames]

Episodes of 40 frames with 2 cameras of 96x96; after the first 200, links to these under other
times. Then the start of training at 100 million samples, from manifests without tars: reading the
manifest, the order, and its first 1,000 samples.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe
from process_stats import run

from vlatool.formats.frames.layout import MANIFEST, FramesFolder
from vlatool.formats.shards.layout import Shard, read_manifest, write_manifest
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.loading.order import OrderOptions, SampleOrder

VLATOOL = [sys.executable, "-m", "vlatool"]
SAMPLED, SAMPLES = 200, 100_000_000
STATION = Path("tasks/WorldPutBlockInBin/cabot/sim/bc/teleop")


def main(counts: list[int], sinks: list[str]) -> None:
    """Prints one row per number of episodes and sink, and the start of training."""
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["sample", "spartan", folder / "raw", "--episodes", min(SAMPLED, max(counts))]
        words += ["--frames", 40, "--cameras", 2, "--size", "medium", "-q"]
        subprocess.run([*VLATOOL, *map(str, words)], check=True, capture_output=True)
        (first,) = (folder / "raw" / STATION).iterdir()
        for number in range(1, max(counts) // SAMPLED):
            time_of_set = f"2025-01-01T00-00-{number:02d}-00-00"
            shutil.copytree(first, first.with_name(time_of_set), copy_function=os.link)
        for sink in sinks:
            for count in counts:
                row(folder, sink, count)
        for kind in ("lbm, 128 samples", "lbm, 1,000 samples", "frames, 300 samples"):
            start(folder / "start", kind)


def row(folder: Path, sink: str, count: int) -> None:
    """Measures one number of episodes."""
    output = str(folder / f"{sink}-{count}")
    words = ["preprocess", "spartan", str(folder / "raw"), "--output", output, "--sink", sink]
    words += ["--max-episodes", str(count), "-q"]
    texts: list[str] = []
    for name, command in (("first", words), ("verify", ["verify", output]), ("repeated", words)):
        stats = run([*VLATOOL, *command])
        cost = f"{1000 * stats.cpu_s / count:.1f} CPU ms per episode, {stats.seconds:.1f} s"
        texts.append(f"{name} {cost}, driver {stats.driver_mib:.0f} MiB")
    print(f"{sink:6} {count:5} episodes: {'; '.join(texts)}", flush=True)
    shutil.rmtree(output)


def start(folder: Path, kind: str) -> None:
    """Prints seconds of the start of training with tars of a size."""
    folder.mkdir(exist_ok=True)
    size = int(kind.split()[1].replace(",", ""))
    count = SAMPLES // size
    if kind.startswith("frames"):
        row = {"sha256": "0" * 64, "frames": size}
        MANIFEST.write(
            folder, {"episodes": [{"id": f"set_episode_{n}", **row} for n in range(count)]}
        )
        source = FramesFolder(folder)

        def read() -> list[Shard]:
            return [Shard(source.tar(each.id).path, each.frames) for each in source.episodes]
    else:
        path = folder / "manifest.jsonl"
        write_manifest(path, [(f"shard_{n:06d}", size) for n in range(count)])

        def read() -> list[Shard]:
            return read_manifest(path)

    seconds, shards = timed(read)
    infos = tuple(ShardInfo(each.path, each.num_sequences) for each in shards)
    in_order, order = timed(lambda: SampleOrder([DataSet("", infos)], OrderOptions()))
    first, _ = timed(lambda: order.refs(range(1000)))
    print(
        f"{kind} per tar: manifest {seconds:.2f} s, order {in_order:.2f} s, samples {first:.2f} s"
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and result of the work."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", default="20,200,2000")
    parser.add_argument("--sinks", default="lbm,frames")
    arguments = parser.parse_args()
    main([int(part) for part in arguments.episodes.split(",")], arguments.sinks.split(","))
