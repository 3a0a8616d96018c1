"""New names of cameras and fields, from recordings to training."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.builders import hdf5
from tests.builders.errors import fails
from tests.builders.lerobot import lerobot_dataset
from tests.builders.preprocessing import arrays, samples
from tests.builders.recording import Recorder
from vlatool.config.resolve import config_of
from vlatool.datasets.lbm.layout import read_preprocessing_config
from vlatool.events import NULL, Reporter
from vlatool.loading.base import SampleRef
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.loading.robotics.mixture import RoboticsInfo
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.transforms.names import NameMap
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess
from vlatool.workflows.verify import InspectConfig, VerifyConfig, inspect, verify


def named(*texts: str) -> NameMap:
    return NameMap.model_validate(NameMap.from_texts(texts))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = {"demo_0": 6, "demo_1": 5}
    return hdf5.robomimic(tmp_path_factory.mktemp("raw") / "a.hdf5", lengths)


def written(
    recording: Path, output: Path, reporter: Reporter = NULL, **options: Any
) -> PreprocessResult:
    tree = {"format": "hdf5", "sources": [str(recording)], "output": str(output), "workers": 1}
    tree |= {"instruction": "go", "samples_per_shard": 4}
    tree |= {"past_lowdim_steps": 1, "future_lowdim_steps": 2, "max_padding_right": 2, **options}
    return preprocess(config_of(PreprocessConfig, tree), reporter=reporter)


def test_shards_differ_from_those_with_the_old_names_in_names_alone(
    recording: Path, tmp_path: Path
) -> None:
    written(recording, tmp_path / "old")
    result = written(
        recording,
        tmp_path / "new",
        rename={"cameras": {"top": "front_image"}, "fields": {"hand": "obs.robot0_eef_pos[0:2]"}},
    )
    assert (result.cameras, result.action_fields) == (("top",), ("actions",))
    pairs = zip(*(samples(tmp_path / name / "shards") for name in ("old", "new")), strict=True)
    for old, new in pairs:
        before, after = arrays(old), arrays(new)
        assert np.array_equal(after["hand"], before["obs.robot0_eef_pos"][:, :2])
        assert "obs.robot0_eef_pos" not in after
        assert new["top_t0.jpg"] == old["front_image_t0.jpg"]
    options = read_preprocessing_config(tmp_path / "new/shards")
    assert "hand" in options["proprioception_fields"]


def test_inspect_and_verify_show_the_new_names(recording: Path) -> None:
    rename = named("cameras.top=front_image", "fields.*=obs.*")
    report = inspect(InspectConfig(location=str(recording), rename=rename)).document()
    assert [camera["name"] for camera in report["cameras"]] == ["top"]
    assert report["proprioception_fields"] == ("robot0_eef_pos",)
    assert verify(VerifyConfig(location=str(recording), rename=rename)).whole


def test_dimensions_that_no_new_name_has_are_a_warning(recording: Path, tmp_path: Path) -> None:
    reporter = Recorder()
    rename = {"fields": {"hand": "obs.robot0_eef_pos[0:2]"}}
    written(recording, tmp_path / "a", rename=rename, reporter=reporter)
    assert (
        "source.dimensions_left_out",
        "obs.robot0_eef_pos: dimensions 2 are left out",
    ) in [*reporter.warnings]


def test_an_output_with_other_names_is_another_output(recording: Path, tmp_path: Path) -> None:
    written(recording, tmp_path / "a", rename={"cameras": {"top": "front_image"}})
    with fails("usage.output_differs", 2):
        written(recording, tmp_path / "a", rename={"cameras": {"side": "front_image"}})


def lerobot(root: Path, camera: str, *more: str) -> Path:
    return lerobot_dataset(root, (3,), cameras=dict.fromkeys([camera, *more], "image"))


def test_the_renames_of_the_table_make_names_equal(tmp_path: Path) -> None:
    first = lerobot(tmp_path / "a", "observation.images.front")
    other = lerobot(tmp_path / "b", "observation.images.cam.front")
    both = InspectConfig(location=str(first), others=[str(other)])
    (texts,) = inspect(both).document()["renames"].values()
    rename = named(*texts)
    reports = [
        inspect(InspectConfig(location=str(path), rename=names)).document()
        for path, names in ((first, NameMap()), (other, rename))
    ]
    assert reports[0]["cameras"] == reports[1]["cameras"]


def test_a_name_with_two_matches_is_a_question(tmp_path: Path) -> None:
    first = lerobot(tmp_path / "a", "observation.images.front")
    other = lerobot(tmp_path / "b", "observation.images.l.front", "observation.images.r.front")
    document = inspect(InspectConfig(location=str(first), others=[str(other)])).document()
    assert not any(document["renames"].values())
    assert "l.front|observation.images.r.front" in document["questions"][0]


def test_shards_are_compared_with_recordings(recording: Path, tmp_path: Path) -> None:
    rename = {"cameras": {"top": "front_image"}, "fields": {"hand": "obs.robot0_eef_pos"}}
    written(recording, tmp_path / "a", rename=rename)
    config = InspectConfig(location=str(recording), others=[str(tmp_path / "a")])
    result = inspect(config)
    document = result.document()
    assert "2 cameras and 2 fields differ" in result.text()
    assert document["renames"] == {str(tmp_path / "a"): ["fields.obs.robot0_eef_pos=hand"]}
    assert document["questions"] == [f"{tmp_path / 'a'}: cameras.front_image=top"]
    assert document["sets"][1]["cameras"] == {"top": (32, 24)}


@pytest.mark.parametrize(("stored", "asked"), [(np.flipud, 1), (np.rot90, 0), (np.copy, 0)])
def test_a_camera_that_is_upside_down_in_one_set_is_a_question(
    tmp_path: Path, stored: Callable[[Any], Any], asked: int
) -> None:
    image = np.broadcast_to(np.linspace(0, 255, 24)[:, None, None], (24, 24, 3)).astype(np.uint8)

    def replaced(pixels: Any, file: Any) -> None:
        del file["data/demo_0/obs/front_image"]
        file["data/demo_0/obs/front_image"] = np.stack([pixels] * 5)

    paths = [
        hdf5.robomimic(tmp_path / f"{name}.hdf5", {"demo_0": 5}, partial(replaced, pixels))
        for name, pixels in (("a", image), ("b", stored(image)))
    ]
    config = InspectConfig(location=str(paths[0]), others=[str(paths[1])])
    questions = inspect(config).document()["questions"]
    assert [text.startswith("cameras.front_image: upside down") for text in questions] == [
        True
    ] * asked


RENAME = {"cameras": {"top": "front_image"}, "fields": {"hand": "obs.robot0_eef_pos"}}


@pytest.fixture(scope="module")
def unlike(recording: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Shards with the names of the recording, and with others."""
    root = tmp_path_factory.mktemp("sets")
    written(recording, root / "old")
    written(recording, root / "new", rename=RENAME)
    return [str(root / "old"), str(root / "new")]


