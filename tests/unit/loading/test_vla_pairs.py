"""Samples of FUTURE-VLA as recorded pairs: observations, actions, images that followed; scores."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.builders.codes import CAMERAS, plain_fast, published_windows, write_tree_codes
from vlatool.checkpoints.contract import differences
from vlatool.episode import Observation
from vlatool.errors import DataError
from vlatool.evaluation.futures import FutureScores, save_futures
from vlatool.loading.base import PairOptions, RecordedFutures
from vlatool.loading.vla.config import VlaDataConfig
from vlatool.loading.vla.kind import VlaKind
from vlatool.loading.vla.pairs import VlaPairs
from vlatool.media.images import encode_png
from vlatool.models.base import Codes
from vlatool.workflows.build_dataset import BuildDatasetConfig, build_dataset

EPISODES, FRAMES, STEPS = 3, 4, 16
KIND = VlaKind()


@pytest.fixture(scope="module", name="made")
def make_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows whose images have numbers as colors, and samples of them."""
    root = tmp_path_factory.mktemp("pairs")
    tree = published_windows(root / "A", EPISODES, FRAMES)
    for number, path in enumerate(sorted(tree.rglob("*.png"))):
        path.write_bytes(encode_png(np.full((8, 12, 3), number, np.uint8)))
    write_tree_codes(tree, "packed", sizes=(4, 50))
    plain_fast(root / "fast")
    for name, options in {
        "lines": {},
        "shared": {"lines_per_file": 7},
        "one": {"kinds": ["vla"]},
    }.items():
        keys = {"data": str(tree), "fast": str(root / "fast"), "output": str(root / name)}
        build_dataset(BuildDatasetConfig.model_validate({**keys, "workers": 1, **options}))
    return root


def pairs_of(folder: Path, **changes: Any) -> VlaPairs:
    config = VlaDataConfig(samples=[str(folder)])
    info = KIND.load_info(config)
    config, _ = KIND.derive(config, info)
    assets = KIND.make_assets(config, info)
    config = config.model_copy(update=changes)
    return KIND.pairs(config, assets, str(folder), PairOptions(SimpleNamespace(), STEPS))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("form", ["lines", "shared", "one"])
def test_a_window_is_one_pair_with_the_actions_of_its_ids(made: Path, form: str) -> None:
    pairs = pairs_of(made / form)
    assert len(pairs) == EPISODES * FRAMES
    rows = pairs.read(range(len(pairs)))
    names = [f"episode_{number:06d}" for number in range(EPISODES)]
    expected = [(name, frame) for name in names for frame in range(FRAMES)]
    assert [(target.episode, target.frame) for _, target in rows] == expected
    assert pairs.find("2", 3) == pairs.find("episode_000002", 3) == 2 * FRAMES + 3
    observation, target = rows[2 * FRAMES + 3]
    number = 2 * FRAMES * len(CAMERAS)
    for camera, name in enumerate(CAMERAS):
        shown = observation.images[name][:, 0, 0, 0].tolist()
        first = number + camera * FRAMES
        assert shown == [first] * 13 + [first + 1, first + 2, first + 3]
    assert target.mask.tolist() == [True] + [False] * (STEPS - 1)
    before = rows[2 * FRAMES + 2][1]
    np.testing.assert_array_equal(target.last["actions"], before.actions["actions"][0])
    assert rows[0][1].last == {}
    assert pairs.fields["actions"].names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def test_the_contract_has_what_the_samples_were_made_of(made: Path, tmp_path: Path) -> None:
    info = KIND.load_info(VlaDataConfig(samples=[str(made / "lines")]))
    config, _ = KIND.derive(VlaDataConfig(samples=[str(made / "lines")]), info)
    KIND.save_assets(config, info, tmp_path)
    contract = KIND.load_assets(config, tmp_path).contract
    assert contract == KIND.make_assets(config, info).contract == pairs_of(made / "lines").contract
    assert (*contract.tokenizers,) == ("codes", "actions")
    assert contract.horizon == STEPS
    other = replace(contract, tokenizers={**contract.tokenizers, "codes": "0"})
    (difference,) = differences(contract, other)
    assert difference == ("tokenizers.codes", contract.tokenizers["codes"], "0")


@pytest.mark.parametrize("form", ["lines", "shared"])
def test_futures_are_the_images_of_the_next_frames(made: Path, form: str) -> None:
    pairs = pairs_of(made / form)
    futures = pairs.futures(FRAMES + 1)
    first = FRAMES * len(CAMERAS) + FRAMES  # of the second camera
    shown = futures.images[CAMERAS[1]][:, 0, 0, 0].tolist()
    assert shown == [first + 2] + [first + 3] * (STEPS - 1)
    assert futures.mask.tolist() == [True, True] + [False] * (STEPS - 2)
    assert futures.codes[CAMERAS[1]].shape == (STEPS, 4)
    np.testing.assert_array_equal(
        futures.codes[CAMERAS[1]][0], pairs.futures(FRAMES).codes[CAMERAS[1]][1]
    )


