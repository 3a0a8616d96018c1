"""LeRobot data sets of the sink `lerobot`. Source: formats/lerobot-writing 1, 2."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.sink_checks import check_sink
from tests.builders.spartan import TASK, spartan_task
from vlatool.config.resolve import config_of
from vlatool.plugins import FORMATS
from vlatool.recordings.lerobot.writer import LeRobotSink
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.sample import SampleConfig, sample

EPISODES, FRAMES = 2, 5


def written(format_name: str, source: Path, output: Path, **sink: Any) -> PreprocessResult:
    """Result of a run of the sink."""
    tree: dict[str, Any] = {"format": format_name, "sources": [str(source)], "workers": 1}
    tree |= {"output": str(output), "sink": {"type": "lerobot", **sink}}
    return preprocess(config_of(PreprocessConfig, tree))


def episodes_of(format_name: str, source: Path) -> list[Any]:
    """All episodes of a source."""
    reader = FORMATS.get(format_name)(FORMATS.get(format_name).Config())
    return [reader.read(ref) for ref in reader.discover([source])]


def psnr(actual: Any, expected: Any) -> float:
    """Ratio in dB between the largest value and the error of images."""
    error = np.mean((actual.astype(float) - expected.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw episodes of the world."""
    folder = tmp_path_factory.mktemp("lerobot") / "raw"
    options = {"layout": "spartan", "episodes": EPISODES, "frames": FRAMES, "workers": 1}
    sample(SampleConfig.model_validate({**options, "output": str(folder)}))
    return folder


