"""Time and memory of the driver of `preprocess` for the metadata of many tiny episodes.

    python benchmarks/scale.py [--episodes 1000,10000,100000] [--folder DIR]

One tiny episode is sampled, read and written. Its receipt, with statistics and byte ranges, then
stands for all episodes, under other names: they go through the journal, the merge of statistics,
the plan of shards and the manifests of the `lbm` sink, as in a run, without images.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import describe

from vlatool.formats.shards.layout import ShardFolder, write_manifest
from vlatool.formats.shards.writer import SampleIndex
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Journal, Receipt
from vlatool.transforms.statistics import StatisticsAccumulator, from_arrays
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessJob
from vlatool.workflows.sample import SampleConfig, sample

# So few steps and frames that the journal of 100,000 episodes fits on a small disk.
FRAMES = 4
SAMPLES_PER_SHARD = 1000


def main(counts: list[int], folder: str | None) -> None:
    """Prints one table per number of episodes, each measured in a process of its own."""
    print(describe())
    for count in counts:
        sys.stdout.flush()
        child = os.fork()  # so that the memory is that of this number
        if child == 0:
            with tempfile.TemporaryDirectory(dir=folder) as work:
                measure(Path(work), count)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(1)


def measure(folder: Path, count: int) -> None:
    """Measures all stages for one number of episodes."""
    receipt = one_receipt(folder)
    output = folder / "many"
    journal = Journal(output)
    journal.folder.mkdir(parents=True)
    samples = receipt.counts["samples"]
    size = sum(value.nbytes for value in receipt.arrays.values())
    print(f"{count} episodes, {samples * count} samples, arrays of {size} bytes per episode")
    with Stage("journal: write"):
        for number in range(count):
            journal.store(under_name(receipt, number))
    index, total = SampleIndex(), StatisticsAccumulator()
    with Stage("journal: read, statistics: merge, samples: index"):
        for entry in stored(journal, receipt, count):
            index.add(entry)
            total.add(from_arrays(entry.arrays))
        assert total.total() is not None
    with Stage("plan of shards"):
        shards = [(plan.id, len(plan.samples)) for plan in index.plans(0, SAMPLES_PER_SHARD)]
    with Stage("manifests"):
        write_manifest(ShardFolder.of(output, "shards").manifest, shards)
        rows = [(Path(file.path).stem, file.samples or 0) for file in index.files]
        write_manifest(ShardFolder.of(output, "episodes").manifest, rows)
    on_disk = sum(path.stat().st_blocks * 512 for path in journal.folder.iterdir())
    print(f"  journal on disk: {on_disk / 1e6:.0f} MB; shards: {len(shards)}")


def one_receipt(folder: Path) -> Receipt:
    """Receipt of one tiny episode that was read and written."""
    raw = folder / "raw"
    sample(SampleConfig(layout="spartan", output=str(raw), episodes=1, frames=FRAMES, workers=1))
    tree: dict[str, Any] = {"format": "spartan", "sources": [str(raw)], "sink": "lbm"}
    tree["output"] = str(folder / "one")
    tree |= {"past_lowdim_steps": 0, "future_lowdim_steps": 1, "max_padding_right": 1}
    job = PreprocessJob(PreprocessConfig.specialize(tree).model_validate(tree))
    return job.spec.work(job.items[0])


def name(number: int) -> str:
    """Name of an episode."""
    return f"episode_{number:06d}"


def under_name(receipt: Receipt, number: int) -> Receipt:
    """The receipt of another episode."""
    files = (
        FileEntry(f"episodes/{name(number)}.tar", file.bytes, file.sha256, file.samples)
        for file in receipt.files
    )
    return replace(receipt, item=name(number), files=tuple(files))


def stored(journal: Journal, receipt: Receipt, count: int) -> Iterator[Receipt]:
    """All receipts of the journal, in order."""
    for number in range(count):
        stored_receipt = journal.find(name(number), receipt.key)
        assert stored_receipt is not None
        yield stored_receipt


class Stage:
    """Prints processor time, wall time and the peak memory of the process so far."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __enter__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {self.title}: {cpu:.2f} CPU s, {wall:.1f} s, peak {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", default="1000,10000,100000")
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    main([int(part) for part in arguments.episodes.split(",")], arguments.folder)
