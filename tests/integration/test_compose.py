"""`vlatool compose`: weights from Qwen3-VL and DINOv3, and runs that start from them."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.builders.codes import plain_fast
from tests.builders.errors import fails
from tests.builders.forks import Forks
from tests.builders.stock_models import stock_dino, stock_qwen
from vlatool.config.resolve import load_config
from vlatool.datasets.samples.profile import NAME, read_profile, write_profile
from vlatool.errors import VlatoolError
from vlatool.models.base import ModelType
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.spec import FutureVlaType
from vlatool.models.published import WeightsOrigin
from vlatool.models.trained import open_trained, section_of
from vlatool.storage.tree import files_below, sha256_of
from vlatool.training.config import TrainConfig
from vlatool.workflows.compose import ComposeConfig, compose
from vlatool.workflows.verify import VerifyConfig, verify

START = Path(__file__).parents[2] / "examples/tiny_start.py"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    stock_qwen(root / "qwen")
    stock_dino(root / "dino")
    return root


def composed(bases: Path, output: Path, **keys: Any) -> Path:
    sources = {"qwen": str(bases / "qwen"), "dino": str(bases / "dino")}
    compose(ComposeConfig.model_validate({**sources, "output": str(output), **keys}))
    return output


@pytest.fixture(scope="module")
def folder(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return composed(bases, tmp_path_factory.mktemp("out") / "composed", compress=[2, 1, 1])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()
    }


def test_weights_are_those_of_both_models_and_new_convolutions(bases: Path, folder: Path) -> None:
    weights = weights_of(folder)
    expected = {name: value.bfloat16() for name, value in weights_of(bases / "qwen").items()}
    for name, value in weights_of(bases / "dino").items():
        expected[f"model.visual.vis_tok.{name.removeprefix('model.')}"] = value.bfloat16()
    assert {name for name in weights if name not in expected} == {
        f"model.visual.{name}.{kind}"
        for name in ("cnn1.conv1", "cnn1.conv2", "cnn2.conv", "cnn3.conv")
        for kind in ("weight", "bias")
    }
    assert not [name for name, value in expected.items() if not torch.equal(weights[name], value)]
    assert weights["model.visual.cnn2.conv.weight"].float().std() == pytest.approx(0.02, rel=0.05)
    assert not weights["model.visual.cnn2.conv.bias"].any()


def test_the_example_trains_what_comes_before_the_last_layer(warm: Forks, tmp_path: Path) -> None:
    fast = plain_fast(tmp_path / "fast")
    write_profile(fast / NAME, read_profile("libero"))
    smallest = ["--scenes", "4", "--steps", "1", "1", "1", "--batch-size", "2"]
    words = [tmp_path / "start", "--fast", fast, *smallest]
    done = warm.run(words, script=START, seconds=300)
    assert done.code == 0, done.stderr
    sizes = runpy.run_path(str(START))["SIZES"]
    tokenizer: Any = load_config(TrainConfig, presets=["future-vla-tiny-tokenizer"]).config
    assert sizes.codebook_size == tokenizer.model.codebook_size
    keys = {"tiny": True, "compress": [0, 0, 1], "output": str(tmp_path / "tiny")}
    compose(ComposeConfig.model_validate(keys))
    before, after = weights_of(tmp_path / "tiny"), weights_of(tmp_path / "start")
    assert before.keys() == after.keys()
    unchanged = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {"lm_head.weight", "model.language_model.norm.weight"} <= unchanged
    assert {name for name in before if ".layers.3." in name} <= unchanged
    learned = ("vis_tok.layer.0.mlp", "merger.linear", "layers.0.mlp", "layers.2.mlp")
    for part in learned:
        assert not [name for name in unchanged if part in name and name.endswith("weight")], part
    assert open_trained(str(tmp_path / "start"), device="cpu").config.model == derived(
        tmp_path / "tiny"
    )


def test_folder_opens_and_has_the_markers(folder: Path) -> None:
    opened = open_trained(str(folder), device="cpu")
    config = opened.config.model
    assert isinstance(config, FutureVlaConfig)
    assert (config.compress, config.patch_order) == ((2, 1, 1), "raster")
    state = opened.parts["model"].state_dict()
    weights = weights_of(folder)
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], value.float()) for name, value in weights.items())
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    assert [token["content"] for token in tokens[-4:]] == [
        "<|A_START|>", "<|A_END|>", "<|B_START|>", "<|B_END|>",
    ]  # fmt: skip
    assert not verify(VerifyConfig(location=str(folder))).findings


def test_transformers_reads_the_stock_part(folder: Path) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    load: Any = Qwen3VLForConditionalGeneration.from_pretrained
    _, report = load(folder, output_loading_info=True)
    assert not report["missing_keys"]
    own = ("model.visual.vis_tok.", "model.visual.cnn")
    assert set(report["unexpected_keys"]) == {n for n in weights_of(folder) if n.startswith(own)}


def test_equal_options_give_equal_bytes_and_a_second_run_changes_nothing(
    bases: Path, folder: Path, tmp_path: Path
) -> None:
    again = composed(bases, tmp_path / "again", compress=[2, 1, 1])
    names = [file.name for file in files_below(folder) if not file.name.startswith(".vlatool")]
    assert [sha256_of(folder / name) for name in names] == [
        sha256_of(again / name) for name in names
    ]
    keys = {"qwen": str(bases / "qwen"), "dino": str(bases / "dino"), "output": str(again)}
    config = ComposeConfig.model_validate({**keys, "compress": [2, 1, 1]})
    assert compose(config).status == "already complete"
    with pytest.raises(VlatoolError, match="compress"):
        composed(bases, again, compress=[1, 1, 1])


def derived(init_from: Path, **keys: Any) -> FutureVlaConfig:
    """Section `model` of a run that starts from weights."""
    model_type = FutureVlaType()
    config = FutureVlaConfig.model_validate(keys)
    model_type.check_init(config, str(init_from))
    known = section_of(str(init_from))
    assert known is not None
    return model_type.restore_base_config(config, known[0])


def test_a_run_gets_architecture_and_grid_of_the_folder_unless_they_are_given(folder: Path) -> None:
    model = derived(folder)
    assert model.qwen
    assert model.dino
    assert model.qwen["text_config"]["hidden_size"] == 128
    assert model.dino["hidden_size"] == 96
    assert model.compress == (2, 1, 1)
    other = derived(folder, compress=[1, 1, 2], patch_order="block")
    assert (other.compress, other.patch_order, other.views) == ((1, 1, 2), "block", 2)


def test_initial_weights_are_loaded_except_networks(folder: Path) -> None:
    config = derived(folder)
    model_type = FutureVlaType()
    parts = model_type.build(config)
    before = {k: v.clone() for k, v in parts["model"].module.state_dict().items()}
    model_type.load_init(config, parts, WeightsOrigin.find(str(folder)), ["model.visual.cnn1"])
    after, weights = parts["model"].module.state_dict(), weights_of(folder)
    for name, value in after.items():
        is_excluded = name.startswith("model.visual.cnn1")
        assert torch.equal(value, before[name] if is_excluded else weights[name].float()), name


def _drop_tensor(path: Path, name: str) -> None:
    weights = load_file(path)
    del weights[name]
    save_file(weights, path)


def _edit(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "a tensor of DINOv3 is missing": (
        lambda at: _drop_tensor(at / "dino/model.safetensors", "layer.0.norm1.weight"),
        "data.checkpoint_mismatch",
        "missing model.visual.vis_tok.layer.0.norm1.weight",
    ),
    "a tensor of Qwen3-VL is missing": (
        lambda at: _drop_tensor(at / "qwen/model.safetensors", "model.language_model.norm.weight"),
        "data.checkpoint_mismatch",
        "missing model.language_model.norm.weight",
    ),
    "config.json has other sizes": (
        lambda at: _edit(at / "dino/config.json", hidden_size=32),
        "data.checkpoint_mismatch",
        "config.json says",
    ),
    "config.json describes no network": (
        lambda at: _edit(at / "dino/config.json", num_attention_heads=0),
        "data.missing",
        "no network",
    ),
    "the folders are swapped": (
        lambda at: (at / "dino").rename(at / "x") and (at / "qwen").rename(at / "dino")
        and (at / "x").rename(at / "qwen"),
        "data.missing",
        "model_type is 'dinov3_vit'",
    ),
    "a file is truncated": (
        lambda at: (at / "qwen/model.safetensors").write_bytes(b"1234567890"),
        "data.broken",
        "model.safetensors",
    ),
    "the tokenizer is missing": (
        lambda at: (at / "qwen/tokenizer.json").unlink(),
        "data.missing",
        "tokenizer.json",
    ),
    "the tokenizer is of another model": (
        lambda at: _edit(at / "qwen/config.json", image_token_id=3),
        "data.mismatch",
        "image_pad",
    ),
    "a model has no weights": (
        lambda at: (at / "dino/model.safetensors").unlink(),
        "data.missing",
        "no weights",
    ),
    "a model does not exist": (lambda at: shutil.rmtree(at / "dino"), "data.no_source", "dino"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_base_models_are_refused_before_anything_is_written(
    bases: Path, tmp_path: Path, case: str
) -> None:
    change, code, message = BROKEN[case]
    shutil.copytree(bases, tmp_path / "bases")
    change(tmp_path / "bases")
    with pytest.raises(VlatoolError, match=message) as caught:
        composed(tmp_path / "bases", tmp_path / "out")
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"output": ""}, "usage.missing_key"),
        ({}, "usage.missing_key"),
        ({"qwen": "qwen"}, "usage.missing_key"),
        ({"tiny": True, "qwen": "qwen"}, "usage.conflict"),
    ],
)
def test_wrong_options(tmp_path: Path, keys: dict[str, Any], code: str) -> None:
    with fails(code):
        compose(ComposeConfig.model_validate({"output": str(tmp_path / "out"), **keys}))


@pytest.mark.parametrize("text", ["qwen", "qwen/model.safetensors"])
def test_a_stock_model_is_refused_with_the_command_that_composes(bases: Path, text: str) -> None:
    with fails("data.mismatch") as caught:
        derived(bases / text)
    assert f"vlatool compose --qwen {bases / 'qwen'}" in caught.value.hint
    with pytest.raises(VlatoolError, match="plain Qwen3-VL"):
        open_trained(str(bases / text))


def test_a_new_run_needs_weights() -> None:
    model_type: ModelType = FutureVlaType()
    with pytest.raises(VlatoolError) as caught:
        model_type.check_init(FutureVlaConfig(), None)
    assert "vlatool compose" in caught.value.hint
