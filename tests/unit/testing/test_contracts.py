"""Contract checks pass for built-in classes and report mistakes of plugin authors."""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.builders.base_models import causal_base, clip_base, vlm_base
from tests.builders.lerobot import lerobot_dataset
from tests.builders.plugin import PAGE, acme_data, acme_distribution
from tests.builders.spartan import spartan_task
from tests.builders.toys import write_numbers
from vlatool.episode import Episode, Survey
from vlatool.models.diffusion_policy.spec import DiffusionPolicyType
from vlatool.recordings.lerobot.reader import LeRobotReader
from vlatool.recordings.spartan.reader import SpartanReader
from vlatool.testing.models import check_model_type
from vlatool.testing.readers import check_reader

TRANSFORMER = {"hidden_dim": 32, "n_layers": 2, "n_heads": 2, "ffn_type": "gelu"}
TEXT = {"type": "bytes", "hidden_dim": 8}
KEYPOINTS = {
    "type": "keypoint_backbone",
    "hidden_dim": 16,
    "channels": [4, 8],
    "num_keypoints": 4,
    "text_encoder": TEXT,
}


def test_built_in_formats_fulfill_the_contract_of_a_reader(tmp_path: Path) -> None:
    assert len(check_reader(SpartanReader, spartan_task(tmp_path / "spartan", 11, 3))) == 11
    cameras = {"observation.images.front": "video", "observation.images.wrist": "image"}
    check_reader(LeRobotReader, lerobot_dataset(tmp_path / "data", cameras=cameras))


# Runs of the tests of training have keypoints.
@pytest.mark.parametrize("kind", [pytest.param("keypoints", marks=pytest.mark.slow), "clip"])
def test_diffusion_policy_fulfills_the_contract_of_a_model_type(kind: str, tmp_path: Path) -> None:
    """Tokenizer and architecture of CLIP come from the base model and are stored in a run."""
    clip = {"type": "clip_backbone", "hf_pretrained": str(clip_base(tmp_path / "clip"))}
    backbones: dict[str, Any] = {
        "keypoints": KEYPOINTS,
        "clip": {**clip, "freeze_text_encoder": True},
    }
    keys: dict[str, Any] = {"solver": {"type": "heun"}} if kind == "clip" else {}
    keys |= {"transformer": TRANSFORMER, "noise_scheduler": {"clamp_range": [-4.0, 4.0]}}
    check_model_type(DiffusionPolicyType, {**keys, "vision_language_backbone": backbones[kind]})


@pytest.mark.slow  # those of CLIP are quicker
def test_policy_of_two_base_models_fulfills_the_contract_of_a_model_type(tmp_path: Path) -> None:
    base = vlm_base(tmp_path / "vlm", "smolvlm")
    backbone = {"type": "vlm_backbone", "hf_pretrained": str(base), "num_vlm_layers_to_use": 2}
    language_model = causal_base(tmp_path / "language_model")
    check_model_type(
        DiffusionPolicyType,
        {
            "vision_language_backbone": backbone,
            "transformer": {"type": "transformer_hf", "hf_pretrained": str(language_model)},
            "use_flow_matching_scheduler": False,
            "num_action_head_repeats": 2,
        },
    )


def broken(change: Callable[[Episode], Episode]) -> type:
    class Broken(SpartanReader):
        def read(self, ref: Any) -> Episode:
            return change(super().read(ref))

    return Broken


def with_field(name: str, values: Any) -> Callable[[Episode], Episode]:
    return lambda episode: replace(episode, lowdim={**episode.lowdim, name: values})


class NoSurveyedCameras(SpartanReader):
    def survey(self, refs: Any) -> Survey:
        return replace(super().survey(refs), cameras={})


def too_few_names(episode: Episode) -> dict[str, list[str]]:
    """One dimension name for each field with several dimensions."""
    return {
        name: ["x"]
        for name, values in episode.lowdim.items()
        if values.ndim > 1 and values.shape[1] > 1
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_field("speed", np.zeros(4)), "not \\[F, C\\]"),
        (with_field("speed", np.zeros((5, 1))), "5 rows"),
        (with_field("speed", np.array([None] * 4)), "neither numeric nor unicode"),
        (lambda episode: replace(episode, action_fields=("speed",)), "'speed'"),
        (lambda episode: replace(episode, dimension_names={"speed": ["x"]}), "not a field"),
        (lambda episode: replace(episode, dimension_names=too_few_names(episode)), "names for"),
        (lambda episode: replace(episode, id="other"), "'other'"),
        (lambda episode: replace(episode, language={"original": "text"}), "list of texts"),
    ],
)
def test_broken_episode_is_reported(
    change: Callable[[Episode], Episode], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_reader(broken(change), spartan_task(tmp_path, 1, 4))


def test_episodes_in_another_order_or_another_survey_are_reported(tmp_path: Path) -> None:
    class Alphabetical(SpartanReader):
        def discover(self, sources: Any) -> Any:
            return iter(sorted(super().discover(sources), key=lambda ref: str(ref.path)))

    source = spartan_task(tmp_path, 11, 2)
    with pytest.raises(AssertionError, match="natural order"):
        check_reader(Alphabetical, source)
    with pytest.raises(AssertionError, match="the survey has the cameras"):
        check_reader(NoSurveyedCameras, source)


def test_plugins_of_the_documentation_fulfill_their_contracts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme_distribution(tmp_path)
    teacher = {"weight": np.eye(4, dtype=np.float32), "bias": np.zeros(4, np.float32)}
    save_file(teacher, tmp_path / "teacher.safetensors")
    write_numbers(tmp_path / "tests/data/rows")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    reader = importlib.import_module("acme_vla").AcmeReader
    gan = importlib.import_module("acme_gan.spec").AcmeGanType

    source = acme_data(tmp_path / "raw", episodes=11)
    assert len(check_reader(reader, source, {"camera": "wrist"})) == 11
    (line,) = re.findall(
        r"```python\n([^`]*\ncheck_model_type\(.*?)```", PAGE.read_text(), re.DOTALL
    )
    exec(compile(line, "docs/guides/plugins.md", "exec"), {"AcmeGanType": gan})


def test_checks_of_formats_need_no_torch() -> None:
    program = "import sys, vlatool.testing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
