"""Shards compared with a second, simple implementation of the published rules.

The oracle below is written from formats/lbm-preprocessing 2; formats/lbm 2, 4 with loops and 4x4
matrices. It is slow, and shares only Pillow and numpy with the product.
"""

import io
import json
import tarfile
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.builders.forks import Forks

PAST, FUTURE, STRIDE, LEFT, RIGHT = 2, 5, 1, 1, 4
OFFSETS = (-1, 0)
SIZE = (384, 384)
CAMERAS = ("scene_right_0", "wrist_left_plus")
ACTIONS = {
    "robot__action__poses__right::panda__xyz": slice(0, 3),
    "robot__action__poses__right::panda__rot_6d": slice(3, 9),
    "robot__action__poses__left::panda__xyz": slice(9, 12),
    "robot__action__poses__left::panda__rot_6d": slice(12, 18),
    "robot__action__grippers__right::panda_hand": slice(18, 19),
    "robot__action__grippers__left::panda_hand": slice(19, 20),
}
DISCARDED = "robot__desired__wrench__right::panda"


@pytest.fixture(scope="module")
def raw(light: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity") / "raw"
    vlatool(light, "sample", "spartan", folder, "--episodes", 2, "--frames", 10, "--cameras", 4,
            "--size", "published")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def output(light: Forks, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parity") / "out"
    vlatool(light, "preprocess", "spartan", raw, "-o", out, "--samples-per-shard", 7, "--compat",
            "--past-lowdim-steps", PAST, "--future-lowdim-steps", FUTURE,
            "--max-padding-left", LEFT, "--max-padding-right", RIGHT,
            "--resize-images-size", "384,384", "--camera-names", ",".join(CAMERAS),
            "--data-discard-keys", DISCARDED)  # fmt: skip
    return out


def vlatool(light: Forks, *words: Any) -> None:
    done = light.run([*map(str, words), "-q"], seconds=120)
    assert done.code == 0, done.stderr


def samples(output: Path) -> dict[tuple[str, int], dict[str, bytes]]:
    """(episode folder, anchor) to the members of each sample in the shards."""
    by_key: dict[str, dict[str, bytes]] = defaultdict(dict)
    for path in sorted((output / "shards").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None
                by_key[key][suffix] = file.read()
    by_anchor: dict[tuple[str, int], dict[str, bytes]] = {}
    for members in by_key.values():
        info = json.loads(members["metadata.json"])
        episode = info["source_episode"].rpartition("/")[2]
        by_anchor[episode, info["anchor_timestep"]] = members
    return by_anchor


class Oracle:
    """Windows of one raw episode by the published rules."""

    def __init__(self, folder: Path) -> None:
        processed = folder / "processed"
        self.arrays = dict(np.load(processed / "observations.npz"))
        actions = np.load(processed / "actions.npz")["actions"]
        self.intrinsics = dict(np.load(processed / "intrinsics.npz"))
        self.extrinsics = dict(np.load(processed / "extrinsics.npz"))
        self.length = len(actions)
        text = (processed / "metadata.yaml").read_text()
        self.ids = {
            line.split(":")[1].strip(): line.split(":")[0].strip().strip("'\"")
            for line in text.splitlines()
            if line.startswith("  ")
        }
        self.lowdim = {
            name: values
            for name, values in self.arrays.items()
            if (values.ndim <= 2 or name.startswith(("robot__", "language_"))) and name != DISCARDED
        }
        self.lowdim |= {name: actions[:, part] for name, part in ACTIONS.items()}
        self.image = cache(self._image)

    def anchors(self) -> list[int]:
        complete = []
        for anchor in range(0, self.length, STRIDE):
            left = max(0, -(anchor - PAST))
            right = max(0, anchor + FUTURE - self.length + 1)
            if left <= LEFT and right <= RIGHT:
                complete.append(anchor)
        return complete

    def rows(self, anchor: int) -> list[int]:
        return [
            min(max(row, 0), self.length - 1) for row in range(anchor - PAST, anchor + FUTURE + 1)
        ]

    def real(self, anchor: int) -> list[bool]:
        return [0 <= row < self.length for row in range(anchor - PAST, anchor + FUTURE + 1)]

    def window(self, anchor: int) -> dict[str, np.ndarray]:
        rows = self.rows(anchor)
        result = {name: values[rows] for name, values in self.lowdim.items()}
        for kind in ("action", "desired", "actual"):
            for side in ("left", "right"):
                stem = f"robot__{{}}__poses__{side}::panda__"
                here, ref = stem.format(kind), stem.format("actual")
                frame = pose(result[f"{ref}xyz"][PAST], result[f"{ref}rot_6d"][PAST])
                xyz, rot = [], []
                for step in range(len(rows)):
                    own = pose(result[f"{here}xyz"][step], result[f"{here}rot_6d"][step])
                    relative = np.linalg.inv(frame) @ own
                    xyz.append(relative[:3, 3])
                    rot.append(relative[:2, :3].reshape(6))
                result[f"{here}xyz_relative"] = np.array(xyz)
                result[f"{here}rot_6d_relative"] = np.array(rot)
        return result

    def _image(self, camera: str, frame: int) -> np.ndarray:
        image = Image.fromarray(self.arrays[self.ids[camera]][frame])
        width, height = image.size
        scale = max(SIZE[0] / width, SIZE[1] / height)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.LANCZOS)
        left, top = (image.width - SIZE[0]) // 2, (image.height - SIZE[1]) // 2
        image = image.crop((left, top, left + SIZE[0], top + SIZE[1]))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=95, optimize=True)
        return np.asarray(Image.open(buffer), np.float64)


def pose(xyz: np.ndarray, rot_6d: np.ndarray) -> np.ndarray:
    """4x4 matrix; the 6D rotation is the first two rows."""
    first = rot_6d[:3] / np.linalg.norm(rot_6d[:3])
    second = rot_6d[3:] - first @ rot_6d[3:] * first
    second = second / np.linalg.norm(second)
    matrix = np.eye(4)
    matrix[:3, :3] = [first, second, np.cross(first, second)]
    matrix[:3, 3] = xyz
    return matrix


@pytest.fixture(scope="module")
def oracles(raw: Path) -> dict[str, Oracle]:
    return {folder.name: Oracle(folder) for folder in raw.rglob("episode_*") if folder.is_dir()}


def test_the_same_anchors_are_written(output: Path, oracles: dict[str, Oracle]) -> None:
    expected = {(name, anchor) for name, oracle in oracles.items() for anchor in oracle.anchors()}

    assert set(samples(output)) == expected
    assert expected


def test_every_field_of_every_sample_is_equal(output: Path, oracles: dict[str, Oracle]) -> None:
    for (episode, anchor), members in samples(output).items():
        stored = np.load(io.BytesIO(members["lowdim.npz"]), allow_pickle=False)
        expected = oracles[episode].window(anchor)
        calibration = ("original_intrinsics.", "rescaled_intrinsics.", "extrinsics.")
        fields = {name for name in stored.files if not name.startswith(calibration)}
        assert fields - {"past_mask", "future_mask"} == set(expected)
        for name, values in expected.items():
            if values.dtype.kind == "U":
                assert stored[name].tolist() == values.tolist()
            else:
                np.testing.assert_allclose(stored[name], values, rtol=0, atol=1e-9, err_msg=name)
        real = np.array(oracles[episode].real(anchor))
        steps = np.arange(len(real))
        np.testing.assert_array_equal(stored["past_mask"], real & (steps < PAST))
        np.testing.assert_array_equal(stored["future_mask"], real & (steps >= PAST))


def test_calibration_follows_the_published_rule(output: Path, oracles: dict[str, Oracle]) -> None:
    (episode, _), members = next(iter(samples(output).items()))
    stored = np.load(io.BytesIO(members["lowdim.npz"]), allow_pickle=False)
    for camera in CAMERAS:
        oracle = oracles[episode]
        matrix = oracle.intrinsics[oracle.ids[camera]]
        height, width = oracle.arrays[oracle.ids[camera]].shape[1:3]
        scale = max(SIZE[0] / width, SIZE[1] / height)
        expected = np.array(
            [
                [matrix[0, 0] * scale, 0, matrix[0, 2] * scale - (width * scale - SIZE[0]) / 2],
                [0, matrix[1, 1] * scale, matrix[1, 2] * scale - (height * scale - SIZE[1]) / 2],
                [0, 0, 1],
            ]
        )
        np.testing.assert_allclose(stored[f"rescaled_intrinsics.{camera}"][0], expected, rtol=1e-6)
        np.testing.assert_array_equal(stored[f"original_intrinsics.{camera}"][0], matrix)


def test_every_image_is_within_38_db(output: Path, oracles: dict[str, Oracle]) -> None:
    worst = np.inf
    for (episode, anchor), members in samples(output).items():
        for camera in CAMERAS:
            for offset in OFFSETS:
                stored = Image.open(io.BytesIO(members[f"{camera}_t{offset}.jpg"]))
                frame = min(max(anchor + offset, 0), oracles[episode].length - 1)
                expected = oracles[episode].image(camera, frame)
                error = np.mean((np.asarray(stored, np.float64) - expected) ** 2)
                worst = min(worst, 10 * np.log10(255**2 / max(error, 1e-12)))

    assert worst >= 38


def test_statistics_are_those_of_all_real_rows(output: Path, oracles: dict[str, Oracle]) -> None:
    windows: dict[str, list[np.ndarray]] = defaultdict(list)
    real: list[list[bool]] = []
    for oracle in oracles.values():
        for anchor in oracle.anchors():
            real.append(oracle.real(anchor))
            for name, values in oracle.window(anchor).items():
                windows[name].append(values)
    stats = json.loads((output / "shards/stats.json").read_text())
    valid = np.array(real)
    for name, parts in windows.items():
        if parts[0].dtype.kind == "U":
            assert name not in stats
            continue
        values = np.array(parts, np.float64)
        rows = values[valid]
        entry = stats[name]
        np.testing.assert_allclose(entry["mean"], rows.mean(axis=0), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(entry["min"], rows.min(axis=0), atol=1e-9)
        np.testing.assert_allclose(entry["max"], rows.max(axis=0), atol=1e-9)
        assert entry["count"] == valid.sum(axis=0).tolist()
        for step in range(valid.shape[1]):
            column = values[valid[:, step], step]
            np.testing.assert_allclose(
                entry["std_per_timestep"][step], column.std(axis=0, ddof=1), atol=1e-6
            )
        for percent in (1, 5, 95):
            expected = np.percentile(rows, percent, axis=0)
            np.testing.assert_allclose(entry[f"percentile_{percent}"], expected, atol=1e-9)
