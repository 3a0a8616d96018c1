"""Time, memory and bytes of the commands as their work grows by tens, in a table and a chart.

    python benchmarks/scaling.py [--seconds 60] [--only start] [--figures scaling.json]
    python benchmarks/scaling.py --draw docs/scaling.svg --figures scaling.json

The lists are made: a LeRobot v3.0 set of N episodes of 20 frames without cameras; one of an episode
of N frames; one of v2.1 with a file for each of N episodes in a local S3 server; manifests of N
shards. `preprocess` gets the receipt and links to the files of one episode for all episodes, so
that its row is the work of its driver. A curve ends where its next run would take
more than `--seconds`. Figures are kept in a file, so that parts can be measured again.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import describe
from process_stats import run

from vlatool.datasets.frames.layout import FramesFolder
from vlatool.datasets.lbm.layout import read_manifest, write_manifest
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.files import NAME as FILE_LIST
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Receipt
from vlatool.jobs.run import run_job
from vlatool.loading.base import DataSet
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.config import FrameWindowsConfig
from vlatool.loading.robotics.frames import FrameWindows
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessJob

HERE = Path(__file__).resolve()
VLATOOL = [sys.executable, "-m", "vlatool"]
FRAMES = 20  # of an episode
SAMPLES = 128  # of a shard
ROWS_PER_FILE = 100_000
LINKS = 30_000  # to one file; a file system allows 65,000


@dataclass(frozen=True)
class Figure:
    """What a run with `count` things took."""

    count: int
    seconds: float  # of the command; CPU seconds of a start of training, without imports
    mib: float  # peak memory of the process, start-up included
    bytes: int = 0  # of the lists that it reads


@dataclass(frozen=True)
class Curve:
    """A measured thing."""

    title: str
    most: int  # largest count
    measure: Callable[[Path, int], Figure]  # of a count, in a folder that all curves share


def lerobot_set(root: Path, episodes: int, frames: int) -> Path:
    """A LeRobot v3.0 set without cameras, if it is not there yet."""
    if root.exists():
        return root
    index = np.arange(episodes * frames)
    frame = index % frames
    state = np.random.default_rng(0).normal(size=(len(index), 3)).cumsum(axis=0).astype(np.float32)
    action = np.roll(state, -1, axis=0)
    rows = pa.table(
        {
            "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(state.ravel()), 3),
            "action": pa.FixedSizeListArray.from_arrays(pa.array(action.ravel()), 3),
            "timestamp": pa.array(frame / 10, pa.float32()),
            "frame_index": frame,
            "episode_index": index // frames,
            "index": index,
            "task_index": np.zeros_like(index),
        }
    )
    for folder in ("data/chunk-000", "meta/episodes/chunk-000"):
        (root / folder).mkdir(parents=True)
    rows_per_file = max(ROWS_PER_FILE, frames)  # an episode is in one file
    for number, start in enumerate(range(0, len(index), rows_per_file)):
        part = rows.slice(start, rows_per_file)
        pq.write_table(part, root / f"data/chunk-000/file-{number:03d}.parquet")
    numbers = np.arange(episodes)
    lines = {
        "episode_index": numbers,
        "tasks": [["move"]] * episodes,
        "length": np.full(episodes, frames),
        "data/chunk_index": np.zeros_like(numbers),
        "data/file_index": numbers * frames // rows_per_file,
        "dataset_from_index": numbers * frames,
        "dataset_to_index": (numbers + 1) * frames,
    }
    pq.write_table(pa.table(lines), root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = {"task_index": [0], "__index_level_0__": ["move"]}
    pq.write_table(pa.table(tasks), root / "meta/tasks.parquet")
    widths = {"observation.state": 3, "action": 3, "timestamp": 1}
    features = {name: {"dtype": "float32", "shape": [width]} for name, width in widths.items()}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1]}
    info = {"codebase_version": "v3.0", "total_episodes": episodes, "total_frames": len(index)}
    paths = {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
    info |= {**paths, "video_path": None, "chunks_size": 1000, "fps": 10, "features": features}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def episodes_of(folder: Path, count: int) -> Path:
    """The set with a number of episodes."""
    return lerobot_set(folder / f"set-{count}", count, FRAMES)


def command(count: int, words: Sequence[object], lists: Sequence[Path] = ()) -> Figure:
    """Runs a command of vlatool."""
    stats = run([*VLATOOL, *map(str, words)])
    size = sum(path.stat().st_size for path in lists)
    return Figure(count, stats.seconds, max(stats.driver_mib, stats.worker_mib), size)


def part(count: int, name: str, folder: Path) -> Figure:
    """Runs a function of `PARTS` in a process of its own."""
    words = [sys.executable, str(HERE), "--part", name, "--folder", str(folder)]
    stats = run([*words, "--count", str(count)])
    result = json.loads(stats.stdout.splitlines()[-1])
    return Figure(count, result["seconds"], stats.driver_mib, result["bytes"])


def inspect_episodes(folder: Path, count: int) -> Figure:
    """`inspect` of a set reads the rows of each episode."""
    source = episodes_of(folder, count)
    return command(count, ["inspect", source], [*source.glob("meta/**/*.parquet")])


def inspect_frames(folder: Path, count: int) -> Figure:
    """`inspect` of one long episode."""
    return command(count, ["inspect", lerobot_set(folder / f"long-{count}", 1, count)])


def inspect_objects(folder: Path, count: int) -> Figure:
    """`inspect` of objects in S3, one for each episode."""
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.builders.lerobot import lerobot_dataset
    from tests.builders.s3_server import s3_server

    source = folder / f"objects-{count}"
    lerobot_dataset(source, [FRAMES] * count, cameras={})
    with s3_server() as server:
        os.environ.update(server.env)
        bucket = server.bucket()
        for path in source.rglob("*.*"):
            server.client().upload_file(str(path), bucket, path.relative_to(source).as_posix())
        return command(count, ["inspect", f"s3://{bucket}"])


def dry_run(folder: Path, count: int) -> Figure:
    """`preprocess --dry-run` reads each episode and writes nothing."""
    words = ["preprocess", episodes_of(folder, count), "--output", folder / "dry", "--dry-run"]
    return command(count, [*words, "--workers", 1, "-q"])


def finished_job(folder: Path, count: int) -> Figure:
    """The driver of `preprocess`: journal, manifest, file list and record of all episodes."""
    episodes_of(folder, count)
    return part(count, "finish", folder)


def repeated(folder: Path, count: int) -> Figure:
    """The command of a finished job again, which compares its inputs and its files."""
    output = folder / f"out-{count}"
    if not output.exists():
        finished_job(folder, count)
    words = ["preprocess", "lerobot", episodes_of(folder, count), "--output", output, "-q"]
    return command(count, words, [output / "frames.json", output / FILE_LIST])


def start_of_frames(folder: Path, count: int) -> Figure:
    """Start of training on the frames of that job, whose windows were counted by an earlier run."""
    repeated(folder, count)
    part(count, "frames", folder)  # counts the windows
    return part(count, "frames", folder)


def start_of_shards(folder: Path, count: int) -> Figure:
    """Start of training on shards of 128 samples."""
    path = folder / f"shards-{count}" / "manifest.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_manifest(path, [(f"shard_{number:06d}", SAMPLES) for number in range(count)])
    return part(count, "shards", folder)


def finish(folder: Path, count: int) -> dict[str, float]:
    """Runs the job on N episodes; all but the first are links to its files."""
    tree: dict[str, Any] = {"format": "lerobot", "sources": [str(episodes_of(folder, count))]}
    output = folder / f"out-{count}"
    tree |= {"sink": "frames", "output": str(output)}
    started = time.perf_counter()
    job = PreprocessJob(PreprocessConfig.specialize(tree).model_validate(tree))
    made = MadeReceipts(output, job.spec.work)
    job.spec = replace(job.spec, work=made)
    run_job(job, SerialExecutor())
    size = (output / "frames.json").stat().st_size + (output / FILE_LIST).stat().st_size
    return {"seconds": time.perf_counter() - started, "bytes": size}


class MadeReceipts:
    """Work on an episode that links to the files of an earlier one."""

    def __init__(self, output: Path, work: Callable[[Any], Receipt]) -> None:
        self._output = output
        self._work = work
        self._made = 0
        self._last: Receipt | None = None

    def __call__(self, ref: Any) -> Receipt:
        self._made += 1
        if self._last is None or self._made % LINKS == 0:
            self._last = self._work(ref)
            return self._last
        files: list[FileEntry] = []
        for entry in self._last.files:
            name = entry.path.replace(self._last.item, ref.id)
            os.link(self._output / entry.path, self._output / name)
            files.append(replace(entry, path=name))
        return replace(self._last, item=ref.id, files=tuple(files))


def frames(folder: Path, count: int) -> dict[str, float]:
    """Reads the manifest and the counts of windows; orders the samples."""
    path = folder / f"out-{count}"
    started = time.process_time()
    found = FramesFolder.find(path)
    assert found is not None
    cache = folder / "cache"
    windows = FrameWindows(found, FrameWindowsConfig(), cache, (), None, "train")
    shards = windows.shards()
    first_samples(DataSet("", shards))
    seconds = time.process_time() - started
    return {"seconds": seconds, "bytes": (path / "frames.json").stat().st_size}


def shards(folder: Path, count: int) -> dict[str, float]:
    """Reads the manifest and makes its fingerprint; orders the samples."""
    path = folder / f"shards-{count}" / "manifest.jsonl"
    started = time.process_time()
    table = read_manifest(path)
    first_samples(DataSet("", table))
    assert table.digest
    return {"seconds": time.process_time() - started, "bytes": path.stat().st_size}


def first_samples(dataset: DataSet) -> None:
    """The order of a data set, and its first 1,000 samples."""
    SampleOrder([dataset], OrderOptions()).refs(range(1000))


PARTS = {"finish": finish, "frames": frames, "shards": shards}
CURVES = {
    "inspect": Curve("`inspect`, episodes", 10**6, inspect_episodes),
    "long": Curve("`inspect`, frames of one episode", 10**6, inspect_frames),
    "objects": Curve("`inspect`, objects in S3", 10**4, inspect_objects),
    "dry": Curve("`preprocess --dry-run`, episodes", 10**6, dry_run),
    "driver": Curve("driver of `preprocess`, episodes", 10**6, finished_job),
    "again": Curve("the finished command again, episodes", 10**6, repeated),
    "frames": Curve("start of training, episodes of frames", 10**6, start_of_frames),
    "start": Curve("start of training, shards", 10**6, start_of_shards),
}


def measured(curve: Curve, folder: Path, limits: argparse.Namespace) -> Iterator[Figure]:
    """Figures for 100, 1,000, ... things, until the next one would take too long."""
    count = 100
    while count <= min(curve.most, limits.most):
        started = time.perf_counter()
        yield curve.measure(folder, count)
        if 10 * (time.perf_counter() - started) > limits.seconds:
            return
        count *= 10


def table(figures: dict[str, list[dict[str, Any]]]) -> str:
    """The figures as a table of Markdown."""
    counts = [10**power for power in range(2, 7)]
    lines = [f"| Work | {' | '.join(f'{count:,}' for count in counts)} | lists |"]
    lines.append("|---" * (len(counts) + 2) + "|")
    for name, curve in CURVES.items():
        cells: dict[int, str] = {}
        size = ""
        for row in figures.get(name, ()):
            figure = Figure(**row)
            cells[figure.count] = f"{figure.seconds:.2f} s, {figure.mib:.0f} MiB"
            if figure.bytes:
                size = f"{figure.bytes / figure.count:.0f} bytes each"
        row_text = " | ".join(cells.get(count, "") for count in counts)
        lines.append(f"| {curve.title} | {row_text} | {size} |")
    return "\n".join(lines)


COLORS = ("#1f6fb4", "#d0552b", "#2f8f4e", "#8a4fb0", "#b3872a", "#c23d75", "#4a4a4a", "#159a9c")
WIDTH, HEIGHT, LEFT, TOP = 420, 300, 60, 20  # of the plot, and its place
DECADES = range(-3, 4)  # of seconds


def place(count: float, seconds: float) -> tuple[float, float]:
    """Point of the plot, both axes logarithmic."""
    x = LEFT + WIDTH * (math.log10(count) - 2) / 4
    share = (math.log10(max(seconds, 1e-3)) - DECADES[0]) / (DECADES[-1] - DECADES[0])
    return round(x, 1), round(TOP + HEIGHT * (1 - share), 1)


def chart(figures: dict[str, list[dict[str, Any]]]) -> str:
    """Seconds against the count of things, as SVG."""
    size = f'width="760" height="{TOP + HEIGHT + 50}"'
    style = 'font-family="sans-serif" font-size="12"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>']
    lines.append('<rect width="100%" height="100%" fill="white"/>')
    for power in range(2, 7):
        x, bottom = place(10**power, 10 ** DECADES[0])
        lines.append(f'<path d="M{x} {TOP}V{bottom}" stroke="#ddd"/>')
        lines.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{10**power:,}</text>')
    for power in DECADES:
        _, y = place(100, 10**power)
        lines.append(f'<path d="M{LEFT} {y}H{LEFT + WIDTH}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{10**power:g} s</text>')
    start, stop = place(100, 1e-2), place(10**6, 100)
    linear = f"M{start[0]} {start[1]}L{stop[0]} {stop[1]}"
    lines.append(f'<path d="{linear}" stroke="#999" stroke-dasharray="4 4"/>')
    lines.append(f'<text x="{stop[0] - 6}" y="{stop[1] - 6}" text-anchor="end">linear</text>')
    for number, (name, curve) in enumerate(CURVES.items()):
        points = [place(row["count"], row["seconds"]) for row in figures.get(name, ())]
        drawn = " ".join(f"{x},{y}" for x, y in points)
        color = COLORS[number]
        lines.append(f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="2"/>')
        y = TOP + 14 + 20 * number
        text = curve.title.replace("`", "")
        lines.append(f'<text x="{LEFT + WIDTH + 14}" y="{y}" fill="{color}">{text}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main(arguments: argparse.Namespace) -> None:
    """Measures the curves that were asked for; prints the table of all that are known."""
    stored: Path = arguments.figures
    figures: dict[str, list[dict[str, Any]]] = {}
    if stored.exists():
        figures = json.loads(stored.read_text())
    names = arguments.only.split(",") if arguments.only else [*CURVES]
    if not arguments.draw:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            for name in names:
                figures[name] = []
                for figure in measured(CURVES[name], Path(folder), arguments):
                    figures[name].append(asdict(figure))
                    stored.write_text(json.dumps(figures))
                    print(name, figure, file=sys.stderr, flush=True)
    print(f"{describe()}\n\n{table(figures)}")
    if arguments.draw:
        arguments.draw.write_text(chart(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="longest run of a curve")
    parser.add_argument("--most", type=int, default=10**6, help="largest count")
    parser.add_argument("--only", default="", help=f"curves: {', '.join(CURVES)}; default: all")
    parser.add_argument("--figures", type=Path, default=Path("scaling.json"))
    parser.add_argument("--draw", type=Path, help="write the chart of the figures, measure nothing")
    parser.add_argument("--folder", help="where the lists are made; default: the temporary folder")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](Path(arguments.folder), arguments.count)))
    else:
        main(arguments)
