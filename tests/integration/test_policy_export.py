"""Exports of runs to the published layout, and published experiments, as policies that act."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from shutil import ignore_patterns
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.builders import training
from tests.builders.base_models import clip_base
from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.verifying import verified
from tests.builders.web_server import web_server
from vlatool.checkpoints.layout import RunDir
from vlatool.config.resolve import load_config
from vlatool.errors import DataError, UsageError
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.evaluation.policy_runner import load_policy
from vlatool.models.trained import open_trained
from vlatool.models.weights import read_pickled_weights
from vlatool.training.config import TrainConfig
from vlatool.workflows.export import ExportConfig, export
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.train import finetune, train
from vlatool.workflows.verify import InspectConfig, inspect

# Keys that records of the published program have. Source: reference/training 1.6.
RECORDED = {
    "db_logging": True, "log_level": "INFO", "wandb_entity": None, "wandb_project_name": "policies",
    "wandb_tags": [], "remote_sync_fixed_path": "s3://none/none",
}  # fmt: skip
RECORDED_DATA = {
    "dataset_statistics": [None], "val_dataset_statistics": [], "val_dataset_weighting": [],
    "processor_kwargs": {"size": {"height": 224, "width": 224}}, "img_num_tokens": 256,
    "image_size": 224, "seq_len": 2048, "shuffle_initial": 500, "tactile_fields": [],
    "use_hf_fast_tokenizer": True, "hf_fast_tokenizer_rayon_threads": None,
    "dataloader_in_order": False, "use_point_cloud": False, "point_cloud_num_points": 4096,
    "intrinsics_fields": [], "extrinsics_fields": [], "an_older_key": 1,
}  # fmt: skip
# Keys of the section of a CLIP backbone. Source: formats/published-runs 2.1.
CLIP_KEYS = {
    "type", "resume_from_checkpoint", "resume_weights_only", "freeze", "hf_pretrained",
    "freeze_text_encoder", "freeze_image_encoder", "disable_text",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.world_shards(tmp_path_factory.mktemp("world"), episodes=2)


def config(data: Path, run: Path, **changes: Any) -> TrainConfig:
    keys = {
        "data__dataset_manifest": data,
        "hparams__per_gpu_batch_size": "null",
        "hparams__lr_scheduler": "cosine",
        "hparams__warmup": 1,
        "ema__enabled": True,
        **changes,
    }
    return training.base_model_config(data, run, clip_base(run.parent / "clip"), **keys)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(config(data, run))
    return run


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    export(ExportConfig(source=str(run), output=str(run.parent / "export")))
    return run.parent / "export"


@pytest.fixture
def published(exported: Path, tmp_path: Path) -> Path:
    """Experiment without our files, as the published program leaves it: checkpoints 9 and 10."""
    folder = Path(shutil.copytree(exported, tmp_path / "experiment"))
    shutil.rmtree(folder / ".vlatool")
    for name in ("vlatool.yaml", "tokenizer.json"):
        (folder / name).unlink()
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    tree["distributed"] |= {"use_distributed": False, "rank": 0, "local_rank": 0, "device": "cpu"}
    tree |= RECORDED
    tree["data"] |= RECORDED_DATA
    tree["data"]["augmentation"]["image"]["random_crop"] = tree["data"]["augmentation"][
        "image"
    ].pop("crop")
    rules = {"method": "std", "scope": "global", "epsilon": 1e-8, "enabled": True}
    tree["data"]["normalization"]["field_configs"] = dict.fromkeys(
        [training.HAND, training.HAND_COMMAND], rules
    )
    tree["model"]["transformer"] |= {"max_seq_len": 2048, "cast_output_to_float32": False}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    sections = {"model": tree["model"], "processor": tree["data"]}
    for name, section in {**sections, "normalizer": tree["data"]["normalization"]}.items():
        (folder / f"config_{name}.yaml").write_text(yaml.safe_dump(section))
    options = yaml.safe_load((folder / "preprocessing_config.yaml").read_text())
    del options["pose_groups"]
    (folder / "preprocessing_config.yaml").write_text(yaml.safe_dump({0: options, 1: {}}))
    checkpoints = folder / "checkpoints"
    for kind in ("checkpoint", "ema"):
        shutil.copy(checkpoints / f"{kind}_1.pt", checkpoints / f"{kind}_9.pt")
        (checkpoints / f"{kind}_1.pt").rename(checkpoints / f"{kind}_10.pt")
    return folder


def chunk(location: Path | str, **options: Any) -> dict[str, np.ndarray]:
    policy = load_policy(location, **options)
    generator = np.random.default_rng(3)
    observation: dict[str, Any] = {
        name: generator.integers(0, 256, (128, 128, 3), dtype=np.uint8) for name in training.CAMERAS
    }
    observation |= {name: np.zeros(width) for name, width in policy.fields.items()}
    for name in observation:
        if name.endswith("rot_6d"):
            observation[name] = np.array([1.0, 0, 0, 0, 1, 0])
    return policy.act({**observation, "instruction": "put the red block away"})


@pytest.mark.parametrize(("weights", "file"), [("ema", "ema_1.pt"), ("raw", "checkpoint_1.pt")])
def test_export_acts_as_its_run(run: Path, exported: Path, weights: Any, file: str) -> None:
    expected = chunk(run, weights=weights)
    for location in (exported, exported / "checkpoints" / file):
        actions = chunk(location, **({"weights": weights} if location == exported else {}))
        assert all(np.array_equal(actions[name], expected[name]) for name in expected)


def test_export_acts_without_its_base_model(run: Path, exported: Path, tmp_path: Path) -> None:
    expected = chunk(run)
    (run.parent / "clip").rename(tmp_path / "clip")
    try:
        actions = chunk(exported)
    finally:
        (tmp_path / "clip").rename(run.parent / "clip")
    assert all(np.array_equal(actions[name], expected[name]) for name in expected)


def test_published_experiment_acts_with_its_newest_checkpoint(
    run: Path, published: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    tree = yaml.safe_load((copy / "config.yaml").read_text())
    tree["model"]["vision_language_backbone"]["image_words"] = True
    (copy / "config.yaml").write_text(yaml.safe_dump(tree))

    trained = open_trained(str(published), device="cpu")

    assert (trained.origin.file.name, trained.origin.weights) == ("ema_10.pt", "ema")
    expected, actions = chunk(copy), chunk(published)
    assert all(np.array_equal(actions[name], expected[name]) for name in expected)


def test_relative_poses_of_published_data_refer_to_the_measured_pose(
    data: Path, run: Path, published: Path, tmp_path: Path
) -> None:
    """Published shards and experiments do not say which fields form poses."""
    shards = Path(shutil.copytree(data, tmp_path / "shards", ignore=ignore_patterns("*.index.npz")))
    for path in (*shards.rglob("preprocessing_config.yaml"), published / "config.yaml"):
        tree = yaml.safe_load(path.read_text())
        tree.get("data", tree).pop("pose_groups")
        path.write_text(yaml.safe_dump(tree))
    expected, actions = chunk(run), chunk(published)
    assert expected.keys() == actions.keys()
    train(config(shards, tmp_path / "finetuned", init_from=published))
    export(ExportConfig(source=str(tmp_path / "finetuned"), output=str(tmp_path / "export")))
    assert chunk(tmp_path / "export").keys() == expected.keys()
    open_loop(
        OpenLoopConfig(
            checkpoint=str(tmp_path / "export"), data=str(shards), output=str(tmp_path / "out")
        )
    )
    exported = yaml.safe_load((tmp_path / "export/config.yaml").read_text())
    keys = [group["position_key"] for group in exported["data"]["pose_groups"]]
    assert keys == [training.XYZ_COMMAND]


def test_files_with_their_earlier_names_are_read(published: Path) -> None:
    expected = chunk(published)
    (published / "stats.json").rename(published / "stats_normalizer.json")
    (published / "preprocessing_config.yaml").rename(published / "preprocessing_configs.yaml")

    actions = chunk(published)

    assert all(np.array_equal(actions[name], expected[name]) for name in expected)


def test_open_loop_takes_a_published_file_and_tells_what_it_leaves_out(
    data: Path, published: Path, tmp_path: Path
) -> None:
    location = published / "checkpoints/checkpoint_9.pt"
    content = torch.load(location, weights_only=True)
    content["state_dict"]["sinusoidal_position_embeddings.emb"] = torch.zeros(4)
    torch.save(content, location)
    notes = Recorder()

    result = open_loop(
        OpenLoopConfig(
            checkpoint=str(location), data=str(data), output=str(tmp_path / "out"), max_samples=4
        ),
        reporter=notes,
    )

    assert (result.weights, result.samples) == ("raw", 4)
    text = " ".join(notes.notes)
    assert "transformer.embeddings.weight" in text
    assert "sinusoidal_position_embeddings.emb" in text


def test_published_checkpoint_on_the_hub_acts(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site/lab/policy"
    shutil.copytree(published, site)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    expected = chunk(published, weights="raw")
    with web_server(tmp_path / "site") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        file = "checkpoints/checkpoint_10.pt"
        for location in (
            "hf://lab/policy",
            f"hf://models/lab/policy/{file}",
            f"hf://lab/policy/{file}",
        ):
            actions = chunk(location, weights="raw")
            assert all(np.array_equal(actions[name], expected[name]) for name in expected)


def test_file_without_its_experiment_is_an_error(published: Path, tmp_path: Path) -> None:
    shutil.copy(published / "checkpoints/checkpoint_9.pt", tmp_path)

    with fails("data.broken") as caught:
        load_policy(tmp_path / "checkpoint_9.pt")
    assert "config.yaml" in caught.value.message


def damage(path: Path) -> None:
    """Changes a byte of a tensor."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("opened",)


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("checkpoints/checkpoint_9.pt", damage, "broken_weights"),
        ("checkpoints/ema_10.pt", lambda path: os.truncate(path, 99), "broken_weights"),
        ("checkpoints/optimizer_9.pt", lambda path: torch.save(Code(), path), "unsafe_weights"),
        ("checkpoints/ema_10.pt", Path.unlink, "no_average"),
        ("stats.json", lambda path: path.write_text("{}"), "broken_statistics"),
        ("preprocessing_config.yaml", Path.unlink, "broken_options"),
        ("config_normalizer.yaml", Path.unlink, "broken_config"),
        ("config_model.yaml", lambda path: path.write_text("{}"), "other_config"),
        ("config.yaml", lambda path: path.write_text("model: {type: other}"), "broken_config"),
    ],
)
def test_verify_finds_damage_of_an_experiment(
    published: Path, name: str, change: Callable[[Path], Any], code: str
) -> None:
    assert finding_codes(published) == set()

    change(published / name)

    assert f"experiment.{code}" in finding_codes(published)


