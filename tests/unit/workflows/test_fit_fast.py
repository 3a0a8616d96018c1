"""`vlatool tokenizer fit-fast`: a FAST folder from windows or shards."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.fast import STEPS, smooth_actions, window_tree
from tests.builders.preprocessing import contents
from tests.builders.shards import shard_output
from tests.builders.training import world_shards
from tests.builders.web_server import web_server
from tests.surface.invoke import run_vlatool
from vlatool.datasets.fast.layout import NAMES, fast_digest, read_fast
from vlatool.datasets.jsonl.layout import WindowManifest, write_manifest
from vlatool.datasets.samples.profile import read_profile
from vlatool.jobs.record import OutputRecord
from vlatool.storage.uri import location
from vlatool.workflows.fit_fast import FitFastConfig, FitFastResult, fit_fast


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return window_tree(tmp_path_factory.mktemp("windows"))


def fit(source: Path, output: Path, **keys: Any) -> FitFastResult:
    options = {"vocab_size": 400, "workers": 1, **keys}
    return fit_fast(FitFastConfig(sources=[str(source)], output=str(output), **options))


def test_the_command_prints_the_result_and_writes_the_published_files(
    windows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "fast"
    words = ("tokenizer", "fit-fast", str(windows), "--output", str(output))

    code, text = run_vlatool(*words, "--vocab-size", "400", "--workers", "1", "--json")

    report = json.loads(text)
    assert code == 0
    assert (report["chunks"], report["steps"], report["width"]) == (80, 16, 7)
    assert report["quality"]["exact"] == report["quality"]["in_range"] == 1
    assert report["digest"] == read_fast(output).digest
    assert all((output / name).is_file() for name in NAMES)


def test_the_computed_profile_counts_each_row_once(windows: Path, fitted: FitFastResult) -> None:
    loaded = read_profile(str(windows.parent / "fast"))
    rows = np.concatenate([smooth_actions(number, 40) for number in range(2)])
    np.testing.assert_allclose(loaded.mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(loaded.std, rows.std(axis=0), atol=1e-6)
    with web_server(windows.parent) as server:
        address = f"{server.endpoint}/fast"
        assert fast_digest(location(address)) == fitted.digest
        assert read_profile(address).digest == fitted.profile_digest


def test_one_or_two_lines_per_step_give_the_same_tokenizer(
    fitted: FitFastResult, tmp_path: Path
) -> None:
    single = window_tree(tmp_path / "single", kinds=("wm",))
    assert fit(single, tmp_path / "fast").digest == fitted.digest


def test_chunks_are_decoded_within_the_reported_error(windows: Path, tmp_path: Path) -> None:
    result = fit(windows, tmp_path / "fast", profile="libero", gripper="normalised")
    assert not result.next  # the images have no codes
    tokenizer, profile = read_fast(tmp_path / "fast"), read_profile("libero", "normalised")
    chunk = smooth_actions(0, 40)[None, :STEPS]

    back, _ = tokenizer.decode(tokenizer.encode(profile.normalize(chunk)), *chunk.shape[1:])

    change = np.abs(profile.denormalize(back) - chunk).max(axis=(0, 1))
    largest = [row["largest"] for row in result.quality["error"].values()]
    assert (change <= np.array(largest) + 1e-6).all()
    assert list(result.quality["error"])[-1] == "gripper"


def test_an_equal_run_is_already_complete_and_others_need_overwrite(tmp_path: Path) -> None:
    data, output = window_tree(tmp_path / "windows"), tmp_path / "fast"
    assert fit(data, output, dry_run=True).chunks == 80
    assert not output.exists()
    first = fit(data, output)
    before = contents(output)

    again = fit(data, output, workers=2)

    assert again.status == "already complete"
    assert again.document() == {**first.document(), "status": "already complete"}
    with fails("usage.output_differs"):
        fit(data, output, scale=20)
    shutil.rmtree(data)
    window_tree(data, episodes=1)
    with fails("usage.output_differs"):
        fit(data, output)
    assert contents(output) == before
    fit(data, output, profile="libero", overwrite=True)
    fit(data, tmp_path / "new", profile="libero")
    assert contents(output) == contents(tmp_path / "new")
    OutputRecord("preprocess", {}).save(data)
    with fails("data.incomplete"):
        fit(data, tmp_path / "newest")


def test_a_folder_with_other_content_is_not_changed(windows: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with fails("usage.output_exists"):
        fit(windows, tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with fails("data.no_samples"):
        fit(tmp_path, tmp_path / "fast")


def test_a_limit_selects_chunks_with_the_seed(windows: Path, tmp_path: Path) -> None:
    results = [
        fit(windows, tmp_path / str(at), limit=20, seed=seed) for at, seed in enumerate((1, 1, 2))
    ]

    assert [result.fitted_on for result in results] == [20] * 3
    assert [result.digest == results[0].digest for result in results] == [True, True, False]
    assert all(
        result.quality["in_range"] == 1 for result in results
    )  # the range is that of all chunks


def test_the_published_alphabet_has_an_id_per_coefficient(windows: Path, tmp_path: Path) -> None:
    result = fit(windows, tmp_path / "fast", alphabet="published")

    vocabulary = json.loads(read_fast(tmp_path / "fast").document)["model"]["vocab"]
    span = result.highest - result.lowest + 1
    assert {chr(code) for code in range(span)} <= vocabulary.keys()
    assert result.quality["exact"] == 1


@pytest.mark.parametrize(("gripper", "raw"), [("raw", ("gripper",)), ("normalised", ())])
def test_a_named_gripper_is_raw_by_default(
    windows: Path, tmp_path: Path, gripper: str, raw: tuple[str, ...]
) -> None:
    data = Path(shutil.copytree(windows, tmp_path / "windows"))
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    sizes = {"action_width": 7, "past_steps": 1, "future_steps": 16, "episodes": 2, "frames": 80}
    sources = {"names": ("windows",), "cameras": ("image",), "fps": None, "image_size": None}
    counts = {"qa_mode": "both", "samples": 160, "pictures": 0, "untouched": 0}
    keys: dict[str, Any] = {**sizes, **sources, **counts}
    manifest = WindowManifest(action_fields=("actions",), action_names=names, **keys)
    write_manifest(data, manifest)

    fit(data, tmp_path / "fast", gripper=gripper)

    assert read_profile(str(tmp_path / "fast")).raw == raw


def test_a_tokenizer_is_fitted_on_shards(tmp_path: Path) -> None:
    data = world_shards(tmp_path / "world", episodes=2, frames=20)
    with fails("data.mismatch", 3):  # of another width
        fit(data, tmp_path / "fast", profile="libero")

    result = fit(data, tmp_path / "fast", raw=["19"])

    assert result.width == 20
    assert result.quality["exact"] == 1
    assert read_profile(str(tmp_path / "fast")).raw == ("19",)
    plain = shard_output(tmp_path / "data")
    with fails("usage.unsupported", 2):
        fit(plain, tmp_path / "plain")
    fit(plain, tmp_path / "plain", action_fields=["action"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}\n", ":2"),
        (b"not json\n", ":2"),
        (b'{"messages": [], "images": []}\n', ":2"),
        (b"{", "truncated"),
    ],
)
def test_a_broken_line_is_reported(
    windows: Path, tmp_path: Path, line: bytes, message: str
) -> None:
    data = tmp_path / "windows" / "data"
    shutil.copytree(windows / "data", data)
    path = data / "episode_000001.jsonl"
    first = path.read_bytes().partition(b"\n")[0] + b"\n"
    path.write_bytes(first + line)

    with fails("data.broken", 3) as caught:
        fit(tmp_path / "windows", tmp_path / "fast")
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert not (tmp_path / "fast").exists()


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"raw": ["9"]}, "usage.unknown_name"),
        ({"raw": ["6"], "profile": "libero"}, "usage.conflict"),
        ({"profile": "nothing"}, "usage.unknown_name"),
        ({"action_fields": ["a"]}, "usage.unsupported"),
        ({"gripper": "normalised"}, "usage.unsupported"),
        ({"alphabet": "published", "scale": 500}, "usage.bad_value"),
    ],
)
def test_inconsistent_options_are_rejected(
    windows: Path, tmp_path: Path, keys: dict[str, Any], code: str
) -> None:
    with fails(code, 2) as caught:
        fit(windows, tmp_path / "fast", **keys)
    assert caught.value.hint


@pytest.fixture(scope="module")
def fitted(windows: Path) -> FitFastResult:
    """Result with the default options, beside the windows."""
    return fit(windows, windows.parent / "fast")
