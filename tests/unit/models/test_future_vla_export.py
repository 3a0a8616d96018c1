"""Published layout of a trained FUTURE-VLA."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders.future_vla import VOCABULARY, tiny_future_vla
from vlatool.datasets.samples.profile import read_profile
from vlatool.errors import VlatoolError
from vlatool.loading.vla.config import VlaAssets, VlaDataConfig
from vlatool.models.future_vla.model import FutureVla
from vlatool.models.future_vla.spec import FutureVlaType
from vlatool.models.future_vla.token_ids import tiny_tokenizer
from vlatool.models.future_vla.weights import prepare_export
from vlatool.models.published import Trained, WeightsOrigin
from vlatool.models.trained import TrainedConfig, open_trained
from vlatool.storage.atomic import write_text

PROFILE = read_profile("libero", None)
DATA = VlaDataConfig(
    cameras=["front"],
    past_steps=3,
    future_steps=2,
    image_size=(64, 64),
    action_steps=4,
    action_width=7,
    fps=10.0,
    codes_per_image=4,
    num_codes=16,
    num_actions=32,
    profile_digest=PROFILE.digest,
)


def trained(folder: Path, **keys: Any) -> Trained:
    """A network that a run with a text tokenizer in its folder has trained."""
    config = tiny_future_vla(**keys)
    torch.manual_seed(1)
    network = FutureVla(config)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    write_text(folder / "tokenizer.json", tiny_tokenizer().to_str())
    assets = VlaAssets(DATA.sizes, DATA.shape, 10.0, None, PROFILE)
    origin = WeightsOrigin("run", folder / "model.safetensors")
    sections = TrainedConfig(model=config, data=DATA)
    return Trained(sections, {"model": network.eval()}, assets, origin, folder)


def exported(source: Trained, folder: Path) -> Path:
    export = prepare_export(source)
    export.write(folder)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert sorted(map(str, files)) == sorted(export.files)
    return folder


@pytest.mark.parametrize("keys", [{}, {"lora": {"rank": 2}}, {"patch_order": "block"}])
def test_export_opens_with_equal_outputs(tmp_path: Path, keys: dict[str, Any]) -> None:
    source = trained(tmp_path / "run", **keys)
    opened = open_trained(str(exported(source, tmp_path / "out")), device="cpu")
    ids = torch.tensor([[3, *[VOCABULARY - 1] * 21, 5, 7]])
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64, 3), np.uint8)
    with torch.no_grad():
        hidden, expected = (
            part(ids, torch.arange(24).expand(1, 3, 24), images=torch.from_numpy(pixels))
            for part in (opened.parts["model"], source.parts["model"])
        )
    torch.testing.assert_close(hidden, expected)
    assert isinstance(opened.assets, VlaAssets)
    assert (opened.assets.shape, opened.assets.profile) == (DATA.shape, PROFILE)
    model: Any = opened.config.model
    order = keys.get("patch_order", "raster")
    assert (model.patch_order, model.compress, model.lora.rank) == (order, (1, 1, 1), 0)


def test_transformers_reads_the_stock_part(tmp_path: Path) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    source = trained(tmp_path / "run")
    folder = exported(source, tmp_path / "out")
    load: Any = Qwen3VLForConditionalGeneration.from_pretrained
    stock, report = load(folder, output_loading_info=True)
    own = ("model.visual.vis_tok.", "model.visual.cnn")
    names = source.parts["model"].state_dict()
    assert not report["missing_keys"]
    assert set(report["unexpected_keys"]) == {name for name in names if name.startswith(own)}
    assert torch.equal(
        stock.state_dict()["model.language_model.norm.weight"],
        names["model.language_model.norm.weight"],
    )


def test_a_run_starts_from_an_export_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    folder = exported(trained(tmp_path / "run"), tmp_path / "out")
    FutureVlaType().check_init(tiny_future_vla(), str(folder))
    (folder / "future_vla.json").write_text(
        (folder / "future_vla.json").read_text().replace('"views": 1', '"views": 0')
    )
    with pytest.raises(VlatoolError, match=r"future_vla.json: model.views"):
        FutureVlaType().check_init(tiny_future_vla(), str(folder))