def finding_codes(location: Path, kind: str = "experiment") -> set[str]:
    """Codes of the findings."""
    result = verified(location)
    assert (result.kind, result.checked["files"] > 0) == (kind, True)
    return set(result.codes)


def test_verify_compares_the_checksums_of_a_file_of_weights_and_the_files_of_an_export(
    published: Path, exported: Path, tmp_path: Path
) -> None:
    path = published / "checkpoints/ema_9.pt"
    assert finding_codes(path, "experiment_file") == set()
    damage(path)
    assert finding_codes(path, "experiment_file") == {"experiment.broken_weights"}
    assert inspect(InspectConfig(location=str(path))).document()["number"] == 9

    folder = Path(shutil.copytree(exported, tmp_path / "export"))
    assert finding_codes(folder) == set()
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "# mine\n")
    assert finding_codes(folder) == {"output.size_mismatch"}


def test_raw_weights_of_an_experiment_without_averages_are_named(published: Path) -> None:
    for file in published.glob("checkpoints/ema_*.pt"):
        file.unlink()
    recorder = Recorder()
    assert open_trained(str(published), reporter=recorder).origin.weights == "raw"
    assert any("has no averaged weights" in note for note in recorder.notes)


# files of an export


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("checkpoints/checkpoint_1.pt", "model.safetensors"),
        ("checkpoints/ema_1.pt", "ema.safetensors"),
        (".", "ema.safetensors"),
    ],
)
def test_exported_weights_loaded_again_are_those_of_the_run(
    data: Path, run: Path, exported: Path, tmp_path: Path, file: str, own: str
) -> None:
    unchanged = {"hparams__lr": 0, "hparams__lr_cooldown_end": 0, "total_train_steps": 1}
    origin = {"model__resume_from_checkpoint": exported / file}
    finetune(
        config(data, tmp_path / "back", **origin, model__resume_weights_only=True, **unchanged)
    )

    weights = load_file(RunDir(tmp_path / "back").checkpoint(1) / "model.safetensors")
    expected = load_file(RunDir(run).checkpoint(2) / own)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_exported_values_have_the_published_types(exported: Path) -> None:
    tree = yaml.safe_load((exported / "config.yaml").read_text())
    for key, kind in {
        "hparams.warmup": str,
        "hparams.decay": str,
        "hparams.lr": float,
        "ema.alpha": float,
        "data.normalization.epsilon": float,
        "data.dataset_statistics.0": str,
        "data.dataset_weighting.0": float,
        "data.pose_groups.0.position_key": str,
        "model.noise_scheduler.clamp_range.0": float,
        "data.prefetch_factor": int,
    }.items():
        value = tree
        for part in key.split("."):
            value = value[int(part) if part.isdigit() else part]
        assert type(value) is kind, key


