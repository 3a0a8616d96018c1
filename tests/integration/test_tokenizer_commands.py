"""`vlatool tokenizer train`, `eval` and `export` with a tiny tokenizer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.builders import tokenizers
from tests.builders.errors import fails
from tests.builders.s3_runs import digests
from tests.builders.verifying import verified
from tests.surface.invoke import run_vlatool
from vlatool.checkpoints.layout import RunDir
from vlatool.config.resolve import Override, load_config
from vlatool.evaluation.reconstruction import load_metric_networks
from vlatool.models.titok.model import Titok
from vlatool.models.titok.weights import save_published
from vlatool.models.tokenizer import open_tokenizer
from vlatool.storage.remote_path import RemotePath
from vlatool.training.config import TrainConfig
from vlatool.workflows.export import TokenizerExportConfig, tokenizer_export
from vlatool.workflows.tokenizer_eval import (
    TokenizerEvalConfig,
    TokenizerEvalResult,
    tokenizer_eval,
)
from vlatool.workflows.train import train
from vlatool.workflows.verify import InspectConfig, inspect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return tokenizers.image_data(folder)


@pytest.fixture(scope="module")
def shards(data: dict[str, Any]) -> str:
    return data["shards"][0]


@pytest.fixture(scope="module")
def sources(folder: Path) -> dict[str, Any]:
    return {
        "type": "titok",
        **tokenizers.SIZES,
        "vqgan": tokenizers.NETWORK,
        "teacher": tokenizers.write_teacher(folder),
    }


def run(root: Path, name: str, data: dict[str, Any], model: dict[str, Any]) -> RunDir:
    """Trains one step."""
    keys: dict[str, Any] = {
        "model": model,
        "data": {**data, "num_workers": 0},
        "save_path": str(root),
        "name": name,
        "total_train_steps": 1,
        "num_checkpoints": 1,
        "hparams.global_batch_size": 4,
        "hparams.per_gpu_batch_size": 4,
        "hparams.warmup": 0,
    }
    overrides = [Override(key, value, "test") for key, value in keys.items()]
    result = train(load_config(TrainConfig, overrides=overrides).config)
    assert str(data["shards"][0]) in result.next.split()
    assert str(root / name) in result.next.split()
    return RunDir(root / name)


@pytest.fixture(scope="module")
def first(folder: Path, data: dict[str, Any], sources: dict[str, Any]) -> str:
    return str(run(folder, "first", data, sources).root)


@pytest.fixture(scope="module")
def second(folder: Path, data: dict[str, Any], sources: dict[str, Any], first: str) -> str:
    keys = {**sources, "stage": 2, "init_weight": first, "losses": tokenizers.LOSSES}
    return str(run(folder, "second", data, keys).root)


def evaluated(checkpoint: str, data: str, **keys: Any) -> TokenizerEvalResult:
    return tokenizer_eval(TokenizerEvalConfig(checkpoint=checkpoint, data=data, **keys))


@pytest.fixture(scope="module")
def of_second(second: str, shards: str) -> TokenizerEvalResult:
    return evaluated(second, shards)


def test_second_stage_has_all_metrics_and_a_page_of_images(of_second: TokenizerEvalResult) -> None:
    result = of_second
    names = {"psnr", "ssim", "psnr_of_mean_error", "mean_picture_psnr", "block_psnr"}
    names |= {"psnr_of_moving_pixels"}
    codes = {"codebook_usage", "codebook_entropy", "changed_codes", "constant_places"}
    codes |= {"frequent_codes"}
    assert names | codes == result.figures.keys()
    assert result.pictures == 12
    assert result.not_measured.keys() == {"lpips", "rfid"}
    assert json.loads(Path(result.report).read_text()) == json.loads(json.dumps(result.document()))

    page = Path(result.page).read_text()
    keys = [key for group in result.extremes.values() for key in group]
    assert len(keys) == len(set(keys)) == 12
    assert page.count("<img") == 3 * len(keys)


def test_first_stage_is_decoded_by_its_teacher(
    first: str, of_second: TokenizerEvalResult, shards: str
) -> None:
    stage_1, stage_2 = evaluated(first, shards).figures, of_second.figures
    for name in ("codebook_usage", "codebook_entropy", "changed_codes"):
        assert stage_1[name] == stage_2[name]
    assert stage_1["psnr"] != stage_2["psnr"]


def test_continuous_tokens_have_no_metrics_of_codes(tmp_path: Path, shards: str) -> None:
    keys = tokenizers.PIXELS | {"quantizer": {"type": "kl", "token_size": 3}}
    config = tokenizers.tiny_titok(**keys)
    save_published(tmp_path, config, Titok(config))

    result = evaluated(str(tmp_path), shards, output=str(tmp_path / "out"))

    assert "codes" in result.not_measured
    assert not any(name.startswith("code") for name in result.figures)


@pytest.mark.slow
def test_metrics_depend_neither_on_batches_nor_on_processes(
    second: str, of_second: TokenizerEvalResult, shards: str, tmp_path: Path
) -> None:
    few = evaluated(second, shards, batch_size=5, output=str(tmp_path / "few"))
    assert few.figures == pytest.approx(of_second.figures, rel=1e-6)
    assert few.extremes.keys() == of_second.extremes.keys()

    arguments = [second, shards, "--output", str(tmp_path / "two"), "--nproc", "2"]
    command = [sys.executable, "-m", "vlatool", "tokenizer", "eval", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)
    assert two["figures"] == pytest.approx(of_second.figures)
    assert two["extremes"].keys() == of_second.extremes.keys()
    assert two["pictures"] == 12


def test_results_can_be_written_to_object_storage(second: str, shards: str, s3_bucket: str) -> None:
    evaluated(second, shards, output=f"s3://{s3_bucket}/out")

    files = digests(RemotePath(f"s3://{s3_bucket}/out"))
    assert files.keys() == {"report.html", "report.json"}


def test_exported_folder_has_the_metrics_of_the_run_and_equal_bytes_each_time(
    second: str, of_second: TokenizerEvalResult, shards: str, tmp_path: Path
) -> None:
    pairs = [tmp_path / name for name in ("one", "two")]
    for pair in pairs:
        tokenizer_export(TokenizerExportConfig(checkpoint=second, output=str(pair)))
    first, second_ = (
        {path.name: path.read_bytes() for path in pair.iterdir() if path.is_file()}
        for pair in pairs
    )
    assert first == second_
    assert first.keys() == {"config.yaml", "pytorch_model.bin"}
    exported, trained = (
        open_tokenizer(location, torch.device("cpu")) for location in (str(pairs[0]), second)
    )
    assert exported.preprocessing == trained.preprocessing
    result = evaluated(str(pairs[0]), shards, output=str(tmp_path / "out"))
    assert result.figures == of_second.figures


def test_export_is_recognized_and_opened_as_it_was_written(second: str, tmp_path: Path) -> None:
    tokenizer_export(TokenizerExportConfig(checkpoint=second, output=str(tmp_path)))
    whole = verified(tmp_path)
    assert (whole.kind, whole.findings) == ("export", ())
    assert (
        inspect(InspectConfig(location=str(tmp_path))).report.facts["command"] == "tokenizer export"
    )

    weights = tmp_path / "pytorch_model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert [finding.code for finding in verified(tmp_path).findings] == ["output.digest_mismatch"]
    with fails("data.broken"):
        tokenizers.open_titok(str(tmp_path))


def test_exported_first_stage_has_the_weights_of_the_run_and_needs_teacher_and_output(
    first: str, folder: Path, sources: dict[str, Any], shards: str, tmp_path: Path
) -> None:
    pair = str(tmp_path / "pair")
    tokenizer_export(TokenizerExportConfig(checkpoint=first, output=pair))
    trained, exported = (
        tokenizers.open_titok(location)[1].state_dict() for location in (first, pair)
    )
    assert trained.keys() == exported.keys()
    assert all(torch.equal(trained[name], exported[name]) for name in trained)

    stage_1 = tokenizers.write_stage_1(folder)
    for location, keys, code in (
        (pair, {"output": str(tmp_path / "out")}, "usage.unsupported"),
        (stage_1, {"teacher": sources["teacher"]}, "usage.missing_key"),
    ):
        with fails(code, 2):
            evaluated(location, shards, **keys)


def test_teacher_with_another_codebook_is_an_error(
    first: str, folder: Path, data: dict[str, Any]
) -> None:
    network = {**tokenizers.NETWORK, "codebook_size": 16}
    model = {"type": "vqgan", **network, "losses": {"discriminator_weight": 0}}
    other = run(folder, "other", data, model)
    opened = open_tokenizer(first, torch.device("cpu"), {"teacher": str(other.root)})
    with fails("data.checkpoint_mismatch", 3):
        opened.network.reconstructor()


def test_folder_without_any_network_is_an_error(tmp_path: Path) -> None:
    with fails("data.missing", 3):
        load_metric_networks(str(tmp_path), torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["titok-tiny-stage1"], "usage.unsupported"),
        (["titok-tiny-stage2", "--model.teacher", "TEACHER"], "usage.missing_key"),
        (["titok-tiny-stage2", "experiment.init_weight=x"], "usage.unsupported"),
    ],
)
def test_missing_teacher_or_stage_1_is_an_error_before_training(
    options: list[str], code: str, sources: dict[str, Any], shards: str, tmp_path: Path
) -> None:
    options = [sources["teacher"] if option == "TEACHER" else option for option in options]
    target = ["--data", shards, "--output", str(tmp_path / "run")]
    status, text = run_vlatool("--json", "tokenizer", "train", "--preset", *options, *target)

    key = {"usage.unsupported": "model.teacher", "usage.missing_key": "init_from"}[code]
    assert (status, json.loads(text)["error"]["details"]["key"]) == (2, key)
    assert code in text
    assert not (tmp_path / "run").exists()
