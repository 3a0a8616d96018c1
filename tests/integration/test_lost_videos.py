"""LeRobot data without its videos, as a git clone without its large files leaves them."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.builders.broken_sources import LFS
from tests.builders.hostile import OBJECT
from tests.builders.lerobot import lerobot_dataset
from tests.builders.recording import Recorder
from tests.builders.verifying import verified
from vlatool.config.resolve import config_of
from vlatool.errors import VlatoolError
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.verify import InspectConfig, inspect


def preprocessed(root: Path, output: Path, reporter: Recorder, **keys: Any) -> PreprocessResult:
    tree = {"format": "lerobot", "sources": [str(root)], "output": str(output), "workers": 1}
    config = config_of(PreprocessConfig, tree | keys)
    return preprocess(config, reporter=reporter)


def _lose(root: Path, loss: str) -> Path:
    if loss == "folders":
        shutil.rmtree(root / "videos")
    for path in (root / "videos").rglob("*.mp4"):
        path.write_bytes(LFS) if loss == "pointers" else path.unlink()
    return root


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("loss", ["files", "folders", "pointers"])
def test_data_without_videos_are_inspected_verified_and_read(
    version: str, loss: str, tmp_path: Path
) -> None:
    lost = _lose(lerobot_dataset(tmp_path / "set", (40, 30), version=version, per_file=1), loss)
    facts = inspect(InspectConfig(location=str(lost))).document()
    assert (facts["episodes"], facts["frames"], facts["broken"]) == (2, 70, ())
    assert facts["fields"]
    assert facts["tasks"]
    messages = [row["example"] for row in facts["warnings"]]
    assert any("none of its 2 videos are here" in message for message in messages)

    result = verified(lost)
    codes = {code for code in result.codes if "video" in code or "lfs" in code}
    assert codes == {"lerobot.no_videos"}
    assert (result.codes["lerobot.no_videos"], result.whole) == (1, False)

    recorder = Recorder()
    with pytest.raises(VlatoolError) as caught:
        preprocessed(lost, tmp_path / "out", recorder)
    error = caught.value
    assert "missing" in error.message or "Git LFS pointer" in error.message
    texts = [error.message, error.hint, *(message for _, message in recorder.warnings)]
    assert not [text for text in texts if OBJECT.search(text)]

    without = preprocessed(lost, tmp_path / "without", Recorder(), camera_names=["none"])
    assert without.episodes == 2
    assert f"--preset policy-state --data {tmp_path / 'without'}" in without.next_command
