"""Images/s from LIBERO-shaped tables to windows, against a plain script that re-encodes each image.

    python benchmarks/windows.py [--episodes N] [--frames N] [--workers N] [--repeat N]

The plain script works like the published converter: it decodes every image to RGB and writes it as
PNG with the defaults of Pillow, then the lines of the episode. Both read the same tables, run in
turn, and are timed from start to end, including start-up.
"""

import argparse
import io
import json
import shutil
import statistics
import sys
import tempfile
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import describe
from PIL import Image
from process_stats import ProcessStats, run

CAMERAS = ("image", "wrist_image")
SIZE, STEPS, DISTINCT = 256, 16, 48
TASK = "put the bowl on the plate"
DATA = "data/chunk-000/episode_{:06d}.parquet"


def main(arguments: argparse.Namespace) -> None:
    """Makes the tables, times both in turn, prints the results of the median runs."""
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder, "raw"), Path(folder, "out")
        kilobytes = make_input(raw, arguments.episodes, arguments.frames)
        images = 2 * arguments.episodes * arguments.frames
        print(describe())
        print(f"{images} images of {kilobytes:.0f} kB, {arguments.workers} workers")
        runs_by_name: dict[str, list[ProcessStats]] = {"plain": [], "vlatool": []}
        for _ in range(arguments.repeat):
            for name, runs in runs_by_name.items():
                runs.append(run(command(name, raw, out, arguments.workers)))
                shutil.rmtree(out)
        rates = {name: report(name, runs, images) for name, runs in runs_by_name.items()}
        print(f"ratio: {rates['vlatool'] / rates['plain']:.1f}")


def command(name: str, raw: Path, out: Path, workers: int) -> list[str]:
    """Command to measure."""
    if name == "plain":
        return [sys.executable, __file__, "--plain", str(raw), str(out), "--workers", str(workers)]
    words = [sys.executable, "-m", "vlatool", "preprocess", "libero", str(raw), "-o", str(out)]
    return [*words, "--workers", str(workers), "-q"]


def report(name: str, runs: list[ProcessStats], images: int) -> float:
    """Prints the results of the median run; returns its images per second."""
    median = statistics.median_low([stats.seconds for stats in runs])
    stats = next(stats for stats in runs if stats.seconds == median)
    times = f"{median:.1f} s, {stats.cpu_s:.1f} s CPU"
    memory = f"driver {stats.driver_mib:.0f} MiB, worker {stats.worker_mib:.0f} MiB"
    print(f"{name}: {images / median:.0f} images/s, {times}, {memory}")
    return images / median


def make_input(raw: Path, episodes: int, frames: int) -> float:
    """Writes tables with images that compress like photographs; returns their mean size in kB."""
    rng = np.random.default_rng(0)
    cells = [{"bytes": image(rng), "path": None} for _ in range(DISTINCT)]
    features: dict[str, Any] = {
        name: {"dtype": "image", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channel"]}
        for name in CAMERAS
    }
    for name, width in {"state": 8, "actions": 7}.items():
        features[name] = {"dtype": "float32", "shape": [width], "names": None}
    meta = raw / "meta"
    meta.mkdir(parents=True)
    info = {"codebase_version": "v2.0", "fps": 10, "features": features}
    (meta / "info.json").write_text(json.dumps(info))
    lines = [
        {"episode_index": number, "tasks": [TASK], "length": frames} for number in range(episodes)
    ]
    (meta / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": TASK}) + "\n")
    for number in range(episodes):
        path = raw / DATA.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(cells, number, frames, rng), path)
    return sum(len(line["bytes"]) for line in cells) / len(cells) / 1e3


def table(cells: list[Any], number: int, frames: int, rng: np.random.Generator) -> pa.Table:
    """Table of one episode."""
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image_indices = {name: rng.integers(len(cells), size=frames) for name in CAMERAS}
    columns: dict[str, Any] = {
        name: pa.array([cells[index] for index in indices], image_type)
        for name, indices in image_indices.items()
    }
    for name, width in {"state": 8, "actions": 7}.items():
        values = rng.normal(size=(frames, width)).tolist()
        columns[name] = pa.array(values, pa.list_(pa.float32()))
    columns["frame_index"] = np.arange(frames)
    columns["episode_index"] = np.full(frames, number)
    columns["task_index"] = np.zeros(frames, np.int64)
    return pa.table(columns)


def image(rng: np.random.Generator) -> bytes:
    """Smooth shapes with camera noise, as PNG."""
    rough = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    soft = np.asarray(rough.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.int16)
    noisy = np.clip(soft + rng.integers(-2, 3, soft.shape), 0, 255).astype(np.uint8)
    return encoded(Image.fromarray(noisy))


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


# The plain script


def convert_all(raw: Path, out: Path, workers: int) -> None:
    """Converts all episodes in parallel."""
    files = sorted(raw.glob("data/chunk-*/episode_*.parquet"))
    with Pool(workers) as pool:
        pool.starmap(convert, [(file, out) for file in files], chunksize=1)


def convert(file: Path, out: Path) -> None:
    """Converts an episode: decodes and re-encodes its images, then writes two lines per step."""
    rows = pq.read_table(file).to_pylist()
    folder = out / "images" / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        for camera in CAMERAS:
            image = Image.open(io.BytesIO(row[camera]["bytes"])).convert("RGB")
            image.save(folder / f"raw_{camera}_{file.stem}_frame_{row['frame_index']:06d}.png")
    (out / "data").mkdir(parents=True, exist_ok=True)
    with (out / "data" / f"{file.stem}.jsonl").open("w") as lines:
        for anchor in range(len(rows)):
            for text in lines_of(rows, file.stem, anchor):
                lines.write(text + "\n")


def lines_of(rows: list[Any], stem: str, anchor: int) -> list[str]:
    """Two lines of a step."""
    last = len(rows) - 1

    def names(frames: range) -> list[str]:
        return [
            f"images/{stem}/raw_{camera}_{stem}_frame_{min(max(frame, 0), last):06d}.png"
            for frame in frames
            for camera in CAMERAS
        ]

    still = [0.0] * 6 + [rows[last]["actions"][6]]
    chunk = [rows[j]["actions"] if j <= last else still for j in range(anchor, anchor + STEPS)]
    tags, future = "<image>" * 2 * STEPS, "<Recimage>" * 2 * STEPS
    act, rec = "<Act><action></Act>", f"<Rec>{future}</Rec>."
    texts = [
        (
            "Based on the observation, what action should be executed?",
            f"The robot should execute{act}, which will lead to the next state{rec}",
        ),
        (
            f"If we execute the action{act}, what will be the resulting state?",
            f"After executing{act}, the system will transition to the state{rec}",
        ),
    ]
    lines: list[str] = []
    for question, answer in texts:
        user_message = {"role": "user", "content": f"{tags}Task: {TASK}\n\n{question}"}
        row = {
            "messages": [user_message, {"role": "assistant", "content": answer}],
            "images": names(range(anchor - STEPS + 1, anchor + 1)),
            "Recimage": names(range(anchor + 1, anchor + 1 + STEPS)),
            "actions": chunk,
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--plain", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        convert_all(*arguments.plain, arguments.workers)
    else:
        main(arguments)
