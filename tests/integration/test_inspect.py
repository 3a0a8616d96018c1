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

from tests.builders.lerobot import lerobot_dataset
from tests.builders.spartan import spartan_task
from vlatool.errors import DataError, UsageError
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
    preprocess(PreprocessConfig.specialize(tree).model_validate(tree))
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


def test_a_lerobot_source_is_recognized(lerobot: Path) -> None:
    report = document(lerobot)
    assert (report["kind"], report["format"]) == ("source", "lerobot")


def test_a_spartan_source_is_recognized(spartan: Path) -> None:
    report = document(spartan)
    assert (report["kind"], report["format"]) == ("source", "spartan")


def test_counts_are_summed_over_episodes(lerobot: Path) -> None:
    report = document(lerobot)
    assert {key: report[key] for key in ("episodes", "frames", "seconds", "fps")} == {
        "episodes": 2,
        "frames": 10,
        "seconds": 1.0,
        "fps": [10.0],
    }


def test_a_selection_restricts_the_episodes_read(lerobot: Path) -> None:
    assert document(lerobot, episodes="1")["frames"] == 4


def test_a_field_has_its_range_over_all_episodes(lerobot: Path) -> None:
    field = document(lerobot)["fields"]["observation.state"]
    assert field["width"] == 3
    assert field["min"] == pytest.approx([0.0, 0.1, 0.2], rel=1e-6)  # float32 columns
    assert field["max"] == pytest.approx([103.0, 103.1, 103.2], rel=1e-6)


def test_a_dimension_is_constant_only_over_all_episodes(tmp_path: Path) -> None:
    def change(number: int, columns: dict[str, Any]) -> None:
        columns["observation.state"] = [[7.0, float(number), float(row)] for row in range(6)]

    source = lerobot_dataset(tmp_path / "data", (6, 6), change=change)
    assert document(source)["fields"]["observation.state"]["constant"] == [0]


def test_cameras_have_a_size_and_a_number_of_episodes(lerobot: Path) -> None:
    (camera,) = document(lerobot)["cameras"]
    assert (camera["name"], camera["sizes"]) == ("observation.images.front", [[48, 32]])
    assert camera["episodes"] == 2


def test_calibration_is_reported_by_part(spartan: Path) -> None:
    assert document(spartan)["cameras"][0]["calibration"] == ["intrinsics", "extrinsics"]


def test_text_fields_have_an_example(spartan: Path) -> None:
    field = document(spartan)["fields"]["language_instruction"]
    assert field["dtype"] == "text"
    assert field["example"].startswith("put the")


def test_warnings_are_grouped_by_code(tmp_path: Path) -> None:
    (warning,) = document(spartan_task(tmp_path, 2, instruction=None))["warnings"]
    assert (warning["code"], warning["count"]) == ("source.language_fallback", 2)


def test_a_camera_without_any_file_is_a_warning(tmp_path: Path) -> None:
    cameras = {"observation.images.front": "video", "observation.images.lost": "video"}
    source = lerobot_dataset(tmp_path / "data", cameras=cameras)
    shutil.rmtree(source / "videos/chunk-000/observation.images.lost")
    codes = [warning["code"] for warning in document(source)["warnings"]]
    assert codes == ["lerobot.camera_without_files"]


def test_a_broken_episode_is_listed_with_its_reason(tmp_path: Path) -> None:
    source = lerobot_dataset(tmp_path / "data")
    next(source.glob("data/*/episode_000001.parquet")).write_bytes(b"no parquet")
    report = document(source)
    assert [episode["episode"] for episode in report["broken"]] == ["data_episode_000001"]
    assert report["episodes"] == 1


def test_a_source_with_only_broken_episodes_is_an_error(tmp_path: Path) -> None:
    source = lerobot_dataset(tmp_path / "data")
    for path in source.glob("data/*/*.parquet"):
        path.write_bytes(b"no parquet")
    with pytest.raises(DataError) as caught:
        inspected(source)
    assert caught.value.code == "data.all_failed"


