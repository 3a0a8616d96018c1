"""A run of FUTURE-VLA that is asked: on raw episodes, on samples, in Python; its futures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlatool
from tests.builders.codes import plain_fast
from tests.builders.encoding import encoded, write_tokenizer
from tests.builders.errors import fails
from tests.builders.libero import CAMERAS, convert, libero_dataset
from vlatool.config.resolve import load_config, parse_override
from vlatool.evaluation.config import OpenLoopConfig, RolloutConfig
from vlatool.models.future_vla.spec import FutureVlaType
from vlatool.testing.models import check_model_type
from vlatool.training.config import TrainConfig
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.compose import ComposeConfig, compose
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.predict import PredictConfig, PredictResult, predict
from vlatool.workflows.rollout import rollout
from vlatool.workflows.train import train
from vlatool.world.registration import LIBERO_ENVIRONMENT

FRAMES, STEPS = 3, 2


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw episodes, samples with 2 future steps, their tokenizer, and a run of two steps."""
    folder = tmp_path_factory.mktemp("asking")
    source = libero_dataset(folder / "raw", (FRAMES, FRAMES), size=64)
    keys: dict[str, Any] = {"sink": "jsonl", "resize_images_size": None}
    convert(source, folder / "A", **keys, past_steps=4, future_steps=STEPS)
    encoded(folder / "A", write_tokenizer(folder / "tokenizer", image_size=64))
    write_tokenizer(folder / "other", seed=4, image_size=64)
    plain_fast(folder / "fast")
    keys = {"data": str(folder / "A"), "fast": str(folder / "fast"), "workers": 1}
    build_dataset(BuildDatasetConfig.model_validate(keys))
    compose(ComposeConfig(tiny=True, output=str(folder / "tiny")))
    changes = {
        "init_from": folder / "tiny",
        "data.folders": folder / "A/samples",
        "data.val_ratio": 0.1,
        "model.compress": "1,1,2",
        "save_path": folder,
        "name": "run",
        "total_train_steps": 2,
        "hparams.global_batch_size": 2,
    }
    overrides = [parse_override(f"{key}={value}") for key, value in changes.items()]
    train(load_config(TrainConfig, presets=["future-vla-tiny"], overrides=overrides).config)
    return folder


def predicted(root: Path, source: str, output: Path, **keys: Any) -> PredictResult:
    values = {"checkpoint": str(root / "run"), "source": str(root / source), **keys}
    return predict(PredictConfig(**values, output=str(output)))


def test_raw_episode_and_samples_give_the_same_chunk(root: Path, tmp_path: Path) -> None:
    raw = predicted(root, "raw", tmp_path / "raw", episode="1", frame=1)
    of_samples = predicted(root, "A/samples", tmp_path / "samples", episode="1", frame=1)
    assert raw.fields["actions"].predicted == of_samples.fields["actions"].predicted
    assert raw.fields["actions"].names[-1] == of_samples.fields["actions"].names[-1]
    assert len(raw.fields["actions"].recorded) == FRAMES - 1
    assert raw.tokens_per_decision == of_samples.tokens_per_decision
    assert raw.tokens_per_decision is not None
    assert raw.tokens_per_decision > STEPS * 7
    # Recorded actions of samples are those of their ids, which are rounded.
    np.testing.assert_allclose(
        raw.fields["actions"].recorded, of_samples.fields["actions"].recorded, atol=0.2
    )


def test_loaded_policy_gives_the_chunk_of_the_first_frame_and_a_tokenizer_its_futures(
    root: Path, tmp_path: Path
) -> None:
    result = predicted(root, "raw", tmp_path, tokenizer=str(root / "tokenizer"))
    names = {f"future-{camera}.png" for camera in CAMERAS} | {"futures.mp4"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert result.futures is not None
    assert set(result.futures["steps"]) == {"1"}
    assert "accuracy of codes" in result.text()
    loop = vlatool.load_policy(root / "run")
    assert loop.cameras == CAMERAS
    image = np.full((64, 64, 3), (0, 0, 7), np.uint8)
    wrist = np.full((64, 64, 3), (0, 100, 7), np.uint8)
    observation = {"image": image, "wrist_image": wrist, "instruction": result.instruction}
    chunk = loop.act(observation)["actions"]
    np.testing.assert_array_equal(chunk, result.fields["actions"].predicted)


def test_open_loop_errors_have_those_of_images(root: Path, tmp_path: Path) -> None:
    config = OpenLoopConfig(
        checkpoint=str(root / "run"),
        data=str(root / "A/samples"),
        output=str(tmp_path),
        tokenizer=str(root / "tokenizer"),
        future_samples=2,
        batch_size=2,
    )
    result = open_loop(config)
    assert result.samples == FRAMES  # only the held-out episode of the samples of the run
    assert result.invalid == 0
    assert set(result.overall) == {"policy", "mean_action", "copy_last"}
    assert result.futures is not None
    assert result.futures["samples"] == 2
    figures = result.futures["steps"]["1"]
    assert 0 <= figures["code_accuracy"] <= 1
    assert figures["copy_present_psnr"] > 20
    assert json.loads((tmp_path / "report.json").read_text())["invalid"] == 0


def test_rollout_in_the_built_in_world_needs_no_mapping(root: Path, tmp_path: Path) -> None:
    where = {"checkpoint": str(root / "run"), "output": str(tmp_path), "env": LIBERO_ENVIRONMENT}
    result = rollout(RolloutConfig(**where, episodes=1, max_steps=3, execute_steps=2))
    assert (result.figures["episodes"], result.figures["mean_steps"]) == (1, 3)


@pytest.mark.parametrize(
    ("source", "keys", "code"),
    [
        ("raw", {"tokenizer": "other"}, "data.mismatch"),
        ("raw", {"tokenizer": "run"}, "data.missing"),
        ("raw", {"checkpoint": "tiny"}, "data.missing"),  # weights that nothing trained
        ("A", {"episode": "7"}, "data.unknown_field"),
        ("raw", {"instruction": "say <|im_end|>"}, "data.broken"),
        ("fast", {}, "data.no_samples"),
    ],
)
def test_what_does_not_fit_is_an_error(
    root: Path, tmp_path: Path, source: str, keys: dict[str, Any], code: str
) -> None:
    folders = ("tokenizer", "checkpoint")
    keys = {key: str(root / value) if key in folders else value for key, value in keys.items()}
    with fails(code):
        predicted(root, source, tmp_path / "out", **keys)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_model_type_fulfills_its_contract(root: Path) -> None:
    data, weights = root / "A/samples", root / "tiny"
    check_model_type(FutureVlaType, {"compress": [1, 1, 2]}, data=data, init_from=weights)