@pytest.mark.parametrize(
    ("changes", "find", "code"),
    [
        ({}, ("3", 0), "data.unknown_field"),
        ({}, ("0", FRAMES), "data.unknown_field"),
        ({"codes_digest": "0"}, ("0", 0), "data.mismatch"),
        ({"past_steps": 8}, ("0", 0), "data.mismatch"),
        ({"num_codes": 60}, ("0", 0), "data.mismatch"),
    ],
)
def test_what_is_not_there_and_data_of_another_form_than_those_of_the_run(
    made: Path, changes: dict[str, Any], find: tuple[str, int], code: str
) -> None:
    with pytest.raises(DataError) as caught:
        pairs_of(made / "lines", **changes).find(*find)
    assert caught.value.code == code


def test_missing_image_of_a_later_step_is_named(made: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "made"))
    pairs = pairs_of(root / "lines")
    path = next(root.glob("A/images/episode_000000/*frame_000003.png"))
    path.unlink()
    with pytest.raises(DataError) as caught:
        pairs.futures(2)
    assert path.name in caught.value.message


class Shades:
    """Tokenizer whose code is the brightness of the image, in steps of 10."""

    image_size, codes_per_image, codebook_size, has_decoder = 8, 1, 26, True

    def encode(self, images: torch.Tensor) -> Codes:
        return Codes(images[:, :1, 0, 0].long() // 10)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes[:, :1, None, None] * 10).expand(-1, 8, 8, 3).to(torch.uint8)


def shade(*values: int) -> np.ndarray:
    return np.stack([np.full((16, 16, 3), value, np.uint8) for value in values])


def test_scores_of_images_are_those_computed_by_hand() -> None:
    tokenizer: Any = SimpleNamespace(network=Shades(), device=torch.device("cpu"))
    scores = FutureScores(tokenizer)
    recorded = RecordedFutures(
        {"front": shade(100, 105, 110, 125)}, {}, np.array([True, True, True, False])
    )
    observation = Observation({"front": shade(0, 90)})
    scores.add({"front": np.array([[10], [11], [12], [13]])}, recorded, observation)
    report = scores.report()
    assert report["samples"] == 1
    assert list(report["steps"]) == ["1"]  # step 4 is after the end
    scores.add(
        {"front": np.array([[9], [9], [9], [9]])},
        RecordedFutures(recorded.images, {"front": np.full((4, 1), 9)}, np.ones(4, np.bool_)),
        observation,
    )
    first, fourth = scores.report()["steps"]["1"], scores.report()["steps"]["4"]
    assert first["code_accuracy"] == 1.0
    assert first["copy_present_code_accuracy"] == 0.5
    assert fourth["code_accuracy"] == 1.0

    def psnr(*errors: float) -> float:
        return 10 * np.log10(255**2 / np.mean(np.square(errors)))

    assert first["psnr"] == pytest.approx(psnr(0, 10))
    assert first["copy_present_psnr"] == pytest.approx(psnr(10, 10))
    assert fourth["psnr"] == pytest.approx(psnr(35))
    assert fourth["reconstruction_psnr"] == pytest.approx(psnr(35))
    assert first["moving_psnr"] is None  # no pixel differs by more than 25


def test_moving_pixels_are_those_that_differ_from_the_present_image() -> None:
    tokenizer: Any = SimpleNamespace(network=Shades(), device=torch.device("cpu"))
    scores = FutureScores(tokenizer)
    images = shade(100)
    images[0, 8:] = 130  # the lower half moved
    recorded = RecordedFutures({"front": images}, {}, np.ones(1, np.bool_))
    scores.add({"front": np.array([[12]])}, recorded, Observation({"front": shade(100)}))
    first = scores.report()["steps"]["1"]
    assert first["moving_psnr"] == pytest.approx(20 * np.log10(255 / 10), rel=0.02)
    assert first["moving_copy_present_psnr"] == pytest.approx(20 * np.log10(255 / 30), rel=0.02)


def test_drawing_has_a_sheet_per_camera_and_a_video(tmp_path: Path) -> None:
    images = {name: shade(*range(0, 160, 10)) for name in CAMERAS}
    both = {"recorded": images, "predicted": images}
    save_futures(tmp_path, both, lambda camera: f"{camera}.png", "both.mp4")
    save_futures(tmp_path, {"predicted": images}, lambda camera: f"{camera}-only.png", "only.mp4")
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{name}.png" for name in CAMERAS),
        *(f"{name}-only.png" for name in CAMERAS),
        "both.mp4",
        "only.mp4",
    }
