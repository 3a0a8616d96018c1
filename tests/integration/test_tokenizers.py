"""Visual tokenizers as model types: contract checks, weights, errors."""

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.builders.errors import fails
from tests.builders.tokenizers import (
    LOSSES,
    NETWORK,
    PIXELS,
    QUANTIZER,
    SIDE,
    SIZES,
    image_data,
    open_titok,
    tiny_titok,
    write_teacher,
)
from tests.builders.web_server import web_server
from vlatool.checkpoints.check import check
from vlatool.checkpoints.facts import inspect
from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.config.resolve import Override, load_config
from vlatool.errors import DataError, UsageError
from vlatool.models.published import WeightsOrigin
from vlatool.models.titok.config import TitokConfig
from vlatool.models.titok.model import Titok
from vlatool.models.titok.spec import TitokType
from vlatool.models.titok.weights import load_titok, save_published
from vlatool.models.tokenizer import open_tokenizer
from vlatool.models.vqgan.spec import VqganType
from vlatool.models.weights import read_weights
from vlatool.recordings.check import CheckOptions
from vlatool.testing.models import check_model_type
from vlatool.training.config import TrainConfig
from vlatool.workflows.train import train

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    return image_data(folder)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> str:
    return write_teacher(folder)


@pytest.mark.slow  # a quarter of a minute; those of stage 1 are quicker
def test_vqgan_passes_the_contract_checks(data: dict[str, Any]) -> None:
    losses = {**LOSSES, "foreground_weight": 5}
    check_model_type(VqganType, {**NETWORK, "losses": losses, "revive_after": 1}, data=data)


def test_stage_1_passes_the_contract_checks(data: dict[str, Any], teacher: str) -> None:
    options = {"teacher_precision": "bfloat16", "quantizer": {**QUANTIZER, "revive_after": 1}}
    options["losses"] = {"foreground_weight": 5}
    check_model_type(
        TitokType, {**SIZES, "teacher": teacher, "vqgan": NETWORK, **options}, data=data
    )


@pytest.mark.slow
def test_stage_2_passes_the_contract_checks(data: dict[str, Any], teacher: str) -> None:
    sources = {"teacher": teacher, "vqgan": NETWORK}
    check_model_type(TitokType, {**SIZES, "stage": 2, **sources, "losses": LOSSES}, data=data)


def test_continuous_tokens_pass_the_contract_checks(data: dict[str, Any]) -> None:
    quantizer = {"type": "kl", "token_size": 4}
    losses = {"quantizer_weight": 1e-6, "discriminator_weight": 0}
    check_model_type(TitokType, {**PIXELS, "quantizer": quantizer, "losses": losses}, data=data)


def run(
    root: Path, name: str, data: dict[str, Any], model: dict[str, Any], **changes: Any
) -> RunDir:
    """A short training run of a model on the images."""
    keys: dict[str, Any] = {
        "model": model,
        "data": {**data, "num_workers": 0, "allow_multiple_epochs": True},
        "save_path": str(root),
        "name": name,
        "total_train_steps": STEPS,
        "num_checkpoints": 1,
        "log_every_n_steps": 1,
        "ema.enabled": True,
        "ema.type": "rising",
        "hparams.global_batch_size": 4,
        "hparams.per_gpu_batch_size": 4,
        "hparams.warmup": 1,
        "hparams.lr": 1e-2,
        **changes,
    }
    overrides = [Override(key, value, "test") for key, value in keys.items()]
    train(load_config(TrainConfig, overrides=overrides).config)
    return RunDir(root / name)


@pytest.fixture(scope="module")
def chain(folder: Path, data: dict[str, Any]) -> dict[str, RunDir]:
    """Runs of a teacher, stage 1 and stage 2, each with weights of the previous one."""
    root = folder / "runs"
    vqgan = {"type": "vqgan", **NETWORK, "losses": LOSSES}
    runs = {"vqgan": run(root, "vqgan", data, vqgan)}
    titok = {"type": "titok", **SIZES, "teacher": str(root / "vqgan")}
    validation = {**data, "val_shards": data["shards"]}
    runs["first"] = run(root, "first", validation, titok, **{"experiment.eval_every": 2})
    losses = {**LOSSES, "discriminator_start": 2}
    second = {**titok, "stage": 2, "init_weight": str(root / "first"), "losses": losses}
    runs["second"] = run(root, "second", data, second)
    return runs


def weights(run: RunDir, name: str) -> dict[str, torch.Tensor]:
    return read_weights(run.checkpoint(STEPS) / name)