def test_exported_files_have_the_published_names_keys_and_provenance(
    exported: Path, data: Path
) -> None:
    tree = yaml.safe_load((exported / "config.yaml").read_text())

    assert set(tree["model"]["vision_language_backbone"]) == CLIP_KEYS
    assert yaml.safe_load((exported / "config_model.yaml").read_text()) == tree["model"]
    assert yaml.safe_load((exported / "config_processor.yaml").read_text()) == tree["data"]
    normalizer = yaml.safe_load((exported / "config_normalizer.yaml").read_text())
    assert normalizer == tree["data"]["normalization"]
    assert (tree["total_train_samples"], tree["hparams"]["per_gpu_batch_size"]) == (8, 4)
    assert tree["data"]["camera_names"] == training.CAMERAS
    content = read_pickled_weights(exported / "checkpoints/checkpoint_1.pt")
    assert (content["checkpoint_num"], content["global_step"]) == (1, 2)

    metadata = json.loads((exported / "processing_metadata.json").read_text())

    assert (metadata["dataset_sources"], metadata["num_sources"]) == ([str(data)], 1)
    assert metadata["command_line"]["arguments"]["camera_names"] == training.CAMERAS


def test_exported_configuration_resolves_to_the_model_of_the_run(run: Path, exported: Path) -> None:
    models = [
        load_config(TrainConfig, files=[str(folder / "config.yaml")]).config.model
        for folder in (run, exported)
    ]

    dumps = [dump.model_dump(mode="json") for dump in models]
    for dump in dumps:
        dump["vision_language_backbone"] = {
            key: dump["vision_language_backbone"][key] for key in CLIP_KEYS
        }
    assert dumps[0] == dumps[1]


