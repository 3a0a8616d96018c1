"""Time, memory and bytes of the same work in LeRobot and in vlatool, as a table.

    python benchmarks/lerobot.py FOLDER [--environment DIR] [--runs 3] [--only PART] [--json]

Both sides take turns on one recording of the built-in world: 1,500 frames of two cameras of
256 x 256 in HDF5, which is made in FOLDER. LeRobot gets an environment of its own (several GB) in
DIR, or FOLDER/environment, where it stays. It needs `python3.12` on the PATH. The sets and shards
that the parts share are made first and stay in FOLDER, too. `lerobot_sides.py` has what runs in
Python on each side; the rest are the commands of both.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import process_stats
from lerobot_sides import ACTIONS, SIDE
from machine import describe

from vlatool.world.record_files import Hdf5Writer
from vlatool.world.recording import RecordingSetup, expert_episode
from vlatool.world.render import View, cameras_for

EPISODES = 30
FRAMES = 50  # of an episode
SETS = 10  # sets that are merged, with equally many episodes each
SCRIPT = Path(__file__).with_name("lerobot_sides.py")
VLATOOL = [sys.executable, "-m", "vlatool"]
Figures = dict[str, float]  # map from unit to value


@dataclass(frozen=True)
class Work:
    """Work that both sides do; each call does it once and measures it."""

    name: str
    there: Callable[[], Figures]
    here: Callable[[], Figures]


class Bench:
    """The working folder, and the programs of LeRobot."""

    def __init__(self, folder: Path, environment: Path) -> None:
        self.folder = folder
        self.bin = environment / "bin"
        self.recording = folder / "recording"
        self.set = folder / "set"  # LeRobot set of the recording, written by LeRobot
        self.parts = [folder / f"set{number}" for number in range(SETS)]
        self.frames = folder / "frames"  # made of `set` by vlatool
        self.shards = folder / "shards"

    def side(self, function: str, *arguments: str | Path) -> list[str]:
        """Command that runs a function of `lerobot_sides.py` on its side."""
        is_here = function.endswith("_here")
        python = sys.executable if is_here else str(self.bin / "python")
        return [python, "-P", str(SCRIPT), function, *map(str, arguments)]

    def episodes(self, first: int, count: int) -> list[Path]:
        return sorted(self.recording.glob("*.hdf5"))[first : first + count]

    def new(self, name: str) -> Path:
        """Path of an output that is not there."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name

    def prepare(self) -> None:
        """Writes the recording, the sets and the shards that are not there yet."""
        if not self.recording.exists():
            unfinished = self.new("unfinished")
            unfinished.mkdir()
            views = tuple(View(camera, (SIDE, SIDE)) for camera in cameras_for(2))
            writer = Hdf5Writer(RecordingSetup(unfinished, views))
            for number in range(EPISODES):
                writer.write(expert_episode(0, number, FRAMES), 0)
            unfinished.rename(self.recording)
        each = EPISODES // SETS
        sets = {self.set: self.episodes(0, EPISODES)}
        for number, part in enumerate(self.parts):
            sets[part] = self.episodes(number * each, each)
        for target, files in sets.items():
            if not target.exists():
                unfinished = self.new("unfinished")
                subprocess.run(self.side("convert_there", unfinished, *files), check=True)
                unfinished.rename(target)
        keys = ["--future-lowdim-steps", str(ACTIONS - 1), "--max-padding-right", str(ACTIONS)]
        for target, sink in {self.frames: "frames", self.shards: "lbm"}.items():
            if not target.exists():
                words = ["preprocess", "lerobot", str(self.set), "--sink", sink, "--hold-out", "0"]
                command = [*VLATOOL, *words, *keys, "--output", str(target)]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measured(command: list[str], output: Path | None = None) -> Figures:
    """Seconds of a command, memory of its largest process, and size of its output."""
    stats = process_stats.run(command)
    largest = max(stats.driver_mib, stats.worker_mib)
    figures = {"s": stats.seconds, "MiB of memory": largest}
    if output is not None:
        size = 0
        for path in output.rglob("*"):
            if path.is_file() and ".vlatool" not in path.parts:
                size += path.stat().st_size
        figures["MB on disk"] = size / 1e6
    return figures


def rate(command: list[str]) -> Figures:
    """Windows per second, which a function of `lerobot_sides.py` prints."""
    return {"windows/s": json.loads(process_stats.run(command).stdout.splitlines()[-1])}


def convert(bench: Bench) -> list[Work]:
    """HDF5 to LeRobot v3.0: add_frame and save_episode there, `preprocess --sink lerobot` here."""

    def there() -> Figures:
        output = bench.new("converted")
        return measured(bench.side("convert_there", output, *bench.episodes(0, EPISODES)), output)

    def here() -> Figures:
        output = bench.new("converted")
        words = ["preprocess", "hdf5", str(bench.recording), "--sink", "lerobot"]
        return measured([*VLATOOL, *words, "--output", str(output)], output)

    return [Work("HDF5 to LeRobot v3.0", there, here)]


def windows(bench: Bench) -> list[Work]:
    """Random windows: LeRobotDataset with PyAV and torchcodec there, `open_dataset` here, of frames
    and of shards that were made of the same set.
    """
    works: list[Work] = []
    for workers in ("0", "2"):
        for backend, data in {"torchcodec": bench.frames, "pyav": bench.shards}.items():
            there = bench.side("windows_there", bench.set, backend, workers)
            here = bench.side("windows_here", data, workers)
            name = f"Random windows, {workers} workers; {backend}, {data.name}"
            works.append(Work(name, partial(rate, there), partial(rate, here)))
    return works


