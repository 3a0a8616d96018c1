"""`inspect` reports the contents of a location, whole or broken."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.folder import write_set
from tests.builders.lerobot import lerobot_dataset
from tests.builders.spartan import spartan_task
from vlatool.config.resolve import config_of
from vlatool.media.frames import VideoFrames
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.verify import InspectConfig, InspectResult, inspect


def inspected(location: Path, **options: Any) -> InspectResult:
    return inspect(InspectConfig(location=str(location), **options))


def document(location: Path, **options: Any) -> dict[str, Any]:
    """Document after a round trip through strict JSON."""
    return json.loads(json.dumps(inspected(location, **options).document(), allow_nan=False))


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lerobot_dataset(tmp_path_factory.mktemp("lerobot") / "pick")


@pytest.fixture(scope="module")
def spartan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("spartan") / "world"
    tree = {"layout": "spartan", "output": str(output), "episodes": 2, "frames": 4, "workers": 1}
    sample(SampleConfig.model_validate(tree))
    return output


@pytest.fixture(scope="module")
def preprocessed(lerobot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shards") / "out"
    tree = {
        "format": "lerobot",
        "sources": [str(lerobot)],
        "output": str(output),
        "samples_per_shard": 4,
        "past_lowdim_steps": 1,
        "future_lowdim_steps": 2,
        "workers": 1,
    }
    preprocess(config_of(PreprocessConfig, tree))
    return output


@pytest.fixture
def shards(preprocessed: Path, tmp_path: Path) -> Path:
    """Copy that a test may damage."""
    return Path(shutil.copytree(preprocessed, tmp_path / "out"))


def weights(tensors: Mapping[str, tuple[int, ...]]) -> bytes:
    """Safetensors file of float32 zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    for step in (50, 100):
        checkpoint = run / f"checkpoints/step_{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(weights({"a": (3, 4), "b": (5,)}))
    (run / "config.yaml").write_text(
        "total_train_samples: 800\nmodel: {type: diffusion_policy}\n"
        "data: {dataset_manifest: [out/shards/manifest.jsonl]}\n"
    )
    (run / "latest.json").write_text(
        json.dumps({"checkpoint": "checkpoints/step_00000100", "step": 100})
    )
    rows = [{"step": 1, "loss": 2.0}, {"step": 100, "loss": 0.5}, {"step": 100, "event": "end"}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


# Raw sources


def test_a_lerobot_source_has_the_facts_of_all_its_episodes(lerobot: Path) -> None:
    result, report = inspected(lerobot), document(lerobot)
    assert (report["kind"], report["format"]) == ("source", "lerobot")
    counts = {"episodes": 2, "frames": 10, "seconds": 1.0, "fps": [10.0]}
    assert {key: report[key] for key in counts} == counts
    assert document(lerobot, episodes="1")["frames"] == 4
    field = report["fields"]["observation.state"]
    assert field["width"] == 3
    assert field["min"] == pytest.approx([0.0, 0.1, 0.2], rel=1e-6)  # float32 columns
    assert field["max"] == pytest.approx([103.0, 103.1, 103.2], rel=1e-6)
    (camera,) = report["cameras"]
    assert (camera["name"], camera["sizes"]) == ("observation.images.front", [[48, 32]])
    assert camera["episodes"] == 2
    assert all(name in result.text() for name in report["fields"])


def test_no_image_of_a_source_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, 4, frames=70)
    decoded: list[object] = []
    monkeypatch.setattr(VideoFrames, "read", lambda *_: decoded.append(None))
    inspect(InspectConfig(location=str(tmp_path)))
    assert decoded == []


def test_a_spartan_source_has_calibration_and_text(spartan: Path) -> None:
    report = document(spartan)
    assert (report["kind"], report["format"]) == ("source", "spartan")
    assert report["cameras"][0]["calibration"] == ["intrinsics", "extrinsics"]
    field = report["fields"]["language_instruction"]
    assert field["dtype"] == "text"
    assert field["example"].startswith("put the")


def test_broken_episodes_are_listed_and_a_source_of_them_is_an_error(tmp_path: Path) -> None:
    cameras = {"observation.images.front": "video", "observation.images.lost": "video"}
    source = lerobot_dataset(tmp_path / "data", cameras=cameras)
    shutil.rmtree(source / "videos/chunk-000/observation.images.lost")
    next(source.glob("data/*/episode_000001.parquet")).write_bytes(b"no parquet")
    report = document(source)
    assert [episode["episode"] for episode in report["broken"]] == ["data_episode_000001"]
    assert report["episodes"] == 1
    codes = [warning["code"] for warning in report["warnings"]]
    assert codes == ["lerobot.camera_without_files"]
    next(source.glob("data/*/episode_000000.parquet")).write_bytes(b"no parquet")
    with fails("data.incomplete"):
        inspected(source)
    (source / "meta/info.json").write_text("{")
    with fails("data.broken"):
        inspected(source)


