"""`vlatool tokenizer train`, `eval` and `export`: a tiny tokenizer measured and published."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.builders.s3_runs import digests
from tests.builders.tokenizers import (
    LOSSES,
    NETWORK,
    PIXELS,
    SIZES,
    image_data,
    tiny_titok,
    write_stage_1,
    write_teacher,
)
from tests.surface.invoke import run_vlatool
from vlatool.artifacts.run_dir import RunDir
from vlatool.config.overrides import Override
from vlatool.config.resolve import load_config
from vlatool.errors import DataError, VlatoolError
from vlatool.evaluation.metric_networks import load_metric_networks
from vlatool.evaluation.stored_preprocessing import read_preprocessing
from vlatool.evaluation.trained_tokenizer import open_tokenizer
from vlatool.models.titok.model import Titok
from vlatool.models.titok.weights import open_titok
from vlatool.storage.remote_path import RemotePath
from vlatool.training.config import TrainConfig
from vlatool.workflows.tokenizer_eval import (
    TokenizerEvalConfig,
    TokenizerEvalResult,
    tokenizer_eval,
)
from vlatool.workflows.tokenizer_export import TokenizerExportConfig, tokenizer_export
from vlatool.workflows.train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return image_data(folder)


@pytest.fixture(scope="module")
def shards(data: dict[str, Any]) -> str:
    return data["shards"][0]


@pytest.fixture(scope="module")
def sources(folder: Path) -> dict[str, Any]:
    return {"type": "titok", **SIZES, "vqgan": NETWORK, "teacher": write_teacher(folder)}


def run(root: Path, name: str, data: dict[str, Any], model: dict[str, Any]) -> RunDir:
    """Of one step."""
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
    train(load_config(TrainConfig, overrides=overrides).config)
    return RunDir(root / name)


@pytest.fixture(scope="module")
def first(folder: Path, data: dict[str, Any], sources: dict[str, Any]) -> str:
    return str(run(folder, "first", data, sources).root)


@pytest.fixture(scope="module")
def second(folder: Path, data: dict[str, Any], sources: dict[str, Any], first: str) -> str:
    keys = {**sources, "stage": 2, "init_weight": first, "losses": LOSSES}
    return str(run(folder, "second", data, keys).root)


def evaluated(checkpoint: str, data: str, **keys: Any) -> TokenizerEvalResult:
    return tokenizer_eval(TokenizerEvalConfig(checkpoint=checkpoint, data=data, **keys))


def test_second_stage_is_measured_beside_its_baselines(second: str, shards: str) -> None:
    found = evaluated(second, shards)

    names = {"psnr", "ssim", "psnr_of_mean_error", "mean_picture_psnr", "block_psnr"}
    codes = {"codebook_usage", "codebook_entropy", "changed_codes", "constant_places"}
    assert names | codes == found.figures.keys()
    assert found.pictures == 12
    assert found.not_measured.keys() == {"lpips", "rfid"}
    assert json.loads(Path(found.report).read_text()) == json.loads(json.dumps(found.document()))


def test_page_shows_every_chosen_image_three_times(second: str, shards: str) -> None:
    found = evaluated(second, shards)
    page = Path(found.page).read_text()

    keys = [key for group in found.extremes.values() for key in group]
    assert len(keys) == len(set(keys)) == 12
    assert page.count("<img") == 3 * len(keys)


def test_first_stage_is_drawn_by_its_teacher(first: str, second: str, shards: str) -> None:
    codes = ("codebook_usage", "codebook_entropy", "changed_codes")
    one, two = evaluated(first, shards), evaluated(second, shards)

    assert [one.figures[name] for name in codes] == [two.figures[name] for name in codes]
    assert one.figures["psnr"] != two.figures["psnr"]


def test_continuous_tokens_are_measured_without_codes(tmp_path: Path, shards: str) -> None:
    keys = PIXELS | {"quantizer": {"type": "kl", "token_size": 3}}
    save_file(Titok(tiny_titok(**keys)).state_dict(), tmp_path / "kl.safetensors")

    found = evaluated(str(tmp_path / "kl.safetensors"), shards, output=str(tmp_path / "out"))

    assert "codes" in found.not_measured
    assert not any(name.startswith("code") for name in found.figures)


def test_figures_do_not_depend_on_batches(second: str, shards: str) -> None:
    few, many = evaluated(second, shards, batch_size=5), evaluated(second, shards)

    assert few.figures == pytest.approx(many.figures, rel=1e-6)
    assert few.extremes.keys() == many.extremes.keys()


def test_two_processes_find_the_figures_of_one(second: str, shards: str, tmp_path: Path) -> None:
    arguments = [second, shards, "--output", str(tmp_path / "two"), "--nproc", "2"]
    command = [sys.executable, "-m", "vlatool", "tokenizer", "eval", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    two, one = json.loads(done.stdout), evaluated(second, shards)
    assert two["figures"] == pytest.approx(one.figures)
    assert two["extremes"].keys() == one.extremes.keys()
    assert two["pictures"] == 12


def test_results_may_lie_in_object_storage(second: str, shards: str, s3_bucket: str) -> None:
    evaluated(second, shards, output=f"s3://{s3_bucket}/out")

    found = digests(RemotePath(f"s3://{s3_bucket}/out"))
    assert found.keys() == {"report.html", "report.json"}


def test_exported_pair_is_measured_as_the_run_is(second: str, shards: str, tmp_path: Path) -> None:
    pair = tmp_path / "pair"
    tokenizer_export(TokenizerExportConfig(checkpoint=second, output=str(pair)))

    names = {one.name for one in pair.iterdir() if one.is_file()}
    assert names == {"config.yaml", "pytorch_model.bin"}
    assert read_preprocessing(str(pair), None) == read_preprocessing(second, None)
    found = evaluated(str(pair), shards, output=str(tmp_path / "out"))
    assert found.figures == evaluated(second, shards).figures


def test_export_of_the_same_run_has_equal_bytes(second: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        tokenizer_export(TokenizerExportConfig(checkpoint=second, output=str(tmp_path / name)))

    for name in ("config.yaml", "pytorch_model.bin"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_exported_weights_are_those_of_the_run(first: str, tmp_path: Path) -> None:
    tokenizer_export(TokenizerExportConfig(checkpoint=first, output=str(tmp_path / "pair")))

    given, read = (open_titok(one)[1].state_dict() for one in (first, str(tmp_path / "pair")))
    assert given.keys() == read.keys()
    assert all(torch.equal(given[name], read[name]) for name in given)


def test_folder_of_somebody_else_is_not_exported_to(second: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(VlatoolError) as error:
        tokenizer_export(TokenizerExportConfig(checkpoint=second, output=str(tmp_path)))

    assert error.value.exit_code == 2
    assert [one.name for one in tmp_path.iterdir()] == ["mine.txt"]


def test_first_stage_without_a_teacher_cannot_be_measured(
    first: str, shards: str, tmp_path: Path
) -> None:
    pair = str(tmp_path / "pair")
    tokenizer_export(TokenizerExportConfig(checkpoint=first, output=pair))
    with pytest.raises(VlatoolError) as error:
        evaluated(pair, shards, output=str(tmp_path / "out"))

    assert (error.value.code, error.value.exit_code) == ("usage.no_teacher", 2)


def test_results_are_not_written_beside_what_is_no_run(
    folder: Path, sources: dict[str, Any], shards: str
) -> None:
    with pytest.raises(VlatoolError) as error:
        evaluated(write_stage_1(folder), shards, teacher=sources["teacher"])

    assert (error.value.code, error.value.exit_code) == ("usage.needs_output", 2)


def test_teacher_with_another_codebook_is_refused(
    first: str, folder: Path, data: dict[str, Any]
) -> None:
    network = {**NETWORK, "codebook_size": 16}
    model = {"type": "vqgan", **network, "losses": {"discriminator_weight": 0}}
    other = run(folder, "other", data, model)
    with pytest.raises(DataError) as error:
        open_tokenizer(first, torch.device("cpu"), str(other.root))

    assert (error.value.code, error.value.exit_code) == ("data.checkpoint_mismatch", 3)


def test_folder_without_any_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load_metric_networks(str(tmp_path), torch.device("cpu"))

    assert (error.value.code, error.value.exit_code) == ("data.no_network_weights", 3)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["titok-tiny-stage1"], "usage.no_teacher"),
        (["titok-tiny-stage2", "--model.teacher", "TEACHER"], "usage.no_stage_1"),
        (["titok-tiny-stage2", "experiment.init_weight=x"], "usage.no_teacher"),
    ],
)
def test_stage_without_its_sources_is_refused_before_it_trains(
    options: list[str], code: str, sources: dict[str, Any], shards: str, tmp_path: Path
) -> None:
    options = [sources["teacher"] if one == "TEACHER" else one for one in options]
    target = ["--data", shards, "--output", str(tmp_path / "run")]
    status, text = run_vlatool("--json", "tokenizer", "train", "--preset", *options, *target)

    assert (status, json.loads(text)["error"]["details"]["key"].split(".")[0]) == (2, "model")
    assert code in text
    assert not (tmp_path / "run").exists()
