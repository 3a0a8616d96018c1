"""Comparison of a LeRobot v3.0 set as read here with the official library, row by row.

    python benchmarks/lerobot_reads.py SET [--environment DIR] [--images 40]
    python benchmarks/lerobot_reads.py SET --source hdf5 RAW [--keys '{"fps": 20}']

Installs the newest `lerobot` that this Python takes into an environment of its own (several GB,
because it brings torch and torchvision), which `--environment` keeps for the next call. All numeric
columns are compared, and evenly spaced images of every camera. With --source, states, actions,
tasks and images are compared with the recordings that the set was made of; the images are equal if
it was written with `--sink.use_videos false`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

# Runs in the environment of the official library.
_READ = """
import json, sys
import numpy as np
from importlib.metadata import version
from lerobot.datasets.lerobot_dataset import LeRobotDataset

root, count, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
data = LeRobotDataset("local/set", root=root, video_backend="pyav")
rows = data.hf_dataset.with_format("arrow")[:]
numbers = {}
for name, feature in data.meta.features.items():
    if feature["dtype"] not in ("image", "video", "string", "language"):
        numbers[name] = np.array(rows[name].to_pylist())
chosen = sorted({*np.linspace(0, len(data) - 1, count).round().astype(int).tolist()})
images, tasks = {}, []
for index in chosen:
    item = data[index]
    tasks.append(item["task"])
    for camera in data.meta.camera_keys:
        image = (item[camera].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
        images.setdefault(camera, []).append(image)
arrays = {f"image/{name}": np.stack(value) for name, value in images.items()}
np.savez(out, chosen=chosen, **{f"row/{name}": value for name, value in numbers.items()}, **arrays)
print(json.dumps({"version": version("lerobot"), "rows": len(data), "tasks": tasks,
                  "episodes": data.meta.total_episodes}))
"""


def main(location: str, environment: str, images: int, source: list[str], keys: str) -> None:
    """Prints what was compared; ends with 1 at the first difference."""
    with tempfile.TemporaryDirectory() as name:
        python = install(Path(environment or name) / "lerobot")
        out = Path(name) / "official.npz"
        words = [str(python), "-c", _READ, location, str(images), str(out)]
        answer = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        official = json.loads(answer.stdout.splitlines()[-1])
        with np.load(out) as arrays:
            problems = compare(location, official, dict(arrays), source, json.loads(keys))
    print("\n".join(problems) or "equal")
    sys.exit(bool(problems))


def install(folder: Path) -> Path:
    """Python of an environment with the official library."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "lerobot>=0.4"], check=True)
    return python


def compare(
    location: str,
    official: dict[str, Any],
    arrays: dict[str, Any],
    source: list[str],
    keys: dict[str, Any],
) -> list[str]:
    """Differences between the two readers."""
    from vlatool.plugins import FORMATS

    name, folder = source or ("lerobot", location)
    reader = FORMATS.get(name)(FORMATS.get(name).Config(**keys))
    episodes = [reader.read(ref) for ref in reader.discover([Path(folder)])]
    columns = {name: [name] for name in episodes[0].lowdim}
    if source:
        columns = {"observation.state": episodes[0].proprioception_fields}
        columns |= {"action": episodes[0].action_fields}
    rows = sum(episode.num_frames for episode in episodes)
    problems = []
    if (official["rows"], official["episodes"]) != (rows, len(episodes)):
        problems.append(f"{official['rows']} rows, here {rows}")
    for name, fields in columns.items():
        joined = [np.concatenate([e.lowdim[field] for field in fields], 1) for e in episodes]
        here = np.concatenate(joined).astype(arrays[f"row/{name}"].dtype)
        there = arrays[f"row/{name}"].reshape(here.shape)
        if not np.array_equal(here, there):
            problems.append(f"{name} differs")
    starts = np.cumsum([0, *(episode.num_frames for episode in episodes)])
    cameras = [name for name in arrays if name.startswith("image/")]
    errors = dict.fromkeys(cameras, 0)
    for position, index in enumerate(arrays["chosen"].tolist()):
        number = int(np.searchsorted(starts, index, "right")) - 1
        episode = episodes[number]
        frame = index - int(starts[number])
        if official["tasks"][position] != episode.instruction_at(frame):
            problems.append(f"row {index}: task {official['tasks'][position]!r}")
        for name in cameras:
            camera = name.removeprefix("image/observation.images." if source else "image/")
            here = episode.cameras[camera].read([frame])[0].astype(int)
            there = arrays[name][position].astype(int)
            errors[name] = max(errors[name], int(np.abs(here - there).max()))
    for name, error in errors.items():
        if error > 2:  # rounding of colors in other decoders
            problems.append(f"{name} differs by {error}")
    shown = ", ".join(f"{name} by at most {error}" for name, error in errors.items())
    print(f"lerobot {official['version']}: {rows} rows of {len(episodes)} episodes")
    print(f"{len(arrays['chosen'])} images: {shown}")
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("location", help="a LeRobot set of v3.0")
    parser.add_argument("--environment", default="", help="folder that keeps the environment")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--source", nargs=2, default=[], metavar=("FORMAT", "RAW"))
    parser.add_argument("--keys", default="{}", help="keys of the format, JSON")
    main(**vars(parser.parse_args()))
