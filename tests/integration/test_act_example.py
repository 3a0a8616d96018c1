"""`examples/act`: a model type to copy, and its policy."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlatool
from vlatool.config.resolve import load_config, parse_override
from vlatool.models.trained import open_trained
from vlatool.testing import check_model_type
from vlatool.training.config import TrainConfig
from vlatool.workflows.train import train

FOLDER = Path(__file__).parents[2] / "examples/act"
CAMERA = "scene_right_0"
TINY: Mapping[str, Any] = {"width": 32, "n_layers": 1, "latent_dim": 4, "kl_weight": 0.1}


@pytest.fixture(scope="module", autouse=True)
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The distribution, found like an installed one: its folder and its metadata on the path."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    metadata = site / "vlatool_act-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vlatool-act\nVersion: 0.1\n")
    lines: list[str] = []
    for group, points in project["entry-points"].items():
        lines.append(f"[{group}]")
        for name, target in points.items():
            lines.append(f"{name} = {target}")
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.syspath_prepend(str(FOLDER))
        yield


def test_the_model_type_keeps_the_contract(data: Path) -> None:
    from vlatool_act.spec import ActType

    chosen = {"camera_names": [CAMERA], "image_indices": [0]}
    check_model_type(ActType, TINY, data={"dataset_manifest": [str(data)], **chosen})


def test_the_preset_trains_a_policy_that_acts(data: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {f"model.{name}": value for name, value in TINY.items()}
    keys |= {"data.dataset_manifest": data, "save_path": tmp_path, "name": "run"}
    keys |= {"total_train_steps": 1, "data.num_workers": 0}
    overrides = [parse_override(f"{key}={value}") for key, value in keys.items()]
    train(load_config(TrainConfig, presets=["act-tiny"], overrides=overrides).config)

    sees = open_trained(str(tmp_path / "run"), device="cpu").policy().sees
    observation: dict[str, Any] = {}
    for camera in sees.cameras:
        observation[camera] = np.zeros((64, 64, 3), np.uint8)
    for field, width in sees.fields.items():
        observation[field] = np.zeros(width)
    policy = vlatool.load_policy(tmp_path / "run")
    chunk = policy.act(observation)
    assert {len(values) for values in chunk.values()} == {policy.horizon}