def test_stage_2_starts_from_the_averaged_weights_of_stage_1_and_freezes_its_tokens(
    chain: dict[str, RunDir],
) -> None:
    first = weights(chain["first"], "ema.safetensors")
    second = weights(chain["second"], "model.safetensors")
    averaged = weights(chain["second"], "ema.safetensors")
    frozen = [k for k in first if k.startswith(("encoder.", "quantize.", "latent_tokens"))]

    assert all(
        torch.equal(first[k], second[k]) and torch.equal(first[k], averaged[k]) for k in frozen
    )
    trained = [k for k in first if k.startswith("decoder.")]
    assert not any(torch.equal(first[k], second[k]) for k in trained)

    pixels = torch.rand(2, 3, SIDE, SIDE)
    codes = [open_titok(str(chain[name].root))[1].codes(pixels) for name in ("first", "second")]

    assert torch.equal(*codes)

    section = chain["first"].config_tree()["model"]

    assert section["vqgan"]["channel_mult"] == NETWORK["channel_mult"]
    assert section["image_size"] == SIDE


def test_checkpoints_of_stage_2_hold_no_frozen_weights_which_inspect_counts_and_verify_misses(
    chain: dict[str, RunDir], tmp_path: Path
) -> None:
    folder = chain["second"].checkpoint(STEPS)
    (frozen,) = folder.parent.glob("*.safetensors")
    tokens = ("encoder.", "quantize.", "latent_tokens")
    assert all(name.startswith(tokens) for name in load_file(frozen))
    for name in ("model.safetensors", "ema.safetensors"):
        assert not any(key.startswith(tokens) for key in load_file(folder / name))

    copy = Path(shutil.copytree(chain["second"].root, tmp_path / "run"))
    stored = weights(chain["second"], "model.safetensors").values()
    assert inspect(copy).facts["weights"]["parameters"] == sum(map(torch.numel, stored))
    (frozen,) = copy.glob("checkpoints/*.safetensors")
    frozen.unlink()
    (finding,) = check(copy, CheckOptions())
    assert (finding.code, finding.place["path"]) == ("run.missing_file", str(frozen))


def test_checkpoint_that_was_copied_alone_names_what_lies_beside_it(
    chain: dict[str, RunDir], tmp_path: Path
) -> None:
    folder = chain["second"].checkpoint(STEPS)
    (frozen,) = folder.parent.glob("*.safetensors")
    copy = shutil.copytree(folder, tmp_path / "checkpoints" / folder.name)
    with pytest.raises(DataError) as error:
        open_titok(str(copy))
    assert "config.yaml" in error.value.message
    assert frozen.name in error.value.hint

    shutil.copytree(chain["second"].root, tmp_path, ignore=lambda *_: ["checkpoints"],
                    dirs_exist_ok=True)  # fmt: skip
    with pytest.raises(DataError) as error:
        open_titok(str(copy))
    assert error.value.details["path"] == str(tmp_path / "checkpoints" / frozen.name)

    shutil.copy(frozen, copy)
    assert open_titok(str(copy))[0].stage == 2


def test_stage_2_on_a_web_server_is_read_with_its_frozen_weights(chain: dict[str, RunDir]) -> None:
    run_dir = chain["second"]
    expected = weights(run_dir, "ema.safetensors")
    with web_server(run_dir.root.parent) as server:
        location = f"{server.endpoint}/{run_dir.root.name}"
        _, model = open_titok(location)
        initial = WeightsOrigin.find(location).read()

    for name, value in expected.items():
        assert torch.equal(model.state_dict()[name], value)
        assert torch.equal(initial[name], value)


def test_metrics_have_the_use_of_the_codebook_validations_and_the_late_discriminator(
    chain: dict[str, RunDir],
) -> None:
    last = [row for row in read_metrics(chain["first"].metrics) if "loss" in row][-1]

    names = ("codebook_usage", "codebook_perplexity", "dead_codes", "right_codes")
    assert all(name in last for name in names)

    rows = {row["step"]: row for row in read_metrics(chain["first"].metrics) if "val/loss" in row}

    assert list(rows) == [2, 4]
    assert 0 < rows[4]["val/ema/loss"] != rows[4]["val/loss"]

    for run_dir in chain.values():
        assert run_dir.image(STEPS, "reconstruction").is_file()

    rows = {row["step"]: row for row in read_metrics(chain["second"].metrics) if "loss" in row}

    assert not any(name.startswith("discriminator/") for name in rows[2])
    assert "discriminator/lecam_loss" in rows[3]
    means = weights(chain["second"], "lecam.safetensors")
    assert float(means["real"]) != 0
    assert float(means["fake"]) != 0


def test_cache_of_teacher_codes_changes_no_weight(
    chain: dict[str, RunDir], data: dict[str, Any], tmp_path: Path
) -> None:
    teacher = str(chain["vqgan"].root)
    model = {"type": "titok", **SIZES, "teacher": teacher, "cache_teacher_ids": True}
    cached = run(tmp_path, "cached", data, model)

    actual, expected = (
        weights(run_dir, "model.safetensors") for run_dir in (cached, chain["first"])
    )
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors"])
def test_file_of_a_checkpoint_has_the_config_of_its_run(
    chain: dict[str, RunDir], name: str
) -> None:
    _, model = open_titok(str(chain["second"].checkpoint(STEPS) / name))

    loaded, stored = model.state_dict(), weights(chain["second"], name)
    assert all(torch.equal(loaded[key], value) for key, value in stored.items())


