"""Reports of data without information, such as the codes of a collapsed tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.codes import plain_fast, published_windows
from tests.builders.encoding import encoded, write_tokenizer
from tests.builders.recording import Recorder
from tests.builders.tokenizers import SIDE
from vlatool.config.resolve import load_config, parse_override
from vlatool.media.images import encode_png
from vlatool.training.config import TrainConfig
from vlatool.training.data import check_samples
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.verify import InspectConfig, inspect

CODE = "data.collapsed_codes"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows whose images are all black, so that all of them have the same codes."""
    folder = published_windows(tmp_path_factory.mktemp("windows") / "A")
    for path in folder.rglob("*.png"):
        path.write_bytes(encode_png(np.zeros((SIDE, SIDE, 3), np.uint8)))
    return folder


@pytest.fixture(scope="module")
def coded(tree: Path) -> tuple[Any, Recorder]:
    recorder = Recorder()
    tokenizer = write_tokenizer(tree.parent / "tokenizer")
    return encoded(tree, tokenizer, reporter=recorder), recorder


def test_samples_and_training_report_what_is_always_the_same(
    tree: Path, coded: tuple[Any, Recorder]
) -> None:
    del coded
    recorder, samples = Recorder(), tree.parent / "samples"
    keys = {"data": str(tree), "fast": str(plain_fast(tree.parent / "fast")), "workers": 1}
    build_dataset(
        BuildDatasetConfig.model_validate({**keys, "output": str(samples)}), reporter=recorder
    )
    assert CODE in dict(recorder.warnings)
    overrides = [parse_override(f"data.folders={samples}"), parse_override("data.val_ratio=0")]
    config = load_config(TrainConfig, presets=["future-vla-tiny"], overrides=overrides).config
    recorder = Recorder()
    check_samples(config, config.load_info(recorder), None, recorder)
    assert {CODE, "data.constant_images"} <= {*dict(recorder.warnings)}
    assert "data.constant_actions" not in dict(recorder.warnings)


def test_encode_and_inspect_report_equal_codes(tree: Path, coded: tuple[Any, Recorder]) -> None:
    result, recorder = coded
    assert result.document()["usage"]["equal_images"] == 1
    assert CODE in dict(recorder.warnings)
    report = inspect(InspectConfig(location=str(tree / "TiToken"))).document()
    assert [finding["code"] for finding in report["findings"]] == [CODE]
