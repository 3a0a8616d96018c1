"""`compare` of recordings in two layouts, by content."""

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.builders import hdf5
from vlatool.config.resolve import config_of
from vlatool.workflows.compare import CompareDataConfig, CompareDataResult, compare_data
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

LENGTHS = {"demo_0": 4, "demo_1": 5, "demo_2": 3}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def change(file: Any) -> None:
        rng = np.random.default_rng(0)
        for name, count in LENGTHS.items():
            group = file[f"data/{name}"]
            group["actions"][:] = rng.random((count, 2))
            group["obs/object"][:] = rng.random((count, 4))

    return hdf5.robomimic(tmp_path_factory.mktemp("raw") / "a.hdf5", LENGTHS, change)


def compared(first: Path, second: Path, **options: Any) -> CompareDataResult:
    return compare_data(CompareDataConfig(a=str(first), b=str(second), **options))


def differing(first: Path, second: Path, **options: Any) -> CompareDataResult:
    result = compared(first, second, **options)
    assert (result.equal, result.exit_code) == (False, 4)
    return result


@pytest.mark.parametrize("videos", [True, False])
def test_a_conversion_is_equal(raw: Path, tmp_path: Path, videos: bool) -> None:
    tree = {"format": "hdf5", "sources": [str(raw)], "instruction": "lift", "workers": 1}
    tree |= {"output": str(tmp_path / "set"), "sink": {"type": "lerobot", "use_videos": videos}}
    preprocess(config_of(PreprocessConfig, tree))
    # A recording without an instruction has the name of its environment.
    options = {"images": None, "tolerance": 10.0 if videos else 0.0, "shared": True}
    result = differing(raw, tmp_path / "set", **options)
    assert {*result.counts} == {"texts"}
    assert (result.compared, result.frames) == (3, 12)
    assert result.fields["obs.robot0_eef_pos[1]"] == "observation.state[1]"
    assert result.cameras == {"front_image": "observation.images.front_image"}


def edit_value(file: Any) -> None:
    file["data/demo_1/actions"][2, 1] += 0.5


def edit_order(file: Any) -> None:
    file["data/demo_1/actions"][:] = file["data/demo_1/actions"][:][:, ::-1]


def edit_image(file: Any) -> None:
    file["data/demo_1/obs/front_image"][3] = 0


def edit_length(file: Any) -> None:
    for name in ("actions", "obs/object", "obs/robot0_eef_pos", "obs/front_image"):
        group, dataset = file["data/demo_1"], file[f"data/demo_1/{name}"][:4]
        del group[name]
        group[name] = dataset
    file["data/demo_1"].attrs["num_samples"] = 4


def edit_fields(file: Any) -> None:
    del file["data/demo_1/obs/object"]


def edit_episodes(file: Any) -> None:
    del file["data/demo_2"]


@pytest.mark.parametrize(
    ("edit", "kind", "episode", "message"),
    [
        (edit_value, "values", "demo_1", "actions[1]: 1 row differ, by 0.5 at most, first 2"),
        (edit_order, "values", "demo_1", "actions[0]: 5 rows differ"),
        (edit_image, "images", "demo_1", "front_image: frame 3 differs by"),
        (edit_length, "frames", "demo_1", "5 frames, in the other 4"),
        (edit_fields, "fields", "demo_1", "only in the first: obs.object"),
        (edit_episodes, "episodes", "demo_2", "only in the first"),
    ],
)
def test_a_difference_is_named(
    raw: Path, tmp_path: Path, edit: Any, kind: str, episode: str, message: str
) -> None:
    copy = tmp_path / "a.hdf5"
    shutil.copy(raw, copy)
    with h5py.File(copy, "r+") as file:
        edit(file)

    result = differing(raw, copy)

    difference = result.differences[0]
    assert (difference.kind, difference.message[: len(message)]) == (kind, message)
    assert difference.episode.endswith(episode)
    assert [*json.loads(json.dumps(result.document()))["counts"]] == [kind]
    assert message in result.text()
    assert compared(raw, copy, episodes="0").equal
    assert kind not in ("fields",) or compared(raw, copy, shared=True).equal


def test_fields_of_other_names_are_matched_by_their_values(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.hdf5"
    shutil.copy(raw, copy)
    with h5py.File(copy, "r+") as file:
        for name in LENGTHS:
            file.move(f"data/{name}/obs/object", f"data/{name}/obs/things")
    assert compared(raw, copy).fields["obs.object[3]"] == "obs.things[3]"


def test_images_of_another_size_are_a_difference(raw: Path, tmp_path: Path) -> None:
    tree = {"format": "hdf5", "sources": [str(raw)], "workers": 1, "output": str(tmp_path / "out")}
    tree["sink"] = {"type": "frames", "resize_images_size": [48, 32], "max_padding_right": 20}
    preprocess(config_of(PreprocessConfig, tree))
    result = differing(raw, tmp_path / "out", shared=True)
    assert any("in the other 48 x 32" in row.message for row in result.differences)