def test_a_location_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere") as caught:
        inspected(tmp_path / "nowhere")
    assert caught.value.code == "data.no_source"


def test_error_of_an_unknown_folder_lists_what_each_format_searched_for(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        inspected(tmp_path)
    assert caught.value.code == "data.no_episodes"
    assert "meta/info.json" in caught.value.details["searched"]["lerobot"]
    assert "episode_<N>" in caught.value.details["searched"]["spartan"]


def test_broken_metadata_is_reported_instead_of_no_episodes(tmp_path: Path) -> None:
    source = lerobot_dataset(tmp_path / "data")
    (source / "meta/info.json").write_text("{")
    with pytest.raises(DataError) as caught:
        inspected(source)
    assert caught.value.code == "data.bad_metadata"


def test_two_formats_in_one_folder_ask_for_a_choice(tmp_path: Path, spartan: Path) -> None:
    lerobot_dataset(tmp_path / "one")
    shutil.copytree(spartan / "tasks", tmp_path / "two/tasks")
    with pytest.raises(UsageError) as caught:
        inspected(tmp_path)
    assert caught.value.details["formats"] == ["spartan", "lerobot"]


def test_format_option_selects_one_of_two_formats(tmp_path: Path, spartan: Path) -> None:
    lerobot_dataset(tmp_path / "one")
    shutil.copytree(spartan / "tasks", tmp_path / "two/tasks")
    assert document(tmp_path, format="lerobot")["format"] == "lerobot"


# Shard folders


@pytest.mark.parametrize("part", ["", "shards", "episodes"])
def test_a_shard_folder_is_recognized_from_each_of_its_folders(
    preprocessed: Path, part: str
) -> None:
    report = document(preprocessed / part)
    assert (report["kind"], report["samples"], report["status"]) == ("shards", 10, "whole")


def test_report_of_shards_has_window_images_and_policy_fields(preprocessed: Path) -> None:
    report = document(preprocessed)
    assert (report["window"], report["image_indices"], report["fps"]) == ([1, 2], [-1, 0], 10.0)
    assert report["action_fields"] == ["action"]
    assert report["cameras"] == {"observation.images.front": [48, 32]}


def test_the_padding_share_counts_rows_outside_the_episode(preprocessed: Path) -> None:
    # Per episode 1 row before the first frame and 1 + 2 after the last; 10 windows of 4 rows.
    assert document(preprocessed)["padding_share"] == pytest.approx(2 * (1 + 3) / 40)


def test_report_of_shards_has_their_provenance(preprocessed: Path) -> None:
    origin = document(preprocessed)["origin"]
    assert (origin["format"], origin["sources"]) == ("lerobot", ["pick"])
    assert (origin["is_complete"], origin["episodes"]) == (True, 2)


def test_a_missing_shard_is_a_finding(shards: Path) -> None:
    (shards / "shards/shard_000001.tar").unlink()
    report = document(shards)
    assert [finding["code"] for finding in report["findings"]] == ["data.missing_shard"]
    assert report["status"] == "broken"


def test_missing_statistics_are_a_finding(shards: Path) -> None:
    (shards / "shards/stats.json").unlink()
    assert [finding["code"] for finding in document(shards)["findings"]] == ["data.no_statistics"]


def test_an_interrupted_preprocess_is_reported(shards: Path) -> None:
    for manifest in shards.rglob("manifest.jsonl"):
        manifest.unlink()
    with pytest.raises(DataError) as caught:
        inspected(shards)
    assert caught.value.code == "data.incomplete_output"


def test_episodes_cannot_be_selected_from_shards(preprocessed: Path) -> None:
    with pytest.raises(UsageError) as caught:
        inspected(preprocessed, episodes="0")
    assert caught.value.code == "usage.no_raw_source"


# Single shards


def test_report_of_a_shard_has_the_members_of_its_first_sample(preprocessed: Path) -> None:
    first = document(preprocessed / "shards/shard_000000.tar")["first"]
    assert list(first["members"]) == [
        "observation.images.front_t-1.jpg",
        "observation.images.front_t0.jpg",
        "lowdim.npz",
        "metadata.json",
        "language_instructions.json",
    ]


def test_a_shard_counts_samples_and_their_members(preprocessed: Path) -> None:
    report = document(preprocessed / "shards/shard_000000.tar")
    assert (report["samples"], report["members_per_sample"]) == (4, {"5": 4})


def test_report_of_a_shard_has_the_shapes_of_its_arrays(preprocessed: Path) -> None:
    arrays = document(preprocessed / "shards/shard_000000.tar")["first"]["arrays"]
    assert arrays["action"] == {"shape": [4, 2], "dtype": "float32"}


def test_a_truncated_shard_is_reported(shards: Path) -> None:
    path = shards / "shards/shard_000000.tar"
    path.write_bytes(path.read_bytes()[:-20_000])
    assert document(path)["problem"].startswith("truncated")


def test_a_shard_that_is_no_tar_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(DataError) as caught:
        inspected(tmp_path / "x.tar")
    assert caught.value.code == "data.broken_shard"


# Runs


def test_report_of_a_run_has_model_data_and_steps(run_folder: Path) -> None:
    report = document(run_folder)
    assert (report["kind"], report["model_type"], report["step"]) == (
        "run",
        "diffusion_policy",
        100,
    )
    assert report["data"] == ["out/shards/manifest.jsonl"]


def test_parameters_are_counted_from_the_header_of_the_weights(run_folder: Path) -> None:
    assert document(run_folder)["weights"] == {"parameters": 17, "tensors": 2, "dtypes": ["F32"]}


def test_checkpoints_are_listed_by_step(run_folder: Path) -> None:
    assert [checkpoint["step"] for checkpoint in document(run_folder)["checkpoints"]] == [50, 100]


def test_the_last_metrics_are_the_last_line_with_a_loss(run_folder: Path) -> None:
    assert document(run_folder)["last_metrics"] == {"step": 100, "loss": 0.5}


def test_last_validation_is_reported_with_names_of_any_version(run_folder: Path) -> None:
    row = {"step": 100, "val/loss": 0.7, "val/action_error/hand": 0.25, "val/sampled_mae/hand": 0.5}
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")

    assert document(run_folder)["last_validation"] == row
    assert document(run_folder)["last_metrics"]["step"] == 100


def test_a_half_written_metrics_line_is_skipped(run_folder: Path) -> None:
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "loss": 0.')
    assert document(run_folder)["last_metrics"]["step"] == 100


def test_truncated_weights_are_a_finding(run_folder: Path) -> None:
    path = run_folder / "checkpoints/step_00000100/model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert [finding["code"] for finding in document(run_folder)["findings"]] == [
        "data.broken_weights"
    ]


def test_a_run_without_a_checkpoint_is_still_a_run(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "checkpoints")
    (run_folder / "latest.json").unlink()
    assert document(run_folder)["step"] is None


# All of them


def test_the_text_names_every_field_of_a_source(lerobot: Path) -> None:
    text = inspected(lerobot).text()
    assert all(name in text for name in document(lerobot)["fields"])


def test_the_columns_of_a_table_are_aligned(lerobot: Path) -> None:
    lines = inspected(lerobot).text().split("\n")
    start = lines.index("Fields") + 1
    column = lines[start].index("dtype")
    assert {line[column : column + 5] for line in lines[start + 1 : start + 4]} == {"float"}


@pytest.mark.parametrize("part", ["", "shards/shard_000000.tar"])
def test_inspect_loads_no_heavy_package(preprocessed: Path, part: str) -> None:
    code = (
        "import sys; from vlatool.workflows.verify import InspectConfig, inspect; "
        "inspect(InspectConfig(location=sys.argv[1])).text(); "
        "print([n for n in ('torch', 'transformers', 'webdataset', 'rich') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(preprocessed / part)]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "[]"
