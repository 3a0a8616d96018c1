"""Conventions of actions in reports, beside the data, and against declarations."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import hdf5
from tests.builders.conventions import Planted, actions_of, states_of, trajectories
from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.surface.invoke import run_vlatool
from vlatool.config.resolve import config_of
from vlatool.conventions.file import conventions_of
from vlatool.conventions.measure import measure_some
from vlatool.datasets.lbm.layout import read_preprocessing_config
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.recordings.detect import detect_source
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.verify import InspectConfig, InspectResult, inspect

PLANTED = Planted("delta", "tool", 1, "axis_angle", "quaternion_xyzw", 20.0, 10.0, (1.0, -1.0), 0.0)
_SHARED = Path(__file__).parents[3] / "shared/data"
REAL = Path(os.environ.get("VLATOOL_RECORDINGS", _SHARED / "formats"))
GR1 = Path(os.environ.get("VLATOOL_GR1", _SHARED / "gr1_pick"))
DELTA = {"relation": ["delta"], "lag": [1]}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve demonstrations with the convention `PLANTED`, 300 frames without their ends."""
    rng = np.random.default_rng(0)
    hands = trajectories("world", rng)

    def change(file: Any) -> None:
        for number, hand in enumerate(hands):
            group = file[f"data/demo_{number}"]
            states = states_of(hand, PLANTED.state_rotation)
            del group["actions"], group["obs"]
            group["actions"] = actions_of(hand, PLANTED, rng)
            for name, first, stop in (("eef_pos", 0, 3), ("eef_quat", 3, 7), ("gripper", 7, 8)):
                group[f"obs/{name}"] = states[:, first:stop]

    lengths = {f"demo_{number}": len(hand.positions) for number, hand in enumerate(hands)}
    return hdf5.robomimic(tmp_path_factory.mktemp("raw") / "a.hdf5", lengths, change)


def written(recording: Path, output: Path, **options: Any) -> PreprocessResult:
    tree = {"format": "hdf5", "sources": [str(recording)], "output": str(output), "fps": 10}
    tree |= {"workers": 1, "instruction": "go", **options}
    return preprocess(config_of(PreprocessConfig, tree))


def poses(rotation: str) -> dict[str, Any]:
    keys = {"position_key": "actions[0:3]", "rotation_key": "actions[3:6]"}
    return {"type": "lbm", "pose_groups": [{"name": "hand", **keys, "rotation": rotation}]}


