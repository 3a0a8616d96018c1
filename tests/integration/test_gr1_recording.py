"""The real GR1 data set, if it is available. Source: formats/lerobot 13."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.builders.lerobot_shared import DATA_PATH, VIDEO_PATH, write_shared
from tests.builders.preprocessing import samples
from vlatool.episode import Episode
from vlatool.sources.lerobot.dataset import LeRobotConfig
from vlatool.sources.lerobot.reader import LeRobotReader
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

CAMERA = "observation.images.ego_view"
# Rows, first index, sum of state, sum of action, mean over all images. Source: formats/lerobot 13
GOLDEN = [
    (416, 0, 1283.599643, -2976.026960, 99.37),
    (470, 416, 1012.407335, -4660.333908, 70.60),
    (470, 886, 1219.102306, -4347.097220, 73.39),
    (412, 1356, 1179.144607, -3378.436730, 69.41),
    (328, 1768, 1309.770595, -1985.901724, 99.82),
]
FIRST_AND_LAST_RGB = [
    ((109.2, 98.2, 85.4), (109.5, 98.7, 86.0)),
    ((83.8, 69.1, 51.7), (84.4, 70.1, 52.7)),
    ((77.4, 72.5, 67.3), (78.3, 74.5, 70.4)),
    ((83.2, 67.9, 50.6), (84.5, 69.4, 52.0)),
    ((108.5, 97.5, 84.8), (108.6, 97.9, 84.8)),
]
OBJECTS = ["pear", "sweet potato", "meat", "salt", "cupcake"]


def recording() -> Path:
    beside = Path(__file__).parents[2].parent / "shared/data/gr1_pick"
    return Path(os.environ.get("VLATOOL_GR1", beside))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording as v3.0, with three and two episodes in a file."""
    if not (recording() / "meta/info.json").exists():
        pytest.skip(f"no GR1 recording at {recording()}; set VLATOOL_GR1 to its folder")
    root = tmp_path_factory.mktemp("twin") / "gr1_pick"
    names = [f"episode_{number:06d}" for number in range(len(GOLDEN))]
    tables = [pq.read_table(recording() / f"data/chunk-000/{name}.parquet") for name in names]
    folder = recording() / "videos/chunk-000" / CAMERA
    videos = {CAMERA: [folder / f"{name}.mp4" for name in names]}
    lines = (recording() / "meta/tasks.jsonl").read_text().splitlines()
    tasks = [json.loads(line)["task"] for line in lines]
    write_shared(root, tables, videos, tasks, fps=20, per_file=3)
    shutil.copy(recording() / "meta/modality.json", root / "meta")
    info = json.loads((recording() / "meta/info.json").read_text())
    info |= {"codebase_version": "v3.0", "data_path": DATA_PATH, "video_path": VIDEO_PATH}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="module", params=["v2.0", "v3.0"])
def episodes(request: pytest.FixtureRequest, twin: Path) -> list[Episode]:
    is_twin = request.param == "v3.0"
    reader = LeRobotReader(LeRobotConfig())
    refs = list(reader.discover([twin if is_twin else recording()]))
    assert [finding.code for finding in reader.source_findings] == [
        *([] if is_twin else ["lerobot.template_mismatch"] * 2),
        "lerobot.camera_without_files",
    ]
    return [reader.read(ref) for ref in refs]


def test_splits_and_windows_of_the_recording_survive_the_lerobot_sink(tmp_path: Path) -> None:
    if not (recording() / "meta/info.json").exists():
        pytest.skip(f"no GR1 recording at {recording()}; set VLATOOL_GR1 to its folder")
    source = shutil.copytree(recording(), tmp_path / "gr1_pick")
    info = json.loads((source / "meta/info.json").read_text())
    splits = {"train": "0:3", "val": "3:5"}
    (source / "meta/info.json").write_text(json.dumps(info | {"splits": splits}))
    copy = tmp_path / "copy/gr1_pick"

    preprocessed(source, copy, "lerobot", None)

    assert json.loads((copy / "meta/info.json").read_text())["splits"] == splits
    before = preprocessed(source, tmp_path / "before", "lbm", "val")
    after = preprocessed(copy, tmp_path / "after", "lbm", "val")
    assert before.episodes == after.episodes == 2
    assert windows(tmp_path / "before") == windows(tmp_path / "after")


