"""The real GR1 data set, if it is available. Source: formats/lerobot 13."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.builders.lerobot_shared import DATA_PATH, VIDEO_PATH, write_shared
from vlatool.episode import Episode
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader

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


@pytest.fixture(scope="module")
def recording() -> Path:
    beside = Path(__file__).parents[3].parent / "shared/data/gr1_pick"
    folder = Path(os.environ.get("VLATOOL_GR1", beside))
    if not (folder / "meta/info.json").exists():
        pytest.skip(f"no GR1 recording at {folder}; set VLATOOL_GR1 to its folder")
    return folder


@pytest.fixture(scope="module")
def twin(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording as v3.0, with three and two episodes in a file."""
    root = tmp_path_factory.mktemp("twin") / "gr1_pick"
    names = [f"episode_{number:06d}" for number in range(len(GOLDEN))]
    tables = [pq.read_table(recording / f"data/chunk-000/{name}.parquet") for name in names]
    folder = recording / "videos/chunk-000" / CAMERA
    videos = {CAMERA: [folder / f"{name}.mp4" for name in names]}
    lines = (recording / "meta/tasks.jsonl").read_text().splitlines()
    tasks = [json.loads(line)["task"] for line in lines]
    write_shared(root, tables, videos, tasks, fps=20, per_file=3)
    shutil.copy(recording / "meta/modality.json", root / "meta")
    info = json.loads((recording / "meta/info.json").read_text())
    info |= {"codebase_version": "v3.0", "data_path": DATA_PATH, "video_path": VIDEO_PATH}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.fixture(scope="module", params=["v2.0", "v3.0"])
def episodes(request: pytest.FixtureRequest, recording: Path, twin: Path) -> list[Episode]:
    is_twin = request.param == "v3.0"
    reader = LeRobotReader(LeRobotConfig())
    refs = list(reader.discover([twin if is_twin else recording]))
    assert [finding.code for finding in reader.source_findings] == [
        *([] if is_twin else ["lerobot.template_mismatch"] * 2),
        "lerobot.camera_without_files",
    ]
    return [reader.read(ref) for ref in refs]


def test_numbers_are_those_of_the_recording(episodes: list[Episode]) -> None:
    assert len(episodes) == len(GOLDEN)
    for episode, (rows, index, state_sum, action_sum, _) in zip(episodes, GOLDEN, strict=True):
        state, action = episode.lowdim["observation.state"], episode.lowdim["action"]
        assert state.shape == action.shape == (rows, 44)
        assert state.dtype == action.dtype == np.float64
        assert episode.frame_metadata["index"] == list(range(index, index + rows))
        assert state.sum() == pytest.approx(state_sum, abs=1e-5)
        assert action.sum() == pytest.approx(action_sum, abs=1e-5)


def test_values_sentences_and_names_are_those_of_the_recording(episodes: list[Episode]) -> None:
    state = episodes[0].lowdim["observation.state"]
    assert state[0, :4] == pytest.approx([-0.011471, 0.122080, 0.042294, -2.1], abs=1e-6)
    assert state[-1, :4] == pytest.approx([0.023338, 0.024762, -0.010405, -2.073794], abs=1e-6)
    action = episodes[3].lowdim["action"]
    assert action[0, 22:25] == pytest.approx([0.076540, -0.130709, -0.054103], abs=1e-6)
    assert episodes[4].frame_metadata["timestamp"][-1] == pytest.approx(16.399984, abs=1e-6)
    # The instruction is the task of the row and not the label.
    sentence = "pick the {} from the counter and place it in the plate"
    expected = [[sentence.format(thing)] for thing in OBJECTS]
    assert [episode.language["original"] for episode in episodes] == expected
    names = episodes[0].dimension_names["action"]
    joints = ("left_arm.0", "left_hand.0", "right_arm.2", "waist.2")
    assert (names[0], names[7], names[24], names[43]) == joints
    assert names == episodes[0].dimension_names["observation.state"]
    codes = {finding.code for episode in episodes for finding in episode.findings}
    assert codes == {"lerobot.timestamps", "left_out.data"}
    image = episodes[2].cameras[CAMERA].read([251])[0]
    assert image.shape == (256, 256, 3)
    # Black bars above and below, up to errors of the codec.
    assert max(image[:47].max(), image[209:].max()) <= 8
    assert image[48:208].max() > 100


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