def test_inspect_says_what_the_actions_are(recording: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = inspect(InspectConfig(location=str(recording), html=str(page)))
    assert isinstance(result, InspectResult)
    conventions = json.loads(json.dumps(result.document()["conventions"]))
    position, rotation, gripper = conventions["groups"]
    assert (conventions["episodes"], conventions["episodes_of"]) == (12, 12)
    assert position.items() >= {**DELTA, "kind": "position", "states": "obs.eef_pos"}.items()
    assert (position["frame"], position["scale"]) == (["tool"], pytest.approx([20.0] * 3, rel=1e-3))
    assert rotation.items() >= {**DELTA, "kind": "rotation", "frame": ["tool"]}.items()
    assert rotation["state_rotation"] == ["quaternion_xyzw"]
    assert (gripper["kind"], gripper["range"]) == ("gripper", [-1.0, 1.0])
    assert gripper["scale"][0] < 0
    assert "delta of obs.eef_pos, lag 1, tool frame, scale 20 (1 is 0.05 of the" in "\n".join(
        result.lines()
    )
    assert "0 predicted" in page.read_text()


@pytest.mark.parametrize("sink", ["lbm", "lerobot"])
def test_conventions_are_beside_the_data_whatever_the_workers(
    recording: Path, tmp_path: Path, sink: str
) -> None:
    for workers in (1, 2):
        written(recording, tmp_path / str(workers), workers=workers, sink={"type": sink})
    first, second = (tmp_path / name / "conventions.json" for name in ("1", "2"))
    source = detect_source(recording, None)
    measured = measure_some(source.reader.read, source.refs)
    assert measured is not None
    assert (first.read_bytes(), conventions_of(tmp_path / "1")) == (
        second.read_bytes(),
        measured.conventions,
    )
    assert run_vlatool("verify", str(tmp_path / "1"))[0] == 0


def test_conventions_go_on_to_the_report_and_to_a_run(recording: Path, tmp_path: Path) -> None:
    written(recording, tmp_path / "out", sink={"type": "lbm"})
    stored = json.loads((tmp_path / "out/conventions.json").read_text())
    report = inspect(InspectConfig(location=str(tmp_path / "out")))
    assert json.loads(json.dumps(report.document()["conventions"]))["groups"] == stored["groups"]
    assert "tool frame" in "\n".join(report.lines())
    config = RoboticsDataConfig(dataset_manifest=[str(tmp_path / "out/shards")])
    info = RoboticsKind().load_info(config)
    derived, _ = RoboticsKind().derive(config, info)
    RoboticsKind().save_assets(derived, info, tmp_path)
    options = read_preprocessing_config(tmp_path)
    assert options["conventions"]["groups"] == stored["groups"]


def test_a_broken_file_of_conventions_is_no_reason_not_to_train(
    recording: Path, tmp_path: Path
) -> None:
    written(recording, tmp_path / "out", sink={"type": "lbm"})
    (tmp_path / "out/conventions.json").write_text('{"format": "vlatool-conventions"}')
    config = RoboticsDataConfig(dataset_manifest=[str(tmp_path / "out/shards")])
    assert "conventions" not in RoboticsKind().load_info(config).options.stored
    assert run_vlatool("verify", str(tmp_path / "out"))[0] == 3


def test_a_typed_form_that_the_states_contradict_is_refused(
    recording: Path, tmp_path: Path
) -> None:
    options = {"sink": poses("euler_zyx"), "dry_run": True}
    with fails("data.contradicted_declaration") as caught:
        written(recording, tmp_path / "out", **options)
    assert "pose_groups: hand says absolute" in caught.value.message
    assert caught.value.details["field"] == "actions"
    assert written(recording, tmp_path / "out", trust_declared=True, **options).is_planned


def test_differences_between_frames_are_refused_at_another_rate(
    recording: Path, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    written(recording, tmp_path / "out", sink={"type": "frames"})
    for fps in (None, 2.5):
        keys = {"dataset_manifest": [output], "windows": {"fps": fps}}
        config = RoboticsDataConfig.model_validate(keys)
        if fps is None:
            assert RoboticsKind().load_info(config).num_samples
            continue
        with fails("data.mismatch") as caught:
            RoboticsKind().load_info(config)
        assert caught.value.details == {"field": "actions"}


@pytest.mark.parametrize("frame", ["base", "tool"])
def test_a_typed_frame_that_the_states_contradict_is_refused(
    recording: Path, tmp_path: Path, frame: str
) -> None:
    measured = {"position_key": "obs.eef_pos", "rotation_key": "obs.eef_quat", "name": "eef"}
    (command,) = poses("axis_angle")["pose_groups"]
    command |= {"relation": "delta", "frame": frame, "reference": "eef"}
    groups = [{**measured, "rotation": "quaternion_xyzw"}, command]
    options = {"sink": {"type": "lbm", "pose_groups": groups}, "dry_run": True}
    if frame == "tool":
        assert written(recording, tmp_path / "out", **options).is_planned
        return
    with fails("data.contradicted_declaration") as caught:
        written(recording, tmp_path / "out", **options)
    assert "pose_groups: hand says base" in caught.value.message


@pytest.mark.parametrize(
    ("is_absolute", "codes"), [(True, ["conventions.contradiction"]), (False, [])]
)
def test_modality_json_is_compared(
    recording: Path, tmp_path: Path, is_absolute: bool, codes: list[str]
) -> None:
    root = tmp_path / "set"
    written(recording, root, sink={"type": "lerobot", "modality": True})
    path = root / "meta/modality.json"
    tree = json.loads(path.read_text())
    tree["action"] = {
        "position": {"start": 0, "end": 3, "absolute": is_absolute},
        "rotation": {"start": 3, "end": 6, "rotation_type": "axis_angle"},
        "text": {"start": 0, "end": 3, "absolute": [], "rotation_type": {}},
    }
    path.write_text(json.dumps(tree))
    listed = json.loads(run_vlatool("verify", str(root), "--json")[1])["findings"]
    assert [each["code"] for each in listed if each["code"].startswith("conv")] == codes
    done = run_vlatool(*f"preprocess lerobot {root} --output {tmp_path}/out --dry-run".split())
    assert done[0] == (3 if codes else 0)


def test_clipped_and_late_actions_are_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [np.cumsum(rng.normal(0, 0.3, (60, 2)), axis=0) for _ in range(6)]

    def change(file: Any) -> None:
        for number, states in enumerate(rows):
            group = file[f"data/demo_{number}"]
            del group["actions"], group["obs"]
            group["actions"] = np.clip(np.vstack([states[8:], [states[-1]] * 8]), -2, 2)
            group["obs/joints"] = states

    path = hdf5.robomimic(tmp_path / "a.hdf5", {f"demo_{n}": 60 for n in range(6)}, change)
    report = inspect(InspectConfig(location=str(path)))
    group = report.document()["conventions"]["groups"][0]
    assert (group["lag_limit"], group["clipped"] > 0.1) == ("or more", True)
    text = "\n".join(report.lines())
    assert " or more, " in text
    assert "at the ends of the range: clipped?" in text


def test_a_curve_that_only_touches_its_ends_is_not_called_clipped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def zigzag() -> np.ndarray:
        turns = np.cumsum(rng.integers(4, 10, 30))
        return np.interp(np.arange(70), turns - turns[0], np.resize([-1.0, 1.0], 30))

    rows = [np.stack([zigzag(), zigzag()], axis=1) for _ in range(6)]

    def change(file: Any) -> None:
        for number, values in enumerate(rows):
            group = file[f"data/demo_{number}"]
            del group["actions"], group["obs"]
            group["actions"] = values[1:]
            group["obs/joints"] = values[:-1]

    path = hdf5.robomimic(tmp_path / "a.hdf5", {f"demo_{n}": 69 for n in range(6)}, change)
    report = inspect(InspectConfig(location=str(path)))
    (group,) = report.document()["conventions"]["groups"]
    ends = np.mean([np.abs(values[1:]) == 1 for values in rows])
    assert (group["lag"], group["clipped"]) == ((1,), 0)
    assert ends > 0.1
    assert "clipped" not in "\n".join(report.lines())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("isaaclab/dataset.hdf5", [("delta", "base"), ("delta", "base"), ("absolute", "")]),
        ("pusht.zarr", [("absolute", "")]),
        ("bridge/1.0.0", [("delta", ""), ("absolute", "")]),
    ],
)
def test_real_recordings(name: str, expected: list[tuple[str, str]]) -> None:
    if not (REAL / name).exists():
        pytest.skip(f"VLATOOL_RECORDINGS has no {name}")
    report = inspect(InspectConfig(location=str(REAL / name)))
    groups = report.document()["conventions"]["groups"]
    answers = [("".join(each["relation"]), "".join(each["frame"])) for each in groups]
    assert answers == expected
    assert not any(each["code"].startswith("conv") for each in report.document()["warnings"])