def test_policy_without_a_published_layout_is_an_error_of_which_a_dry_run_tells(
    data: Path, run: Path, tmp_path: Path
) -> None:
    planned = train(training.tiny_config(data, tmp_path / "run", dry_run=True))
    assert "keypoint_backbone" in planned.export_problem
    assert planned.export_problem in planned.text()
    assert train(config(data, run.parent / "other", dry_run=True)).export_problem == ""

    train(training.tiny_config(data, tmp_path / "run", total_train_steps=1))
    with pytest.raises(UsageError) as caught:
        export(ExportConfig(source=str(tmp_path / "run"), output=str(tmp_path / "out")))
    assert (caught.value.code, (tmp_path / "out").exists()) == ("usage.unsupported", False)


def test_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path) -> None:
    copy = RunDir(Path(shutil.copytree(run, tmp_path / "run")))
    (copy.checkpoint(2) / "model.safetensors").write_bytes(b"half")

    with fails("data.broken"):
        export(ExportConfig(source=str(copy.root), output=str(tmp_path / "out")))


@pytest.mark.parametrize("name", ["checkpoints/ema_1.pt", "stats.json"])
def test_changed_file_of_an_export_is_not_opened(exported: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(exported, tmp_path / "export")
    changed = tmp_path / "export" / name
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(DataError) as caught:
        open_trained(str(tmp_path / "export"), device="cpu")
    assert (caught.value.code, caught.value.details["path"]) == ("data.broken", str(changed))


def test_export_of_another_checkpoint_is_replaced_on_request_only(
    run: Path, tmp_path: Path
) -> None:
    first, *_, last = sorted(run.glob("checkpoints/step_*"))
    export(ExportConfig(source=str(last), output=str(tmp_path)))
    weights = tmp_path / "checkpoints/checkpoint_1.pt"
    before = weights.read_bytes()
    other = {"source": str(first), "output": str(tmp_path)}
    with fails("usage.output_differs"):
        export(ExportConfig(**other))
    assert weights.read_bytes() == before
    export(ExportConfig(**other, overwrite=True))
    assert weights.read_bytes() != before