def start(bench: Bench) -> list[Work]:
    """Start of the command line: help of training, and the description of the installation."""
    works: list[Work] = []
    pairs = {("lerobot-train", "--help"): ("train", "--help"), ("lerobot-info",): ("doctor",)}
    for words, own in pairs.items():
        there = [str(bench.bin / words[0]), *words[1:]]
        here = [*VLATOOL, *own]
        name = f"`{' '.join(words)}`, `vlatool {' '.join(own)}`"
        works.append(Work(name, partial(measured, there), partial(measured, here)))
    return works


def merge(bench: Bench) -> list[Work]:
    """Merge of ten sets: merge_datasets there, `preprocess` of ten sources here."""

    def there() -> Figures:
        output = bench.new("merged")
        return measured(bench.side("merge_there", output, *bench.parts), output)

    def here() -> Figures:
        output = bench.new("merged")
        words = ["preprocess", "lerobot", *map(str, bench.parts), "--sink", "lerobot"]
        return measured([*VLATOOL, *words, "--output", str(output)], output)

    return [Work(f"Merge of {SETS} sets", there, here)]


def stats(bench: Bench) -> list[Work]:
    """Statistics of the numbers: recompute_stats there, `stats compute` of the shards here."""
    there = bench.side("statistics_there", bench.set)
    output = str(bench.folder / "stats.json")
    here = [*VLATOOL, "stats", "compute", str(bench.shards), "--overwrite", "--output", output]
    return [Work("Statistics of the numbers", partial(measured, there), partial(measured, here))]


PARTS = {part.__name__: part for part in (convert, windows, start, merge, stats)}


def install(environment: Path) -> None:
    """Makes the environment of LeRobot, with the newest version that pip gives."""
    base = shutil.which("python3.12") or "python3.12"
    try:
        subprocess.run([base, "-m", "venv", str(environment)], check=True)
    except (OSError, subprocess.CalledProcessError):
        sys.exit("LeRobot needs Python 3.12: install it, with `python3.12` on the PATH")
    packages = ["lerobot[dataset]", "torchcodec", "h5py"]
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "-q", "--upgrade"]
    subprocess.run([*pip, *packages], check=True)


def link_ffmpeg(environment: Path) -> None:
    """Lets torchcodec find the libraries of FFmpeg that PyAV brings under names of its own."""
    links = environment / "ffmpeg"
    links.mkdir(exist_ok=True)
    (brought,) = environment.glob("lib/python*/site-packages/av.libs")
    for library in [*brought.glob("libav*"), *brought.glob("libsw*")]:
        name, _, version = library.name.partition(".so.")
        link = links / f"{name.rpartition('-')[0]}.so.{version.partition('.')[0]}"
        if not link.exists():
            link.symlink_to(library.resolve())
    os.environ["LD_LIBRARY_PATH"] = f"{links.resolve()}:{brought.resolve()}"


def versions(bench: Bench) -> str:
    """Versions of LeRobot, torch, torchcodec and PyAV there, and of vlatool here."""
    names = ("lerobot", "torch", "torchcodec", "av")
    code = f"from importlib.metadata import version; print(*map(version, {names}))"
    answer = subprocess.check_output([str(bench.bin / "python"), "-c", code], text=True).split()
    there = ", ".join(f"{name} {number}" for name, number in zip(names, answer, strict=True))
    here = subprocess.check_output([*VLATOOL, "--version"], text=True).strip()
    return f"{there}; {here}"


def text(value: float) -> str:
    """A figure with three digits, or all of its whole ones."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main(folder: Path, environment: Path, runs: int, only: str, *, as_json: bool) -> None:
    """Prints the medians of all works."""
    if not (environment / "bin/python").exists():
        install(environment)
    link_ffmpeg(environment)
    # Nothing is asked for at the hub.
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=str(environment / "cache"))
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder.resolve(), environment.absolute())
    bench.prepare()
    works: list[Work] = []
    for name, part in PARTS.items():
        if only in ("", name):
            works += part(bench)
    values: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for _ in range(runs):
        for work in works:
            for side, once in enumerate((work.there, work.here)):
                for unit, value in once().items():
                    values.setdefault((work.name, unit), ([], []))[side].append(value)
    rows: list[dict[str, Any]] = []
    for (name, unit), (there, here) in values.items():
        medians = {"there": statistics.median(there), "here": statistics.median(here)}
        rows.append({"work": name, "unit": unit, **medians})
    about = f"{describe()}; {versions(bench)}; medians of {runs} runs in turn"
    if as_json:
        print(json.dumps({"about": about, "rows": rows}, indent=2))
        return
    print(f"{about}\n\n| Work | LeRobot | vlatool | |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['work']} | {text(row['there'])} | {text(row['here'])} | {row['unit']} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="working folder")
    parser.add_argument("--environment", type=Path, help="of LeRobot; default: FOLDER/environment")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", choices=["", *PARTS], help="one part")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    place = options.environment or options.folder / "environment"
    main(options.folder, place, options.runs, options.only, as_json=options.json)