def preprocessed(source: Path, output: Path, sink: str, split: str | None) -> PreprocessResult:
    tree = {"format": "lerobot", "sources": [str(source)], "output": str(output), "workers": 2}
    tree |= {"sink": {"type": sink}, "source": {"split": split}}
    return preprocess(PreprocessConfig.specialize(tree).model_validate(tree))


def windows(folder: Path) -> list[dict[str, Any]]:
    """Samples without their metadata: the sink writes even timestamps."""
    return [
        {
            name: part
            for name, part in sample.items()
            if not name.startswith(("metadata", "__local", "__url"))
        }
        for sample in samples(folder / "shards")
    ]


def test_numbers_are_those_of_the_recording(episodes: list[Episode]) -> None:
    assert len(episodes) == len(GOLDEN)
    for episode, (rows, index, state_sum, action_sum, _) in zip(episodes, GOLDEN, strict=True):
        state, action = episode.lowdim["observation.state"], episode.lowdim["action"]
        assert state.shape == action.shape == (rows, 44)
        assert state.dtype == action.dtype == np.float64
        assert episode.frame_metadata["index"] == list(range(index, index + rows))
        assert state.sum() == pytest.approx(state_sum, abs=1e-5)
        assert action.sum() == pytest.approx(action_sum, abs=1e-5)


def test_single_values_are_those_of_the_recording(episodes: list[Episode]) -> None:
    state = episodes[0].lowdim["observation.state"]
    assert state[0, :4] == pytest.approx([-0.011471, 0.122080, 0.042294, -2.1], abs=1e-6)
    assert state[-1, :4] == pytest.approx([0.023338, 0.024762, -0.010405, -2.073794], abs=1e-6)
    action = episodes[3].lowdim["action"]
    assert action[0, 22:25] == pytest.approx([0.076540, -0.130709, -0.054103], abs=1e-6)
    assert episodes[4].frame_metadata["timestamp"][-1] == pytest.approx(16.399984, abs=1e-6)


def test_the_instruction_is_the_rows_task_and_not_the_label(episodes: list[Episode]) -> None:
    sentence = "pick the {} from the counter and place it in the plate"
    expected = [[sentence.format(thing)] for thing in OBJECTS]
    assert [episode.language["original"] for episode in episodes] == expected


def test_joints_are_those_of_the_groups(episodes: list[Episode]) -> None:
    names = episodes[0].dimension_names["action"]
    assert (names[0], names[7], names[24], names[43]) == (
        "left_arm.0",
        "left_hand.0",
        "right_arm.2",
        "waist.2",
    )
    assert names == episodes[0].dimension_names["observation.state"]


def test_the_only_finding_on_an_episode_is_its_late_timestamps(episodes: list[Episode]) -> None:
    assert {finding.code for episode in episodes for finding in episode.findings} == {
        "lerobot.timestamps"
    }


@pytest.mark.parametrize(
    "episodes", ["v2.0", pytest.param("v3.0", marks=pytest.mark.slow)], indirect=True
)
def test_images_are_those_of_the_recording(episodes: list[Episode]) -> None:
    for episode, golden, colors in zip(episodes, GOLDEN, FIRST_AND_LAST_RGB, strict=True):
        assert list(episode.cameras) == [CAMERA]
        camera = episode.cameras[CAMERA]
        starts = range(0, episode.num_frames, 64)
        batches = (
            camera.read(range(first, min(first + 64, episode.num_frames))) for first in starts
        )
        sums = [images.sum((1, 2), dtype=np.uint32) for images in batches]
        means = np.concatenate(sums) / 256**2
        assert means[0] == pytest.approx(colors[0], abs=1.0)
        assert means[-1] == pytest.approx(colors[1], abs=1.0)
        assert means.mean() == pytest.approx(golden[4], abs=0.1)


def test_the_image_has_black_bars_above_and_below(episodes: list[Episode]) -> None:
    image = episodes[2].cameras[CAMERA].read([251])[0]
    assert image.shape == (256, 256, 3)
    assert image[:47].max() <= 8  # black up to errors of the codec
    assert image[209:].max() <= 8  # black up to errors of the codec
    assert image[48:208].max() > 100
