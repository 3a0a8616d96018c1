"""Whatever cameras are called, `verify` finds no fault in what a sink wrote."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import hdf5
from tests.surface.invoke import run_vlatool
from vlatool.config.resolve import config_of
from vlatool.plugins import SINKS
from vlatool.recordings.renaming import in_lower_case
from vlatool.transforms.names import NameMap
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

LENGTHS = {"demo_0": 12, "demo_1": 9}
TARS = ("frames", "lbm")  # sinks whose loaders read names in lower case


def recording(folder: Path, *cameras: str) -> Path:
    """Demonstrations whose cameras have these names."""

    def change(file: Any) -> None:
        for name in LENGTHS:
            group = file[f"data/{name}/obs"]
            images = next(key for key in group if key.endswith("_image"))
            values = group[images][()]
            for key in [key for key in group if key.endswith("_image")]:
                del group[key]
            for camera in cameras:
                group[camera] = values

    return hdf5.robomimic(folder / "raw.hdf5", LENGTHS, change)


def written(source: Path, output: Path, sink: str, **options: Any) -> PreprocessResult:
    tree = {"format": "hdf5", "sources": [str(source)], "output": str(output), "fps": 10}
    rotations = options.pop("camera_rotations", None)
    section = {"type": sink} | ({"camera_rotations": rotations} if rotations else {})
    tree |= {"workers": 1, "instruction": "go", "sink": section, **options}
    return preprocess(config_of(PreprocessConfig, tree))


@pytest.mark.parametrize("sink", SINKS.names())
@pytest.mark.parametrize(
    "cameras",
    [("front", "wrist"), ("Color_0", "WRIST cam"), ("Top", "top", "TOP")],
    ids=["plain", "capitals", "differ in case only"],
)
def test_output_of_every_sink_is_valid(sink: str, cameras: tuple[str, ...], tmp_path: Path) -> None:
    written(recording(tmp_path, *cameras), tmp_path / "out", sink)
    code, text = run_vlatool("verify", str(tmp_path / "out"))
    assert code == 0, text


@pytest.mark.parametrize("sink", TARS)
def test_lower_case_names_are_told_and_stand_in_the_output(sink: str, tmp_path: Path) -> None:
    result = written(recording(tmp_path, "Color_0", "WRIST"), tmp_path / "out", sink)
    (path,) = (tmp_path / "out").rglob("preprocessing_config.yaml")
    options = yaml.safe_load(path.read_text())
    assert result.cameras == tuple(options["camera_names"]) == ("color_0", "wrist")
    assert options["rename"]["cameras"] == {"color_0": "Color_0", "wrist": "WRIST"}
    assert [part["path"] for part in result.left_out] == ["next_obs/object"]


def test_options_name_cameras_as_the_recordings_do(tmp_path: Path) -> None:
    options = {"camera_names": ["Color_0"], "camera_rotations": {"Color_0": 1}}
    result = written(recording(tmp_path, "Color_0", "WRIST"), tmp_path / "out", "frames", **options)
    stored = yaml.safe_load((tmp_path / "out/preprocessing_config.yaml").read_text())
    assert stored["camera_rotations"] == {"color_0": 1}
    assert result.cameras == ("color_0",)


def test_a_typed_name_keeps_its_origin(tmp_path: Path) -> None:
    options = {"rename": {"cameras": {"Eye": "Color_0"}}}
    written(recording(tmp_path, "Color_0"), tmp_path / "out", "frames", **options)
    stored = yaml.safe_load((tmp_path / "out/preprocessing_config.yaml").read_text())
    assert stored["rename"]["cameras"] == {"eye": "Color_0"}


def test_a_name_that_is_taken_gets_a_number() -> None:
    names = NameMap(cameras={"Top": "a", "side": "b"})
    lowered = in_lower_case(names, ["Top", "top", "side", "TOP"])
    assert lowered.cameras == {"side": "b", "top_2": "a", "top_3": "TOP"}


def test_a_name_that_becomes_the_stored_one_is_no_new_name() -> None:
    assert in_lower_case(NameMap(cameras={"Top": "top"}), ["Top"]).is_empty