def test_published_files_open_like_the_run_unless_the_configuration_has_no_tokenizer(
    chain: dict[str, RunDir], tmp_path: Path
) -> None:
    config, model = open_titok(str(chain["second"].root))
    save_published(tmp_path, config, model)

    published, loaded = open_titok(str(tmp_path))

    assert {**published.model_dump(), "losses": 0} == {
        **config.model_dump(), "losses": 0, "teacher": None,
    }  # fmt: skip
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert open_titok(str(tmp_path / "pytorch_model.bin"))[0] == published

    (tmp_path / "config.yaml").write_text("model: {}")
    with fails("data.broken"):
        open_titok(str(tmp_path))


def test_invalid_configuration_of_a_run_or_another_size_raises_an_error(
    chain: dict[str, RunDir], tmp_path: Path
) -> None:
    shutil.copytree(chain["second"].root, tmp_path / "run")
    preprocessing = tmp_path / "run" / "preprocessing_config.yaml"
    before = preprocessing.read_text()
    preprocessing.write_text(f"crop_size: {2 * SIDE}\n")
    with fails("data.broken"):
        open_tokenizer(str(tmp_path / "run"), torch.device("cpu"))

    preprocessing.write_text(before)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("num_latent_tokens", "num_latent_tokenz"))
    with fails("data.broken", 3):
        open_titok(str(tmp_path / "run"))


def test_weights_without_a_configuration_are_refused(tmp_path: Path) -> None:
    save_file(Titok(tiny_titok()).state_dict(), tmp_path / "weights.safetensors")

    with fails("data.missing", 3):
        open_titok(str(tmp_path / "weights.safetensors"))


class Code:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


def state(**keys: Any) -> dict[str, torch.Tensor]:
    return Titok(tiny_titok(**keys)).state_dict()


def stored(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


CONTINUOUS = PIXELS | {"quantizer": {"type": "kl", "token_size": 3}}
LOST = "encoder.ln_post.bias"


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (stored({"latent_tokens": Code()}), "unsafe", ""),
        (stored(state(**CONTINUOUS)), "checkpoint_mismatch", "missing quantize.embedding.weight"),
        (
            stored({name: value for name, value in state().items() if name != LOST}),
            "checkpoint_mismatch",
            f"missing {LOST}",
        ),
        (stored(state(num_latent_tokens=4)), "checkpoint_mismatch", "latent_tokens is [4, "),
        (stored(state())[:5000], "broken", "truncated"),
        (b"", "broken", "empty"),
        (b"hello", "broken", "not a file of weights"),
        (stored({"state_dict": state()}), "broken", ""),
    ],
    ids=["code", "continuous", "lost", "width", "truncated", "empty", "text", "nested"],
)
def test_weights_that_do_not_match_raise_an_error(
    content: bytes, code: str, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_titok(Titok(tiny_titok()), tiny_titok(), str(path))

    assert (error.value.code, error.value.exit_code) == (f"data.{code}", 3)
    problems = "; ".join(error.value.details.get("problems", []))
    assert reason in problems + error.value.message
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"teacher": None}, "usage.unsupported"),
        ({"stage": 2}, "usage.missing_key"),
        ({"stage": 2, "teacher": None}, "usage.unsupported"),
        ({"patch_size": 8}, "usage.bad_value"),
        ({"image_size": 32}, "usage.bad_value"),
        ({"patch_size": 3}, "usage.bad_value"),
        (
            {"stage": 2, "init_from": "x", "losses": {"perceptual_loss": "convnext_s"}},
            "usage.missing_key",
        ),
    ],
)
def test_incomplete_configuration_raises_an_error(
    keys: dict[str, Any], code: str, data: dict[str, Any], teacher: str
) -> None:
    tree = {**SIZES, "vqgan": NETWORK, "teacher": teacher, **keys}
    init_from = tree.pop("init_from", None)
    section = TrainConfig.specialize({"model": {"type": "titok"}}).model_validate(
        {"model": {"type": "titok"}, "data": data}
    )
    config = TitokConfig.model_validate(tree)

    def check() -> None:
        TitokType().check_init(config, init_from)
        TitokType().derive(config, section.data, None)

    with pytest.raises(UsageError) as error:
        check()

    assert (error.value.code, error.value.exit_code) == (code, 2)


def test_teacher_of_another_model_type_raises_an_error(
    chain: dict[str, RunDir], data: dict[str, Any]
) -> None:
    config = tiny_titok(teacher=str(chain["first"].root))
    section = TrainConfig.specialize({"model": {"type": "titok"}}).model_validate(
        {"model": {"type": "titok"}, "data": data}
    )
    with fails("data.missing"):
        TitokType().derive(config, section.data, None)
