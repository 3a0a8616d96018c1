"""Recordings of labs to LeRobot v3.0, beside the command of another program.

    python benchmarks/recordings.py RECORDINGS [--megabytes 400,800] [--forge FORGE] [--workers N]

RECORDINGS has `bridge/1.0.0` (RLDS), `isaaclab/dataset.hdf5` and `pusht.zarr`, as in the tests. The
episodes of the first two are repeated up to so many megabytes (HDF5, RLDS); of PushT the episodes
with images are taken. Needs h5py and zarr. `--forge` is the program of the package forge-robotics.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import machine
import zarr

IMAGES = 2576  # rows of PushT that have images


def main(recordings: Path, megabytes: list[int], forge: str, workers: str) -> None:
    """Prints seconds, size and fields of each output."""
    print(machine.describe())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = {
            "hdf5": hdf5(recordings / "isaaclab/dataset.hdf5", folder, megabytes[0]),
            "rlds": rlds(recordings / "bridge/1.0.0", folder, megabytes[1]),
            "zarr": pusht(recordings / "pusht.zarr", folder),
        }
        for kind, source in sources.items():
            words = ["-m", "vlatool", "preprocess", kind, str(source), "--sink", "lerobot"]
            words += ["--fps", "10", *(["--workers", workers] if workers else [])]
            report(kind, [sys.executable, *words, "--output", str(folder / f"here-{kind}")])
            if forge:
                target = str(folder / f"forge-{kind}")
                words = ["convert", str(source), target, "--format", "lerobot-v3", "--fps", "10"]
                report(f"{kind}, forge", [forge, *words])


def report(title: str, words: list[str]) -> None:
    output = Path(words[words.index("--format") - 1] if "convert" in words else words[-1])
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    info = json.loads((output / "meta/info.json").read_text())
    numbers = sum(
        feature["shape"][0] for feature in info["features"].values() if len(feature["shape"]) == 1
    )
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / 1e6
    print(
        f"{title}: {seconds:.1f} s, {info['total_episodes']} episodes, {numbers} numbers a row, "
        f"{info['total_tasks']} instructions, {size:.0f} MB"
    )


def hdf5(path: Path, folder: Path, megabytes: int) -> Path:
    target = folder / "demos.hdf5"
    with h5py.File(path) as source, h5py.File(target, "w") as file:
        data = file.create_group("data")
        names = sorted(source["data"])
        for number in range(max(1, megabytes * 10**6 // path.stat().st_size) * len(names)):
            source.copy(source["data"][names[number % len(names)]], data, f"demo_{number}")
    return target


def rlds(path: Path, folder: Path, megabytes: int) -> Path:
    target = folder / "bridge_dataset/1.0.0"
    target.mkdir(parents=True)
    shutil.copy(path / "features.json", target)
    content = next(path.glob("*.tfrecord*")).read_bytes()
    info = json.loads((path / "dataset_info.json").read_text())
    shards = max(1, megabytes * 10**6 // len(content))
    split = {**info["splits"][0], "shardLengths": ["25"] * shards}
    (target / "dataset_info.json").write_text(json.dumps({**info, "splits": [split]}))
    for number in range(shards):
        name = f"bridge_dataset-train.tfrecord-{number:05d}-of-{shards:05d}"
        (target / name).write_bytes(content)
    return target.parent


def pusht(path: Path, folder: Path) -> Path:
    source = zarr.open_group(str(path), mode="r")
    stops = [int(stop) for stop in source["meta/episode_ends"][:] if stop <= IMAGES]
    target = zarr.open_group(str(folder / "pusht.zarr"), mode="w", zarr_format=2)
    for name in ("action", "state", "img", "keypoint", "n_contacts"):
        values = source[f"data/{name}"][: stops[-1]]
        target.create_array(f"data/{name}", data=values, chunks=source[f"data/{name}"].chunks)
    target.create_array("meta/episode_ends", data=source["meta/episode_ends"][: len(stops)])
    return folder / "pusht.zarr"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--megabytes", default="400,800")
    parser.add_argument("--forge", default="")
    parser.add_argument("--workers", default="")
    options = parser.parse_args()
    sizes = [int(size) for size in options.megabytes.split(",")]
    main(options.recordings, sizes, options.forge, options.workers)
