"""`sample` writes the raw layouts key for key.

Source: formats/spartan 1, 2, 3, 4, 5; formats/lerobot 2, 3, 4, 5, 10.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.builders.metaworld import skip_without_metaworld
from tests.builders.s3_runs import digests
from vlatool.errors import UsageError
from vlatool.workflows.sample import SampleConfig, SampleResult, sample

CABOT_IDS = {
    "6CD146030E99": "scene_right_0",
    "6CD146031C25": "scene_left_0",
    "BFS_23595718": "wrist_left_minus",
    "BFS_23595721": "wrist_left_plus",
    "BFS_23595722": "wrist_right_minus",
    "BFS_23595725": "wrist_right_plus",
}
FAMILIES = {
    "external_wrench": 6,
    "joint_position": 7,
    "joint_torque": 7,
    "joint_torque_external": 7,
    "joint_velocity": 7,
    "wrench": 6,
}


def run(output: Path, layout: str = "spartan", **options: Any) -> SampleResult:
    tree = {"layout": layout, "output": str(output), "episodes": 2, "workers": 1, **options}
    return sample(SampleConfig.model_validate(tree))


@pytest.fixture(scope="module")
def spartan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("spartan") / "out"
    run(output, cameras=6, depth=True, frames=6)
    (episode,) = output.glob("tasks/*/cabot/sim/bc/teleop/*/diffusion_spartan/episode_1/processed")
    return episode


def test_a_folder_has_the_names_and_the_next_line_that_readme_promises(tmp_path: Path) -> None:
    done = run(tmp_path / "demos", "folder", frames=2)
    page = (Path(__file__).parents[3] / "README.md").read_text()
    lines = page.partition("vlatool sample folder demos")[2].splitlines()
    names = {path.name for path in (tmp_path / "demos/episode_000001").iterdir()}
    assert names == {"front.mp4", "wrist.mp4", "data.csv", "meta.json"}
    assert all(f"`{name}`" in page for name in names)
    assert done.cameras == ("front", "wrist")
    assert done.next_command.replace(str(tmp_path / "demos"), "demos") == lines[1]


def robot_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"robot__version": (6, 1)}
    for kind in ("actual", "desired"):
        for side in ("left", "right"):
            for family, width in FAMILIES.items():
                shapes[f"robot__{kind}__{family}__{side}::panda"] = (6, width)
            shapes[f"robot__{kind}__grippers__{side}::panda_hand"] = (6, 1)
            shapes[f"robot__{kind}__poses__{side}::panda__xyz"] = (6, 3)
            shapes[f"robot__{kind}__poses__{side}::panda__rot_6d"] = (6, 6)
    return shapes


def test_spartan_observations_have_the_published_keys_shapes_and_no_other(spartan: Path) -> None:
    arrays = np.load(spartan / "observations.npz")
    robot = {key: arrays[key] for key in arrays.files if key.startswith("robot__")}
    assert {key: value.shape for key, value in robot.items()} == robot_shapes()
    assert {value.dtype for value in robot.values()} == {np.dtype(np.float64)}

    for camera in CABOT_IDS:
        assert (arrays[camera].shape, arrays[camera].dtype) == ((6, 64, 64, 3), np.uint8)
        depth, label = arrays[f"{camera}_depth"], arrays[f"{camera}_label"]
        assert (depth.shape, depth.dtype) == ((6, 64, 64), np.uint16)
        assert (label.shape, label.dtype) == ((6, 64, 64), np.int16)

    cameras = {f"{camera}{kind}" for camera in CABOT_IDS for kind in ("", "_depth", "_label")}
    assert set(arrays.files) == cameras | set(robot_shapes()) | {"language_instruction"}

    text = arrays["language_instruction"]
    assert (text.shape, text.dtype.kind) == ((6,), "U")
    assert text[0] == "put the green block in the bin"


def test_spartan_actions_are_the_next_desired_poses_and_their_skills_objects(spartan: Path) -> None:
    arrays = np.load(spartan / "observations.npz")
    actions = np.load(spartan / "actions.npz")["actions"]
    order = [
        *[f"poses__right::panda__{part}" for part in ("xyz", "rot_6d")],
        *[f"poses__left::panda__{part}" for part in ("xyz", "rot_6d")],
        *[f"grippers__{side}::panda_hand" for side in ("right", "left")],
    ]
    desired = np.hstack([arrays[f"robot__desired__{name}"] for name in order])
    assert (actions.shape, actions.dtype) == ((6, 20), np.float64)
    np.testing.assert_array_equal(actions[:-1], desired[1:])

    with zipfile.ZipFile(spartan / "actions.npz") as archive:
        assert set(archive.namelist()) == {"actions.npy", "skill_type.npy"}
        header = archive.read("skill_type.npy")[:128]
    assert b"'descr': '|O'" in header
    assert b"'shape': (6,)" in header


def test_spartan_calibration_agrees_with_metadata_and_pose_data(spartan: Path) -> None:
    intrinsics, extrinsics = (np.load(spartan / f"{n}trinsics.npz") for n in ("in", "ex"))
    for camera in CABOT_IDS:
        assert (intrinsics[camera].shape, intrinsics[camera].dtype) == ((3, 3), np.float32)
        assert (extrinsics[camera].shape, extrinsics[camera].dtype) == ((6, 4, 4), np.float64)

    metadata = yaml.safe_load((spartan / "metadata.yaml").read_text())
    assert list(metadata["camera_id_to_semantic_name"].items()) == list(CABOT_IDS.items())

    for camera in CABOT_IDS:
        poses = yaml.safe_load((spartan / f"images_{camera}/pose_data.yaml").read_text())
        pose = poses[2]["camera_to_world"]
        rotation = Rotation.from_quat([pose["quaternion"][part] for part in "xyzw"])
        np.testing.assert_allclose(rotation.as_matrix(), extrinsics[camera][2, :3, :3], atol=1e-12)
        translation = [pose["translation"][part] for part in "xyz"]
        np.testing.assert_array_equal(translation, extrinsics[camera][2, :3, 3])


def test_spartan_folder_has_every_file(spartan: Path) -> None:
    expected = {
        *("metadata.yaml", "observations.npz", "actions.npz", "intrinsics.npz"),
        *("extrinsics.npz", "summary.npz", "detailed_reward_traj.npz", "manifest.json"),
        *("detailed_task_predicate_traj.npz", "resolved_scenario.yaml"),
        *(f"images_{camera}/camera_info.yaml" for camera in CABOT_IDS),
        *(f"images_{camera}/pose_data.yaml" for camera in CABOT_IDS),
    }
    assert set(digests(spartan)) == expected
    assert np.load(spartan / "summary.npz")["episode_success"].shape == (1, 1)


@pytest.mark.parametrize("layout", ["spartan", "lerobot", "libero"])
def test_bytes_depend_on_seed_and_not_on_workers(tmp_path: Path, layout: str) -> None:
    run(tmp_path / "a", layout, frames=5)
    run(tmp_path / "b", layout, frames=5, workers=2)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    if layout == "spartan":  # all layouts write the same world
        run(tmp_path / "c", layout, frames=5, seed=1)
        assert digests(tmp_path / "a") != digests(tmp_path / "c")


def test_lerobot_tables_and_videos_agree_with_meta(tmp_path: Path) -> None:
    result = run(tmp_path, "lerobot", episodes=3, layout_version="v2.1")
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_frames"]) == ("v2.1", result.frames)
    rows = [pq.read_table(path) for path in sorted(tmp_path.glob("data/*/*.parquet"))]
    index = np.concatenate([table["index"].to_numpy() for table in rows])
    np.testing.assert_array_equal(index, np.arange(result.frames))
    for number, table in enumerate(rows):
        video = f"videos/chunk-000/{result.cameras[1]}/episode_{number:06d}.mp4"
        with av.open(str(tmp_path / video)) as container:
            assert sum(1 for _ in container.decode(video=0)) == len(table)
    columns = set(info["features"]) - set(result.cameras)
    assert set(rows[0].column_names) == columns
    lines = (tmp_path / "meta/episodes_stats.jsonl").read_text().splitlines()
    assert [json.loads(line)["episode_index"] for line in lines] == [0, 1, 2]
    assert set(json.loads(lines[0])["stats"]) == set(info["features"])


def test_a_lerobot_set_of_v3_has_the_rows_and_frames_of_v2(tmp_path: Path) -> None:
    for version in ("v2.1", "v3.0"):
        run(tmp_path / version, "lerobot", frames=5, layout_version=version)
    tables = [
        pa.concat_tables(map(pq.read_table, sorted((tmp_path / version).glob("data/*/*.parquet"))))
        for version in ("v2.1", "v3.0")
    ]
    assert tables[0].equals(tables[1])
    video = "videos/**/*.mp4"
    frames = [
        [
            frame.to_ndarray().tobytes()
            for path in sorted((tmp_path / version).glob(video), key=lambda path: path.parts)
            for frame in av.open(str(path)).decode(video=0)
        ]
        for version in ("v2.1", "v3.0")
    ]
    assert sorted(frames[0]) == sorted(frames[1])


def test_libero_row_has_images_state_and_actions(tmp_path: Path) -> None:
    run(tmp_path, "libero", frames=40, size="published")
    row = pq.read_table(tmp_path / "data/chunk-000/episode_000000.parquet").to_pylist()[0]
    assert Image.open(io.BytesIO(row["wrist_image"]["bytes"])).size == (256, 256)
    assert (len(row["state"]), len(row["actions"]), row["actions"][6]) == (8, 7, -1.0)
    assert max(map(abs, row["actions"][:6])) <= 1.0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"world": "metaworld"}, "usage.missing_key"),
        ({"world": "metaworld", "task": ["raech-v3"]}, "usage.unknown_name"),
        ({"world": "metaworld", "task": ["reach-v3"], "layout": "spartan"}, "usage.unsupported"),
        ({"world": "metaworld", "task": ["reach-v3"], "size": "published"}, "usage.unsupported"),
        ({"world": "metaworld", "task": ["reach-v3"], "frames": 4}, "usage.unknown_name"),
        ({"task": ["reach-v3"]}, "usage.unknown_name"),
        ({"layout": "libero", "cameras": 4}, "usage.unsupported"),
        ({"depth": True}, "usage.unsupported"),
    ],
)
def test_options_that_a_world_or_layout_does_not_support_are_rejected(
    tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run(tmp_path / "out", **{"layout": "lerobot", **options})
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_experts_of_metaworld_take_turns_in_a_lerobot_set(tmp_path: Path) -> None:
    skip_without_metaworld()
    tasks = ["reach-v3", "button-press-topdown-v3"]
    result = run(tmp_path, "lerobot", world="metaworld", task=tasks)
    assert result.successes == 2
    assert result.instructions == {"reach the goal": 1, "press the button from the top": 1}
    table = pa.concat_tables(map(pq.read_table, sorted(tmp_path.glob("data/*/*.parquet"))))
    assert len(table) == result.frames
    assert {len(row) for row in table["action"].to_pylist()} == {4}
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert (info["fps"], info["robot_type"]) == (80, "sawyer")
    assert {*result.cameras} <= {*info["features"]}