def test_actions_of_gr1_are_joints_before_the_states() -> None:
    if not GR1.exists():
        pytest.skip("VLATOOL_GR1 has no recording")
    report = inspect(InspectConfig(location=str(GR1))).document()
    arm = next(each for each in report["conventions"]["groups"] if each["first"] == 22)
    assert (arm["kind"], arm["relation"], arm["lag"]) == ("joints", ("absolute",), (4, 5))
    assert not any(each["code"].startswith("conv") for each in report["warnings"])


@pytest.mark.parametrize("name", ["isaaclab/dataset.hdf5", "pusht.zarr", "bridge/1.0.0"])
def test_no_declaration_of_a_real_recording_is_refused(name: str, tmp_path: Path) -> None:
    if not (REAL / name).exists():
        pytest.skip(f"VLATOOL_RECORDINGS has no {name}")
    config = detect_source(REAL / name, None)
    rate = {"fps": 10} if "fps" in config.reader.Config.model_fields else {}
    tree = {"format": config.format, "sources": [str(REAL / name)], "output": str(tmp_path / "out")}
    tree |= {**rate, "sink": {"type": "lbm"}, "dry_run": True, "workers": 1}
    assert preprocess(config_of(PreprocessConfig, tree)).is_planned


def test_trusted_declarations_and_other_statistics_are_named_by_training(
    recording: Path, tmp_path: Path
) -> None:
    planted = written(recording, tmp_path / "out", trust_declared=True, sink=poses("euler_zyx"))
    assert planted.samples
    stored = json.loads((tmp_path / "out/conventions.json").read_text())
    (trusted, *_) = stored["trusted"]
    assert "pose_groups: hand says absolute" in trusted

    other = tmp_path / "other"
    (other / "shards").mkdir(parents=True)
    shutil.copy(tmp_path / "out/shards/stats.json", other / "shards")
    groups = [{**group, "relation": ["absolute"]} for group in stored["groups"]]
    (other / "conventions.json").write_text(json.dumps({**stored, "groups": groups}))
    config = RoboticsDataConfig(
        dataset_manifest=[str(tmp_path / "out/shards")],
        dataset_statistics=[str(other / "shards/stats.json")],
    )
    reporter = Recorder()
    kind = RoboticsKind()
    info = kind.load_info(config)
    kind.check_samples(kind.derive(config, info)[0], info, reporter)
    codes = [code for code, _ in reporter.warnings]
    assert {"conventions.contradiction", "data.conventions_differ"} <= {*codes}
    text = "\n".join(text for _, text in reporter.warnings)
    assert trusted in text
    assert "relation is absolute in the data of" in text
