"""Runs of FUTURE-VLA and data that do not fit them: errors before training, with file and line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.codes import plain_fast, published_windows, write_tree_codes
from vlatool.cli import app
from vlatool.errors import VlatoolError
from vlatool.loading.vla.config import VlaDataConfig
from vlatool.loading.vla.kind import VlaKind
from vlatool.media.images import encode_png
from vlatool.models.future_vla.config import FutureVlaConfig, NumberDigests
from vlatool.models.future_vla.fit import fit_to_data
from vlatool.models.trained import section_of
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset
from vlatool.workflows.compose import ComposeConfig, compose

KIND = VlaKind()
SIZES = (4, 50)


def build(root: Path, task: str = "fold it") -> Path:
    """Samples of two episodes with images of 64 x 64."""
    tree = published_windows(root / "A", 2, 2, task=task)
    for path in tree.rglob("*.png"):
        path.write_bytes(encode_png(np.zeros((64, 64, 3), np.uint8)))
    write_tree_codes(tree, "packed", sizes=SIZES)
    plain_fast(root / "fast")
    keys = {"data": str(tree), "fast": str(root / "fast"), "workers": 1}
    build_dataset(BuildDatasetConfig.model_validate(keys))
    return root / "A/samples"


@pytest.fixture(scope="module", name="made")
def make_run_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    build(root)
    compose(ComposeConfig.model_validate({"tiny": True, "output": str(root / "tiny")}))
    return root


def sections(made: Path) -> tuple[FutureVlaConfig, VlaDataConfig]:
    data = VlaDataConfig.model_validate({"samples": [str(made / "A/samples")]})
    data, _ = KIND.derive(data, KIND.load_info(data))
    weights = section_of(str(made / "tiny"))
    assert weights is not None
    config: Any = weights[0]
    return config, data


def test_map_and_digests_follow_from_weights_and_manifests(made: Path) -> None:
    config, data = sections(made)
    fitted, rules = fit_to_data(config, data)
    assert fitted.tokens is not None
    assert fitted.tokens.sizes == (*SIZES, 256)
    assert fitted.tokens.first_action + 256 == fitted.tokens.end_of_text
    assert fitted.numbers.model_dump() == dict(data.digests)
    assert set(rules) == {"tokens", "numbers"}
    assert fit_to_data(fitted, data)[0] == fitted


@pytest.mark.parametrize(
    ("model", "data", "code", "message"),
    [
        ({"compress": (4, 4, 4)}, {}, "usage.bad_value", "the samples have 16 steps of 2"),
        ({"views": 1}, {}, "usage.bad_value", r"of 2 \(image, wrist_image\)"),
        ({"freeze_layers": 9}, {}, "usage.bad_value", "is 9, but the language model has 4"),
        ({}, {"image_size": (64, 60)}, "usage.bad_value", "64 x 60 pixels are not squares"),
        ({}, {"image_size": (24, 24)}, "usage.bad_value", "compressed to 1 x 1"),
        ({"tokens": None}, {"num_codes": 5000}, "usage.bad_value", "the data have 5000"),
        ({}, {"codes_per_image": 5}, "data.mismatch", "5 codes of 50 per image"),
        ({"numbers": {"codes": "x"}}, {}, "data.mismatch", "another visual tokenizer"),
        ({"numbers": {"actions": "x"}}, {}, "data.mismatch", "another action tokenizer"),
        ({"numbers": {"profile": "x"}}, {}, "data.mismatch", "another normalization"),
    ],
    ids=[
        "steps",
        "views",
        "layers",
        "shape",
        "patches",
        "room",
        "codes",
        "digest",
        "fast",
        "profile",
    ],
)
def test_data_that_do_not_fit_the_weights_are_an_error(
    made: Path, model: dict[str, Any], data: dict[str, Any], code: str, message: str
) -> None:
    config, section = sections(made)
    trained, _ = fit_to_data(config, section)
    if "numbers" in model:
        model = {"numbers": NumberDigests(**model["numbers"])}
    with pytest.raises(VlatoolError, match=message) as caught:
        fit_to_data(trained.model_copy(update=model), section.model_copy(update=data))
    assert caught.value.code == code


def train(root: Path, *words: str) -> int:
    """Exit code of `train`."""
    command = ["train", "--preset", "future-vla-tiny", "--model.compress", "8,6,2"]
    command += ["--init-from", str(root / "tiny"), "--data", str(root / "A/samples")]
    command += ["--data.val-ratio", "0", "--output", str(root / "run"), "--json", "-q"]
    return app.run([*command, "--set", "total_val_samples=null", *words])


def change_line(samples: Path) -> None:
    path = samples / "data/episode_000001.jsonl"
    rows = path.read_text().splitlines()
    rows[2] = rows[2].replace("<Rec>", "<Rec>7 ", 1)
    path.write_text("".join(f"{row}\n" for row in rows))
    (samples / "data/episode_000001.index.npz").unlink()


def change_task(samples: Path) -> None:
    path = samples / "manifest.json"
    path.write_text(path.read_text().replace("fold it 1", "fold <|im_end|> 1"))
    path = samples / "data/episode_000001.jsonl"
    path.write_text(path.read_text().replace("fold it 1", "fold <|im_end|> 1"))
    (samples / "data/episode_000001.index.npz").unlink()


@pytest.mark.parametrize(
    ("change", "words", "line", "message"),
    [
        (change_line, (), 3, "jsonl:3: image 0 has 5 codes, not 4"),
        (change_task, (), 1, "which is reserved for codes, action ids or markers"),
        (lambda samples: None, ("--model.max-length", "90"), 1, "the limit is 90"),
    ],
    ids=["line", "instruction", "length"],
)
def test_a_bad_sample_is_an_error_before_a_run_starts(
    made: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    words: tuple[str, ...],
    line: int,
    message: str,
) -> None:
    root = Path(shutil.copytree(made, tmp_path / "made"))
    samples = root / "A/samples"
    change(samples)
    code = train(root, *words)
    error = json.loads(capfd.readouterr().out)["error"]
    assert (code, message in error["message"]) == (3, True), error
    episode = 0 if words else 1
    assert error["message"].startswith(f"{samples}/data/episode_00000{episode}.jsonl:{line}: ")
    assert not (root / "run").exists()