@pytest.fixture(scope="module")
def sets(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LeRobot sets in a folder."""
    folder = tmp_path_factory.mktemp("sets")
    written("spartan", raw, folder / "a")
    shutil.copytree(folder / "a", folder / "b")
    return folder


@pytest.mark.parametrize(
    ("splits", "read", "expected"),
    [
        ({"train": "0:1", "val": "1:2"}, "val", {"train": "0:1,2:3", "val": "1:2,3:4"}),
        ({"train": "0:100"}, "train", {"train": "0:4"}),
        ({"train": "0:1"}, "train", {"train": "0:1,2:3"}),
        ({"train": "0:7", "val": "7:10", "split_unit": "frame"}, "train", {"train": "0:4"}),
        ({}, "train", {"train": "0:4"}),
    ],
    ids=["two", "too long", "too short", "in frames", "none"],
)
def test_splits_of_merged_sets_are_kept_and_read(
    splits: dict[str, str], read: str, expected: dict[str, str], sets: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sets, tmp_path / "sets")
    for path in folder.glob("*/meta/info.json"):
        info = json.loads(path.read_text())
        unit = {key: splits[key] for key in splits if key == "split_unit"}
        named = {key: span for key, span in splits.items() if key != "split_unit"}
        path.write_text(json.dumps(info | {"splits": named} | unit))
    written("lerobot", folder, tmp_path / "out")
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert (info["splits"], "split_unit" in info) == (expected, False)

    def numbers(split: str) -> list[int]:
        reader = FORMATS.get("lerobot")(FORMATS.get("lerobot").Config(split=split))
        return [ref.number for ref in reader.discover([tmp_path / "out"])]

    spans = [span.split(":") for span in expected[read].split(",")]
    assert numbers(read) == [n for start, stop in spans for n in range(int(start), int(stop))]
    with fails("data.unknown_field") as caught:
        numbers("test")
    assert caught.value.details["known"] == [*expected]


@pytest.mark.slow  # a dozen runs
@pytest.mark.parametrize(
    "config",
    [{}, {"layout_version": "v2.1", "use_videos": False, "modality": True}],
    ids=["v3.0", "v2.1"],
)
def test_the_sink_fulfills_the_sink_contract(config: dict[str, Any]) -> None:
    check_sink(LeRobotSink, config)


@pytest.mark.parametrize("use_videos", [True, False])
def test_fields_and_images_of_spartan_are_read_back(
    raw: Path, tmp_path: Path, use_videos: bool
) -> None:
    result = written("spartan", raw, tmp_path / "out", layout_version="v2.1", use_videos=use_videos)
    assert (result.samples, result.left_out_fields) == (EPISODES * FRAMES, ())
    for before, after in zip(
        episodes_of("spartan", raw), episodes_of("lerobot", tmp_path / "out"), strict=True
    ):
        observed = [before.lowdim[name] for name in before.proprioception_fields]
        expected = np.concatenate(observed, axis=1).astype(np.float32)
        assert np.array_equal(after.lowdim["observation.state"], expected)
        assert (after.task, after.fps) == (before.language["original"][0], before.fps)
        for name, camera in before.cameras.items():
            images, original = (
                source.read(range(FRAMES))
                for source in (after.cameras[f"observation.images.{name}"], camera)
            )
            assert (
                np.array_equal(images, original)
                if not use_videos
                else (
                    psnr(images, original) > 30  # sharp edges of 64 x 64 pixels
                )
            )


def test_the_tables_of_v3_have_the_columns_of_the_official_loader(
    raw: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    written("spartan", raw, out)
    info = json.loads((out / "meta/info.json").read_text())
    totals = {"codebase_version": "v3.0", "total_episodes": EPISODES, "total_frames": 10}
    assert info == info | totals | {"splits": {"train": "0:2"}, "fps": 10}
    data = pq.read_table(out / "data/chunk-000/file-000.parquet")
    assert pq.ParquetFile(out / "data/chunk-000/file-000.parquet").num_row_groups == EPISODES
    columns = [name for name, tree in info["features"].items() if tree["dtype"] != "video"]
    assert data.column_names == columns
    assert data.column("index").to_pylist() == [*range(EPISODES * FRAMES)]
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    camera = next(name for name, tree in info["features"].items() if tree["dtype"] == "video")
    assert [*info["features"][camera]] == ["dtype", "shape", "names", "info"]
    spans = [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows]
    assert spans == [(0, 5), (5, 10)]
    assert [row[f"videos/{camera}/from_timestamp"] for row in rows] == [0.0, 0.5]
    assert rows[1]["stats/index/mean"] == [7.0]
    tasks = pq.read_table(out / "meta/tasks.parquet")
    described = json.loads((tasks.schema.metadata or {})[b"pandas"])
    assert (tasks.column_names, described["index_columns"]) == (["task_index", "task"], ["task"])
    stats = json.loads((out / "meta/stats.json").read_text())
    assert stats["index"]["q50"] == [4.5]
    assert {*info["features"]} - {*stats} == {"language_instruction"}


def test_parts_without_a_place_are_named_and_all_sentences_are_stored(tmp_path: Path) -> None:
    source = spartan_task(tmp_path / "raw", 1)
    kinds = {"original": ["put it down"], "verbose": ["put it down", "put the cup down gently"]}
    texts = tmp_path / "texts.yaml"
    texts.write_text(json.dumps({"language_dict": {TASK: kinds}}))
    tree = {"format": "spartan", "sources": [str(source)], "output": str(tmp_path / "out")}
    tree |= {"workers": 1, "sink": {"type": "lerobot", "use_videos": False}}
    tree |= {"language_annotations_path": str(texts)}
    reporter = Recorder()
    preprocess(config_of(PreprocessConfig, tree), reporter=reporter)
    (left_out,) = [text for code, text in reporter.warnings if code == "lerobot_sink.left_out"]
    for part in ("depth of scene_right_0", "labels of", "calibration of", "--depth true"):
        assert part in left_out
    listed = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet")["tasks"]
    assert listed.to_pylist() == [["put it down", "put the cup down gently"]]
    assert episodes_of("lerobot", tmp_path / "out")[0].task == "put it down"


def test_modality_names_the_fields_in_their_columns(raw: Path, tmp_path: Path) -> None:
    written("spartan", raw, tmp_path / "out", modality=True)
    tree = json.loads((tmp_path / "out/meta/modality.json").read_text())
    (episode, *_) = episodes_of("spartan", raw)
    widths = [episode.lowdim[name].shape[1] for name in episode.proprioception_fields]
    spans = [*tree["state"].values()]
    assert [span["end"] - span["start"] for span in spans] == widths
    assert {span["original_key"] for span in spans} == {"observation.state"}
    assert len(tree["action"]) == len(spans)
