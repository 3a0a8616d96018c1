"""LIBERO and other recordings to windows. Source: reference/future-vla 1."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.builders.lerobot import lerobot_dataset
from tests.builders.libero import TASK, actions, convert, libero_dataset, png, windows
from tests.builders.preprocessing import contents
from tests.builders.sink_checks import check_sink
from vlatool.config.resolve import Override, load_config
from vlatool.datasets.jsonl.writer import JsonlSink
from vlatool.datasets.samples.profile import read_profile
from vlatool.errors import ConfigError
from vlatool.jobs.executor import SerialExecutor
from vlatool.jobs.files import output_files
from vlatool.media.lines import lines_index_path
from vlatool.media.tar import read_index
from vlatool.recordings.lerobot.reader import LiberoReader
from vlatool.storage.remote_path import RemotePath
from vlatool.testing.readers import check_reader
from vlatool.workflows.preprocess import PreprocessConfig, with_format
from vlatool.workflows.verify import VerifyConfig, VerifyResult, verify

FRAMES = 20


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return libero_dataset(tmp_path_factory.mktemp("libero") / "raw", (FRAMES, 3))


@pytest.fixture(scope="module")
def output_folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("windows") / "A"
    convert(raw, output, name="LIBERO")
    return output


def path(camera: str, frame: int, episode: int = 0) -> str:
    name = f"episode_{episode:06d}"
    return f"images/{name}/LIBERO_{camera}_{name}_frame_{frame:06d}.png"


def steps(*frames: int) -> tuple[str, ...]:
    return tuple(path(camera, frame) for frame in frames for camera in ("image", "wrist_image"))


# the published form


def test_lines_and_steps_of_an_episode_have_the_published_form(output_folder: Path) -> None:
    lines = windows(output_folder)
    kinds = [item.kind for item in lines]
    assert Counter(kinds) == {"vla": FRAMES, "wm": FRAMES}
    assert kinds[:4] == ["vla", "wm"] * 2
    assert lines[0].images == steps(*[0] * 16)
    assert lines[2 * 17].images == steps(*range(2, 18))
    assert lines[2 * 10].future == steps(*range(11, 20), *[19] * 7)
    assert lines[-1].future == steps(*[FRAMES - 1] * 16)
    assert np.array_equal(lines[6].actions, actions(FRAMES)[3:19])
    gripper = float(actions(FRAMES)[-1, -1])
    assert lines[-1].actions[1] == (0, 0, 0, 0, 0, 0, gripper)
    assert {item.task for item in lines} == {TASK}


def test_several_listed_instructions_are_joined(tmp_path: Path) -> None:
    raw = libero_dataset(tmp_path / "raw", (2,), tasks=("open it", "close it"))
    convert(raw, tmp_path / "A")
    assert windows(tmp_path / "A")[0].task == "open it / close it"


def test_folder_has_each_image_once_an_index_and_a_manifest(output_folder: Path) -> None:
    named = {
        name for number in (0, 1) for item in windows(output_folder, number) for name in item.images
    }
    present = {
        item.relative_to(output_folder).as_posix()
        for item in (output_folder / "images").rglob("*.png")
    }
    assert named == present
    assert len(present) == 2 * (FRAMES + 3)

    assert (output_folder / path("wrist_image", 2)).read_bytes() == png(2, 1)

    file = output_folder / "data/episode_000001.jsonl"
    index, content = read_index(lines_index_path(file)), file.read_bytes()
    assert index is not None
    assert [content[at : at + n] for at, n in index.ranges()] == content.splitlines(keepends=True)
    assert index.shard_bytes == len(content)

    manifest = json.loads((output_folder / "manifest.json").read_text())
    values = {key: manifest[key] for key in ("cameras", "action_width", "samples", "untouched")}
    assert values == {
        "cameras": ["image", "wrist_image"],
        "action_width": 7,
        "samples": 2 * (FRAMES + 3),
        "untouched": 2 * (FRAMES + 3),
    }
    assert tuple(manifest["action_names"]) == read_profile("libero").dimensions


# options


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("vla", ["vla"] * 3),
        ("1", ["vla"] * 3),
        ("wm", ["wm"] * 3),
        (2, ["wm"] * 3),
        ("alternate", ["vla", "wm", "vla"]),
    ],
)
def test_lines_of_a_mode(raw: Path, tmp_path: Path, mode: object, kinds: list[str]) -> None:
    convert(raw, tmp_path / "A", qa_mode=mode, episodes="1")
    assert [item.kind for item in windows(tmp_path / "A", 1)] == kinds


def test_random_lines_follow_the_seed_and_do_not_alternate(raw: Path, tmp_path: Path) -> None:
    def random_kinds(name: str, seed: int) -> list[str]:
        convert(raw, tmp_path / name, qa_mode="random", seed=seed, episodes="0")
        return [item.kind for item in windows(tmp_path / name)]

    first, again, other = random_kinds("a", 1), random_kinds("b", 1), random_kinds("c", 2)
    assert first == again != other
    assert first != ["vla", "wm"] * (FRAMES // 2)
    assert set(first) == {"vla", "wm"}


def test_windows_have_the_configured_lengths_cameras_and_the_name_of_the_source(
    raw: Path, tmp_path: Path
) -> None:
    cameras = ["wrist_image", "image"]
    convert(raw, tmp_path / "A", past_steps=2, future_steps=3, camera_names=cameras)
    window = windows(tmp_path / "A")[2 * 5]
    names = [
        path(camera, frame).replace("LIBERO", "raw") for frame in range(4, 9) for camera in cameras
    ]
    assert [*window.images, *window.future] == names
    assert len(window.actions) == 3


def test_images_of_another_size_are_resized_unless_the_size_is_unset(tmp_path: Path) -> None:
    raw = libero_dataset(tmp_path / "raw", (2,), size=64)
    result = convert(raw, tmp_path / "A")
    images = list((tmp_path / "A/images").rglob("*.png"))
    assert {Image.open(item).size for item in images} == {(256, 256)}
    assert result.amounts == {"pictures": 4, "untouched": 0}
    assert convert(raw, tmp_path / "B", resize_images_size=None).amounts["untouched"] == 4


@pytest.mark.parametrize("options", [{"mode": "L"}, {"mode": "RGBA"}, {"format": "JPEG"}])
def test_images_of_another_kind_become_rgb(tmp_path: Path, options: dict[str, Any]) -> None:
    def other(number: int, columns: dict[str, object]) -> None:
        columns["image"] = [{"bytes": png(number, **options), "path": None}]

    convert(libero_dataset(tmp_path / "raw", (1,), change=other), tmp_path / "A")
    (image,) = (tmp_path / "A/images").rglob("*raw_image*")
    assert (Image.open(image).mode, Image.open(image).format) == ("RGB", "PNG")


# other recordings


def test_one_camera_of_a_set_with_video(tmp_path: Path) -> None:
    raw = lerobot_dataset(tmp_path / "raw", (3,))
    result = convert(raw, tmp_path / "A", format="lerobot", sink="jsonl")
    (first, *_) = windows(tmp_path / "A")
    assert (result.samples, len(first.images), len(first.actions[0])) == (6, 16, 2)
    assert first.actions[-1] == (0.0, first.actions[2][1])


def test_two_data_sets_have_different_names(tmp_path: Path) -> None:
    sources = [str(libero_dataset(tmp_path / name, (1,))) for name in ("spatial", "goal")]
    convert(tmp_path, tmp_path / "A", sources=sources)
    assert sorted(item.name for item in (tmp_path / "A/data").glob("*.jsonl")) == [
        "episode_goal_episode_000000.jsonl",
        "episode_spatial_episode_000000.jsonl",
    ]
    images = [item.name for item in (tmp_path / "A/images").rglob("*.png")]
    assert {name.partition("_")[0] for name in images} == {"spatial", "goal"}


# promises


def test_reader_fulfills_the_contract_of_a_format(raw: Path) -> None:
    check_reader(LiberoReader, raw)


@pytest.mark.slow
def test_sink_fulfills_the_contract_of_a_sink() -> None:
    config = {"past_steps": 2, "future_steps": 2, "resize_images_size": None}
    check_sink(JsonlSink, config, make_executor=SerialExecutor)


def test_bucket_gets_the_same_bytes(raw: Path, output_folder: Path, s3_bucket: str) -> None:
    output = RemotePath(f"s3://{s3_bucket}/A")
    convert(raw, output, name="LIBERO")
    contents_in_bucket = {
        file.name: (output / file.name).read_bytes() for file in output_files(output)
    }
    assert contents_in_bucket == contents(output_folder)
    seen = verify(VerifyConfig(location=str(output)))
    assert isinstance(seen, VerifyResult)
    assert (seen.kind, seen.counts["error"]) == ("windows", 0)
    assert convert(raw, output, name="LIBERO").status == "already complete"


# the sink that a format has by nature


def detected(raw: Path, **keys: Any) -> Any:
    values = [
        Override(key, value, "here") for key, value in {"sources": [str(raw)], **keys}.items()
    ]
    return with_format(load_config(PreprocessConfig, overrides=values).config).sink


def test_sink_is_that_of_the_format_with_its_keys_unless_it_is_given(raw: Path) -> None:
    assert with_format(PreprocessConfig(format="libero", sources=["raw"])).sink.type == "jsonl"
    assert with_format(PreprocessConfig(format="lerobot", sources=["raw"])).sink.type == "frames"
    assert detected(raw, sink="lbm").type == "lbm"
    sink = detected(raw, seed=5)
    assert sink.model_dump(include={"type", "seed"}) == {"type": "jsonl", "seed": 5}
    with pytest.raises(ConfigError) as caught:
        detected(raw, stride=2)
    assert caught.value.exit_code == 2
