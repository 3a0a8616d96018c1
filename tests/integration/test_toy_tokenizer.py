"""A visual tokenizer of a plugin: training, opening, export."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders.codes import plain_fast, published_windows
from tests.builders.errors import fails
from tests.builders.toy_images import write_image_shards
from tests.builders.toy_levels import CODES, LEVELS
from tests.builders.toy_tokenizer import FILE, ToyTokenizerType
from tests.builders.toys import install_toys
from vlatool.checkpoints.layout import RunDir
from vlatool.config.resolve import Override, load_config
from vlatool.datasets.codes.layout import CodesFolder
from vlatool.datasets.samples.layout import SamplesFolder
from vlatool.models.tokenizer import OpenTokenizer, open_tokenizer
from vlatool.testing.models import check_model_type
from vlatool.tokens.config import DecodeConfig, EncodeConfig
from vlatool.training.config import TrainConfig
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.encode import decode, encode
from vlatool.workflows.export import ExportConfig, TokenizerExportConfig, export, tokenizer_export
from vlatool.workflows.tokenizer_eval import TokenizerEvalConfig, tokenizer_eval
from vlatool.workflows.train import finetune, train
from vlatool.workflows.verify import VerifyConfig, verify

SIDE = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="module", autouse=True)
def plugin(folder: Path) -> Any:
    install_toys(folder / "site")
    sys.path.insert(0, str(folder / "site"))
    yield
    sys.path.remove(str(folder / "site"))


def config(folder: Path, name: str, **changes: Any) -> TrainConfig:
    keys = {
        "model": {"type": "toy_tokenizer"},
        "data": {
            "shards": [str(folder / "shards")],
            "preprocessing": {"crop_size": SIDE},
            "num_workers": 0,
            "allow_multiple_epochs": True,
        },
        "save_path": str(folder),
        "name": name,
        "total_train_steps": 3,
        "num_checkpoints": 1,
        "hparams.global_batch_size": 4,
        "hparams.per_gpu_batch_size": 4,
        **changes,
    }
    overrides = [Override(key, value, "test") for key, value in keys.items()]
    return load_config(TrainConfig, overrides=overrides).config


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    write_image_shards(folder / "shards")
    train(config(folder, "run"))
    return folder / "run"


def opened(location: Path) -> OpenTokenizer:
    return open_tokenizer(str(location), torch.device("cpu"))


def test_toy_passes_the_contract_checks(run: Path) -> None:
    data = {"shards": [str(run.parent / "shards")], "preprocessing": {"crop_size": SIDE}}
    check_model_type(ToyTokenizerType, data={"type": "images", **data})


def test_trained_toy_encodes_decodes_and_starts_a_run(run: Path, folder: Path) -> None:
    tokenizer = opened(run)
    images = torch.full((2, SIDE, SIDE, 3), 255, dtype=torch.uint8)
    codes = tokenizer.network.encode(images)

    assert codes.values.tolist() == [[LEVELS - 1] * CODES] * 2
    assert tokenizer.network.decode(codes.values).shape == images.shape
    assert (tokenizer.name, tokenizer.rule.size) == ("run", SIDE)

    still = {"hparams.lr": 0, "hparams.wd": 0, "total_train_steps": 1, "init_from": str(run)}
    finetune(config(folder, "tuned", **still))
    codes = torch.arange(8).view(2, 4)
    tuned = opened(RunDir(folder / "tuned").root)
    assert torch.equal(tokenizer.network.decode(codes), tuned.network.decode(codes))


@pytest.mark.parametrize("command", ["export", "tokenizer export"])
def test_both_names_of_the_export_write_the_published_layout(
    run: Path, tmp_path: Path, command: str
) -> None:
    output = str(tmp_path / "out")
    if command == "export":
        result = export(ExportConfig(source=str(run), output=output))
    else:
        result = tokenizer_export(TokenizerExportConfig(checkpoint=str(run), output=output))

    assert result.document()["levels"] == LEVELS
    assert len(json.loads((tmp_path / "out" / FILE).read_text())) == LEVELS


def test_model_without_a_published_layout_is_an_error(folder: Path, run: Path) -> None:
    train(config(folder, "colors", model={"type": "toy_images"}))
    with fails("usage.unsupported"):
        export(ExportConfig(source=str(folder / "colors"), output=str(folder / "out")))


def test_toy_feeds_samples_for_a_language_model(run: Path, tmp_path: Path) -> None:
    windows, fast = published_windows(tmp_path / "A"), plain_fast(tmp_path / "fast")
    tokenizer = str(run)
    codes, images, out = (str(tmp_path / name) for name in ("A/TiToken", "images", "out"))
    tree = {"data": str(windows), "tokenizer": tokenizer, "output": codes, "num_workers": 0}
    assert encode(EncodeConfig.model_validate(tree)).pictures == 16
    manifest = CodesFolder.open(tmp_path / "A/TiToken").manifest
    assert (manifest.codes_per_picture, manifest.codebook_size) == (CODES, LEVELS)

    decode(DecodeConfig(codes=codes, tokenizer=tokenizer, output=images))
    assert len(list((tmp_path / "images").glob("*/*.png"))) == 16

    keys = {"data": str(windows), "fast": str(fast), "tokens": codes, "output": out, "workers": 1}
    build_dataset(BuildDatasetConfig.model_validate(keys))
    folder = SamplesFolder.open(tmp_path / "out")
    assert folder.sizes[:2] == (CODES, LEVELS)
    assert folder.sample(0).conversation.codes.shape[1] == CODES
    assert list(verify(VerifyConfig(location=out)).findings) == []


def test_toy_is_evaluated(run: Path, folder: Path, tmp_path: Path) -> None:
    data = {"shards": [str(folder / "shards")], "preprocessing": {"crop_size": 2 * SIDE}}
    data |= {"num_workers": 0, "allow_multiple_epochs": True}
    train(config(folder, "large", data=data))
    shards, output = str(run.parent / "shards"), str(tmp_path / "eval")
    tree = {"checkpoint": str(folder / "large"), "data": shards, "output": output}
    result = tokenizer_eval(TokenizerEvalConfig.model_validate(tree))
    assert result.pictures > 0
    assert 0 < result.figures["codebook_usage"] <= 1