def loaded(folders: list[str], **keys: Any) -> tuple[RoboticsDataConfig, RoboticsInfo]:
    kind = RoboticsKind()
    config = RoboticsDataConfig(dataset_manifest=folders, **keys)
    info = kind.load_info(config)
    return kind.derive(config, info)[0], info


def test_a_set_with_old_names_is_trained_on_as_one_with_the_new(unlike: list[str]) -> None:
    config, info = loaded(unlike, rename=RENAME)
    assert config.cameras == ["top"]
    assert config.proprioception_fields == ["hand"]
    refs = [SampleRef(dataset, 0, 1) for dataset in (0, 1)]
    rngs = [np.random.default_rng(0) for _ in refs]
    old, new = RoboticsKind().reader(config, info).read(refs, rngs)
    assert isinstance(old, DecodedSample)
    assert isinstance(new, DecodedSample)
    assert np.array_equal(old.images, new.images)
    assert np.array_equal(old.fields["hand"], new.fields["hand"])


def test_without_data_rename_the_sets_differ(unlike: list[str]) -> None:
    with fails("data.mismatch", 3):
        loaded(unlike)


def test_assets_of_a_run_have_the_new_names(unlike: list[str], tmp_path: Path) -> None:
    config, info = loaded(unlike[:1], rename=RENAME)
    RoboticsKind().save_assets(config, info, tmp_path)
    assets = RoboticsKind().load_assets(config, tmp_path)
    assert "hand" in assets.statistics
    assert read_preprocessing_config(tmp_path)["camera_names"] == ["top"]


def test_slices_are_for_preprocessing() -> None:
    with pytest.raises(ValidationError, match="vlatool preprocess --rename"):
        RoboticsDataConfig(rename=named("fields.a=state[0:3]"))


def test_a_camera_that_a_set_lacks_is_named_with_the_rename_that_fits(
    recording: Path, tmp_path: Path
) -> None:
    written(recording, tmp_path / "a", rename={"cameras": {"images.front": "front_image"}})
    with fails("data.unknown_field", 3) as caught:
        loaded([str(tmp_path / "a")], camera_names=["front"])
    assert f"'front' is not in {tmp_path / 'a'}, only images.front" in caught.value.message
    assert "--data.rename cameras.front=images.front" in caught.value.hint


def test_padded_images_are_counted_by_camera(unlike: list[str]) -> None:
    config, info = loaded(unlike, pad_missing_images=True, proprioception_fields=["obs.object"])
    reporter = Recorder()
    RoboticsKind().check_samples(config, info, reporter)
    half, both = info.datasets[0].size, info.num_samples
    assert f"black images of front_image in {half} of {both} samples: {unlike[1]}" in reporter.notes


def test_a_camera_that_only_one_set_has_may_be_padded(unlike: list[str]) -> None:
    with fails("data.unknown_field", 3) as caught:
        loaded(unlike, camera_names=["front_image"], proprioception_fields=["obs.object"])
    assert f"is not in {unlike[1]}, only top" in caught.value.message
    assert "data.pad_missing_images" in caught.value.hint