def test_a_dimension_is_constant_only_over_all_episodes(tmp_path: Path) -> None:
    def change(number: int, columns: dict[str, Any]) -> None:
        columns["observation.state"] = [[7.0, float(number), float(row)] for row in range(6)]

    source = lerobot_dataset(tmp_path / "data", (6, 6), change=change)
    assert document(source)["fields"]["observation.state"]["constant"] == [0]


def test_warnings_are_grouped_by_code(tmp_path: Path) -> None:
    (warning,) = document(spartan_task(tmp_path, 2, instruction=None))["warnings"]
    assert (warning["code"], warning["count"]) == ("source.language_fallback", 2)


# Shard folders


def test_a_shard_folder_is_recognized_from_each_of_its_folders(preprocessed: Path) -> None:
    for part in ("", "shards", "episodes"):
        report = document(preprocessed / part)
        facts = (report["kind"], report["samples"], report["status"])
        assert facts == ("shards", 10, "whole")
    report = document(preprocessed)
    assert (report["window"], report["image_indices"], report["fps"]) == ([1, 2], [-1, 0], 10.0)
    assert report["action_fields"] == ["action"]
    assert report["cameras"] == {"observation.images.front": [48, 32]}
    # Per episode 1 row before the first frame and 1 + 2 after the last; 10 windows of 4 rows.
    assert report["padding_share"] == pytest.approx(2 * (1 + 3) / 40)
    origin = report["origin"]
    assert (origin["format"], origin["sources"]) == ("lerobot", ["pick"])
    assert (origin["is_complete"], origin["episodes"]) == (True, 2)
    with fails("usage.unsupported"):
        inspected(preprocessed, episodes="0")


@pytest.mark.parametrize(
    ("name", "code"),
    [("shard_000001.tar", "data.missing"), ("stats.json", "data.missing")],
)
def test_a_missing_file_is_a_finding(shards: Path, name: str, code: str) -> None:
    (shards / "shards" / name).unlink()
    report = document(shards)
    assert [finding["code"] for finding in report["findings"]] == [code]
    assert report["status"] == "broken"


def test_an_interrupted_preprocess_is_reported(shards: Path) -> None:
    for manifest in shards.rglob("manifest.jsonl"):
        manifest.unlink()
    with fails("data.incomplete"):
        inspected(shards)


# Single shards


def test_report_of_a_shard_has_its_members_and_arrays(preprocessed: Path) -> None:
    report = document(preprocessed / "shards/shard_000000.tar")
    assert list(report["first"]["members"]) == [
        "observation.images.front_t-1.jpg",
        "observation.images.front_t0.jpg",
        "lowdim.npz",
        "metadata.json",
        "language_instructions.json",
    ]
    assert (report["samples"], report["members_per_sample"]) == (4, {"5": 4})
    assert report["first"]["arrays"]["action"] == {"shape": [4, 2], "dtype": "float32"}


def test_a_truncated_shard_is_reported_and_no_tar_is_an_error(shards: Path) -> None:
    path = shards / "shards/shard_000000.tar"
    path.write_bytes(path.read_bytes()[:-20_000])
    assert document(path)["problem"].startswith("truncated")
    path.write_bytes(b"not a tar" * 100)
    with fails("data.broken"):
        inspected(path)


# Runs


def test_report_of_a_run_has_its_model_data_checkpoints_and_metrics(run_folder: Path) -> None:
    # The last validation has names of any version.
    row = {"step": 100, "val/loss": 0.7, "val/action_error/hand": 0.25, "val/sampled_mae/hand": 0.5}
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + '\n{"step": 101, "loss": 0.')  # half written
    report = document(run_folder)
    facts = (report["kind"], report["model_type"], report["step"])
    assert facts == ("run", "diffusion_policy", 100)
    assert report["data"] == ["out/shards/manifest.jsonl"]
    assert report["weights"] == {"parameters": 17, "tensors": 2, "dtypes": ["F32"]}
    assert [checkpoint["step"] for checkpoint in report["checkpoints"]] == [50, 100]
    assert report["last_metrics"] == {"step": 100, "loss": 0.5}
    assert report["last_validation"] == row


def test_truncated_weights_are_a_finding_and_a_run_may_have_no_checkpoint(run_folder: Path) -> None:
    path = run_folder / "checkpoints/step_00000100/model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    codes = [finding["code"] for finding in document(run_folder)["findings"]]
    assert codes == ["data.broken"]
    shutil.rmtree(run_folder / "checkpoints")
    (run_folder / "latest.json").unlink()
    assert document(run_folder)["step"] is None


def test_inspect_loads_no_heavy_package(preprocessed: Path) -> None:
    code = (
        "import sys; from vlatool.workflows.verify import InspectConfig, inspect; "
        "[inspect(InspectConfig(location=location)).text() for location in sys.argv[1:]]; "
        "print([n for n in ('torch', 'transformers', 'webdataset', 'rich') if n in sys.modules])"
    )
    paths = [str(preprocessed), str(preprocessed / "shards/shard_000000.tar")]
    command = [sys.executable, "-c", code, *paths]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "[]"
