"""Checkpoints of lerobot: what they may not bring, names of cameras, statistics."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders.errors import fails
from tests.builders.lerobot import encoded_image, lerobot_dataset
from tests.builders.lerobot_backbones import make_tokenizer
from tests.builders.lerobot_policies import (
    CAMERAS,
    TINY,
    make_frames,
    needs_lerobot,
    run_config,
    train_tiny,
)
from vlatool.config.resolve import load_config, parse_override
from vlatool.models.trained import open_trained
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.train import train

pytestmark = needs_lerobot
STATE, ACTION = 5, 3


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_frames(tmp_path_factory.mktemp("data"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint that lerobot saved, of an ACT with the cameras camera1 and camera2."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import (
        get_policy_class,
        make_policy_config,
        make_pre_post_processors,
    )

    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))}
    for camera in ("camera1", "camera2"):
        inputs[f"observation.images.{camera}"] = PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))}
    config = make_policy_config(
        "act", input_features=inputs, output_features=outputs, device="cpu", **TINY["act"]
    )
    torch.manual_seed(0)
    statistics: dict[str, Any] = {}
    for name, width in (("observation.state", STATE), ("action", ACTION)):
        statistics[name] = {"mean": np.arange(width) * 1.0, "std": np.full(width, 2.0)}
    get_policy_class("act")(config).save_pretrained(tmp_path / "policy")
    for processor in make_pre_post_processors(config, dataset_stats=statistics):
        processor.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def changed(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def test_a_checkpoint_of_lerobot_acts_as_it_is(checkpoint: Path) -> None:
    policy = open_trained(str(checkpoint), device="cpu").policy()
    names = {"observation.images.camera1", "observation.images.camera2"}
    assert set(policy.sees.cameras) == names
    assert policy.actions == {"action": ACTION}
    assert policy.horizon == 8
    assert not policy.sees.instruction


def test_a_step_that_names_a_class_is_refused(checkpoint: Path) -> None:
    step = {"class": "os.system", "config": {"command": "true"}}
    changed(checkpoint, "policy_preprocessor.json", lambda tree: tree["steps"].append(step))
    with fails("data.unsafe"):
        open_trained(str(checkpoint), device="cpu")


def test_a_step_outside_of_the_registry_is_refused(checkpoint: Path) -> None:
    step = {"registry_name": "os.system", "config": {}}
    changed(checkpoint, "policy_postprocessor.json", lambda tree: tree["steps"].append(step))
    with fails("data.unsafe"):
        open_trained(str(checkpoint), device="cpu")


def test_a_state_file_of_another_folder_is_refused(checkpoint: Path) -> None:
    def escape(tree: Any) -> None:
        tree["steps"][-1]["state_file"] = "../secret.safetensors"

    changed(checkpoint, "policy_preprocessor.json", escape)
    with fails("data.unsafe"):
        open_trained(str(checkpoint), device="cpu")


def test_a_pickle_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with fails("data.missing"):
        open_trained(str(checkpoint), device="cpu")


def test_a_tokenizer_that_brings_code_is_not_run(tmp_path: Path) -> None:
    from vlatool.models.lerobot.package import guarded

    folder = tmp_path / "tokenizer"
    make_tokenizer().save_pretrained(folder)
    code = {"auto_map": {"AutoTokenizer": ["code.Evil", None]}, "tokenizer_class": "Evil"}
    changed(folder, "tokenizer_config.json", lambda tree: tree.update(code))
    (folder / "tokenizer.json").unlink()
    mark = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    from transformers import AutoTokenizer

    with fails("data.unsafe"), guarded({"evil": str(folder)}):
        AutoTokenizer.from_pretrained("evil", trust_remote_code=True)
    assert not mark.exists()


def test_weights_of_imagenet_come_from_the_location_that_is_given(
    frames: Path, tmp_path: Path
) -> None:
    import torchvision
    from safetensors.torch import save_file

    folder = tmp_path / "resnet18"
    folder.mkdir()
    weights = torchvision.models.resnet18().state_dict()
    save_file(weights, folder / "model.safetensors")
    keys = {key: value for key, value in TINY["act"].items() if "pretrained" not in key}
    run = train_tiny(
        "act",
        frames,
        tmp_path / "run",
        model__config=keys,
        model__bases={"ResNet18": str(folder)},
        hparams__lr=0.0,
        total_train_steps=1,
    )
    loaded = open_trained(str(run), device="cpu").parts["model"].state_dict()
    assert torch.equal(loaded["model.backbone.conv1.weight"], weights["conv1.weight"])


def test_cameras_of_a_checkpoint_have_to_be_named(frames: Path, checkpoint: Path) -> None:
    config = run_config("act", frames, checkpoint.parent / "run", init_from=str(checkpoint))
    with fails("data.mismatch") as caught:
        train(config)
    assert "camera1" in caught.value.message
    assert CAMERAS[0] in caught.value.message


def test_weights_of_another_width_are_an_error(frames: Path, checkpoint: Path) -> None:
    names = dict(zip(CAMERAS, ("camera1", "camera2"), strict=True))
    output = checkpoint.parent / "run"
    config = run_config("act", frames, output, init_from=str(checkpoint), model__features=names)
    with fails("data.checkpoint_mismatch"):
        train(config)


def test_initial_weights_of_lerobot_name_the_model_type(checkpoint: Path) -> None:
    from vlatool.training.config import TrainConfig

    assert TrainConfig.implied({"init_from": str(checkpoint)}, frozenset())["model"] == {
        "type": "lerobot"
    }


def test_an_unknown_key_of_a_policy_is_an_error(frames: Path, tmp_path: Path) -> None:
    with fails("config.invalid_value"):
        run_config("act", frames, tmp_path / "run", model__config={"dim_mode": 3})


def test_an_unknown_policy_is_an_error(frames: Path, tmp_path: Path) -> None:
    with fails("config.invalid_value"):
        run_config("pi7", frames, tmp_path / "run")


def test_statistics_are_those_of_lerobot(frames: Path, tmp_path: Path) -> None:
    """Of frames of the data: its own functions make them of the same rows."""
    pytest.importorskip("lerobot.datasets.compute_stats", reason="needs lerobot[dataset]")
    from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats

    from vlatool.datasets.frames.layout import FramesFolder
    from vlatool.models.lerobot import package
    from vlatool.models.lerobot.batch import feature_statistics

    config, _ = run_config("act", frames, tmp_path / "run").derive_from_data()
    info = config.load_info()
    section: Any = config.model
    settings = package.policy_config(section)
    ours = feature_statistics(section, settings, config.data, info.statistics).seen
    folder = FramesFolder(frames)
    episodes = []
    names = section.fields["observation.state"]
    for episode in folder.episodes:
        content = folder.tar(episode.id).episode(episode.id)
        rows = np.concatenate([content.lowdim[name] for name in names], axis=1)
        features = {"observation.state": {"dtype": "float32", "shape": (rows.shape[1],)}}
        episodes.append(
            compute_episode_stats({"observation.state": rows.astype(np.float32)}, features)
        )
    theirs = aggregate_stats(episodes)["observation.state"]
    moves = theirs["max"] - theirs["min"] > 1e-5
    for key in ("min", "max", "mean", "std"):
        found = ours["observation.state"][key][moves]
        np.testing.assert_allclose(found, theirs[key][moves], rtol=1e-4, atol=1e-5)


def test_an_image_is_the_one_of_the_data_set_of_lerobot(tmp_path: Path) -> None:
    datasets = pytest.importorskip("lerobot.datasets", reason="needs lerobot[dataset]")
    from vlatool import open_dataset

    camera = "observation.images.front"

    def as_jpeg(_number: int, columns: Any) -> None:  # which is copied, not encoded again
        rows = range(len(columns[camera]))
        columns[camera] = [{"bytes": encoded_image(row, "JPEG"), "path": None} for row in rows]

    lerobot_dataset(tmp_path / "raw", cameras={camera: "image"}, change=as_jpeg)
    for source, output, sink in (("raw", "set", "lerobot"), ("set", "frames", "frames")):
        keys = {"format": "lerobot", "sources": tmp_path / source, "output": tmp_path / output}
        keys |= {"sink.type": sink, "hold_out": 0}
        presets = ["lerobot-data"] if sink == "frames" else []
        overrides = [parse_override(f"{key}={value}") for key, value in keys.items()]
        resolved = load_config(PreprocessConfig, presets=presets, overrides=overrides)
        preprocess(resolved.config)
    theirs = datasets.LeRobotDataset("local/set", root=tmp_path / "set")
    ours = open_dataset(str(tmp_path / "frames"), image_indices=[0])
    found = {tuple(ours[index]["action"][0].tolist()): ours[index] for index in range(len(ours))}
    for index in range(len(theirs)):
        item = theirs[index]
        image = found[tuple(item["action"].tolist())][camera]
        torch.testing.assert_close(image[0].float() / 255, item[camera], rtol=0, atol=1 / 255)


def test_without_the_package_a_line_makes_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlatool.models.lerobot import package

    monkeypatch.setattr(package, "is_available", lambda: False)
    with fails("environment.missing_dependency") as caught:
        package.require()
    assert caught.value.exit_code == 6
    assert "venv" in caught.value.hint


def test_the_folder_of_a_checkpoint_can_be_removed_after_it_is_opened(checkpoint: Path) -> None:
    opened = open_trained(str(checkpoint), device="cpu").policy()
    shutil.rmtree(checkpoint)
    assert opened.horizon == 8
