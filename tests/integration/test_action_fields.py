"""Action fields of every sink: none is lost, relative poses are made, others are named."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.libero import convert, convert_error
from tests.builders.preprocessing import contents
from tests.builders.verifying import verified
from vlatool.datasets.fast.layout import ChunkFile, find_chunks
from vlatool.datasets.jsonl.layout import read_manifest
from vlatool.datasets.lbm.layout import ShardFolder
from vlatool.datasets.samples.profile import compute_profile
from vlatool.errors import UsageError
from vlatool.workflows.fit_fast import FitFastConfig, fit_fast
from vlatool.workflows.sample import SampleConfig, sample

FRAMES, STEPS = 6, 4
GRIPPER = "robot__action__grippers__left::panda_hand"
POSITION = "robot__action__poses__left::panda__xyz"
WINDOWS = {"format": "spartan", "sink": "jsonl", "future_steps": STEPS, "past_steps": 1}
SHARDS = {"format": "spartan", "sink": "lbm", "future_lowdim_steps": STEPS - 1}
SHARDS |= {"past_lowdim_steps": 0, "max_padding_right": STEPS - 1}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("world") / "raw"
    sample(SampleConfig(layout="spartan", output=str(source), episodes=1, frames=FRAMES))
    return source


@pytest.fixture(scope="module")
def intact(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("windows") / "A"
    convert(raw, output, **WINDOWS)
    return output


def lines(folder: Path) -> Path:
    return next((folder / "data").glob("*.jsonl"))


def test_windows_have_the_relative_poses_of_shards(raw: Path, intact: Path, tmp_path: Path) -> None:
    assert convert(raw, tmp_path / "shards", **SHARDS).left_out_fields == ()
    manifest = read_manifest(intact)
    assert manifest is not None
    assert (manifest.action_width, len(manifest.relative_dimensions)) == (20, 18)
    (shard,) = ShardFolder.of(tmp_path / "shards", "episodes").shards()
    expected = ChunkFile(shard.location, manifest.action_fields).read()
    actual = ChunkFile(lines(intact)).read()
    assert actual.shape == (FRAMES, STEPS, 20)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)  # float32 and float64
    assert verified(intact).codes == {}
    config = FitFastConfig(sources=[str(intact)], output=str(tmp_path / "fast"), dry_run=True)
    profile = compute_profile("all", actual.reshape(-1, 20))  # of whole chunks
    assert fit_fast(config).profile_digest == profile.digest


def test_requested_action_fields_are_stored_and_others_are_named(raw: Path, tmp_path: Path) -> None:
    left_out = convert(raw, tmp_path / "A", **WINDOWS, action_fields=[GRIPPER]).left_out_fields
    assert (POSITION in left_out, GRIPPER in left_out) == (True, False)
    convert(raw, tmp_path / "B", **WINDOWS, action_fields=[GRIPPER, POSITION])
    manifest = read_manifest(tmp_path / "B")
    assert manifest is not None
    assert (manifest.action_fields, manifest.action_width) == ((GRIPPER, POSITION), 4)
    assert manifest.relative_dimensions == ()
    assert verified(tmp_path / "B").whole
    names = [GRIPPER, f"{POSITION}_relative"]
    result = convert(raw, tmp_path / "C", **SHARDS, action_fields=names)
    options = ShardFolder.of(tmp_path / "C", "shards").options()
    assert (list(result.action_fields), options["action_fields"]) == (names, names)


@pytest.mark.parametrize("sink", ["lbm", "jsonl", "image-shards"])
@pytest.mark.parametrize("name", ["robot__action__x", f"{GRIPPER}_relative"])
def test_an_action_field_that_a_sink_does_not_store_is_refused(
    raw: Path, tmp_path: Path, sink: str, name: str
) -> None:
    options: dict[str, Any] = {"format": "spartan", "sink": sink, "action_fields": [name]}
    error = convert_error(raw, tmp_path / "out", **options)
    assert (error.code, error.exit_code) == ("data.unknown_field", 3)
    assert not (tmp_path / "out").exists()


def test_other_action_fields_are_another_output(raw: Path, intact: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(intact, tmp_path / "A"))
    before = contents(output)
    assert convert(raw, output, **WINDOWS).status == "already complete"
    error = convert_error(raw, output, **WINDOWS, action_fields=[GRIPPER])
    assert error.code == "usage.output_differs"
    assert contents(output) == before


def test_action_tokenizers_take_the_fields_that_data_were_made_with(
    raw: Path, intact: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(intact)
    assert manifest is not None
    own = list(manifest.action_fields)
    convert(raw, tmp_path / "plain", **SHARDS)
    convert(raw, tmp_path / "chosen", **SHARDS, action_fields=own[:1])
    assert find_chunks(intact, own).files == find_chunks(intact).files
    with pytest.raises(UsageError):
        find_chunks(intact, own[:1])
    assert find_chunks(tmp_path / "chosen").fields == tuple(own[:1])
    absolute = {name.removesuffix("_relative") for name in own}
    assert {*find_chunks(tmp_path / "plain").fields} == absolute  # as published
