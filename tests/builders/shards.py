"""Tiny output of `vlatool preprocess`, written without vlatool.

Source: formats/lbm 2.5, 3.1, 6.1.
"""

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

CAMERAS = ("front", "wrist")
OFFSETS = (-1, 0)
PAST, FUTURE = 1, 2
SIZE = (8, 6)

Members = dict[str, bytes]
Change = Callable[[str, Members], None]


def arrays(number: int) -> dict[str, np.ndarray]:
    """Arrays of sample `number`: two fields, calibration, masks; the last step is padded."""
    steps = PAST + 1 + FUTURE
    rows = number + np.arange(steps, dtype=np.float64)[:, None]
    valid = np.arange(steps) < steps - 1
    return {
        "language_instruction": np.array(["put it there"] * steps),
        "state": np.concatenate([rows, -rows / 3], axis=1),
        "action": np.sin(rows),
        "original_intrinsics.front": np.tile(np.eye(3), (steps, 1, 1)),
        "past_mask": valid & (np.arange(steps) < PAST),
        "future_mask": valid & (np.arange(steps) >= PAST),
    }


def npz(content: Mapping[str, Any]) -> bytes:
    """Bytes of an npz; object arrays are pickled."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


def npz_with_header(name: str, header: str) -> bytes:
    """Bytes of an npz of one array with this header."""
    text = header.encode("latin1") + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
        archive.writestr(f"{name}.npy", start + text + bytes(24))
    return buffer.getvalue()


def jpeg(number: int, size: tuple[int, int] = SIZE) -> bytes:
    """JPEG of (width, height) `size`."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 20 % 256, 90, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def members(number: int) -> Members:
    """Suffix to content of a sample."""
    images = {f"{camera}_t{offset}.jpg": jpeg(number) for offset in OFFSETS for camera in CAMERAS}
    metadata = {
        "anchor_relative_idx": PAST,
        "camera_names": list(CAMERAS),
        "original_image_sizes": {camera: list(SIZE) for camera in CAMERAS},
    }
    return {
        **images,
        "lowdim.npz": npz(arrays(number)),
        "metadata.json": json.dumps(metadata).encode(),
        "language_instructions.json": b'{"original": ["put it there"]}',
    }


def key_of(number: int) -> str:
    """Key of a sample."""
    return f"sample-{number:04d}"


def shard_output(
    folder: Path,
    *,
    samples: int = 6,  # number of samples
    change: Change = lambda _key, _members: None,
    stats: Callable[[dict[str, Any]], None] = lambda _stats: None,
) -> Path:
    """Writes an output with three samples per shard and two per episode; returns `folder`."""
    contents: dict[str, Members] = {}
    for number in range(samples):
        contents[key_of(number)] = members(number)
        change(key_of(number), contents[key_of(number)])
    shuffled = sorted(contents, key=lambda key: hashlib.sha256(key.encode()).digest())
    statistics = _statistics(samples)
    stats(statistics)
    for part, stem, keys, step in (
        ("shards", "shard_{:06d}", shuffled, 3),
        ("episodes", "episode_pick_{}", list(contents), 2),
    ):
        parts = [keys[start : start + step] for start in range(0, len(keys), step)]
        for number, chosen in enumerate(parts):
            write_tar(folder / part / f"{stem.format(number)}.tar", chosen, contents)
        rows = [
            {"shard": stem.format(number), "num_sequences": len(chosen)}
            for number, chosen in enumerate(parts)
        ]
        (folder / part / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / part / "stats.json").write_text(json.dumps(statistics))
    options = {
        "camera_names": list(CAMERAS),
        "image_indices": list(OFFSETS),
        "past_lowdim_steps": PAST,
        "future_lowdim_steps": FUTURE,
        "resize_images_size": list(SIZE),
    }
    (folder / "shards/preprocessing_config.yaml").write_text(yaml.safe_dump(options))
    write_list(folder)
    return folder


def write_tar(path: Path, keys: Sequence[str], contents: Mapping[str, Members]) -> None:
    """Writes a tar of samples, in the order of `keys`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key in keys:
            for suffix, data in contents[key].items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_list(folder: Path) -> None:
    """Writes `.vlatool/files.jsonl` for the current files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = [
        {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
        if ".vlatool" not in path.parts
    ]
    (folder / ".vlatool").mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / ".vlatool/files.jsonl").write_text(text)


def _statistics(samples: int) -> dict[str, Any]:
    """Content of stats.json without percentiles."""
    statistics: dict[str, Any] = {}
    for name in ("state", "action"):
        values = np.stack([arrays(number)[name] for number in range(samples)])  # [N, T, C]
        rows = values[:, :-1].reshape(-1, values.shape[2])
        count = [samples] * (values.shape[1] - 1) + [0]
        low, high = values.min(axis=0).tolist(), values.max(axis=0).tolist()
        mean, std = values.mean(axis=0), values.std(axis=0, ddof=1)
        mean[-1], std[-1], low[-1], high[-1] = 0, 0, [None] * len(low[0]), [None] * len(low[0])
        squared_deviations = std[:-1] ** 2 + (mean[:-1] - rows.mean(axis=0)) ** 2
        statistics[name] = {
            "count": count,
            "mean": rows.mean(axis=0).tolist(),
            "std": np.sqrt(squared_deviations.mean(axis=0)).tolist(),
            "min": rows.min(axis=0).tolist(),
            "max": rows.max(axis=0).tolist(),
            "mean_per_timestep": mean.tolist(),
            "std_per_timestep": std.tolist(),
            "min_per_timestep": low,
            "max_per_timestep": high,
        }
    return statistics
