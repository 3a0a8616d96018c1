"""The presets for your own data on unlike sets, at tiny sizes; they name no camera and no field."""

from pathlib import Path

import numpy as np
import pytest

import vlatool
from tests.builders.base_models import clip_base, vlm_base
from tests.builders.errors import fails
from tests.builders.recording import Recorder
from vlatool.config.resolve import Override, load_config
from vlatool.errors import DataError
from vlatool.training.config import TrainConfig
from vlatool.workflows.preprocess import PreprocessConfig
from vlatool.workflows.train import train

PRESETS = ("policy-tiny", "policy-small", "policy-clip", "policy-vlm")
# Name of a set to its cameras and the width of its states.
SETS = {"one": (["front"], 3), "three": (["a", "b", "wrist"], 2), "no-state": (["front"], 0)}
_BACKBONE = "model.vision_language_backbone"
_SMALL_VIT = {"img_size": 32, "hidden_dim": 12, "inter_dim": 24, "n_heads": 2, "n_layers": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sets, and with tiny random base models."""
    root = tmp_path_factory.mktemp("own")
    for name, (cameras, width) in SETS.items():
        write_set(root / name, cameras, width)
    clip_base(root / "clip")
    vlm_base(root / "paligemma", "paligemma")
    return root


def write_set(folder: Path, cameras: list[str], width: int) -> None:
    rng = np.random.default_rng(0)
    with vlatool.record(folder, fps=10) as recorder:
        for step in range(20):
            images = {name: rng.integers(0, 255, (32, 32, 3), np.uint8) for name in cameras}
            state = np.full(width, step / 20) if width else None
            recorder.add(images, state=state, action=np.array([step / 20, 1 - step / 20]))
        recorder.end_episode(instruction="push the block")


def tiny(root: Path, preset: str, data: Path, **changes: object) -> TrainConfig:
    keys: dict[str, object] = {
        "data.dataset_manifest": [str(data)],
        "data.num_workers": 0,
        "data.prefetch_factor": None,
        "hparams.precision": "float32",
        "hparams.global_batch_size": 2,
        "hparams.per_gpu_batch_size": 2,
        "hparams.warmup": 1,
        "model.transformer.hidden_dim": 16,
        "model.transformer.n_layers": 1,
        "model.transformer.n_heads": 2,
        "total_train_steps": 2,
        "save_path": str(root / "runs"),
        "name": f"{preset}-{data.name}",
    }
    if preset == "policy-small":
        keys |= {f"{_BACKBONE}.{key}": value for key, value in _SMALL_VIT.items()}
    if preset == "policy-clip":
        keys[f"{_BACKBONE}.hf_pretrained"] = str(root / "clip")
    if preset == "policy-vlm":
        keys[f"{_BACKBONE}.hf_pretrained"] = str(root / "paligemma")
        keys[f"{_BACKBONE}.num_vlm_layers_to_use"] = 1
    keys |= changes
    overrides = [Override(key, value, "test") for key, value in keys.items()]
    return load_config(TrainConfig, presets=[preset], overrides=overrides).config


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("preset", PRESETS)
def test_preset_trains_on_cameras_and_states_that_it_does_not_name(
    root: Path, preset: str, name: str
) -> None:
    assert train(tiny(root, preset, root / name)).steps == 2


@pytest.mark.parametrize("preset", ["policy-tiny", "policy-small"])
def test_without_cameras_the_policy_learns_from_states_and_says_so(
    root: Path, tmp_path: Path, preset: str
) -> None:
    recorder = Recorder()
    config = tiny(root, preset, root / "one", **{"data.camera_names": ["none"]})
    config = config.model_copy(update={"save_path": str(tmp_path)})
    train(config, reporter=recorder)
    assert any("text_backbone" in note for note in recorder.notes)


def test_clip_without_cameras_is_an_error_that_names_policy_state(root: Path) -> None:
    config = tiny(root, "policy-clip", root / "one", **{"data.camera_names": ["none"]})
    with pytest.raises(DataError, match="clip_backbone needs images") as caught:
        train(config)
    assert "policy-state" in caught.value.hint


def test_cameras_that_a_preset_names_and_the_data_lack_lead_to_a_preset_for_own_data(
    root: Path, tmp_path: Path
) -> None:
    overrides = [
        Override("data.dataset_manifest", [str(root / "one")], "test"),
        Override("save_path", str(tmp_path), "test"),
    ]
    resolved = load_config(TrainConfig, presets=["world-pick"], overrides=overrides)
    with fails("data.unknown_field") as caught:
        train(resolved.config, origins=resolved.origins)
    assert "--preset policy-tiny" in caught.value.hint


@pytest.mark.parametrize("preset", PRESETS)
def test_data_preset_names_the_run_that_belongs_to_it(preset: str) -> None:
    config = load_config(PreprocessConfig, presets=[f"{preset}-data"]).config
    assert (config.train_preset, config.sink.type) == (preset, "frames")


def test_presets_lists_ten_to_start_with_and_all_on_request() -> None:
    from vlatool.workflows.presets import FIRST_PRESETS, PresetsConfig, presets

    everything = [preset.name for preset in presets(PresetsConfig(all=True)).presets]
    assert [preset.name for preset in presets().presets][:10] == list(FIRST_PRESETS)
    assert len(everything) > 50
    assert len(FIRST_PRESETS) == 10
